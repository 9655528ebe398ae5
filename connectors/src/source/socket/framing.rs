//! Framing: where a record ends in a stream of bytes. A pure state machine: the same bytes give the same records however
//! they are cut into reads. It judges lengths, never contents.

use memchr::memmem::Finder;
use tidemill_config::Framing;

/// How much of a record that is too long is kept for the dead letters.
pub const KEPT_OF_TOO_LONG: usize = 4 * 1024;

/// A framer that is empty again gives a buffer back that grew beyond this.
const IDLE_BUFFER_BYTES: usize = 64 * 1024;

/// What a framer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framed<'a> {
    /// A record without its terminator or prefix.
    Record(&'a [u8]),
    /// A record longer than the limit: its first [`KEPT_OF_TOO_LONG`] bytes, and how many there were. After it the framer
    /// is in step again.
    TooLong {
        /// The first bytes.
        first: &'a [u8],
        /// All of its bytes; where the connection ended inside it, those that came.
        bytes: u64,
    },
    /// What was left when the connection ended: the bytes as they came.
    Half(&'a [u8]),
}

/// Cuts one connection's bytes into records. Holds at most one record and one read.
pub struct Framer {
    cut: Cut,
    max: usize,
    held: Vec<u8>,
    /// This many held bytes cannot begin a delimiter: a record that dribbles in is not searched again from its start.
    scanned: usize,
    skip: Option<Skip>,
}

enum Cut {
    Delimiter { finder: Box<Finder<'static>>, lines: bool },
    Length(usize),
}

/// A record that is too long, on its way past.
struct Skip {
    first: Vec<u8>,
    /// Bytes of the record so far, `tail` included.
    seen: u64,
    /// The last bytes: a delimiter may have begun in them.
    tail: Vec<u8>,
    /// With a length prefix: bytes still to come.
    left: u64,
}

impl Framer {
    /// A framer for one connection. `None`: an empty delimiter, or a prefix of other than 1, 2, 4 or 8 bytes.
    pub fn new(framing: &Framing, max: usize) -> Option<Self> {
        let cut = match framing {
            Framing::Lines => Cut::Delimiter { finder: Box::new(Finder::new(b"\n").into_owned()), lines: true },
            Framing::Delimiter(text) if !text.is_empty() => {
                Cut::Delimiter { finder: Box::new(Finder::new(text).into_owned()), lines: false }
            }
            Framing::LengthPrefix(bytes @ (1 | 2 | 4 | 8)) => Cut::Length(*bytes),
            _ => return None,
        };
        Some(Self { cut, max, held: Vec::new(), scanned: 0, skip: None })
    }

    /// Takes the next bytes of the connection.
    pub fn push(&mut self, input: &[u8], emit: &mut impl FnMut(Framed<'_>)) {
        if self.held.is_empty() {
            let used = self.take(input, emit);
            self.held.extend_from_slice(&input[used..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(input);
            let used = self.take(&held, emit);
            held.drain(..used);
            if held.is_empty() && held.capacity() > IDLE_BUFFER_BYTES {
                held = Vec::new();
            }
            self.held = held;
        }
    }

    /// Bytes of memory that the unfinished record takes.
    pub fn held_bytes(&self) -> usize {
        let skipped = self.skip.as_ref().map_or(0, |skip| skip.first.capacity() + skip.tail.capacity());
        if self.held.is_empty() { skipped } else { self.held.capacity() + skipped }
    }

    /// The connection ended. What is left is half a record, but white space after a delimiter is nothing.
    pub fn finish(&mut self, emit: &mut impl FnMut(Framed<'_>)) {
        let held = std::mem::take(&mut self.held);
        self.scanned = 0;
        if let Some(skip) = self.skip.take() {
            emit(Framed::TooLong { first: &skip.first, bytes: skip.seen });
            return;
        }
        let nothing = match self.cut {
            Cut::Delimiter { .. } => held.trim_ascii().is_empty(),
            Cut::Length(_) => held.is_empty(),
        };
        if !nothing {
            emit(Framed::Half(&held));
        }
    }

    fn take(&mut self, bytes: &[u8], emit: &mut impl FnMut(Framed<'_>)) -> usize {
        match &self.cut {
            Cut::Length(prefix) => take_prefixed(&mut self.skip, *prefix, self.max, bytes, emit),
            Cut::Delimiter { finder, lines } => {
                take_delimited(&mut self.skip, &mut self.scanned, finder, *lines, self.max, bytes, emit)
            }
        }
    }
}

fn emit_whole(record: &[u8], max: usize, emit: &mut impl FnMut(Framed<'_>)) {
    if record.len() > max {
        emit(Framed::TooLong { first: &record[..record.len().min(KEPT_OF_TOO_LONG)], bytes: record.len() as u64 });
    } else {
        emit(Framed::Record(record));
    }
}

/// Emits what is whole in `bytes`, which begin at a record's first byte (or in a skipped record); returns how many are used.
fn take_delimited(
    skip: &mut Option<Skip>,
    scanned: &mut usize,
    finder: &Finder<'static>,
    lines: bool,
    max: usize,
    bytes: &[u8],
    emit: &mut impl FnMut(Framed<'_>),
) -> usize {
    let length = finder.needle().len();
    let mut at = 0;
    loop {
        if let Some(skipping) = skip {
            let Some((used, record)) = skipping.find(&bytes[at..], finder, lines) else { return bytes.len() };
            let first = &skipping.first[..skipping.first.len().min(usize::try_from(record).unwrap_or(usize::MAX))];
            emit(Framed::TooLong { first, bytes: record });
            *skip = None;
            at += used;
        }
        let rest = &bytes[at..];
        if let Some(found) = finder.find(&rest[*scanned..]) {
            let end = *scanned + found;
            let record = &rest[..end];
            emit_whole(if lines { record.strip_suffix(b"\r").unwrap_or(record) } else { record }, max, emit);
            at += end + length;
            *scanned = 0;
        } else if rest.len() > max + length + usize::from(lines) {
            // Even if the delimiter (and a `\r`) has begun at the end of `rest`, the record is longer than `max`.
            *scanned = 0;
            *skip = Some(Skip {
                first: rest[..rest.len().min(KEPT_OF_TOO_LONG)].to_vec(),
                seen: rest.len() as u64,
                tail: rest[rest.len() - length..].to_vec(),
                left: 0,
            });
            return bytes.len();
        } else {
            *scanned = rest.len().saturating_sub(length - 1);
            return at;
        }
    }
}

fn take_prefixed(
    skip: &mut Option<Skip>,
    prefix: usize,
    max: usize,
    bytes: &[u8],
    emit: &mut impl FnMut(Framed<'_>),
) -> usize {
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        if let Some(skipping) = skip {
            let here = rest.len().min(usize::try_from(skipping.left).unwrap_or(usize::MAX));
            skipping.keep(&rest[..here]);
            skipping.seen += here as u64;
            skipping.left -= here as u64;
            at += here;
            if skipping.left > 0 {
                return at;
            }
            emit(Framed::TooLong { first: &skipping.first, bytes: skipping.seen });
            *skip = None;
            continue;
        }
        let Some(head) = rest.get(..prefix) else { return at };
        let length = head.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        if length > max as u64 {
            *skip = Some(Skip { first: Vec::new(), seen: 0, tail: Vec::new(), left: length });
            at += prefix;
            continue;
        }
        let end = prefix + usize::try_from(length).unwrap_or(usize::MAX);
        let Some(record) = rest.get(prefix..end) else { return at };
        emit(Framed::Record(record));
        at += end;
    }
}

impl Skip {
    fn keep(&mut self, bytes: &[u8]) {
        self.first.extend_from_slice(&bytes[..bytes.len().min(KEPT_OF_TOO_LONG - self.first.len())]);
    }

    /// Looks for the end of the skipped record in the next bytes: how many belong to it, terminator included, and its
    /// length without the terminator.
    fn find(&mut self, bytes: &[u8], finder: &Finder<'static>, lines: bool) -> Option<(usize, u64)> {
        let length = finder.needle().len();
        let held = self.tail.len();
        let before = self.seen - held as u64;
        self.keep(bytes);
        self.tail.extend_from_slice(bytes);
        if let Some(found) = finder.find(&self.tail) {
            let carriage = lines && found > 0 && self.tail[found - 1] == b'\r';
            // No delimiter lies wholly in the old tail, so this does not go below zero.
            return Some((found + length - held, before + found as u64 - u64::from(carriage)));
        }
        self.seen += bytes.len() as u64;
        let keep = length.min(self.tail.len());
        self.tail.drain(..self.tail.len() - keep);
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Owned {
        Record(Vec<u8>),
        TooLong(Vec<u8>, u64),
        Half(Vec<u8>),
    }

    fn owned(framed: Framed<'_>) -> Owned {
        match framed {
            Framed::Record(bytes) => Owned::Record(bytes.to_vec()),
            Framed::TooLong { first, bytes } => Owned::TooLong(first.to_vec(), bytes),
            Framed::Half(bytes) => Owned::Half(bytes.to_vec()),
        }
    }

    fn run<'a>(framing: &Framing, max: usize, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<Owned> {
        let mut framer = Framer::new(framing, max).unwrap();
        let mut out = Vec::new();
        for part in parts {
            framer.push(part, &mut |framed| out.push(owned(framed)));
            assert!(framer.held.len() <= max + part.len() + 16, "the framer holds more than a record and a read");
        }
        framer.finish(&mut |framed| out.push(owned(framed)));
        out
    }

    fn record(text: &str) -> Owned {
        Owned::Record(text.as_bytes().to_vec())
    }

    fn delimiter(text: &str) -> Framing {
        Framing::Delimiter(text.as_bytes().to_vec())
    }

    /// Every way to cut `input` in three, and byte by byte, gives `expected`.
    fn every_split(framing: &Framing, max: usize, input: &[u8], expected: &[Owned]) {
        for first in 0..=input.len() {
            for second in first..=input.len() {
                let parts = [&input[..first], &input[first..second], &input[second..]];
                assert_eq!(run(framing, max, parts), expected, "cut at {first} and {second}");
            }
        }
        assert_eq!(run(framing, max, input.chunks(1)), expected, "byte by byte");
    }

    #[test]
    fn lines_at_every_split() {
        let half = Owned::Half(b"\rlast".to_vec());
        every_split(&Framing::Lines, 8, b"one\ntwo\r\n\n\rlast", &[record("one"), record("two"), record(""), half]);
        every_split(&Framing::Lines, 8, b"one\n \r\t", &[record("one")]);
        every_split(&Framing::Lines, 8, b"", &[]);
    }

    #[test]
    fn delimiters_at_every_split() {
        let posts = [record("a _\u{1f30a}"), record("\n__en"), record("")];
        every_split(&delimiter("__end"), 16, "a _\u{1f30a}__end\n__en__end__end\n".as_bytes(), &posts);
        every_split(&delimiter("__end"), 16, b"a__en", &[Owned::Half(b"a__en".to_vec())]);
        // The delimiter's beginning repeats in it, and in the text before it.
        every_split(&delimiter("aab"), 16, b"aaaab.aab", &[record("aa"), record(".")]);
    }

    #[test]
    fn the_limit_is_the_records_length_without_its_terminator() {
        let long = |text: &str, bytes| Owned::TooLong(text.as_bytes().to_vec(), bytes);
        let expected = [record("1234"), long("12345", 5), long("123456789", 9), record("ok"), long("abcdefg", 7)];
        every_split(&Framing::Lines, 4, b"1234\r\n12345\n123456789\r\nok\nabcdefg", &expected);
    }

    #[test]
    fn the_first_bytes_of_a_long_record_are_kept_and_no_more() {
        let input = [&vec![b'x'; 3 * KEPT_OF_TOO_LONG][..], b"\nok\n"].concat();
        let expected = [Owned::TooLong(vec![b'x'; KEPT_OF_TOO_LONG], 3 * KEPT_OF_TOO_LONG as u64), record("ok")];
        for size in [1, 1000, KEPT_OF_TOO_LONG, input.len()] {
            assert_eq!(run(&Framing::Lines, 10, input.chunks(size)), expected, "reads of {size}");
        }
    }

    #[test]
    fn length_prefixes_at_every_split() {
        let mut input = Vec::new();
        for text in ["one", "", "seven77", "ok"] {
            input.extend_from_slice(&(text.len() as u32).to_be_bytes());
            input.extend_from_slice(text.as_bytes());
        }
        let mut expected = vec![record("one"), record(""), Owned::TooLong(b"seven77".to_vec(), 7), record("ok")];
        every_split(&Framing::LengthPrefix(4), 4, &input, &expected);
        input.extend_from_slice(&[0, 0, 0, 3, b' ']);
        expected.push(Owned::Half(vec![0, 0, 0, 3, b' ']));
        every_split(&Framing::LengthPrefix(4), 4, &input, &expected);
        let absurd = [&u64::MAX.to_be_bytes()[..], b"GET"].concat();
        every_split(&Framing::LengthPrefix(8), 4, &absurd, &[Owned::TooLong(b"GET".to_vec(), 3)]);
    }

    #[test]
    fn what_cannot_frame_is_refused() {
        for framing in [Framing::Delimiter(Vec::new()), Framing::LengthPrefix(0), Framing::LengthPrefix(3)] {
            assert!(Framer::new(&framing, 1).is_none());
        }
    }

    /// What the framing means, said in the plainest way, over the whole input.
    fn model(end: &[u8], lines: bool, max: usize, input: &[u8]) -> Vec<Owned> {
        let mut out = Vec::new();
        let mut rest = input;
        while let Some(found) = (0..rest.len()).find(|at| rest[*at..].starts_with(end)) {
            let mut one = &rest[..found];
            if lines && one.ends_with(b"\r") {
                one = &one[..found - 1];
            }
            out.push(if one.len() > max {
                Owned::TooLong(one[..one.len().min(KEPT_OF_TOO_LONG)].to_vec(), one.len() as u64)
            } else {
                Owned::Record(one.to_vec())
            });
            rest = &rest[found + end.len()..];
        }
        if rest.len() > max + end.len() + usize::from(lines) {
            out.push(Owned::TooLong(rest[..rest.len().min(KEPT_OF_TOO_LONG)].to_vec(), rest.len() as u64));
        } else if !rest.trim_ascii().is_empty() {
            out.push(Owned::Half(rest.to_vec()));
        }
        out
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_reads_are_the_models_records(
            parts in prop::collection::vec(prop::collection::vec(prop::sample::select(b"ab\r\n_ ".to_vec()), 0..12), 0..12),
            max in 0_usize..10,
            end in prop::sample::select(vec!["\n", "a", "aab", "_a_a", "\r\n"]),
        ) {
            let input = parts.concat();
            let (framing, lines) = if end == "\n" { (Framing::Lines, true) } else { (delimiter(end), false) };
            let expected = model(end.as_bytes(), lines, max, &input);
            prop_assert_eq!(run(&framing, max, parts.iter().map(Vec::as_slice)), expected);
        }
    }
}

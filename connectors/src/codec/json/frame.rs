//! Framing of JSON files: lines, the elements of a top-level array, or objects that are written over several lines.
//!
//! Which of them a file is follows from its beginning: `[` begins an array, a line with nothing but `{` objects over
//! several lines, anything else lines. Framing counts brackets and skips strings; whether a record is JSON is the
//! decoder's affair, so that a bad element costs one reject.

use memchr::{memchr, memchr2};

use super::super::frame::{FrameError, Framed, Framer, Lines, Scanned, UTF8_BOM, addressable, bom};

#[derive(Clone, Copy, Debug)]
enum Mode {
    /// Nothing but white space so far.
    Unknown,
    Lines,
    /// Elements; the first one is looked for from this offset on.
    Array {
        first: u64,
    },
    Objects,
}

/// Frames a JSON file.
pub(in crate::codec) struct JsonFramer {
    mode: Mode,
    lines: Lines,
    scanned: Scanned,
    /// Where brackets and quotes stand after the bytes of `scanned`.
    nesting: Nesting,
}

/// Brackets that are open, and whether a string is.
#[derive(Clone, Copy, Debug, Default)]
struct Nesting {
    depth: u32,
    in_string: bool,
}

impl Nesting {
    /// Goes on to the end of a value: in an array to the comma or bracket after it, else past the bracket that closes it.
    /// The second value is whether the end was found.
    fn run(&mut self, bytes: &[u8], mut at: usize, in_array: bool) -> (usize, bool) {
        while at < bytes.len() {
            if self.in_string {
                match memchr2(b'"', b'\\', &bytes[at..]) {
                    None => return (bytes.len(), false),
                    Some(found) if bytes[at + found] == b'"' => {
                        self.in_string = false;
                        at += found + 1;
                    }
                    // What is escaped may be in the next chunk.
                    Some(found) if at + found + 1 == bytes.len() => return (at + found, false),
                    Some(found) => at += found + 2,
                }
                continue;
            }
            match bytes[at] {
                b'"' => self.in_string = true,
                b',' | b']' if in_array && self.depth == 0 => return (at, true),
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 && !in_array {
                        return (at + 1, true);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        (at, false)
    }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

impl Default for JsonFramer {
    fn default() -> Self {
        Self {
            mode: Mode::Unknown,
            lines: Lines::without_blank(),
            scanned: Scanned::default(),
            nesting: Nesting::default(),
        }
    }
}

impl Framer for JsonFramer {
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        let (bytes, at_end) = addressable(bytes, at_end);
        let mut start = 0;
        if matches!(self.mode, Mode::Unknown) {
            match self.sniff(at, bytes, at_end) {
                Some(consumed) => start = consumed,
                None => return Framed::default(),
            }
        }
        match self.mode {
            Mode::Lines if start == 0 => self.lines.frame(at, bytes, at_end, max_records, out),
            Mode::Array { first } => self.elements(at, bytes, start, at_end, max_records, out, first),
            Mode::Objects => self.objects(at, bytes, start, at_end, max_records, out),
            Mode::Lines | Mode::Unknown => Framed { consumed: start, header: None, error: None },
        }
    }
}

impl JsonFramer {
    /// Tells from the file's beginning what it is. Gives what lies before the first record, `None` where more bytes must
    /// tell.
    fn sniff(&mut self, at: u64, bytes: &[u8], at_end: bool) -> Option<usize> {
        let mark = if at == 0 { bom(bytes, at_end, UTF8_BOM)? } else { 0 };
        let begin = skip_space(bytes, mark);
        let rest = &bytes[begin..];
        match rest.first() {
            None if at_end => return Some(bytes.len()),
            // Blank lines are consumed, so that there may be any number of them.
            None => return Some(memchr::memrchr(b'\n', bytes).map_or(0, |newline| newline + 1)),
            Some(b'[') => {
                self.mode = Mode::Array { first: at + begin as u64 + 1 };
                return Some(begin + 1);
            }
            Some(b'{') => {
                let line = memchr(b'\n', rest).map(|end| &rest[..end]);
                let is_alone = rest[1..line.map_or(rest.len(), <[u8]>::len)].trim_ascii().is_empty();
                match line {
                    Some(_) if is_alone => self.mode = Mode::Objects,
                    None if is_alone && !at_end => return None,
                    _ => self.mode = Mode::Lines,
                }
            }
            Some(_) => self.mode = Mode::Lines,
        }
        // Lines skip what lies before the first one themselves.
        Some(if matches!(self.mode, Mode::Lines) { 0 } else { begin })
    }

    /// Goes on in a value where the last call left off, or begins it at `start`.
    fn value_end(&mut self, at: u64, bytes: &[u8], border: usize, start: usize, in_array: bool) -> Option<usize> {
        let from = match self.scanned.before(at + border as u64) {
            Some(looked_at) => (border + looked_at).clamp(start, bytes.len()),
            None => {
                self.nesting = Nesting::default();
                start
            }
        };
        let (end, found) = self.nesting.run(bytes, from, in_array);
        self.scanned = if found { Scanned::default() } else { Scanned::remember(at + border as u64, end - border) };
        found.then_some(end)
    }

    #[allow(clippy::too_many_arguments)] // those of `frame`, and where the elements begin
    fn elements(
        &mut self,
        at: u64,
        bytes: &[u8],
        mut border: usize,
        at_end: bool,
        max_records: usize,
        out: &mut Vec<(u32, u32)>,
        first: u64,
    ) -> Framed {
        let error = |start, detail: &str| Some(FrameError { start, reason: "json", detail: detail.to_owned() });
        for taken in 0..=max_records {
            let next = skip_space(bytes, border);
            let is_first = at + border as u64 == first;
            let start = match bytes.get(next) {
                None if at_end && (is_first || border < bytes.len()) => {
                    return Framed { consumed: border, header: None, error: error(border, "the array is not closed") };
                }
                None => break,
                Some(b']') => {
                    let after = skip_space(bytes, next + 1);
                    if after < bytes.len() {
                        let error = error(after, "there is text after the array");
                        return Framed { consumed: border, header: None, error };
                    }
                    border = if at_end { bytes.len() } else { border };
                    break;
                }
                Some(b',') if !is_first => skip_space(bytes, next + 1),
                Some(byte) if is_first && *byte != b',' => next,
                Some(_) => {
                    return Framed {
                        consumed: border,
                        header: None,
                        error: error(next, "a value, a comma or ] is expected"),
                    };
                }
            };
            if taken == max_records {
                break;
            }
            match self.value_end(at, bytes, border, start, true) {
                Some(end) => {
                    let length = bytes[start..end].trim_ascii_end().len();
                    out.push((start as u32, (start + length) as u32));
                    border = end;
                }
                None if at_end => {
                    return Framed { consumed: border, header: None, error: error(start, "the array is not closed") };
                }
                None => break,
            }
        }
        Framed { consumed: border, header: None, error: None }
    }

    fn objects(
        &mut self,
        at: u64,
        bytes: &[u8],
        mut border: usize,
        at_end: bool,
        max_records: usize,
        out: &mut Vec<(u32, u32)>,
    ) -> Framed {
        for _ in 0..max_records {
            let start = skip_space(bytes, border);
            let end = match bytes.get(start) {
                None if at_end => {
                    border = bytes.len();
                    break;
                }
                None => break,
                Some(b'{' | b'[') => self.value_end(at, bytes, border, start, false),
                // No object: to the end of the line.
                Some(_) => memchr(b'\n', &bytes[start..]).map(|length| start + length),
            };
            let end = match end {
                Some(end) => end,
                None if at_end => bytes.len(),
                None => break,
            };
            let length = bytes[start..end].trim_ascii_end().len();
            out.push((start as u32, (start + length) as u32));
            border = end;
        }
        if at_end && skip_space(bytes, border) == bytes.len() {
            border = bytes.len();
        }
        Framed { consumed: border, header: None, error: None }
    }
}

//! Framing of JSON files: lines, the elements of a top-level array, or objects that are written over several lines.
//!
//! Which of them a file is follows from its beginning: `[` begins an array, a line with nothing but `{` objects over
//! several lines, a line with more than one object objects with nothing between them, anything else lines. Framing counts brackets and skips strings; whether a record is JSON is the
//! decoder's affair, so that a bad element costs one reject.

use memchr::{memchr, memchr3};

use super::super::frame::{FrameError, Framed, Framer, Lines, MAX_HEAD, Scanned};

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
    /// Bit 0: the innermost bracket that is open is an object's. The one around it is bit 1, and so on, as far as they go.
    objects: u128,
}

impl Nesting {
    /// Goes on to the end of a value: in an array to the comma or bracket after it, else past the bracket that closes it.
    /// The second value is whether the end was found.
    ///
    /// A string cannot hold a line end, so one that is not closed ends there. An object inside of an object has a key
    /// before it: where the next line begins with `{`, the value is broken, and ends before that line.
    fn run(&mut self, bytes: &[u8], mut at: usize, in_array: bool) -> (usize, bool) {
        while at < bytes.len() {
            if self.in_string {
                let Some(found) = memchr3(b'"', b'\\', b'\n', &bytes[at..]) else { return (bytes.len(), false) };
                at += found;
                match (bytes[at], bytes.get(at + 1)) {
                    (b'"', _) => {
                        self.in_string = false;
                        at += 1;
                    }
                    (b'\n', _) => {
                        let next = skip_space(bytes, at);
                        match bytes.get(next) {
                            None => return (at, false),
                            Some(b'{') if self.depth == 0 || self.objects & 1 == 1 => return (at, true),
                            Some(_) => {
                                self.in_string = false;
                                at = next;
                            }
                        }
                    }
                    // What is escaped may be in the next chunk; a line end is not.
                    (_, None) => return (at, false),
                    (_, Some(b'\n')) => at += 1,
                    (_, Some(_)) => at += 2,
                }
                continue;
            }
            match bytes[at] {
                b'"' => self.in_string = true,
                b',' | b']' if in_array && self.depth == 0 => return (at, true),
                open @ (b'{' | b'[') => {
                    self.depth = self.depth.saturating_add(1);
                    self.objects = self.objects << 1 | u128::from(open == b'{');
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.objects >>= 1;
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
        let mut start = 0;
        if matches!(self.mode, Mode::Unknown) {
            match self.sniff(at, bytes, at_end, max_records == 0) {
                Some(consumed) => start = consumed,
                None => return Framed::default(),
            }
        }
        match self.mode {
            Mode::Lines if start == 0 => self.lines.frame(at, bytes, at_end, max_records, out),
            Mode::Array { first } => self.elements(at, bytes, start, at_end, max_records, out, first),
            Mode::Objects => self.objects(at, bytes, start, at_end, max_records, out),
            Mode::Lines | Mode::Unknown => Framed::consumed(start),
        }
    }
}

impl JsonFramer {
    /// Tells from the file's beginning what it is. Gives what lies before the first record, `None` where more bytes must
    /// tell. With `only`, the bytes end at a border.
    fn sniff(&mut self, at: u64, bytes: &[u8], at_end: bool, only: bool) -> Option<usize> {
        let is_nothing = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0;
        let begin = bytes.iter().position(|byte| !is_nothing(byte)).unwrap_or(bytes.len());
        let rest = &bytes[begin..];
        match rest.first() {
            None if at_end => return Some(bytes.len()),
            // Blank lines, and what a log that was truncated begins with, are consumed: there may be any number of them.
            None => return Some(memchr::memrchr2(b'\n', 0, bytes).map_or(0, |last| last + 1)),
            Some(b'[') => {
                self.mode = Mode::Array { first: at + begin as u64 + 1 };
                return Some(begin + 1);
            }
            Some(b'{') => {
                let line = memchr(b'\n', rest).map(|end| &rest[..end]);
                let is_alone = rest[1..line.map_or(rest.len(), <[u8]>::len)].trim_ascii().is_empty();
                match line {
                    Some(_) if is_alone => self.mode = Mode::Objects,
                    None if is_alone && !at_end && rest.len() < MAX_HEAD => return None,
                    _ => self.mode = Self::of_first_line(line, rest, at_end, only)?,
                }
            }
            Some(_) => self.mode = Mode::Lines,
        }
        // Lines skip what lies before the first one themselves.
        Some(if matches!(self.mode, Mode::Lines) { 0 } else { begin })
    }

    /// Whether the first line holds more than one object. `None`: more bytes must tell.
    fn of_first_line(line: Option<&[u8]>, rest: &[u8], at_end: bool, only: bool) -> Option<Mode> {
        let (text, is_whole) = (line.unwrap_or(rest), line.is_some() || at_end || rest.len() >= MAX_HEAD);
        let text = &text[..text.len().min(MAX_HEAD)];
        let (end, found) = Nesting::default().run(text, 0, false);
        match text.get(skip_space(text, end)) {
            Some(b'{') if found => Some(Mode::Objects),
            // A border behind an object and before the end of its line is one between two of them.
            None if found && only && line.is_none() && end == text.len() => Some(Mode::Objects),
            None if !is_whole => None,
            _ => Some(Mode::Lines),
        }
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
                    return Framed { error: error(border, "the array is not closed"), ..Framed::consumed(border) };
                }
                None => break,
                Some(b']') => {
                    let after = skip_space(bytes, next + 1);
                    if after < bytes.len() {
                        let error = error(after, "there is text after the array");
                        return Framed { error, ..Framed::consumed(border) };
                    }
                    border = if at_end { bytes.len() } else { border };
                    break;
                }
                Some(b',') if !is_first => skip_space(bytes, next + 1),
                Some(byte) if is_first && *byte != b',' => next,
                // The comma is in the string that was not closed on the line before.
                Some(b'{') if bytes[border..next].contains(&b'\n') => next,
                Some(_) => {
                    let error = error(next, "a value, a comma or ] is expected");
                    return Framed { error, ..Framed::consumed(border) };
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
                    return Framed { error: error(start, "the array is not closed"), ..Framed::consumed(border) };
                }
                None => break,
            }
        }
        Framed::consumed(border)
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
        Framed::consumed(border)
    }
}

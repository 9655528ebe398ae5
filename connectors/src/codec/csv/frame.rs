//! Framing of CSV files: a line end inside of quotes ends no record.
//!
//! A quote opens a quoted field only where the field begins, as in the decoder; anywhere else it is a character like others.
//! [`CsvFramer`] sees ASCII characters, one byte each; [`CsvFile`] is around it, knows the encoding, and judges the header.

use memchr::{memchr2, memchr3};
use tidemill_config::model::Csv;

use super::{Head, Separator, separator};
use crate::codec::{
    encoding::{TextFramer, gathered},
    frame::{FrameError, Framed, Framer, MAX_HEAD, Scanned},
};

/// Frames a CSV file of any encoding. A header that cannot be one is an error: the file is one reject.
pub(in crate::codec) struct CsvFile {
    text: TextFramer<CsvFramer>,
    options: Csv,
}

impl CsvFile {
    pub(in crate::codec) fn new(options: &Csv) -> Self {
        let special = options.delimiter.bytes().chain(options.quote).chain(options.escape);
        let mut special = special.chain(options.comment.iter().flat_map(|comment| comment.bytes()));
        // Digits and letters may be second bytes of a character too.
        let has_pairs = special.any(|byte| byte >= b'0');
        let text = TextFramer::new(CsvFramer::new(options), &options.encoding, has_pairs);
        Self { text, options: options.clone() }
    }
}

impl Framer for CsvFile {
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        let before = out.len();
        let framed = self.text.frame(at, bytes, at_end, max_records, out);
        let Some(last) = framed.header.last().filter(|_| self.options.header) else { return framed };
        // Behind a header with a line end more was consumed than the header.
        let has_end = last.end < framed.consumed;
        let head = gathered(bytes, &framed.header);
        match Head::parse(Some(&head), &self.options).fault(&head, has_end, &self.options) {
            None => framed,
            Some(detail) => {
                out.truncate(before);
                Framed { error: Some(FrameError { start: 0, reason: "csv", detail }), ..Framed::default() }
            }
        }
    }

    fn cut_off(&mut self) {
        self.text.cut_off();
    }
}

/// Frames a CSV file of which it sees every character as one byte.
pub(in crate::codec) struct CsvFramer {
    options: Csv,
    delimiter: Vec<u8>,
    /// With one column an empty line is a record with an empty field; with more it is no record.
    blank_is_record: bool,
    scanned: Scanned,
    /// Inside of a quoted field, after the bytes of `scanned`.
    in_quotes: bool,
    /// Where a field begins, after the bytes of `scanned`. For delimiters of several characters.
    at_field: bool,
}

/// What the beginning of a file is.
enum Begun {
    /// More bytes must tell.
    Unknown,
    Is(Framed),
    Wrong(String),
}

impl CsvFramer {
    fn new(options: &Csv) -> Self {
        Self {
            options: options.clone(),
            delimiter: options.delimiter.clone().into_bytes(),
            blank_is_record: false,
            scanned: Scanned::default(),
            in_quotes: false,
            at_field: true,
        }
    }

    /// The end of the record that begins at `start`, and where the next one begins. `None`: the chunk ends before it.
    fn record(&mut self, at: u64, bytes: &[u8], start: usize, at_end: bool) -> Option<(usize, usize)> {
        let mut from = match self.scanned.before(at + start as u64) {
            Some(looked_at) => (start + looked_at).min(bytes.len()),
            None => {
                (self.in_quotes, self.at_field) = (false, true);
                start
            }
        };
        let found = match self.options.quote.filter(|_| self.options.multiline) {
            None => line_end(bytes, &mut from, at_end),
            Some(quote) if self.delimiter.len() == 1 => self.quoted(bytes, start, &mut from, at_end, quote),
            Some(quote) => self.quoted_slowly(bytes, &mut from, at_end, quote),
        };
        let found = found.or((at_end && start < bytes.len()).then_some((bytes.len(), bytes.len())));
        self.scanned = match found {
            Some(_) => Scanned::default(),
            None => Scanned::remember(at + start as u64, from - start),
        };
        found
    }

    /// The line end that ends a record, and what is behind it.
    fn quoted(
        &mut self,
        bytes: &[u8],
        start: usize,
        from: &mut usize,
        at_end: bool,
        quote: u8,
    ) -> Option<(usize, usize)> {
        let escape = self.options.escape.unwrap_or(quote);
        loop {
            let rest = &bytes[*from..];
            let found = match self.in_quotes {
                true if escape == quote => memchr::memchr(quote, rest),
                true => memchr2(quote, escape, rest),
                false => memchr3(quote, b'\n', b'\r', rest),
            };
            let Some(place) = found.map(|found| *from + found) else {
                *from = bytes.len();
                return None;
            };
            let (letter, next) = (bytes[place], bytes.get(place + 1).copied());
            if next.is_none() && !at_end && letter != b'\n' {
                // What the character means is told by the next one.
                *from = place;
                return None;
            }
            *from = place + 1;
            if self.in_quotes {
                if letter != quote || next == Some(quote) {
                    *from += 1;
                } else {
                    self.in_quotes = false;
                }
            } else if letter == quote {
                let before = place.checked_sub(1).and_then(|before| bytes.get(before));
                self.in_quotes = place == start || before == self.delimiter.first();
            } else {
                let is_pair = letter == b'\r' && next == Some(b'\n');
                return Some((place, *from + usize::from(is_pair)));
            }
            *from = (*from).min(bytes.len());
        }
    }

    /// The same where a delimiter has several characters: only from the record's beginning on is it clear where one is.
    fn quoted_slowly(&mut self, bytes: &[u8], from: &mut usize, at_end: bool, quote: u8) -> Option<(usize, usize)> {
        let escape = self.options.escape.unwrap_or(quote);
        while let Some(letter) = bytes.get(*from).copied() {
            let rest = &bytes[*from..];
            let is_cut = |most: usize| rest.len() < most && !at_end;
            if self.in_quotes {
                if letter == quote || letter == escape {
                    if is_cut(2) {
                        return None;
                    }
                    if letter != quote || rest.get(1) == Some(&quote) {
                        *from += 1;
                    } else {
                        self.in_quotes = false;
                    }
                }
                *from = (*from + 1).min(bytes.len());
            } else if letter == b'\n' || letter == b'\r' {
                if letter == b'\r' && is_cut(2) {
                    return None;
                }
                let is_pair = rest.starts_with(b"\r\n");
                return Some((*from, *from + 1 + usize::from(is_pair)));
            } else if rest.starts_with(&self.delimiter) {
                *from += self.delimiter.len();
                self.at_field = true;
            } else if is_cut(self.delimiter.len()) && self.delimiter.starts_with(rest) {
                return None;
            } else {
                self.in_quotes = letter == quote && self.at_field;
                self.at_field = false;
                *from += 1;
            }
        }
        None
    }

    /// Where the line behind a comment at `start` begins; `Err`: more bytes must tell. `None`: there is no comment.
    fn behind_comment(&self, bytes: &[u8], start: usize, at_end: bool) -> Result<Option<usize>, ()> {
        let Some(comment) = &self.options.comment else { return Ok(None) };
        let rest = &bytes[start..];
        if rest.starts_with(comment.as_bytes()) {
            let mut from = start;
            return match line_end(bytes, &mut from, at_end) {
                Some((_, next)) => Ok(Some(next)),
                None if at_end => Ok(Some(bytes.len())),
                None => Err(()),
            };
        }
        let may_become = !at_end && rest.len() < comment.len() && comment.as_bytes().starts_with(rest);
        if may_become { Err(()) } else { Ok(None) }
    }

    /// Takes what comes before the first record.
    fn begin(&mut self, at: u64, bytes: &[u8], at_end: bool, only: bool) -> Begun {
        self.delimiter = self.options.delimiter.clone().into_bytes();
        // What is alone and ends with the chunk at a border is complete, whatever follows.
        let is_whole = at_end || only && bytes.last() == Some(&b'\r');
        let (mut start, mut header) = (0, Vec::new());
        for line in 0..self.options.skip {
            let mut from = start;
            match line_end(bytes, &mut from, at_end) {
                Some((_, next)) => start = next,
                None if !at_end => return Begun::Unknown,
                None if start < bytes.len() && line + 1 == self.options.skip && !self.options.header => {
                    start = bytes.len();
                }
                None if bytes.is_empty() => break,
                None => {
                    let skip = self.options.skip;
                    return Begun::Wrong(format!("the file ends in the lines that `skip: {skip}` leaves out"));
                }
            }
        }
        match separator(&bytes[start..], is_whole) {
            Separator::Unknown => return Begun::Unknown,
            Separator::None => {}
            Separator::Is(delimiter, length) => {
                self.delimiter = vec![delimiter];
                header.push(start..start + length);
                start += length;
            }
        }
        while self.options.header {
            match self.behind_comment(bytes, start, at_end) {
                Err(()) => return Begun::Unknown,
                Ok(Some(next)) => {
                    start = next;
                    continue;
                }
                Ok(None) => {}
            }
            match self.record(at, bytes, start, is_whole) {
                Some((end, next)) if end == start && next > end => start = next,
                Some((end, next)) => {
                    self.blank_is_record = memchr::memmem::find(&bytes[start..end], &self.delimiter).is_none();
                    header.push(start..end);
                    return Begun::Is(Framed { header, ..Framed::consumed(next) });
                }
                None if at_end && self.options.skip > 0 && !bytes.is_empty() => {
                    let skip = self.options.skip;
                    return Begun::Wrong(format!("there is no header behind the lines that `skip: {skip}` leaves out"));
                }
                None if at_end => break,
                None => return Begun::Unknown,
            }
        }
        Begun::Is(Framed { header, ..Framed::consumed(start) })
    }
}

/// The end of a line at or behind `from`, and where the next one begins. `None`: the chunk ends before it; then `from` is
/// as far as was looked.
fn line_end(bytes: &[u8], from: &mut usize, at_end: bool) -> Option<(usize, usize)> {
    let Some(place) = memchr2(b'\n', b'\r', &bytes[*from..]).map(|found| *from + found) else {
        *from = bytes.len();
        return None;
    };
    match (bytes[place], bytes.get(place + 1)) {
        (b'\r', None) if !at_end => {
            *from = place;
            None
        }
        (b'\r', Some(b'\n')) => Some((place, place + 2)),
        _ => Some((place, place + 1)),
    }
}

impl Framer for CsvFramer {
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        let mut framed = Framed::default();
        if at == 0 {
            let wrong =
                |detail| Framed { error: Some(FrameError { start: 0, reason: "csv", detail }), ..Framed::default() };
            let too_long = || format!("no header is found in its first {MAX_HEAD} characters: is a quote not closed?");
            match self.begin(at, bytes, at_end, max_records == 0) {
                Begun::Is(begun) if begun.header.last().is_some_and(|range| range.end > MAX_HEAD) => {
                    return wrong(too_long());
                }
                Begun::Is(begun) => framed = begun,
                Begun::Unknown if bytes.len() > MAX_HEAD => return wrong(too_long()),
                Begun::Unknown => return framed,
                Begun::Wrong(detail) => return wrong(detail),
            }
        }
        let mut room = max_records;
        while room > 0 {
            let start = framed.consumed;
            match self.behind_comment(bytes, start, at_end) {
                Ok(None) => {}
                Ok(Some(next)) => {
                    framed.consumed = next;
                    continue;
                }
                Err(()) => break,
            }
            let Some((end, next)) = self.record(at, bytes, start, at_end) else { break };
            if end > start || self.blank_is_record {
                out.push((start as u32, end as u32));
                room -= 1;
            }
            framed.consumed = next;
        }
        framed
    }
}

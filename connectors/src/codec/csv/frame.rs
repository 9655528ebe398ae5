//! Framing of CSV files: a line end inside of quotes ends no record.
//!
//! A quote opens a quoted field only where the field begins, as in the decoder; anywhere else it is a letter. In UTF-16
//! the same rules hold for units of two bytes.

use encoding_rs::Encoding;
use memchr::{memchr2, memchr3};
use tidemill_config::model::Csv;

use super::super::frame::{Framed, Framer, Scanned, UTF8_BOM, addressable, bom};

/// How wide the units are in which delimiters and line ends are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// UTF-8, and every encoding in which a byte below 0x40 is always the ASCII letter.
    Byte,
    Utf16Le,
    Utf16Be,
}

impl Unit {
    fn of(label: &str) -> Self {
        match Encoding::for_label(label.as_bytes()) {
            Some(encoding) if encoding == encoding_rs::UTF_16LE => Self::Utf16Le,
            Some(encoding) if encoding == encoding_rs::UTF_16BE => Self::Utf16Be,
            _ => Self::Byte,
        }
    }
    fn bytes(self) -> usize {
        if self == Self::Byte { 1 } else { 2 }
    }
    /// The ASCII letter at `at`; 0 where there is another one.
    fn letter(self, bytes: &[u8], at: usize) -> Option<u8> {
        match self {
            Self::Byte => bytes.get(at).copied(),
            _ => {
                let unit = bytes.get(at..at + 2)?.first_chunk::<2>()?;
                let unit = if self == Self::Utf16Le { u16::from_le_bytes(*unit) } else { u16::from_be_bytes(*unit) };
                Some(u8::try_from(unit).unwrap_or(0))
            }
        }
    }
    fn find(self, bytes: &[u8], from: usize, any: [u8; 3]) -> Option<usize> {
        match self {
            Self::Byte if any[1] == any[2] => memchr2(any[0], any[1], &bytes[from..]).map(|found| from + found),
            Self::Byte => memchr3(any[0], any[1], any[2], &bytes[from..]).map(|found| from + found),
            _ => (from..bytes.len())
                .step_by(2)
                .find(|at| self.letter(bytes, *at).is_some_and(|letter| any.contains(&letter))),
        }
    }
}

/// Frames a CSV file.
pub(in crate::codec) struct CsvFramer {
    unit: Unit,
    is_utf8: bool,
    delimiter: u8,
    quote: u8,
    escape: u8,
    has_header: bool,
    /// The file's beginning was seen.
    begun: bool,
    /// With one column an empty line is a record with an empty field; with more it is no record.
    blank_is_record: bool,
    scanned: Scanned,
    in_quotes: bool,
}

impl CsvFramer {
    pub(in crate::codec) fn new(options: &Csv) -> Self {
        let encoding = Encoding::for_label(options.encoding.as_bytes());
        Self {
            unit: Unit::of(&options.encoding),
            is_utf8: encoding.is_none_or(|encoding| encoding == encoding_rs::UTF_8),
            delimiter: options.delimiter,
            quote: options.quote,
            escape: options.escape.unwrap_or(options.quote),
            has_header: options.header,
            begun: false,
            blank_is_record: false,
            scanned: Scanned::default(),
            in_quotes: false,
        }
    }

    fn mark(&self) -> &'static [u8] {
        match self.unit {
            Unit::Utf16Le => b"\xff\xfe",
            Unit::Utf16Be => b"\xfe\xff",
            Unit::Byte if self.is_utf8 => UTF8_BOM,
            Unit::Byte => b"",
        }
    }

    /// The end of the record that begins at `start`, and where the next one begins. `None`: the chunk ends before it.
    fn record(&mut self, at: u64, bytes: &[u8], start: usize, at_end: bool) -> Option<(usize, usize)> {
        let width = self.unit.bytes();
        let mut from = match self.scanned.before(at + start as u64) {
            Some(looked_at) => (start + looked_at).min(bytes.len()),
            None => {
                self.in_quotes = false;
                start
            }
        };
        let found = loop {
            let any = if self.in_quotes { [self.quote, self.escape, self.escape] } else { [self.quote, b'\n', b'\r'] };
            let Some(place) = self.unit.find(bytes, from, any) else {
                from = bytes.len() - (bytes.len() - from) % width;
                break None;
            };
            let letter = self.unit.letter(bytes, place);
            let next = self.unit.letter(bytes, place + width);
            if next.is_none() && !at_end && letter != Some(b'\n') {
                // What the letter means is told by the next one.
                from = place;
                break None;
            }
            from = place + width;
            if self.in_quotes {
                if letter != Some(self.quote) || next == letter {
                    from += width;
                } else {
                    self.in_quotes = false;
                }
            } else if letter == Some(self.quote) {
                let before = place.checked_sub(width).and_then(|before| self.unit.letter(bytes, before));
                self.in_quotes = place == start || before == Some(self.delimiter);
            } else {
                let is_pair = letter == Some(b'\r') && next == Some(b'\n');
                break Some((place, from + if is_pair { width } else { 0 }));
            }
            from = from.min(bytes.len());
        };
        let found = found.or((at_end && start < bytes.len()).then_some((bytes.len(), bytes.len())));
        self.scanned = match found {
            Some(_) => Scanned::default(),
            None => Scanned::remember(at + start as u64, from - start),
        };
        found
    }

    /// Takes mark and header. `None` where more bytes must come.
    fn begin(&mut self, at: u64, bytes: &[u8], at_end: bool, only: bool) -> Option<Framed> {
        if at > 0 {
            self.begun = true;
            return Some(Framed::default());
        }
        let mut start = bom(bytes, at_end, self.mark())?;
        while self.has_header {
            // A header alone that ends with the chunk is complete, whatever follows.
            let last = bytes.len().checked_sub(self.unit.bytes()).and_then(|last| self.unit.letter(bytes, last));
            let is_whole = at_end || only && last == Some(b'\r');
            match self.record(at, bytes, start, is_whole) {
                Some((end, next)) if end == start && next > end => start = next,
                Some((end, next)) => {
                    self.begun = true;
                    self.blank_is_record = !(start..end)
                        .step_by(self.unit.bytes())
                        .any(|place| self.unit.letter(bytes, place) == Some(self.delimiter));
                    return Some(Framed { consumed: next, header: Some(start..end), error: None });
                }
                None if at_end => break,
                None => return None,
            }
        }
        self.begun = true;
        Some(Framed { consumed: start, header: None, error: None })
    }
}

impl Framer for CsvFramer {
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        let (bytes, at_end) = addressable(bytes, at_end);
        let mut framed = Framed::default();
        if !self.begun {
            match self.begin(at, bytes, at_end, max_records == 0) {
                Some(begun) => framed = begun,
                None => return framed,
            }
        } else if at == 0 {
            // The same beginning again: its header was given before.
            self.begun = false;
            framed = self.frame(at, bytes, at_end, 0, out);
        }
        let mut room = max_records;
        while room > 0 {
            let start = framed.consumed;
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

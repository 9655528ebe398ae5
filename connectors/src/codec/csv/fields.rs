//! The fields of one CSV record.

use memchr::{memchr, memchr2};
use tidemill_config::model::Csv;

/// A field as it is found.
pub(super) struct Field<'a> {
    pub text: &'a [u8],
    pub quoted: bool,
}

/// Goes through a record field by field.
pub(super) struct Fields<'a> {
    record: &'a [u8],
    at: usize,
    done: bool,
    delimiter: u8,
    quote: u8,
    escape: u8,
}

/// A quoted field that breaks the rules.
pub(super) const AFTER_QUOTE: &str = "there is text between a closing quote and the delimiter";
pub(super) const NOT_CLOSED: &str = "a quoted field is not closed";

impl<'a> Fields<'a> {
    pub(super) fn new(record: &'a [u8], options: &Csv) -> Self {
        Self {
            record,
            at: 0,
            done: false,
            delimiter: options.delimiter,
            quote: options.quote,
            escape: options.escape.unwrap_or(options.quote),
        }
    }

    /// The next field. `scratch` holds its text where that is not in the record as it stands.
    #[inline]
    pub(super) fn next<'s>(&mut self, scratch: &'s mut Vec<u8>) -> Result<Option<Field<'s>>, &'static str>
    where
        'a: 's,
    {
        if self.done {
            return Ok(None);
        }
        let rest = &self.record[self.at..];
        if rest.first() == Some(&self.quote) {
            return self.quoted(scratch).map(|text| Some(Field { text, quoted: true }));
        }
        let text = match memchr(self.delimiter, rest) {
            Some(length) => {
                self.at += length + 1;
                &rest[..length]
            }
            None => {
                self.done = true;
                rest
            }
        };
        Ok(Some(Field { text, quoted: false }))
    }

    fn quoted<'s>(&mut self, scratch: &'s mut Vec<u8>) -> Result<&'s [u8], &'static str>
    where
        'a: 's,
    {
        scratch.clear();
        let start = self.at + 1;
        let (mut from, mut at) = (start, start);
        let end = loop {
            let Some(found) = memchr2(self.quote, self.escape, &self.record[at..]) else { return Err(NOT_CLOSED) };
            at += found;
            let next = self.record.get(at + 1).copied();
            if self.record[at] == self.quote && next != Some(self.quote) {
                break at;
            }
            if next.is_none() {
                return Err(NOT_CLOSED);
            }
            // The second byte is meant as it is; it may be the first of a longer letter.
            scratch.extend_from_slice(&self.record[from..at]);
            from = at + 1;
            at += 2;
        };
        match self.record.get(end + 1) {
            None => self.done = true,
            Some(byte) if *byte == self.delimiter => self.at = end + 2,
            Some(_) => return Err(AFTER_QUOTE),
        }
        if from == start {
            return Ok(&self.record[start..end]);
        }
        scratch.extend_from_slice(&self.record[from..end]);
        Ok(scratch)
    }
}

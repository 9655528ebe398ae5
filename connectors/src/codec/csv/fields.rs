//! The fields of one CSV record.

use memchr::{memchr, memchr2, memmem};

/// A field as it is found.
pub(super) struct Field<'a> {
    pub text: &'a [u8],
    pub quoted: bool,
}

/// What fields are told apart by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect<'a> {
    /// Not empty.
    pub delimiter: &'a [u8],
    pub quote: Option<u8>,
    pub escape: Option<u8>,
}

/// Goes through a record field by field.
pub(super) struct Fields<'a> {
    record: &'a [u8],
    at: usize,
    done: bool,
    delimiter: &'a [u8],
    quote: Option<u8>,
    escape: Option<u8>,
}

/// A quoted field that breaks the rules.
pub(super) const AFTER_QUOTE: &str = "there is text between a closing quote and the delimiter";
pub(super) const NOT_CLOSED: &str = "a quoted field is not closed";

impl<'a> Fields<'a> {
    pub(super) fn new(record: &'a [u8], dialect: Dialect<'a>) -> Self {
        let Dialect { delimiter, quote, escape } = dialect;
        Self { record, at: 0, done: false, delimiter, quote, escape }
    }

    #[inline]
    fn find_delimiter(&self, text: &[u8]) -> Option<usize> {
        match self.delimiter {
            [only] => memchr(*only, text),
            several => memmem::find(text, several),
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
        if let Some(quote) = self.quote
            && rest.first() == Some(&quote)
        {
            return self.quoted(quote, scratch).map(|text| Some(Field { text, quoted: true }));
        }
        let text = match self.find_delimiter(rest) {
            Some(length) => {
                self.at += length + self.delimiter.len();
                &rest[..length]
            }
            None => {
                self.done = true;
                rest
            }
        };
        Ok(Some(Field { text, quoted: false }))
    }

    fn quoted<'s>(&mut self, quote: u8, scratch: &'s mut Vec<u8>) -> Result<&'s [u8], &'static str>
    where
        'a: 's,
    {
        scratch.clear();
        let escape = self.escape.unwrap_or(quote);
        let start = self.at + 1;
        let (mut from, mut at) = (start, start);
        let end = loop {
            let Some(found) = memchr2(quote, escape, &self.record[at..]) else { return Err(NOT_CLOSED) };
            at += found;
            let next = self.record.get(at + 1).copied();
            if self.record[at] == quote && next != Some(quote) {
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
        match &self.record[end + 1..] {
            [] => self.done = true,
            behind if behind.starts_with(self.delimiter) => self.at = end + 1 + self.delimiter.len(),
            _ => return Err(AFTER_QUOTE),
        }
        if from == start {
            return Ok(&self.record[start..end]);
        }
        scratch.extend_from_slice(&self.record[from..end]);
        Ok(scratch)
    }
}

//! Reading JSON text byte by byte, strictly as RFC 8259 has it. No tree, no copies: values are ranges.

use std::ops::Range;

use crate::codec::frame::UTF8_BOM;

/// Deeper values are refused, so that no input decides how much memory its nesting costs. The levels of one skipped value
/// are the bits of a `u128`.
pub(in crate::codec) const MAX_DEPTH: u32 = 128;

/// Where a text stops being JSON, and what is wrong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::codec) struct Fault {
    /// Offset in the text.
    pub at: usize,
    /// What is wrong, as the end of a sentence.
    pub what: &'static str,
}

/// A string's content: the range between its quotes.
#[derive(Clone, Debug)]
pub(in crate::codec) struct Text {
    pub range: Range<usize>,
    /// Whether it has escapes.
    pub escaped: bool,
}

/// A number's text.
#[derive(Clone, Debug)]
pub(in crate::codec) struct Number {
    pub range: Range<usize>,
    /// Whether it has neither fraction nor exponent.
    pub integer: bool,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The offset of the first byte from `at` on that a JSON string cannot hold as it is: quote, backslash, control
/// character. The text's length where there is none. Eight bytes at a time: a byte's high bit is set where the
/// subtraction borrowed for it; the lowest such bit is exact.
#[inline]
pub(in crate::codec) fn special(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let quote = word ^ (ONES * b'"' as u64);
        let backslash = word ^ (ONES * b'\\' as u64);
        let hit = ((quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash)
            | (word.wrapping_sub(ONES * 0x20) & !word))
            & HIGHS;
        if hit != 0 {
            return at + (hit.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(&byte) = bytes.get(at) {
        if byte == b'"' || byte == b'\\' || byte < 0x20 {
            break;
        }
        at += 1;
    }
    at
}

/// A place in a JSON text.
pub(in crate::codec) struct Cursor<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
    /// An object in a column had a field that the column lacks.
    pub skipped: bool,
}

type Scan<T> = Result<T, Fault>;

impl<'a> Cursor<'a> {
    pub(in crate::codec) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, skipped: false }
    }

    #[cold]
    pub(in crate::codec) fn fault<T>(&self, what: &'static str) -> Scan<T> {
        Err(Fault { at: self.at, what })
    }

    /// The next byte; 0, which begins nothing, at the end.
    #[inline]
    pub(in crate::codec) fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    #[inline]
    pub(in crate::codec) fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
    }

    /// White space before a record, and the mark that some senders write before it.
    #[inline]
    pub(in crate::codec) fn begin(&mut self) {
        self.space();
        if self.peek() == 0xef && self.bytes[self.at..].starts_with(UTF8_BOM) {
            self.at += UTF8_BOM.len();
            self.space();
        }
    }

    /// Takes `byte` if it is next.
    #[inline]
    pub(in crate::codec) fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == byte && self.at < self.bytes.len();
        self.at += usize::from(is_next);
        is_next
    }

    /// White space, then the end of the text.
    pub(in crate::codec) fn end(&mut self) -> Scan<()> {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { self.fault("there is text after the value") }
    }

    /// The rest of a string whose opening quote is taken.
    #[inline]
    pub(in crate::codec) fn string(&mut self) -> Scan<Text> {
        let start = self.at;
        self.at = special(self.bytes, self.at);
        if self.peek() == b'"' {
            self.at += 1;
            return Ok(Text { range: start..self.at - 1, escaped: false });
        }
        self.escaped_string(start)
    }

    fn escaped_string(&mut self, start: usize) -> Scan<Text> {
        loop {
            match self.bytes.get(self.at) {
                None => return self.fault("a string is not closed"),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Text { range: start..self.at - 1, escaped: true });
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return self.fault("a control character in a string is not escaped"),
            }
            self.at = special(self.bytes, self.at);
        }
    }

    fn escape(&mut self) -> Scan<()> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let digits = self.bytes.get(self.at + 2..self.at + 6);
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return self.fault("\\u is not followed by four hexadecimal digits");
                }
                self.at += 6;
            }
            _ => return self.fault("an escape that JSON does not have"),
        }
        Ok(())
    }

    #[inline]
    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        self.at - start
    }

    /// A number.
    #[inline]
    pub(in crate::codec) fn number(&mut self) -> Scan<Number> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') && self.digits() == 0 {
            return self.fault("a value is expected");
        }
        let integer = self.at;
        if self.take(b'.') && self.digits() == 0 {
            return self.fault("a decimal point is not followed by digits");
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            if self.digits() == 0 {
                return self.fault("an exponent has no digits");
            }
        }
        Ok(Number { range: start..self.at, integer: integer == self.at })
    }

    /// `true`, `false` or `null`.
    pub(in crate::codec) fn literal(&mut self, word: &'static [u8]) -> Scan<()> {
        if self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            self.at += word.len();
            Ok(())
        } else {
            self.fault("a value is expected")
        }
    }

    /// After a key's string: the colon and the space around it.
    #[inline]
    pub(in crate::codec) fn colon(&mut self) -> Scan<()> {
        self.space();
        if !self.take(b':') {
            return self.fault("a colon is expected after the key");
        }
        self.space();
        Ok(())
    }

    fn key(&mut self) -> Scan<()> {
        self.space();
        if !self.take(b'"') {
            return self.fault("a key in quotes is expected");
        }
        self.string()?;
        self.colon()
    }

    /// The key that the text begins with, and the colon after it.
    pub(in crate::codec) fn first_key(&mut self) -> Option<Vec<u8>> {
        self.take(b'"').then_some(())?;
        let text = self.string().ok()?;
        let mut key = Vec::new();
        unescape(&self.bytes[text.range], &mut key);
        self.colon().ok()?;
        Some(key)
    }

    /// One value of any kind, checked and left behind; gives its range.
    pub(in crate::codec) fn skip(&mut self) -> Scan<Range<usize>> {
        self.space();
        let start = self.at;
        // Bit n of `objects`: level n is an object.
        let (mut depth, mut objects) = (0_u32, 0_u128);
        loop {
            self.space();
            let opened = match self.peek() {
                b'"' => {
                    self.at += 1;
                    self.string()?;
                    false
                }
                b'{' | b'[' => true,
                b't' => self.literal(b"true").map(|()| false)?,
                b'f' => self.literal(b"false").map(|()| false)?,
                b'n' => self.literal(b"null").map(|()| false)?,
                _ => self.number().map(|_| false)?,
            };
            if opened {
                let is_object = self.peek() == b'{';
                if depth == MAX_DEPTH {
                    return self.fault("values are nested deeper than 128 levels");
                }
                self.at += 1;
                objects = objects & !(1 << depth) | u128::from(is_object) << depth;
                depth += 1;
                self.space();
                let is_empty = self.peek() == if is_object { b'}' } else { b']' };
                if !is_empty {
                    if is_object {
                        self.key()?;
                    }
                    continue;
                }
            }
            if self.close(&mut depth, objects)? {
                return Ok(start..self.at);
            }
        }
    }

    /// After a value: closes levels. True where the outermost value is complete; else the next value follows.
    #[inline]
    fn close(&mut self, depth: &mut u32, objects: u128) -> Scan<bool> {
        while *depth > 0 {
            self.space();
            let in_object = objects >> (*depth - 1) & 1 == 1;
            match (self.peek(), in_object) {
                (b'}', true) | (b']', false) => {
                    self.at += 1;
                    *depth -= 1;
                }
                (b',', true) => {
                    self.at += 1;
                    self.key()?;
                    return Ok(false);
                }
                (b',', false) => {
                    self.at += 1;
                    return Ok(false);
                }
                (_, true) => return self.fault("a comma or } is expected"),
                (_, false) => return self.fault("a comma or ] is expected"),
            }
        }
        Ok(true)
    }
}

/// Appends the text of a string with escapes. Half a surrogate pair becomes U+FFFD: UTF-8 cannot hold it.
pub(in crate::codec) fn unescape(mut text: &[u8], out: &mut Vec<u8>) {
    while let Some(next) = memchr::memchr(b'\\', text) {
        out.extend_from_slice(&text[..next]);
        let (letter, rest) = match text[next + 1..].split_first() {
            Some(split) => split,
            None => return,
        };
        text = rest;
        match letter {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => text = unicode(rest, out),
            other => out.push(*other),
        }
    }
    out.extend_from_slice(text);
}

fn hex(text: &[u8]) -> Option<u32> {
    text.get(..4)?.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

fn unicode<'a>(text: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let first = hex(text).unwrap_or(0xFFFD);
    let mut rest = text.get(4..).unwrap_or_default();
    let mut value = first;
    if (0xD800..0xDC00).contains(&first)
        && let Some(second) = rest.strip_prefix(b"\\u").and_then(hex)
        && (0xDC00..0xE000).contains(&second)
    {
        value = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
        rest = &rest[6..];
    }
    let letter = char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER);
    out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
    rest
}

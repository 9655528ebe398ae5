//! Numbers as people write them: with a decimal comma, with marks between groups of digits.

use tidemill_config::model::Csv;

use crate::codec::{
    json::{cursor::Cursor, infer::Kind},
    number::looks_like_integer,
};

/// How a file writes its numbers.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    decimal: u8,
    /// The texts that may stand between groups; empty: nothing does.
    groups: Vec<String>,
}

/// Spaces that programs write between groups.
const SPACES: [&str; 3] = [" ", "\u{a0}", "\u{202f}"];
const APOSTROPHES: [&str; 2] = ["'", "\u{2019}"];

impl Numbers {
    pub(super) fn of(options: &Csv) -> Self {
        let text = options.thousands.map(String::from);
        let groups = match &text {
            None => Vec::new(),
            Some(text) if SPACES.contains(&text.as_str()) => SPACES.map(String::from).to_vec(),
            Some(text) if APOSTROPHES.contains(&text.as_str()) => APOSTROPHES.map(String::from).to_vec(),
            Some(text) => vec![text.clone()],
        };
        Self { decimal: options.decimal, groups }
    }

    /// A text as a number has it in most files; `None`: it is written in another way. A text without a digit is as it is.
    /// Groups have exactly three digits: else `1.5` would be fifteen somewhere.
    #[inline]
    pub(super) fn plain<'t>(&self, text: &'t [u8], scratch: &'t mut Vec<u8>) -> Option<&'t [u8]> {
        if self.decimal == b'.' && self.groups.is_empty() {
            return Some(text);
        }
        self.rewritten(text, scratch)
    }

    fn rewritten<'t>(&self, text: &'t [u8], out: &'t mut Vec<u8>) -> Option<&'t [u8]> {
        let text = text.trim_ascii();
        if !text.iter().any(u8::is_ascii_digit) {
            return Some(text);
        }
        out.clear();
        let mut rest = text;
        if let Some((sign @ (b'-' | b'+'), behind)) = rest.split_first().map(|(first, behind)| (*first, behind)) {
            out.push(sign);
            rest = behind;
        }
        let mut digits = take_digits(&mut rest, out);
        let mut groups = 0;
        while let Some(behind) = self.groups.iter().find_map(|group| rest.strip_prefix(group.as_bytes())) {
            let is_short = if groups == 0 { (1..=3).contains(&digits) } else { digits == 3 };
            if !is_short || !behind.first().is_some_and(u8::is_ascii_digit) {
                return None;
            }
            rest = behind;
            digits = take_digits(&mut rest, out);
            groups += 1;
        }
        if groups > 0 && digits != 3 {
            return None;
        }
        if rest.first() == Some(&self.decimal) {
            out.push(b'.');
            rest = &rest[1..];
            take_digits(&mut rest, out);
        }
        // An exponent, or nothing.
        if matches!(rest.first(), Some(b'e' | b'E')) {
            out.extend_from_slice(rest);
            rest = &[];
        }
        rest.is_empty().then_some(out)
    }
}

fn take_digits(rest: &mut &[u8], out: &mut Vec<u8>) -> usize {
    let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    out.extend_from_slice(&rest[..count]);
    *rest = &rest[count..];
    count
}

/// What a number's text suggests; a text where it is none.
pub(super) fn kind_of(text: &[u8]) -> Kind {
    let mut cursor = Cursor::new(text);
    if looks_like_integer(text) {
        Kind::Integer
    } else if cursor.number().is_ok_and(|number| !number.integer || text == b"-0")
        && cursor.at == text.len()
        && lexical_core::parse::<f64>(text).is_ok_and(f64::is_finite)
    {
        Kind::Float
    } else {
        Kind::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_their_file_writes_them() {
        let read = |decimal, thousands, text: &str| {
            let numbers = Numbers::of(&Csv { decimal, thousands, ..Csv::default() });
            let mut scratch = Vec::new();
            numbers.plain(text.as_bytes(), &mut scratch).map(|text| String::from_utf8_lossy(text).into_owned())
        };
        let cases: &[(u8, Option<char>, &str, Option<&str>)] = &[
            (b',', None, "1,5", Some("1.5")),
            (b',', None, "-0,25e-3", Some("-0.25e-3")),
            (b',', None, "1.5", None),
            (b',', None, "1.234,5", None),
            (b',', Some('.'), "1.234.567,89", Some("1234567.89")),
            (b',', Some('.'), "1234,5", Some("1234.5")),
            (b',', Some('.'), "1.5", None),
            (b',', Some('.'), "12.34", None),
            (b',', Some('.'), "1234.567", None),
            (b',', Some('.'), "1.2345", None),
            (b',', Some('.'), ".123", None),
            (b',', Some('.'), "1.", None),
            (b'.', Some(','), "+1,000", Some("+1000")),
            (b'.', Some(' '), "12\u{202f}345.5", Some("12345.5")),
            (b'.', Some('\''), "1\u{2019}000", Some("1000")),
            (b'.', Some(','), "1,00", None),
            (b',', None, "NaN", Some("NaN")),
            (b',', None, "1,5 EUR", None),
            (b'.', None, "anything", Some("anything")),
        ];
        for (decimal, thousands, text, expected) in cases {
            assert_eq!(read(*decimal, *thousands, text).as_deref(), *expected, "{text}");
        }
    }
}

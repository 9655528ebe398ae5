//! `trim`, `lowercase`, `uppercase`: text made uniform, whole buffers at a time.
//!
//! Text of ASCII alone changes its case in one pass over the bytes of all rows, with the offsets as they are; other text
//! by Unicode's rules. A slice that need not change is passed on as it is.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray, StringBuilder},
    buffer::{Buffer, OffsetBuffer, ScalarBuffer},
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
};
use tidemill_config::Located;

use super::{Kernel, Notes, Planned, replace};
use crate::expression::Bad;

/// What happens to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// White space off both ends.
    Trim,
    /// Lower case.
    Lower,
    /// Upper case.
    Upper,
}

impl Kernel for Change {
    fn apply(&self, values: &ArrayRef, _: &mut Vec<Bad>) -> Result<ArrayRef, ArrowError> {
        let text = values.as_string::<i32>();
        let changed = match self {
            Self::Trim => trim(text)?,
            Self::Lower => recase(text, u8::is_ascii_uppercase, <[u8]>::make_ascii_lowercase, lower_into)?,
            Self::Upper => recase(text, u8::is_ascii_lowercase, <[u8]>::make_ascii_uppercase, upper_into)?,
        };
        Ok(changed.map_or_else(|| Arc::clone(values), |changed| Arc::new(changed)))
    }
}

pub fn plan(change: Change, names: &[Located<String>], schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    let verb = match change {
        Change::Trim => "trim",
        Change::Lower => "lowercase",
        Change::Upper => "uppercase",
    };
    let mut kernels = Vec::new();
    for name in names {
        if let Some(index) = notes.text_column(name, schema, verb, "Cast it first") {
            kernels.push((index, DataType::Utf8, change));
        }
    }
    replace(schema, kernels)
}

/// The bytes of all rows of a slice.
fn bytes(text: &StringArray) -> &[u8] {
    let offsets = text.value_offsets();
    let (first, last) = (offsets[0] as usize, offsets[text.len()] as usize);
    &text.value_data()[first..last]
}

/// `None`: nothing to change.
fn recase(
    text: &StringArray,
    is_wrong: fn(&u8) -> bool,
    change: fn(&mut [u8]),
    into: fn(&str, &mut StringBuilder),
) -> Result<Option<StringArray>, ArrowError> {
    let bytes = bytes(text);
    if bytes.is_ascii() {
        if !bytes.iter().any(is_wrong) {
            return Ok(None);
        }
        let mut changed = bytes.to_vec();
        change(&mut changed);
        return StringArray::try_new(rebased(text), Buffer::from_vec(changed), text.nulls().cloned()).map(Some);
    }
    let mut builder = StringBuilder::with_capacity(text.len(), bytes.len() + bytes.len() / 16);
    for value in text {
        match value {
            Some(value) => {
                into(value, &mut builder);
                builder.append_value("");
            }
            None => builder.append_null(),
        }
    }
    Ok(Some(builder.finish()))
}

/// The offsets of a slice, from 0.
fn rebased(text: &StringArray) -> OffsetBuffer<i32> {
    let first = text.value_offsets()[0];
    match first {
        0 => text.offsets().clone(),
        _ => OffsetBuffer::new(text.value_offsets().iter().map(|offset| offset - first).collect::<ScalarBuffer<i32>>()),
    }
}

fn lower_into(value: &str, into: &mut StringBuilder) {
    // A capital sigma is lowered by its place in the word, which the standard library knows.
    if value.contains('Σ') {
        write(into, &value.to_lowercase());
        return;
    }
    value.chars().flat_map(char::to_lowercase).for_each(|letter| write_char(into, letter));
}

fn upper_into(value: &str, into: &mut StringBuilder) {
    value.chars().flat_map(char::to_uppercase).for_each(|letter| write_char(into, letter));
}

fn write(into: &mut StringBuilder, text: &str) {
    use std::fmt::Write;
    // Writing into a builder cannot fail.
    let _ = into.write_str(text);
}

fn write_char(into: &mut StringBuilder, letter: char) {
    write(into, letter.encode_utf8(&mut [0; 4]));
}

/// White space (Unicode's) off both ends; `None`: there is none.
fn trim(text: &StringArray) -> Result<Option<StringArray>, ArrowError> {
    let Some(first) = (0..text.len()).find(|row| is_loose(text.value(*row))) else { return Ok(None) };
    let base = text.value_offsets()[0];
    let mut kept: Vec<u8> = Vec::with_capacity(bytes(text).len());
    let mut offsets: Vec<i32> = Vec::with_capacity(text.len() + 1);
    offsets.extend(text.value_offsets()[..=first].iter().map(|offset| offset - base));
    kept.extend_from_slice(&bytes(text)[..offsets[first] as usize]);
    for row in first..text.len() {
        kept.extend_from_slice(text.value(row).trim().as_bytes());
        // Not more bytes than before, which were counted in 32 bits.
        offsets.push(kept.len() as i32);
    }
    let offsets = OffsetBuffer::new(offsets.into());
    StringArray::try_new(offsets, Buffer::from_vec(kept), text.nulls().cloned()).map(Some)
}

/// Whether there is white space at an end. Most text begins and ends with a visible ASCII letter, which is quickly seen.
fn is_loose(value: &str) -> bool {
    match value.as_bytes() {
        [] => false,
        [first, .., last] if first.is_ascii_graphic() && last.is_ascii_graphic() => false,
        _ => value.trim().len() != value.len(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn change(change: Change, values: &[Option<&str>]) -> Vec<Option<String>> {
        // A slice out of the middle, so that offsets do not begin at 0.
        let mut padded = vec![Some("XX ")];
        padded.extend(values);
        padded.push(Some(" YY"));
        let whole: ArrayRef = Arc::new(StringArray::from(padded));
        let slice = whole.slice(1, values.len());
        let changed = change.apply(&slice, &mut Vec::new()).unwrap();
        assert_eq!(changed.len(), values.len());
        changed.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect()
    }

    fn check(kind: Change, by: fn(&str) -> String, values: &[Option<&str>]) {
        let expected: Vec<_> = values.iter().map(|value| value.map(by)).collect();
        assert_eq!(change(kind, values), expected);
    }

    #[test]
    fn the_same_as_the_standard_library() {
        let tables: [&[Option<&str>]; 5] = [
            &[Some("Mozilla/5.0 (X11)"), None, Some(""), Some("  Bot  ")],
            &[Some("abc"), Some("x")],
            &[Some("ΟΔΥΣΣΕΥΣ Straße İstanbul"), Some("ASCII beside it"), None, Some("\u{3000}à\u{a0}")],
            &[Some("\u{2003}"), Some("\t\n"), Some("ﬁn ŉ"), None],
            &[],
        ];
        for values in tables {
            check(Change::Lower, str::to_lowercase, values);
            check(Change::Upper, str::to_uppercase, values);
            check(Change::Trim, |value| value.trim().to_owned(), values);
        }
    }

    #[test]
    fn what_need_not_change_is_not_copied() {
        let values: ArrayRef = Arc::new(StringArray::from(vec![Some("abc d"), None, Some("")]));
        for kind in [Change::Lower, Change::Trim] {
            let same = kind.apply(&values, &mut Vec::new()).unwrap();
            assert!(Arc::ptr_eq(&same, &values), "{kind:?}");
        }
    }
}

//! A column's values as bytes of their own: what keys and headers of records are made of.

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::cast,
    datatypes::DataType,
};

use super::{CodecError, values::Values};

/// The values of one column: texts and bytes as they are, others as JSON writes them without quotes.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    bytes: Vec<u8>,
    /// Where each value ends; it begins where the one before it ends. `None`: null.
    ends: Vec<Option<usize>>,
    starts: Vec<usize>,
}

impl Texts {
    pub(crate) fn new(column: &ArrayRef) -> Result<Self, CodecError> {
        let failed = |error: arrow::error::ArrowError| CodecError(error.to_string());
        let is_bytes = matches!(
            column.data_type(),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
        );
        let mut texts = Self::default();
        if is_bytes {
            let column = cast(column, &DataType::Binary).map_err(failed)?;
            let column = column.as_binary::<i32>();
            (0..column.len()).for_each(|row| {
                texts.push(column.is_valid(row), |out| out.extend_from_slice(column.value(row)));
            });
        } else {
            let mut values = Values::new(column).map_err(failed)?;
            for row in 0..column.len() {
                texts.push(!values.is_null(row), |out| values.plain(row, out));
            }
        }
        Ok(texts)
    }

    fn push(&mut self, is_valid: bool, write: impl FnOnce(&mut Vec<u8>)) {
        self.starts.push(self.bytes.len());
        if is_valid {
            write(&mut self.bytes);
        }
        self.ends.push(is_valid.then_some(self.bytes.len()));
    }

    /// The value of a row; `None` where it is null.
    pub(crate) fn get(&self, row: usize) -> Option<&[u8]> {
        let end = (*self.ends.get(row)?)?;
        self.bytes.get(self.starts[row]..end)
    }
}

/// The bytes that a base64 text of ours stands for.
pub(crate) fn from_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Nothing else than our own encoder has written it.
    let _ = super::names::decode_base64(text.as_bytes(), &mut bytes);
    bytes
}

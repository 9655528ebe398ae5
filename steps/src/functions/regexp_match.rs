//! `regexp_match(text, pattern[, flags])`: the groups of the first match, or without groups the match itself. DataFusion's
//! leaves a group out that took no part in the match, which shifts those behind it; here it is null, in its place.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, AsArray, ListBuilder, StringArray, StringBuilder},
    datatypes::{DataType, Field},
};
use datafusion::{
    common::{Result, ScalarValue, exec_err},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, TypeSignature, Volatility},
};
use regex::Regex;

use crate::constants;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct RegexpMatch {
    signature: Signature,
}

impl RegexpMatch {
    pub fn new() -> Self {
        let texts = |count| TypeSignature::Exact(vec![DataType::Utf8; count]);
        Self { signature: Signature::one_of(vec![texts(2), texts(3)], Volatility::Immutable) }
    }
}

/// Patterns that were compiled in this call: mostly it is one.
#[derive(Default)]
struct Compiled(HashMap<(String, String), Regex>);

/// A column of patterns may have a different one in each row: no more than so many are kept.
const KEPT: usize = 64;

impl Compiled {
    fn regex(&mut self, pattern: &str, flags: &str) -> Result<&Regex> {
        let key = (pattern.to_owned(), flags.to_owned());
        if !self.0.contains_key(&key) {
            let regex = match constants::regex(pattern, flags) {
                Ok(regex) => regex,
                Err(message) => return exec_err!("{message}"),
            };
            if self.0.len() >= KEPT {
                self.0.clear();
            }
            self.0.insert(key.clone(), regex);
        }
        match self.0.get(&key) {
            Some(regex) => Ok(regex),
            None => exec_err!("`{pattern}` was not compiled"),
        }
    }
}

impl ScalarUDFImpl for RegexpMatch {
    fn name(&self) -> &str {
        "regexp_match"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))))
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let are_scalars = arguments.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if are_scalars { 1 } else { arguments.number_rows };
        // What does not change from row to row is not repeated for each.
        let texts: Vec<(bool, StringArray)> = arguments
            .args
            .iter()
            .map(|argument| match argument {
                ColumnarValue::Array(array) => Ok((false, array.as_string::<i32>().clone())),
                ColumnarValue::Scalar(value) => Ok((true, value.to_array()?.as_string::<i32>().clone())),
            })
            .collect::<Result<_>>()?;
        let value = |index: usize, row: usize| {
            let (is_scalar, array) = texts.get(index)?;
            let row = if *is_scalar { 0 } else { row };
            array.is_valid(row).then(|| array.value(row))
        };
        let (mut found, mut compiled) = (ListBuilder::new(StringBuilder::new()), Compiled::default());
        for row in 0..rows {
            let flags = if texts.len() > 2 { value(2, row) } else { Some("") };
            let (Some(text), Some(pattern), Some(flags)) = (value(0, row), value(1, row), flags) else {
                found.append_null();
                continue;
            };
            let Some(captures) = compiled.regex(pattern, flags)?.captures(text) else {
                found.append_null();
                continue;
            };
            let skipped = usize::from(captures.len() > 1);
            for group in captures.iter().skip(skipped) {
                found.values().append_option(group.map(|group| group.as_str()));
            }
            found.append(true);
        }
        let found = found.finish();
        Ok(match are_scalars {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&found, 0)?),
            false => ColumnarValue::Array(Arc::new(found)),
        })
    }
}

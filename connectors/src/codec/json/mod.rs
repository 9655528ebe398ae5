//! JSON: one object a line, the elements of a top-level array, or objects over several lines.
//!
//! [`cursor`] reads text, strictly; [`decode`] puts records into columns, [`infer`] finds their types, [`encode`] writes
//! rows, [`merge`] puts back what `_extra` keeps of fields inside of columns, [`frame`] cuts files.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::StringArray,
    datatypes::{Field, Fields, Schema, SchemaRef},
};
use memchr::memmem;
use tidemill_config::model;

use super::{
    Codec, CodecError, Decoder,
    encoding::{self, Transcoded},
};
use crate::source::Slice;

pub(super) mod cursor;
pub(super) mod decode;
pub(super) mod encode;
pub(super) mod frame;
pub(super) mod infer;
pub(super) mod keys;
mod merge;

/// A schema has no more columns: objects with more fields are rather maps. Further ones are kept in `_extra`.
pub(super) const MAX_COLUMNS: usize = 4096;

/// The codec `json`.
pub(super) struct Json(pub model::Json);

/// The bytes of a registry's zero byte and schema id.
const CONFLUENT: usize = 5;

/// The records without what comes before them.
fn bodies<'a>(slice: &'a Slice, options: &model::Json) -> Transcoded<'a> {
    if !options.confluent {
        return Transcoded::of(slice, &options.encoding);
    }
    // One that has no id before it is empty, which the decoder explains.
    let body = |index: usize| match (slice.record(index).first(), slice.records.get(index)) {
        (Some(0), Some((start, end))) if end - start >= CONFLUENT as u32 => (start + CONFLUENT as u32, *end),
        (_, found) => found.map_or((0, 0), |(start, _)| (*start, *start)),
    };
    let records: Vec<_> = (0..slice.records.len()).map(body).collect();
    let encoding = encoding::of_label(&options.encoding);
    if encoding == encoding_rs::UTF_8 {
        return Transcoded { bytes: Cow::Borrowed(&slice.bytes), records: Cow::Owned(records), encoding };
    }
    let bare = Slice { records, ..slice.clone() };
    let Transcoded { bytes, records, encoding } = Transcoded::of(&bare, &options.encoding);
    Transcoded { bytes: Cow::Owned(bytes.into_owned()), records: Cow::Owned(records.into_owned()), encoding }
}

impl Codec for Json {
    fn infer(&self, slices: &[Slice]) -> Result<SchemaRef, CodecError> {
        let mut known = infer::Known::default();
        for slice in slices {
            let bodies = bodies(slice, &self.0);
            for index in 0..slice.records.len() {
                if let Some(record) = bodies.record(index).and_then(fields_of) {
                    known.add(record);
                }
            }
        }
        let fields = known.finish();
        let fields: Fields = fields.iter().map(|(name, kind)| Field::new(name, kind.data_type(1), true)).collect();
        Ok(Arc::new(Schema::new(fields)))
    }

    fn decoder(&self, schema: &SchemaRef, known: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(decode::JsonDecoder::new(schema, known, &self.0))
    }

    fn text(&self, slice: &Slice, record: usize) -> Option<String> {
        encoding::text_of(slice, record, &self.0.encoding)
    }
}

/// The column `_extra` with other names for the fields that the rows have columns of: `_key` becomes `_key_2`, else it would
/// be left out where the fields are put back. `None`: no row has one.
pub(super) fn rename_extra(extra: &StringArray, names: &[String]) -> Option<StringArray> {
    let may_have = |text: &[u8]| {
        names.iter().any(|name| memmem::find(text, name.as_bytes()).is_some())
            || memmem::find(text, b"\\u005f").is_some()
            || memmem::find(text, b"\\u005F").is_some()
    };
    if !may_have(extra.value_data()) {
        return None;
    }
    let rename = |text: &str| match merge::renamed(text.as_bytes(), names).map(String::from_utf8) {
        Some(Ok(renamed)) => renamed,
        _ => text.to_owned(),
    };
    Some(extra.iter().map(|text| text.map(rename)).collect())
}

/// The fields of a record; `None` where it will be a reject.
fn fields_of(record: &[u8]) -> Option<Vec<(String, infer::Kind)>> {
    let mut cursor = cursor::Cursor::new(record);
    cursor.begin();
    if cursor.peek() != b'{' {
        return None;
    }
    let fields = infer::object(&mut cursor, 1).ok()?;
    cursor.end().ok()?;
    Some(fields)
}

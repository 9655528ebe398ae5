//! Keys of records that a job decodes (`key:` of a Kafka source): columns of their own beside those of the value, also of
//! records that have no value. So a deletion is known by the row that it deletes.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, BinaryArray, UInt32Array},
    compute::take,
    datatypes::{Field, SchemaRef},
};
use bytes::Bytes;
use tidemill_config as config;
use tidemill_connectors::{
    Codec,
    codec::{self, Undecodable},
    source::{Slice, kafka::KEY_BYTES},
};

/// How the keys of a source become columns.
pub struct Keys {
    codec: Box<dyn Codec>,
    schema: SchemaRef,
}

/// The keys of one slice.
#[derive(Default)]
pub struct Decoded {
    /// Name, and a value for each record of the slice: null where it has no key.
    pub columns: Vec<(String, ArrayRef)>,
    /// Records whose keys cannot be decoded.
    pub rejects: Vec<Undecodable>,
}

/// The columns that a source's keys give.
pub fn fields(source: &config::Source) -> Vec<Arc<Field>> {
    let schema = source.key().map(|key| codec::to_arrow(&key.schema));
    let named = |field: &Arc<Field>| Arc::new(Field::new(column(field.name()), field.data_type().clone(), true));
    schema.iter().flat_map(|schema| schema.fields().iter().map(named)).collect()
}

fn column(field: &str) -> String {
    format!("{}{field}", config::KafkaKey::PREFIX)
}

/// By what name a plan knows the schemas of a source's keys.
pub fn name(shard_name: &str) -> String {
    format!("{shard_name}/key")
}

impl Keys {
    /// Of a source that decodes them.
    pub fn of(source: &config::Source) -> Option<Self> {
        let key = source.key()?;
        Some(Self { codec: codec::codec(&key.codec), schema: codec::to_arrow(&key.schema) })
    }

    /// Gets what decoding these slices' keys needs from elsewhere.
    pub async fn prepare(&self, slices: &[Slice]) -> Result<(), codec::PrepareError> {
        self.codec.prepare(&slices_of(slices)).await
    }

    /// See [`Codec::readable`].
    pub fn readable(&self, slices: &[Slice]) -> Option<Vec<u32>> {
        self.codec.readable(&slices_of(slices))
    }

    /// The columns of a slice's keys. `readable`: the only ids of schemas that are known, where a plan names them.
    pub fn decode(&self, slice: &Slice, readable: Option<&Vec<u32>>) -> Decoded {
        let mut decoder = match readable {
            None => self.codec.decoder(&self.schema, &self.schema),
            Some(ids) => self.codec.decoder_of(&self.schema, &self.schema, ids),
        };
        let (keys, of_record) = keys_of(slice);
        let codec::Decoded { rows, records, mut rejects } = decoder.decode(&keys);
        let mut places: Vec<Option<u32>> = vec![None; slice.records.len()];
        for (row, key) in (0..).zip(records) {
            places[of_record[key as usize] as usize] = Some(row);
        }
        let places = UInt32Array::from(places);
        let taken = |(field, values): (&Arc<Field>, &ArrayRef)| {
            let values = take(values, &places, None).expect("a place is a row of the keys, or none");
            (column(field.name()), values)
        };
        let columns = self.schema.fields().iter().zip(rows.columns()).map(taken).collect();
        for reject in &mut rejects {
            reject.record = of_record[reject.record as usize];
            reject.detail = format!("the key: {}", reject.detail);
            reject.reason = "key";
        }
        Decoded { columns, rejects }
    }
}

fn slices_of(slices: &[Slice]) -> Vec<Slice> {
    slices.iter().map(|slice| keys_of(slice).0).collect()
}

/// The keys of a slice as records, and the record of which each is.
fn keys_of(slice: &Slice) -> (Slice, Vec<u32>) {
    let column = slice.columns.iter().find(|(name, _)| *name == KEY_BYTES);
    let keys = column.and_then(|(_, column)| column.as_any().downcast_ref::<BinaryArray>());
    let (mut bytes, mut records, mut of_record) = (Vec::new(), Vec::new(), Vec::new());
    let end = |bytes: &Vec<u8>| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    for (record, key) in (0..).zip(keys.into_iter().flat_map(|keys| keys.iter())) {
        let Some(key) = key else { continue };
        let start = end(&bytes);
        bytes.extend_from_slice(key);
        records.push((start, end(&bytes)));
        of_record.push(record);
    }
    let keys = Slice {
        bytes: Bytes::from(bytes),
        records,
        header: None,
        metadata: Vec::new(),
        columns: Vec::new(),
        ..slice.clone()
    };
    (keys, of_record)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use tidemill_checkpoint::ShardId;
    use tidemill_connectors::source::Base;

    use super::*;

    const JOB: &str = "job: j\nsources:\n  in: { type: kafka, brokers: a, topics: t, key: { schema: { id: int64, at: string } } }\nsinks: { out: { type: blackhole } }\n";

    fn decoded(keys: &[Option<&[u8]>]) -> Decoded {
        let job = config::Job::parse(JOB, std::path::Path::new("j.yaml"), &config::ProcessEnvironment).unwrap();
        let names: Vec<_> = fields(&job.sources[0]).iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["_key_id", "_key_at"]);
        let slice = Slice {
            shard: ShardId::new("in", "t/0@c"),
            bytes: Bytes::new(),
            records: vec![(0, 0); keys.len()],
            base: Base::Offsets((0..keys.len() as u64).collect()),
            header: None,
            metadata: Vec::new(),
            columns: vec![(KEY_BYTES, Arc::new(BinaryArray::from(keys.to_vec())))],
        };
        Keys::of(&job.sources[0]).unwrap().decode(&slice, None)
    }

    #[test]
    fn keys_stand_beside_their_records_and_a_bad_one_is_a_reject_of_its_record() {
        let found = decoded(&[
            Some(br#"{"id": 7, "at": "x"}"#),
            None,
            Some(b"no json"),
            Some(br#"{"id": 9, "more": 1}"#),
            Some(br#"{"id": "seven"}"#),
        ]);
        let (name, ids) = &found.columns[0];
        assert_eq!(name, "_key_id");
        assert_eq!(*ids.as_primitive(), Int64Array::from(vec![Some(7), None, None, Some(9), None]));
        let (_, at) = &found.columns[1];
        assert_eq!(at.as_string::<i32>().iter().collect::<Vec<_>>(), [Some("x"), None, None, None, None]);
        let rejects: Vec<_> = found.rejects.iter().map(|reject| (reject.record, reject.reason)).collect();
        assert_eq!(rejects, [(2, "key"), (4, "key")]);
        assert!(found.rejects[0].detail.starts_with("the key: "), "{}", found.rejects[0].detail);
    }

    #[test]
    fn a_slice_without_keys_has_columns_of_nulls() {
        let found = decoded(&[None, None]);
        assert_eq!((found.columns[0].1.null_count(), found.rejects.len()), (2, 0));
    }
}

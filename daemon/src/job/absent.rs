//! Records without a value (tombstones) that a job keeps: no codec sees them, and each is a row of nulls in its place.

use arrow::{
    array::{Array, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array},
    compute::take,
};
use tidemill_connectors::{
    codec::{Decoded, Decoder},
    source::{Slice, kafka::TOMBSTONE},
};

/// Decodes a slice, some of whose records may have no value.
pub fn decode(decoder: &mut dyn Decoder, slice: &Slice) -> Decoded {
    let column = slice.columns.iter().find(|(name, _)| *name == TOMBSTONE);
    let absent = column.and_then(|(_, column)| column.as_any().downcast_ref::<BooleanArray>());
    match absent.filter(|absent| absent.true_count() > 0) {
        Some(absent) => with_absent(decoder, slice, absent),
        None => decoder.decode(slice),
    }
}

fn with_absent(decoder: &mut dyn Decoder, slice: &Slice, absent: &BooleanArray) -> Decoded {
    let is_absent = |record: &u32| absent.value(*record as usize);
    let all = 0..u32::try_from(slice.records.len()).expect("a slice's records are numbered by 32 bits");
    let present: Vec<u32> = all.clone().filter(|record| !is_absent(record)).collect();
    let records = present.iter().map(|record| slice.records[*record as usize]).collect();
    let mut decoded = decoder.decode(&Slice { records, ..slice.clone() });
    for record in decoded.records.iter_mut().chain(decoded.rejects.iter_mut().map(|reject| &mut reject.record)) {
        *record = present[*record as usize];
    }
    // Rows come in the order of their records: theirs and the absent ones' are merged.
    let mut rows = decoded.records.iter().copied().zip(0_u32..).peekable();
    let (mut places, mut records) = (Vec::new(), Vec::new());
    for record in all {
        if is_absent(&record) {
            places.push(None);
            records.push(record);
        }
        while let Some((_, row)) = rows.next_if(|(of, _)| *of == record) {
            places.push(Some(row));
            records.push(record);
        }
    }
    let places = UInt32Array::from(places);
    let columns = decoded.rows.columns().iter();
    let columns = columns.map(|column| take(column, &places, None).expect("a place is a row of the batch, or none"));
    let options = RecordBatchOptions::new().with_row_count(Some(places.len()));
    let rows = RecordBatch::try_new_with_options(decoded.rows.schema(), columns.collect(), &options)
        .expect("columns may all be null");
    Decoded { rows, records, rejects: decoded.rejects }
}

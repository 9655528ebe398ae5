//! Rows of a table that is asked, remembered for a while. That a key has none is remembered too.
//!
//! Two generations: keys go into the young one; when that has half of the entries, it becomes the old one, and what was
//! the old one is forgotten, but for keys that were wanted again. So the memory is bounded, and no key is looked for a
//! place.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::SchemaRef,
    error::ArrowError,
    row::{RowConverter, SortField},
};
use async_trait::async_trait;
use tidemill_config::Lookup;

use super::{Asked, LookupError, LookupTable, Unanswered};

/// A key or a row, in arrow's row format.
type Bytes = Box<[u8]>;

/// The rows of a key: several, where the table has it twice.
#[derive(Clone)]
struct Entry {
    rows: Vec<Bytes>,
    since: Instant,
}

#[derive(Default)]
struct Generations {
    young: HashMap<Bytes, Entry>,
    old: HashMap<Bytes, Entry>,
}

impl Generations {
    fn get(&mut self, key: &[u8], ttl: Duration, half: usize) -> Option<Entry> {
        let fresh = |entry: &&Entry| entry.since.elapsed() < ttl;
        if let Some(entry) = self.young.get(key) {
            return Some(entry).filter(fresh).cloned();
        }
        let entry = self.old.get(key).filter(fresh)?.clone();
        self.put(key.into(), entry.clone(), half);
        Some(entry)
    }

    fn put(&mut self, key: Bytes, entry: Entry, half: usize) {
        if self.young.len() >= half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }
}

/// A table with a cache before it.
pub(super) struct Cached {
    table: Arc<dyn LookupTable>,
    /// The table's key columns.
    keys: Vec<String>,
    half: usize,
    ttl: Duration,
    known: Mutex<Generations>,
    what: String,
}

impl Cached {
    pub(super) fn new(table: Arc<dyn LookupTable>, lookup: &Lookup, entries: usize, ttl: Duration) -> Self {
        let keys = lookup.keys.iter().map(|(_, key)| key.value.clone()).collect();
        Self { table, keys, half: entries.div_ceil(2), ttl, known: Mutex::default(), what: lookup.shown() }
    }

    fn known(&self) -> MutexGuard<'_, Generations> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries of keys that are known, and the numbers of those that are not.
    fn look(&self, keys: &[Bytes]) -> (Vec<Bytes>, Vec<u32>) {
        let (mut rows, mut unknown, mut known) = (Vec::new(), Vec::new(), self.known());
        for (number, key) in keys.iter().enumerate() {
            match known.get(key, self.ttl, self.half) {
                Some(entry) => rows.extend(entry.rows),
                None => unknown.push(number as u32),
            }
        }
        (rows, unknown)
    }

    /// Remembers what was found for keys, and for which there was nothing.
    fn remember(&self, keys: impl Iterator<Item = Bytes>, found: impl Iterator<Item = (Bytes, Bytes)>) {
        let since = Instant::now();
        let mut entries: HashMap<Bytes, Entry> = keys.map(|key| (key, Entry { rows: Vec::new(), since })).collect();
        for (key, row) in found {
            entries.entry(key).or_insert_with(|| Entry { rows: Vec::new(), since }).rows.push(row);
        }
        let mut known = self.known();
        for (key, entry) in entries {
            known.put(key, entry, self.half);
        }
    }

    async fn ask_for(&self, keys: &RecordBatch, schema: &SchemaRef) -> Result<(Asked, Vec<Bytes>), Unanswered> {
        let wrong = |error: ArrowError| LookupError::of(&self.what, error);
        let of_keys = converter(&keys.schema()).map_err(wrong)?;
        let all = owned(&of_keys, keys.columns()).map_err(wrong)?;
        let (rows, unknown) = self.look(&all);
        if unknown.is_empty() {
            return Ok((Asked { rows: RecordBatch::new_empty(schema.clone()), queries: 0 }, rows));
        }
        let numbers = UInt32Array::from(unknown.clone());
        let asked = self.table.ask(&take_record_batch(keys, &numbers).map_err(wrong)?).await?;
        let columns: Vec<ArrayRef> =
            self.keys.iter().filter_map(|key| asked.rows.column_by_name(key).cloned()).collect();
        let found = owned(&of_keys, &columns).map_err(wrong)?;
        let values = owned(&converter(&asked.rows.schema()).map_err(wrong)?, asked.rows.columns()).map_err(wrong)?;
        self.remember(unknown.into_iter().map(|number| all[number as usize].clone()), found.into_iter().zip(values));
        Ok((asked, rows))
    }
}

fn converter(schema: &SchemaRef) -> Result<RowConverter, ArrowError> {
    RowConverter::new(schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect())
}

fn owned(converter: &RowConverter, columns: &[ArrayRef]) -> Result<Vec<Bytes>, ArrowError> {
    Ok(converter.convert_columns(columns)?.iter().map(|row| row.as_ref().into()).collect())
}

#[async_trait]
impl LookupTable for Cached {
    async fn schema(&self) -> Result<SchemaRef, LookupError> {
        self.table.schema().await
    }

    async fn check(&self) -> Result<SchemaRef, LookupError> {
        self.table.check().await
    }

    async fn read(&self, known: Option<&SchemaRef>) -> Result<RecordBatch, LookupError> {
        self.table.read(known).await
    }

    async fn ask(&self, keys: &RecordBatch) -> Result<Asked, Unanswered> {
        let wrong = |error: ArrowError| LookupError::of(&self.what, error);
        // What is remembered has the columns that the table gives when it is asked: for no keys it says which.
        let schema = self.table.ask(&keys.slice(0, 0)).await?.rows.schema();
        let (asked, remembered) = self.ask_for(keys, &schema).await?;
        if remembered.is_empty() {
            return Ok(asked);
        }
        let converter = converter(&schema).map_err(wrong)?;
        let parser = converter.parser();
        let columns = converter.convert_rows(remembered.iter().map(|row| parser.parse(row))).map_err(wrong)?;
        let remembered = RecordBatch::try_new(schema.clone(), columns).map_err(wrong)?;
        let rows = arrow::compute::concat_batches(&schema, [&asked.rows, &remembered]).map_err(wrong)?;
        Ok(Asked { rows, queries: asked.queries })
    }
}

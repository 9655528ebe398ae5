//! CSV and JSON files, whole.

use std::{
    fs::{File, Metadata},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use async_trait::async_trait;
use tidemill_config::{Codec, Lookup};

use super::{Asked, LookupError, LookupTable, Unanswered, max_bytes, names, no_column, too_large};
use crate::{
    codec::{codec, framer, to_arrow},
    source::Slice,
};

/// Records that are framed at a time.
const FRAMED: usize = 65_536;

pub(super) struct FileTable(Arc<Inner>);

struct Inner {
    path: PathBuf,
    codec: Codec,
    columns: Vec<String>,
    keys: Vec<String>,
    given: Option<SchemaRef>,
    max_bytes: u64,
    /// What the file was like when it was read last.
    seen: Mutex<Option<Stamp>>,
}

/// What tells that a file is not the one it was.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self { size: found.len(), modified: (found.mtime(), found.mtime_nsec()), inode: found.ino() }
    }
}

impl FileTable {
    pub(super) fn new(path: &Path, codec: &Codec, lookup: &Lookup) -> Self {
        Self(Arc::new(Inner {
            path: path.to_owned(),
            codec: codec.clone(),
            columns: names(lookup),
            keys: lookup.keys.iter().map(|(_, key)| key.value.clone()).collect(),
            given: lookup.schema.as_deref().map(to_arrow),
            max_bytes: max_bytes(lookup),
            seen: Mutex::default(),
        }))
    }

    /// The columns of a file that can be read as a whole. Blocks.
    pub(super) fn look(&self) -> Result<SchemaRef, LookupError> {
        let (bytes, _) = self.0.bytes()?;
        let slice = self.0.records(bytes)?;
        let found = self.0.schema(&slice)?;
        self.0.decoded(&slice, &found, None)?;
        // Otherwise who asks for columns finds out that they are missing, and where the job names them.
        if self.0.given.is_some() {
            self.0.has_all(&slice, &found)?;
        }
        Ok(found)
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, LookupError> + Send + 'static,
    ) -> Result<T, LookupError> {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|error| LookupError::of("reading a table", error))?
    }
}

impl Inner {
    fn wrong(&self, cause: impl std::fmt::Display) -> LookupError {
        LookupError::of(self.path.display(), cause)
    }

    /// The whole file, decompressed; and what it was like, which must be the same before and after.
    fn bytes(&self) -> Result<(Vec<u8>, Stamp), LookupError> {
        let io = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => self.wrong("there is no such file"),
            _ => self.wrong(error),
        };
        let file = File::open(&self.path).map_err(io)?;
        let before = Stamp::of(&file.metadata().map_err(io)?);
        let empty =
            || self.wrong("it is empty: a CSV file without rows has its header, a JSON file without rows is `[]`");
        // As it is for a moment when it is written in place.
        if before.size == 0 {
            return Err(empty());
        }
        let name = self.path.to_string_lossy().to_ascii_lowercase();
        let reader: Box<dyn Read> = if name.ends_with(".gz") {
            Box::new(flate2::read::MultiGzDecoder::new(&file))
        } else if name.ends_with(".zst") {
            Box::new(zstd::stream::read::Decoder::new(&file).map_err(io)?)
        } else {
            Box::new(&file)
        };
        let limit = self.max_bytes.min(u64::from(u32::MAX) - 1);
        let mut bytes = Vec::new();
        reader.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > limit {
            return Err(too_large(&self.path.display().to_string(), limit));
        }
        // By its path once more: a file that was renamed over it is another one.
        let after = Stamp::of(&self.path.metadata().map_err(io)?);
        if before != after {
            return Err(self.wrong("it was changed while it was read"));
        }
        if bytes.trim_ascii().is_empty() {
            return Err(empty());
        }
        Ok((bytes, before))
    }

    /// All records of the file.
    fn records(&self, bytes: Vec<u8>) -> Result<Slice, LookupError> {
        let (mut records, mut header) = (Vec::new(), None);
        let (mut framer, mut at, mut found) = (framer(&self.codec), 0, Vec::new());
        while at < bytes.len() {
            found.clear();
            let framed = framer.frame(at as u64, &bytes[at..], true, FRAMED, &mut found);
            if let Some(error) = &framed.error {
                return Err(self.wrong(&error.detail));
            }
            if let Some(found) = framed.head(&bytes[at..]) {
                header = Some(found.to_vec());
            }
            records.extend(found.iter().map(|(start, end)| (at as u32 + start, at as u32 + end)));
            if framed.consumed == 0 {
                break;
            }
            at += framed.consumed;
        }
        Ok(super::slice(bytes, records, header))
    }

    fn inferred(&self, slice: &Slice) -> Result<SchemaRef, LookupError> {
        codec(&self.codec).infer(std::slice::from_ref(slice)).map_err(|error| self.wrong(error))
    }

    /// The names of the file's columns where they stand in it without a row: in a CSV file's header.
    fn header(&self, slice: &Slice) -> Result<Option<Vec<String>>, LookupError> {
        let Some(header) = &slice.header else { return Ok(None) };
        let alone = super::slice(header.to_vec(), vec![(0, header.len() as u32)], Some(header.to_vec()));
        Ok(Some(self.inferred(&alone)?.fields().iter().map(|field| field.name().clone()).collect()))
    }

    /// That the file has the columns that the lookup needs. Objects of JSON may lack some that the job knows.
    fn has_all(&self, slice: &Slice, found: &Schema) -> Result<(), LookupError> {
        let header = self.header(slice)?;
        let names: Vec<&str> = match &header {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => found.fields().iter().map(|field| field.name().as_str()).collect(),
        };
        match self.columns.iter().find(|name| !names.contains(&name.as_str())) {
            Some(missing) => Err(no_column(self.path.display(), missing, &names)),
            None => Ok(()),
        }
    }

    /// The types of all columns of the file: given, or as the values suggest. Keys of a CSV file are texts, which can be
    /// compared with any type: `007` is no number to somebody who has texts.
    fn schema(&self, slice: &Slice) -> Result<SchemaRef, LookupError> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        if slice.records.is_empty() {
            // Nothing tells a type.
            let names = self.header(slice)?.unwrap_or_else(|| self.columns.clone());
            let fields = names.into_iter().map(|name| Field::new(name, DataType::Utf8, true));
            return Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
        }
        let inferred = self.inferred(slice)?;
        let is_csv = matches!(self.codec, Codec::Csv(_));
        let fields = inferred.fields().iter().map(|field| match is_csv && self.keys.contains(field.name()) {
            true => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
            false => field.clone(),
        });
        Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
    }

    fn read(&self, known: Option<&SchemaRef>) -> Result<RecordBatch, LookupError> {
        let (bytes, stamp) = self.bytes()?;
        let slice = self.records(bytes)?;
        let found = self.schema(&slice)?;
        self.has_all(&slice, &found)?;
        let rows = self.decoded(&slice, &found, known)?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(stamp);
        Ok(rows)
    }

    /// The columns that the lookup needs and the file has.
    fn decoded(&self, slice: &Slice, found: &SchemaRef, known: Option<&SchemaRef>) -> Result<RecordBatch, LookupError> {
        let field = |name: &String| {
            let there = found.field_with_name(name).ok()?;
            Some(known.and_then(|known| known.field_with_name(name).ok()).unwrap_or(there).clone())
        };
        let needed = Arc::new(Schema::new(self.columns.iter().filter_map(field).collect::<Vec<_>>()));
        let decoded = codec(&self.codec).decoder(&needed, found).decode(slice);
        if let Some(bad) = decoded.rejects.first() {
            return Err(self.wrong(format!(
                "record {}: {}. A table is taken whole or not at all: correct it, or give the column another type by `schema`",
                bad.record + 1,
                bad.detail
            )));
        }
        let size = decoded.rows.get_array_memory_size() as u64;
        if size > self.max_bytes {
            return Err(too_large(&self.path.display().to_string(), self.max_bytes));
        }
        Ok(decoded.rows)
    }
}

#[async_trait]
impl LookupTable for FileTable {
    async fn schema(&self) -> Result<SchemaRef, LookupError> {
        let table = Self(self.0.clone());
        self.with(move |_| table.look()).await
    }

    async fn read(&self, known: Option<&SchemaRef>) -> Result<RecordBatch, LookupError> {
        let known = known.cloned();
        self.with(move |inner| inner.read(known.as_ref())).await
    }

    fn may_have_changed(&self) -> bool {
        let seen = *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_none() || self.0.path.metadata().map_or(true, |found| seen != Some(Stamp::of(&found)))
    }

    async fn ask(&self, _: &RecordBatch) -> Result<Asked, Unanswered> {
        Err(self.0.wrong("a file cannot be asked for single keys").into())
    }
}

//! Snapshots of tables on disk, each under the digest of its bytes: what a plan names, a replay reads again.
//!
//! Parquet files, so that anybody can look into them. A file is complete or not there: written aside, synced, renamed.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use arrow::{array::RecordBatch, compute::concat_batches};
use bytes::Bytes;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::Compression,
    file::properties::WriterProperties,
};
use tidemill_checkpoint::Digest;

use super::LookupError;

const ENDING: &str = ".parquet";

/// The snapshots of a job.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The snapshots in this folder, which is made with the first.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where a snapshot is.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}{ENDING}"))
    }

    /// Keeps a snapshot: durable when this returns. The digest is that of the file. Blocks.
    pub fn save(&self, rows: &RecordBatch) -> Result<Digest, LookupError> {
        let bytes = encode(rows).map_err(|error| LookupError::of("a snapshot cannot be encoded", error))?;
        let digest = Digest::of(&bytes);
        let path = self.path(digest);
        self.write(&path, &bytes).map_err(|error| LookupError::of(format!("writing {}", path.display()), error))?;
        Ok(digest)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if fs::read(path).is_ok_and(|found| found == bytes) {
            // Who wrote it may have died before it was durable.
            touch(path)?;
            return File::open(&self.folder)?.sync_all();
        }
        if !self.folder.is_dir() {
            fs::create_dir_all(&self.folder)?;
            for parent in self.folder.ancestors().skip(1).take(2).filter(|parent| parent.is_dir()) {
                File::open(parent)?.sync_all()?;
            }
        }
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(&self.folder)?.sync_all()
    }

    /// A snapshot; `None` where it is not there. Blocks.
    pub fn load(&self, digest: Digest) -> Result<Option<RecordBatch>, LookupError> {
        let path = self.path(digest);
        let wrong = |why: String| LookupError::of(path.display(), why);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error.to_string())),
        };
        if Digest::of(&bytes) != digest {
            return Err(wrong("the file is damaged: its bytes do not have the digest that names it".into()));
        }
        decode(bytes).map(Some).map_err(|error| wrong(error.to_string()))
    }

    /// Says that a snapshot is or was needed until now: [`Store::prune`] counts from here. Blocks.
    pub fn touch(&self, digest: Digest) -> io::Result<()> {
        match touch(&self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Removes what is not in `needed` and was kept or needed longer than `grace` ago. Blocks.
    pub fn prune(&self, needed: &BTreeSet<Digest>, grace: Duration) -> io::Result<usize> {
        let mut removed = 0;
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(digest) = name.strip_suffix(ENDING).and_then(Digest::parse) else { continue };
            let last = entry.metadata().and_then(|found| found.modified()).unwrap_or_else(|_| SystemTime::now());
            if !needed.contains(&digest) && last.elapsed().is_ok_and(|age| age >= grace) {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// A new time of modification, which is durable, as the bytes are.
fn touch(path: &Path) -> io::Result<()> {
    let file = File::options().append(true).open(path)?;
    file.set_modified(SystemTime::now())?;
    file.sync_all()
}

/// Rows as the bytes of a snapshot.
pub fn encode(rows: &RecordBatch) -> parquet::errors::Result<Vec<u8>> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), Some(properties))?;
    writer.write(rows)?;
    writer.close()?;
    Ok(bytes)
}

/// The rows of a snapshot.
pub fn decode(bytes: Bytes) -> Result<RecordBatch, Box<dyn std::error::Error + Send + Sync>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let schema = reader.schema().clone();
    let batches = reader.build()?.collect::<Result<Vec<_>, _>>()?;
    Ok(concat_batches(&schema, &batches)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Float64Array, Int64Array, StringArray},
        compute::cast,
        datatypes::{DataType, Field, Schema, TimeUnit},
    };

    use super::*;

    fn rows(n: i64) -> RecordBatch {
        let stamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
            Field::new("rate", DataType::Float64, true),
            Field::new("at", stamp.clone(), true),
            Field::new("price", DataType::Decimal128(10, 2), true),
        ]);
        let ids: arrow::array::ArrayRef = Arc::new(Int64Array::from_iter_values(0..n));
        let columns = vec![
            ids.clone(),
            Arc::new(StringArray::from_iter((0..n).map(|n| (n % 3 > 0).then(|| format!("n{n}"))))) as _,
            Arc::new(Float64Array::from_iter((0..n).map(|n| if n == 1 { f64::INFINITY } else { n as f64 / 7.0 }))) as _,
            cast(&ids, &stamp).unwrap(),
            cast(&ids, &DataType::Decimal128(10, 2)).unwrap(),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    #[test]
    fn what_is_kept_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("job/lookups"));
        for count in [0, 5, 3000] {
            let rows = rows(count);
            let digest = store.save(&rows).unwrap();
            assert_eq!(store.save(&rows).unwrap(), digest, "the same table has the same digest");
            assert_eq!(store.load(digest).unwrap(), Some(rows));
        }
        assert_eq!(store.load(Digest::of(b"nothing")).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().into());
        let digest = store.save(&rows(10)).unwrap();
        let mut bytes = fs::read(store.path(digest)).unwrap();
        bytes[20] ^= 1;
        fs::write(store.path(digest), bytes).unwrap();
        assert!(store.load(digest).unwrap_err().0.contains("damaged"));
        // The same table once more: what is there has its length, and is not it.
        assert_eq!(store.save(&rows(10)).unwrap(), digest);
        assert_eq!(store.load(digest).unwrap(), Some(rows(10)));
    }

    #[test]
    fn what_was_needed_lately_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().into());
        let digests: Vec<_> = (1..4).map(|n| store.save(&rows(n)).unwrap()).collect();
        for digest in &digests {
            let file = File::options().append(true).open(store.path(*digest)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
        }
        store.save(&rows(1)).unwrap();
        store.touch(digests[1]).unwrap();
        store.touch(Digest::of(b"nothing")).unwrap();
        assert_eq!(store.prune(&BTreeSet::new(), Duration::from_secs(3600)).unwrap(), 1);
        let there: Vec<bool> = digests.iter().map(|digest| store.path(*digest).exists()).collect();
        assert_eq!(there, [true, true, false]);
    }

    #[test]
    fn what_nobody_needs_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().into());
        let digests: Vec<_> = (1..4).map(|n| store.save(&rows(n)).unwrap()).collect();
        fs::write(folder.path().join("other.txt"), "x").unwrap();
        let needed = BTreeSet::from([digests[1]]);
        assert_eq!(store.prune(&needed, Duration::from_secs(3600)).unwrap(), 0);
        assert_eq!(store.prune(&needed, Duration::ZERO).unwrap(), 2);
        let there: Vec<bool> = digests.iter().map(|digest| store.path(*digest).exists()).collect();
        assert_eq!((there, folder.path().join("other.txt").exists()), (vec![false, true, false], true));
    }
}

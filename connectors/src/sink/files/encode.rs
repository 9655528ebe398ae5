//! Rows to the bytes of files: split by partition, encoded in parallel, compressed.

use std::{collections::BTreeMap, io::Write as _, sync::Arc};

use arrow::{
    array::{Array, RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::{Schema, SchemaRef},
};
use rayon::prelude::*;
use tidemill_config::{Codec, Compression, Files};

use crate::{
    codec::{CodecError, Encoder, encoder, parquet::ParquetEncoder},
    sink::{SinkError, cell, durable},
};

/// Rows that one thread encodes at a time.
const SLICE: usize = 32_768;
/// Encoded bytes that are compressed together: smaller members cost ratio, larger ones cores.
const MEMBER: usize = 1 << 20;
/// More folders than this from one batch is a column that names no partitions.
const MAX_PARTITIONS: usize = 1_000;
/// The level that zstd itself calls its default.
const ZSTD_LEVEL: i32 = 3;
/// Longer names are none on any file system that this sink is made for.
const MAX_NAME_BYTES: usize = 255;
/// The folder of rows whose partition column is null, as Hive has it.
const NULL_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";

/// How rows become bytes.
#[derive(Clone, Debug)]
pub(super) struct Format {
    codec: Codec,
    compression: Compression,
    partition_by: Vec<String>,
}

/// The bytes of one partition of one batch.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The folder below the sink's, `""` where nothing is partitioned.
    pub(super) partition: String,
    /// What a new file begins with.
    pub(super) header: Vec<u8>,
    /// The rows, in order.
    pub(super) body: Vec<Vec<u8>>,
}

impl Chunk {
    pub(super) fn bytes(&self) -> u64 {
        self.body.iter().map(|part| part.len() as u64).sum()
    }
}

impl Format {
    pub(super) fn new(config: &Files) -> Result<Self, SinkError> {
        if config.codec == Codec::Parquet && config.roll.is_some() {
            return Err(SinkError::Fatal(
                "parquet files end with their footer and cannot roll: leave out `roll`".into(),
            ));
        }
        if config.codec == Codec::Parquet && config.compression == Compression::Gzip {
            return Err(SinkError::Fatal("parquet files are compressed by `zstd` or not at all (`none`)".into()));
        }
        let partition_by = config.partition_by.iter().map(|column| column.value.clone()).collect();
        Ok(Self { codec: config.codec.clone(), compression: config.compression, partition_by })
    }

    /// The ending of file names.
    pub(super) fn extension(&self) -> String {
        let codec = match self.codec {
            Codec::Json | Codec::JsonWith(_) => "json",
            Codec::Csv(_) => "csv",
            Codec::Text | Codec::TextIn(_) => "txt",
            Codec::Parquet => "parquet",
            // Sinks do not write them.
            Codec::Bytes(_) | Codec::Avro(_) | Codec::Protobuf(_) => "bin",
        };
        let compression = match self.compression {
            _ if self.codec == Codec::Parquet => "",
            Compression::None => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
        };
        format!("{codec}{compression}")
    }

    /// Whether rows of this schema can be written.
    pub(super) fn check(&self, schema: &Schema) -> Result<(), SinkError> {
        self.encoder(&self.written(schema)?).map(drop)
    }

    /// The schema of the files: partition columns are in the folders' names instead.
    fn written(&self, schema: &Schema) -> Result<SchemaRef, SinkError> {
        for column in &self.partition_by {
            if schema.index_of(column).is_err() {
                let columns = schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
                return Err(SinkError::Fatal(format!(
                    "partition_by: the rows have no column `{column}`; they have {columns}"
                )));
            }
        }
        let kept = schema.fields().iter().filter(|field| !self.partition_by.contains(field.name())).cloned();
        let kept: Vec<_> = kept.collect();
        if kept.is_empty() {
            return Err(SinkError::Fatal("partition_by names every column: nothing is left to write".into()));
        }
        Ok(Arc::new(Schema::new(kept)))
    }

    fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encoder>, SinkError> {
        if self.codec == Codec::Parquet && self.compression == Compression::Zstd {
            return Ok(Box::new(ParquetEncoder::zstd(schema)));
        }
        encoder(&self.codec, schema).map_err(fatal)
    }

    /// The bytes of a batch, by partition.
    pub(super) fn encode(&self, batches: &[RecordBatch]) -> Result<Vec<Chunk>, SinkError> {
        let Some(first) = batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok(Vec::new()) };
        let schema = self.written(first.schema_ref())?;
        let mut chunks = Vec::new();
        for (partition, rows) in self.split(batches, &schema)? {
            let encoder = self.encoder(&schema)?;
            let header = match encoder.header() {
                Some(header) => self.compress(header)?,
                None => Vec::new(),
            };
            chunks.push(Chunk { partition, header, body: self.encode_rows(&schema, &rows)? });
        }
        Ok(chunks)
    }

    fn encode_rows(&self, schema: &SchemaRef, rows: &[RecordBatch]) -> Result<Vec<Vec<u8>>, SinkError> {
        if self.codec == Codec::Parquet {
            let mut bytes = Vec::new();
            let whole = concat_batches(schema, rows).map_err(|error| SinkError::Fatal(error.to_string()))?;
            self.encoder(schema)?.encode(&whole, &mut bytes).map_err(fatal)?;
            return Ok(vec![bytes]);
        }
        let slices = rows.iter().flat_map(|batch| {
            let starts = (0..batch.num_rows()).step_by(SLICE);
            starts.map(|at| batch.slice(at, SLICE.min(batch.num_rows() - at)))
        });
        let slices: Vec<RecordBatch> = slices.collect();
        let encode = |slice: &RecordBatch| {
            let mut bytes = Vec::new();
            self.encoder(schema)?.encode(slice, &mut bytes).map_err(fatal)?;
            Ok(bytes)
        };
        // A hand-over to another thread costs more than a small batch.
        let parts: Vec<Vec<u8>> = if slices.len() == 1 {
            vec![encode(&slices[0])?]
        } else {
            slices.par_iter().map(encode).collect::<Result<_, SinkError>>()?
        };
        if self.compression == Compression::None {
            return Ok(parts);
        }
        let mut members: Vec<Vec<u8>> = Vec::new();
        for part in parts {
            match members.last_mut() {
                Some(member) if member.len() < MEMBER => member.extend_from_slice(&part),
                _ => members.push(part),
            }
        }
        members.into_par_iter().map(|member| self.compress(member)).collect()
    }

    /// One member (gzip) or frame (zstd): such pieces one after another are a valid file.
    fn compress(&self, bytes: Vec<u8>) -> Result<Vec<u8>, SinkError> {
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let compressed = match self.compression {
            Compression::None => return Ok(bytes),
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::default());
                encoder.write_all(&bytes).and_then(|()| encoder.finish())
            }
            Compression::Zstd => zstd::bulk::compress(&bytes, ZSTD_LEVEL),
        };
        compressed.map_err(|error| SinkError::Fatal(format!("compressing rows: {error}")))
    }

    /// The rows of each partition, without the partition columns, in their order.
    fn split(
        &self,
        batches: &[RecordBatch],
        schema: &SchemaRef,
    ) -> Result<BTreeMap<String, Vec<RecordBatch>>, SinkError> {
        if self.partition_by.is_empty() {
            return Ok(BTreeMap::from([(
                String::new(),
                batches.iter().filter(|batch| batch.num_rows() > 0).cloned().collect(),
            )]));
        }
        let arrow = |error: arrow::error::ArrowError| SinkError::Fatal(format!("splitting rows by partition: {error}"));
        let mut partitions: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
        for batch in batches {
            let kept: Vec<usize> =
                schema.fields().iter().filter_map(|field| batch.schema_ref().index_of(field.name()).ok()).collect();
            let rest = batch.project(&kept).map_err(arrow)?;
            let mut rows: BTreeMap<String, Vec<u32>> = BTreeMap::new();
            for row in 0..batch.num_rows() {
                rows.entry(self.partition(batch, row)).or_default().push(row as u32);
            }
            for (partition, rows) in rows {
                let taken = take_record_batch(&rest, &UInt32Array::from(rows)).map_err(arrow)?;
                partitions.entry(partition).or_default().push(taken);
            }
            if let Some(long) =
                partitions.keys().flat_map(|path| path.split('/')).find(|name| name.len() > MAX_NAME_BYTES)
            {
                let shown: String = long.chars().take(40).collect();
                return Err(SinkError::Fatal(format!(
                    "partition_by: [{}] gives a folder {shown}… of {} bytes, a name has at most {MAX_NAME_BYTES}: \
                     partition by something shorter",
                    self.partition_by.join(", "),
                    long.len()
                )));
            }
            if partitions.len() > MAX_PARTITIONS {
                return Err(SinkError::Fatal(format!(
                    "partition_by: [{}] gives more than {MAX_PARTITIONS} folders in one batch: partition by something coarser",
                    self.partition_by.join(", ")
                )));
            }
        }
        Ok(partitions)
    }

    fn partition(&self, batch: &RecordBatch, row: usize) -> String {
        let folders = self.partition_by.iter().filter_map(|name| Some((name, batch.column_by_name(name)?)));
        let folders: Vec<String> = folders
            .map(|(name, column)| {
                let value =
                    if column.is_null(row) { NULL_PARTITION.into() } else { folder_value(&cell::text(column, row)) };
                durable::shortened(format!("{}={value}", folder_text(name)))
            })
            .collect();
        folders.join("/")
    }
}

/// The name of a value's folder. The text that stands for null is a value too, and has a folder of its own. An empty one
/// leaves the name's end empty: readers take nothing else for it.
fn folder_value(value: &str) -> String {
    match value {
        "" => String::new(),
        NULL_PARTITION => value.replacen('_', "%5F", 1),
        _ => folder_text(value),
    }
}

/// A text on one side of a folder's `=`: with a second one DuckDB and polars take the folder for none of the partition.
fn folder_text(text: &str) -> String {
    durable::component(text).replace('=', "%3D")
}

fn fatal(error: CodecError) -> SinkError {
    SinkError::Fatal(error.to_string())
}

//! A trial in a child process: does this batch kill the process that computes it?
//!
//! A process that died three times in the same batch may have been killed by the batch (a crash in native code, memory
//! without end) or by somebody else (`kill -9`, a reboot). To tell one from the other the batch is computed once more in
//! a child, from the bytes that were read, with no sink attached. A child that dies by a signal while its parent lives
//! proves the batch guilty: the lane stops and names it. A child that comes back proves nothing was wrong.

use std::{
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    sync::Arc,
};

use arrow::array::RecordBatch;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_checkpoint::{Digest, Plan, Position, ShardId, failpoint};
use tidemill_config as config;
use tidemill_connectors::{
    lookup::store,
    source::{Base, RawBatch, Slice},
};
use tidemill_steps::{BatchContext, account::Account};

use super::{
    Job,
    batch::poison_text,
    compile::{Compiled, Pinned},
    lane::LaneError,
    lookups::{self, BatchTables},
    readable::Readable,
    schemas::{parse_schema, schema_text},
};

/// The hidden subcommand of the child.
pub const COMMAND: &str = "__probe";

#[derive(Serialize, Deserialize)]
struct Header {
    text: String,
    file: std::path::PathBuf,
    schemas: Vec<(String, String)>,
    /// Digests of the tables of lookups, by step, and the folder where they are kept.
    tables: Vec<(String, Digest)>,
    folder: std::path::PathBuf,
    planned_at: i64,
    input: Digest,
    readable: Readable,
    /// What the batch may take.
    memory: u64,
    slices: Vec<SliceHeader>,
}

#[derive(Serialize, Deserialize)]
struct SliceHeader {
    source: usize,
    shard: ShardId,
    bytes: usize,
    header: Option<usize>,
    records: Vec<(u32, u32)>,
    base: BaseHeader,
    /// Of metadata columns, and of the values that differ from record to record how many bytes they take.
    metadata: Vec<(String, String)>,
    columns: Option<usize>,
}

#[derive(Serialize, Deserialize)]
enum BaseHeader {
    Bytes(u64),
    File(u64, u64),
    Each(Vec<Position>),
    Offsets(Vec<u64>),
}

/// Computes the batch in a child. [`LaneError::Stop`] where the child dies by a signal.
pub async fn try_in_a_child(
    job: &Job,
    raw: &Arc<Vec<RawBatch>>,
    plan: &Plan,
    compiled: &Arc<Compiled>,
    tables: &BatchTables,
) -> Result<(), LaneError> {
    tracing::warn!(job = job.name(), lane = %plan.lane, batch = plan.seq, "the process died three times in this batch: trying it in a process of its own");
    let header = Header {
        text: compiled.job().text.clone(),
        file: job.config.file.clone(),
        schemas: compiled.pinned().iter().map(|(source, schema)| (source.clone(), schema_text(schema))).collect(),
        tables: tables.digests().collect(),
        folder: job.lookups.folder(),
        planned_at: plan.planned_at.0,
        input: plan.input(),
        readable: Readable::of(plan),
        memory: job.around.memory.most(),
        slices: Vec::new(),
    };
    let raw = raw.clone();
    let status = tokio::task::spawn_blocking(move || run_child(header, &raw)).await;
    match status {
        Ok(Ok(status)) if status.signal().is_some() => Err(LaneError::Stop(poison_text(plan))),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            Err(LaneError::Transient(format!("trying batch {} in a process of its own: {error}", plan.seq)))
        }
        Err(error) => Err(LaneError::Transient(format!("trying batch {} in a process of its own: {error}", plan.seq))),
    }
}

fn describe(source: usize, slice: &Slice, columns: Option<&Vec<u8>>) -> SliceHeader {
    SliceHeader {
        source,
        shard: slice.shard.clone(),
        bytes: slice.bytes.len(),
        header: slice.header.as_ref().map(Bytes::len),
        records: slice.records.clone(),
        base: match &slice.base {
            Base::Bytes(base) => BaseHeader::Bytes(*base),
            Base::File(file, base) => BaseHeader::File(*file, *base),
            Base::Each(positions) => BaseHeader::Each(positions.to_vec()),
            Base::Offsets(offsets) => BaseHeader::Offsets(offsets.to_vec()),
        },
        metadata: slice.metadata.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        columns: columns.map(Vec::len),
    }
}

/// The columns of a slice that has any, as bytes.
fn columns_of(slice: &Slice) -> std::io::Result<Option<Vec<u8>>> {
    if slice.columns.is_empty() {
        return Ok(None);
    }
    let columns = slice.columns.iter().map(|(name, column)| (*name, column.clone(), true));
    let columns = RecordBatch::try_from_iter_with_nullable(columns).map_err(std::io::Error::other)?;
    store::encode(&columns).map(Some).map_err(std::io::Error::other)
}

fn run_child(header: Header, raw: &[RawBatch]) -> std::io::Result<std::process::ExitStatus> {
    let mut child =
        Command::new(std::env::current_exe()?).arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let sent = match child.stdin.take() {
        Some(stdin) => send(stdin, header, raw),
        None => Ok(()),
    };
    let status = child.wait()?;
    // A child that died broke the pipe: its status says more.
    if status.signal().is_none() {
        sent?;
    }
    Ok(status)
}

fn send(mut out: impl Write, mut header: Header, raw: &[RawBatch]) -> std::io::Result<()> {
    let slices = raw.iter().enumerate().flat_map(|(source, batch)| batch.slices.iter().map(move |s| (source, s)));
    let columns = slices.clone().map(|(_, slice)| columns_of(slice)).collect::<std::io::Result<Vec<_>>>()?;
    let described = slices.clone().zip(&columns);
    header.slices = described.map(|((source, slice), columns)| describe(source, slice, columns.as_ref())).collect();
    let text = serde_json::to_vec(&header)?;
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    for ((_, slice), columns) in slices.zip(&columns) {
        out.write_all(&slice.bytes)?;
        for more in [slice.header.as_deref(), columns.as_deref()].into_iter().flatten() {
            out.write_all(more)?;
        }
    }
    out.flush()
}

/// The other end of [`send`].
fn receive(mut input: impl Read) -> anyhow::Result<(Header, Vec<RawBatch>)> {
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    let mut text = vec![0; usize::try_from(u64::from_le_bytes(length))?];
    input.read_exact(&mut text)?;
    let mut header: Header = serde_json::from_slice(&text)?;
    let mut raw: Vec<RawBatch> = Vec::new();
    for slice in std::mem::take(&mut header.slices) {
        let mut take = |length: usize| -> std::io::Result<Bytes> {
            let mut bytes = vec![0; length];
            input.read_exact(&mut bytes)?;
            Ok(bytes.into())
        };
        let base = match slice.base {
            BaseHeader::Bytes(base) => Base::Bytes(base),
            BaseHeader::File(file, base) => Base::File(file, base),
            BaseHeader::Each(positions) => Base::Each(positions.into()),
            BaseHeader::Offsets(offsets) => Base::Offsets(offsets.into()),
        };
        let (bytes, first) = (take(slice.bytes)?, slice.header.map(&mut take).transpose()?);
        let columns = match slice.columns.map(&mut take).transpose()? {
            Some(bytes) => named(&store::decode(bytes).map_err(|error| anyhow::anyhow!("metadata columns: {error}"))?),
            None => Vec::new(),
        };
        if raw.len() <= slice.source {
            raw.resize_with(slice.source + 1, RawBatch::default);
        }
        raw[slice.source].slices.push(Slice {
            shard: slice.shard,
            bytes,
            records: slice.records,
            base,
            header: first,
            metadata: slice.metadata.into_iter().map(|(name, value)| (lasting(&name), value)).collect(),
            columns,
        });
    }
    Ok((header, raw))
}

fn named(columns: &RecordBatch) -> Vec<(&'static str, arrow::array::ArrayRef)> {
    let schema = columns.schema();
    schema.fields().iter().zip(columns.columns()).map(|(f, column)| (lasting(f.name()), column.clone())).collect()
}

/// A name for as long as the process lives, which is one batch.
fn lasting(name: &str) -> &'static str {
    name.to_owned().leak()
}

/// The failpoints of the computation itself, in the daemon and in the child: `computing` of any job, `computing:JOB` of one.
pub fn pass(compiled: &Compiled) -> std::io::Result<()> {
    failpoint::pass("computing")?;
    failpoint::pass(&format!("computing:{}", compiled.job().name))
}

/// The child's side: reads a batch from standard input and computes it. Only how it ends matters.
pub fn child() -> anyhow::Result<()> {
    let (header, mut raw) = receive(std::io::stdin().lock())?;
    let job = Arc::new(
        config::Job::parse(&header.text, &header.file, &config::ProcessEnvironment)
            .map_err(|errors| anyhow::anyhow!("{errors}"))?,
    );
    anyhow::ensure!(raw.len() <= job.sources.len(), "a slice of an unknown source");
    raw.resize_with(job.sources.len(), RawBatch::default);
    let pinned: Pinned =
        header.schemas.into_iter().filter_map(|(source, text)| Some((source, parse_schema(&text)?))).collect();
    // Tables that are asked need a runtime, as in the daemon.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let tables = runtime.block_on(lookups::kept(&job, &header.tables, &header.folder))?;
    let compiled = Compiled::new(&job, &pinned, &tables.schemas)?;
    runtime.block_on(compiled.prepare(&raw)).map_err(|(source, error)| anyhow::anyhow!("source {source}: {error}"))?;
    pass(&compiled)?;
    let context = BatchContext { planned_at: header.planned_at, seed: 0 };
    let account = Account::new(header.memory);
    compiled.compute(&raw, &context, header.input, &tables.tables, &header.readable, &account)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arrow::array::{ArrayRef, BinaryArray, BooleanArray, Int32Array, StringArray, TimestampMicrosecondArray};

    use super::*;

    /// Without its metadata columns a batch may come to something else: where they have no value, a step fails, or a record
    /// without a value is decoded.
    #[test]
    fn a_batch_has_its_metadata_and_records_without_a_value_on_the_other_side() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("key", Arc::new(StringArray::from(vec![Some("k"), None]))),
            ("key_bytes", Arc::new(BinaryArray::from(vec![Some(&b"\xff"[..]), None]))),
            ("partition", Arc::new(Int32Array::from(vec![3, 3]))),
            ("timestamp", Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None]).with_timezone("UTC"))),
            ("tombstone", Arc::new(BooleanArray::from(vec![false, true]))),
        ];
        let slice = |shard: &str, columns: Vec<(&'static str, ArrayRef)>| Slice {
            shard: ShardId::new("in", shard),
            bytes: Bytes::from_static(b"{}"),
            records: vec![(0, 2), (2, 2)],
            base: Base::Offsets(vec![7, 8].into()),
            header: Some(Bytes::from_static(b"head")),
            metadata: vec![("file", "a.json".to_owned())],
            columns,
        };
        let mut raw = [RawBatch::default(), RawBatch::default()];
        raw[1].slices = vec![slice("a", columns.clone()), slice("b", Vec::new())];
        let header = Header {
            text: "job: j".into(),
            file: "j.yaml".into(),
            schemas: Vec::new(),
            tables: Vec::new(),
            folder: "lookups".into(),
            planned_at: 5,
            input: Digest::of(b""),
            readable: Readable::default(),
            memory: 1 << 20,
            slices: Vec::new(),
        };
        let mut sent = Vec::new();
        send(&mut sent, header, &raw).unwrap();
        let (header, found) = receive(&sent[..]).unwrap();
        assert_eq!((header.text.as_str(), found.len(), found[0].slices.len()), ("job: j", 2, 0));
        let [a, b] = &found[1].slices[..] else { panic!("{found:?}") };
        assert_eq!(a.columns, columns);
        assert_eq!(b.columns, []);
        for slice in [a, b] {
            assert_eq!(slice.metadata, [("file", "a.json".to_owned())]);
            assert_eq!((slice.header.as_deref(), &slice.bytes[..]), (Some(&b"head"[..]), &b"{}"[..]));
            assert_eq!((slice.position(1), &slice.records[..]), (Position::number(8), &[(0, 2), (2, 2)][..]));
        }
    }
}

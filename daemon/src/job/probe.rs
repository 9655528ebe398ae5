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

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_checkpoint::{Digest, Plan, Position, ShardId, failpoint};
use tidemill_config as config;
use tidemill_connectors::source::{Base, RawBatch, Slice};
use tidemill_steps::BatchContext;

use super::{
    Job,
    batch::poison_text,
    compile::{Compiled, Pinned},
    lane::LaneError,
    lookups::{self, BatchTables},
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
        slices: raw
            .iter()
            .enumerate()
            .flat_map(|(source, batch)| batch.slices.iter().map(move |slice| describe(source, slice)))
            .collect(),
    };
    let raw = raw.clone();
    let status = tokio::task::spawn_blocking(move || run_child(&header, &raw)).await;
    match status {
        Ok(Ok(status)) if status.signal().is_some() => Err(LaneError::Stop(poison_text(plan))),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            Err(LaneError::Transient(format!("trying batch {} in a process of its own: {error}", plan.seq)))
        }
        Err(error) => Err(LaneError::Transient(format!("trying batch {} in a process of its own: {error}", plan.seq))),
    }
}

fn describe(source: usize, slice: &Slice) -> SliceHeader {
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
    }
}

fn run_child(header: &Header, raw: &[RawBatch]) -> std::io::Result<std::process::ExitStatus> {
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

fn send(mut out: impl Write, header: &Header, raw: &[RawBatch]) -> std::io::Result<()> {
    let text = serde_json::to_vec(header)?;
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    for slice in raw.iter().flat_map(|batch| &batch.slices) {
        out.write_all(&slice.bytes)?;
        if let Some(header) = &slice.header {
            out.write_all(header)?;
        }
    }
    out.flush()
}

/// The failpoints of the computation itself, in the daemon and in the child: `computing` of any job, `computing:JOB` of one.
pub fn pass(compiled: &Compiled) -> std::io::Result<()> {
    failpoint::pass("computing")?;
    failpoint::pass(&format!("computing:{}", compiled.job().name))
}

/// The child's side: reads a batch from standard input and computes it. Only how it ends matters.
pub fn child() -> anyhow::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    let mut text = vec![0; usize::try_from(u64::from_le_bytes(length))?];
    input.read_exact(&mut text)?;
    let header: Header = serde_json::from_slice(&text)?;
    let job = Arc::new(
        config::Job::parse(&header.text, &header.file, &config::ProcessEnvironment)
            .map_err(|errors| anyhow::anyhow!("{errors}"))?,
    );
    let mut raw: Vec<RawBatch> = job.sources.iter().map(|_| RawBatch::default()).collect();
    for slice in header.slices {
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
        let batch = raw.get_mut(slice.source).ok_or_else(|| anyhow::anyhow!("a slice of an unknown source"))?;
        batch.slices.push(Slice {
            shard: slice.shard,
            bytes,
            records: slice.records,
            base,
            header: first,
            metadata: Vec::new(),
            columns: Vec::new(),
        });
    }
    let pinned: Pinned =
        header.schemas.into_iter().filter_map(|(source, text)| Some((source, parse_schema(&text)?))).collect();
    // Tables that are asked need a runtime, as in the daemon.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let tables = runtime.block_on(lookups::kept(&job, &header.tables, &header.folder))?;
    let compiled = Compiled::new(&job, &pinned, &tables.schemas)?;
    runtime.block_on(compiled.prepare(&raw)).map_err(|(source, error)| anyhow::anyhow!("source {source}: {error}"))?;
    pass(&compiled)?;
    let context = BatchContext { planned_at: header.planned_at, seed: 0 };
    compiled.compute(&raw, &context, header.input, &tables.tables)?;
    Ok(())
}

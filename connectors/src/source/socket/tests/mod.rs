//! Tests of the socket source: the spool against crashes and damage, the source over real connections.
#![allow(clippy::unwrap_used)]

mod copies;
mod crash;
mod source;
mod spool;
mod tcp;

use std::{fs, path::Path};

use super::{
    entry::{self, Kind},
    spool::{Error, Spool},
};
use crate::source::Budget;
use tidemill_checkpoint::ShardId;

/// No cap.
const ALL: Budget = Budget { records: usize::MAX, bytes: usize::MAX };

fn shard() -> ShardId {
    ShardId::new("posts", "spool")
}

/// A group as the intake makes them.
fn group(records: &[&[u8]]) -> Vec<u8> {
    let mut group = Vec::new();
    entry::push_group(&mut group);
    records.iter().for_each(|record| entry::push(&mut group, Kind::Record, 1, 7, &[record]));
    group
}

/// All records from `from` on with their positions.
fn records(spool: &Spool, from: u64) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let stretch = spool.read_ahead(&shard(), from, ALL, None)?;
    let slices = stretch.batch.slices.iter();
    Ok(slices
        .flat_map(|slice| (0..slice.records.len()).map(|n| (slice.position(n).to_string(), slice.record(n).to_vec())))
        .collect())
}

fn texts(spool: &Spool) -> Vec<String> {
    records(spool, spool.first()).unwrap().into_iter().map(|(_, record)| String::from_utf8(record).unwrap()).collect()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// The segments, in order.
fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "seg"));
    paths.sort();
    paths
}

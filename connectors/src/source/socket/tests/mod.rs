//! Tests of the socket source: the spool against crashes and damage, the source over real connections.
#![allow(clippy::unwrap_used)]

mod copies;
mod crash;
mod source;
mod spool;
mod tcp;

use std::{fs, path::Path};

use super::{
    Blank,
    entry::{self, Kind},
    spool::{Error, Spool},
};
use crate::source::Budget;
use tidemill_checkpoint::ShardId;
use tidemill_config::{Codec, Csv, Framing};

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

/// What a codec gets of the records that a connection brought. Their positions are those of their entries, whatever is left out.
#[test]
fn blank_lines_are_in_the_spool_and_no_records() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(&dir.path().join("spool"), 1 << 20).unwrap();
    spool.append(&mut group(&[b"", b"{}", b" \t", b"", b"x"])).unwrap();
    let csv = |expected: &[&str]| {
        Codec::Csv(Csv { expected: expected.iter().map(|name| (*name).to_owned()).collect(), ..Csv::default() })
    };
    let all = spool.read_ahead(&shard(), spool.first(), ALL, None).unwrap().batch;
    let positions: Vec<_> = (0..5).map(|n| all.slices[0].position(n)).collect();
    for (codec, framing, expected) in [
        (Codec::Json, Framing::Lines, &[1, 4][..]),
        (Codec::Json, Framing::Delimiter(b"|".to_vec()), &[1, 4]),
        (Codec::Json, Framing::LengthPrefix(4), &[0, 1, 2, 3, 4]),
        (csv(&["a", "b"]), Framing::Lines, &[1, 2, 4]),
        (csv(&[]), Framing::Lines, &[1, 2, 4]),
        (csv(&["a"]), Framing::Lines, &[0, 1, 2, 3, 4]),
        (Codec::Text, Framing::Lines, &[0, 1, 2, 3, 4]),
    ] {
        let mut batch = all.clone();
        Blank::of(&codec, &framing).leave_out(&mut batch);
        let found: Vec<_> = (0..batch.slices[0].records.len()).map(|n| batch.slices[0].position(n)).collect();
        assert_eq!(found, expected.iter().map(|n| positions[*n].clone()).collect::<Vec<_>>());
    }
    let mut batch = all;
    batch.slices[0].records.retain(|(start, end)| start == end);
    Blank::of(&Codec::Json, &Framing::Lines).leave_out(&mut batch);
    assert!(batch.slices.is_empty());
}

/// The segments, in order.
fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "seg"));
    paths.sort();
    paths
}

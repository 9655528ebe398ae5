//! Whether a position of the accepted list exists: asked before an operator's command sets the lane to it.

use tidemill_checkpoint::{Position, ShardId};
use tidemill_config::model;

use super::{
    entry::{FileEntry, Role},
    state::log_name,
};
use crate::source::{Found, History};

/// Endings of files whose offsets count the unpacked bytes, which are not listed.
const PACKED: [&str; 2] = [".gz", ".zst"];

/// What the list has at a position; see [`crate::source::find`].
pub fn find(directory: &model::Directory, shard: &ShardId, position: &Position, history: &History) -> Found {
    let Some((number, offset)) = position.as_pair() else {
        return Found::Nowhere(format!("{position} is no position of a directory, which is `file:offset`"));
    };
    let log = log_name(shard.as_str());
    let (first, next) = history.states.get(&log).map_or((0, 0), |state| (state.first, state.next));
    let folder = directory.path.display();
    if number < first || number > next || (number == next && offset > 0) {
        return Found::Nowhere(format!(
            "the list of files taken from {folder} has the numbers {first} to {next}, so that {first}:0 is its beginning and \
             {next}:0 its end, and {position} is not in it"
        ));
    }
    let listed = history.entries.iter().find(|entry| entry.log == log && entry.number == number);
    if let Some(Ok(file)) = listed.map(|entry| FileEntry::parse(&entry.text))
        && file.role == Role::Read
        && offset > file.size
        && !PACKED.iter().any(|ending| file.path.ends_with(ending))
    {
        let (path, size) = (file.path, file.size);
        return Found::Nowhere(format!(
            "file {number} of {folder}, {path}, has {size} bytes, and {position} is beyond them"
        ));
    }
    Found::There { is_end: number == next }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use tidemill_checkpoint::{Digest, Entry, LogState};

    use super::*;

    fn directory() -> model::Directory {
        let text =
            "job: j\nsources: { in: { type: directory, path: in, codec: json } }\nsinks: { b: { type: blackhole } }\n";
        let job = tidemill_config::Job::parse(text, "j.yaml".as_ref(), &tidemill_config::ProcessEnvironment).unwrap();
        match &job.sources[0].kind {
            model::SourceKind::Directory(directory) => directory.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_position_exists_within_the_list_and_its_files() {
        let shard = ShardId::new("in", "");
        let entry = |number: u64, path: &str, size: u64| {
            let text = format!("{{\"path\":\"{path}\",\"size\":{size},\"mtime_ns\":0}}");
            Entry { log: log_name("in"), number, text }
        };
        let state = LogState { first: 2, next: 5, digest: Digest::of(b"") };
        let entries = vec![entry(2, "a", 10), entry(3, "b.gz", 10), entry(4, "c", 10)];
        let history = History { states: BTreeMap::from([(log_name("in"), state)]), entries, ..History::default() };
        let find = |position: &str| find(&directory(), &shard, &Position::text(position), &history);
        for (position, is_end) in [("2:0", false), ("2:10", false), ("3:4000", false), ("4:1", false), ("5:0", true)] {
            assert_eq!(find(position), Found::There { is_end }, "{position}");
        }
        for (position, words) in [
            ("1:0", "has the numbers 2 to 5"),
            ("6:0", "has the numbers 2 to 5"),
            ("5:1", "has the numbers 2 to 5"),
            ("18446744073709551615:0", "has the numbers 2 to 5"),
            ("2:11", "has 10 bytes"),
            ("7", "is no position of a directory"),
            ("", "is no position of a directory"),
        ] {
            match find(position) {
                Found::Nowhere(what) => assert!(what.contains(words), "{position}: {what}"),
                other => panic!("{position}: {other:?}"),
            }
        }
    }
}

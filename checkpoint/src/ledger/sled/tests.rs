//! The ledger's promises: what survives, what is refused, and that no damage makes it panic or keep silent.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs};

use tempfile::TempDir;

use super::*;
use crate::{
    LaneScheme, Position, Positions, ShardId,
    next::{self, Content, Draft, Step, Writer},
};

fn owner() -> Owner {
    Owner { name: "host".into(), data_dir: Uuid::nil(), instance: Uuid::nil() }
}
fn lane() -> Lane {
    Lane::single()
}
fn files() -> LogName {
    LogName::new("files:s")
}
fn open(dir: &TempDir) -> SledLedger {
    let opened = SledLedger::open(dir.path()).unwrap();
    assert_eq!(opened.warnings, Vec::<String>::new());
    opened.ledger
}
fn origin(anchor: &SinkId, shards: u64) -> Step {
    let start: Positions = (0..shards).map(|n| (ShardId::new("source", &n.to_string()), Position::number(0))).collect();
    let writer = Writer { generation: Generation(1), owner: &owner() };
    next::origin(&lane(), LaneScheme::Single, anchor, [anchor], start, Content::default(), writer).unwrap()
}
fn after(head: &Mark, texts: &[String], prune: Option<u64>) -> Step {
    let entries = BTreeMap::from([(files(), texts.to_vec())]);
    let prune = prune.map(|below| (files(), below)).into_iter().collect();
    let draft = Draft::batch(head, head.anchor(), Content { entries, prune, ..Content::default() }).unwrap();
    let joined = BTreeMap::from([(head.sink.clone(), Some(head.digest))]);
    draft.finish(head, &joined, &Default::default(), Writer { generation: Generation(1), owner: &owner() }).unwrap()
}
/// A lane of `job` whose anchor is the ledger, with `batches` after the origin, each with one entry.
fn anchored(ledger: &SledLedger, job: &str, batches: u64) -> (LaneKey, Mark) {
    let (key, mark) = ledger.claim(job, &lane(), Generation(1), &owner()).unwrap();
    assert_eq!(mark, None);
    let mut step = origin(&SinkId::ledger(), 1);
    ledger.commit(job, &step.first(key.clone())).unwrap();
    for n in 0..batches {
        step = after(&step.mark, &[format!("file {n}")], None);
        ledger.commit(job, &step.first(key.clone())).unwrap();
    }
    (key, step.mark)
}
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &target) } else { _ = fs::copy(entry.path(), target).unwrap() }
    }
}

#[test]
fn records_survive_a_restart() {
    let dir = TempDir::new().unwrap();
    let head = origin(&SinkId::new("db"), 1).mark;
    let id = {
        let ledger = open(&dir);
        ledger.close("job", &head).unwrap();
        anchored(&ledger, "other", 3);
        ledger.id
    };
    let ledger = open(&dir);
    assert_eq!(ledger.data_dir_id(), id);
    assert_eq!(ledger.closed("job", &lane()).unwrap(), Some(head));
    assert_eq!(ledger.closed("other", &lane()).unwrap(), None);
    let held = ledger.held("other", &lane()).unwrap();
    assert_eq!((held.generation(), held.mark.unwrap().plan.seq), (Generation(1), 3));
    let names: Vec<_> = ledger.lanes().unwrap().into_iter().map(|(job, _)| job).collect();
    assert_eq!(names, ["job", "other"]);
    let snapshot = ledger.snapshot(Some("other")).unwrap();
    assert_eq!(snapshot["lanes"].as_array().unwrap().len(), 1);
    assert_eq!(snapshot["lanes"][0]["held"]["mark"]["plan"]["seq"], 3);
    assert_eq!(ledger.snapshot(None).unwrap()["lanes"][0]["closed"]["sink"], "db");
}

#[test]
fn a_value_of_any_length_stays_out_of_the_blobs() {
    let dir = TempDir::new().unwrap();
    let lengths: Vec<u64> = vec![1, 100, 3000, 60, 2, 400];
    for shards in &lengths {
        let head = origin(&SinkId::new("db"), *shards).mark;
        let ledger = open(&dir);
        ledger.close("job", &head).unwrap();
        assert_eq!(ledger.closed("job", &lane()).unwrap(), Some(head.clone()));
        drop(ledger);
        assert_eq!(open(&dir).closed("job", &lane()).unwrap(), Some(head));
    }
    let ledger = open(&dir);
    let (key, head) = anchored(&ledger, "big", 0);
    let texts: Vec<_> = (0..40).map(|n| "x".repeat(Entry::MAX_BYTES - n)).collect();
    let step = after(&head, &texts, None);
    ledger.commit("big", &step.first(key)).unwrap();
    assert_eq!(ledger.entries("big", &lane(), &files(), 0).unwrap(), step.entries);
    // A leaf full of records at the limit stays below what sled would put into a blob.
    let many: Vec<_> = (0..2000u32).map(|n| Change::Put(format!("z{n:05}\0").into_bytes(), vec![7; 4000])).collect();
    ledger.store.write(&many).unwrap();
    ledger.store.sync().unwrap();
    drop(ledger);
    assert_eq!(open(&dir).entries("big", &lane(), &files(), 0).unwrap(), step.entries);
    assert_eq!(fs::read_dir(dir.path().join("ledger/blobs")).unwrap().count(), 0);
}

#[test]
fn a_name_that_is_too_long_is_an_error() {
    let dir = TempDir::new().unwrap();
    let ledger = open(&dir);
    let error = ledger.close(&"j".repeat(5000), &origin(&SinkId::new("db"), 1).mark).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    ledger.close("job", &origin(&SinkId::new("db"), 1).mark).unwrap();
}

#[test]
fn a_second_handle_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let ledger = open(&dir);
    let error = SledLedger::open(dir.path()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Locked(_)), "{text}");
    assert!(
        text.contains(&dir.path().display().to_string()) && text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    drop(ledger);
    open(&dir);
}

#[test]
fn attempts_are_counted_per_batch_without_the_database() {
    let dir = TempDir::new().unwrap();
    let (first, second) = (Digest::of(b"1"), Digest::of(b"2"));
    {
        let ledger = open(&dir);
        assert_eq!(ledger.attempt("job", &lane(), first).unwrap(), 1);
        assert_eq!(ledger.attempt("job", &lane(), first).unwrap(), 2);
        assert_eq!(ledger.attempt("job", &Lane::new("t/1"), first).unwrap(), 1, "lanes are counted apart");
        // As after kill -9: nothing of sled is written any more.
        std::mem::forget(ledger.store);
    }
    fs::rename(dir.path().join("ledger"), dir.path().join("away")).unwrap();
    let ledger = SledLedger::open(dir.path()).unwrap().ledger;
    assert_eq!(ledger.attempt("job", &lane(), first).unwrap(), 3);
    assert_eq!(ledger.attempts("job", &lane()).unwrap(), Some((first, 3)));
    assert_eq!(ledger.attempt("job", &lane(), second).unwrap(), 1, "another batch starts at 1");
    ledger.settle("job", &lane()).unwrap();
    assert_eq!(ledger.attempt("job", &lane(), second).unwrap(), 1);
    ledger.close("job", &origin(&SinkId::new("db"), 1).mark).unwrap();
    assert_eq!(ledger.attempts("job", &lane()).unwrap(), None);
    fs::write(ledger.attempts.path("job", &lane()), b"torn").unwrap();
    assert_eq!(ledger.attempt("job", &lane(), second).unwrap(), 1);
}

#[test]
fn as_an_anchor_it_compares_and_swaps() {
    let dir = TempDir::new().unwrap();
    let ledger = open(&dir);
    let (key, head) = anchored(&ledger, "job", 2);
    let next = after(&head, &["file 2".into()], None);
    let stranger = after(&next.mark, &[], None);
    let conflict = ledger.commit("job", &stranger.first(key.clone())).unwrap_err();
    assert!(matches!(conflict, Error::Conflict { found: Some(found), .. } if found == head.digest), "{conflict}");
    for _ in 0..2 {
        let receipt = ledger.commit("job", &next.first(key.clone())).unwrap();
        assert_eq!(receipt.digest(), next.mark.digest);
        assert_eq!(ledger.entries("job", &lane(), &files(), 0).unwrap().len(), 3, "a second time writes nothing");
    }
    // Claims: only a higher generation, and it shuts the older one out.
    for generation in [0, 1] {
        let fenced = ledger.claim("job", &lane(), Generation(generation), &owner()).unwrap_err();
        assert!(matches!(fenced, Error::Fenced { held: Generation(1), .. }), "{fenced}");
    }
    let (newer, mark) = ledger.claim("job", &lane(), Generation(5), &owner()).unwrap();
    assert_eq!(mark, Some(next.mark.clone()));
    let fenced = ledger.commit("job", &stranger.first(key.clone())).unwrap_err();
    assert!(matches!(fenced, Error::Fenced { held: Generation(5), mine: Generation(1), .. }), "{fenced}");
    ledger.release("job", &key).unwrap();
    assert!(!ledger.held("job", &lane()).unwrap().claim.unwrap().released, "a fenced key releases nothing");
    let before = ledger.held("job", &lane()).unwrap().beat;
    ledger.commit("job", &stranger.first(newer.clone())).unwrap();
    assert_ne!(ledger.held("job", &lane()).unwrap().beat, before);
    ledger.release("job", &newer).unwrap();
    drop(ledger);
    assert!(open(&dir).held("job", &lane()).unwrap().claim.unwrap().released);
}

#[test]
fn logs_are_numbered_and_pruned() {
    let dir = TempDir::new().unwrap();
    let ledger = open(&dir);
    let (key, head) = anchored(&ledger, "job", 5);
    let other = after(&origin(&SinkId::ledger(), 1).mark, &["x".into()], None);
    let numbers = |ledger: &SledLedger, from| -> Vec<u64> {
        ledger.entries("job", &lane(), &files(), from).unwrap().iter().map(|entry| entry.number).collect()
    };
    assert_eq!(numbers(&ledger, 0), [0, 1, 2, 3, 4]);
    assert_eq!(numbers(&ledger, 3), [3, 4]);
    let step = after(&head, &["file 5".into()], Some(4));
    ledger.commit("job", &step.first(key.clone())).unwrap();
    assert_eq!(numbers(&ledger, 0), [4, 5]);
    let all = after(&step.mark, &[], Some(6));
    ledger.commit("job", &all.first(key)).unwrap();
    drop(ledger);
    assert_eq!(numbers(&open(&dir), 0), Vec::<u64>::new());
    assert_eq!(other.entries.len(), 1);
}

#[test]
fn forgetting_is_of_one_job_or_one_lane() {
    let dir = TempDir::new().unwrap();
    let ledger = open(&dir);
    anchored(&ledger, "job", 2);
    anchored(&ledger, "job-2", 2);
    ledger.attempt("job", &Lane::new("t/1"), Digest::of(b"")).unwrap();
    ledger.forget("job", Some(&Lane::new("t/1"))).unwrap();
    assert_eq!(ledger.lanes().unwrap().len(), 2);
    ledger.forget("job", None).unwrap();
    assert_eq!(ledger.lanes().unwrap(), [("job-2".to_owned(), lane())]);
    assert_eq!(ledger.held("job", &lane()).unwrap().mark, None);
    assert_eq!(ledger.entries("job", &lane(), &files(), 0).unwrap(), []);
    assert_eq!(ledger.entries("job-2", &lane(), &files(), 0).unwrap().len(), 2);
    drop(ledger);
    // Nothing comes back of the forgotten job, all of the other.
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    let ledger = SledLedger::open(dir.path()).unwrap().ledger;
    assert_eq!(ledger.lanes().unwrap(), [("job-2".to_owned(), lane())]);
}

/// Reopens a data dir with the lane of [`anchored`], which must be where `head` says, and goes on.
fn goes_on(dir: &Path, job: &str, key: &LaneKey, head: &Mark, context: &str) {
    let ledger = SledLedger::open(dir).unwrap_or_else(|error| panic!("{context}: {error}")).ledger;
    let held = ledger.held(job, &lane()).unwrap();
    assert_eq!(held.mark.as_ref(), Some(head), "{context}");
    let generation = held.generation();
    let files = ledger.entries(job, &lane(), &files(), 0).unwrap();
    assert_eq!(files.len() as u64, head.plan.seq, "{context}");
    let (key, _) = ledger.claim(job, &lane(), generation.max(key.generation).next(), &owner()).unwrap();
    let next = after(head, &["one more".into()], None);
    ledger.commit(job, &next.first(key)).unwrap();
    drop(ledger);
    let ledger = SledLedger::open(dir).unwrap().ledger;
    assert_eq!(ledger.held(job, &lane()).unwrap().mark, Some(next.mark), "{context}");
}

#[test]
fn a_lost_ledger_is_rebuilt_from_sinks_and_journals() {
    let dir = TempDir::new().unwrap();
    let head = origin(&SinkId::new("db"), 1).mark;
    open(&dir).close("job", &head).unwrap();
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    let opened = SledLedger::open(dir.path()).unwrap();
    assert!(opened.warnings.concat().contains("rebuilt from the marks"), "{:?}", opened.warnings);
    assert_eq!(opened.ledger.closed("job", &lane()).unwrap(), None);
    let (key, head) = anchored(&opened.ledger, "console-only", 2);
    drop(opened);
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    goes_on(dir.path(), "console-only", &key, &head, "sled deleted");
    // The other way round: sled has what the journals had.
    fs::remove_dir_all(dir.path().join("anchors")).unwrap();
    let ledger = open(&dir);
    assert_eq!(ledger.held("console-only", &lane()).unwrap().mark.unwrap().plan.seq, 3);
}

#[test]
fn an_older_copy_of_sled_is_brought_up_from_the_journal() {
    let (dir, backup) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let ledger = open(&dir);
    let (key, head) = anchored(&ledger, "job", 2);
    drop(ledger);
    copy(&dir.path().join("ledger"), backup.path());
    let ledger = open(&dir);
    let step = after(&head, &["file 2".into()], None);
    ledger.commit("job", &step.first(key.clone())).unwrap();
    drop(ledger);
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    copy(backup.path(), &dir.path().join("ledger"));
    goes_on(dir.path(), "job", &key, &step.mark, "an older sled");
}

#[test]
fn a_journal_is_torn_anywhere_or_damaged_anywhere() {
    let whole = TempDir::new().unwrap();
    let ledger = open(&whole);
    let (key, head) = anchored(&ledger, "job", 6);
    let journal = ledger.anchors.path("job", &lane());
    drop(ledger);
    let name = journal.file_name().unwrap();
    let bytes = fs::read(&journal).unwrap();
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    // The last append torn, sled without it: the commit never returned, the lane is one batch behind.
    let before = TempDir::new().unwrap();
    anchored(&open(&before), "job", 5);
    for cut in (last..bytes.len() - 1).step_by(97) {
        let dir = TempDir::new().unwrap();
        copy(before.path(), dir.path());
        fs::write(dir.path().join("anchors").join(name), &bytes[..cut]).unwrap();
        let opened = SledLedger::open(dir.path()).unwrap();
        assert_eq!(opened.warnings, Vec::<String>::new());
        assert_eq!(opened.ledger.held("job", &lane()).unwrap().mark.unwrap().plan.seq, 5, "cut at {cut}");
    }
    for at in (0..bytes.len()).step_by(211) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        // sled is whole: nothing is lost.
        let dir = TempDir::new().unwrap();
        copy(whole.path(), dir.path());
        fs::write(dir.path().join("anchors").join(name), &bytes).unwrap();
        goes_on(dir.path(), "job", &key, &head, &format!("byte {at} damaged"));
        // sled is gone too: an entry is missing, so the lane is refused, with the way out; or the last batch is, and it
        // is one that never returned to all appearances.
        let dir = TempDir::new().unwrap();
        copy(whole.path(), dir.path());
        fs::remove_dir_all(dir.path().join("ledger")).unwrap();
        fs::write(dir.path().join("anchors").join(name), &bytes).unwrap();
        match SledLedger::open(dir.path()) {
            Ok(opened) => {
                assert!(at >= last || opened.ledger.held("job", &lane()).unwrap().mark.as_ref() == Some(&head), "{at}")
            }
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(error, Error::Corrupt(_)) && text.contains("Way out: "), "{text}");
                // The way out that the text names is one.
                fs::remove_file(dir.path().join("anchors").join(name)).unwrap();
                assert_eq!(SledLedger::open(dir.path()).unwrap().ledger.held("job", &lane()).unwrap().mark, None);
            }
        }
    }
}

#[test]
fn a_journal_that_has_grown_is_written_anew() {
    let dir = TempDir::new().unwrap();
    let ledger = open(&dir);
    let (key, mut head) = anchored(&ledger, "job", 0);
    let journal = ledger.anchors.path("job", &lane());
    let (mut longest, mut shrunk) = (0, false);
    for n in 0..400 {
        let step = after(&head, &vec!["x".repeat(4000); 4], Some(4 * n));
        ledger.commit("job", &step.first(key.clone())).unwrap();
        head = step.mark;
        let length = fs::metadata(&journal).unwrap().len();
        shrunk |= length < longest;
        longest = longest.max(length);
    }
    assert!(shrunk && longest < 3 << 20, "{longest}");
    drop(ledger);
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    let ledger = SledLedger::open(dir.path()).unwrap().ledger;
    assert_eq!(ledger.held("job", &lane()).unwrap().mark, Some(head));
    let numbers: Vec<_> = ledger.entries("job", &lane(), &files(), 0).unwrap().iter().map(|e| e.number).collect();
    assert_eq!(numbers, [1596, 1597, 1598, 1599]);
}

#[test]
fn an_anchor_that_moved_to_a_sink_is_not_missed() {
    let dir = TempDir::new().unwrap();
    let ledger = open(&dir);
    let (key, head) = anchored(&ledger, "job", 1);
    let joined = BTreeMap::from([(SinkId::ledger(), Some(head.digest)), (SinkId::new("db"), None)]);
    let writer = Writer { generation: Generation(1), owner: &owner() };
    let step = next::move_anchor(&head, &SinkId::new("db"), &joined, Content::default(), writer).unwrap();
    ledger.commit("job", &step.first(key)).unwrap();
    ledger.close("job", &step.mark).unwrap();
    drop(ledger);
    fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    assert_eq!(SledLedger::open(dir.path()).unwrap().warnings.len(), 1);
}

#[test]
fn a_newer_format_and_a_damaged_id() {
    let dir = TempDir::new().unwrap();
    let ledger = open(&dir);
    let id = ledger.id;
    ledger.store.write(&[put(FORMAT_KEY.to_owned(), &(FORMAT + 1))]).unwrap();
    drop(ledger);
    let text = SledLedger::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("format 2") && text.contains("Way out"), "{text}");
    fs::rename(dir.path().join("ledger"), dir.path().join("away")).unwrap();
    fs::write(dir.path().join("id"), b"nonsense").unwrap();
    let opened = SledLedger::open(dir.path()).unwrap();
    assert_eq!(opened.warnings.len(), 2, "{:?}", opened.warnings);
    assert_ne!(opened.ledger.id, id);
    assert!(dir.path().join("id.damaged-1").exists());
}

/// Damages sled's files in every way that a disk has, and opens the ledger: whole, or set aside with a warning. Never a
/// panic, never a wrong record, never an old one where the ledger is an anchor.
#[test]
fn damage_costs_pointers_only() {
    let whole = TempDir::new().unwrap();
    let head = origin(&SinkId::new("db"), 40).mark;
    {
        let ledger = open(&whole);
        ledger.close("job", &head).unwrap();
        anchored(&ledger, "console-only", 30);
    }
    let parts: Vec<PathBuf> =
        fs::read_dir(whole.path().join("ledger")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    assert!(parts.iter().any(|path| path.ends_with("db")));
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pick = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % u64::try_from(below.max(1)).unwrap()).unwrap()
    };
    let mut outcomes = BTreeMap::<&str, u32>::new();
    for round in 0..60 {
        let dir = TempDir::new().unwrap();
        copy(whole.path(), dir.path());
        let file = &parts[round % parts.len()];
        let path = dir.path().join("ledger").join(file.file_name().unwrap());
        let mut bytes = fs::read(&path).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).map_or(1, |last| last + 1);
        match round / parts.len() % 6 {
            0 => fs::remove_file(&path).unwrap(),
            1 => bytes.truncate(pick(used)),
            2 => (0..8).for_each(|_| bytes[pick(used)] ^= 1 << pick(8)),
            3 => bytes.truncate(pick(64)),
            4 => {
                let at = pick(used) / 512 * 512;
                bytes.iter_mut().skip(at).take(512).for_each(|b| *b = 0);
            }
            _ => bytes.iter_mut().skip(pick(used)).for_each(|b| *b = 0xff),
        }
        if path.exists() {
            fs::write(&path, &bytes).unwrap();
        }
        let opened = SledLedger::open(dir.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let closed = opened.ledger.closed("job", &lane()).unwrap();
        assert!(closed.is_none() || closed == Some(head.clone()), "round {round}: a wrong record");
        let mark = opened.ledger.held("console-only", &lane()).unwrap().mark;
        assert_eq!(mark.unwrap().plan.seq, 30, "round {round}");
        assert_eq!(opened.ledger.entries("console-only", &lane(), &files(), 0).unwrap().len(), 30, "round {round}");
        *outcomes.entry(if opened.warnings.is_empty() { "whole" } else { "set aside" }).or_default() += 1;
    }
    assert!(outcomes.get("set aside").is_some_and(|n| *n > 5), "{outcomes:?}");
}

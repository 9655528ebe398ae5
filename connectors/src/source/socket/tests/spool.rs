//! The spool alone: what is appended is read again, at the same positions, whatever a crash or a bad disk did.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use tempfile::tempdir;

use super::*;

#[test]
fn positions_are_the_same_at_each_read_and_after_a_restart() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), 200).unwrap();
    for n in 0..20 {
        spool.append(&mut group(&[format!("a{n}").as_bytes(), format!("b{n}").as_bytes()])).unwrap();
    }
    let before = records(&spool, 0).unwrap();
    assert_eq!(before.len(), 40);
    assert!(segments(dir.path()).len() > 5, "segments roll");
    assert_eq!(before, records(&spool, 0).unwrap());
    for (n, (position, _)) in before.iter().enumerate() {
        assert_eq!(records(&spool, position.parse().unwrap()).unwrap(), before[n..], "from each position");
    }
    let (id, end) = (spool.id, spool.end());
    drop(spool);
    let spool = Spool::open(dir.path(), 200).unwrap();
    assert_eq!((spool.id, spool.end(), spool.records()), (id, end, 40));
    assert_eq!(records(&spool, 0).unwrap(), before);
    spool.append(&mut group(&[b"next"])).unwrap();
    assert_eq!(records(&spool, end).unwrap()[0].1, b"next");
}

#[test]
fn budgets_cut_between_records_and_one_record_always_fits() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1000).unwrap();
    let big = vec![b'x'; 3_000_000];
    spool.append(&mut group(&[b"one", b"two", &big, b"four"])).unwrap();
    spool.append(&mut group(&[b"five"])).unwrap();
    for budget in [Budget { records: 1, bytes: usize::MAX }, Budget { records: usize::MAX, bytes: 1 }] {
        let (mut from, mut seen) = (0, Vec::new());
        while let Some(stretch) =
            Some(spool.read_ahead(&shard(), from, budget, None).unwrap()).filter(|s| s.records > 0)
        {
            assert_eq!(stretch.records, 1);
            let again = spool.read_span(&shard(), from, stretch.to).unwrap();
            assert_eq!(again.batch.slices[0].record(0), stretch.batch.slices[0].record(0));
            assert_eq!(again.batch.slices[0].position(0), stretch.batch.slices[0].position(0));
            seen.push(stretch.batch.slices[0].record(0).len());
            from = stretch.to;
        }
        assert_eq!(seen, [3, 3, 3_000_000, 4, 4]);
    }
    let two = spool.read_ahead(&shard(), 0, Budget { records: 2, bytes: usize::MAX }, None).unwrap();
    assert_eq!(two.records, 2);
    assert!(matches!(spool.read_span(&shard(), 0, two.to + 1), Err(Error::Damaged(_))), "not at a boundary");
    assert!(matches!(spool.read_span(&shard(), 0, spool.end() + 1), Err(Error::Damaged(_))), "beyond the end");
}

#[test]
fn released_segments_are_deleted_and_the_rest_stays_readable() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), 100).unwrap();
    for n in 0..10 {
        spool.append(&mut group(&[&[b'0' + n; 60]])).unwrap();
    }
    let all = records(&spool, 0).unwrap();
    for (n, (position, _)) in all.iter().enumerate() {
        let position = position.parse().unwrap();
        spool.release(position);
        spool.release(0);
        assert_eq!(records(&spool, position).unwrap(), all[n..]);
        assert!(spool.first() <= position && segments(dir.path()).len() == 10 - n);
    }
    assert!(matches!(records(&spool, 0), Err(Error::Damaged(_))), "what is released is not skipped silently");
    spool.release(spool.end());
    assert!(spool.is_drained() && segments(dir.path()).len() == 1);
    spool.append(&mut group(&[b"later"])).unwrap();
    assert_eq!(texts(&spool), ["later"], "the drained segment went with the roll");
    assert_eq!(spool.records(), 11);
}

/// A spool of three segments; the last holds three groups of two records.
fn three_segments(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let spool = Spool::open(dir, 1000).unwrap();
    spool.append(&mut group(&[&[b'a'; 1000]])).unwrap();
    spool.append(&mut group(&[&[b'b'; 1000]])).unwrap();
    for n in 0..3 {
        spool.append(&mut group(&[format!("first {n}").as_bytes(), format!("second {n}").as_bytes()])).unwrap();
    }
    assert_eq!(segments(dir).len(), 3);
    records(&spool, 0).unwrap()
}

#[test]
fn a_tail_cut_at_any_byte_keeps_every_whole_record_and_the_spool_goes_on() {
    let origin = tempdir().unwrap();
    let all = three_segments(origin.path());
    let last = segments(origin.path()).pop().unwrap();
    let bytes = fs::read(&last).unwrap();
    for cut in 64..=bytes.len() {
        let dir = tempdir().unwrap();
        copy_dir(origin.path(), dir.path());
        let path = dir.path().join(last.file_name().unwrap());
        fs::write(&path, &bytes[..cut]).unwrap();
        let spool = Spool::open(dir.path(), 1000).unwrap();
        let kept = records(&spool, 0).unwrap();
        assert_eq!(kept, all[..kept.len()], "cut at {cut}");
        let whole = all.iter().filter(|(at, record)| {
            let base: u64 = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            at.parse::<u64>().unwrap() + (entry::HEAD + record.len()) as u64 <= base + cut as u64
        });
        assert_eq!(kept.len(), whole.count(), "cut at {cut}");
        assert_eq!(spool.records(), kept.len() as u64);
        spool.append(&mut group(&[b"after the crash"])).unwrap();
        drop(spool);
        let spool = Spool::open(dir.path(), 1000).unwrap();
        assert_eq!(texts(&spool).len(), kept.len() + 1, "cut at {cut}");
    }
}

#[test]
fn a_flipped_byte_is_an_error_or_a_shorter_last_group_but_never_other_records() {
    let origin = tempdir().unwrap();
    let all = three_segments(origin.path());
    let last_group = all[all.len() - 2].0.parse::<u64>().unwrap() - entry::GROUP as u64;
    let mut errors = 0;
    for path in segments(origin.path()) {
        let base: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).filter(|at| *at < 120 || base > 2000 || at % 97 == 0) {
            let dir = tempdir().unwrap();
            copy_dir(origin.path(), dir.path());
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x40;
            fs::write(dir.path().join(path.file_name().unwrap()), flipped).unwrap();
            match Spool::open(dir.path(), 1000).and_then(|spool| records(&spool, 0)) {
                Err(Error::Damaged(_)) => errors += 1,
                Err(error) => panic!("byte {at} of {}: {error}", path.display()),
                Ok(kept) => {
                    assert_eq!(kept, all[..kept.len()], "byte {at} of {}", path.display());
                    let position = base + at as u64;
                    assert!(position >= last_group, "byte {at} of {}: durable records are cut off", path.display());
                }
            }
        }
    }
    assert!(errors > 200, "{errors}");
}

#[test]
fn a_missing_middle_segment_is_never_skipped() {
    let dir = tempdir().unwrap();
    let all = three_segments(dir.path());
    fs::remove_file(&segments(dir.path())[1]).unwrap();
    let spool = Spool::open(dir.path(), 1000).unwrap();
    assert!(matches!(records(&spool, 0), Err(Error::Damaged(_))));
    let third: u64 = all[2].0.parse().unwrap();
    assert_eq!(records(&spool, third).unwrap(), all[2..], "deletes may come back in any order after a power cut");
    spool.release(third);
    assert_eq!(segments(dir.path()).len(), 1, "what lies before the unbroken run goes at the next release");
}

#[test]
fn a_lost_id_is_taken_from_the_segments_and_a_foreign_segment_is_refused() {
    let dir = tempdir().unwrap();
    let all = three_segments(dir.path());
    let id = fs::read_to_string(dir.path().join("id")).unwrap();
    for text in [None, Some("garbage")] {
        match text {
            None => fs::remove_file(dir.path().join("id")).unwrap(),
            Some(text) => fs::write(dir.path().join("id"), text).unwrap(),
        }
        assert_eq!(records(&Spool::open(dir.path(), 1000).unwrap(), 0).unwrap(), all);
        assert_eq!(fs::read_to_string(dir.path().join("id")).unwrap(), id);
    }
    let other = tempdir().unwrap();
    three_segments(other.path());
    let foreign = segments(other.path()).pop().unwrap();
    fs::copy(&foreign, dir.path().join(foreign.file_name().unwrap())).unwrap();
    assert!(matches!(Spool::open(dir.path(), 1000), Err(Error::Damaged(_))));
}

#[test]
fn a_write_that_fails_is_tried_again_at_the_same_place() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1000).unwrap();
    spool.append(&mut group(&[b"before"])).unwrap();
    let mut again = group(&[b"again"]);
    spool.full.store(true, Ordering::Release);
    let end = spool.end();
    for _ in 0..3 {
        assert!(matches!(spool.append(&mut again), Err(Error::Io { .. })));
        assert_eq!((spool.end(), texts(&spool)), (end, vec!["before".to_owned()]));
    }
    spool.full.store(false, Ordering::Release);
    spool.append(&mut again).unwrap();
    assert_eq!(texts(&spool), ["before", "again"]);
}

#[test]
fn one_process_at_a_time() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1000).unwrap();
    let Err(error) = Spool::open(dir.path(), 1000) else { panic!("opened twice") };
    assert!(error.to_string().contains("has this spool open"), "{error}");
    drop(spool);
    Spool::open(dir.path(), 1000).unwrap();
}

#[test]
fn a_spool_put_aside_leaves_an_empty_one_with_another_id() {
    let dir = tempdir().unwrap();
    three_segments(dir.path());
    let spool = Spool::open(dir.path(), 1000).unwrap();
    let new = spool.set_aside().unwrap();
    assert_ne!(new.id, spool.id);
    assert_eq!((new.first(), new.records(), texts(&new).len()), (0, 0, 0));
    let aside = dir.path().join(format!("aside-{}-1", spool.id));
    drop((spool, new));
    assert_eq!(texts(&Spool::open(&aside, 1000).unwrap()).len(), 8, "what was put aside is a spool still");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Appends, releases and restarts in any order, with a torn group at each restart: held to a list of records.
    #[test]
    fn any_history_reads_as_a_list(
        segment_bytes in 64_u64..600,
        steps in prop::collection::vec((0_u8..4, prop::collection::vec(0_usize..200, 1..4)), 1..25),
    ) {
        let dir = tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), segment_bytes).unwrap();
        let (mut model, mut released): (Vec<Vec<u8>>, usize) = (Vec::new(), 0);
        let mut at = 0;
        for (n, (step, sizes)) in steps.into_iter().enumerate() {
            let new: Vec<Vec<u8>> = sizes.iter().map(|size| vec![n as u8; *size]).collect();
            let mut bytes = group(&new.iter().map(Vec::as_slice).collect::<Vec<_>>());
            match step {
                0 | 1 => {
                    spool.append(&mut bytes).unwrap();
                    model.extend(new);
                }
                2 => {
                    let budget = Budget { records: sizes.len(), bytes: usize::MAX };
                    let stretch = spool.read_ahead(&shard(), at, budget, None).unwrap();
                    (at, released) = (stretch.to, released + stretch.records);
                    spool.release(at);
                }
                _ => {
                    let last = segments(dir.path()).pop().unwrap();
                    drop(spool);
                    let mut torn = fs::read(&last).unwrap();
                    bytes.truncate(sizes[0]);
                    torn.extend(bytes);
                    fs::write(&last, torn).unwrap();
                    spool = Spool::open(dir.path(), segment_bytes).unwrap();
                    spool.release(at);
                }
            }
            let read: Vec<Vec<u8>> = records(&spool, at).unwrap().into_iter().map(|(_, record)| record).collect();
            prop_assert_eq!(&read, &model[released..]);
            let waiting = spool.waiting(at).map_or(0, |(waiting, _)| waiting);
            prop_assert_eq!(waiting, (model.len() - released) as u64);
        }
    }
}

/// The chain at every border between records, by reading up to it, by asking for it, and after a restart.
#[test]
fn a_chain_is_the_same_however_it_is_come_by() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), 200).unwrap();
    for n in 0..12 {
        spool.append(&mut group(&[format!("a{n}").as_bytes(), format!("b{n}").as_bytes()])).unwrap();
    }
    let mut chains = Vec::new();
    let one = Budget { records: 1, bytes: usize::MAX };
    let (mut at, mut chain) = (0, spool.chain_at(0).unwrap());
    loop {
        let stretch = spool.read_ahead(&shard(), at, one, chain).unwrap();
        if stretch.records == 0 {
            break;
        }
        assert_eq!(stretch.chain, spool.chain_at(stretch.to).unwrap(), "at {}", stretch.to);
        chains.push((stretch.to, stretch.chain));
        (at, chain) = (stretch.to, stretch.chain);
    }
    assert_eq!(chains.len(), 24);
    assert_eq!(chains.iter().map(|(_, chain)| chain.unwrap().0).collect::<std::collections::BTreeSet<_>>().len(), 24);
    for records in [2, 3, 7, 100] {
        let budget = Budget { records, bytes: usize::MAX };
        let stretch = spool.read_ahead(&shard(), chains[1].0, budget, chains[1].1).unwrap();
        assert!(chains.contains(&(stretch.to, stretch.chain)), "{records} records at a time");
    }
    assert_eq!(spool.chain_at(chains[0].0 + 1).unwrap(), None, "no record ends there");
    assert_eq!(spool.chain_at(spool.end() + 1).unwrap(), None);
    drop(spool);
    let spool = Spool::open(dir.path(), 200).unwrap();
    for (at, chain) in &chains {
        assert_eq!(spool.chain_at(*at).unwrap(), *chain);
    }
    // Released segments take nothing of it away.
    spool.release(chains[15].0);
    assert!(spool.first() > 0);
    for (at, chain) in chains.iter().filter(|(at, _)| *at >= spool.first()) {
        assert_eq!(spool.chain_at(*at).unwrap(), *chain);
    }
}

#[test]
fn copies_that_take_the_same_bytes_part() {
    let (dir, copy) = (tempdir().unwrap(), tempdir().unwrap());
    let spool = Spool::open(dir.path(), 4096).unwrap();
    spool.append(&mut group(&[b"before"])).unwrap();
    let fork = spool.end();
    copy_dir(dir.path(), copy.path());
    let other = Spool::open(copy.path(), 4096).unwrap();
    assert_eq!(spool.chain_at(fork).unwrap(), other.chain_at(fork).unwrap());
    for spool in [&spool, &other] {
        spool.append(&mut group(&[b"same"])).unwrap();
    }
    assert_eq!((spool.id, spool.end()), (other.id, other.end()));
    assert_ne!(spool.chain_at(spool.end()).unwrap(), other.chain_at(other.end()).unwrap());
    assert_eq!(spool.chain_at(fork).unwrap(), other.chain_at(fork).unwrap());
    // Each claim has its own number too.
    let before = spool.chain_at(spool.end()).unwrap();
    spool.begin_epoch();
    spool.append(&mut group(&[b"same"])).unwrap();
    other.append(&mut group(&[b"same"])).unwrap();
    assert!(before.is_some() && spool.chain_at(spool.end()).unwrap() != other.chain_at(other.end()).unwrap());
}

/// Segments of older versions do not say the chain before them: it begins with them, at each look the same.
#[test]
fn segments_without_a_chain_begin_one() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), 100).unwrap();
    for n in 0..4 {
        spool.append(&mut group(&[format!("record {n}").as_bytes(), b"and another"])).unwrap();
    }
    let id = spool.id;
    drop(spool);
    for path in segments(dir.path()) {
        let mut bytes = fs::read(&path).unwrap();
        bytes[40..49].fill(0);
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        fs::write(&path, bytes).unwrap();
    }
    let spool = Spool::open(dir.path(), 100).unwrap();
    let bases: Vec<u64> =
        segments(dir.path()).iter().map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap()).collect();
    assert!(bases.len() > 2);
    for base in &bases {
        assert_eq!(spool.chain_at(*base).unwrap(), Some(entry::Chain::seed(id, *base)));
    }
    // A plan that ends where such a segment begins has the check that an adoption finds.
    let (mut at, mut chain) = (0, spool.chain_at(0).unwrap());
    while at < spool.end() {
        let stretch = spool.read_ahead(&shard(), at, Budget { records: 1, bytes: usize::MAX }, chain).unwrap();
        assert_eq!(stretch.chain, spool.chain_at(stretch.to).unwrap(), "at {}", stretch.to);
        (at, chain) = (stretch.to, stretch.chain);
    }
    // What follows has it in its head.
    spool.append(&mut group(&[b"new"])).unwrap();
    let end = spool.end();
    let before = spool.chain_at(end).unwrap();
    spool.append(&mut group(&[b"newer"])).unwrap();
    assert_eq!(spool.chain_at(end).unwrap(), before);
}

#[test]
fn nothing_is_durable_in_a_folder_that_was_taken_away() {
    let root = tempdir().unwrap();
    let (dir, away) = (root.path().join("spool"), root.path().join("away"));
    let spool = Spool::open(&dir, 150).unwrap();
    spool.append(&mut group(&[b"first"])).unwrap();
    let refused = |record: &[u8]| {
        let Err(Error::Io { cause, .. }) = spool.append(&mut group(&[record])) else { panic!() };
        cause.to_string()
    };
    let end = spool.end();
    fs::rename(&dir, &away).unwrap();
    assert!(refused(b"second").contains("removed, moved or replaced"));
    // Another folder in its place: an empty mount point, a copy.
    copy_dir(&away, &dir);
    assert!(refused(b"second").contains("removed, moved or replaced"));
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!((spool.end(), spool.records()), (end, 1));
    fs::rename(&away, &dir).unwrap();
    spool.append(&mut group(&[b"second"])).unwrap();
    spool.append(&mut group(&[b"third, which fills the segment"])).unwrap();
    // The next one would be the first of a new segment, in a folder that has none of those before.
    fs::rename(&dir, &away).unwrap();
    fs::create_dir(&dir).unwrap();
    assert!(refused(b"fourth").contains("removed, moved or replaced"));
    assert_eq!(segments(&dir).len(), 0);
    fs::remove_dir(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    spool.append(&mut group(&[b"fourth"])).unwrap();
    assert_eq!(spool.records(), 4);
    drop(spool);
    assert_eq!(texts(&Spool::open(&dir, 150).unwrap()).len(), 4);
    // Unlinked alone, with its folder in place.
    let spool = Spool::open(&dir, 10_000).unwrap();
    segments(&dir).iter().for_each(|path| fs::remove_file(path).unwrap());
    assert!(spool.append(&mut group(&[b"fifth"])).is_err());
}

/// What an operator may set a lane to: a border between records that the spool has, and nothing else. Looked for beside the
/// process that has the spool open.
#[test]
fn a_position_is_found_where_a_record_begins_or_ends() {
    use crate::source::{Found, socket::spool::find};
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), 200).unwrap();
    for n in 0..20 {
        spool.append(&mut group(&[format!("a{n}").as_bytes(), format!("b{n}").as_bytes()])).unwrap();
    }
    let id = spool.id.to_string();
    let found = |position: u64| find(dir.path(), &id, position).unwrap();
    let starts: Vec<u64> = records(&spool, 0).unwrap().iter().map(|(position, _)| position.parse().unwrap()).collect();
    for start in &starts {
        assert_eq!(found(*start), Found::There { is_end: false }, "{start}");
        assert!(
            matches!(found(start + 1), Found::Nowhere(what) if what.contains("in the middle of a record")),
            "{start}"
        );
    }
    assert_eq!(found(0), Found::There { is_end: false });
    assert_eq!(found(spool.end()), Found::There { is_end: true });
    for beyond in [spool.end() + 1, u64::MAX] {
        assert!(matches!(found(beyond), Found::Nowhere(what) if what.contains("beyond its end")), "{beyond}");
    }
    spool.release(starts[30]);
    assert!(matches!(found(0), Found::Nowhere(what) if what.contains("before its beginning")));
    let other = uuid::Uuid::new_v4().to_string();
    assert!(matches!(find(dir.path(), &other, 0).unwrap(), Found::Foreign(_)));
    assert!(matches!(find(&dir.path().join("none"), &id, 0).unwrap(), Found::Foreign(_)));
}

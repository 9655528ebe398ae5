//! The contract of marked sinks: each sentence of the trait `Sink` and of `Permit` is a case, for every sink.

use std::{fs, path::Path, sync::Arc};

use crate::sinks::*;
use tidemill_checkpoint::{Entry, Lane, Permit};
use tidemill_connectors::sink::{Sink, SinkError};

/// What a sink is tried with: a way to open it again on the same folder, and the folder.
struct Rig {
    kind: Kind,
    dir: tempfile::TempDir,
    /// The ledger's lock is exclusive: there is one of it.
    only: Option<Arc<dyn Sink>>,
}

impl Rig {
    fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let only = (kind == Kind::Ledger).then(|| make(kind, dir.path()));
        Self { kind, dir, only }
    }
    fn open(&self) -> Arc<dyn Sink> {
        self.only.clone().unwrap_or_else(|| make(self.kind, self.dir.path()))
    }
    /// All that is there: files, and the tables of a database.
    fn things(&self) -> Vec<String> {
        let mut found = listing(self.dir.path());
        if self.kind == Kind::Postgres {
            found.extend(postgres::relations(self.dir.path()));
        }
        found
    }
    fn rows(&self) -> Vec<i64> {
        rows(self.kind, self.dir.path())
    }
    fn expect(&self, last: u64) {
        assert_eq!(self.rows(), expected(self.kind, last), "{:?}", self.kind);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        forget(self.kind, self.dir.path());
    }
}

fn lane() -> Lane {
    Lane::single()
}

fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten() {
            let path = entry.unwrap().path();
            found.push(path.display().to_string());
            open.push(path);
        }
    }
    found.sort();
    found
}

/// Runs a case for every marked sink, in a runtime of its own.
fn each(case: impl AsyncFn(&Rig)) {
    for kind in marked() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        println!("{kind:?}");
        runtime.block_on(case(&Rig::new(kind)));
    }
}

#[test]
fn opening_and_peeking_change_and_create_nothing() {
    each(async |rig| {
        let sink = rig.open();
        let before = rig.things();
        let held = sink.peek(&[lane(), Lane::new("topic/3")]).await.unwrap();
        assert_eq!(held.len(), 2);
        assert!(held.values().all(|held| held.claim.is_none() && held.mark.is_none()));
        assert!(sink.history(&lane(), &log(), 0).await.unwrap().is_empty());
        assert_eq!(rig.things(), before);

        Runner::claim(sink.clone(), &lane(), 1).await.unwrap().run(2).await.unwrap();
        drop(sink);
        if rig.kind != Kind::Ledger {
            // What a commit does off the critical path ends before the names are compared.
            std::thread::sleep(std::time::Duration::from_millis(50));
            let before = rig.things();
            assert_eq!(rig.open().peek(&[lane()]).await.unwrap()[&lane()].mark.as_ref().unwrap().plan.seq, 2);
            assert_eq!(rig.things(), before);
        }
    });
}

#[test]
fn a_claim_returns_the_key_and_the_mark_and_peek_tells_them() {
    each(async |rig| {
        let mut first = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        assert_eq!((first.key.generation, &first.head), (generation(1), &None));
        first.run(3).await.unwrap();
        rig.expect(3);
        let held = rig.open().peek(&[lane()]).await.unwrap().remove(&lane()).unwrap();
        let claim = held.claim.unwrap();
        assert_eq!((claim.generation, claim.owner, claim.released), (generation(1), owner(1), false));
        assert_eq!(held.mark, first.head);
        let mut second = Runner::claim(rig.open(), &lane(), 2).await.unwrap();
        assert_eq!((second.key.generation, &second.head), (generation(2), &first.head));
        second.run(5).await.unwrap();
        rig.expect(5);
    });
}

#[test]
fn only_a_higher_generation_claims() {
    each(async |rig| {
        let sink = rig.open();
        sink.claim(&lane(), generation(5), &owner(1)).await.unwrap();
        for lower in [1, 4, 5] {
            let error = sink.claim(&lane(), generation(lower), &owner(2)).await.err().unwrap();
            assert!(
                matches!(error, SinkError::Fenced { held, mine, .. } if held == generation(5) && mine == generation(lower))
            );
        }
        assert_eq!(sink.peek(&[lane()]).await.unwrap()[&lane()].claim.as_ref().unwrap().owner, owner(1));
        sink.claim(&lane(), generation(6), &owner(2)).await.unwrap();
    });
}

#[test]
fn a_fenced_key_writes_nothing() {
    each(async |rig| {
        let mut old = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        old.run(2).await.unwrap();
        // Staged before the other claims: the rows are ready, the right is gone.
        let (mark, entries) = next(&old.key, old.head.as_ref().unwrap(), &[], 0);
        let only = rig.kind == Kind::Ledger;
        let rows = if only { vec![] } else { vec![batch(3)] };
        let staged = old.sink.stage(&context(&old.key, &mark, only), &rows).await.unwrap();
        let mut new = Runner::claim(rig.open(), &lane(), 2).await.unwrap();
        let permit = Permit::anchor(old.key.clone(), old.head.as_ref().map(|head| head.digest), mark, entries);
        let result = old.sink.commit(vec![(permit, staged)]).await.pop().unwrap();
        assert!(is_fenced(&result), "{result:?}");
        rig.expect(2);
        new.run(4).await.unwrap();
        assert!(is_fenced(&old.step().await));
        old.sink.release(&old.key).await.unwrap();
        assert!(!rig.open().peek(&[lane()]).await.unwrap()[&lane()].claim.as_ref().unwrap().released);
        new.run(5).await.unwrap();
        rig.expect(5);
    });
}

#[test]
fn a_commit_is_a_compare_and_swap() {
    each(async |rig| {
        let mut runner = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        runner.run(1).await.unwrap();
        let head = runner.head.clone().unwrap();
        let (mark, _) = next(&runner.key, &head, &[], 0);
        for wrong in [None, Some(mark.digest)] {
            let error = commit(&*runner.sink, &runner.key, wrong, &mark, Vec::new()).await.err().unwrap();
            assert!(
                matches!(error, SinkError::Conflict { found, expected, .. } if found == Some(head.digest) && expected == wrong),
                "{error}"
            );
        }
        rig.expect(1);
        // The same plan twice: nothing is written, the receipt is the same.
        runner.step().await.unwrap();
        for _ in 0..2 {
            let receipt = commit(&*runner.sink, &runner.key, Some(head.digest), &mark, Vec::new()).await.unwrap();
            assert_eq!((receipt.digest(), receipt.rejected()), (mark.digest, 0));
        }
        rig.expect(2);
        runner.run(3).await.unwrap();
        rig.expect(3);
    });
}

#[test]
fn a_mark_without_rows_is_a_mark() {
    each(async |rig| {
        let mut runner = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        runner.run(1).await.unwrap();
        let head = runner.head.clone().unwrap();
        let (mark, _) = next(&runner.key, &head, &[], 0);
        let staged = runner.sink.stage(&context(&runner.key, &mark, true), &[]).await.unwrap();
        let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark.clone(), Vec::new());
        runner.sink.commit(vec![(permit, staged)]).await.pop().unwrap().unwrap();
        rig.expect(1);
        assert_eq!(rig.open().peek(&[lane()]).await.unwrap()[&lane()].mark.as_ref(), Some(&mark));
    });
}

#[test]
fn what_is_staged_and_dropped_is_withdrawn() {
    each(async |rig| {
        let mut runner = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        runner.run(1).await.unwrap();
        if rig.kind == Kind::Ledger {
            return;
        }
        for _ in 0..40 {
            let (mark, _) = next(&runner.key, runner.head.as_ref().unwrap(), &[], 0);
            drop(runner.sink.stage(&context(&runner.key, &mark, false), &[batch(2)]).await.unwrap());
        }
        rig.expect(1);
        let waiting = listing(rig.dir.path()).into_iter().filter(|path| path.contains("/tmp/")).count();
        assert!(waiting <= 32, "{waiting} temporaries were left behind");
        runner.run(2).await.unwrap();
        rig.expect(2);
    });
}

#[test]
fn staging_that_is_cut_off_anywhere_leaves_nothing_and_the_lane_goes_on() {
    each(async |rig| {
        let mut runner = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        runner.run(1).await.unwrap();
        let only = rig.kind == Kind::Ledger;
        let mut cut = 0;
        for round in 0..40_u64 {
            let (mark, _) = next(&runner.key, runner.head.as_ref().unwrap(), &[], 0);
            let context = context(&runner.key, &mark, only);
            let rows = if only { vec![] } else { vec![batch(mark.plan.seq)] };
            // Let go before it begins, at once after that, and a little later each time.
            let mut stage = runner.sink.stage(&context, &rows);
            let mut ready = false;
            for _ in 0..round % 8 {
                ready = ready || futures::poll!(stage.as_mut()).is_ready();
                tokio::task::yield_now().await;
            }
            drop(stage);
            cut += u32::from(round % 8 > 0 && !ready);
            if round % 8 == 7 {
                runner.step().await.unwrap();
            }
        }
        assert!(rig.kind != Kind::Files || cut > 0, "no future was dropped");
        rig.expect(runner.seq().unwrap());
        // What was cut off may still write for a moment; a claim puts away what it left.
        let mut runner = Runner::claim(rig.open(), &lane(), 2).await.unwrap();
        let last = runner.seq().unwrap() + 1;
        runner.run(last).await.unwrap();
        rig.expect(last);
        let waiting = listing(rig.dir.path()).into_iter().filter(|path| path.contains("/tmp/")).count();
        assert!(waiting <= 32, "{waiting} temporaries were left behind");
    });
}

#[test]
fn a_sink_says_what_it_guarantees_and_has_no_rejects_of_a_lane_that_had_none() {
    each(async |rig| {
        let sink = rig.open();
        assert!(keeps_marks(&*sink));
        assert_eq!(*sink.id(), id(rig.kind));
        let mut runner = Runner::claim(sink.clone(), &lane(), 1).await.unwrap();
        runner.run(2).await.unwrap();
        assert_eq!(sink.rejects(&lane(), 0).await.unwrap(), []);
        // Preparing is outside of any batch, and may be repeated.
        for _ in 0..2 {
            sink.prepare(&batch(1).schema()).await.unwrap();
        }
        runner.run(3).await.unwrap();
        rig.expect(3);
    });
}

/// A sink that was the anchor before becomes it again, and is given the whole list: some of it is there already.
#[test]
fn entries_that_are_given_again_replace_those_that_are_there() {
    each(async |rig| {
        let mut runner = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        runner.run(0).await.unwrap();
        runner.step_with(&["a", "b"], 0).await.unwrap();
        let head = runner.head.clone().unwrap();
        let (mark, mut entries) = next(&runner.key, &head, &["c"], 0);
        let again = [(0, "a"), (1, "other")];
        entries.splice(0..0, again.map(|(number, text)| Entry { log: log(), number, text: text.into() }));
        commit(&*runner.sink, &runner.key, Some(head.digest), &mark, entries).await.unwrap();
        let expected = [(0, "a"), (1, "other"), (2, "c")].map(|(number, text)| (number, text.to_owned()));
        let read = async || {
            let entries = rig.open().history(&lane(), &log(), 0).await.unwrap();
            entries.into_iter().map(|entry| (entry.number, entry.text)).collect::<Vec<_>>()
        };
        assert_eq!(read().await, expected);
        Runner::claim(rig.open(), &lane(), 2).await.unwrap();
        assert_eq!(read().await, expected);
    });
}

#[test]
fn entries_come_back_in_order_and_pruned_ones_do_not() {
    each(async |rig| {
        let mut runner = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        runner.run(0).await.unwrap();
        runner.step_with(&["a", "b"], 0).await.unwrap();
        runner.step_with(&[], 0).await.unwrap();
        runner.step_with(&["c\n\"ö\""], 0).await.unwrap();
        let read = async |from| {
            let entries = rig.open().history(&lane(), &log(), from).await.unwrap();
            entries.into_iter().map(|entry| (entry.number, entry.text)).collect::<Vec<_>>()
        };
        let all = [(0, "a"), (1, "b"), (2, "c\n\"ö\"")].map(|(n, text)| (n, text.to_owned()));
        assert_eq!(read(0).await, all);
        assert_eq!(read(2).await, all[2..]);
        assert_eq!(read(3).await, []);
        assert!(rig.open().history(&lane(), &tidemill_checkpoint::LogName::new("other"), 0).await.unwrap().is_empty());
        let mut runner = Runner::claim(rig.open(), &lane(), 2).await.unwrap();
        assert_eq!(read(0).await, all);
        runner.step_with(&["d"], 2).await.unwrap();
        let left = [(2, "c\n\"ö\""), (3, "d")].map(|(n, text)| (n, text.to_owned()));
        assert_eq!(read(0).await, left);
        Runner::claim(rig.open(), &lane(), 3).await.unwrap();
        assert_eq!(read(0).await, left);
    });
}

#[test]
fn a_beat_changes_what_peek_shows_and_nothing_else() {
    each(async |rig| {
        let sink = rig.open();
        let mut runner = Runner::claim(sink.clone(), &lane(), 1).await.unwrap();
        runner.run(1).await.unwrap();
        let peek = async || sink.peek(&[lane()]).await.unwrap().remove(&lane()).unwrap();
        let mut last = peek().await;
        for _ in 0..3 {
            sink.beat(&runner.key).await.unwrap();
            let now = peek().await;
            assert_ne!(now.beat, last.beat);
            assert_eq!((&now.claim, &now.mark), (&last.claim, &last.mark));
            last = now;
        }
        runner.run(2).await.unwrap();
        if rig.kind != Kind::Ledger {
            Runner::claim(rig.open(), &lane(), 2).await.unwrap();
            let last = peek().await.beat;
            assert!(is_fenced(&sink.beat(&runner.key).await));
            assert_eq!(peek().await.beat, last, "a fenced owner looks alive");
        }
    });
}

#[test]
fn a_release_shows_and_the_next_claim_takes_it_back() {
    each(async |rig| {
        let mut runner = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        runner.run(2).await.unwrap();
        runner.sink.release(&runner.key).await.unwrap();
        runner.sink.release(&runner.key).await.unwrap();
        let held = rig.open().peek(&[lane()]).await.unwrap().remove(&lane()).unwrap();
        assert!(held.claim.unwrap().released);
        assert_eq!(held.mark, runner.head);
        let mut runner = Runner::claim(rig.open(), &lane(), 2).await.unwrap();
        assert!(!rig.open().peek(&[lane()]).await.unwrap()[&lane()].claim.as_ref().unwrap().released);
        runner.run(3).await.unwrap();
        rig.expect(3);
    });
}

#[test]
fn of_eight_claims_of_a_generation_one_wins() {
    each(async |rig| {
        for n in 1..=10 {
            let claims = (0..8).map(|_| {
                let sink = rig.open();
                tokio::spawn(async move { sink.claim(&lane(), generation(n), &owner(1)).await })
            });
            let claims: Vec<_> = claims.collect();
            let mut won = 0;
            for claim in claims {
                match claim.await.unwrap() {
                    Ok(_) => won += 1,
                    Err(error) => assert!(matches!(error, SinkError::Fenced { .. }), "{error}"),
                }
            }
            assert_eq!(won, 1, "{:?}, generation {n}", rig.kind);
        }
        let mut runner = Runner::claim(rig.open(), &lane(), 1).await.unwrap();
        assert_eq!(runner.key.generation, generation(11));
        runner.run(2).await.unwrap();
        rig.expect(2);
    });
}

#[test]
fn racing_runners_never_lose_and_never_double_a_row() {
    each(async |rig| {
        let began = std::time::Instant::now();
        let run = |instance: u128| {
            let sink = rig.open();
            tokio::spawn(async move {
                for tries in 1u64.. {
                    // Some pauses end in the middle of another's batch. They grow, so that on a slow disk too somebody
                    // gets to commit in between.
                    let pause = (tries * 7 + instance as u64 * 11) % 31 * (1 + tries / 10);
                    tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
                    assert!(began.elapsed() < std::time::Duration::from_secs(120), "no end");
                    let Ok(mut runner) = Runner::claim(sink.clone(), &lane(), instance).await else { continue };
                    for _ in 0..3 {
                        if runner.seq() == Some(12) {
                            return;
                        }
                        match runner.step().await {
                            Ok(_) => {}
                            Err(SinkError::Fenced { .. } | SinkError::Transient { .. }) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        };
        let runners = [run(1), run(2), run(3)];
        for runner in runners {
            runner.await.unwrap();
        }
        // The last claim may have been cut between its mark and its names: the next one finishes that.
        Runner::claim(rig.open(), &lane(), 9).await.unwrap();
        rig.expect(12);
    });
}

#[test]
fn lanes_are_independent_in_a_group() {
    each(async |rig| {
        let sink = rig.open();
        let lanes = [Lane::new("topic/0"), Lane::new("topic/1"), Lane::new("topic/2")];
        let mut runners = Vec::new();
        for lane in &lanes {
            let mut runner = Runner::claim(sink.clone(), lane, 1).await.unwrap();
            runner.run(0).await.unwrap();
            runners.push(runner);
        }
        // The second lane is taken away: its commit is fenced, the others' are not.
        let other = rig.open();
        Runner::claim(other, &lanes[1], 2).await.unwrap();
        let mut group = Vec::new();
        let only = rig.kind == Kind::Ledger;
        for (seq, runner) in (1..).zip(&runners) {
            let (mark, entries) = next(&runner.key, runner.head.as_ref().unwrap(), &[], 0);
            let rows = if only { vec![] } else { vec![batch(seq)] };
            // A lane that is lost already may be refused at once.
            let Ok(staged) = sink.stage(&context(&runner.key, &mark, only), &rows).await else { continue };
            let expected = runner.head.as_ref().map(|head| head.digest);
            group.push((Permit::anchor(runner.key.clone(), expected, mark, entries), staged));
        }
        let lanes_in: Vec<Lane> = group.iter().map(|(permit, _)| permit.key().lane.clone()).collect();
        let results = sink.commit(group).await;
        for (lane, result) in lanes_in.iter().zip(&results) {
            assert_eq!(is_fenced(result), *lane == lanes[1], "{lane}: {result:?}");
        }
        let rows = rig.rows();
        let expect = if only { vec![] } else { vec![10, 11, 12, 30, 31, 32] };
        assert_eq!(rows, expect);
        let held = sink.peek(&lanes).await.unwrap();
        let seqs: Vec<u64> = lanes.iter().map(|lane| held[lane].mark.as_ref().unwrap().plan.seq).collect();
        assert_eq!(seqs, [1, 0, 1]);
    });
}

#[test]
fn two_sinks_and_two_jobs_in_one_place_do_not_meet() {
    for kind in marked().into_iter().filter(|kind| *kind != Kind::Ledger) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let rig = Rig::new(kind);
            let dir = &rig.dir;
            let one = rig.open();
            let config = match kind {
                Kind::Sqlite => tidemill_config::SinkKind::Sqlite {
                    path: dir.path().join("deep/../deep/rows.db"),
                    table: "rows".into(),
                    mode: tidemill_config::Mode::Append,
                    on_new_column: tidemill_config::OnNewColumn::Fail,
                },
                Kind::Mariadb | Kind::Mysql => mysql::config(&mysql::url(kind, dir.path()), "rows", &[], None),
                Kind::Postgres => {
                    tidemill_config::SinkKind::Postgres(postgres::config(&postgres::url(dir.path()), "rows", &[], None))
                }
                Kind::Kafka => tidemill_config::SinkKind::Kafka(kafka::config(dir.path())),
                _ => tidemill_config::SinkKind::Files(files(dir.path(), None)),
            };
            let two = tidemill_connectors::sink::open(id(kind), "other", &config).unwrap();
            let mut one = Runner::claim(one, &lane(), 1).await.unwrap();
            one.run(2).await.unwrap();
            let mut two = Runner::claim(two, &lane(), 2).await.unwrap();
            assert_eq!((two.key.generation, two.seq()), (generation(1), None));
            two.run(1).await.unwrap();
            one.run(3).await.unwrap();
            let mut all = [expected(kind, 3), expected(kind, 1)].concat();
            all.sort_unstable();
            assert_eq!(rows(kind, dir.path()), all);
        });
    }
}

#[test]
fn a_reset_forgets_marks_and_keeps_rows() {
    each(async |rig| {
        let sink = rig.open();
        sink.reset().await.unwrap();
        let mut runner = Runner::claim(sink.clone(), &lane(), 1).await.unwrap();
        runner.run(2).await.unwrap();
        sink.reset().await.unwrap();
        let held = sink.peek(&[lane()]).await.unwrap().remove(&lane()).unwrap();
        assert_eq!((held.claim, held.mark), (None, None));
        assert!(sink.history(&lane(), &log(), 0).await.unwrap().is_empty());
        rig.expect(2);
        if rig.kind != Kind::Ledger {
            assert!(is_fenced(&runner.step().await));
            let mut again = Runner::claim(rig.open(), &lane(), 2).await.unwrap();
            assert!(is_fenced(&runner.step().await), "the same number of another life");
            again.run(0).await.unwrap();
            rig.expect(2);
        }
    });
}

//! Lanes that move between daemons, with the test source: faults 16 (a lane that moves in mid-batch) and 18 (shards added),
//! and a source that gives fewer records in a replay. Always two real sinks, counted.

use std::{fs, io::Write, thread, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tidemill_tests::{Daemon, Folder, Rows, Run, daemon::tidemill, eventually};

fn job(lanes: &str, extra: &str) -> String {
    format!(
        "job: lanes\nlanes: {lanes}\ntrigger: asap\ntakeover_after: 1h\nbatch: {{ max_records: 10 }}\nsources:\n  in: {{ type: test, path: topic, \
         codec: json, schema: {{ shard: int64, n: int64 }} }}\n{extra}sinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n  \
         files: {{ type: files, path: files, codec: json }}\n"
    )
}

/// A topic, and what was written to it.
struct Topic<'a> {
    folder: &'a Folder,
    written: Vec<usize>,
}

impl<'a> Topic<'a> {
    fn new(folder: &'a Folder, shards: usize) -> Self {
        fs::create_dir_all(folder.join("topic/shards")).unwrap();
        let mut topic = Self { folder, written: Vec::new() };
        (0..shards).for_each(|_| topic.add_shard());
        topic
    }

    fn add_shard(&mut self) {
        self.folder.write(format!("topic/shards/{}", self.written.len()), "");
        self.written.push(0);
    }

    /// Appends records to a shard.
    fn append(&mut self, shard: usize, records: usize) {
        let path = self.folder.join(format!("topic/shards/{shard}"));
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        for _ in 0..records {
            writeln!(file, "{{\"shard\": {shard}, \"n\": {}}}", self.written[shard]).unwrap();
            self.written[shard] += 1;
        }
    }

    fn append_to_all(&mut self, records: usize) {
        (0..self.written.len()).for_each(|shard| self.append(shard, records));
    }

    /// Gives these shards to an owner: at once, as a broker does.
    fn assign(&self, owner: &str, shards: &[usize]) {
        let words: Vec<_> = shards.iter().map(ToString::to_string).collect();
        self.folder.publish(format!("topic/assign/{owner}"), words.join(" "));
    }

    fn expected(&self) -> Rows {
        let rows = self.written.iter().enumerate();
        let lines: Vec<_> = rows
            .flat_map(|(shard, count)| (0..*count).map(move |n| format!("{{\"shard\": {shard}, \"n\": {n}}}")))
            .collect();
        Rows::json(&lines.join("\n"))
    }

    fn count(&self) -> Result<(), String> {
        let query = "SELECT shard, n FROM rows ORDER BY rowid";
        let stored = Rows::try_sqlite(&self.folder.join("rows.db"), query).map_err(|e| e.to_string())?;
        stored.compare(&self.expected()).map_err(|difference| format!("the table: {difference}"))?;
        let files = Rows::files(&self.folder.join("files"));
        files.compare(&self.expected()).map_err(|difference| format!("the files: {difference}"))?;
        stored.assert_rising("n", Some("shard"));
        Ok(())
    }

    fn expect_all(&self, what: &str) {
        eventually(what, || self.count());
    }
}

/// A daemon with a data dir and an owner name of its own.
fn daemon_of(folder: &Folder, owner: &str, job: &str) -> Run {
    let config = folder.write(format!("{owner}.yaml"), format!("owner: {owner}\n"));
    Run::new(folder).job(job).data_dir(format!("data-{owner}")).arg("--config").arg(config)
}

fn wait_until_stopped(daemon: &mut Daemon) {
    let status = format!("/proc/{}/status", daemon.pid());
    eventually("the daemon to be stopped at its failpoint", || {
        assert!(daemon.is_running(), "ended:\n{}", daemon.stderr());
        let text = fs::read_to_string(&status).map_err(|e| e.to_string())?;
        if text.contains("State:\tT") { Ok(()) } else { Err("it runs".into()) }
    });
}

/// `reset` forgets every lane: it is refused where another daemon owns any, whatever lane the command speaks of.
#[test]
fn a_reset_respects_the_owner_of_every_lane() {
    let folder = Folder::new();
    let mut topic = Topic::new(&folder, 1);
    topic.append(0, 30);
    topic.assign("a", &[0]);
    let text = job("partition", "");
    let mut first = daemon_of(&folder, "a", &text).spawn();
    topic.expect_all("the first to work");
    first.kill9();
    topic.assign("a", &[]);
    topic.assign("b", &[0]);
    let _second = daemon_of(&folder, "b", &text).spawn();
    topic.append(0, 30);
    topic.expect_all("the second to work");
    let reset = tidemill(&folder, &["checkpoint", "--data-dir", "data-a", "reset", "--sinks", "--yes"]);
    let said = String::from_utf8_lossy(&reset.stderr).into_owned();
    assert!(!reset.status.success() && said.contains("shard/0") && said.contains("owned by"), "{said}");
    topic.append(0, 30);
    topic.expect_all("the second to go on");
}

/// The lanes that a command of `checkpoint` prints as JSON.
fn lanes_of(folder: &Folder, arguments: &[&str]) -> Vec<(String, Value)> {
    let output = tidemill(folder, &[&["checkpoint", "--data-dir", "data-a"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lanes = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    lanes.map(|lane| lane.map(|lane| (lane["lane"].as_str().unwrap().to_owned(), lane)).unwrap()).collect()
}

#[test]
fn every_lane_is_shown_beside_a_daemon_and_without_one() {
    let folder = Folder::new();
    let mut topic = Topic::new(&folder, 2);
    topic.append_to_all(30);
    topic.assign("a", &[0, 1]);
    let mut daemon = daemon_of(&folder, "a", &job("partition", "")).spawn();
    topic.expect_all("all records");
    for beside in [true, false] {
        for command in [&["export"][..], &["show", "--json"]] {
            let lanes = lanes_of(&folder, command);
            assert_eq!(lanes.iter().map(|(lane, _)| &**lane).collect::<Vec<_>>(), ["shard/0", "shard/1"]);
            for (lane, shown) in lanes {
                for sink in ["db", "files"] {
                    let positions = shown["sinks"][sink]["mark"]["positions"].as_object().unwrap();
                    assert_eq!(positions.len(), 1, "{lane}: {shown}");
                }
                assert!(shown["ledger"]["closed"]["batch"].is_u64(), "{lane}: {shown}");
            }
        }
        assert_eq!(lanes_of(&folder, &["export", "--lane", "shard/1"]).len(), 1);
        let table = tidemill(&folder, &["checkpoint", "--data-dir", "data-a", "show"]);
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        assert!(table.contains("job lanes, lane shard/0\n") && table.contains("job lanes, lane shard/1\n"), "{table}");
        assert!(!table.contains("no mark"), "{table}");
        let join =
            tidemill(&folder, &["checkpoint", "--data-dir", "data-a", "resolve", "--sink", "db", "--join", "--yes"]);
        let said = String::from_utf8_lossy(&join.stderr).into_owned();
        assert!(said.contains("say which with --lane; this data dir has had shard/0, shard/1"), "{said}");
        if beside {
            daemon.term();
            daemon.expect_success();
        }
    }
}

/// The commands of a stop can be pasted: they name the data dir and the lane.
#[test]
fn the_way_out_of_a_stop_is_a_command_that_works_as_it_is() {
    let folder = Folder::new();
    let mut topic = Topic::new(&folder, 2);
    topic.append_to_all(30);
    topic.assign("a", &[0, 1]);
    let text = job("partition", "");
    let run = daemon_of(&folder, "a", &text);
    let mut daemon = run.spawn();
    topic.expect_all("all records");
    daemon.term();
    daemon.expect_success();
    fs::remove_file(folder.join("rows.db")).unwrap();
    let daemon = run.start();
    let lanes = || -> Result<Value, String> {
        Ok(daemon.get("/jobs/lanes").map_err(|e| e.to_string())?.json()["lanes"].clone())
    };
    for lane in ["shard/0", "shard/1"] {
        let reason = eventually("the lane to stop", || {
            let lanes = lanes()?;
            match &lanes[lane] {
                stopped if stopped["state"] == "stopped" => Ok(stopped["reason"].as_str().unwrap().to_owned()),
                _ => Err(lanes.to_string()),
            }
        });
        let command = reason.split('`').find(|part| part.contains("resolve --anchor")).unwrap();
        let data_dir = folder.join("data-a");
        let named = format!("tidemill checkpoint --data-dir {} --lane {lane} ", data_dir.display());
        assert!(command.starts_with(&named), "{reason}");
        let words: Vec<_> = command.split(' ').skip(1).collect();
        let done = tidemill(&folder, &words);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    eventually("both lanes to run", || {
        let lanes = lanes()?;
        let run = ["shard/0", "shard/1"].iter().all(|lane| lanes[lane]["state"] == "running");
        if run { Ok(()) } else { Err(lanes.to_string()) }
    });
}

/// Another `lanes:` has lanes of other names, of which no sink knows anything.
#[test]
fn a_job_with_another_lanes_does_not_begin_anew() {
    for (before, after) in [("partition", "single"), ("single", "partition")] {
        let folder = Folder::new();
        let mut topic = Topic::new(&folder, 2);
        topic.append_to_all(30);
        topic.assign("a", &[0, 1]);
        let mut first = daemon_of(&folder, "a", &job(before, "")).spawn();
        topic.expect_all("all records");
        first.term();
        first.expect_success();
        let mut second = daemon_of(&folder, "a", &job(after, "")).start();
        let way_out = format!("write `lanes: {before}` into the job");
        let answer = eventually("the second to stop", || {
            let reason = second.get("/ready").map_err(|e| e.to_string())?.body;
            if reason.contains(&way_out) { Ok(reason) } else { Err(reason) }
        });
        topic.count().unwrap_or_else(|difference| panic!("{before} to {after}: {difference}\n{answer}"));
        second.kill9();
        let _third = daemon_of(&folder, "a", &job(before, "")).spawn();
        topic.append_to_all(30);
        topic.expect_all("the way out");
    }
}

/// Fault 16: a daemon is paused in the middle of a batch of two lanes; one of them goes to another daemon meanwhile. When
/// the straggler comes back, it writes nothing to the lane that is gone, and goes on with the one that it still has.
fn straggler(failpoint: &str, nth: usize) {
    let folder = Folder::new();
    let mut topic = Topic::new(&folder, 2);
    topic.append_to_all(100);
    topic.assign("a", &[0, 1]);
    topic.assign("b", &[]);
    let text = job("partition", "");
    let mut straggler = daemon_of(&folder, "a", &text).failpoint(&format!("{failpoint}:{nth}:stop")).start();
    wait_until_stopped(&mut straggler);
    topic.assign("a", &[0]);
    topic.assign("b", &[1]);
    let second = daemon_of(&folder, "b", &text).spawn();
    topic.append(1, 50);
    eventually("the second to do all of lane 1", || {
        let query = "SELECT count(*) AS n FROM rows WHERE shard = 1";
        let found = Rows::try_sqlite(&folder.join("rows.db"), query).map_err(|e| e.to_string())?.column("n");
        if found == ["150"] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    straggler.cont();
    topic.append_to_all(30);
    topic.expect_all(&format!("{failpoint}: everything once, lane 0 by the straggler, lane 1 by the second"));
    eventually("the straggler to let go of lane 1", || {
        let lanes = straggler.get("/jobs/lanes").map_err(|e| e.to_string())?.json()["lanes"].clone();
        let states = (lanes["shard/0"]["state"].clone(), lanes["shard/1"]["state"].clone());
        if states == ("running".into(), "released".into()) { Ok(()) } else { Err(lanes.to_string()) }
    });
    assert_eq!(second.get("/ready").unwrap().status, 200);
    // The other way round, and everything still once: the lane was let go of cleanly this time.
    topic.assign("b", &[]);
    topic.assign("a", &[0, 1]);
    topic.append_to_all(30);
    topic.expect_all(&format!("{failpoint}: the lane comes back"));
}

#[test]
fn fault_16_a_lane_that_moves_in_mid_batch_fences_the_straggler() {
    // While the first batch is computed nothing commits: a process that is stopped inside of a SQLite transaction keeps
    // the file's lock, and whoever takes over waits until it goes on or dies (docs/sinks/sqlite.md).
    let places = [("compute", 1), ("before-anchor", 4), ("after-anchor", 4), ("after-sinks", 4), ("after-close", 4)];
    for (failpoint, nth) in places {
        straggler(failpoint, nth);
        println!("stopped at {failpoint}, one of two lanes moved away, continued: 0 lost, 0 doubled");
    }
}

/// Three daemons, six shards that grow, and lanes that go to and fro at random, cleanly and by loss; a daemon is killed now
/// and then, and its lanes go to the others before it comes back.
#[test]
fn fault_16_lanes_that_move_at_will_between_three_daemons_lose_and_double_nothing() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let folder = Folder::new();
    let mut topic = Topic::new(&folder, 6);
    let owners = ["a", "b", "c"];
    owners.iter().for_each(|owner| topic.assign(owner, &[]));
    // A daemon that looks away while its lane goes and comes back hears of no move: it is fenced, and has the lane again
    // once the other one is silent.
    let text = job("partition", "").replace("takeover_after: 1h", "takeover_after: 2s");
    let runs = owners.map(|owner| daemon_of(&folder, owner, &text));
    let mut daemons: Vec<Daemon> = runs.iter().map(Run::start).collect();
    let mut owner_of = [0; 6];
    let (mut moves, mut kills) = (0, 0);
    for round in 0..40 {
        topic.append_to_all(chance.random_range(0..25));
        let dead = (round % 10 == 9).then(|| chance.random_range(0..3));
        if let Some(dead) = dead {
            daemons[dead].kill9();
            kills += 1;
        }
        for owner in &mut owner_of {
            let before = *owner;
            if chance.random_bool(0.3) || Some(before) == dead {
                *owner = (0..3).cycle().skip(chance.random_range(0..3)).find(|next| Some(*next) != dead).unwrap();
            }
            moves += usize::from(*owner != before);
        }
        for (index, owner) in owners.iter().enumerate() {
            let mine: Vec<_> = (0..6).filter(|shard| owner_of[*shard] == index).collect();
            topic.assign(owner, &mine);
        }
        thread::sleep(Duration::from_millis(chance.random_range(20..250)));
        if let Some(dead) = dead {
            daemons[dead] = runs[dead].start();
        }
    }
    topic.expect_all("every record once, in order within its shard");
    println!("{moves} moves of lanes between three daemons, {kills} kills: 0 lost, 0 doubled");
    assert!(moves > 30, "{moves}");
}

/// A lane that its daemon has lost does not come back to it by a late failure, nor do its beats go on.
#[test]
fn a_lost_lane_is_not_wanted_again() {
    let folder = Folder::new();
    let mut topic = Topic::new(&folder, 2);
    topic.assign("a", &[0, 1]);
    let text = job("partition", "").replace("takeover_after: 1h", "takeover_after: 1s");
    topic.append_to_all(60);
    // Lost in the middle of a commit, which fails only afterwards: the other one's claim fences it.
    let mut first = daemon_of(&folder, "a", &text).failpoint("before-anchor:3:stop").start();
    wait_until_stopped(&mut first);
    folder.publish("topic/assign/a", "0 lost 1");
    topic.assign("b", &[1]);
    let mut second = daemon_of(&folder, "b", &text).spawn();
    eventually("the second to have the lane", || {
        let lanes = second.get("/jobs/lanes").map_err(|e| e.to_string())?.json()["lanes"].clone();
        if lanes["shard/1"]["state"] == "running" { Ok(()) } else { Err(lanes.to_string()) }
    });
    first.cont();
    topic.append_to_all(200);
    topic.expect_all("each its own lane");
    second.kill9();
    topic.append(0, 10);
    // Longer than it takes to take over a silent owner: nobody told the first to.
    thread::sleep(Duration::from_secs(3));
    let lanes = first.get("/jobs/lanes").unwrap().json()["lanes"].clone();
    assert_eq!(
        (&lanes["shard/0"]["state"], &lanes["shard/1"]["state"]),
        (&"running".into(), &"released".into()),
        "{lanes}"
    );
    topic.append(1, 10);
    topic.assign("a", &[0, 1]);
    topic.expect_all("the lane is assigned again");
}

/// Fault 18.
#[test]
fn fault_18_shards_that_are_added_start_at_their_beginning() {
    for lanes in ["single", "partition"] {
        let folder = Folder::new();
        let mut topic = Topic::new(&folder, 1);
        topic.append_to_all(25);
        let run = Run::new(&folder).job(&job(lanes, ""));
        let mut daemon = run.spawn();
        topic.expect_all("the first shard");
        for shard in 1..4 {
            topic.add_shard();
            // Full before the daemon may have seen it, and growing afterwards.
            topic.append(shard, 25);
            topic.append_to_all(5);
            topic.expect_all(&format!("{lanes}: shard {shard} that was added"));
        }
        // Added while nobody runs; and in the middle of a batch that dies.
        daemon.kill9();
        topic.add_shard();
        topic.append_to_all(15);
        run.clone().failpoint("after-anchor:2:kill").start().expect_killed();
        topic.add_shard();
        topic.append_to_all(15);
        let _daemon = run.spawn();
        topic.expect_all(&format!("{lanes}: shards that were added while nobody ran"));
    }
}

/// Fault 18 with two daemons: a new shard goes to either.
#[test]
fn fault_18_a_shard_that_is_added_goes_to_the_daemon_that_is_told() {
    let folder = Folder::new();
    let mut topic = Topic::new(&folder, 2);
    topic.append_to_all(10);
    topic.assign("a", &[0]);
    topic.assign("b", &[1]);
    let text = job("partition", "");
    let _daemons = ["a", "b"].map(|owner| daemon_of(&folder, owner, &text).spawn());
    topic.expect_all("two shards at two daemons");
    topic.add_shard();
    topic.append_to_all(30);
    topic.assign("b", &[1, 2]);
    topic.expect_all("the third shard");
}

/// A compacted topic: what a replay does not give any more is missing where it was missing, and nothing else is.
#[test]
fn a_replay_that_gives_fewer_records_brings_all_the_others_once() {
    let folder = Folder::new();
    let lines: Vec<_> = (0..40).map(|n| if n % 4 == 1 { format!("#gone {n}") } else { format!("kept {n}") }).collect();
    // The second batch is of nothing but records that go.
    let gone: Vec<_> = (0..10).map(|n| format!("#gone all {n}")).collect();
    let all = [&lines[..10], &gone[..], &lines[10..]].concat();
    folder.write("topic/shards/0", all.join("\n") + "\n");
    let text = "job: fewer\ntrigger: asap\nbatch: { max_records: 10 }\nsources:\n  in: { type: test, path: topic, codec: text }\n\
                sinks:\n  db: { type: sqlite, path: rows.db, table: rows }\n  files: { type: files, path: files, codec: json }\n";
    let run = Run::new(&folder).job(text);
    let mut missing = Vec::new();
    for batch in 0..4 {
        // The anchor has the batch, the files do not; what they get is a replay.
        run.clone().failpoint("after-anchor:1:kill").arg("--once").start().expect_killed();
        folder.write("topic/fewer", "");
        missing.extend(all.iter().skip(batch * 10).take(10).filter(|line| line.starts_with("#gone")).cloned());
        run.clone().failpoint("plan:1:kill").arg("--once").start().expect_killed();
        fs::remove_file(folder.join("topic/fewer")).unwrap();
    }
    run.once().expect_success();
    let stored = Rows::sqlite(&folder.join("rows.db"), "SELECT text FROM rows ORDER BY rowid").column("text");
    assert_eq!(stored, all, "the anchor had them before they went");
    let mut files = Rows::files(&folder.join("files")).column("text");
    let mut expected: Vec<_> = all.into_iter().filter(|line| !missing.contains(line)).collect();
    files.sort();
    expected.sort();
    assert_eq!(files, expected);
}

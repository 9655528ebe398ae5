//! A random life of a folder: files come, move, are touched, copied over, compressed; plans are made, committed,
//! abandoned, replayed; the process restarts at any point. Each record of each file is read exactly once.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    /// A new file of so many records.
    Create {
        records: usize,
        archive: u8,
    },
    Rename(usize),
    Touch(usize),
    /// A copy that replaces the original, which goes.
    CopyAway(usize),
    /// The content in another packing replaces the original, which goes.
    Repack(usize, u8),
    Plan {
        records: usize,
        bytes: usize,
        fate: Fate,
    },
    Release,
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Commit,
    /// The batch failed: another plan from the same place.
    Drop,
    /// The process died before the anchor had it.
    DieBefore,
    /// The process died after the anchor had it: the next one replays it to a second sink.
    DieAfter,
}

fn act() -> impl Strategy<Value = Act> {
    let fate = prop_oneof![4 => Just(Fate::Commit), 1 => Just(Fate::Drop), 1 => Just(Fate::DieBefore), 1 => Just(Fate::DieAfter)];
    prop_oneof![
        4 => (0usize..40, 0u8..4).prop_map(|(records, archive)| Act::Create { records, archive }),
        1 => any::<usize>().prop_map(Act::Rename),
        1 => any::<usize>().prop_map(Act::Touch),
        1 => any::<usize>().prop_map(Act::CopyAway),
        2 => (any::<usize>(), 0u8..3).prop_map(|(index, packing)| Act::Repack(index, packing)),
        6 => (1usize..60, 1usize..3_000, fate).prop_map(|(records, bytes, fate)| Act::Plan { records, bytes, fate }),
        1 => Just(Act::Release),
        1 => Just(Act::Restart),
    ]
}

struct Life {
    rig: Rig,
    names: u64,
    /// What must be read, and what was.
    expected: Vec<String>,
    read: Vec<String>,
}

impl Life {
    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.rig.config.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
    fn pick(&self, index: usize) -> Option<String> {
        let files = self.files();
        (!files.is_empty()).then(|| files[index % files.len()].clone())
    }
    fn fresh(&mut self, old: &str) -> String {
        self.names += 1;
        let ending = old.split_once('.').map_or(String::new(), |(_, ending)| format!(".{ending}"));
        format!("{}{ending}", self.names)
    }

    async fn act(&mut self, act: Act, keep: bool) {
        match act {
            Act::Create { records, archive } => {
                let texts: Vec<_> = (0..records).map(|i| format!("{}/{i}/{}", self.names, "x".repeat(i))).collect();
                let text = texts.iter().map(|text| format!("{text}\n")).collect::<String>();
                let name = self.fresh(["", "x.gz", "x.zst", ""][usize::from(archive)]);
                let bytes = match archive {
                    1 => gzip(&[text.as_bytes()]),
                    2 => zstandard(&[text.as_bytes()]),
                    _ => text.into_bytes(),
                };
                self.rig.put(&name, bytes, 60);
                self.expected.extend(texts);
            }
            Act::Rename(index) => {
                let Some(old) = self.pick(index) else { return };
                let new = self.fresh(&old);
                fs::rename(self.rig.path(&old), self.rig.path(&new)).unwrap();
            }
            Act::Touch(index) => {
                let Some(name) = self.pick(index) else { return };
                self.rig.age(&name, 30);
            }
            Act::CopyAway(index) if keep => {
                let Some(old) = self.pick(index) else { return };
                let new = self.fresh(&old);
                fs::copy(self.rig.path(&old), self.rig.path(&new)).unwrap();
                fs::remove_file(self.rig.path(&old)).unwrap();
            }
            Act::CopyAway(_) => {}
            Act::Repack(index, packing) => {
                let Some(old) = self.pick(index) else { return };
                let bytes = fs::read(self.rig.path(&old)).unwrap();
                let content = match old.rsplit_once('.').map(|(_, ending)| ending) {
                    Some("gz") => gunzip(&bytes),
                    Some("zst") => zstd::decode_all(&bytes[..]).unwrap(),
                    _ => bytes,
                };
                let (ending, bytes) = match packing {
                    1 => ("x.gz", gzip(&[&content])),
                    2 => ("x.zst", zstandard(&[&content])),
                    _ => ("", content),
                };
                fs::remove_file(self.rig.path(&old)).unwrap();
                let new = self.fresh(ending);
                self.rig.put(&new, bytes, 20);
            }
            Act::Plan { records, bytes, fate } => self.plan(Budget { records, bytes }, fate).await,
            Act::Release => self.rig.release().await,
            Act::Restart => self.rig.restart().await,
        }
    }

    async fn plan(&mut self, budget: Budget, fate: Fate) {
        let Some(proposal) = self.rig.try_plan(budget).await.unwrap() else { return };
        let raw = self.rig.source.read(&lane(), &proposal).await.unwrap();
        match fate {
            Fate::Drop => return,
            Fate::DieBefore => return self.rig.restart().await,
            Fate::Commit => self.rig.commit(&proposal),
            Fate::DieAfter => {
                self.rig.commit(&proposal);
                self.rig.restart().await;
                let again = self.rig.replay(&proposal).await.unwrap();
                assert_eq!(records(&again), records(&raw));
                assert_eq!(again.rejects, raw.rejects);
            }
        }
        assert!(raw.rejects.is_empty(), "{:?}", raw.rejects);
        self.read.extend(records(&raw).into_iter().map(|record| record.text));
    }
}

async fn live(acts: Vec<Act>, on_done: OnDone) {
    let keep = on_done == OnDone::Keep;
    let rig = Rig::with(Codec::Text, |config| config.on_done = on_done).await;
    let mut life = Life { rig, names: 0, expected: Vec::new(), read: Vec::new() };
    for act in acts {
        life.act(act, keep).await;
    }
    life.rig.restart().await;
    for _ in 0..10_000 {
        let before = life.rig.at.clone();
        life.plan(Budget { records: 100, bytes: 10_000 }, Fate::Commit).await;
        life.rig.release().await;
        if life.rig.at == before {
            break;
        }
    }
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    life.expected.iter().for_each(|text| *counts.entry(text).or_default() -= 1);
    life.read.iter().for_each(|text| *counts.entry(text).or_default() += 1);
    counts.retain(|_, count| *count != 0);
    let wrong: Vec<_> = counts.iter().take(4).collect();
    assert!(wrong.is_empty(), "{} records lost (-1) or doubled (1), such as {wrong:?}", counts.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn each_record_is_read_exactly_once(acts in prop::collection::vec(act(), 1..40), delete in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live(acts, if delete { OnDone::Delete } else { OnDone::Keep }));
    }
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes), &mut content).unwrap();
    content
}

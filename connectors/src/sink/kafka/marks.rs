//! What the marks' topic holds, as records and in memory.
//!
//! A record's key is a JSON list, its value JSON, so that `kafka-console-consumer` shows them to people:
//!
//! ```text
//! ["mark","JOB","SINK","LANE"]                  the claim and the mark, written by claims, commits and releases
//! ["entry","JOB","SINK","LANE","LOG",NUMBER]    an entry of the anchor's logs
//! ["reject","JOB","SINK","LANE",NUMBER,PART]    a row that the topic cannot take, in parts where it is long
//! ["beat","JOB","SINK","LANE"]                  a number that changes while the owner lives
//! ```
//!
//! Compaction keeps the last record of each key. Partition 0 has the beats, which no transaction ever holds back; a lane's
//! other records are all in one of the eight after it. That does not depend on how many partitions the topic has: it may
//! grow at any time, and two daemons that have seen it at different times must look for a lane's marks in the same place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidemill_checkpoint::{Claim, Digest, Entry, Generation, Held, Lane, LaneKey, LogName, Mark, SinkId};
use uuid::Uuid;

use crate::sink::{SinkError, SinkReject};

/// Partitions of the topic that are used, and that it is made with: one for beats, the others for lanes. Lanes of one
/// partition wait for each other's transactions when they are claimed, and no longer. Part of the format: with another
/// number, marks that are there would not be found.
pub(super) const PARTITIONS: i32 = 9;
/// Bytes of a rejected row in one record: far below what a topic takes, unless it is told to take less.
const PART_BYTES: usize = 256 * 1024;
/// What a part has beside them: its key, and why the row was rejected.
const PART_HEAD_BYTES: usize = 768;

/// A lane of one sink of one job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) job: String,
    pub(super) sink: SinkId,
    pub(super) lane: Lane,
}

impl Place {
    /// The partition of its marks.
    pub(super) fn partition(&self) -> i32 {
        let digest = Digest::of_json(&(&self.job, &self.sink, &self.lane));
        let mut first = [0; 8];
        first.copy_from_slice(&digest.bytes()[..8]);
        let others = u64::from(PARTITIONS.unsigned_abs()) - 1;
        1 + i32::try_from(u64::from_be_bytes(first) % others).unwrap_or_default()
    }

    fn key(&self, kind: &str) -> Vec<u8> {
        json(&(kind, &self.job, &self.sink, &self.lane))
    }

    pub(super) fn mark(&self, record: &Owned) -> Record {
        Record { key: self.key("mark"), value: Some(json(record)) }
    }

    pub(super) fn beat(&self, generation: Generation, beat: u64) -> Record {
        Record { key: self.key("beat"), value: Some(json(&Beat { generation, beat })) }
    }

    fn entry_key(&self, log: &LogName, number: u64) -> Vec<u8> {
        json(&("entry", &self.job, &self.sink, &self.lane, log, number))
    }

    fn reject_key(&self, number: u64, part: usize) -> Vec<u8> {
        json(&("reject", &self.job, &self.sink, &self.lane, number, part))
    }

    pub(super) fn entry(&self, entry: &Entry) -> Record {
        Record { key: self.entry_key(&entry.log, entry.number), value: Some(json(&entry.text)) }
    }

    /// A rejected row, in as many records of at most `max_bytes` as it needs.
    pub(super) fn reject(&self, reject: &SinkReject, max_bytes: usize) -> Vec<Record> {
        // A row is JSON: as a text in JSON, each of its quotes takes two bytes.
        let part_bytes = (max_bytes.saturating_sub(PART_HEAD_BYTES) / 2).clamp(64, PART_BYTES);
        let mut pieces = Vec::new();
        let mut rest = reject.record.as_str();
        while rest.len() > part_bytes {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(part_bytes));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let parts = pieces.len();
        let part = |(part, text): (usize, &str)| {
            let head = (part == 0).then(|| RejectHead {
                parts,
                seq: reject.seq,
                input: reject.input,
                row: reject.row,
                reason: reject.reason.clone(),
                detail: reject.detail.clone(),
            });
            let value = RejectPart { head, text: text.to_owned() };
            Record { key: self.reject_key(reject.number, part), value: Some(json(&value)) }
        };
        pieces.into_iter().enumerate().map(part).collect()
    }
}

/// A record of the marks' topic.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) key: Vec<u8>,
    /// `None` takes the key away.
    pub(super) value: Option<Vec<u8>>,
}

/// Who holds a lane, and what it has: what a claim and a commit write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owned {
    pub(super) claim: Claim,
    /// Of this claim and no other, not even of the same owner: whether it is there where the answer was lost.
    pub(super) number: Uuid,
    pub(super) mark: Option<Mark>,
    /// The last offset of each of the topic's partitions to which the lane sent rows, those of this mark's batch among
    /// them: where the brokers lose the end of a transaction, they tell what it was. Below 0 where the brokers did
    /// not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) rows: BTreeMap<i32, i64>,
    /// Rows of a former owner may have been left open, and nobody has looked since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unsettled: bool,
}

impl Owned {
    /// After a reset generations begin again, so the instance has to be the same too.
    pub(super) fn is_of(&self, key: &LaneKey) -> bool {
        self.claim.generation == key.generation && self.claim.owner.instance == key.owner.instance
    }

    /// Whether `later`, which its owner has written, is what comes after this.
    pub(super) fn is_before(&self, later: &Self) -> bool {
        self.claim == later.claim || self.claim.generation < later.claim.generation
    }

    /// Of `rows`, those that came after `before`: of what was written since, a row in each partition.
    pub(super) fn rows_since(&self, before: Option<&Self>) -> BTreeMap<i32, i64> {
        let mut rows = self.rows.clone();
        rows.retain(|partition, offset| before.is_none_or(|before| before.rows.get(partition) != Some(offset)));
        rows
    }

    pub(super) fn digest(&self) -> Option<Digest> {
        self.mark.as_ref().map(|mark| mark.digest)
    }
}

#[derive(Serialize, Deserialize)]
struct Beat {
    generation: Generation,
    beat: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct RejectHead {
    parts: usize,
    seq: u64,
    input: Digest,
    row: u64,
    reason: String,
    detail: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct RejectPart {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<RejectHead>,
    text: String,
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("types of the protocol serialise: they have text keys and no foreign types")
}

/// All that is known of one lane.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pub(super) owned: Option<Owned>,
    beat: Option<(Generation, u64)>,
    entries: BTreeMap<(LogName, u64), String>,
    rejects: BTreeMap<(u64, usize), RejectPart>,
}

impl Kept {
    pub(super) fn held(&self) -> Held {
        let Some(owned) = &self.owned else { return Held::default() };
        // A beat of an owner that was shut out says nothing about this one.
        let beat = self.beat.filter(|(generation, _)| *generation == owned.claim.generation);
        Held { claim: Some(owned.claim.clone()), mark: owned.mark.clone(), beat: beat.map_or(0, |(_, beat)| beat) }
    }

    pub(super) fn entries(&self, log: &LogName, from: u64) -> Vec<Entry> {
        let all = self.entries.range((log.clone(), from)..=(log.clone(), u64::MAX));
        all.map(|((log, number), text)| Entry { log: log.clone(), number: *number, text: text.clone() }).collect()
    }

    /// Numbers of entries of `log` below `first`.
    pub(super) fn pruned(&self, place: &Place, log: &LogName, first: u64) -> Vec<Record> {
        let below = self.entries.range((log.clone(), 0)..(log.clone(), first));
        below.map(|((log, number), _)| Record { key: place.entry_key(log, *number), value: None }).collect()
    }

    pub(super) fn rejects(&self, from: u64) -> Vec<SinkReject> {
        let heads =
            self.rejects.range((from, 0)..).filter_map(|((number, _), part)| Some((*number, part.head.as_ref()?)));
        let whole = |(number, head): (u64, &RejectHead)| {
            let parts = (0..head.parts).map(|part| Some(self.rejects.get(&(number, part))?.text.as_str()));
            Some(SinkReject {
                number,
                seq: head.seq,
                input: head.input,
                row: head.row,
                reason: head.reason.clone(),
                detail: head.detail.clone(),
                record: parts.collect::<Option<String>>()?,
            })
        };
        heads.filter_map(whole).collect()
    }

    /// One past the highest number of a reject that is kept.
    pub(super) fn next_reject(&self) -> u64 {
        self.rejects.last_key_value().map_or(0, |((number, _), _)| number + 1)
    }

    /// Rejects below this number are in the dead letters.
    pub(super) fn done_rejects(&self, place: &Place, first: u64) -> Vec<Record> {
        let below = self.rejects.range(..(first, 0));
        below.map(|((number, part), _)| Record { key: place.reject_key(*number, *part), value: None }).collect()
    }

    /// Without the texts: what a commit needs.
    pub(super) fn slim(mut self) -> Self {
        self.entries.values_mut().for_each(|text| *text = String::new());
        self.rejects.values_mut().for_each(|part| part.text = String::new());
        self
    }

    /// Takes in what was written just now.
    pub(super) fn take_in(&mut self, place: &Place, records: &[Record]) -> Result<(), SinkError> {
        let mut book = Book { lanes: BTreeMap::from([(place.clone(), std::mem::take(self))]) };
        for record in records {
            book.apply(&record.key, record.value.as_deref())?;
        }
        *self = book.lanes.remove(place).unwrap_or_default().slim();
        Ok(())
    }

    /// Every record of the lane taken away.
    pub(super) fn gone(&self, place: &Place) -> Vec<Record> {
        let mut keys: Vec<Vec<u8>> = self.entries.keys().map(|(log, number)| place.entry_key(log, *number)).collect();
        keys.extend(self.rejects.keys().map(|(number, part)| place.reject_key(*number, *part)));
        keys.push(place.key("mark"));
        keys.into_iter().map(|key| Record { key, value: None }).collect()
    }
}

/// What the records of one partition come to.
#[derive(Debug, Default)]
pub(super) struct Book {
    lanes: BTreeMap<Place, Kept>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Key {
    Lane(String, String, SinkId, Lane),
    Entry(String, String, SinkId, Lane, LogName, u64),
    Reject(String, String, SinkId, Lane, u64, usize),
}

impl Book {
    /// The lane's mark in a record, if it is one; `None` in it takes the mark away.
    pub(super) fn mark_of(place: &Place, key: &[u8], value: Option<&[u8]>) -> Option<Option<Owned>> {
        (key == place.key("mark")).then(|| serde_json::from_slice(value?).ok())
    }

    /// A lane's records, as far as they were read.
    pub(super) fn lane(&self, place: &Place) -> Option<&Kept> {
        self.lanes.get(place)
    }

    /// All lanes of a sink.
    pub(super) fn lanes_of(&self, job: &str, sink: &SinkId) -> Vec<Place> {
        self.lanes.keys().filter(|place| place.job == job && place.sink == *sink).cloned().collect()
    }

    /// Takes in the next record. Says whose it is.
    pub(super) fn apply(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<Place, SinkError> {
        let unreadable = |what: &str, error: &dyn std::fmt::Display| {
            SinkError::Fatal(format!(
                "the marks' topic has a {what} that cannot be read ({error}): is it a topic of its own, and this the \
                 newest version of Tidemill that writes to it?"
            ))
        };
        let parsed: Key = serde_json::from_slice(key).map_err(|error| unreadable("key", &error))?;
        let bad = |error: serde_json::Error| unreadable("value", &error);
        let text = |value: &[u8]| serde_json::from_slice::<String>(value).map_err(bad);
        Ok(match parsed {
            Key::Lane(kind, job, sink, lane) if kind == "mark" || kind == "beat" => {
                let place = Place { job, sink, lane };
                let kept = self.lanes.entry(place.clone()).or_default();
                if kind == "beat" {
                    let beat = value.map(serde_json::from_slice::<Beat>).transpose().map_err(bad)?;
                    kept.beat = beat.map(|beat| (beat.generation, beat.beat));
                } else {
                    kept.owned = value.map(serde_json::from_slice).transpose().map_err(bad)?;
                }
                place
            }
            Key::Entry(kind, job, sink, lane, log, number) if kind == "entry" => {
                let place = Place { job, sink, lane };
                let entries = &mut self.lanes.entry(place.clone()).or_default().entries;
                match value {
                    Some(value) => drop(entries.insert((log, number), text(value)?)),
                    None => drop(entries.remove(&(log, number))),
                }
                place
            }
            Key::Reject(kind, job, sink, lane, number, part) if kind == "reject" => {
                let place = Place { job, sink, lane };
                let rejects = &mut self.lanes.entry(place.clone()).or_default().rejects;
                match value {
                    Some(value) => {
                        drop(rejects.insert((number, part), serde_json::from_slice(value).map_err(bad)?));
                    }
                    None => drop(rejects.remove(&(number, part))),
                }
                place
            }
            _ => return Err(unreadable("key", &"it is of no kind that is known")),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place(lane: &str) -> Place {
        Place { job: "job".into(), sink: SinkId::new("out"), lane: Lane::new(lane) }
    }

    #[test]
    fn a_lane_keeps_its_partition_and_leaves_that_of_beats_alone() {
        // Marks that are there must be found again: these numbers never change.
        assert_eq!(["all", "in/t/0", "in/t/1"].map(|lane| place(lane).partition()), [7, 3, 1]);
        let used: std::collections::BTreeSet<i32> = (0..100).map(|n| place(&format!("in/t/{n}")).partition()).collect();
        assert_eq!(used.into_iter().collect::<Vec<_>>(), (1..9).collect::<Vec<_>>());
    }

    #[test]
    fn a_long_reject_comes_back_from_its_parts_and_goes_with_them() {
        let text = "ä".repeat(PART_BYTES + 1);
        let reject = SinkReject {
            number: 4,
            seq: 1,
            input: Digest::of(b"input"),
            row: 2,
            reason: "too_big".into(),
            detail: "why".into(),
            record: text,
        };
        let place = place("all");
        let records = place.reject(&reject, usize::MAX);
        assert_eq!(records.len(), 3);
        let mut book = Book::default();
        for record in &records[..2] {
            book.apply(&record.key, record.value.as_deref()).unwrap();
        }
        assert_eq!(book.lane(&place).unwrap().rejects(0), [], "a part is missing");
        book.apply(&records[2].key, records[2].value.as_deref()).unwrap();
        let kept = book.lane(&place).unwrap().clone();
        assert_eq!(kept.rejects(0), [reject]);
        assert_eq!((kept.rejects(5), kept.next_reject()), (vec![], 5));
        let gone = kept.done_rejects(&place, 5);
        assert_eq!(gone.len(), 3);
        for record in gone {
            book.apply(&record.key, record.value.as_deref()).unwrap();
        }
        assert_eq!(book.lane(&place).unwrap().next_reject(), 0);
    }

    #[test]
    fn what_the_owner_has_written_comes_after_older_claims_and_not_after_newer_ones() {
        let owner = tidemill_checkpoint::Owner { name: "a".into(), data_dir: Uuid::nil(), instance: Uuid::nil() };
        let owned = |generation| Owned {
            claim: Claim { generation: Generation(generation), owner: owner.clone(), released: false },
            number: Uuid::nil(),
            mark: None,
            rows: BTreeMap::new(),
            unsettled: false,
        };
        assert!(owned(1).is_before(&owned(2)) && owned(2).is_before(&owned(2)));
        assert!(!owned(3).is_before(&owned(2)));
        let mut released = owned(2);
        released.claim.released = true;
        assert!(!released.is_before(&owned(2)), "it was let go of");
    }

    #[test]
    fn a_topic_that_is_not_of_marks_is_told_so() {
        let mut book = Book::default();
        for (key, value) in [
            (&b"user-17"[..], &b"{}"[..]),
            (br#"["mark","job","out"]"#, b"{}"),
            (br#"["mark","job","out","all"]"#, b"{}"),
            (br#"["note","job","out","all"]"#, b"{}"),
            (br#"["entry","job","out","all","log",1]"#, b"7"),
        ] {
            let error = book.apply(key, Some(value)).unwrap_err().to_string();
            assert!(error.contains("is it a topic of its own"), "{error}");
        }
        book.apply(br#"["beat","job","out","all"]"#, None).unwrap();
    }
}

//! Reading a spool: from positions to slices and rejects.

use bytes::Bytes;
use tidemill_checkpoint::{Position, ShardId, Timestamp};

use super::{
    entry::{self, Chain, Entry, Flaw, HEAD, Kind},
    spool::{Error, SEGMENT_HEAD, Segment, Spool, damaged},
};
use crate::source::{Base, Budget, RawBatch, RawReject, Slice};

/// Slices are about this long, so that several threads can decode a batch.
const SLICE_BYTES: u64 = 1024 * 1024;

/// What lies between two positions.
#[derive(Debug, Default)]
pub struct Stretch {
    /// Slices and rejects, in order.
    pub batch: RawBatch,
    /// The position after its last record; the first position where there is none.
    pub to: u64,
    /// Records in it, rejects included.
    pub records: usize,
    /// The chain at `to`, where the one at `from` was given.
    pub chain: Option<Chain>,
    bytes: usize,
    /// The chain where the walk stands, which may be behind a group's head.
    walked: Option<Chain>,
}

impl Spool {
    /// What is durable from `from` on, within `budget`. `chain` is that at `from`, where one at the end is wanted.
    pub fn read_ahead(
        &self,
        shard: &ShardId,
        from: u64,
        budget: Budget,
        chain: Option<Chain>,
    ) -> Result<Stretch, Error> {
        let mut stretch = self.walk(shard, from, self.end(), Some(budget), chain)?;
        // Where a segment of an older version begins, its chain does too.
        if let Some(next) = self.segment(stretch.to).filter(|next| next.base == stretch.to && chain.is_some()) {
            stretch.chain = Some(next.chain);
        }
        Ok(stretch)
    }

    /// All of `[from, to)`: the same at each call.
    pub fn read_span(&self, shard: &ShardId, from: u64, to: u64) -> Result<Stretch, Error> {
        let end = self.end();
        if to > end {
            let text = format!("the plan reads to position {to}, the spool in {} ends at {end}", self.dir.display());
            return Err(Error::Damaged(text));
        }
        self.walk(shard, from, to, None, None)
    }

    fn walk(
        &self,
        shard: &ShardId,
        from: u64,
        end: u64,
        budget: Option<Budget>,
        chain: Option<Chain>,
    ) -> Result<Stretch, Error> {
        let mut stretch = Stretch { to: from, chain, walked: chain, ..Stretch::default() };
        let mut at = from;
        while at < end {
            let Some(segment) = self.segment(at) else {
                let (dir, first) = (self.dir.display(), self.first());
                return Err(Error::Damaged(format!(
                    "position {at} is not in the spool in {dir}, which begins at {first}"
                )));
            };
            if at <= segment.base {
                stretch.walked = chain.and(Some(segment.chain));
            }
            at = at.max(segment.base + SEGMENT_HEAD);
            let limit = end.min(segment.end());
            if at >= limit {
                at = limit;
                continue;
            }
            let mut want = SLICE_BYTES.min(limit - at);
            if let Some(budget) = budget {
                // Reading much more than the batch takes would be read again for the next.
                want = want.min((budget.bytes.saturating_sub(stretch.bytes) as u64).max(4096));
            }
            let (next, is_full) = self.walk_slice(&segment, shard, at, want, limit, budget, &mut stretch)?;
            if is_full {
                return Ok(stretch);
            }
            at = next;
        }
        Ok(stretch)
    }

    /// Reads about `want` bytes of a segment. Returns the position after the last whole entry, and whether the budget is used up.
    #[allow(clippy::too_many_arguments, reason = "the state of one loop, cut in two")]
    fn walk_slice(
        &self,
        segment: &Segment,
        shard: &ShardId,
        from: u64,
        want: u64,
        limit: u64,
        budget: Option<Budget>,
        stretch: &mut Stretch,
    ) -> Result<(u64, bool), Error> {
        let bytes = self.read_bytes(segment, from, want, limit)?;
        let mut records = Vec::new();
        let (mut at, mut is_full) = (0, false);
        while at < bytes.len() {
            let position = from + at as u64;
            let entry = match entry::parse(&bytes[at..], position, self.seal) {
                Ok(entry) => entry,
                Err(Flaw::Short(size)) if at > 0 && position + size as u64 <= limit => break,
                Err(flaw) => return Err(damaged(segment, position, flaw)),
            };
            let size = entry.size();
            let walked = stretch.walked.map(|chain| chain.then(&bytes[at..at + size]));
            let over = |budget: Budget| stretch.records >= budget.records || stretch.bytes + size > budget.bytes;
            if entry.kind != Kind::Group {
                if stretch.records > 0 && budget.is_some_and(over) {
                    is_full = true;
                    break;
                }
                if entry.kind == Kind::Record {
                    records.push(((at + HEAD) as u32, (at + size) as u32));
                } else {
                    stretch.batch.rejects.push(reject(&entry, shard, position, &bytes.slice(at + HEAD..at + size)));
                }
                stretch.records += 1;
                stretch.bytes += size;
                (stretch.to, stretch.chain) = (position + size as u64, walked);
            }
            stretch.walked = walked;
            at += size;
        }
        if !records.is_empty() {
            stretch.batch.slices.push(Slice {
                shard: shard.clone(),
                bytes,
                records,
                // A record's position is that of its entry, whose head lies before the bytes that the slice points to.
                base: Base::Bytes(from - HEAD as u64),
                header: None,
                metadata: Vec::new(),
                columns: Vec::new(),
            });
        }
        Ok((from + at as u64, is_full))
    }

    /// `want` bytes, or as many as the first entry has.
    fn read_bytes(&self, segment: &Segment, from: u64, want: u64, limit: u64) -> Result<Bytes, Error> {
        let read = |size: u64| {
            let mut bytes = vec![0; size as usize];
            segment.read(&mut bytes, from).map(|()| bytes).map_err(Error::io("read", segment.path()))
        };
        let bytes = read(want.min(limit - from))?;
        match entry::parse(&bytes, from, self.seal) {
            Err(Flaw::Short(size)) if from + size as u64 <= limit => Ok(read(size as u64)?.into()),
            _ => Ok(bytes.into()),
        }
    }

    /// Records from `position` on, and the age in ms of the first. Cheap: one small read.
    pub fn waiting(&self, position: u64) -> Option<(u64, u64)> {
        let mut at = position;
        // A group's head, or a segment's end, may lie before the next record.
        for _ in 0..4 {
            let Some(segment) = self.segment(at) else { break };
            at = at.max(segment.base + SEGMENT_HEAD);
            let mut bytes = vec![0; usize::try_from((segment.end() - at).min(entry::GROUP as u64)).ok()?];
            segment.read(&mut bytes, at).ok()?;
            if bytes.is_empty() {
                // A segment without entries: the next one begins here.
                continue;
            }
            if bytes.len() < entry::HEAD {
                break;
            }
            let head = entry::Head::of(&bytes);
            if head.is_group {
                at += head.size as u64;
                continue;
            }
            let before = segment.records_before + u64::from(head.number);
            // Wraps every 49 days; an age of more than half of that is a clock that was set back.
            let age = (Timestamp::now().0 as u32).wrapping_sub(head.received);
            return Some((self.records().saturating_sub(before), if age > u32::MAX / 2 { 0 } else { u64::from(age) }));
        }
        None
    }
}

fn reject(entry: &Entry<'_>, shard: &ShardId, position: u64, payload: &Bytes) -> RawReject {
    let (reason, detail, record) = if entry.kind == Kind::Half {
        let detail = format!("the connection ended in the middle of a record, after {} bytes of it", payload.len());
        ("half_record", detail, payload.clone())
    } else {
        let (length, kept) = (entry::first_u64(payload), payload.slice(8..));
        let detail =
            format!("the record has {length} bytes, over `max_record_bytes`; the first {} are kept", kept.len());
        ("too_long", detail, kept)
    };
    let (shard, position) = (shard.clone(), Position::number(position));
    RawReject { shard, position, reason: reason.into(), detail, record, metadata: Vec::new() }
}

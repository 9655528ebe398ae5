//! One file's content as a stream of chunks that end at record borders: read once, never held as a whole.
//!
//! A chunk is read with `pread` into a recycled buffer and framed while it is in the cache; the bytes after its last
//! border go in front of the next. `.gz` (several members too) and `.zst` (several frames too) are decompressed by their
//! ending; offsets are those of the decompressed bytes. A decompressor is always asked for the same number of bytes from
//! the file's beginning on, so that what a damaged archive still gives does not depend on where batches ended.

use std::{fs::File, io, sync::Arc};

use bytes::Bytes;
use tidemill_checkpoint::{Position, ShardId};
use tidemill_config::model;

use super::{
    archive::{Archive, Positioned, Stop, Unpacker},
    buffers::Buffers,
    hash::{Digester, Digests},
    lines::LineFeeds,
    scan::Stamp,
};
use crate::{
    codec::{FrameError, Framed, Framer, framer},
    source::{Base, ENCODING, LINE, RawBatch, RawReject, Slice},
};

/// Bytes of a chunk: it stays in a core's cache between reading and framing, and is one piece of parallel decoding.
pub(super) const CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes that a decompressor is asked for.
pub(super) const STEP_BYTES: usize = 64 * 1024;
/// With fewer bytes left over, the next chunk is read; with more, they are framed as they are.
const LEFT_OVER_BYTES: usize = 64 * 1024;
/// A longer record is a reject.
pub(super) const MAX_RECORD_BYTES: usize = 64 * 1024 * 1024;
/// Of a reject's original bytes, so many are kept.
const MAX_REJECT_BYTES: usize = 64 * 1024;

/// Why a file's content cannot be had.
#[derive(Debug)]
pub(super) enum ContentError {
    /// The device or the file system says so.
    Io(io::Error),
    /// The file is not what was listed.
    Changed,
}

impl From<io::Error> for ContentError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What was listed of a file, for reading it.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    pub shard: ShardId,
    pub number: u64,
    /// As listed: the metadata column `_file`.
    pub path: Arc<str>,
    /// How the bytes on disk are unpacked: the file may have been compressed since it was listed.
    pub archive: Option<Archive>,
    /// The bytes on disk end here, whatever was appended since.
    pub size: u64,
}

/// How many records and bytes may still be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub records: usize,
    pub bytes: usize,
    /// Stop at this offset: a border that an earlier plan found.
    pub stop: Option<u64>,
}

/// Where a file's reading stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// At a border inside.
    At(u64),
    /// At the end.
    End,
}

enum Input {
    Plain {
        file: File,
        at: u64,
    },
    Archive(Unpacker),
    /// All that there is has been read.
    Done,
}

/// An open file, at a record border.
pub(super) struct Content {
    pub listing: Listing,
    /// For the check after a read; `None` where the bytes were taken under a check already.
    file: Option<File>,
    /// What the open file's `fstat` must go on saying.
    stamp: Stamp,
    input: Input,
    /// The offset of the first byte of `rest`.
    offset: u64,
    rest: Bytes,
    /// Nothing comes after `rest`.
    at_end: bool,
    /// Why an archive ends where it ends.
    corrupt: Option<String>,
    framer: Box<dyn Framer>,
    header: Option<Bytes>,
    buffers: Arc<Buffers>,
    /// Line feeds before `offset`.
    lines: u64,
    feeds: LineFeeds,
    /// Of what is unpacked, where somebody wants to know it.
    digester: Option<Digester>,
    /// All that was read so far was given out by this very object.
    is_whole: bool,
    /// Why some bytes are neither in a record nor in a reject that has all of them.
    unaccounted: Option<&'static str>,
}

impl Content {
    /// The content of an open file, which has just been found to have this `stamp`.
    pub(super) fn open(
        listing: Listing,
        file: File,
        stamp: Stamp,
        codec: &model::Codec,
        buffers: &Arc<Buffers>,
    ) -> io::Result<Self> {
        let input = match listing.archive {
            None => Input::Plain { file: file.try_clone()?, at: 0 },
            Some(kind) => {
                let source = Positioned { file: file.try_clone()?, at: 0, left: listing.size };
                Input::Archive(kind.unpack(Box::new(source))?)
            }
        };
        Ok(Self::new(listing, Some(file), stamp, input, codec, buffers))
    }

    /// The content of a file whose bytes have all been read already.
    pub(super) fn of_bytes(
        listing: Listing,
        stamp: Stamp,
        bytes: Bytes,
        codec: &model::Codec,
        buffers: &Arc<Buffers>,
    ) -> io::Result<Self> {
        let Some(kind) = listing.archive else {
            return Ok(Self::of_unpacked(listing, stamp, bytes, codec, buffers));
        };
        let input = Input::Archive(kind.unpack(Box::new(io::Cursor::new(bytes)))?);
        Ok(Self::new(listing, None, stamp, input, codec, buffers))
    }

    /// The content of a file whose bytes have all been read, and unpacked, already.
    pub(super) fn of_unpacked(
        listing: Listing,
        stamp: Stamp,
        bytes: Bytes,
        codec: &model::Codec,
        buffers: &Arc<Buffers>,
    ) -> Self {
        let content = Self::new(listing, None, stamp, Input::Done, codec, buffers);
        Self { rest: bytes, at_end: true, ..content }
    }

    /// What is unpacked is digested on the way, from the beginning on.
    pub(super) fn digest(&mut self) {
        if matches!(self.input, Input::Archive(_)) && self.offset == 0 && self.rest.is_empty() {
            self.digester = Some(Digester::new());
        }
    }

    /// The digests of all of it, once its end was read and nothing is wrong with it.
    pub(super) fn digests(&self) -> Option<Digests> {
        let is_all = self.at_end && self.corrupt.is_none();
        self.digester.as_ref().filter(|_| is_all).map(Digester::digests)
    }

    /// At the end: whether all of its bytes are in records, rejects and what frames them. `None`: it was not all read here.
    pub(super) fn account(&self) -> Option<Result<(), &'static str>> {
        self.is_whole.then(|| self.unaccounted.map_or(Ok(()), Err))
    }

    /// The number of line feeds before the present border.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    fn new(
        listing: Listing,
        file: Option<File>,
        stamp: Stamp,
        input: Input,
        codec: &model::Codec,
        buffers: &Arc<Buffers>,
    ) -> Self {
        Self {
            listing,
            file,
            stamp,
            input,
            offset: 0,
            rest: Bytes::new(),
            at_end: false,
            corrupt: None,
            framer: framer(codec),
            header: None,
            buffers: buffers.clone(),
            lines: 0,
            feeds: LineFeeds::of(codec),
            digester: None,
            is_whole: true,
            unaccounted: None,
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes to a border that an earlier run of this file's framing gave. `lines`: the line feeds before it, if known.
    pub(super) fn skip_to(&mut self, offset: u64, lines: Option<u64>) -> Result<(), ContentError> {
        if offset == self.offset {
            return Ok(());
        }
        self.is_whole = false;
        // The framer must have seen the beginning; what comes before `offset` holds all that it asks for.
        let head_bytes = usize::try_from(offset).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        self.fill(head_bytes, head_bytes)?;
        let head = self.rest.slice(..head_bytes.min(self.rest.len()));
        let framed = self.framer.frame(0, &head, false, 0, &mut Vec::new());
        self.header = framed.head(&head);
        self.feeds.begin(&head);
        match (&mut self.input, lines) {
            (Input::Plain { at, .. }, Some(lines)) => {
                *at = offset;
                (self.rest, self.offset, self.at_end, self.lines) = (Bytes::new(), offset, false, lines);
            }
            _ => loop {
                let left = offset - self.offset;
                let step = usize::try_from(left).unwrap_or(usize::MAX).min(self.rest.len());
                self.advance(step);
                if self.offset == offset {
                    break;
                }
                if self.at_end {
                    return Err(ContentError::Changed);
                }
                self.fill(1, CHUNK_BYTES)?;
            },
        }
        Ok(())
    }

    /// Appends records to `batch` until `room` is used up, or `stop` or the end is reached. At least one record is
    /// taken where `room.records` is not 0 and `must` is set, however long it is.
    pub(super) fn pull(
        &mut self,
        room: &mut Room,
        mut must: bool,
        batch: &mut RawBatch,
    ) -> Result<Reached, ContentError> {
        let mut need = LEFT_OVER_BYTES;
        loop {
            if room.stop.is_some_and(|stop| self.offset >= stop) || room.records == 0 || (room.bytes == 0 && !must) {
                return Ok(self.here());
            }
            // Up to the budget; beyond it only for a first record that is longer.
            let most = if must { room.bytes.max(need) } else { room.bytes };
            let want = most.min(CHUNK_BYTES.max(need));
            self.fill(need.min(want), want)?;
            let chunk = self.rest.slice(..want.min(self.rest.len()));
            let at_end = self.at_end && chunk.len() == self.rest.len();
            let taken = self.frame(&chunk, at_end, room, batch);
            if taken.records > 0 {
                must = false;
            }
            if let Some(error) = taken.error {
                self.reject_rest(error, batch)?;
                return Ok(Reached::End);
            }
            if taken.finished {
                return Ok(Reached::End);
            }
            if taken.stopped {
                return Ok(self.here());
            }
            if taken.bytes > 0 {
                need = LEFT_OVER_BYTES;
                continue;
            }
            if at_end {
                // A framer takes all that is left at the end; one that does not must not hang the lane.
                let detail = "what is left of the file is no record".to_owned();
                self.reject_rest(FrameError { start: 0, reason: "framing", detail }, batch)?;
                return Ok(Reached::End);
            }
            if chunk.len() >= MAX_RECORD_BYTES {
                self.reject_long(batch)?;
                (must, need) = (false, LEFT_OVER_BYTES);
                room.records = room.records.saturating_sub(1);
                room.bytes = room.bytes.saturating_sub(MAX_RECORD_BYTES);
            } else if !must && want == room.bytes {
                return Ok(self.here());
            } else {
                need = (chunk.len() + 1).max(2 * want).min(MAX_RECORD_BYTES);
            }
        }
    }

    /// A border at the very end is the end.
    fn here(&self) -> Reached {
        if self.at_end && self.rest.is_empty() && self.corrupt.is_none() {
            Reached::End
        } else {
            Reached::At(self.offset)
        }
    }

    fn frame(&mut self, chunk: &Bytes, at_end: bool, room: &mut Room, batch: &mut RawBatch) -> Taken {
        // After an archive's damage the last piece has no border: it is the reject's.
        let intact_end = at_end && self.corrupt.is_none();
        if at_end && !intact_end {
            self.framer.cut_off();
        }
        let mut records = Vec::new();
        let mut framed = self.framer.frame(self.offset, chunk, intact_end, room.records, &mut records);
        // Copied: a header must not hold on to its whole chunk for as long as the file is read.
        if let Some(head) = framed.head(chunk) {
            self.header = Some(head);
        }
        let mut stopped = false;
        if let Some(stop) = room.stop
            && let Ok(stop) = usize::try_from(stop - self.offset)
            && (stop < framed.consumed || framed.error.as_ref().is_some_and(|error| stop <= error.start))
        {
            records.truncate(records.partition_point(|(start, _)| (*start as usize) < stop));
            framed = Framed { consumed: stop, ..Framed::default() };
            stopped = true;
        }
        let taken = records.len();
        room.records -= taken.min(room.records);
        room.bytes = room.bytes.saturating_sub(framed.consumed);
        if taken > 0 {
            batch.slices.push(self.slice(chunk.slice(..framed.consumed.max(last_end(&records))), records));
        }
        if framed.error.is_some() {
            return Taken { records: taken, bytes: framed.consumed, finished: true, stopped, error: framed.error };
        }
        self.advance(framed.consumed);
        let left = self.rest.len();
        let mut finished = !stopped && self.at_end && left == 0 && self.corrupt.is_none();
        // The damage is met when every whole record before it is taken.
        if !stopped
            && at_end
            && room.records > 0
            && let Some(cause) = &self.corrupt
        {
            let detail = format!("{}: {cause}; what came before it was read", self.listing.path);
            let record = self.rest.slice(..left.min(MAX_REJECT_BYTES));
            batch.rejects.push(self.reject(self.offset, self.lines, "corrupt_file", detail, record));
            self.leave_out("what the damaged archive holds cannot be unpacked");
            finished = true;
        }
        Taken { records: taken, bytes: framed.consumed, finished, stopped, error: None }
    }

    /// Some of what is left out is in no reject.
    fn leave_out(&mut self, what: &'static str) {
        self.unaccounted = self.unaccounted.or(Some(what));
    }

    /// The rest of the file has no borders: one reject, with as much of it as is kept, however it was cut into chunks.
    fn reject_rest(&mut self, error: FrameError, batch: &mut RawBatch) -> Result<(), ContentError> {
        self.advance(error.start.min(self.rest.len()));
        self.fill(MAX_REJECT_BYTES, MAX_REJECT_BYTES)?;
        let record = self.rest.slice(..MAX_REJECT_BYTES.min(self.rest.len()));
        let detail = format!("{}: {}", self.listing.path, error.detail);
        batch.rejects.push(self.reject(self.offset, self.lines, error.reason, detail, record));
        if self.rest.len() > MAX_REJECT_BYTES || !self.at_end || self.corrupt.is_some() {
            self.leave_out("its dead letter holds no more than the first 64 KiB of what has no records");
        }
        Ok(())
    }

    fn slice(&self, bytes: Bytes, records: Vec<(u32, u32)>) -> Slice {
        Slice {
            shard: self.listing.shard.clone(),
            bytes,
            records,
            base: Base::File(self.listing.number, self.offset),
            header: self.header.clone(),
            metadata: self.place(self.lines),
            columns: Vec::new(),
        }
    }

    /// Where a reader finds it: the file, and the number of line feeds before.
    fn place(&self, lines: u64) -> Vec<(&'static str, String)> {
        let mut place = vec![("file", self.listing.path.to_string()), (LINE, (lines + 1).to_string())];
        place.extend(self.feeds.encoding().map(|label| (ENCODING, label.to_owned())));
        place
    }

    fn reject(&self, offset: u64, lines: u64, reason: &'static str, detail: String, record: Bytes) -> RawReject {
        let position = Position::pair(self.listing.number, offset);
        let (shard, metadata) = (self.listing.shard.clone(), self.place(lines));
        RawReject { shard, position, reason: reason.into(), detail, record, metadata }
    }

    /// A record of more than the limit: one reject, up to the first line feed beyond the limit.
    fn reject_long(&mut self, batch: &mut RawBatch) -> Result<(), ContentError> {
        let begin = self.rest.slice(..MAX_REJECT_BYTES);
        let (at, lines) = (self.offset, self.lines);
        self.advance(MAX_RECORD_BYTES);
        loop {
            match self.feeds.find(self.offset, &self.rest) {
                Some(end) => {
                    self.advance(end);
                    break;
                }
                None => {
                    self.advance(self.rest.len() - self.feeds.half(self.offset, self.rest.len()));
                    if self.at_end {
                        break;
                    }
                    // Two, or half a unit would be looked at for ever.
                    self.fill(2, CHUNK_BYTES)?;
                }
            }
        }
        let detail = format!(
            "{}: a record of {} bytes at offset {at}; the limit is {MAX_RECORD_BYTES}, here are its first {}",
            self.listing.path,
            self.offset - at,
            begin.len()
        );
        batch.rejects.push(self.reject(at, lines, "record_too_long", detail, begin));
        self.leave_out("the dead letter of a record over 64 MiB holds no more than its first 64 KiB");
        Ok(())
    }

    fn advance(&mut self, bytes: usize) {
        if self.offset == 0 {
            self.feeds.begin(&self.rest);
        }
        self.lines += self.feeds.count(self.offset, &self.rest[..bytes]);
        self.rest = self.rest.slice(bytes..);
        self.offset += bytes as u64;
    }

    /// Makes `rest` at least `need` bytes long, reading up to `want`, unless the content ends before.
    fn fill(&mut self, need: usize, want: usize) -> Result<(), ContentError> {
        if self.rest.len() >= need || self.at_end {
            return Ok(());
        }
        let left = match &self.input {
            Input::Plain { at, .. } => usize::try_from(self.listing.size.saturating_sub(*at)).unwrap_or(usize::MAX),
            _ => want,
        };
        let want = want.min(self.rest.len().saturating_add(left)).max(need.min(self.rest.len().saturating_add(left)));
        let mut buffer =
            self.buffers.take(want + if matches!(self.input, Input::Plain { .. }) { 0 } else { STEP_BYTES });
        buffer.extend_from_slice(&self.rest);
        match &mut self.input {
            Input::Plain { file, at } => {
                while buffer.len() < want {
                    let before = buffer.len();
                    let read = match rustix::io::pread(&*file, rustix::buffer::spare_capacity(&mut buffer), *at) {
                        Err(rustix::io::Errno::INTR) => continue,
                        result => result.map_err(io::Error::from)?,
                    };
                    if read == 0 {
                        return Err(ContentError::Changed);
                    }
                    // A recycled buffer may have more room than the listed content.
                    buffer.truncate(want.max(before));
                    *at += (buffer.len() - before) as u64;
                }
                self.at_end = *at >= self.listing.size;
            }
            Input::Archive(unpacker) => {
                let mut step = vec![0; STEP_BYTES];
                while buffer.len() < want && !self.at_end {
                    match unpacker.read(&mut step) {
                        Ok(0) => self.at_end = true,
                        Ok(n) => {
                            buffer.extend_from_slice(&step[..n]);
                            if let Some(digester) = &mut self.digester {
                                digester.update(&step[..n]);
                            }
                        }
                        Err(Stop::Device(error)) => return Err(error.into()),
                        Err(Stop::Damage(why)) => {
                            self.at_end = true;
                            self.corrupt = Some(why);
                        }
                    }
                }
            }
            Input::Done => self.at_end = true,
        }
        self.rest = self.buffers.seal(buffer);
        Ok(())
    }

    /// Whether the open file is still as it was listed; to be asked after each read.
    pub(super) fn is_unchanged(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        Ok(Stamp::of(&file.metadata()?) == self.stamp)
    }
    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }
}

struct Taken {
    records: usize,
    bytes: usize,
    finished: bool,
    stopped: bool,
    error: Option<FrameError>,
}

fn last_end(records: &[(u32, u32)]) -> usize {
    records.last().map_or(0, |(_, end)| *end as usize)
}

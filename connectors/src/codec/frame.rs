//! Framing of files: where each record begins and ends, found in one pass, chunk by chunk.
//!
//! A [`Framer`] is a function of the file's bytes alone. How the file is cut into chunks never changes what it finds, and
//! between two records its state follows from the file's beginning: so a reader can stop at any border, forget the
//! framer, and go on there with a new one that has seen the beginning.

use std::ops::Range;

use memchr::memchr;
use tidemill_config::model;

use super::{csv, encoding::TextFramer, json, raw};

/// What comes before a UTF-8 file's text in some editors' files; never a part of a record.
pub(super) const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// What a file's beginning tells about it (a header, what its first line is) must lie within so many characters: a reader
/// that goes on at a border looks at no more of it.
pub(super) const MAX_HEAD: usize = 500_000;

/// Record ranges are 32 bits wide: of a longer chunk the rest waits for the next call.
const MAX_CHUNK_BYTES: usize = u32::MAX as usize;

/// What one call of [`Framer::frame`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Framed {
    /// Bytes that are done with: a border, where the next call begins. 0 with no record found, and not at the end of the
    /// file: more bytes are needed than were given.
    pub consumed: usize,
    /// The file's head in the chunk, which belongs to all of its records: a byte order mark, a line that names the
    /// delimiter (with its terminator), a header record (without). Found once, with the file's beginning; mostly empty.
    pub header: Vec<Range<usize>>,
    /// From here on the file has no borders any more: a reject of what is left of the file, which the caller then leaves.
    pub error: Option<FrameError>,
}

impl Framed {
    /// So many bytes are done with, and that is all.
    pub(super) fn consumed(consumed: usize) -> Self {
        Self { consumed, ..Self::default() }
    }

    /// The head's bytes, where this call found it.
    #[must_use]
    pub fn head(&self, chunk: &[u8]) -> Option<bytes::Bytes> {
        (!self.header.is_empty()).then(|| super::encoding::gathered(chunk, &self.header).into())
    }
}

/// Why the rest of a file cannot be cut into records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// Where in the chunk the reject begins; it goes on to the end of the file.
    pub start: usize,
    /// A short, stable word for metrics, as in [`super::Undecodable`].
    pub reason: &'static str,
    /// The sentence.
    pub detail: String,
}

/// Finds the borders of records in one file.
///
/// The first call is at offset 0, with the file's beginning: a header, a byte order mark or a `[` is seen there. Later
/// calls begin where the one before ended (`at + consumed`), or at any other border that an earlier run gave.
pub trait Framer: Send {
    /// Appends to `out` the ranges in `bytes` of at most `max_records` records, without their terminators.
    ///
    /// `at` is the offset in the file of `bytes[0]`; `at_end` says that nothing comes after `bytes`. With
    /// `max_records` 0 only what comes before the first record is consumed, and `bytes` end at a border. Once the file's last
    /// record is given, a call at the end consumes what is left.
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed;

    /// No more bytes come, and the last ones end at no border (a damaged archive): a framer that waits for more of the file's
    /// beginning waits no longer.
    fn cut_off(&mut self) {}
}

/// A framer for files of this codec. Columnar files have no records to frame: they are taken as lines.
pub fn framer(codec: &model::Codec) -> Box<dyn Framer> {
    const UTF8: &str = "utf-8";
    let json = |label: &str| Box::new(TextFramer::new(json::frame::JsonFramer::default(), label, true));
    let text = |label: &str| Box::new(TextFramer::new(Lines::default(), label, false));
    match codec {
        model::Codec::Json => json(UTF8),
        model::Codec::JsonWith(options) => json(&options.encoding),
        model::Codec::Csv(options) => Box::new(csv::frame::CsvFile::new(options)),
        model::Codec::Text | model::Codec::Parquet => text(UTF8),
        model::Codec::TextIn(label) => text(label),
        model::Codec::Bytes(_) | model::Codec::Avro(_) | model::Codec::Protobuf(_) => Box::new(raw::WholeFile),
    }
}

/// Cuts a chunk to what ranges can address; the second value is whether the file still ends with it.
pub(super) fn addressable(bytes: &[u8], at_end: bool) -> (&[u8], bool) {
    match bytes.get(..MAX_CHUNK_BYTES) {
        Some(cut) if cut.len() < bytes.len() => (cut, false),
        _ => (bytes, at_end),
    }
}

/// How far bytes that were not consumed have been looked at, so that a long record is scanned once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scanned {
    at: u64,
    bytes: usize,
}

impl Scanned {
    /// How many of the bytes from `at` on were looked at before; `None` where `at` is not the place of the last call.
    pub(super) fn before(self, at: u64) -> Option<usize> {
        (self.at == at && self.bytes > 0).then_some(self.bytes)
    }
    /// Remembers that the bytes from `at` on were looked at.
    pub(super) fn remember(at: u64, bytes: usize) -> Self {
        Self { at, bytes }
    }
}

/// How many NUL bytes a text begins with. A log that was truncated while its writer had it open has a run of them where its
/// first line goes on: they are no part of the line.
pub(super) fn nuls(text: &[u8]) -> usize {
    match text.first() {
        Some(0) => text.iter().position(|byte| *byte != 0).unwrap_or(text.len()),
        _ => 0,
    }
}

/// Records that end with `\n` or `\r\n`, or with the file.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Lines of white space alone are no records.
    pub(super) skip_blank: bool,
    scanned: Scanned,
}

impl Lines {
    /// Lines, of which blank ones are no records.
    pub(super) fn without_blank() -> Self {
        Self { skip_blank: true, scanned: Scanned::default() }
    }

    fn push(&self, bytes: &[u8], start: usize, end: usize, out: &mut Vec<(u32, u32)>) -> bool {
        let start = start + nuls(&bytes[start..end]);
        let line = &bytes[start..end];
        let end = if line.last() == Some(&b'\r') { end - 1 } else { end };
        if self.skip_blank && line.first().is_none_or(u8::is_ascii_whitespace) && line.trim_ascii().is_empty() {
            return false;
        }
        out.push((start as u32, end as u32));
        true
    }
}

impl Framer for Lines {
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        let (bytes, at_end) = addressable(bytes, at_end);
        let mut start = 0;
        let mut from = self.scanned.before(at).unwrap_or(start).min(bytes.len());
        let mut room = max_records;
        while room > 0 {
            match memchr(b'\n', &bytes[from..]) {
                Some(length) => {
                    let end = from + length;
                    room -= usize::from(self.push(bytes, start, end, out));
                    start = end + 1;
                    from = start;
                }
                None if at_end => {
                    if start + nuls(&bytes[start..]) < bytes.len() {
                        self.push(bytes, start, bytes.len(), out);
                    }
                    start = bytes.len();
                    break;
                }
                None => {
                    // There may be more of them than a record is long.
                    start += nuls(&bytes[start..]);
                    break;
                }
            }
        }
        let looked_at = if room == 0 { 0 } else { bytes.len() - start };
        self.scanned = Scanned::remember(at + start as u64, looked_at);
        Framed::consumed(start)
    }
}

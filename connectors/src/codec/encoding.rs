//! Encodings of text: which one a file has, where its characters begin and end, and its records as UTF-8.
//!
//! Framing looks for ASCII characters. In UTF-8 and most encodings every byte below 0x80 is one; in UTF-16 and in those
//! whose characters have second bytes below 0x80 it is not. There a framer is shown one byte for each unit or byte, and
//! 0x80 for all that is not ASCII: what it finds is then turned back into places in the file.

use std::{borrow::Cow, ops::Range};

use encoding_rs::{BIG5, EUC_KR, Encoding, GB18030, GBK, SHIFT_JIS, UTF_8, UTF_16BE, UTF_16LE};

use super::{
    binary,
    frame::{FrameError, Framed, Framer, addressable},
};
use crate::source::Slice;

/// So many bytes tell what a file is. Fewer where short files are to be cut into chunks.
const BEGINNING_BYTES: usize = if cfg!(test) { 16 } else { 512 };
/// What a framer is shown for a character that is not ASCII.
const NOT_ASCII: u8 = 0x80;

/// The encoding of a label.
pub(super) fn of_label(label: &str) -> &'static Encoding {
    Encoding::for_label(label.as_bytes()).unwrap_or(UTF_8)
}

/// Why text in this encoding cannot be read; `None` where it can.
pub(super) fn refusal(label: &str) -> Option<String> {
    match Encoding::for_label(label.as_bytes()) {
        None => Some(format!("`{label}` is not an encoding that is known")),
        // Its bytes mean something else after an escape: a line end or a quote cannot be told from a part of a character.
        Some(encoding) if encoding == encoding_rs::ISO_2022_JP || encoding == encoding_rs::REPLACEMENT => {
            Some(format!("text in {label} cannot be cut into records; turn it into utf-8 first"))
        }
        Some(_) => None,
    }
}

/// How characters lie in the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// A byte below 0x80 is an ASCII character.
    Ascii,
    /// After some bytes, one below 0x80 is the second half of a character.
    Pairs(&'static Encoding),
    /// Units of two bytes.
    Units { little: bool },
}

impl Layout {
    fn of(encoding: &'static Encoding, has_pairs: bool) -> Self {
        if encoding == UTF_16LE || encoding == UTF_16BE {
            Self::Units { little: encoding == UTF_16LE }
        } else if has_pairs && [SHIFT_JIS, BIG5, EUC_KR, GBK, GB18030].contains(&encoding) {
            Self::Pairs(encoding)
        } else {
            Self::Ascii
        }
    }

    /// The bytes of one that a framer is shown.
    fn width(self) -> usize {
        if matches!(self, Self::Units { .. }) { 2 } else { 1 }
    }

    /// What a framer is shown of `bytes`. A character that the next chunk completes is left for it.
    fn show(self, bytes: &[u8], at_end: bool, shown: &mut Vec<u8>) {
        shown.clear();
        match self {
            Self::Ascii => shown.extend_from_slice(bytes),
            Self::Units { little } => {
                let mut units = bytes.chunks_exact(2);
                shown.extend(units.by_ref().map(|unit| match (unit, little) {
                    ([low, 0], true) | ([0, low], false) if low.is_ascii() => *low,
                    _ => NOT_ASCII,
                }));
                // Half a unit at the end of the file is a part of its last record.
                shown.extend((at_end && !units.remainder().is_empty()).then_some(NOT_ASCII));
            }
            Self::Pairs(encoding) => {
                let mut at = 0;
                while let Some(byte) = bytes.get(at) {
                    let second = bytes.get(at + 1);
                    let is_first = !byte.is_ascii() && is_first(encoding, *byte);
                    match second {
                        None if is_first && !at_end => break,
                        Some(second) if is_first && is_second(encoding, *second) => {
                            shown.extend_from_slice(&[NOT_ASCII; 2]);
                            at += 2;
                        }
                        _ => {
                            shown.push(if byte.is_ascii() { *byte } else { NOT_ASCII });
                            at += 1;
                        }
                    }
                }
            }
        }
    }
}

/// Whether a byte begins a character of two bytes.
fn is_first(encoding: &'static Encoding, byte: u8) -> bool {
    if encoding == SHIFT_JIS { matches!(byte, 0x81..=0x9f | 0xe0..=0xfc) } else { matches!(byte, 0x81..=0xfe) }
}

/// Whether a byte may be the second one. The digits are those of GB18030's characters of four bytes, which are two pairs.
fn is_second(encoding: &'static Encoding, byte: u8) -> bool {
    if encoding == SHIFT_JIS {
        matches!(byte, 0x40..=0x7e | 0x80..=0xfc)
    } else if encoding == BIG5 {
        matches!(byte, 0x40..=0x7e | 0xa1..=0xfe)
    } else if encoding == EUC_KR {
        matches!(byte, 0x41..=0x7e | 0x80..=0xfe)
    } else {
        matches!(byte, 0x30..=0x39 | 0x40..=0x7e | 0x80..=0xfe)
    }
}

/// Frames a file of text in any encoding. A byte order mark at the beginning decides which one; a file that begins as an
/// archive or another binary format is an error.
///
/// The mark is the beginning of the file's head, and goes to the decoder with it, where it is not the one that the decoder
/// expects anyway.
pub(super) struct TextFramer<F> {
    pub(super) inner: F,
    declared: &'static Encoding,
    /// The framer looks for characters that may be the second byte of one.
    has_pairs: bool,
    layout: Layout,
    /// Bytes of the mark.
    mark: usize,
    is_cut_off: bool,
    shown: Vec<u8>,
}

impl<F: Framer> TextFramer<F> {
    pub(super) fn new(inner: F, label: &str, has_pairs: bool) -> Self {
        let declared = of_label(label);
        let layout = Layout::of(declared, has_pairs);
        Self { inner, declared, has_pairs, layout, mark: 0, is_cut_off: false, shown: Vec::new() }
    }

    /// Looks at the file's beginning. `None`: more bytes must tell.
    fn begin(&mut self, bytes: &[u8], is_enough: bool) -> Option<Result<bool, FrameError>> {
        if bytes.len() < BEGINNING_BYTES && !is_enough {
            return None;
        }
        if let Some(detail) = binary::what(bytes) {
            return Some(Err(FrameError { start: 0, reason: "binary", detail }));
        }
        let (encoding, mark) = Encoding::for_bom(bytes).unwrap_or((self.declared, 0));
        (self.layout, self.mark) = (Layout::of(encoding, self.has_pairs), mark);
        Some(Ok(mark > 0 && (encoding, self.declared) != (UTF_8, UTF_8)))
    }
}

impl<F: Framer> Framer for TextFramer<F> {
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        let (bytes, at_end) = addressable(bytes, at_end);
        let mut is_told = false;
        if at == 0 {
            // With no records asked for the bytes end at a border.
            match self.begin(bytes, at_end || max_records == 0 || self.is_cut_off) {
                None => return Framed::default(),
                Some(Err(error)) => return Framed { error: Some(error), ..Framed::default() },
                Some(Ok(told)) => is_told = told,
            }
        }
        let mark = if at == 0 { self.mark } else { 0 };
        let width = self.layout.width();
        let inner_at = at.saturating_sub(self.mark as u64) / width as u64;
        let before = out.len();
        let text = &bytes[mark..];
        let mut framed = if self.layout == Layout::Ascii {
            self.inner.frame(inner_at, text, at_end, max_records, out)
        } else {
            let mut shown = std::mem::take(&mut self.shown);
            self.layout.show(text, at_end, &mut shown);
            // What was left for the next chunk is not the end.
            let is_all = shown.len() * width >= text.len();
            let framed = self.inner.frame(inner_at, &shown, at_end && is_all, max_records, out);
            self.shown = shown;
            framed
        };
        if mark == 0 && width == 1 {
            return framed;
        }
        let place = |place: usize| (mark + place * width).min(bytes.len());
        for (start, end) in &mut out[before..] {
            (*start, *end) = (place(*start as usize) as u32, place(*end as usize) as u32);
        }
        for range in &mut framed.header {
            *range = place(range.start)..place(range.end);
        }
        if let Some(error) = &mut framed.error {
            error.start = place(error.start);
        }
        // The mark is done with once something behind it is: until then the next call begins with it again.
        let is_begun = framed.consumed > 0 || out.len() > before || max_records == 0 || at_end;
        framed.consumed = if is_begun { place(framed.consumed) } else { 0 };
        // An error right behind the mark is the whole file's.
        if is_told && is_begun && framed.error.as_ref().is_none_or(|error| error.start > mark) {
            framed.header.insert(0, 0..mark);
        }
        framed
    }

    fn cut_off(&mut self) {
        self.is_cut_off = true;
    }
}

/// A slice's records as UTF-8.
pub(super) struct Transcoded<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) records: Cow<'a, [(u32, u32)]>,
    pub(super) encoding: &'static Encoding,
}

/// The range of a record whose bytes its encoding does not have: outside of every text.
const NOWHERE: (u32, u32) = (u32::MAX, u32::MAX);

/// The encoding of a file, and what comes after its mark in the file's head.
pub(super) fn of_head<'h>(head: Option<&'h [u8]>, label: &str) -> (&'static Encoding, &'h [u8]) {
    let head = head.unwrap_or_default();
    match Encoding::for_bom(head) {
        Some((encoding, mark)) => (encoding, &head[mark..]),
        None => (of_label(label), head),
    }
}

impl<'a> Transcoded<'a> {
    pub(super) fn of(slice: &'a Slice, label: &str) -> Self {
        let (encoding, _) = of_head(slice.header.as_deref(), label);
        if encoding == UTF_8 {
            return Self { bytes: Cow::Borrowed(&slice.bytes), records: Cow::Borrowed(&slice.records), encoding };
        }
        let mut text = String::with_capacity(slice.bytes.len());
        let one = |index: usize| {
            let Some(record) = encoding.decode_without_bom_handling_and_without_replacement(slice.record(index)) else {
                return NOWHERE;
            };
            let start = text.len();
            text.push_str(&record);
            match (u32::try_from(start), u32::try_from(text.len())) {
                (Ok(start), Ok(end)) => (start, end),
                _ => NOWHERE,
            }
        };
        let records: Vec<_> = (0..slice.records.len()).map(one).collect();
        Self { bytes: Cow::Owned(text.into_bytes()), records: Cow::Owned(records), encoding }
    }

    pub(super) fn record(&self, index: usize) -> Option<&[u8]> {
        let (start, end) = *self.records.get(index)?;
        self.bytes.get(start as usize..end as usize).filter(|text| std::str::from_utf8(text).is_ok())
    }
}

/// A record of a text codec as people read it: decoded from its encoding. `None`: it is UTF-8, or not what it should be.
pub(super) fn text_of(slice: &Slice, record: usize, label: &str) -> Option<String> {
    let (encoding, _) = of_head(slice.header.as_deref(), label);
    if encoding == UTF_8 {
        return None;
    }
    encoding.decode_without_bom_handling_and_without_replacement(slice.record(record)).map(Cow::into_owned)
}

/// The bytes of these ranges, one after another.
pub(super) fn gathered(bytes: &[u8], ranges: &[Range<usize>]) -> Vec<u8> {
    ranges.iter().flat_map(|range| bytes[range.clone()].iter().copied()).collect()
}

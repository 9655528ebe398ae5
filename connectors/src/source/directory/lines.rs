//! Lines of a file as an editor counts them, in its encoding: where a dead letter's record is found.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use memchr::{memchr, memchr_iter};
use tidemill_config::model;

/// Finds and counts line feeds.
#[derive(Clone, Copy, Debug)]
pub(super) struct LineFeeds {
    encoding: &'static Encoding,
}

impl LineFeeds {
    /// Those of files of this codec.
    pub(super) fn of(codec: &model::Codec) -> Self {
        let encoding = crate::codec::encoding_of(codec).and_then(|label| Encoding::for_label(label.as_bytes()));
        Self { encoding: encoding.unwrap_or(UTF_8) }
    }

    /// A file that begins with a mark of UTF-16 is in UTF-16, whatever was said of it.
    pub(super) fn begin(&mut self, bytes: &[u8]) {
        if let Some((encoding, _)) = Encoding::for_bom(bytes)
            && encoding != UTF_8
        {
            self.encoding = encoding;
        }
    }

    /// The label of the encoding, where it is not UTF-8.
    pub(super) fn encoding(self) -> Option<&'static str> {
        (self.encoding != UTF_8).then(|| self.encoding.name())
    }

    /// Bytes of a code unit.
    fn width(self) -> u64 {
        if self.encoding == UTF_16LE || self.encoding == UTF_16BE { 2 } else { 1 }
    }

    /// How many there are in `bytes`, which lie at this offset of the file.
    pub(super) fn count(self, at: u64, bytes: &[u8]) -> u64 {
        if self.width() == 1 {
            return memchr_iter(b'\n', bytes).count() as u64;
        }
        self.units(at, bytes).filter(|unit| self.is_line_feed(unit)).count() as u64
    }

    /// Where the first one ends.
    pub(super) fn find(self, at: u64, bytes: &[u8]) -> Option<usize> {
        if self.width() == 1 {
            return memchr(b'\n', bytes).map(|found| found + 1);
        }
        let found = self.units(at, bytes).position(|unit| self.is_line_feed(unit))?;
        Some(skipped(at) + 2 * (found + 1))
    }

    /// How many of the last of `length` bytes at this offset are the beginning of a unit that is not whole.
    pub(super) fn half(self, at: u64, length: usize) -> usize {
        usize::from(self.width() == 2 && (at + length as u64) % 2 == 1 && length > 1)
    }

    fn units(self, at: u64, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
        bytes.get(skipped(at)..).unwrap_or_default().chunks_exact(2)
    }

    fn is_line_feed(self, unit: &[u8]) -> bool {
        unit == if self.encoding == UTF_16LE { b"\n\0" } else { b"\0\n" }
    }
}

/// The line ends in `bytes`, which begin at a code unit of the encoding with this label: UTF-8 where none is named.
pub fn count_lines(label: Option<&str>, bytes: &[u8]) -> u64 {
    let encoding = label.and_then(|label| Encoding::for_label(label.as_bytes())).unwrap_or(UTF_8);
    LineFeeds { encoding }.count(0, bytes)
}

/// Units begin at even offsets.
fn skipped(at: u64) -> usize {
    usize::from(at % 2 == 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn feeds(label: &str) -> LineFeeds {
        LineFeeds { encoding: Encoding::for_label(label.as_bytes()).unwrap() }
    }

    #[test]
    fn lines_are_counted_in_code_units() {
        // U+0A0A and U+010A have bytes that look like line feeds.
        let text = "a\n\u{0a0a}\u{010a}b\n";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (label, bytes) in [("utf-16le", &little), ("utf-16be", &big)] {
            assert_eq!(feeds(label).count(0, bytes), 2, "{label}");
            assert_eq!(feeds(label).find(0, bytes), Some(4), "{label}");
            assert_eq!(feeds(label).find(4, &bytes[4..]), Some(8), "{label}");
            assert_eq!(feeds(label).count(1, &bytes[1..]), 2, "a unit that began before is not counted");
        }
        assert_eq!(feeds("utf-8").count(0, b"a\r\n\nb"), 2);
        assert_eq!((feeds("utf-8").find(0, b"a\nb"), feeds("utf-8").half(1, 2)), (Some(2), 0));
        assert_eq!((feeds("utf-16le").half(0, 3), feeds("utf-16le").half(0, 4)), (1, 0));
    }

    #[test]
    fn a_mark_tells_the_encoding() {
        let mut feeds = feeds("utf-8");
        feeds.begin(b"\xef\xbb\xbfa");
        assert_eq!(feeds.encoding(), None);
        feeds.begin(b"\xfe\xff\0a");
        assert_eq!(feeds.encoding(), Some("UTF-16BE"));
    }
}

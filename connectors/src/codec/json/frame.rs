//! Framing of JSON files.

use super::super::frame::{Framed, Framer, Lines};

/// Frames a JSON file.
pub(in crate::codec) struct JsonFramer {
    lines: Lines,
}

impl Default for JsonFramer {
    fn default() -> Self {
        Self { lines: Lines::without_blank() }
    }
}

impl Framer for JsonFramer {
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        self.lines.frame(at, bytes, at_end, max_records, out)
    }
}

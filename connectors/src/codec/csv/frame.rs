//! Framing of CSV files.

use tidemill_config::model::Csv;

use super::super::frame::{Framed, Framer, Lines};

/// Frames a CSV file.
pub(in crate::codec) struct CsvFramer {
    lines: Lines,
}

impl CsvFramer {
    pub(in crate::codec) fn new(_options: &Csv) -> Self {
        Self { lines: Lines::without_blank() }
    }
}

impl Framer for CsvFramer {
    fn frame(&mut self, at: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        self.lines.frame(at, bytes, at_end, max_records, out)
    }
}

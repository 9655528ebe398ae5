//! Columns that a file's header lacks are null in all of its rows: somebody is told, once for each file.

use std::{
    collections::VecDeque,
    sync::Mutex,
    time::{Duration, Instant},
};

use arrow::datatypes::Schema;

use crate::source::Slice;

/// So many files are remembered.
const MAX_FILES: usize = 1_024;
/// So many lines are written in a [`WINDOW`]; of the files beyond them only the number is.
const MAX_LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// So many names are in a line.
const MAX_NAMES: usize = 10;

/// Who was told of.
struct Told {
    files: VecDeque<String>,
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

static TOLD: Mutex<Told> = Mutex::new(Told { files: VecDeque::new(), since: None, lines: 0, left_out: 0 });

impl Told {
    /// Whether a line is written for this file; then how many files before it had none.
    fn admits(&mut self, file: &str, now: Instant) -> Option<u64> {
        if self.files.iter().any(|known| known == file) {
            return None;
        }
        if self.files.len() == MAX_FILES {
            self.files.pop_front();
        }
        self.files.push_back(file.to_owned());
        if self.since.is_none_or(|since| now.duration_since(since) > WINDOW) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines == MAX_LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Warns of the columns that the header of a slice's file does not have.
pub(super) fn warn(slice: &Slice, known: &Schema, names: &[String]) {
    let missing: Vec<&str> = known
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .filter(|name| !names.iter().any(|other| other == name))
        .collect();
    if missing.is_empty() {
        return;
    }
    let Some((_, file)) = slice.metadata.iter().find(|(name, _)| *name == "file") else { return };
    let Ok(mut told) = TOLD.lock() else { return };
    let Some(left_out) = told.admits(file, Instant::now()) else { return };
    drop(told);
    let others = if left_out == 0 { String::new() } else { format!("; so do {left_out} more files") };
    let more = if missing.len() > MAX_NAMES { ", ..." } else { "" };
    tracing::warn!(
        file = ?file,
        columns = ?format!("{}{more}", missing[..missing.len().min(MAX_NAMES)].join(", ")),
        "the header lacks columns, which are null in all rows of the file{others}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_of_once_and_many_files_in_a_number() {
        let mut told = Told { files: VecDeque::new(), since: None, lines: 0, left_out: 0 };
        let now = Instant::now();
        assert_eq!(told.admits("a", now), Some(0));
        assert_eq!(told.admits("a", now), None);
        for file in 1..MAX_LINES {
            assert_eq!(told.admits(&file.to_string(), now), Some(0));
        }
        for file in 0..5 {
            assert_eq!(told.admits(&format!("more {file}"), now), None);
        }
        let later = now + WINDOW + Duration::from_secs(1);
        assert_eq!(told.admits("b", later), Some(5));
        assert_eq!(told.admits("c", later), Some(0));
        for file in 0..2 * MAX_FILES {
            told.admits(&format!("many {file}"), later);
        }
        assert_eq!(told.files.len(), MAX_FILES);
    }
}

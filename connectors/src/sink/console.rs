//! The terminal: an aligned table per batch, under a heading with its time. No marks: at least once.
//!
//! ```text
//! 09:41:07 · batch 12 · 37 rows, first 10
//! status  agent            bytes
//! 200     mozilla/5.0 (x…   1042
//! ```
//!
//! Rows of a single text column are printed as lines. A batch is one write, so that nothing is printed in between. Once
//! the reader of a pipe has gone (`| head`), nothing is printed any more, and the job goes on.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{Array, RecordBatch},
    datatypes::DataType,
};
use async_trait::async_trait;
use chrono::{DateTime, Local};
use tidemill_checkpoint::{Permit, Plan, Receipt, SinkId};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{
    SinkError, StageContext, Staged, blocking, cell,
    unmarked::{self, Writes},
};

/// No cell of a table is wider.
const MAX_CELL: usize = 40;
/// No line of a single text column is wider.
const MAX_LINE: usize = 200;

/// The sink `type: console`.
pub struct Console {
    id: SinkId,
    first: usize,
    out: Output,
}

/// `None` once the reader has gone.
type Output = Arc<Mutex<Option<Box<dyn Write + Send>>>>;

impl Console {
    /// The sink `id`, on standard output. With `first`, at most so many rows of a batch are printed.
    pub fn open(id: SinkId, first: Option<usize>) -> Self {
        Self::to(id, first, Box::new(io::stdout()))
    }

    /// The same, to another writer.
    pub fn to(id: SinkId, first: Option<usize>, out: Box<dyn Write + Send>) -> Self {
        Self { id, first: first.unwrap_or(usize::MAX), out: Arc::new(Mutex::new(Some(out))) }
    }
}

fn print(sink: &SinkId, out: &Output, text: &str) -> Result<(), SinkError> {
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(writer) = out.as_mut() else { return Ok(()) };
    match writer.write_all(text.as_bytes()).and_then(|()| writer.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            tracing::warn!(%sink, "nobody reads the output any more: nothing is printed from here on");
            *out = None;
            Ok(())
        }
        other => other.map_err(|error| SinkError::io("printing a batch", &error)),
    }
}

/// A text on one line, at most `width` wide: a line break is a sign, a control character its escape, the rest is cut.
fn one_line(text: &str, width: usize) -> String {
    let mut line = String::new();
    let mut used = 0;
    let mut ends = Vec::new();
    for c in text.chars() {
        let shown = match c {
            '\n' => "⏎".to_owned(),
            '\r' => continue,
            '\t' => " ".to_owned(),
            c if c.is_control() || is_invisible(c) => c.escape_default().to_string(),
            c => c.to_string(),
        };
        let wide = if c.is_control() || is_invisible(c) { shown.width() } else { c.width().unwrap_or(0) };
        if used + wide > width {
            while used + 1 > width {
                let Some((length, at)) = ends.pop() else { break };
                line.truncate(length);
                used = at;
            }
            line.push('…');
            return line;
        }
        ends.push((line.len(), used));
        line.push_str(&shown);
        used += wide;
    }
    line
}

/// Characters that change the order of what is around them: a record must not rewrite the screen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn shown(array: &dyn Array, row: usize, width: usize) -> String {
    if array.is_null(row) { String::new() } else { one_line(&cell::text(array, row), width) }
}

fn heading(plan: &Plan, rows: usize, first: usize) -> String {
    let time = DateTime::from_timestamp_millis(plan.planned_at.0).unwrap_or_default().with_timezone(&Local);
    let noun = if rows == 1 { "row" } else { "rows" };
    let shown = if rows > first { format!(", first {first}") } else { String::new() };
    format!("{} · batch {} · {rows} {noun}{shown}\n", time.format("%H:%M:%S"), plan.seq)
}

/// The rows of a batch as they are printed, without the heading.
fn body(batches: &[RecordBatch], first: usize) -> String {
    let Some(schema) = batches.first().map(RecordBatch::schema) else { return String::new() };
    let mut left = first;
    let mut rows = Vec::new();
    let alone = schema.fields().len() == 1 && is_text(schema.field(0).data_type());
    let width = if alone { MAX_LINE } else { MAX_CELL };
    for batch in batches {
        let count = batch.num_rows().min(left);
        left -= count;
        rows.extend(
            (0..count).map(|row| batch.columns().iter().map(|column| shown(column, row, width)).collect::<Vec<_>>()),
        );
    }
    if alone {
        return rows.into_iter().map(|row| row.concat() + "\n").collect();
    }
    let right: Vec<bool> = schema.fields().iter().map(|field| field.data_type().is_numeric()).collect();
    let names: Vec<String> = schema.fields().iter().map(|field| one_line(field.name(), MAX_CELL)).collect();
    let mut widths: Vec<usize> = names.iter().map(|name| name.width()).collect();
    for row in &rows {
        row.iter().zip(&mut widths).for_each(|(cell, width)| *width = (*width).max(cell.width()));
    }
    let mut text = String::new();
    for row in std::iter::once(&names).chain(&rows) {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
            let pad = " ".repeat(width - cell.width());
            let gap = if line.is_empty() { "" } else { "  " };
            line += &if *right { format!("{gap}{pad}{cell}") } else { format!("{gap}{cell}{pad}") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[async_trait]
impl Writes for Console {
    fn id(&self) -> &SinkId {
        &self.id
    }

    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        let count = unmarked::count(rows);
        let rest = body(rows, self.first);
        let text = if count == 0 { String::new() } else { heading(&context.plan, count as usize, self.first) + &rest };
        Ok(Staged { rows: count, bytes: text.len() as u64, data: Box::new(text) })
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        let mut results = Vec::with_capacity(group.len());
        for (permit, staged) in group {
            let printed = match staged.unpack::<String>() {
                Ok(text) if text.is_empty() => Ok(()),
                Ok(text) => {
                    let (id, out) = (self.id.clone(), self.out.clone());
                    blocking(move || print(&id, &out, &text)).await.and_then(|printed| printed)
                }
                Err(error) => Err(error),
            };
            results.push(printed.map(|()| Receipt::written(&permit)));
        }
        results
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
    }

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        let names: ArrayRef = Arc::new(StringArray::from(vec![Some("日本"), Some("a\nb\u{1b}[31m"), None]));
        let counts: ArrayRef = Arc::new(Int64Array::from(vec![5, 1042, 7]));
        let batch = table(vec![("name", names), ("n", counts)]);
        assert_eq!(
            body(std::slice::from_ref(&batch), usize::MAX),
            "name              n\n日本              5\na⏎b\\u{1b}[31m  1042\n                  7\n"
        );
        assert_eq!(body(&[batch], 1), "name  n\n日本  5\n");
    }

    #[test]
    fn one_text_column_is_lines() {
        let lines: ArrayRef = Arc::new(StringArray::from(vec!["one", "two\nlines"]));
        assert_eq!(body(&[table(vec![("text", lines)])], usize::MAX), "one\ntwo⏎lines\n");
    }

    #[test]
    fn long_texts_are_cut_to_their_width() {
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdefg", 6), "abcde…");
        assert_eq!(one_line("日本語版", 6), "日本…");
        assert_eq!(one_line("\u{202e}x", 20), "\\u{202e}x");
        for width in 1..12 {
            assert!(one_line("日本\u{1b}é👍🏽abc語", width).width() <= width, "{width}");
        }
    }

    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_goes_stops_the_printing_and_not_the_job() {
        let console = Console::to(SinkId::new("screen"), None, Box::new(Gone));
        print(&console.id, &console.out, "a").unwrap();
        assert!(console.out.lock().unwrap().is_none());
        print(&console.id, &console.out, "b").unwrap();
    }
}

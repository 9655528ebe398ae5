//! What is in a sink, read with code that is not Tidemill's, and compared as multisets.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use parquet::file::reader::SerializedFileReader;
use rusqlite::{Connection, OpenFlags, types::ValueRef};
use serde_json::{Map, Value};

/// Differences shown of each kind.
const SHOWN: usize = 5;

/// Rows, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows(pub Vec<Map<String, Value>>);

impl Rows {
    /// The rows of a query on a SQLite file. Opened without writing: a reader beside the daemon.
    ///
    /// # Panics
    /// Where the file, the table or a column is absent.
    pub fn sqlite(file: &Path, query: &str) -> Self {
        Self::try_sqlite(file, query).unwrap_or_else(|e| panic!("{}: {query}: {e}", file.display()))
    }

    /// As [`Rows::sqlite`]; an error while the table is not there yet.
    pub fn try_sqlite(file: &Path, query: &str) -> rusqlite::Result<Self> {
        let database = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        database.busy_timeout(crate::PATIENCE)?;
        let mut statement = database.prepare(query)?;
        let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
        let rows = statement.query_map([], |row| {
            names.iter().enumerate().map(|(i, name)| Ok((name.clone(), sqlite_value(row.get_ref(i)?)))).collect()
        })?;
        rows.collect::<rusqlite::Result<_>>().map(Self)
    }

    /// The rows of JSON lines.
    ///
    /// # Panics
    /// Where a line is no object.
    pub fn json(text: &str) -> Self {
        let parse =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("not a JSON object ({e}): {line}"));
        Self(text.lines().map(parse).collect())
    }

    /// The rows of a CSV text with a header; every value is a string.
    ///
    /// # Panics
    /// Where a record has more fields than the header.
    pub fn csv(text: &str) -> Self {
        let mut records = csv_records(text).into_iter();
        let header = records.next().unwrap_or_default();
        let row = |record: Vec<String>| {
            assert!(record.len() <= header.len(), "more fields than the header has: {record:?}");
            header.iter().cloned().zip(record.into_iter().map(Value::String)).collect()
        };
        Self(records.map(row).collect())
    }

    /// The rows of all files below the folder of a `files` sink: `.csv` with headers, `.txt` as the column `text`, all
    /// others as JSON lines; `.gz` and `.zst` are decompressed. No file: no rows.
    ///
    /// # Panics
    /// Where a file cannot be read.
    pub fn files(folder: &Path) -> Self {
        Self(files(folder).iter().flat_map(|path| Self::file(path).0).collect())
    }

    /// The rows of one file; see [`Rows::files`]. Those of a `.parquet` file by the row reader of its format's own library.
    ///
    /// # Panics
    /// Where it cannot be read.
    pub fn file(path: &Path) -> Self {
        if path.extension().is_some_and(|ending| ending == "parquet") {
            return Self::parquet(path);
        }
        let text = read_text(path);
        match bare_extension(path).as_str() {
            "csv" => Self::csv(&text),
            "txt" => Self(text.lines().map(|line| Map::from_iter([("text".to_owned(), line.into())])).collect()),
            _ => Self::json(&text),
        }
    }

    fn parquet(path: &Path) -> Self {
        let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
        let row = |row: parquet::record::Row| {
            row.get_column_iter().map(|(name, value)| (name.clone(), parquet_value(value))).collect()
        };
        Self(reader.into_iter().map(|next| row(next.unwrap())).collect())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Only these columns, in this order; null where a row lacks one.
    #[must_use]
    pub fn select(&self, columns: &[&str]) -> Self {
        let pick = |row: &Map<String, Value>| {
            columns.iter().map(|name| ((*name).to_owned(), row.get(*name).cloned().unwrap_or_default())).collect()
        };
        Self(self.0.iter().map(pick).collect())
    }

    /// The values of a column as text (strings without quotes), in order.
    pub fn column(&self, name: &str) -> Vec<String> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.0.iter().map(|row| row.get(name).map_or_else(String::new, text)).collect()
    }

    /// The same rows as `expected`, whatever their order?
    ///
    /// # Errors
    /// How many were lost, doubled and made up, with examples.
    pub fn compare(&self, expected: &Self) -> Result<(), String> {
        let mut counts: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for row in &expected.0 {
            counts.entry(canonical(row)).or_default().0 += 1;
        }
        for row in &self.0 {
            counts.entry(canonical(row)).or_default().1 += 1;
        }
        let wrong = |kind: &str, more: fn(i64, i64) -> i64| {
            let rows: Vec<_> = counts.iter().filter(|(_, (want, got))| more(*want, *got) > 0).collect();
            let total: i64 = rows.iter().map(|(_, (want, got))| more(*want, *got)).sum();
            let mut text = String::new();
            if total > 0 {
                let _ = writeln!(text, "{kind} {total}:");
                for (row, (want, got)) in rows.into_iter().take(SHOWN) {
                    let _ = writeln!(text, "  expected {want}, found {got}: {row}");
                }
            }
            text
        };
        let lost = wrong("lost", |want, got| want - got);
        let doubled = wrong("doubled", |want, got| if want > 0 { got - want } else { 0 });
        let strange = wrong("not expected at all", |want, got| if want == 0 { got } else { 0 });
        if lost.is_empty() && doubled.is_empty() && strange.is_empty() {
            return Ok(());
        }
        Err(format!("{} rows expected, {} found\n{lost}{doubled}{strange}", expected.len(), self.len()))
    }

    /// Exactly the rows of `expected`, as a multiset.
    ///
    /// # Panics
    /// With what is lost, doubled or made up.
    #[track_caller]
    pub fn assert_same(&self, expected: &Self, what: &str) {
        if let Err(difference) = self.compare(expected) {
            panic!("{what}: {difference}");
        }
    }

    /// The numbers of `column` rise strictly, within each value of `shard` where one is named: nothing doubled, nothing
    /// out of order.
    ///
    /// # Panics
    /// At the first pair that does not.
    #[track_caller]
    pub fn assert_rising(&self, column: &str, shard: Option<&str>) {
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        for row in &self.0 {
            let shard = shard.and_then(|name| row.get(name)).map(Value::to_string).unwrap_or_default();
            let number = row.get(column).and_then(|value| value.as_i64().or_else(|| value.as_str()?.parse().ok()));
            let number = number.unwrap_or_else(|| panic!("{column} is no number in {row:?}"));
            if let Some(before) = last.insert(shard.clone(), number) {
                assert!(before < number, "{column} goes from {before} to {number} in shard {shard:?}");
            }
        }
    }
}

/// The data files below the folder of a `files` sink, by path: no marks, nothing hidden, no folder `_tidemill`.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "_tidemill" {
            continue;
        }
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}

/// A file's text; `.gz` and `.zst` are decompressed.
///
/// # Panics
/// Where it cannot be read, or is not UTF-8.
pub fn read_text(path: &Path) -> String {
    let file = fs::File::open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    let mut reader: Box<dyn Read> = match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Some("zst") => Box::new(zstd::Decoder::new(file).unwrap()),
        _ => Box::new(file),
    };
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    text
}

fn bare_extension(path: &Path) -> String {
    let compressed = path.extension().is_some_and(|ending| ending == "gz" || ending == "zst");
    let bare = if compressed { path.with_extension("") } else { path.to_owned() };
    bare.extension().map(|ending| ending.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Columns in order of their names: the same row has the same text.
fn canonical(row: &Map<String, Value>) -> String {
    let sorted: BTreeMap<_, _> = row.iter().collect();
    serde_json::to_string(&sorted).unwrap()
}

fn sqlite_value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(bytes) => bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}")).into(),
    }
}

/// Other types than JSON has are texts, as the library shows them.
fn parquet_value(value: &parquet::record::Field) -> Value {
    use parquet::record::Field;
    match value {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(text) => text.clone().into(),
        Field::Group(row) => row.get_column_iter().map(|(name, value)| (name.clone(), parquet_value(value))).collect(),
        Field::ListInternal(list) => list.elements().iter().map(parquet_value).collect(),
        other => other.to_string().into(),
    }
}

/// RFC 4180, read character by character.
fn csv_records(text: &str) -> Vec<Vec<String>> {
    let (mut records, mut record, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut quoted, mut begun) = (false, false);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        begun = true;
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut field)),
            '\r' if !quoted && characters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                record.push(std::mem::take(&mut field));
                records.push(std::mem::take(&mut record));
                begun = false;
            }
            other => field.push(other),
        }
    }
    if begun {
        record.push(field);
        records.push(record);
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_doubled_and_strange_rows_are_told_apart() {
        let expected = Rows::json("{\"n\":1}\n{\"n\":2}\n{\"n\":2}\n{\"n\":3}");
        let found = Rows::json("{\"n\":1}\n{\"n\":1}\n{\"n\":2}\n{\"n\":4}");
        let difference = found.compare(&expected).unwrap_err();
        assert!(difference.contains("lost 2:"), "{difference}");
        assert!(difference.contains("doubled 1:"), "{difference}");
        assert!(difference.contains("not expected at all 1:"), "{difference}");
        assert_eq!(expected.compare(&expected), Ok(()));
    }

    #[test]
    fn csv_knows_quotes_and_line_breaks() {
        let rows = Rows::csv("a,b\r\n\"x,\"\"y\"\"\n\",2\n,\n");
        assert_eq!(rows.column("a"), ["x,\"y\"\n", ""]);
        assert_eq!(rows.column("b"), ["2", ""]);
    }

    #[test]
    #[should_panic(expected = "n goes from 2 to 2")]
    fn a_doubled_number_does_not_rise() {
        Rows::json("{\"n\":1}\n{\"n\":2}\n{\"n\":2}").assert_rising("n", None);
    }

    #[test]
    fn marks_and_hidden_files_are_no_rows() {
        let folder = crate::Folder::new();
        folder.write("out/day=1/a.json", "{\"n\":1}\n");
        folder.write("out/_tidemill/x/log.json", "{\"n\":2}\n");
        folder.write("out/.b.json", "{\"n\":3}\n");
        assert_eq!(Rows::files(&folder.join("out")).column("n"), ["1"]);
    }
}

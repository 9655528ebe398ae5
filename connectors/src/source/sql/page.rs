//! Rows as they travel, and where a page of them may be cut: never between rows with the same key.

use super::select::Key;

/// A row: its key, and itself as a JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: Key,
    pub(super) json: Vec<u8>,
}

/// A value of a row.
pub(super) enum Cell<'a> {
    Null,
    /// JSON already.
    Raw(&'a [u8]),
    Text(&'a str),
    /// A text whose bytes may be no UTF-8. They stay what they are, so that the row is a reject where the column is read.
    Bytes(&'a [u8]),
}

/// Writes rows with these columns.
pub(super) struct Names(Vec<String>);

impl Names {
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        Self(names.map(|name| serde_json::Value::from(name).to_string() + ":").collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn object<'a>(&self, cells: impl Iterator<Item = Cell<'a>>) -> Vec<u8> {
        let mut out = vec![b'{'];
        for (index, (name, cell)) in self.0.iter().zip(cells).enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(name.as_bytes());
            match cell {
                Cell::Null => out.extend_from_slice(b"null"),
                Cell::Raw(json) => out.extend_from_slice(json),
                Cell::Text(text) => quoted(text, &mut out),
                Cell::Bytes(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) => quoted(text, &mut out),
                    Err(_) => raw(bytes, &mut out),
                },
            }
        }
        out.push(b'}');
        out
    }
}

fn quoted(text: &str, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// A JSON string but for bytes that no JSON has.
fn raw(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Where a page ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Behind so many of its rows.
    Behind(usize),
    /// All of it has one key, and there may be more rows with it.
    Ties,
}

/// Cuts a page of rows by the caps that are left. `first`: nothing was taken before, so at least one row is. `complete`: no
/// row follows the page.
pub(super) fn cut(page: &[Row], records: usize, bytes: usize, first: bool, complete: bool) -> Cut {
    let (mut count, mut size) = (0, 0);
    for row in page {
        if count >= records || (size + row.json.len() > bytes && !(first && count == 0)) {
            break;
        }
        (count, size) = (count + 1, size + row.json.len());
    }
    let Some(last) = count.checked_sub(1).and_then(|last| page.get(last)) else { return Cut::Behind(0) };
    let ends = match page.get(count) {
        Some(next) => next.key != last.key,
        None => complete,
    };
    if ends {
        return Cut::Behind(count);
    }
    // The last key's rows may go on: they are left for the next page, or taken all where there are no others.
    let begin = page[..count].iter().rposition(|row| row.key != last.key).map_or(0, |other| other + 1);
    match page[count..].iter().position(|row| row.key != last.key) {
        _ if begin > 0 => Cut::Behind(begin),
        _ if !first => Cut::Behind(0),
        Some(more) => Cut::Behind(count + more),
        None if complete => Cut::Behind(page.len()),
        None => Cut::Ties,
    }
}

#[cfg(test)]
mod tests {
    use tidemill_checkpoint::position::KeyPart;

    use super::*;

    #[test]
    fn rows_with_one_key_stay_together() {
        let page = |keys: &str| -> Vec<Row> {
            keys.bytes().map(|key| Row { key: vec![KeyPart::Number(key.into())], json: vec![b'x'; 10] }).collect()
        };
        for (keys, records, bytes, first, complete, wanted) in [
            ("abcd", 3, 999, true, false, Cut::Behind(3)),
            ("abcd", 9, 25, true, false, Cut::Behind(2)),
            ("abcd", 9, 5, true, false, Cut::Behind(1)),
            ("abcd", 9, 5, false, false, Cut::Behind(0)),
            ("abcd", 9, 999, true, true, Cut::Behind(4)),
            ("abcd", 9, 999, true, false, Cut::Behind(3)),
            ("abbb", 2, 999, true, false, Cut::Behind(1)),
            ("abbb", 9, 999, true, false, Cut::Behind(1)),
            ("abbb", 9, 999, true, true, Cut::Behind(4)),
            ("bbbc", 2, 999, true, false, Cut::Behind(3)),
            ("bbbb", 2, 999, true, true, Cut::Behind(4)),
            ("bbbb", 2, 999, true, false, Cut::Ties),
            ("bbbb", 2, 999, false, false, Cut::Behind(0)),
            ("", 2, 999, true, true, Cut::Behind(0)),
        ] {
            assert_eq!(cut(&page(keys), records, bytes, first, complete), wanted, "{keys} {records} {bytes}");
        }
    }

    #[test]
    fn a_row_is_an_object() {
        let names = Names::new(["a\"", "b", "c"].into_iter());
        let row = names.object([Cell::Null, Cell::Raw(b"1.50"), Cell::Text("x\n")].into_iter());
        assert_eq!(String::from_utf8_lossy(&row), r#"{"a\"":null,"b":1.50,"c":"x\n"}"#);
        let row = names.object([Cell::Bytes("é".as_bytes()), Cell::Bytes(b"\xe9\"\n"), Cell::Null].into_iter());
        assert_eq!(row, b"{\"a\\\"\":\"\xc3\xa9\",\"b\":\"\xe9\\\"\\u000a\",\"c\":null}");
    }
}

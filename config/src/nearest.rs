//! "Did you mean": the nearest of the names that are known.

/// Words that other systems use, and what they are here. A word may mean several: the first that is known is taken.
const ELSEWHERE: [(&str, &str); 46] = [
    ("input", "sources"),
    ("inputs", "sources"),
    ("from", "sources"),
    ("output", "sinks"),
    ("outputs", "sinks"),
    ("to", "sinks"),
    ("transforms", "steps"),
    ("transform", "steps"),
    ("pipeline", "steps"),
    ("processors", "steps"),
    ("name", "job"),
    ("interval", "trigger"),
    ("schedule", "trigger"),
    ("dlq", "dead_letters"),
    ("folder", "directory"),
    ("dir", "directory"),
    ("file", "directory"),
    ("files", "directory"),
    ("tcp", "socket"),
    ("folder", "files"),
    ("dir", "files"),
    ("directory", "files"),
    ("stdout", "console"),
    ("print", "console"),
    ("screen", "console"),
    ("ndjson", "json"),
    ("tsv", "csv"),
    ("lines", "text"),
    ("gz", "gzip"),
    ("zst", "zstd"),
    ("insert", "append"),
    ("merge", "upsert"),
    ("overwrite", "upsert"),
    ("newest", "latest"),
    ("oldest", "earliest"),
    ("remove", "drop"),
    ("delete", "drop"),
    ("lower", "lowercase"),
    ("upper", "uppercase"),
    ("strip", "trim"),
    ("where", "filter"),
    ("convert", "cast"),
    ("derive", "add"),
    ("query", "sql"),
    ("latin1", "iso-8859-1"),
    ("utf8mb4", "utf-8"),
];

/// The nearest of `known` to `given`, where it is near enough that a person could have meant it.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let known: Vec<&str> = known.into_iter().collect();
    let given = fold(given);
    let meant = ELSEWHERE.iter().filter(|word| word.0.chars().eq(given.iter().copied())).map(|word| word.1);
    if let Some(found) = meant.into_iter().find_map(|meant| known.iter().find(|name| **name == meant)) {
        return Some(found);
    }
    let (distance, length, name) = known
        .into_iter()
        .map(|name| (name, fold(name)))
        .filter(|(_, folded)| given.len().abs_diff(folded.len()) <= MAX_DISTANCE)
        .map(|(name, folded)| (distance(&given, &folded), given.len().max(folded.len()), name))
        .min_by_key(|found| found.0)?;
    (distance * 3 <= length && distance <= MAX_DISTANCE || distance == 1 && length > 2).then_some(name)
}

/// "did you mean `x`?", where something is near.
pub(crate) fn did_you_mean<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(given, known).map(|name| format!("did you mean `{name}`?"))
}

/// Names that differ by more edits are not meant.
const MAX_DISTANCE: usize = 4;
/// Longer names are compared by their beginning: the table of distances stays small.
const MAX_COMPARED: usize = 64;

/// Case, `-`, `_` and blanks make no difference to what a person meant.
fn fold(name: &str) -> Vec<char> {
    name.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).flat_map(char::to_lowercase).take(MAX_COMPARED).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["type", "path", "include", "max_record_bytes", "on_done", "sql"];
        for (given, expected) in [
            ("tpye", Some("type")),
            ("Path", Some("path")),
            ("includes", Some("include")),
            ("maxRecordBytes", Some("max_record_bytes")),
            ("on-done", Some("on_done")),
            ("sq", Some("sql")),
            ("x", None),
            ("colour", None),
            ("query", Some("sql")),
            ("folder", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, known), expected, "{given}");
        }
    }
}

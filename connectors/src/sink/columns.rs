//! What the sinks that write to tables say of columns that a table does not have.

use std::collections::HashMap;

use arrow::datatypes::DataType;

use crate::codec::type_name;

/// What the log's name begins with under which a sink notes that its table is there: a table that is gone is not made anew
/// without a word. Kept with the entries of the marks, under no lane, so that what forgets the marks forgets it too.
pub(super) const TABLE_LOG: &str = "table:";

/// The columns that a table lacks, all of them, and the statement that adds them. `table`: as it stands in a statement;
/// `add`: what stands before each column.
pub(super) fn lacks(
    table: &str,
    add: &str,
    absent: &[(&str, &DataType)],
    quoted: impl Fn(&str) -> String,
    declared: impl Fn(&DataType) -> String,
) -> String {
    let each = |text: &dyn Fn(&str, &DataType) -> String| {
        absent.iter().map(|(name, kind)| text(name, kind)).collect::<Vec<_>>().join(", ")
    };
    let named = each(&|name, kind| format!("`{name}` ({})", type_name(kind)));
    let added = each(&|name, kind| format!("{add} {} {}", quoted(name), declared(kind)));
    let (columns, them) = if absent.len() == 1 { ("column", "the column") } else { ("columns", "them") };
    format!("it has no {columns} {named}: ALTER TABLE {table} {added}, or drop {them} in the job")
}

/// Two columns that are one where names know no case.
pub(super) fn same_name<'a>(
    names: impl IntoIterator<Item = &'a str>,
    fold: fn(&str) -> String,
) -> Option<(&'a str, &'a str)> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    names.into_iter().find_map(|name| seen.insert(fold(name), name).map(|other| (other, name)))
}

/// What is said of them. `server`: whose names they are.
pub(super) fn is_one_column(server: &str, (one, other): (&str, &str)) -> String {
    format!(
        "`{one}` and `{other}` are one column to {server}, whose names know no case: `rename: {{ {other}: another_name }}` in the \
         job, or `select` the one that is wanted"
    )
}

/// What is said of a name that no column can have.
pub(super) fn is_no_name(server: &str, name: &str, why: &str) -> String {
    let shown = name.escape_debug();
    format!(
        "{server} takes no column name {why}, as `{shown}` has: `select` the columns that are wanted in the job, or give the \
         source a `schema:` without this one"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_missing_columns_are_named_at_once() {
        let quoted = |name: &str| format!("\"{name}\"");
        let declared = |kind: &DataType| format!("{kind}");
        let said = |absent: &[(&str, &DataType)]| lacks("t", "ADD COLUMN", absent, quoted, declared);
        assert_eq!(
            said(&[("a", &DataType::Int32)]),
            "it has no column `a` (int32): ALTER TABLE t ADD COLUMN \"a\" Int32, or drop the column in the job"
        );
        assert_eq!(
            said(&[("a", &DataType::Int32), ("b", &DataType::Utf8)]),
            "it has no columns `a` (int32), `b` (string): ALTER TABLE t ADD COLUMN \"a\" Int32, ADD COLUMN \"b\" Utf8, or drop them in the job"
        );
    }

    #[test]
    fn names_that_differ_in_case_are_found() {
        let fold = |name: &str| name.to_ascii_lowercase();
        assert_eq!(same_name(["id", "Name", "at", "NAME"], fold), Some(("Name", "NAME")));
        assert_eq!(same_name(["id", "Ä", "ä"], fold), None);
        assert!(is_one_column("SQLite", ("a", "A")).contains("rename: { A: another_name }"));
        assert!(is_no_name("SQLite", "a\0b", "with a zero byte").contains("`a\\0b`"));
    }
}

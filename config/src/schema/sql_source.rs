//! The keys of `type: sql` of a source, and what they may not say.

use super::{Key, Kind, Scalar, State, Variant, default, optional, required, word};
use crate::{
    error::Problem,
    load::Problems,
    tree::{Node, UNRESOLVED, below},
};

const COLUMN: Kind = Kind::Scalar(Scalar::Column);

pub(crate) const SQL: Variant = Variant {
    name: "sql",
    state: State::Now,
    doc: "New rows of a table or a query, found by a column or two that only grow. SQLite, PostgreSQL, MySQL.",
    keys: KEYS,
    exactly_one: &["table", "query"],
};

static KEYS: &[Key] = &[
    required(
        "url",
        Kind::Scalar(Scalar::Text),
        "`postgres://USER:PASSWORD@HOST:PORT/DATABASE`, `mysql://...`, or `sqlite:PATH`, relative to the job's file. The password best comes by `${file:PATH}`.",
    ),
    optional("table", Kind::Scalar(Scalar::Table), "The table, or `schema.table`."),
    optional(
        "query",
        Kind::Scalar(Scalar::Expression),
        "A query in place of a table. The columns of `order_by` are among its own.",
    ),
    required(
        "order_by",
        Kind::OneOrMore { of: &COLUMN, min: 1 },
        "One or two columns by which later rows are greater: `id`, or `[updated_at, id]`. Numbers, timestamps, dates or texts.",
    ),
    default("poll", Kind::Scalar(Scalar::Duration { min_ms: 1 }), "5s", "How often new rows are asked for."),
    default(
        "start",
        Kind::Words(&[word("earliest"), word("latest")]),
        "earliest",
        "`latest`: rows that are there at the first start are not read.",
    ),
    default(
        "settle",
        Kind::Scalar(Scalar::Duration { min_ms: 0 }),
        "0s",
        "Rows are read once their first `order_by` column, a timestamp, lies so far in the past: for transactions that end late.",
    ),
    default(
        "timeout",
        Kind::Scalar(Scalar::Duration { min_ms: 1000 }),
        "30s",
        "How long the answer to one question may take before the source is retried: a server that has fallen silent, a lock, a table without an index over `order_by`.",
    ),
    optional(
        "ca",
        Kind::Scalar(Scalar::Path),
        "A file of certificates (PEM) that the server's must be signed by, relative to the job's file. Left out: those that the system trusts.",
    ),
    default(
        "metadata",
        Kind::List { of: &Kind::Words(&[word("position")]), min: 0 },
        "[]",
        "Columns to add: `position` becomes `_position`.",
    ),
];

/// What begins the address of each kind of database.
const SCHEMES: [&str; 4] = ["postgres://", "postgresql://", "mysql://", "sqlite:"];

pub(crate) fn check(node: &Node, path: &str, problems: &mut Problems) {
    if let Some(url) = node.get("url")
        && let Some(text) = url.value.text().filter(|text| *text != UNRESOLVED)
        && !SCHEMES.iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme))
    {
        let problem = Problem::new("this address is of no database that can be read")
            .help("write `postgres://USER@HOST:PORT/DATABASE`, `mysql://USER@HOST:PORT/DATABASE` or `sqlite:PATH`");
        problems.add(url.value.place.at(&below(path, "url")), problem);
    }
    let is_sqlite = node.text_of("url").is_some_and(|url| url.starts_with("sqlite:"));
    if let Some(settle) = node.get("settle").filter(|_| is_sqlite) {
        let problem = Problem::new("`settle` is for servers").help("remove it: SQLite has one writer at a time");
        problems.add(settle.place.at(&below(path, "settle")), problem);
    }
    if let Some(order) = node.get("order_by").filter(|order| order.value.items().len() > 2) {
        let problem = Problem::new("`order_by` has at most two columns")
            .help("name the one that grows, and one that tells equal ones apart");
        problems.add(order.value.place.at(&below(path, "order_by")), problem);
    }
    if let Some(codec) = node.get("codec").filter(|codec| codec.value.text() != Some("json")) {
        let problem = Problem::new("rows of a database are read as JSON").help("remove `codec`");
        problems.add(codec.place.at(&below(path, "codec")), problem);
    }
}

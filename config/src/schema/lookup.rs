//! The keys of the step `lookup`, and of the databases that it asks.

use super::{
    Key, Kind, Object, Scalar, Variants, default,
    job::{COLUMN, COLUMNS, CSV_READ, JSON_TABLE, NEW_COLUMN, TYPE, at_least, duration, size},
    optional, required, word,
};

/// The least time between two looks at a table.
const MIN_REFRESH_MS: u64 = 100;

/// `[a, b]` where both sides have one name, `{ a: b }` where not.
const MATCH: Kind = Kind::Either(&COLUMNS, &Kind::Map { key: Scalar::Column, value: &COLUMN, noun: "column" });
const TAKE: Kind = Kind::Either(&COLUMNS, &Kind::Map { key: Scalar::Column, value: &NEW_COLUMN, noun: "column" });

pub(crate) static LOOKUP: Object = Object {
    noun: "`lookup`",
    exactly_one: &["table", "sql", "key"],
    keys: &[
        optional(
            "table",
            Kind::Scalar(Scalar::Text),
            "A CSV or JSON file, relative to the job's file (`.gz` and `.zst` are decompressed); with `database`, the name of a table.",
        ),
        optional("sql", Kind::Scalar(Scalar::Text), "With `database`: a query whose rows are the table."),
        optional(
            "key",
            Kind::Scalar(Scalar::Text),
            "With a Redis `database`: the key of a row's value, with columns of the row in braces, `user:{id}`. A brace of the key itself is written twice: `{{user:{id}}}:cart`.",
        ),
        optional("database", Kind::Scalar(Scalar::Text), "The name of a database under the job's `databases:`."),
        optional(
            "match",
            MATCH,
            "What must be equal: `{ column: column of the table }`, or a list where both have one name. Not with `key`.",
        ),
        required(
            "take",
            TAKE,
            "Columns of the table that the rows get: a list, or `{ column of the table: its name in the rows }`.",
        ),
        default(
            "on_missing",
            Kind::Words(&[word("null"), word("reject"), word("drop")]),
            "\"null\"",
            "A row without a match gets nulls, becomes a dead letter, or is left out.",
        ),
        default(
            "duplicates",
            Kind::Words(&[word("fail"), word("first"), word("last")]),
            "fail",
            "If a key occurs more than once: refuse the table, or use the first or the last such row.",
        ),
        optional(
            "schema",
            Kind::Map { key: Scalar::NewColumn, value: &TYPE, noun: "column" },
            "The table's columns and their types. Left out: the database's own types, for files inferred over the whole file.",
        ),
        optional(
            "codec",
            Kind::Variants(&CODECS),
            "The format of a file. Left out: by its ending, `.csv`, `.tsv`, `.json`, `.jsonl` or `.ndjson`.",
        ),
        optional(
            "mode",
            Kind::Words(&[word("snapshot"), word("query")]),
            "`snapshot`: the whole table is read, and a replay gives the same rows. `query`: the database is asked for the keys of each batch. Left out: `snapshot`, with Redis `query`.",
        ),
        optional(
            "refresh",
            duration(MIN_REFRESH_MS),
            "With `mode: snapshot`: how often to check for a newer version of the table. Left out: `1s` for files, `60s` for databases.",
        ),
        default(
            "max_bytes",
            size(1, u64::MAX),
            "256MiB",
            "With `mode: snapshot`: a table that takes more memory is refused.",
        ),
        optional(
            "on_lost_table",
            Kind::Words(&[word("continue"), word("stop")]),
            "With `mode: snapshot`: what a replay does where the table of its batch is not kept here and has changed since: go on with the table as it is now, or stop. Left out: `stop`; with `lanes: partition`, where a batch may be replayed on another machine, `continue`, except where the table decides which of several sinks (or the dead letters) a row goes to.",
        ),
        default("cache", Kind::Object(&CACHE), "{}", "With `mode: query`: rows that are remembered."),
        default("timeout", duration(1), "30s", "How long to wait for the database before the batch is retried."),
        default(
            "value",
            Kind::Words(&[word("hash"), word("json"), word("text")]),
            "hash",
            "What is under a Redis key: a hash with a field for each column, the text of a JSON object, or a text: the column `value`.",
        ),
    ],
};

pub(crate) static CACHE: Object = Object {
    noun: "`cache`",
    exactly_one: &[],
    keys: &[
        default("entries", at_least(0), "100_000", "Keys whose rows are remembered; `0`: none."),
        default("ttl", duration(0), "60s", "For how long."),
    ],
};

pub(crate) static CODECS: Variants =
    Variants { noun: "codec", short: true, common: &[], variants: &[JSON_TABLE, CSV_READ] };

/// An address alone, or with what belongs to it.
pub(crate) const DATABASE: Kind = Kind::Either(&Kind::Scalar(Scalar::Text), &Kind::Object(&DATABASE_KEYS));

pub(crate) static DATABASE_KEYS: Object = Object {
    noun: "a database",
    exactly_one: &[],
    keys: &[
        required(
            "url",
            Kind::Scalar(Scalar::Text),
            "`postgres://`, `mysql://`, `redis://` or `rediss://` with user, password, host and database; or the path of a SQLite file.",
        ),
        optional(
            "ca",
            Kind::Scalar(Scalar::Path),
            "A file of certificates (PEM) that the server's must be signed by, relative to the job's file. Left out: those that the system trusts.",
        ),
    ],
};

pub(crate) const DATABASES: Key = optional(
    "databases",
    Kind::Map { key: Scalar::Name, value: &DATABASE, noun: "database" },
    "Databases that the lookups of `steps` ask, by name: an address, or a mapping.",
);

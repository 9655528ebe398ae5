//! The keys of sinks that write to a table of a database server.

use super::{Key, Kind, Scalar, default, guarantee::GUARANTEE, job::COLUMNS, optional, required, word};

const TABLE: Kind = Kind::Scalar(Scalar::Table);
const MODE: Kind = Kind::Words(&[word("append"), word("upsert")]);

const MODE_KEY: Key = default(
    "mode",
    MODE,
    "append",
    "`append` inserts; `upsert` replaces rows with the same `key`: of a batch the last row of each key stays.",
);
const KEY: Key = optional("key", COLUMNS, "The columns of the key, with `mode: upsert`.");
const DELETE_WHEN: Key = optional(
    "delete_when",
    Kind::Scalar(Scalar::Column),
    "With `mode: upsert`: a boolean column. Rows where it is true delete their key; the column itself is not stored.",
);
const CA: Key = optional(
    "ca",
    Kind::Scalar(Scalar::Path),
    "A file of certificates (PEM) that the server's must be signed by, relative to the job's file. Left out: those that the system trusts.",
);

pub(crate) const ON_NEW_COLUMN: Key = default(
    "on_new_column",
    Kind::Words(&[word("fail"), word("add")]),
    "fail",
    "Where the rows have a column that the table lacks: stop, with the statement that adds it, or add it (ALTER TABLE).",
);

pub(crate) static MYSQL: &[Key] = &[
    required(
        "url",
        Kind::Scalar(Scalar::Url("mysql")),
        "`mysql://USER:PASSWORD@HOST:PORT/DATABASE`; `?require_ssl=true` encrypts and checks the server's certificate, `verify_identity=false` all of it but the host, `verify_ca=false` nothing. The password best comes by `${file:PATH}`.",
    ),
    required("table", TABLE, "The table, or `database.table`. It is made where it is absent."),
    MODE_KEY,
    KEY,
    DELETE_WHEN,
    ON_NEW_COLUMN,
    GUARANTEE,
    CA,
];

pub(crate) static POSTGRES: &[Key] = &[
    required(
        "url",
        Kind::Scalar(Scalar::Url("postgres")),
        "`postgres://USER:PASSWORD@HOST:PORT/DATABASE`; `?sslmode=` is `disable`, `prefer`, `require`, `verify-ca` or `verify-full`, `&sslcert=FILE&sslkey=FILE` show a certificate. The password best comes by `${file:PATH}`.",
    ),
    required("table", TABLE, "The table, or `schema.table`. It is made where it is absent."),
    MODE_KEY,
    KEY,
    DELETE_WHEN,
    ON_NEW_COLUMN,
    GUARANTEE,
    CA,
];

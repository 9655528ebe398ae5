//! The keys of a job.

use super::{
    Key, Kind, Object, Scalar, State, Variant, Variants, Verb, Word, codec, database, default, kafka_sink, later,
    lookup, optional, required, word,
};

const TEXT: Kind = Kind::Scalar(Scalar::Text);
const ANY_TEXT: Kind = Kind::Scalar(Scalar::AnyText);
const NAME: Kind = Kind::Scalar(Scalar::Name);
const PATH: Kind = Kind::Scalar(Scalar::Path);
pub(super) const FLAG: Kind = Kind::Scalar(Scalar::Flag);
const EXPRESSION: Kind = Kind::Scalar(Scalar::Expression);
pub(super) const COLUMN: Kind = Kind::Scalar(Scalar::Column);
pub(super) const NEW_COLUMN: Kind = Kind::Scalar(Scalar::NewColumn);
pub(super) const TYPE: Kind = Kind::Scalar(Scalar::Type);
pub(super) const COLUMNS: Kind = Kind::OneOrMore { of: &COLUMN, min: 1 };
const GLOB: Kind = Kind::Scalar(Scalar::Glob);
const GLOBS: Kind = Kind::OneOrMore { of: &GLOB, min: 1 };
const NO_GLOBS: Kind = Kind::OneOrMore { of: &GLOB, min: 0 };
const CHARACTER: Kind = Kind::Scalar(Scalar::Character);
const ENCODING: Kind = Kind::Scalar(Scalar::Encoding);

pub(super) const fn at_least(min: u64) -> Kind {
    Kind::Scalar(Scalar::Count { min, max: usize::MAX as u64 })
}
pub(super) const fn size(min: u64, max: u64) -> Kind {
    Kind::Scalar(Scalar::Size { min, max })
}
pub(super) const fn duration(min_ms: u64) -> Kind {
    Kind::Scalar(Scalar::Duration { min_ms })
}

/// No record is longer than a slice of bytes can address.
const MAX_RECORD_BYTES: u64 = 1 << 30;
/// A cap on one batch that no machine reaches.
const MAX_BATCH_BYTES: u64 = 1 << 40;

pub(crate) static JOB: Object = Object {
    noun: "a job",
    exactly_one: &[],
    keys: &[
        required("job", NAME, "The job's identity in checkpoints and in sinks. Another name is another job."),
        optional(
            "lanes",
            Kind::Words(&[word("single"), word("partition")]),
            "`single`: one lane with all shards. `partition`: one lane per partition, for sources that have partitions and sinks that keep marks. Left out: what fits the job.",
        ),
        default(
            "trigger",
            Kind::Scalar(Scalar::Trigger),
            "1s",
            "When a batch begins: every so often, or `asap` (as soon as there is data).",
        ),
        default("batch", Kind::Object(&BATCH), "{}", "Soft caps of one batch."),
        default(
            "takeover_after",
            duration(1_000),
            "30s",
            "After how long without a sign of life another daemon's lane is taken over.",
        ),
        optional(
            "max_rejected",
            Kind::Scalar(Scalar::Share),
            "More rejected records than so many (`100`), or than this part (`5%`), stop the job before the batch with them is committed. Judged over the last 1,000 records, or over the batch where it has more. Left out: nothing stops it.",
        ),
        required(
            "sources",
            Kind::Map { key: Scalar::Name, value: &SOURCE, noun: "source" },
            "Where records come from, by name. The rows of several sources are united by column name.",
        ),
        default("steps", Kind::List { of: &Kind::Step, min: 0 }, "[]", "What happens to the rows, in order."),
        lookup::DATABASES,
        required("sinks", Kind::Map { key: Scalar::Name, value: &SINK, noun: "sink" }, "Where rows go, by name."),
        optional(
            "dead_letters",
            Kind::Variants(&DEAD_LETTERS),
            "Where records go that could not be processed: any sink. Left out: files in `<data dir>/<job>/dead-letters`.",
        ),
    ],
};

pub(crate) static BATCH: Object = Object {
    noun: "`batch`",
    exactly_one: &[],
    keys: &[
        default("max_records", at_least(1), "1_000_000", "Records, over all sources."),
        default("max_bytes", size(1, MAX_BATCH_BYTES), "16MiB", "Bytes as they are read, over all sources."),
    ],
};

const SOURCE: Kind = Kind::Variants(&SOURCES);
const SINK: Kind = Kind::Variants(&SINKS);

pub(crate) static SOURCES: Variants = Variants {
    noun: "source",
    short: false,
    common: &[
        optional("formerly", NAME, "The source's name before it was renamed: it goes on where that one stood."),
        default("codec", Kind::Variants(&SOURCE_CODECS), "json", "How a record becomes a row."),
        optional(
            "schema",
            Kind::Map { key: Scalar::NewColumn, value: &TYPE, noun: "column" },
            "Columns and their types. Left out: inferred from the first batch, then pinned.",
        ),
    ],
    variants: &[
        Variant {
            name: "socket",
            state: State::Now,
            doc: "Records over TCP. They are kept in a spool on disk until every sink has them.",
            keys: SOCKET,
            exactly_one: &["connect", "listen"],
        },
        Variant {
            name: "directory",
            state: State::Now,
            doc: "Files of a folder, each record once. `.gz` and `.zst` are decompressed by their ending.",
            keys: DIRECTORY,
            exactly_one: &[],
        },
        Variant {
            name: "test",
            state: State::Hidden,
            doc: "Shard files that move between lanes, for tests.",
            keys: TEST,
            exactly_one: &[],
        },
        super::kafka_source::KAFKA,
        super::sql_source::SQL,
        later("kinesis"),
        later("hdfs"),
        later("http"),
        later("s3"),
    ],
};

const POSITION: Word = word("position");

static SOCKET: &[Key] = &[
    optional("connect", Kind::Scalar(Scalar::Connect), "`host:port` to connect to. It reconnects with growing pauses."),
    optional(
        "listen",
        Kind::Scalar(Scalar::Listen),
        "`host:port` to listen on, for many clients at once. Port 0: any that is free.",
    ),
    default(
        "framing",
        Kind::WordOr(&[word("lines")], &FRAMING),
        "lines",
        "Where a record ends: `lines`, `{ delimiter: TEXT }` or `{ length_prefix: BYTES }`.",
    ),
    default("max_record_bytes", size(1, MAX_RECORD_BYTES), "1MiB", "Longer records are rejected."),
    default(
        "ack",
        Kind::Words(&[word("none"), word("line")]),
        "none",
        "`line`: the sender is answered with the count of its records that are safe on disk, a line each time it grows.",
    ),
    optional(
        "on_lost_spool",
        Kind::Words(&[word("continue"), word("stop")]),
        "What to do where the spool is gone with records in it. Left out: `stop` with `ack: line`, else `continue`.",
    ),
    default("max_spool_bytes", size(1 << 16, u64::MAX), "1GiB", "When the spool is this full, senders are held back."),
    default(
        "max_connections",
        at_least(2),
        "1024",
        "Connections at once, half of them from one address at most. When all are open, the one that was silent for longest (10 s at least) is closed for a new one.",
    ),
    optional(
        "idle_timeout",
        duration(1000),
        "A connection on which nothing came for this long is closed. Left out: only when its place is needed.",
    ),
    default(
        "metadata",
        Kind::List { of: &Kind::Words(&[POSITION]), min: 0 },
        "[]",
        "Columns to add: `position` becomes `_position`.",
    ),
];

pub(crate) static FRAMING: Object = Object {
    noun: "`framing`",
    exactly_one: &["delimiter", "length_prefix"],
    keys: &[
        optional("delimiter", TEXT, "The text that ends a record. It is no part of it."),
        optional(
            "length_prefix",
            Kind::Words(&[word("1"), word("2"), word("4"), word("8")]),
            "Bytes of a big-endian length before each record: 1, 2, 4 or 8.",
        ),
    ],
};

static DIRECTORY: &[Key] = &[
    required("path", PATH, "The folder, relative to the job's file."),
    default("include", GLOBS, "[\"*\"]", "Globs of file names to take (with `recursive`: of paths below the folder)."),
    default(
        "exclude",
        NO_GLOBS,
        "[]",
        "Globs of file names to leave. Names that begin with `.` or `_` or end in `.tmp` or `.part` are left anyway.",
    ),
    default("recursive", FLAG, "false", "Whether folders below are watched too."),
    default("settle", duration(0), "1s", "How long a file's size and time stand still before it is taken."),
    default(
        "read",
        Kind::Words(&[word("settled"), Word { name: "growing", state: State::Later }]),
        "settled",
        "`settled`: a file is read once it is complete.",
    ),
    default(
        "on_done",
        Kind::WordOr(&[word("keep"), word("delete")], &MOVE),
        "keep",
        "What happens to a file once every sink has its records: `keep`, `delete` or `{ move: FOLDER }`.",
    ),
    default(
        "on_changed",
        Kind::Words(&[word("fail"), word("dead_letter")]),
        "fail",
        "A file that changed after it was taken: stop, or one dead letter for the file.",
    ),
    default(
        "start",
        Kind::Words(&[word("earliest"), word("latest")]),
        "earliest",
        "`latest`: files that are there at the first start are not read.",
    ),
    default(
        "metadata",
        Kind::List { of: &Kind::Words(&[word("file"), POSITION]), min: 0 },
        "[]",
        "Columns to add: `file` becomes `_file`, `position` becomes `_position`.",
    ),
];

pub(crate) static MOVE: Object =
    Object { noun: "`on_done`", exactly_one: &[], keys: &[required("move", PATH, "The folder to move it to.")] };

static TEST: &[Key] = &[
    required("path", PATH, "A folder: `shards/<n>` hold records as lines, `assign/<owner>` the lanes of each daemon."),
    default("metadata", Kind::List { of: &Kind::Words(&[POSITION]), min: 0 }, "[]", "Columns to add."),
];

pub(super) const JSON: Variant = Variant {
    name: "json",
    state: State::Now,
    doc: "An object per record; a file may also be one array of objects.",
    keys: &[],
    exactly_one: &[],
};
/// Of sources.
pub(super) const JSON_READ: Variant = Variant { keys: &[JSON_ENCODING, JSON_FRAMING], ..JSON };
/// Of tables.
pub(super) const JSON_TABLE: Variant = Variant { keys: &[JSON_ENCODING], ..JSON };

const JSON_ENCODING: Key = default(
    "encoding",
    ENCODING,
    "utf-8",
    "The encoding of the bytes, by its label. A byte order mark goes before it.",
);
const JSON_FRAMING: Key = default(
    "framing",
    Kind::Words(&[word("none"), word("confluent")]),
    "none",
    "What comes before a record: nothing, or a registry's zero byte and the four bytes of a schema's id, which are passed over.",
);

/// Of sinks.
pub(super) const CSV: Variant = Variant {
    name: "csv",
    state: State::Now,
    doc: "RFC 4180, and its usual relatives.",
    keys: CSV_KEYS,
    exactly_one: &[],
};
/// Of sources and tables.
pub(super) const CSV_READ: Variant = Variant { keys: CSV_READ_KEYS, ..CSV };
pub(super) const TEXT_CODEC: Variant = Variant {
    name: "text",
    state: State::Now,
    doc: "A record is one row with the column `text`.",
    keys: &[],
    exactly_one: &[],
};

/// Of sources.
const TEXT_READ: Variant = Variant {
    keys: &[default(
        "encoding",
        ENCODING,
        "utf-8",
        "The encoding of the bytes, by its label. A byte order mark goes before it.",
    )],
    ..TEXT_CODEC
};

const BYTES_ELSEWHERE: Variant = Variant {
    state: State::Elsewhere(
        "bytes are single records: sources read them and the sink `kafka` writes them, files are not made of them",
    ),
    ..codec::BYTES
};

pub(crate) static SOURCE_CODECS: Variants = Variants {
    noun: "codec",
    short: true,
    common: &[],
    variants: &[
        JSON_READ,
        CSV_READ,
        TEXT_READ,
        Variant {
            name: "parquet",
            state: State::Elsewhere("parquet is written by sinks and not read by sources in this version"),
            doc: "",
            keys: &[],
            exactly_one: &[],
        },
        codec::BYTES,
        codec::AVRO,
        codec::PROTOBUF,
        later("xml"),
    ],
};

pub(crate) static SINK_CODECS: Variants = Variants {
    noun: "codec",
    short: true,
    common: &[],
    variants: &[
        JSON,
        CSV,
        TEXT_CODEC,
        Variant { name: "parquet", state: State::Now, doc: "Columnar files.", keys: &[], exactly_one: &[] },
        BYTES_ELSEWHERE,
        later("avro"),
        later("protobuf"),
        later("orc"),
    ],
};

const CSV_DELIMITER: Key = default(
    "delimiter",
    Kind::Scalar(Scalar::Delimiter),
    "\",\"",
    "Between fields: one ASCII character (`\\t` for a tab), or up to eight that are no letters and digits.",
);
const CSV_HEADER: Key = default("header", FLAG, "true", "Whether the first record names the columns.");
const CSV_ESCAPE: Key =
    optional("escape", CHARACTER, "Before a quote inside a quoted field. Left out: quotes are doubled.");
const CSV_NULLS: Key = optional(
    "nulls",
    Kind::OneOrMore { of: &ANY_TEXT, min: 0 },
    "Texts that mean null, where they stand without quotes. Left out: the empty one.",
);

static CSV_KEYS: &[Key] = &[
    CSV_DELIMITER,
    CSV_HEADER,
    default("quote", CHARACTER, "'\"'", "Around fields that hold delimiters, quotes or line breaks."),
    CSV_ESCAPE,
    CSV_NULLS,
    default("encoding", ENCODING, "utf-8", "Files are written in utf-8 only."),
];

static CSV_READ_KEYS: &[Key] = &[
    CSV_DELIMITER,
    CSV_HEADER,
    default(
        "quote",
        Kind::Scalar(Scalar::Quote),
        "'\"'",
        "Around fields that hold delimiters, quotes or line breaks. `none`: a quote is a character like any other.",
    ),
    CSV_ESCAPE,
    CSV_NULLS,
    default(
        "encoding",
        ENCODING,
        "utf-8",
        "The encoding of the bytes, by its label (`windows-1252`, `utf-16le`). A byte order mark goes before it.",
    ),
    default("skip", at_least(0), "0", "Lines at the beginning of each file that are left out, before the header."),
    optional("comment", TEXT, "Lines that begin with this text are no records: `\"#\"`."),
    default(
        "decimal",
        Kind::Words(&[word("."), word(",")]),
        "\".\"",
        "The decimal mark of numbers. With `\",\"` a number is `1,5`, and `1.5` is not one.",
    ),
    optional(
        "thousands",
        Kind::Scalar(Scalar::Thousands),
        "The character between groups of three digits: `.`, `,`, `'`, `_` or a space.",
    ),
    default(
        "multiline",
        FLAG,
        "true",
        "Whether a quoted field may hold line ends. `false`: a quote that is not closed costs its line and no other.",
    ),
    default(
        "missing_fields",
        Kind::Words(&[word("reject"), word("null")]),
        "reject",
        "A record with fewer fields than columns: a dead letter, or null in the columns that it lacks.",
    ),
    default(
        "extra_fields",
        Kind::Words(&[word("reject"), word("ignore"), word("keep")]),
        "reject",
        "A record with more fields than columns: a dead letter; without them; or they are kept in `_extra`, as `column_N`.",
    ),
];

pub(crate) static SINKS: Variants = Variants {
    noun: "sink",
    short: false,
    common: &[
        optional("formerly", NAME, "The sink's name before it was renamed: it goes on with that one's mark."),
        optional(
            "from",
            Kind::Scalar(Scalar::Reference),
            "The step or source whose rows it gets. Left out: the last step.",
        ),
        optional("where", EXPRESSION, "Only rows for which this is true."),
    ],
    variants: SINK_TYPES,
};

pub(crate) static DEAD_LETTERS: Variants = Variants { noun: "sink", short: false, common: &[], variants: SINK_TYPES };

static SINK_TYPES: &[Variant] = &[
    Variant {
        name: "console",
        state: State::Now,
        doc: "Prints rows as a table. It keeps no mark: at least once.",
        keys: CONSOLE,
        exactly_one: &[],
    },
    Variant {
        name: "files",
        state: State::Now,
        doc: "Files in a folder, exactly once.",
        keys: FILES,
        exactly_one: &[],
    },
    Variant {
        name: "sqlite",
        state: State::Now,
        doc: "A table in a SQLite database, exactly once.",
        keys: SQLITE,
        exactly_one: &[],
    },
    Variant { name: "blackhole", state: State::Now, doc: "Nowhere: to measure the rest.", keys: &[], exactly_one: &[] },
    Variant {
        name: "postgres",
        state: State::Now,
        doc: "A table in a PostgreSQL database, exactly once.",
        keys: database::POSTGRES,
        exactly_one: &[],
    },
    Variant {
        name: "mysql",
        state: State::Now,
        doc: "A table in a MySQL or MariaDB database, exactly once.",
        keys: database::MYSQL,
        exactly_one: &[],
    },
    Variant {
        name: "kafka",
        state: State::Now,
        doc: "A Kafka topic, in transactions, exactly once.",
        keys: kafka_sink::KAFKA,
        exactly_one: &[],
    },
    later("kinesis"),
    later("http"),
    later("s3"),
    later("redis"),
    later("clickhouse"),
    later("elasticsearch"),
];

static CONSOLE: &[Key] = &[optional("first", at_least(1), "Rows of each batch to print. Left out: all.")];

static FILES: &[Key] = &[
    required("path", PATH, "The folder, relative to the job's file. It is made where it is absent."),
    default("codec", Kind::Variants(&SINK_CODECS), "json", "The format."),
    default(
        "compression",
        Kind::Words(&[word("none"), word("gzip"), word("zstd")]),
        "none",
        "How files are compressed.",
    ),
    default(
        "partition_by",
        Kind::OneOrMore { of: &COLUMN, min: 0 },
        "[]",
        "Columns whose values name folders: `day=2015-05-17/`.",
    ),
    optional(
        "roll",
        Kind::Object(&ROLL),
        "Append batches to one file until it has this size or age (json and csv). Left out: a file per batch.",
    ),
];

pub(crate) static ROLL: Object = Object {
    noun: "`roll`",
    exactly_one: &[],
    keys: &[
        default("bytes", size(1, u64::MAX), "128MiB", "A new file from this size on."),
        default("after", duration(1), "1h", "A new file after this time."),
    ],
};

static SQLITE: &[Key] = &[
    required("path", PATH, "The database file, relative to the job's file."),
    required("table", Kind::Scalar(Scalar::Table), "The table. It is made where it is absent."),
    default(
        "mode",
        Kind::Words(&[word("append"), word("upsert")]),
        "append",
        "`append` inserts; `upsert` replaces rows with the same `key`.",
    ),
    optional("key", COLUMNS, "The columns of the key, with `mode: upsert`."),
    database::ON_NEW_COLUMN,
];

/// The keys that any step may have beside its verb.
pub(crate) static STEP: Object = Object {
    noun: "a step",
    exactly_one: &[],
    keys: &[
        optional(
            "name",
            NAME,
            "A name for `from:`, for metrics and for dead letters. Left out: its number and verb, like `3-cast`.",
        ),
        optional(
            "from",
            Kind::OneOrMore { of: &Kind::Scalar(Scalar::Reference), min: 1 },
            "The steps or sources whose rows it takes. Left out: the step before; the first step takes all sources.",
        ),
        optional("when", EXPRESSION, "Rows for which this is not true pass the step unchanged."),
        default(
            "on_error",
            Kind::Words(&[word("reject"), word("fail"), word("set_null")]),
            "reject",
            "A row that cannot be processed becomes a dead letter, stops the job, or gets null.",
        ),
        default(
            "per_lane",
            FLAG,
            "false",
            "With `lanes: partition`: a step that gathers rows (`GROUP BY`, a join) does so for each lane by itself.",
        ),
    ],
};

const fn verb(name: &'static str, kind: Kind, doc: &'static str, example: &'static str) -> Verb {
    Verb { name, kind: Some(kind), doc, example }
}
const fn later_verb(name: &'static str, doc: &'static str) -> Verb {
    Verb { name, kind: None, doc, example: "" }
}

pub(crate) static VERBS: &[Verb] = &[
    verb("select", COLUMNS, "Keeps these columns, in this order.", "select: [time, agent]"),
    verb("drop", COLUMNS, "Removes these columns.", "drop: [ident, auth]"),
    verb(
        "rename",
        Kind::Map { key: Scalar::Column, value: &NEW_COLUMN, noun: "column" },
        "Old name: new name.",
        "rename: { clientip: client }",
    ),
    verb(
        "cast",
        Kind::Map { key: Scalar::Column, value: &TYPE, noun: "column" },
        "Changes types. A text that is no such value is an error of its row.",
        "cast: { response: int32 }",
    ),
    verb("trim", COLUMNS, "Takes white space off both ends.", "trim: [agent]"),
    verb("lowercase", COLUMNS, "Unicode lower case.", "lowercase: [agent]"),
    verb("uppercase", COLUMNS, "Unicode upper case.", "uppercase: [country]"),
    verb(
        "split",
        Kind::Object(&SPLIT),
        "Splits a text into rows, or with `into` into columns.",
        "split: { column: request, by: \" \", into: [method, path, protocol] }",
    ),
    verb("filter", EXPRESSION, "Keeps rows for which this is true.", "filter: response < 500"),
    verb(
        "add",
        Kind::Map { key: Scalar::NewColumn, value: &EXPRESSION, noun: "column" },
        "New columns by SQL expressions.",
        "add: { is_bot: \"agent LIKE '%bot%'\" }",
    ),
    verb(
        "parse_timestamp",
        Kind::Object(&PARSE_TIMESTAMP),
        "Text to timestamp.",
        "parse_timestamp: { column: time, format: \"%d/%b/%Y:%H:%M:%S %z\" }",
    ),
    verb(
        "drop_empty",
        COLUMNS,
        "Removes rows whose text is empty or null in any of these columns.",
        "drop_empty: [agent]",
    ),
    verb("drop_nulls", COLUMNS, "Removes rows that are null in any of these columns.", "drop_nulls: [response]"),
    verb(
        "sql",
        EXPRESSION,
        "A query over `batch`; several inputs go by their names.",
        "sql: SELECT agent, count(*) AS hits FROM batch GROUP BY agent",
    ),
    verb(
        "lookup",
        Kind::Object(&lookup::LOOKUP),
        "Adds columns of a table: of a file or a database.",
        "lookup: { table: countries.csv, match: { country: code }, take: [name, region] }",
    ),
    later_verb("replace", "Replaces a pattern in a text."),
    later_verb("fill", "Puts a value where there is null."),
    later_verb("explode", "A list to rows."),
    later_verb("hash", "Replaces a value by its hash."),
    later_verb("mask", "Hides a value."),
    later_verb("parse_json", "Text to columns."),
    later_verb("parse_regex", "Text to columns."),
    later_verb("deduplicate", "Keeps the first row of each key."),
    later_verb("validate", "Rejects rows that break a rule."),
];

pub(crate) static SPLIT: Object = Object {
    noun: "`split`",
    exactly_one: &[],
    keys: &[
        required("column", COLUMN, "The column with the text."),
        required("by", TEXT, "The text between the parts."),
        optional(
            "into",
            Kind::List { of: &NEW_COLUMN, min: 1 },
            "Columns for the parts. Left out: a row for each part.",
        ),
    ],
};

pub(crate) static PARSE_TIMESTAMP: Object = Object {
    noun: "`parse_timestamp`",
    exactly_one: &[],
    keys: &[
        required("column", COLUMN, "The column with the text."),
        optional(
            "format",
            Kind::OneOrMore { of: &TEXT, min: 1 },
            "A strftime format, or several that are tried in turn. Left out: RFC 3339.",
        ),
        optional("zone", TEXT, "The zone of texts that name none (`Europe/Berlin`, `+02:00`). Left out: UTC."),
    ],
};

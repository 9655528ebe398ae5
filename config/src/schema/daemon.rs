//! The keys of the daemon's own file.

use super::{Kind, Object, Scalar, default, optional, word};

/// Less memory than this holds no batch.
const MIN_MEMORY: u64 = 16 << 20;

pub(crate) static DAEMON: Object = Object {
    noun: "the daemon's file",
    exactly_one: &[],
    keys: &[
        default(
            "data_dir",
            Kind::Scalar(Scalar::Path),
            "tidemill-data",
            "Ledger, spools and dead letters, relative to this file.",
        ),
        optional(
            "owner",
            Kind::Scalar(Scalar::Text),
            "The name under which this daemon owns lanes. Left out: the host's name.",
        ),
        default(
            "http",
            Kind::Scalar(Scalar::Listen),
            "127.0.0.1:9720",
            "Where metrics, health and progress are served. Port 0: any that is free.",
        ),
        default(
            "http_hosts",
            Kind::OneOrMore { of: &Kind::Scalar(Scalar::Text), min: 0 },
            "[]",
            "Further host names under which HTTP answers: `*.example.org` for all names below one, `*` for any. IP addresses, names without a dot and the machine's own name need no listing.",
        ),
        default(
            "memory",
            Kind::Scalar(Scalar::Size { min: MIN_MEMORY, max: u64::MAX }),
            "512MiB",
            "The byte budget of all jobs together.",
        ),
        default("log", Kind::Object(&LOG), "{}", "How logs look."),
        default(
            "jobs",
            Kind::OneOrMore { of: &Kind::Scalar(Scalar::Glob), min: 0 },
            "[]",
            "Globs of job files, relative to this file.",
        ),
    ],
};

pub(crate) static LOG: Object = Object {
    noun: "`log`",
    exactly_one: &[],
    keys: &[
        default("format", Kind::Words(&[word("text"), word("json")]), "text", "Lines for people, or JSON lines."),
        default(
            "level",
            Kind::Scalar(Scalar::Level),
            "info",
            "`error`, `warn`, `info`, `debug`, `trace` or `off`; or a filter like `info,tidemill=debug`.",
        ),
    ],
};

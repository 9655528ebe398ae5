//! Which keys exist, with their types, defaults and docs: the one description of the files.
//!
//! `check` walks a file along it, [`json_schema`] is made from it, and so are the tables of `docs/jobs.md`
//! ([`options_markdown`]). A new key is a line in `job` or `daemon` below, and a field in `build`.

mod codec;
pub(crate) mod daemon;
mod database;
mod guarantee;
pub(crate) mod job;
mod json;
mod kafka;
pub(crate) mod kafka_sink;
pub(crate) mod kafka_source;
pub(crate) mod lookup;
mod markdown;
pub(crate) mod scalar;
pub(crate) mod sql_source;

pub use json::{daemon_json_schema, json_schema};
pub use markdown::{options_markdown, sections};
pub(crate) use scalar::Scalar;

/// What a value may be.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A text, number, unit, ...
    Scalar(Scalar),
    /// One of these words.
    Words(&'static [Word]),
    /// A list with at least `min` items.
    List { of: &'static Kind, min: usize },
    /// One, or a list of at least `min`.
    OneOrMore { of: &'static Kind, min: usize },
    /// Free names to values, at least one.
    Map { key: Scalar, value: &'static Kind, noun: &'static str },
    /// These keys.
    Object(&'static Object),
    /// Keys that depend on `type:`.
    Variants(&'static Variants),
    /// The first where one value or a list stands, the second where a mapping does.
    Either(&'static Kind, &'static Kind),
    /// One of these words, or a mapping.
    WordOr(&'static [Word], &'static Object),
    /// A step: one verb and its options.
    Step,
}

/// A mapping with known keys.
pub(crate) struct Object {
    /// In a message: "a batch".
    pub noun: &'static str,
    pub keys: &'static [Key],
    /// Exactly one of these keys is given.
    pub exactly_one: &'static [&'static str],
}

/// A key of an object.
pub(crate) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub need: Need,
    pub doc: &'static str,
}

/// Whether a key must be given.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    Required,
    /// YAML of the default.
    Default(&'static str),
    /// May be left out; what happens then stands in the doc.
    Optional,
}

/// A word of a choice.
pub(crate) struct Word {
    pub name: &'static str,
    pub state: State,
}

/// Whether something can be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Now,
    /// It is part of the design, and not of this version.
    Later,
    /// It works, for the project's own tests; no user needs it.
    Hidden,
    /// It is something, but not here: the sentence says where.
    Elsewhere(&'static str),
}

impl State {
    pub fn usable(self) -> bool {
        matches!(self, Self::Now | Self::Hidden)
    }
}

/// A mapping whose `type:` says which keys it has.
pub(crate) struct Variants {
    /// In a message: "source".
    pub noun: &'static str,
    /// Keys of all variants.
    pub common: &'static [Key],
    pub variants: &'static [Variant],
    /// `codec: json` is short for `codec: { type: json }`.
    pub short: bool,
}

pub(crate) struct Variant {
    pub name: &'static str,
    pub state: State,
    pub doc: &'static str,
    pub keys: &'static [Key],
    pub exactly_one: &'static [&'static str],
}

/// A verb of steps.
pub(crate) struct Verb {
    pub name: &'static str,
    /// What it takes; `None`: not in this version.
    pub kind: Option<Kind>,
    pub doc: &'static str,
    pub example: &'static str,
}

pub(crate) const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, need: Need::Required, doc }
}
pub(crate) const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, need: Need::Optional, doc }
}
pub(crate) const fn default(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, need: Need::Default(default), doc }
}
pub(crate) const fn word(name: &'static str) -> Word {
    Word { name, state: State::Now }
}
pub(crate) const fn later(name: &'static str) -> Variant {
    Variant { name, state: State::Later, doc: "", keys: &[], exactly_one: &[] }
}

impl Variants {
    pub fn find(&self, name: &str) -> Option<&'static Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }
    /// Variants that users are told of.
    pub fn listed(&self) -> impl Iterator<Item = &'static Variant> {
        self.variants.iter().filter(|variant| variant.state == State::Now)
    }
}

//! Names and numbers of the protocol, each a type of its own.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// SHA-256 of something canonical, written as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
    /// The digest of a value's JSON. Deterministic for types made of structs, lists and ordered maps.
    pub fn of_json<T: Serialize>(value: &T) -> Self {
        Self::of(
            &serde_json::to_vec(value).expect("protocol types serialise: they have text keys and no foreign types"),
        )
    }
    /// A rolling digest: of `self` followed by `bytes`.
    pub fn then(self, bytes: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        hasher.update(bytes);
        Self(hasher.finalize().into())
    }
    /// The first 12 hex digits: enough for a person and for file names.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
    /// The raw bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// Reads 64 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}
impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a digest is 64 hex digits"))
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);
        impl $name {
            /// The name from its text.
            pub fn new(text: &str) -> Self {
                Self(text.into())
            }
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

name_type!(
    /// The unit of plan, mark and generation: `all` for a single lane, `topic/3` for a partition.
    Lane
);
name_type!(
    /// A sink's identity inside its job: its name in the job, or `name@<data dir's UUID>` for a local one.
    SinkId
);
name_type!(
    /// An append-only log kept in the anchor beside the marks: `files:access`, `schema:access`.
    LogName
);

impl Lane {
    /// The only lane of a job with `lanes: single`.
    pub fn single() -> Self {
        Self::new("all")
    }

    /// A text with this lane named in every `tidemill checkpoint` command of it. A single lane needs no name.
    pub fn in_commands(&self, text: &str) -> String {
        const COMMAND: &str = "`tidemill checkpoint ";
        if *self == Self::single() {
            return text.to_owned();
        }
        let named = format!("{COMMAND}--lane {self} ");
        // A command that names it already is left as it is.
        text.replace(&named, COMMAND).replace(COMMAND, &named)
    }
}

impl SinkId {
    /// The ledger as the anchor of a job whose sinks keep no marks.
    pub fn ledger() -> Self {
        Self::new("(ledger)")
    }
    /// A sink that lives in one data dir, such as the default dead letters. It is never the anchor.
    pub fn local(name: &str, data_dir: Uuid) -> Self {
        Self::new(&format!("{name}@{data_dir}"))
    }
    /// The name under which a job's dead letters are a sink.
    pub const DEAD_LETTERS: &str = "dead-letters";
    /// Whether the sink lives in a data dir.
    pub fn is_local(&self) -> bool {
        self.as_str().contains('@')
    }
    /// The name in the job.
    pub fn name(&self) -> &str {
        self.as_str().split('@').next().unwrap_or_default()
    }
}

/// How a job is cut into lanes; part of the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneScheme {
    /// One lane with all shards.
    Single,
    /// One lane per partition of the source.
    Partition,
}

/// Who may write a lane: raised by each claim, so that older writers are fenced. 0 is "never claimed".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation that fences this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The machine's clock.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }
    /// The clock of a plan: `max(clock, previous + 1 ms)`, so that plans never go backwards.
    pub fn after(self, previous: Self) -> Self {
        Self(self.0.max(previous.0 + 1))
    }
}

/// Who runs a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The configured name, by default the host's.
    pub name: String,
    /// The UUID of the data dir: two daemons on one host have two.
    pub data_dir: Uuid,
    /// Random at each start of the process.
    pub instance: Uuid,
}

impl Owner {
    /// The same name and data dir: the same daemon, perhaps an earlier start of it.
    pub fn is_same_daemon(&self, other: &Self) -> bool {
        self.name == other.name && self.data_dir == other.data_dir
    }
}
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (data dir {})", self.name, self.data_dir)
    }
}

//! Positions, shards and spans: where a source has been read to, and what a batch reads.
//!
//! A position is a boundary between two records of a shard, opaque to everybody but its source. It is kept as text that
//! a person can read (`1042`, `3:1024`), and ordered by its components: numbers by value at any length (a Kinesis
//! sequence number exceeds 64 bits) and before text, text by bytes.

use std::{cmp::Ordering, collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

mod key;
#[cfg(test)]
mod tests;

pub use key::KeyPart;

/// The unit of order inside a source, with its incarnation: `posts/6f9e…` (a spool), `access` (a watched directory).
/// It begins with the source's name; what follows the first `/` belongs to the source.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(Arc<str>);

impl ShardId {
    /// The shard `part` of `source`; an empty `part` names the only shard that the source ever has.
    pub fn new(source: &str, part: &str) -> Self {
        if part.is_empty() { Self(source.into()) } else { Self(format!("{source}/{part}").into()) }
    }
    /// The name of the source that this shard belongs to.
    pub fn source(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
    /// What follows the source's name, or an empty text.
    pub fn part(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, part)| part)
    }
    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardId({})", self.0)
    }
}

/// A boundary between two records of one shard. Components are separated by `:`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(Arc<str>);

impl Position {
    /// A position of one number: a byte offset, a Kafka offset.
    pub fn number(n: u64) -> Self {
        Self(n.to_string().into())
    }
    /// A position of two numbers: (file, byte offset).
    pub fn pair(first: u64, second: u64) -> Self {
        Self(format!("{first}:{second}").into())
    }
    /// A position from a source's own text. The text must compare as documented on the type.
    pub fn text(text: &str) -> Self {
        Self(text.into())
    }
    /// The value of a position made by [`Position::number`].
    pub fn as_number(&self) -> Option<u64> {
        self.0.parse().ok()
    }
    /// The values of a position made by [`Position::pair`].
    pub fn as_pair(&self) -> Option<(u64, u64)> {
        let (first, second) = self.0.split_once(':')?;
        Some((first.parse().ok()?, second.parse().ok()?))
    }
    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn compare_component(a: &str, b: &str) -> Ordering {
    let numeric = |s: &str| !s.is_empty() && s.bytes().all(|c| c.is_ascii_digit());
    match (numeric(a), numeric(b)) {
        (true, true) => {
            let (x, y) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
            // Leading zeros do not change the value, but two texts are equal only where their bytes are.
            x.len().cmp(&y.len()).then_with(|| x.cmp(y)).then_with(|| a.cmp(b))
        }
        // Numbers before text: compared by bytes, 9 < 10 < 1a < 9 would go round in a circle.
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        let (mut a, mut b) = (self.0.split(':'), other.0.split(':'));
        loop {
            match (a.next(), b.next()) {
                (None, None) => return Ordering::Equal,
                (None, Some(_)) => return Ordering::Less,
                (Some(_), None) => return Ordering::Greater,
                (Some(x), Some(y)) => match compare_component(x, y) {
                    Ordering::Equal => {}
                    unequal => return unequal,
                },
            }
        }
    }
}
impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

/// Where each shard of a lane has been read to.
pub type Positions = BTreeMap<ShardId, Position>;

/// What one batch reads of one shard: `[from, to)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The boundary before the first record.
    pub from: Position,
    /// The boundary after the last record.
    pub to: Position,
}

/// What one batch reads, by shard.
pub type Spans = BTreeMap<ShardId, Span>;

/// How the positions of one mark lie to those of another, over all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The same position in every shard.
    Equal,
    /// Behind in at least one shard, beyond in none. A shard that only the other knows counts as behind.
    Behind,
    /// Beyond in at least one shard, or in a shard that the other does not know.
    Beyond,
}

/// Where `mine` stands to `theirs`. Beyond in any shard wins: such a difference has no explanation.
pub fn standing(mine: &Positions, theirs: &Positions) -> Standing {
    let mut result =
        if theirs.keys().all(|shard| mine.contains_key(shard)) { Standing::Equal } else { Standing::Behind };
    for (shard, position) in mine {
        match theirs.get(shard).map(|other| position.cmp(other)) {
            None | Some(Ordering::Greater) => return Standing::Beyond,
            Some(Ordering::Less) => result = Standing::Behind,
            Some(Ordering::Equal) => {}
        }
    }
    result
}

/// Why spans do not fit the positions that they should continue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// The span begins elsewhere than the shard stands.
    #[error("shard {shard}: the span begins at {from}, the shard stands at {at}: a gap or an overlap")]
    NotContiguous {
        /// The shard.
        shard: ShardId,
        /// Where the shard stands.
        at: Position,
        /// Where the span begins.
        from: Position,
    },
    /// The span ends before it begins.
    #[error("shard {shard}: the span ends at {to}, before it begins at {from}")]
    Backwards {
        /// The shard.
        shard: ShardId,
        /// Where the span begins.
        from: Position,
        /// Where the span ends.
        to: Position,
    },
}

/// The positions after `spans` are read from `at`. A shard that `at` does not know starts where its span starts.
pub fn advance(at: &Positions, spans: &Spans) -> Result<Positions, SpanError> {
    let mut after = at.clone();
    for (shard, span) in spans {
        if let Some(position) = at.get(shard)
            && *position != span.from
        {
            return Err(SpanError::NotContiguous {
                shard: shard.clone(),
                at: position.clone(),
                from: span.from.clone(),
            });
        }
        if span.to < span.from {
            return Err(SpanError::Backwards { shard: shard.clone(), from: span.from.clone(), to: span.to.clone() });
        }
        after.insert(shard.clone(), span.to.clone());
    }
    Ok(after)
}

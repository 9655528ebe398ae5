//! What a sink promises.

use serde::Deserialize;

use super::SinkKind;

/// `guarantee:` of a sink: what a job may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Rows and mark in one step.
    ExactlyOnce,
    /// No mark: a batch that is replayed is written again.
    AtLeastOnce,
}

impl SinkKind {
    /// What a sink of this kind and with these options promises.
    pub fn guarantee(&self) -> Guarantee {
        match self {
            Self::Console { .. } | Self::Blackhole => Guarantee::AtLeastOnce,
            Self::Mysql(database) | Self::Postgres(database) => database.guarantee,
            Self::Kafka(kafka) => kafka.guarantee,
            Self::Files(_) | Self::Sqlite { .. } => Guarantee::ExactlyOnce,
        }
    }

    /// Whether it keeps marks where only processes of this machine see them: in a file that no two machines can share.
    pub fn is_of_one_machine(&self) -> bool {
        matches!(self, Self::Sqlite { .. })
    }
}

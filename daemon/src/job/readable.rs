//! Which schemas of a registry a batch was decoded with, where it names others too that the registry did not have. Their
//! records are rejects, and stay so in a replay: a sink that gets the batch later would otherwise take for a row what the
//! dead letters were to have, and the anchor's rows and theirs would lack it both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidemill_checkpoint::{Digest, Plan};

/// What names of versions in plans begin with; the source and the ids follow. A plan of garbage may name very many ids that
/// nobody knows, but few that stand for something.
const VERSION: &str = "registry:";

/// The ids of schemas that can be read, by the name that a source's shards have. A source that is not here: all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readable(pub BTreeMap<String, Vec<u32>>);

impl Readable {
    /// What a plan names.
    pub fn of(plan: &Plan) -> Self {
        let named = plan.versions.keys().filter_map(|name| name.strip_prefix(VERSION)?.rsplit_once(':'));
        let ids = |ids: &str| ids.split(',').filter_map(|id| id.parse().ok()).collect();
        Self(named.map(|(source, of)| (source.to_owned(), ids(of))).collect())
    }

    /// As a plan names it.
    pub fn versions(&self) -> impl Iterator<Item = (String, Digest)> {
        self.0.iter().map(|(source, ids)| {
            let text = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            (format!("{VERSION}{source}:{text}"), Digest::of(text.as_bytes()))
        })
    }
}

#[cfg(test)]
mod tests {
    use tidemill_checkpoint::{Lane, PlanKind, SinkId, Timestamp};

    use super::*;

    #[test]
    fn a_plan_names_what_can_be_read() {
        let readable = Readable(BTreeMap::from([("a:b".to_owned(), vec![1, 70_000]), ("none".to_owned(), vec![])]));
        let plan = Plan {
            lane: Lane::single(),
            kind: PlanKind::Batch,
            seq: 1,
            parent: None,
            spans: BTreeMap::new(),
            planned_at: Timestamp(0),
            job: Digest::of(b"job"),
            versions: readable.versions().chain([("schema:in".to_owned(), Digest::of(b"schema"))]).collect(),
            logs: BTreeMap::new(),
            anchor: SinkId::new("db"),
            touches: BTreeMap::new(),
            checks: BTreeMap::new(),
        };
        assert_eq!(Readable::of(&plan), readable);
    }
}

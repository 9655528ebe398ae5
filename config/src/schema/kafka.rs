//! What source and sink of `type: kafka` have in common: where the brokers are, and properties that a job may not set.

use super::{Key, Kind, Scalar, required};
use crate::{
    error::Problem,
    load::Problems,
    tree::{Node, UNRESOLVED, below, shown},
};

const TEXT: Kind = Kind::Scalar(Scalar::Text);
pub(super) const TEXTS: Kind = Kind::OneOrMore { of: &TEXT, min: 1 };

pub(super) const BROKERS: Key = required(
    "brokers",
    TEXTS,
    "`host:port` of some brokers: a list, or one text with commas. The others are found by them.",
);

/// A property that a job may not set, with the reason.
pub(super) type Refused = (&'static str, &'static str);

const OLD_BROKERS: &str =
    "where brokers are not asked what they can do, records of aborted transactions would be read: it is always asked";
const FOREIGN: &str = "no foreign code is loaded";

/// Of sources and sinks.
const REFUSED: [Refused; 10] = [
    ("bootstrap.servers", "write `brokers:`"),
    ("metadata.broker.list", "write `brokers:`"),
    ("isolation.level", "records of aborted transactions would be read: it is always read_committed"),
    ("api.version.request", OLD_BROKERS),
    ("api.version.fallback.ms", OLD_BROKERS),
    ("broker.version.fallback", OLD_BROKERS),
    ("allow.auto.create.topics", "a topic that is misspelt would be made, and be empty"),
    ("test.mock.num.brokers", "it is a cluster in memory, which forgets what it is given"),
    ("plugin.library.paths", FOREIGN),
    ("ssl.engine.location", FOREIGN),
];

/// What the schema cannot say of `brokers` and `properties`.
pub(super) fn check(node: &Node, path: &str, refused: &[Refused], problems: &mut Problems) {
    if let Some(brokers) = node.get("brokers") {
        for (node, path) in crate::semantics::each(&brokers.value, &below(path, "brokers")) {
            let Some(text) = node.text().filter(|text| *text != UNRESOLVED) else { continue };
            if let Some(bad) = text.split(',').map(str::trim).find(|address| !is_address(address)) {
                let problem = match bad {
                    "" => Problem::new(format!("{} has no address between two commas", shown(text))),
                    bad => Problem::new(format!("{} is no address of a broker", shown(bad))),
                };
                let help = "write `host:port`, and several as a list or between commas";
                problems.add(node.place.at(&path), problem.help(help));
            }
        }
    }
    let Some(properties) = node.get("properties") else { return };
    for entry in properties.value.entries() {
        let found = REFUSED.iter().chain(refused).find(|(name, _)| *name == entry.key.trim());
        if let Some((name, reason)) = found {
            let problem = Problem::new(format!("`{name}` cannot be set: {reason}"));
            problems.add(entry.place.at(&below(&below(path, "properties"), &entry.key)), problem.help("remove it"));
        }
    }
}

/// `host`, `host:port`, `[::1]:port`, and a listener's protocol before them. What a variable will give is not known yet.
fn is_address(text: &str) -> bool {
    if text.contains(UNRESOLVED) {
        return true;
    }
    let text = text.split_once("://").map_or(text, |(_, address)| address);
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_host = !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || "-._[]:%".contains(c));
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

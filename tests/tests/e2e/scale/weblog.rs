//! A web log of the combined format, repeated, as records.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Value, json};

use super::world::Load;

/// `total` records: the log's lines again and again, each with a number of its own.
pub fn load(log: &Path, total: u64) -> Load {
    let text = fs::read(log).unwrap();
    let lines: Vec<(Value, u64)> = String::from_utf8_lossy(&text).lines().filter_map(parse).collect();
    assert!(lines.len() > 9_000, "the log has {} lines", lines.len());
    let record = move |seq: u64| {
        let (row, bytes) = &lines[usize::try_from(seq).unwrap() % lines.len()];
        let mut row = row.clone();
        row["seq"] = seq.into();
        (row.to_string(), *bytes)
    };
    Load {
        schema: "seq: int64, client: string, time: string, request: string, response: string, bytes: int64, agent: string",
        steps: "  - parse_timestamp: { column: time, format: \"%d/%b/%Y:%H:%M:%S %z\" }\n  - cast: { response: int32 }\n  \
                - lowercase: [agent]\n  - add: { status_class: \"concat(cast(response / 100 as string), 'xx')\" }\n",
        batch: 20_000,
        rate: 20_000,
        total,
        database_alone: true,
        record: Arc::new(record),
    }
}

/// `client - - [time] "request" response bytes "referrer" "agent"`.
fn parse(line: &str) -> Option<(Value, u64)> {
    let (client, rest) = line.split_once(' ')?;
    let (_, rest) = rest.split_once('[')?;
    let (time, rest) = rest.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = rest.split(' ');
    let (response, bytes) = (words.next()?, words.next()?.parse::<u64>().ok());
    let agent = line.rsplit('"').nth(1)?;
    let row = json!({ "client": client, "time": time, "request": request, "response": response, "bytes": bytes, "agent": agent });
    Some((row, bytes.unwrap_or(0)))
}

//! `tidemill feed`: serves a file's records over TCP, the other end of a socket source, for trials and demos.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

/// Records are paced in steps of this length: many records go in one write, few go evenly.
const PACE: Duration = Duration::from_millis(10);

/// What is served, and how.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The file; `-` is standard input.
    pub file: PathBuf,
    /// Sent after each record. In the file records are lines, or end with this delimiter where it occurs in the file.
    pub delimiter: Vec<u8>,
    /// Records per second and connection; `None`: as fast as the peer takes them.
    pub rate: Option<f64>,
    /// Begins again at the end.
    pub repeat: bool,
    /// Of each JSON record the first of these fields that it has, by path (`extended_tweet.full_text`).
    pub fields: Vec<String>,
}

/// Listens, serves every client the whole file from its beginning; without `repeat` takes no more clients once one has it
/// all, and ends when those that are connected have it too.
pub async fn serve(feed: Feed, listen: &str) -> anyhow::Result<()> {
    let records = Arc::new(load(&feed)?);
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let address = listener.local_addr()?;
    let mut out = std::io::stderr();
    writeln!(out, "feeding {} records of {} on {address}; waiting for a client", records.len(), feed.file.display())?;
    let mut clients = tokio::task::JoinSet::new();
    let mut one_has_all = false;
    loop {
        tokio::select! {
            accepted = listener.accept(), if !one_has_all => {
                let (stream, peer) = accepted.context("accepting a client")?;
                writeln!(std::io::stderr(), "{peer} connected")?;
                clients.spawn(client(stream, peer, feed.clone(), records.clone()));
            }
            Some(has_all) = clients.join_next() => {
                one_has_all |= has_all.unwrap_or(false);
                if one_has_all && clients.is_empty() {
                    return Ok(());
                }
            }
        }
    }
}

/// Serves one client. Whether it got everything.
async fn client(stream: TcpStream, peer: std::net::SocketAddr, feed: Feed, records: Arc<Vec<Vec<u8>>>) -> bool {
    let mut out = std::io::stderr();
    let sent = send(stream, &feed, &records).await;
    let _ = match &sent {
        Ok(sent) => writeln!(out, "{peer} has all {sent} records"),
        Err(error) => writeln!(out, "{peer} went away: {error}"),
    };
    sent.is_ok()
}

async fn send(mut stream: TcpStream, feed: &Feed, records: &[Vec<u8>]) -> std::io::Result<u64> {
    let begun = Instant::now();
    let mut sent = 0_u64;
    let mut pending = Vec::new();
    loop {
        for record in records {
            pending.extend_from_slice(record);
            pending.extend_from_slice(&feed.delimiter);
            sent += 1;
            if let Some(rate) = feed.rate {
                #[allow(clippy::cast_precision_loss)] // a pace for trials
                let due = begun + Duration::from_secs_f64(sent as f64 / rate);
                if due > Instant::now() + PACE {
                    stream.write_all(&pending).await?;
                    pending.clear();
                    tokio::time::sleep_until(due.into()).await;
                }
            }
            // Also where a client was slow and all is overdue.
            if pending.len() >= 64 * 1024 {
                stream.write_all(&pending).await?;
                pending.clear();
            }
        }
        if !feed.repeat || records.is_empty() {
            stream.write_all(&pending).await?;
            stream.shutdown().await?;
            return Ok(sent);
        }
    }
}

/// The records of the file.
fn load(feed: &Feed) -> anyhow::Result<Vec<Vec<u8>>> {
    let bytes = read(&feed.file)?;
    if feed.fields.is_empty() {
        return Ok(split(&bytes, &feed.delimiter));
    }
    // JSON values may span lines: a stream of them, or one array.
    let (mut records, mut without) = (Vec::new(), 0);
    let mut values = serde_json::Deserializer::from_slice(&bytes).into_iter::<serde_json::Value>();
    while let Some(value) = values.next() {
        let value = value.with_context(|| format!("{}: JSON at byte {}", feed.file.display(), values.byte_offset()))?;
        let items = match value {
            serde_json::Value::Array(items) => items,
            value => vec![value],
        };
        let picked = records.len();
        records.extend(items.iter().filter_map(|item| pick(item, &feed.fields)));
        without += items.len() - (records.len() - picked);
    }
    let fields = feed.fields.join(", ");
    anyhow::ensure!(!records.is_empty(), "{}: none of its {without} records has {fields}", feed.file.display());
    if without > 0 {
        eprintln!("{without} records have none of {fields}: they are left out");
    }
    Ok(records)
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).context("reading standard input")?;
        return Ok(bytes);
    }
    std::fs::read(file).with_context(|| format!("reading {}", file.display()))
}

/// Records of a text: by the delimiter where it occurs, else by line.
fn split(bytes: &[u8], delimiter: &[u8]) -> Vec<Vec<u8>> {
    let found = !delimiter.is_empty() && memchr::memmem::find(bytes, delimiter).is_some();
    let separator: &[u8] = if found { delimiter } else { b"\n" };
    let mut records = Vec::new();
    let mut start = 0;
    for at in memchr::memmem::find_iter(bytes, separator) {
        records.push(bytes[start..at].to_vec());
        start = at + separator.len();
    }
    let rest = &bytes[start..];
    if !rest.iter().all(u8::is_ascii_whitespace) {
        records.push(rest.to_vec());
    }
    records
}

/// The first of `fields` that the value has and that is not null, as text.
fn pick(value: &serde_json::Value, fields: &[String]) -> Option<Vec<u8>> {
    fields.iter().find_map(|field| {
        let found = field.split('.').try_fold(value, |value, key| value.get(key))?;
        match found {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone().into_bytes()),
            other => Some(other.to_string().into_bytes()),
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records_are_lines_or_end_with_the_delimiter() {
        assert_eq!(split(b"a\nb\n", b"__end"), [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(split(b"a\nb__endc__end\n", b"__end"), [b"a\nb".to_vec(), b"c".to_vec()]);
        assert_eq!(split(b"a\nb", b"\n"), [b"a".to_vec(), b"b".to_vec()]);
        assert!(split(b"", b"\n").is_empty());
    }

    #[test]
    fn the_first_field_that_a_record_has_is_sent() {
        let fields = ["extended_tweet.full_text".to_owned(), "text".to_owned()];
        let pick =
            |text: &str| pick(&serde_json::from_str(text).unwrap(), &fields).map(|b| String::from_utf8(b).unwrap());
        assert_eq!(pick(r#"{"text":"short","extended_tweet":{"full_text":"long"}}"#).as_deref(), Some("long"));
        assert_eq!(pick(r#"{"text":"short"}"#).as_deref(), Some("short"));
        assert_eq!(pick(r#"{"text":null}"#), None);
    }
}

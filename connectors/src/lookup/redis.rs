//! Redis: a key for each row, made of its columns; what is under it is a hash, the text of a JSON object, or a text.

use std::{fs, sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use async_trait::async_trait;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, TlsCertificates, Value, aio::MultiplexedConnection};
use tidemill_config::{Codec, Database, DatabaseAddress, KeyPart, Lookup, RedisValue, key_parts};
use tokio::sync::Mutex;

use super::{Asked, LookupError, LookupTable, TEXT, Unanswered, cells::Cells, texts};
use crate::codec::{codec, to_arrow};

/// Keys that are asked for in one go.
const PIPELINE: usize = 1_000;
/// The column of a value that is a text.
const VALUE: &str = "value";
/// What Redis says of a key that has another kind of value than a command wants.
const WRONG_TYPE: &str = "WRONGTYPE";
/// What it says to a user who may not do that.
const NO_RIGHT: [&str; 3] = ["NOAUTH", "NOPERM", "WRONGPASS"];

pub(super) struct RedisTable {
    client: Client,
    shown: String,
    key: Vec<Piece>,
    /// The columns in the key, in the order of the lookup's.
    key_columns: Vec<String>,
    value: RedisValue,
    /// The columns that are taken, with their types.
    taken: SchemaRef,
    what: String,
    limit: Duration,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// A part of a key.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// The number of a column in the keys.
    Column(usize),
}

impl RedisTable {
    pub(super) fn new(database: &Database, key: &str, value: RedisValue, lookup: &Lookup) -> Result<Self, LookupError> {
        let DatabaseAddress::Redis(url) = &database.address else {
            return Err(LookupError::of(&database.name, "`key` is for Redis"));
        };
        let shown = database.shown();
        // The driver's own words may hold parts of the address, the password too.
        let unread = |_| LookupError::of(&shown, "this address cannot be read: write redis://HOST:PORT/0");
        let client = match &database.ca {
            None => Client::open(url.as_str()).map_err(unread)?,
            Some(ca) => {
                let pem = fs::read(ca);
                let pem =
                    pem.map_err(|error| LookupError::of(format!("the certificates in {}", ca.display()), error))?;
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
                Client::build_with_tls(url.as_str(), certificates).map_err(unread)?
            }
        };
        let key_columns: Vec<String> = lookup.keys.iter().map(|(_, key)| key.value.clone()).collect();
        let given = lookup.schema.as_deref().map(to_arrow);
        let kind = |name: &str| {
            let given = given.as_ref().and_then(|schema| schema.field_with_name(name).ok());
            given.map_or(TEXT, |field| field.data_type().clone())
        };
        let mut taken: Vec<Field> = Vec::new();
        for (column, _) in &lookup.take {
            if value == RedisValue::Text && column.value != VALUE {
                let why =
                    format!("the only column of a text is `{VALUE}`: write `take: {{ {VALUE}: {} }}`", column.value);
                return Err(LookupError::of(lookup.shown(), why));
            }
            if taken.iter().all(|known| *known.name() != column.value) {
                taken.push(Field::new(&column.value, kind(&column.value), true));
            }
        }
        Ok(Self {
            client,
            shown,
            key: pieces(key, &key_columns),
            key_columns,
            value,
            taken: Arc::new(Schema::new(taken)),
            what: lookup.shown(),
            limit: lookup.timeout,
            connection: Mutex::default(),
        })
    }

    fn failed(&self, what: &str, error: &RedisError) -> Unanswered {
        let is_refusal = matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
            || error.code().is_some_and(|code| NO_RIGHT.contains(&code));
        let cause = LookupError(format!("{}: {what} ({}): {error}", self.what, self.shown));
        Unanswered { cause, transient: !is_refusal }
    }

    async fn connected(&self) -> Result<MultiplexedConnection, Unanswered> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref() {
            return Ok(connection.clone());
        }
        // The driver's own limits are shorter than what a lookup may wait.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.limit))
            .set_response_timeout(Some(self.limit));
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = connected.map_err(|error| self.failed("connecting", &error))?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// What is under the keys. A connection that the server has closed meanwhile is made anew, once.
    async fn values(&self, keys: &[String]) -> Result<Vec<Value>, Unanswered> {
        let reused = self.connection.lock().await.is_some();
        match self.fetch(keys).await {
            Err(_) if reused => self.fetch(keys).await,
            done => done,
        }
    }

    async fn fetch(&self, keys: &[String]) -> Result<Vec<Value>, Unanswered> {
        let mut connection = self.connected().await?;
        let mut pipe = redis::pipe();
        if self.value == RedisValue::Hash {
            for key in keys {
                let command = pipe.cmd("HMGET").arg(key);
                for field in self.taken.fields() {
                    command.arg(field.name());
                }
            }
        } else {
            pipe.cmd("MGET").arg(keys);
        }
        // Each command has an answer of its own: one key with another kind of value is not the fault of the others.
        let answers: Result<Vec<Result<Value, RedisError>>, _> =
            pipe.ignore_errors().query_async(&mut connection).await;
        let answers: Result<Vec<Value>, _> = answers.and_then(|answers| {
            answers.into_iter().zip(keys).map(|(answer, key)| self.or_missing(answer, key)).collect()
        });
        match answers {
            Ok(mut values) if self.value != RedisValue::Hash => match values.pop() {
                Some(Value::Array(values)) => Ok(values),
                _ => Err(LookupError::of(&self.what, "Redis gave no list of values").into()),
            },
            Ok(values) => Ok(values),
            Err(error) => {
                *self.connection.lock().await = None;
                Err(self.failed("asking", &error))
            }
        }
    }

    /// A key under which is no hash counts as missing: it is one row's fault.
    fn or_missing(&self, answer: Result<Value, RedisError>, key: &str) -> Result<Value, RedisError> {
        match answer {
            Err(error) if error.code() == Some(WRONG_TYPE) => {
                tracing::warn!(key, "{}: there is no hash under a key, which counts as missing", self.what);
                Ok(Value::Nil)
            }
            answer => answer,
        }
    }

    /// The columns of values, and the numbers of the keys that have one.
    fn rows(&self, keys: &[String], values: &[Value]) -> Result<(RecordBatch, Vec<u32>), LookupError> {
        match self.value {
            RedisValue::Json => self.objects(keys, values),
            RedisValue::Hash | RedisValue::Text => {
                // A hash that has none of the fields is as good as none.
                let is_there = |value: &Value| !fields(value).iter().all(|field| matches!(field, Value::Nil));
                let mut there: Vec<u32> = (0..values.len() as u32).collect();
                there.retain(|number| is_there(&values[*number as usize]));
                if let Ok(rows) = self.typed(values, &there) {
                    return Ok((rows, there));
                }
                let mut wrong = Vec::new();
                there.retain(|number| match self.typed(values, &[*number]) {
                    Ok(_) => true,
                    Err(error) => {
                        wrong.push((*number, error));
                        false
                    }
                });
                if let Some((number, why)) = wrong.first() {
                    not_taken(&keys[*number as usize], wrong.len(), why);
                }
                Ok((self.typed(values, &there)?, there))
            }
        }
    }

    /// Values of hashes, or texts, in the types of the columns.
    fn typed(&self, values: &[Value], numbers: &[u32]) -> Result<RecordBatch, LookupError> {
        let mut cells = Cells::new(&self.what, self.taken.fields().len(), u64::MAX);
        for number in numbers {
            let fields = fields(&values[*number as usize]);
            for column in 0..self.taken.fields().len() {
                cells.push(column, fields.get(column).and_then(bytes))?;
            }
        }
        cells.finish(&self.taken)
    }

    /// JSON objects.
    fn objects(&self, keys: &[String], values: &[Value]) -> Result<(RecordBatch, Vec<u32>), LookupError> {
        let (mut records, mut numbers, mut text) = (Vec::new(), Vec::new(), Vec::new());
        for (number, value) in values.iter().enumerate() {
            let Some(object) = bytes(value) else { continue };
            let start = text.len() as u32;
            text.extend_from_slice(object);
            records.push((start, text.len() as u32));
            numbers.push(number as u32);
        }
        let decoded = codec(&Codec::Json).decoder(&self.taken, &self.taken).decode(&super::slice(text, records, None));
        if let Some(bad) = decoded.rejects.first() {
            let key = &keys[numbers[bad.record as usize] as usize];
            not_taken(key, decoded.rejects.len(), &LookupError::of(&self.what, &bad.detail));
        }
        Ok((decoded.rows, decoded.records.iter().map(|record| numbers[*record as usize]).collect()))
    }
}

/// Values that are none of what is taken count as missing: each is one row's fault.
fn not_taken(key: &str, count: usize, why: &LookupError) {
    tracing::warn!(key, count, "a value is not what the lookup takes, and counts as missing: {why}");
}

/// The fields of a hash; a text is one.
fn fields(value: &Value) -> &[Value] {
    match value {
        Value::Array(fields) => fields,
        text => std::slice::from_ref(text),
    }
}

/// The bytes of a value that has some.
fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// A key's parts.
fn pieces(key: &str, columns: &[String]) -> Vec<Piece> {
    let piece = |part| match part {
        KeyPart::Text(text) => Some(Piece::Text(text.to_owned())),
        KeyPart::Column(column) => columns.iter().position(|known| known == column).map(Piece::Column),
    };
    key_parts(key).into_iter().filter_map(piece).collect()
}

#[async_trait]
impl LookupTable for RedisTable {
    /// The columns of the key are texts: so they stand in it.
    async fn schema(&self) -> Result<SchemaRef, LookupError> {
        Ok(self.whole())
    }

    /// The columns are known without the server: so it is asked for an answer.
    async fn check(&self) -> Result<SchemaRef, LookupError> {
        let mut connection = self.connected().await?;
        let answer: Result<(), RedisError> = redis::cmd("PING").query_async(&mut connection).await;
        answer.map_err(|error| self.failed("asking", &error))?;
        self.schema().await
    }

    async fn read(&self, _: Option<&SchemaRef>) -> Result<RecordBatch, LookupError> {
        Err(LookupError::of(&self.what, "Redis cannot be read as one table"))
    }

    async fn ask(&self, keys: &RecordBatch) -> Result<Asked, Unanswered> {
        let columns = keys.columns().iter().map(texts).collect::<Result<Vec<_>, _>>()?;
        let key = |row: usize| -> String {
            let parts = self.key.iter().map(|piece| match piece {
                Piece::Text(text) => text.as_str(),
                Piece::Column(column) => columns[*column][row].as_deref().unwrap_or_default(),
            });
            parts.collect()
        };
        let all: Vec<String> = (0..keys.num_rows()).map(key).collect();
        let (mut parts, mut queries) = (Vec::new(), 0);
        for (chunk, some) in all.chunks(PIPELINE).enumerate() {
            let values = self.values(some).await?;
            queries += 1;
            let (rows, there) = self.rows(some, &values)?;
            let numbers: UInt32Array = there.iter().map(|number| (chunk * PIPELINE) as u32 + number).collect();
            let whole = take_record_batch(keys, &numbers).map_err(|error| LookupError::of(&self.what, error))?;
            let arrays: Vec<ArrayRef> = whole
                .columns()
                .iter()
                .cloned()
                .chain(
                    rows.schema()
                        .fields()
                        .iter()
                        .zip(rows.columns())
                        .filter(|(field, _)| self.is_new(field))
                        .map(|(_, array)| array.clone()),
                )
                .collect();
            parts.push(RecordBatch::try_new(self.whole(), arrays).map_err(|error| LookupError::of(&self.what, error))?);
        }
        let rows = concat_batches(&self.whole(), &parts).map_err(|error| LookupError::of(&self.what, error))?;
        Ok(Asked { rows, queries })
    }
}

impl RedisTable {
    /// A field of the value that has the name of a column of the key is that column.
    fn is_new(&self, field: &Field) -> bool {
        !self.key_columns.contains(field.name())
    }

    /// The columns of the key, as texts, and those that are taken.
    pub(super) fn whole(&self) -> SchemaRef {
        let keys = self.key_columns.iter().map(|name| Field::new(name, DataType::Utf8, true));
        let taken = self.taken.fields().iter().filter(|field| self.is_new(field)).map(|field| (**field).clone());
        Arc::new(Schema::new(keys.chain(taken).collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_parts() {
        let columns = ["tenant".to_owned(), "id".to_owned()];
        let text = |text: &str| Piece::Text(text.to_owned());
        for (key, expected) in [
            ("user:{id}", vec![text("user:"), Piece::Column(1)]),
            ("{tenant}{id}:x", vec![Piece::Column(0), Piece::Column(1), text(":x")]),
            (
                "a{tenant}b{id}c{tenant}",
                vec![text("a"), Piece::Column(0), text("b"), Piece::Column(1), text("c"), Piece::Column(0)],
            ),
        ] {
            assert_eq!(pieces(key, &columns), expected, "{key}");
        }
    }
}

//! A schema registry, by the HTTP interface that Confluent's has and others share: schemas by id, the latest of a subject.
//!
//! What an id stands for never changes, so a schema is fetched once and kept. Ids are resolved before a batch is decoded
//! ([`Registry::fetch`]): decoding itself asks nobody. A registry that cannot be reached makes a batch wait; an id that it
//! does not know makes its records rejects.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use hyper::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use tidemill_config::model;

use super::{PrepareError, avro::Schema};

mod http;
#[cfg(test)]
pub(super) mod tests;

use http::Client;

/// Requests at once.
const REQUESTS: usize = 8;
/// Replicas of a registry may learn of an id later than its first record comes: an unknown one is asked for twice.
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(500);
/// After this time an unknown id is asked for again.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);
/// With more ids, those that the registry does not know are forgotten: any garbage that begins with a zero names one.
const MAX_KEPT: usize = 100_000;
/// Schemas that use others, which use others.
const MAX_REFERENCES: usize = 100;

/// What is known of an id.
#[derive(Clone)]
pub(super) enum Known {
    Schema(Arc<Schema>),
    /// The registry has no such id.
    Missing(String),
    /// It stands for something that is no Avro schema.
    Unusable(String),
}

/// A registry.
pub(super) struct Registry {
    client: Client,
    url: String,
    known: RwLock<HashMap<u32, (Known, Instant)>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    schema: String,
    /// Left out for Avro.
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    subject: String,
    version: i64,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: i64,
    #[serde(default)]
    message: String,
}

impl Registry {
    pub(super) fn new(given: &model::Registry) -> Result<Self, String> {
        let login = given.user.as_deref().zip(given.password.as_deref());
        Ok(Self { client: Client::new(&given.url, login)?, url: given.url.clone(), known: RwLock::default() })
    }

    pub(super) fn known(&self, id: u32) -> Option<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).map(|(known, _)| known.clone())
    }

    /// Fetches the schemas of these ids, but for those that are known.
    pub(super) async fn fetch(&self, ids: &[u32]) -> Result<(), PrepareError> {
        let ids: Vec<u32> = ids.iter().copied().filter(|id| self.is_open(*id)).collect();
        let missing = self.ask_for(&ids).await?;
        if missing.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(SECOND_LOOK_AFTER).await;
        self.ask_for(&missing).await.map(drop)
    }

    fn is_open(&self, id: u32) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).is_none_or(|(known, at)| matches!(known, Known::Missing(_)) && at.elapsed() > UNKNOWN_FOR)
    }

    /// Asks for each id, keeps what it stands for, and gives back those that the registry does not know.
    async fn ask_for(&self, ids: &[u32]) -> Result<Vec<u32>, PrepareError> {
        let answers = stream::iter(ids.iter().copied()).map(|id| async move { Ok((id, self.by_id(id).await?)) });
        let answers: Vec<(u32, Known)> = answers.buffer_unordered(REQUESTS).try_collect().await?;
        let missing = answers.iter().filter(|(_, known)| matches!(known, Known::Missing(_)));
        let missing = missing.map(|(id, _)| *id).collect();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() > MAX_KEPT {
            known.retain(|_, (known, _)| !matches!(known, Known::Missing(_)));
        }
        known.extend(answers.into_iter().map(|(id, answer)| (id, (answer, Instant::now()))));
        Ok(missing)
    }

    async fn by_id(&self, id: u32) -> Result<Known, PrepareError> {
        match self.get::<Answer>(&format!("/schemas/ids/{id}")).await? {
            Err(why) => Ok(Known::Missing(format!("the registry has no schema {id}: {why}"))),
            Ok(answer) => Ok(match self.parsed(answer).await? {
                Ok(schema) => Known::Schema(Arc::new(schema)),
                Err(why) => Known::Unusable(format!("schema {id} of the registry cannot be used: {why}")),
            }),
        }
    }

    /// The latest schema of a subject.
    pub(super) async fn latest(&self, subject: &str) -> Result<Schema, PrepareError> {
        let fatal = |why: String| PrepareError::Fatal(format!("{}: subject {subject}: {why}", self.url));
        let path = format!("/subjects/{}/versions/latest", in_path(subject));
        let answer: Answer = self.get(&path).await?.map_err(fatal)?;
        self.parsed(answer).await?.map_err(fatal)
    }

    /// That it answers as a registry does.
    pub(super) async fn check(&self) -> Result<(), PrepareError> {
        self.get::<Vec<String>>("/subjects").await?.map(drop).map_err(PrepareError::Fatal)
    }

    async fn parsed(&self, answer: Answer) -> Result<Result<Schema, String>, PrepareError> {
        if let Some(kind) = answer.schema_type.filter(|kind| !kind.eq_ignore_ascii_case("avro")) {
            return Ok(Err(format!("it is of type {kind}, not AVRO")));
        }
        let mut texts = Vec::new();
        if let Err(why) = self.references(answer.references, &mut texts).await? {
            return Ok(Err(why));
        }
        Ok(Schema::parse(&answer.schema, &texts))
    }

    /// The texts of schemas that one refers to, each after those that it refers to itself.
    fn references<'a>(
        &'a self,
        references: Vec<Reference>,
        texts: &'a mut Vec<String>,
    ) -> BoxFuture<'a, Result<Result<(), String>, PrepareError>> {
        Box::pin(async move {
            for Reference { subject, version } in references {
                if texts.len() >= MAX_REFERENCES {
                    return Ok(Err(format!("it refers to more than {MAX_REFERENCES} others")));
                }
                let path = format!("/subjects/{}/versions/{version}", in_path(&subject));
                let answer: Answer = match self.get(&path).await? {
                    Ok(answer) => answer,
                    Err(why) => return Ok(Err(format!("it refers to {subject}, version {version}: {why}"))),
                };
                if let Err(why) = self.references(answer.references, texts).await? {
                    return Ok(Err(why));
                }
                if !texts.contains(&answer.schema) {
                    texts.push(answer.schema);
                }
            }
            Ok(Ok(()))
        })
    }

    /// One answer; the inner error is that the registry says there is no such thing.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Result<T, String>, PrepareError> {
        let later = |why: String| PrepareError::Transient(format!("{}{path}: {why}", self.url));
        let (status, body) = self.client.get(path).await.map_err(later)?;
        let refusal: Option<Refusal> = serde_json::from_slice(&body).ok();
        match (status, refusal) {
            (StatusCode::OK, _) => serde_json::from_slice(&body)
                .map(Ok)
                .map_err(|error| later(format!("the answer is not a registry's: {error}"))),
            // A proxy or a wrong path answers 404 too, but not with the code of a registry.
            (StatusCode::NOT_FOUND, Some(refusal)) if refusal.error_code / 100 == 404 => Ok(Err(refusal.message)),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Err(PrepareError::Fatal(format!(
                "{}{path}: the registry refuses the request ({status}): check `user` and `password`",
                self.url
            ))),
            (StatusCode::NOT_FOUND, _) => Err(later(format!("the answer is {status}: is it the URL of a registry?"))),
            (_, Some(refusal)) if !refusal.message.is_empty() => Err(later(format!("{status}: {}", refusal.message))),
            _ => Err(later(format!("the answer is {status}"))),
        }
    }
}

/// A name as a part of a path: everything but letters, digits and `-._~` by its bytes.
fn in_path(name: &str) -> String {
    name.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
        path
    })
}

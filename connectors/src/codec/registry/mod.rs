//! A schema registry, by the HTTP interface that Confluent's has and others share: schemas by id, the latest of a subject. What a sink asks is
//! in [`write`](mod@write).
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
use hyper::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use tidemill_config::model;

use super::{PrepareError, avro::Schema};

mod http;
#[cfg(test)]
pub(super) mod tests;
mod write;

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
    /// The registry has no such id, or not what its schema refers to. It may learn of it yet.
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
    /// Left out where it was asked for by its id.
    id: Option<u32>,
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
            Ok(answer) => {
                let told = |why: String| format!("schema {id} of the registry cannot be used: {why}");
                Ok(match self.parsed(answer).await? {
                    Known::Missing(why) => Known::Missing(told(why)),
                    Known::Unusable(why) => Known::Unusable(told(why)),
                    schema @ Known::Schema(_) => schema,
                })
            }
        }
    }

    /// The latest schema of a subject, and its id.
    pub(super) async fn latest(&self, subject: &str) -> Result<(Arc<Schema>, Option<u32>), PrepareError> {
        let fatal = |why: String| self.fatal(subject, &why);
        let path = format!("/subjects/{}/versions/latest", in_path(subject));
        let answer: Answer = self.get(&path).await?.map_err(fatal)?;
        let id = answer.id;
        match self.parsed(answer).await? {
            Known::Schema(schema) => Ok((schema, id)),
            Known::Missing(why) | Known::Unusable(why) => Err(fatal(why)),
        }
    }

    /// That it answers as a registry does.
    pub(super) async fn check(&self) -> Result<(), PrepareError> {
        self.get::<Vec<String>>("/subjects").await?.map(drop).map_err(PrepareError::Fatal)
    }

    async fn parsed(&self, answer: Answer) -> Result<Known, PrepareError> {
        if let Some(kind) = answer.schema_type.filter(|kind| !kind.eq_ignore_ascii_case("avro")) {
            return Ok(Known::Unusable(format!("it is of type {kind}, not AVRO")));
        }
        let mut texts = Vec::new();
        if let Err(known) = self.references(answer.references, &mut texts).await? {
            return Ok(known);
        }
        Ok(match Schema::parse(&answer.schema, &texts) {
            Ok(schema) => Known::Schema(Arc::new(schema)),
            Err(why) => Known::Unusable(why),
        })
    }

    /// The texts of schemas that one refers to, each after those that it refers to itself; the inner error is what the one
    /// is where they cannot be had.
    fn references<'a>(
        &'a self,
        references: Vec<Reference>,
        texts: &'a mut Vec<String>,
    ) -> BoxFuture<'a, Result<Result<(), Known>, PrepareError>> {
        Box::pin(async move {
            for Reference { subject, version } in references {
                if texts.len() >= MAX_REFERENCES {
                    return Ok(Err(Known::Unusable(format!("it refers to more than {MAX_REFERENCES} others"))));
                }
                let path = format!("/subjects/{}/versions/{version}", in_path(&subject));
                let answer: Answer = match self.get(&path).await? {
                    Ok(answer) => answer,
                    // Replicas of a registry may learn of it later, as of an id.
                    Err(why) => {
                        return Ok(Err(Known::Missing(format!("it refers to {subject}, version {version}: {why}"))));
                    }
                };
                if let Err(known) = self.references(answer.references, texts).await? {
                    return Ok(Err(known));
                }
                if !texts.contains(&answer.schema) {
                    texts.push(answer.schema);
                }
            }
            Ok(Ok(()))
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Result<T, String>, PrepareError> {
        self.ask(Method::GET, path, None).await
    }

    /// One answer; the inner error is that the registry says there is no such thing.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Result<T, String>, PrepareError> {
        let later = |why: String| PrepareError::Transient(format!("{}{path}: {why}", self.url));
        let (status, body) =
            self.client.request(method, path, body.map(|body| body.to_string().into())).await.map_err(later)?;
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
            (StatusCode::CONFLICT, Some(refusal)) => Err(self.incompatible(path, &refusal.message)),
            (StatusCode::UNPROCESSABLE_ENTITY, Some(refusal)) => {
                Err(PrepareError::Fatal(format!("{}{path}: the registry refuses it: {}", self.url, refusal.message)))
            }
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

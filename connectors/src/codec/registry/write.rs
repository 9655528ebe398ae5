//! What a sink asks: the id of the schema that it writes by.

use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Registry, in_path};
use crate::codec::PrepareError;

#[derive(Deserialize)]
struct Id {
    id: u32,
}

/// Confluent's registry has `messages`, Apicurio a `reason`.
#[derive(Deserialize)]
struct Compatibility {
    is_compatible: bool,
    #[serde(default)]
    messages: Vec<Value>,
    reason: Option<String>,
}

impl Registry {
    /// Registers a schema under a subject; what is there already keeps its id.
    pub(in crate::codec) async fn register(&self, subject: &str, schema: &str) -> Result<u32, PrepareError> {
        let path = format!("/subjects/{}/versions", in_path(subject));
        let answer = self.ask::<Id>(Method::POST, &path, Some(&json!({ "schema": schema }))).await?;
        answer.map(|answer| answer.id).map_err(|why| self.fatal(subject, &why))
    }

    /// The id of a schema that is under the subject already.
    pub(in crate::codec) async fn find(&self, subject: &str, schema: &str) -> Result<u32, PrepareError> {
        let path = format!("/subjects/{}", in_path(subject));
        let answer = self.ask::<Id>(Method::POST, &path, Some(&json!({ "schema": schema }))).await?;
        answer.map(|answer| answer.id).map_err(|why| {
            self.fatal(subject, &format!("the schema is not there ({why}): register it, or remove `register: false`"))
        })
    }

    /// Whether a schema could be registered under the subject. Registers nothing.
    pub(in crate::codec) async fn would_take(&self, subject: &str, schema: &str) -> Result<(), PrepareError> {
        let path = format!("/compatibility/subjects/{}/versions/latest?verbose=true", in_path(subject));
        match self.ask::<Compatibility>(Method::POST, &path, Some(&json!({ "schema": schema }))).await? {
            // There is nothing yet that it had to be compatible with.
            Err(_) => Ok(()),
            Ok(answer) if answer.is_compatible => Ok(()),
            Ok(answer) => {
                let messages =
                    answer.messages.iter().map(|message| message.as_str().map_or(message.to_string(), str::to_owned));
                let said: Vec<String> = answer.reason.into_iter().chain(messages).collect();
                Err(self.incompatible(&path, &said.join("; ")))
            }
        }
    }

    pub(super) fn fatal(&self, subject: &str, why: &str) -> PrepareError {
        PrepareError::Fatal(format!("{}: subject {subject}: {why}", self.url))
    }

    pub(super) fn incompatible(&self, path: &str, said: &str) -> PrepareError {
        PrepareError::Fatal(format!(
            "{}{path}: the schema is not compatible with those before it, says the registry: {said}\n\
             way out: give the columns the names and types of the subject's latest schema, set another compatibility for the \
             subject, or write under another `subject`",
            self.url
        ))
    }
}

//! Which schema a sink writes by, and what its records begin with: the job's, one that is made of the columns, or the latest of
//! the registry. Asked for once for each schema of rows, before they are encoded.

use std::sync::Arc;

use tidemill_config::model::{self, AvroFraming};

use super::{SINGLE_OBJECT, derive, of_file, schema::Schema, write::Writer};
use crate::codec::{PrepareError, records::Columns, registry::Registry};

/// The codec `avro` of a sink.
pub(in crate::codec) struct Writing {
    topic: String,
    framing: AvroFraming,
    /// The job's own schema, and its text without white space.
    given: Option<(Arc<Schema>, String)>,
    registered: Option<Registered>,
}

struct Registered {
    registry: Registry,
    subject: String,
    register: bool,
}

/// A schema to write by; its text where the registry may not know it yet, or else its id.
struct Chosen {
    schema: Arc<Schema>,
    known: Known,
}

enum Known {
    Text(String),
    Id(u32),
}

impl Writing {
    pub fn new(options: &model::Avro, topic: &str) -> Result<Self, String> {
        let given = options.schema.as_ref().map(|file| {
            let text = file.content.as_ref().ok().and_then(|content| std::str::from_utf8(content).ok());
            let schema = of_file(file).map_err(|why| format!("{} cannot be used: {why}", file.shown()))?;
            Ok::<_, String>((Arc::new(schema), minified(text.unwrap_or_default())))
        });
        let registered = options.registry.as_ref().map(|given| {
            let subject = given.subject.clone().unwrap_or_else(|| format!("{topic}-value"));
            Ok::<_, String>(Registered { registry: Registry::new(given)?, subject, register: given.register })
        });
        Ok(Self {
            topic: topic.to_owned(),
            framing: options.framing,
            given: given.transpose()?,
            registered: registered.transpose()?,
        })
    }

    /// The writer of these columns, with what its records begin with.
    pub async fn prepare(&self, columns: Columns<'_>) -> Result<Writer, PrepareError> {
        let chosen = self.choose(columns).await?;
        let mut writer = Writer::new(&chosen.schema, columns).map_err(PrepareError::Fatal)?;
        writer.head = match (self.framing, &self.registered) {
            (AvroFraming::None, _) => Vec::new(),
            (AvroFraming::SingleObject, _) => [&SINGLE_OBJECT[..], &chosen.schema.fingerprint].concat(),
            (AvroFraming::Confluent, Some(registered)) => {
                let id = registered.id(&chosen.known).await?;
                [&[0][..], &id.to_be_bytes()].concat()
            }
            (AvroFraming::Confluent, None) => {
                return Err(PrepareError::Fatal("ids of schemas need a registry: add `registry: URL`".into()));
            }
        };
        Ok(writer)
    }

    async fn choose(&self, columns: Columns<'_>) -> Result<Chosen, PrepareError> {
        if let Some((schema, text)) = &self.given {
            return Ok(Chosen { schema: schema.clone(), known: Known::Text(text.clone()) });
        }
        if let Some(registered) = self.registered.as_ref().filter(|registered| !registered.register) {
            let (schema, id) = registered.registry.latest(&registered.subject).await?;
            let id = id.ok_or_else(|| PrepareError::Fatal("the registry tells no id of its latest schema".into()))?;
            return Ok(Chosen { schema, known: Known::Id(id) });
        }
        self.derived(columns).map_err(PrepareError::Fatal)
    }

    fn derived(&self, columns: Columns<'_>) -> Result<Chosen, String> {
        let text = derive::schema(&self.topic, columns.fields)?;
        let schema = Schema::parse(&text, &[]).map_err(|why| format!("the columns have no schema in Avro: {why}"))?;
        Ok(Chosen { schema: Arc::new(schema), known: Known::Text(text) })
    }

    /// Whether the columns fit the schema, as far as that is known without the registry.
    pub fn fits(&self, columns: Columns<'_>) -> Result<(), String> {
        let schema = match (&self.given, &self.registered) {
            (Some((schema, _)), _) => schema.clone(),
            (None, Some(Registered { register: false, .. })) => return Ok(()),
            (None, _) => self.derived(columns)?.schema,
        };
        Writer::new(&schema, columns).map(drop)
    }

    /// Whether [`Self::prepare`] would work. Registers nothing.
    pub async fn check(&self, columns: Option<Columns<'_>>) -> Result<(), PrepareError> {
        // Where nobody knows the columns, there is only a schema that does not depend on them.
        let none = Columns { fields: &arrow::datatypes::Fields::empty(), spare: &[] };
        let depends = self.given.is_none() && self.registered.as_ref().is_none_or(|registered| registered.register);
        let chosen = match columns {
            None if depends => None,
            columns => Some(self.choose(columns.unwrap_or(none)).await?),
        };
        if let (Some(chosen), Some(columns)) = (&chosen, columns) {
            Writer::new(&chosen.schema, columns).map_err(PrepareError::Fatal)?;
        }
        match (&self.registered, chosen.map(|chosen| chosen.known)) {
            (None, _) => Ok(()),
            (Some(registered), None) => registered.registry.check().await,
            (Some(_), Some(Known::Id(_))) => Ok(()),
            (Some(Registered { registry, subject, register: true }), Some(Known::Text(text))) => {
                registry.would_take(subject, &text).await
            }
            (Some(Registered { registry, subject, .. }), Some(Known::Text(text))) => {
                registry.find(subject, &text).await.map(drop)
            }
        }
    }
}

impl Registered {
    async fn id(&self, known: &Known) -> Result<u32, PrepareError> {
        match known {
            Known::Id(id) => Ok(*id),
            Known::Text(text) if self.register => self.registry.register(&self.subject, text).await,
            Known::Text(text) => self.registry.find(&self.subject, text).await,
        }
    }
}

/// JSON without white space: a registry may take a text that is only laid out anew for another schema.
fn minified(text: &str) -> String {
    serde_json::from_str::<serde_json::Value>(text).map_or_else(|_| text.to_owned(), |value| value.to_string())
}

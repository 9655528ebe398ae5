//! What the source and the sink of Kafka have in common: what librdkafka says of topics, and which right is missing.

pub(crate) mod native;
pub(crate) mod offsets;
mod rights;

pub(crate) use self::rights::{On, Operation, is_denied, missing};

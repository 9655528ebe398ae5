//! What the source and the sink of Kafka have in common: what librdkafka says of topics, what its error codes mean, which right
//! is missing, and what to look at where a login fails.

mod errors;
mod login;
pub(crate) mod native;
pub(crate) mod offsets;
mod rights;

pub(crate) use self::{
    errors::{Meaning, meaning},
    login::{LOGIN, no_client},
    rights::{On, Operation, is_denied, missing},
};

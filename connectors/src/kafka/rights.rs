//! A right that is missing, in words: who lacks what on which thing, and the command that gives it.
//!
//! A broker says no more than "topic authorization failed". Whoever has to mend it needs the user's name as the broker has
//! it, the operation and the resource: `kafka-acls.sh` takes them in this form.

use rdkafka::{bindings::rd_kafka_AclOperation_t as Native, error::RDKafkaErrorCode as Code};

use super::{Meaning, meaning};

/// What may be done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Describe,
    Read,
    Write,
}

impl Operation {
    /// One that is of interest here.
    pub fn of(native: Native) -> Option<Self> {
        match native {
            Native::RD_KAFKA_ACL_OPERATION_CREATE => Some(Self::Create),
            Native::RD_KAFKA_ACL_OPERATION_DESCRIBE => Some(Self::Describe),
            Native::RD_KAFKA_ACL_OPERATION_READ => Some(Self::Read),
            Native::RD_KAFKA_ACL_OPERATION_WRITE => Some(Self::Write),
            _ => None,
        }
    }
}

/// What a right is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On<'a> {
    Topic(&'a str),
    Group(&'a str),
    /// The transactional ids that begin so.
    Ids(&'a str),
}

/// Whether an error says that a right is missing.
pub(crate) fn is_denied(code: Option<Code>) -> bool {
    code.is_some_and(|code| meaning(code) == Meaning::Denied)
}

/// "user etl lacks Read on topic orders: ..." with the command that gives it.
pub(crate) fn missing(brokers: &str, properties: &[(String, String)], lacks: &[Operation], on: On<'_>) -> String {
    let (user, principal) = user(properties);
    let operations: Vec<String> = lacks.iter().map(|one| format!("{one:?}")).collect();
    let (thing, resource) = match on {
        On::Topic(name) => (format!("topic {name}"), format!("--topic {}", quoted(name))),
        On::Group(name) => (format!("group {name}"), format!("--group {}", quoted(name))),
        On::Ids(prefix) => (
            format!("transactional ids that begin with {prefix}"),
            format!("--transactional-id {} --resource-pattern-type prefixed", quoted(prefix)),
        ),
    };
    let asked: String = operations.iter().map(|one| format!(" --operation {one}")).collect();
    format!(
        "{user} lacks {} on {thing}. Who manages the cluster gives it: `kafka-acls.sh --bootstrap-server {brokers} --add \
         --allow-principal {}{asked} {resource}`",
        in_words(&operations),
        quoted(&principal)
    )
}

fn in_words(operations: &[String]) -> String {
    match operations {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => operations.concat(),
    }
}

/// The user of these properties, in words and as the brokers name it.
fn user(properties: &[(String, String)]) -> (String, String) {
    let property = |name: &str| properties.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str());
    let protocol = property("security.protocol").unwrap_or_default().to_ascii_lowercase();
    let has_certificate =
        properties.iter().any(|(name, _)| name.starts_with("ssl.certificate.") || name.starts_with("ssl.keystore."));
    match property("sasl.username").or_else(|| property("sasl.user")) {
        Some(name) if protocol.starts_with("sasl") => (format!("user {name}"), format!("User:{name}")),
        // Brokers make the name of the certificate's subject, by rules of their own.
        _ if protocol == "ssl" && has_certificate => ("the user of this certificate".into(), "User:NAME".into()),
        _ => ("a client without a login".into(), "User:ANONYMOUS".into()),
    }
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/@=,+".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_message_names_user_right_and_resource_and_no_secret() {
        let sasl = given(&[
            ("security.protocol", "SASL_SSL"),
            ("sasl.username", "etl of it's"),
            ("sasl.password", "very secret"),
        ]);
        let said = missing("b:9092", &sasl, &[Operation::Create, Operation::Read, Operation::Write], On::Topic("t"));
        assert_eq!(
            said,
            "user etl of it's lacks Create, Read and Write on topic t. Who manages the cluster gives it: `kafka-acls.sh \
             --bootstrap-server b:9092 --add --allow-principal 'User:etl of it'\\''s' --operation Create --operation Read \
             --operation Write --topic t`"
        );
        let said = missing("b:9092", &[], &[Operation::Write], On::Ids("marks/"));
        assert!(said.starts_with("a client without a login lacks Write on transactional ids that begin with marks/"));
        assert!(
            said.ends_with(
                "--allow-principal User:ANONYMOUS --operation Write --transactional-id marks/ --resource-pattern-type \
                 prefixed`"
            ),
            "{said}"
        );
        let certificate = given(&[("security.protocol", "ssl"), ("ssl.certificate.location", "c.pem")]);
        let said = missing("b:9092", &certificate, &[Operation::Read], On::Group("g"));
        assert!(said.starts_with("the user of this certificate lacks Read on group g."), "{said}");
    }
}

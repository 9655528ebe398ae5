//! Logins that fail, in words.

use rdkafka::error::KafkaError;

/// What to look at where the brokers refuse a login. They do not tell a wrong name from a mechanism that they do not offer.
pub(crate) const LOGIN: &str = "look at security.protocol, sasl.mechanism, sasl.username and sasl.password";

/// Why librdkafka makes no client of these properties.
pub(crate) fn no_client(error: &KafkaError) -> String {
    let said = error.to_string();
    // Where no mechanism is named librdkafka takes GSSAPI.
    if said.contains("No provider for SASL mechanism") {
        return "no login is possible by this sasl.mechanism, which is GSSAPI where none is set: set sasl.mechanism to PLAIN, \
                SCRAM-SHA-256 or SCRAM-SHA-512"
            .to_owned();
    }
    said
}

#[cfg(test)]
mod tests {
    use rdkafka::{ClientConfig, consumer::BaseConsumer};

    use super::*;

    #[test]
    fn a_mechanism_that_is_not_set_or_not_built_in_is_told() {
        for mechanism in [None, Some("GSSAPI"), Some("PLAIN")] {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", "a:1").set("security.protocol", "SASL_PLAINTEXT").set("group.id", "g");
            config.set("sasl.username", "u").set("sasl.password", "p");
            if let Some(mechanism) = mechanism {
                config.set("sasl.mechanism", mechanism);
            }
            let made: Result<BaseConsumer, _> = config.create();
            let said = made.err().map(|error| no_client(&error)).unwrap_or_default();
            assert_eq!(said.contains("set sasl.mechanism to PLAIN"), mechanism != Some("PLAIN"), "{said}");
        }
    }
}

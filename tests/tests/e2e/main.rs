//! The real binary from outside. One program, run by threads: each test program links DataFusion anew.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../connectors/tests/suite/sinks/kafka.rs"]
#[allow(dead_code)]
mod kafka_sink;
#[path = "../../../connectors/tests/suite/sources/kafka.rs"]
mod kafka_topics;

use tidemill_tests::services;

mod at_least_once;
mod classic;
mod cli;
mod codecs;
mod codecs_written;
mod crash;
mod daemon;
mod dead_letters;
mod deploy;
mod done_when;
mod edits;
mod examples;
mod examples_with_servers;
mod faults_run;
mod faults_storage;
mod golden;
mod house;
mod kafka_crash;
mod kafka_rights;
mod kafka_source;
mod lanes;
mod lookup_databases;
mod lookups;
mod memory;
mod mysql;
mod once;
mod ownership;
mod postgres;
mod powercut;
mod real_data;
mod real_services;
mod scale;
mod schema;
mod schemas;
mod sink_rejects;
mod sql;
mod weblog;

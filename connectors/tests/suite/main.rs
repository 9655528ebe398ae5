//! Sources, sinks and lookups against real servers, files and each other's contract. One program, run by threads.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../tests/src/proxy.rs"]
mod proxy;
#[path = "../../../tests/src/services.rs"]
mod services;

mod databases;
mod files_model;
mod kafka_model;
mod lookups;
mod sink_contract;
mod sink_crash;
mod sink_files;
mod sink_kafka;
mod sink_kafka_codecs;
mod sink_kafka_hanging;
mod sink_kafka_refusals;
mod sink_mysql;
mod sink_mysql_faults;
mod sink_postgres;
mod sink_postgres_faults;
mod sink_postgres_tls;
mod sink_sqlite;
mod sink_unmarked;
mod sinks;
mod source_contract;
mod source_kafka;
mod source_sql;
mod sources;

//! Sinks that can do without marks, opened with `guarantee: at_least_once`: they claim nothing, remember nothing, make nothing
//! but the rows, and lose none silently.

use std::{path::Path, sync::Arc};

use crate::sinks::*;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use tidemill_checkpoint::{Held, Lane, LaneKey, Permit, Receipt};
use tidemill_config::{DatabaseSink, Guarantee, KafkaSink, SinkKind};
use tidemill_connectors::sink::{self, Sink, SinkError};

/// No record of the topic is longer.
const MAX_BYTES: &str = "1000";

fn unmarked(kind: Kind, dir: &Path) -> Arc<dyn Sink> {
    let guarantee = Guarantee::AtLeastOnce;
    let config = match kind {
        Kind::Postgres => {
            let config = postgres::config(&postgres::url(dir), "rows", &[], None);
            SinkKind::Postgres(DatabaseSink { guarantee, ..config })
        }
        Kind::Mariadb | Kind::Mysql => match mysql::config(&mysql::url(kind, dir), "rows", &[], None) {
            SinkKind::Mysql(config) => SinkKind::Mysql(DatabaseSink { guarantee, ..config }),
            _ => unreachable!(),
        },
        _ => {
            let properties = vec![("message.max.bytes".to_owned(), MAX_BYTES.to_owned())];
            SinkKind::Kafka(KafkaSink { guarantee, properties, ..kafka::config(dir) })
        }
    };
    sink::open(id(kind), "job", &config).unwrap()
}

/// A table that takes no number from 100 on; records of a topic are limited by their length.
fn make_target(kind: Kind, dir: &Path) {
    match kind {
        Kind::Postgres => {
            let sql = "CREATE TABLE rows (n bigint CHECK (n < 100), text text)";
            postgres::server().unwrap().psql_at(&postgres::url(dir), sql);
        }
        Kind::Mariadb | Kind::Mysql => {
            mysql::url(kind, dir);
            let database = mysql::database(dir);
            let checked = mysql::check(kind, "`rows`", "$n < 100");
            let sql = format!("USE {database}; CREATE TABLE `rows` (n BIGINT, text TEXT) ENGINE=InnoDB; {checked}");
            mysql::server(kind).unwrap().sql(&sql);
        }
        _ => {}
    }
}

/// What is there beside the rows.
fn own(kind: Kind, dir: &Path) -> Vec<String> {
    let names = match kind {
        Kind::Postgres => postgres::relations(dir),
        Kind::Mariadb | Kind::Mysql => {
            let (server, database) = (mysql::server(kind).unwrap(), mysql::database(dir));
            let sql = format!("SELECT table_name FROM information_schema.tables WHERE table_schema = '{database}'");
            server.sql(&sql).lines().map(str::to_owned).collect()
        }
        _ => kafka::topics(&kafka::brokers(dir), &kafka::topic(dir)),
    };
    names.into_iter().filter(|name| name != "rows" && *name != kafka::topic(dir)).collect()
}

/// Commits the rows of these lanes in one call. Those from 100 on are refused.
async fn commit(sink: &dyn Sink, lanes: &[(&str, &[i64])]) -> Vec<Result<Receipt, SinkError>> {
    let mut group = Vec::new();
    for (lane, numbers) in lanes {
        let (key, held) = sink.claim(&Lane::new(lane), generation(1), &owner(1)).await.unwrap();
        assert!(held.is_none());
        let texts = numbers.iter().map(|n| "x".repeat(if *n < 100 { 1 } else { 2_000 }));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        let numbers: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        let rows = RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("text", texts, true)]).unwrap();
        sink.prepare(&rows.schema()).await.unwrap();
        let (mark, _) = next(&key, &origin(&key), &[], 0);
        let staged = sink.stage(&context(&key, &mark, false), &[rows]).await.unwrap();
        group.push((Permit::unmarked(key, mark), staged));
    }
    sink.commit(group).await
}

fn each(test: impl AsyncFn(Kind, &Path, Arc<dyn Sink>)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for kind in [Kind::Postgres, Kind::Mariadb, Kind::Mysql, Kind::Kafka].into_iter().filter(|kind| is_there(*kind)) {
        let dir = tempfile::tempdir().unwrap();
        make_target(kind, dir.path());
        runtime.block_on(test(kind, dir.path(), unmarked(kind, dir.path())));
        assert_eq!(own(kind, dir.path()), [""; 0], "{kind:?}");
        forget(kind, dir.path());
    }
}

#[test]
fn it_keeps_no_marks_shuts_nobody_out_and_writes_a_batch_as_often_as_it_is_given() {
    each(async |kind, dir, sink| {
        assert_eq!(sink.guarantee(), Guarantee::AtLeastOnce);
        assert_eq!(*sink.id(), id(kind));
        let lane = Lane::new("a");
        let mut keys: Vec<LaneKey> = Vec::new();
        // Of a lower generation too: nobody remembers.
        for (mine, who) in [(5, 1), (1, 2)] {
            let (key, held) = sink.claim(&lane, generation(mine), &owner(who)).await.unwrap();
            assert!(held.is_none());
            keys.push(key);
        }
        sink.check(None).await.unwrap();
        for _ in 0..2 {
            let done = commit(&*sink, &[("a", &[1, 2]), ("b", &[3])]).await;
            assert!(done.iter().all(Result::is_ok), "{kind:?}: {done:?}");
        }
        assert_eq!(rows(kind, dir), [1, 1, 2, 2, 3, 3], "{kind:?}");
        for key in &keys {
            sink.beat(key).await.unwrap();
            sink.release(key).await.unwrap();
        }
        assert_eq!(sink.peek(std::slice::from_ref(&lane)).await.unwrap()[&lane], Held::default());
        assert_eq!(sink.rejects(&lane, 0).await.unwrap(), []);
        assert_eq!(sink.history(&lane, &log(), 0).await.unwrap(), []);
        sink.reset().await.unwrap();
        assert_eq!(rows(kind, dir).len(), 6, "{kind:?}");
    });
}

#[test]
fn a_lane_whose_rows_are_refused_fails_as_a_whole_with_the_row_and_stops_no_other() {
    each(async |kind, dir, sink| {
        let done = commit(&*sink, &[("a", &[1, 2]), ("b", &[3, 4, 100, 5, 101]), ("c", &[6])]).await;
        let [Ok(_), Err(SinkError::Fatal(said)), Ok(_)] = &done[..] else { panic!("{kind:?}: {done:?}") };
        for words in ["batch 1 has 2 rows that the target refuses", "the first is row 2, {\"n\":100", "exactly_once"] {
            assert!(said.contains(words), "{kind:?}: no {words:?} in {said}");
        }
        assert_eq!(rows(kind, dir), [1, 2, 6], "{kind:?}");
        // It goes on.
        let done = commit(&*sink, &[("b", &[3, 4, 5])]).await;
        assert!(done[0].is_ok(), "{kind:?}: {done:?}");
        assert_eq!(rows(kind, dir), [1, 2, 3, 4, 5, 6], "{kind:?}");
    });
}

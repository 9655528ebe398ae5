//! Binary records of the Kafka sink against a real broker: what a row without a value becomes, and one that does not fit.

use std::{collections::BTreeMap, sync::Arc};

use crate::sinks::{kafka::column, *};
use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use rdkafka::Message;
use tidemill_checkpoint::Lane;
use tidemill_config::{At, Codec, KafkaSink, Located, SinkKind};
use tidemill_connectors::sink::{self, Sink};

fn open(config: KafkaSink) -> Arc<dyn Sink> {
    sink::open(id(Kind::Kafka), "job", &SinkKind::Kafka(config)).unwrap()
}

/// A row that its schema cannot hold is a reject; a tombstone has no value that had to fit, and null bytes are one.
#[test]
fn a_row_that_its_schema_cannot_hold_is_a_reject_unless_it_is_a_tombstone() {
    let Some(kafka) = services::kafka() else { return };
    let schema = r#"{"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}, {"name": "text", "type": "string"}]}"#;
    let columns: [(&str, ArrayRef); 3] = [
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ("text", Arc::new(StringArray::from(vec![Some("a"), None, None]))),
        ("gone", Arc::new(BooleanArray::from(vec![Some(false), Some(true), None]))),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap();
    let path = Located { value: std::path::PathBuf::new(), at: At::default() };
    let schema = tidemill_config::SchemaFile { path, content: Ok(schema.as_bytes().into()) };
    let framing = tidemill_config::AvroFraming::None;
    let avro = Codec::Avro(tidemill_config::Avro { registry: None, schema: Some(schema), framing });
    for (codec, delete_when, rejected, expected) in [
        (avro, Some(column("gone")), 1, [(1, Some(vec![2, 2, b'a'])), (2, None)].to_vec()),
        (Codec::Bytes("text".into()), None, 0, [(1, Some(b"a".to_vec())), (2, None), (3, None)].to_vec()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let config = KafkaSink { codec, key: Some(column("n")), delete_when, ..kafka::config(dir.path()) };
        let rejects = tokio::runtime::Runtime::new().unwrap().block_on(async {
            open(config.clone()).check(Some(&rows.schema())).await.unwrap();
            write(open(config.clone()), &rows).await;
            open(config).rejects(&Lane::single(), 0).await.unwrap()
        });
        assert_eq!(rejects.len(), rejected);
        if let Some(reject) = rejects.first() {
            assert_eq!(
                (reject.row, &*reject.reason, &*reject.detail),
                (2, "type", "column text: null is not a string")
            );
            assert_eq!(reject.record, r#"{"n":3,"text":null,"gone":null}"#);
        }
        let found = kafka::records(&kafka.brokers, &kafka::topic(dir.path()));
        let found = found.iter().map(|m| {
            (std::str::from_utf8(m.key().unwrap()).unwrap().parse().unwrap(), m.payload().map(<[u8]>::to_vec))
        });
        assert_eq!(found.collect::<BTreeMap<i64, _>>(), expected.into_iter().collect());
    }
}

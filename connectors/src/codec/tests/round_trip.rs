use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
        ListBuilder, StringArray, StringBuilder, StructArray, TimestampMicrosecondArray,
    },
    buffer::NullBuffer,
};
use proptest::{collection::vec, option, prelude::*, strategy::ValueTree};

use super::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,20}",
        "[a,\"'\\\\\n\r\t ;\u{1}é😀]{0,30}",
        Just(String::new()),
        Just("NA".to_owned()),
        "[ -~]{60,90}"
    ]
}

#[derive(Clone, Debug)]
struct Row {
    text: Option<String>,
    int32: Option<i32>,
    int64: Option<i64>,
    float: Option<f64>,
    boolean: Option<bool>,
    stamp: Option<i64>,
    date: Option<i32>,
    decimal: Option<i64>,
    binary: Option<Vec<u8>>,
    list: Option<Vec<Option<String>>>,
    inner: Option<(Option<i64>, Option<String>)>,
}

fn row() -> impl Strategy<Value = Row> {
    let float = prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO;
    let first = (
        option::of(text()),
        option::of(any::<i32>()),
        option::of(any::<i64>()),
        option::of(float),
        option::of(any::<bool>()),
    );
    let second = (
        option::of(any::<i64>()),
        option::of(any::<i32>()),
        option::of(-999_999_999_i64..=999_999_999),
        option::of(vec(any::<u8>(), 0..9)),
        option::of(vec(option::of(text()), 0..4)),
        option::of((option::of(any::<i64>()), option::of(text()))),
    );
    (first, second).prop_map(|((text, int32, int64, float, boolean), (stamp, date, decimal, binary, list, inner))| {
        Row { text, int32, int64, float, boolean, stamp, date, decimal, binary, list, inner }
    })
}

fn table(rows: &[Row]) -> RecordBatch {
    let schema = schema(&[
        ("text", "string"),
        ("int \"32\"", "int32"),
        ("int64,", "int64"),
        ("float", "float64"),
        ("boolean", "boolean"),
        ("stamp", "timestamp"),
        ("date", "date"),
        ("decimal", "decimal(9, 3)"),
        ("binary", "binary"),
        ("list", "list<string>"),
        ("inner", "struct<n: int64, t: string>"),
    ]);
    let mut list = ListBuilder::new(StringBuilder::new());
    rows.iter().for_each(|row| list.append_option(row.list.clone()));
    let arrow::datatypes::DataType::Struct(fields) = schema.field(10).data_type().clone() else { unreachable!() };
    let members: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| r.inner.as_ref().and_then(|i| i.0)).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| r.inner.as_ref().and_then(|i| i.1.clone())).collect::<StringArray>()),
    ];
    let nulls = NullBuffer::from_iter(rows.iter().map(|row| row.inner.is_some()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.text.clone()).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| row.int32).collect::<Int32Array>()),
        Arc::new(rows.iter().map(|row| row.int64).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.float).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|row| row.boolean).collect::<BooleanArray>()),
        Arc::new(rows.iter().map(|row| row.stamp).collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        Arc::new(rows.iter().map(|row| row.date).collect::<Date32Array>()),
        Arc::new(
            rows.iter()
                .map(|row| row.decimal.map(i128::from))
                .collect::<Decimal128Array>()
                .with_precision_and_scale(9, 3)
                .unwrap(),
        ),
        Arc::new(rows.iter().map(|row| row.binary.clone()).collect::<BinaryArray>()),
        Arc::new(list.finish()),
        Arc::new(StructArray::new(fields, members, Some(nulls))),
    ];
    RecordBatch::try_new(schema, columns).unwrap()
}

fn there_and_back(config: &model::Codec, rows: &RecordBatch) -> Decoded {
    let mut encoder = encoder(config, &rows.schema()).unwrap();
    let mut out = encoder.header().unwrap_or_default();
    // In two parts: what is bound to a batch must not depend on where it begins.
    let half = rows.num_rows() / 2;
    encoder.encode(&rows.slice(0, half), &mut out).unwrap();
    encoder.encode(&rows.slice(half, rows.num_rows() - half), &mut out).unwrap();
    let (slice, error) = slice_of(config, &out);
    assert_eq!(error, None);
    decode(config, &rows.schema(), &slice)
}

proptest! {
    #[test]
    fn json_reads_what_it_wrote(rows in vec(row(), 0..8)) {
        let rows = table(&rows);
        let decoded = there_and_back(&model::Codec::Json, &rows);
        prop_assert_eq!(&decoded.rejects, &[]);
        prop_assert_eq!(decoded.rows, rows);
    }

    #[test]
    fn csv_reads_what_it_wrote(rows in vec(row(), 0..8), nulls in prop_oneof![Just(vec![]), Just(vec!["NA".to_owned()])], escape: bool) {
        let rows = table(&rows);
        let escape = escape.then_some(b'\\');
        let decoded = there_and_back(&model::Codec::Csv(model::Csv { nulls, escape, ..csv_options() }), &rows);
        prop_assert_eq!(&decoded.rejects, &[]);
        prop_assert_eq!(decoded.rows, rows);
    }

    #[test]
    fn csv_of_one_column_keeps_its_nulls(texts in vec(option::of(text()), 0..8)) {
        let column: ArrayRef = Arc::new(texts.iter().map(|text| text.as_deref()).collect::<StringArray>());
        let rows = RecordBatch::try_new(schema(&[("only", "string")]), vec![column]).unwrap();
        prop_assert_eq!(there_and_back(&csv_codec(), &rows).rows, rows);
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200), text in "[\\[\\]{}\",:0-9a\\\\tu\n\r ;'.eE+-]{0,80}") {
        for config in [model::Codec::Json, csv_codec(), model::Codec::Text, model::Codec::Csv(model::Csv { encoding: "utf-16be".into(), ..csv_options() })] {
            for bytes in [&bytes[..], text.as_bytes()] {
                for slice in [slice_of(&config, bytes).0, one_record(bytes)] {
                    let schema = codec(&config).infer(std::slice::from_ref(&slice)).unwrap();
                    check(&codec(&config).decoder(&with_extra(&schema), &schema).decode(&slice), &slice);
                    decode(&config, &table(&[]).schema(), &slice);
                }
            }
        }
    }

    /// Strict JSON is what serde_json takes for it; but for the depth, and numbers that it finds too large.
    #[test]
    fn json_agrees_with_serde(text in "\\{\"a\":[\\[\\]{}\",:0-9a\\\\tu\n ntrue.eE+-]{0,12}\\}?") {
        let ours = decode(&model::Codec::Json, &schema(&[("a", "string")]), &one_record(text.as_bytes()));
        let theirs = serde_json::from_str::<Value>(&text);
        match &theirs {
            Ok(_) => prop_assert!(ours.rejects.is_empty(), "{}: {:?}", text, ours.rejects),
            Err(error) if error.to_string().contains("out of range") || error.to_string().contains("surrogate") => {}
            Err(error) => prop_assert!(!ours.rejects.is_empty(), "{text}: {error}"),
        }
    }
}

#[test]
fn numbers_that_json_lacks_are_null() {
    let column: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY, -0.0]));
    let rows = RecordBatch::try_new(schema(&[("f", "float64")]), vec![column]).unwrap();
    assert_eq!(as_json(&rows).iter().map(|row| row["f"].to_string()).collect::<Vec<_>>(), ["null", "null", "-0.0"]);
    let back = there_and_back(&csv_codec(), &rows).rows;
    let back = arrow::array::AsArray::as_primitive::<arrow::datatypes::Float64Type>(back.column(0)).clone();
    assert!(back.value(0).is_nan() && back.value(1) == f64::INFINITY);
}

#[test]
fn text_writes_one_column() {
    let rows = table(&[]);
    assert!(encoder(&model::Codec::Text, &rows.schema()).is_ok());
    let two = schema(&[("a", "string"), ("b", "string")]);
    let error = encoder(&model::Codec::Text, &two).err().unwrap().to_string();
    assert!(error.contains("a, b"), "{error}");
    let column: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
    let rows = RecordBatch::try_new(schema(&[("only", "string")]), vec![column]).unwrap();
    let mut out = Vec::new();
    encoder(&model::Codec::Text, &rows.schema()).unwrap().encode(&rows, &mut out).unwrap();
    assert_eq!(out, b"x\n\n");
}

#[test]
fn parquet_is_read_back_by_its_own_reader() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let rows = vec(row(), 50..60).new_tree(&mut runner).unwrap().current();
    let rows = table(&rows);
    let mut out = Vec::new();
    encoder(&model::Codec::Parquet, &rows.schema()).unwrap().encode(&rows, &mut out).unwrap();
    let reader = ::parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(Bytes::from(out), 1000).unwrap();
    let back: Vec<_> = reader.map(Result::unwrap).collect();
    assert_eq!(back.iter().map(RecordBatch::num_rows).sum::<usize>(), rows.num_rows());
    assert_eq!(as_json(&back[0]), as_json(&rows));
}

#[test]
fn columns_of_other_types_are_written_too() {
    use arrow::{array::*, datatypes::*};
    let dictionary: DictionaryArray<Int8Type> = ["a", "b", "a"].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("u8", Arc::new(UInt8Array::from(vec![1, 2, 255]))),
        ("u64", Arc::new(UInt64Array::from(vec![1, 2, u64::MAX]))),
        ("f32", Arc::new(Float32Array::from(vec![0.1, 2.0, 3.5]))),
        ("view", Arc::new(StringViewArray::from(vec!["a", "a longer text than twelve bytes", "\""]))),
        ("large", Arc::new(LargeStringArray::from(vec!["a", "b", "c"]))),
        ("dict", Arc::new(dictionary)),
        ("seconds", Arc::new(TimestampSecondArray::from(vec![0, 1, -1]))),
        ("nanos", Arc::new(TimestampNanosecondArray::from(vec![0, 1, -1]))),
        ("time", Arc::new(Time64MicrosecondArray::from(vec![0, 1_000_000, 3_600_000_000]))),
        (
            "wide",
            Arc::new(
                Decimal256Array::from(vec![i256::from_i128(15), i256::from_i128(-5), i256::from_i128(0)])
                    .with_precision_and_scale(50, 1)
                    .unwrap(),
            ),
        ),
        ("none", Arc::new(NullArray::new(3))),
    ];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    assert_eq!(
        as_json(&rows)[2],
        serde_json::json!({"u8": 255, "u64": u64::MAX, "f32": 3.5, "view": "\"", "large": "c", "dict": "a",
            "seconds": "1969-12-31T23:59:59Z", "nanos": "1969-12-31T23:59:59.999999999Z", "time": "01:00:00",
            "wide": 0.0, "none": null})
    );
    let mut out = Vec::new();
    encoder(&csv_codec(), &rows.schema()).unwrap().encode(&rows, &mut out).unwrap();
    assert!(
        out.starts_with(b"1,1,0.1,a,a,a,1970-01-01T00:00:00Z,1970-01-01T00:00:00Z,00:00:00,1.5,\n"),
        "{}",
        String::from_utf8_lossy(&out)
    );
}

/// By the schema that is made of the columns: what is read again are the same columns, and the same rows.
#[test]
fn rows_survive_avro_by_the_schema_of_their_columns() {
    let mut runner = proptest::test_runner::TestRunner::default();
    runner
        .run(&vec(row(), 1..20), |rows| {
            let rows = table(&rows);
            let named = rows.schema_ref().fields().iter().map(|field| {
                let name = field.name().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                field.as_ref().clone().with_name(name)
            });
            let rows = RecordBatch::try_new(Arc::new(Schema::new(named.collect::<Vec<_>>())), rows.columns().to_vec())
                .unwrap();
            let text = avro::derive::schema("topic", rows.schema().fields()).unwrap();
            let path = Located { value: PathBuf::new(), at: At::default() };
            let schema = model::SchemaFile { path, content: Ok(text.as_bytes().into()) };
            let config = model::Codec::Avro(model::Avro {
                registry: None,
                schema: Some(schema),
                framing: model::AvroFraming::None,
            });
            let records = records::Records::new(&config, "topic").unwrap().unwrap();
            let columns = records::Columns { fields: rows.schema_ref().fields(), spare: &[] };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let writer = runtime.block_on(records.prepare(columns)).unwrap();
            let mut written = Vec::new();
            // In two parts: what is bound to a batch must not depend on where it begins.
            let half = rows.num_rows() / 2;
            for part in [rows.slice(0, half), rows.slice(half, rows.num_rows() - half)] {
                let mut out = Vec::new();
                for value in writer.write(&part, &mut out).unwrap() {
                    let records::Value::At(range) = value else { panic!("{value:?}") };
                    written.push(out[range].to_vec());
                }
            }
            let decoded = codec(&config).decoder(&rows.schema(), &rows.schema()).decode(&of_records(&written));
            prop_assert_eq!(&decoded.rejects, &[]);
            prop_assert_eq!(types(&codec(&config).infer(&[]).unwrap()), types(&rows.schema()));
            prop_assert_eq!(&decoded.rows, &rows);
            Ok(())
        })
        .unwrap();
}

//! How fast the codecs are on this machine, on one core: MB of text a second, the best of several rounds.
//!
//! `cargo run --release -p tidemill-connectors --example codec_speed [FILE.json | FILE.csv] [MB]`. Without a file it makes
//! a web log of string fields from a fixed seed. The numbers of a dev build mean nothing.

use std::{hint::black_box, sync::Arc, time::Instant};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use bytes::Bytes;
use prost_reflect::{
    prost::Message,
    prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, field_descriptor_proto,
    },
};
use tidemill_checkpoint::ShardId;
use tidemill_config::model::{At, Avro, AvroFraming, Codec, Csv, Located, Protobuf, SchemaFile};
use tidemill_connectors::{
    codec::{CodecError, codec, encoder, framer},
    source::{Base, Slice},
};

/// What one thread is given at a time: a directory's chunk.
const CHUNK_BYTES: usize = 1024 * 1024;
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next();
    let megabytes: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let text = match &file {
        Some(path) => repeated(&std::fs::read(path)?, megabytes),
        None => web_log(megabytes),
    };
    let csv = Csv::default();
    if file.is_some_and(|path| path.ends_with(".csv")) {
        return measure("csv", &Codec::Csv(csv), &text);
    }
    measure("json", &Codec::Json, &text)?;
    // The same rows as CSV.
    let slices = slices(&Codec::Json, &text);
    let schema = codec(&Codec::Json).infer(&slices[..1])?;
    let mut encoder = encoder(&Codec::Csv(csv.clone()), &schema)?;
    let mut table = encoder.header().unwrap_or_default();
    for slice in &slices {
        let rows = codec(&Codec::Json).decoder(&schema, &schema).decode(slice).rows;
        encoder.encode(&rows, &mut table)?;
    }
    measure("csv", &Codec::Csv(csv), &table)?;
    let rows: Vec<_> =
        slices.iter().map(|slice| codec(&Codec::Json).decoder(&schema, &schema).decode(slice).rows).collect();
    binary("avro", avro_codec(), &rows, avro_record)?;
    binary("protobuf", protobuf_codec(), &rows, protobuf_record)
}

/// Records of a binary format: one slice per batch of rows. Two columns are numbers, as such formats have them.
fn binary(
    name: &str,
    config: Codec,
    rows: &[RecordBatch],
    record: fn(usize, &str, &mut Vec<u8>),
) -> Result<(), Box<dyn std::error::Error>> {
    let slices: Vec<Slice> = rows.iter().map(|batch| slice_of(batch, record)).collect();
    let bytes: usize = slices.iter().map(|slice| slice.bytes.len()).sum();
    let codec = codec(&config);
    let schema = codec.infer(&[])?;
    let all = |wanted: &SchemaRef| -> Vec<_> {
        slices.iter().map(|slice| codec.decoder(wanted, &schema).decode(slice)).collect()
    };
    let decoded = all(&schema);
    let count: usize = decoded.iter().map(|decoded| decoded.rows.num_rows()).sum();
    assert!(decoded.iter().all(|decoded| decoded.rejects.is_empty()), "every record is a row");
    println!("{name}: {} MB, {count} rows, {} columns", bytes / 1_000_000, schema.fields().len());
    report("decode all columns", bytes, || drop(black_box(all(&schema))));
    let two = Arc::new(schema.project(&[0, 5])?);
    report("decode two columns", bytes, || drop(black_box(all(&two))));
    Ok(())
}

fn slice_of(batch: &RecordBatch, record: fn(usize, &str, &mut Vec<u8>)) -> Slice {
    let columns: Vec<_> = batch.columns().iter().map(|column| column.as_string::<i32>()).collect();
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    for row in 0..batch.num_rows() {
        let start = bytes.len() as u32;
        for (number, column) in columns.iter().enumerate() {
            record(number, column.value(row), &mut bytes);
        }
        records.push((start, bytes.len() as u32));
    }
    Slice {
        shard: ShardId::new("speed", ""),
        bytes: bytes.into(),
        records,
        base: Base::Bytes(0),
        header: None,
        metadata: Vec::new(),
        columns: Vec::new(),
    }
}

fn file(content: Vec<u8>) -> SchemaFile {
    SchemaFile { path: Located { value: "speed".into(), at: At::default() }, content: Ok(content.into()) }
}

/// Which columns are numbers.
fn is_number(number: usize) -> bool {
    matches!(number, 4 | 5)
}

fn avro_codec() -> Codec {
    let fields = (0..8).map(|number| {
        let kind = if is_number(number) { "long" } else { "string" };
        format!("{{\"name\": \"f{number}\", \"type\": \"{kind}\"}}")
    });
    let schema =
        format!("{{\"type\": \"record\", \"name\": \"Hit\", \"fields\": [{}]}}", fields.collect::<Vec<_>>().join(", "));
    Codec::Avro(Avro { registry: None, schema: Some(file(schema.into_bytes())), framing: AvroFraming::None })
}

fn avro_record(number: usize, text: &str, out: &mut Vec<u8>) {
    if is_number(number) {
        varint(text.parse::<u64>().unwrap_or_default() << 1, out);
    } else {
        varint((text.len() as u64) << 1, out);
        out.extend_from_slice(text.as_bytes());
    }
}

fn protobuf_codec() -> Codec {
    let field = |number: i32| FieldDescriptorProto {
        name: Some(format!("f{number}")),
        number: Some(number + 1),
        label: Some(field_descriptor_proto::Label::Optional as i32),
        r#type: Some(if is_number(number as usize) {
            field_descriptor_proto::Type::Int64 as i32
        } else {
            field_descriptor_proto::Type::String as i32
        }),
        ..FieldDescriptorProto::default()
    };
    let message =
        DescriptorProto { name: Some("Hit".into()), field: (0..8).map(field).collect(), ..DescriptorProto::default() };
    let proto = FileDescriptorProto {
        name: Some("speed.proto".into()),
        message_type: vec![message],
        syntax: Some("proto3".into()),
        ..FileDescriptorProto::default()
    };
    let set = FileDescriptorSet { file: vec![proto] }.encode_to_vec();
    let message = Located { value: "Hit".into(), at: At::default() };
    Codec::Protobuf(Protobuf { descriptors: file(set), message, confluent: false })
}

fn protobuf_record(number: usize, text: &str, out: &mut Vec<u8>) {
    let tag = (number as u64 + 1) << 3;
    if is_number(number) {
        varint(tag, out);
        varint(text.parse::<u64>().unwrap_or_default(), out);
    } else {
        varint(tag | 2, out);
        varint(text.len() as u64, out);
        out.extend_from_slice(text.as_bytes());
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn measure(name: &str, config: &Codec, text: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let slices = slices(config, text);
    let codec = codec(config);
    let schema = codec.infer(&slices[..1])?;
    let all = |wanted: &SchemaRef| -> Vec<RecordBatch> {
        slices.iter().map(|slice| codec.decoder(wanted, &schema).decode(slice).rows).collect()
    };
    let rows = all(&schema);
    let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
    println!("{name}: {} MB, {count} rows, {} columns", text.len() / 1_000_000, schema.fields().len());
    report("frame", text.len(), || drop(black_box(framed(config, text))));
    report("decode all columns", text.len(), || drop(black_box(all(&schema))));
    let some: Vec<Field> = schema.fields().iter().step_by(4).map(|field| field.as_ref().clone()).collect();
    let some: SchemaRef = Arc::new(Schema::new(some));
    report(&format!("decode {} columns", some.fields().len()), text.len(), || drop(black_box(all(&some))));
    let mut out = Vec::new();
    let mut encode = || -> Result<usize, CodecError> {
        let mut written = 0;
        for batch in &rows {
            out.clear();
            encoder(config, &schema)?.encode(batch, &mut out)?;
            written += black_box(&out).len();
        }
        Ok(written)
    };
    let written = encode()?;
    report("encode", written, || drop(black_box(encode())));
    Ok(())
}

fn report(what: &str, bytes: usize, mut run: impl FnMut()) {
    let best = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed()
    });
    let best = best.min().unwrap_or_default();
    println!("  {what:<20} {:>8.0} MB/s", bytes as f64 / 1e6 / best.as_secs_f64());
}

type Chunk = (usize, usize, Vec<(u32, u32)>);

/// Chunks and the records in them, and the header.
fn framed(config: &Codec, text: &[u8]) -> (Vec<Chunk>, Option<Bytes>) {
    let mut framer = framer(config);
    let (mut chunks, mut header, mut at) = (Vec::new(), None, 0);
    while at < text.len() {
        let end = (at + CHUNK_BYTES).min(text.len());
        let mut records = Vec::new();
        let framed = framer.frame(at as u64, &text[at..end], end == text.len(), usize::MAX, &mut records);
        header = framed.head(&text[at..end]).or(header);
        if framed.consumed == 0 {
            break;
        }
        chunks.push((at, at + framed.consumed, records));
        at += framed.consumed;
    }
    (chunks, header)
}

fn slices(config: &Codec, text: &[u8]) -> Vec<Slice> {
    let (chunks, header) = framed(config, text);
    let slice = |(start, end, records): Chunk| Slice {
        shard: ShardId::new("speed", ""),
        bytes: Bytes::copy_from_slice(&text[start..end]),
        records,
        base: Base::Bytes(start as u64),
        header: header.clone(),
        metadata: Vec::new(),
        columns: Vec::new(),
    };
    chunks.into_iter().map(slice).collect()
}

fn repeated(text: &[u8], megabytes: usize) -> Vec<u8> {
    let times = (megabytes * 1_000_000).div_ceil(text.len().max(1)).max(1);
    text.repeat(times)
}

/// JSON lines like those of a web server's log.
fn web_log(megabytes: usize) -> Vec<u8> {
    const AGENTS: [&str; 4] = [
        "Mozilla/5.0 (Windows NT 6.1; WOW64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/32.0.1700.107 Safari/537.36",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:27.0) Gecko/20100101 Firefox/27.0",
        "UniversalFeedParser/4.2-pre-314-svn +http://feedparser.org/",
    ];
    let schema = Schema::new(
        ["client", "user", "time", "request", "response", "bytes", "referrer", "agent"]
            .map(|name| Field::new(name, DataType::Utf8, true))
            .to_vec(),
    );
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut out = Vec::with_capacity(megabytes * 1_000_000 + 1024);
    while out.len() < megabytes * 1_000_000 {
        let values = [
            format!("{}.{}.{}.{}", random(223) + 1, random(256), random(256), random(256)),
            "-".to_owned(),
            format!("{:02}/May/2015:{:02}:{:02}:{:02} +0000", random(28) + 1, random(24), random(60), random(60)),
            format!("GET /presentations/logstash-{}/images/kibana-{}.png HTTP/1.1", random(20), random(500)),
            if random(10) == 0 { "404" } else { "200" }.to_owned(),
            random(300_000).to_string(),
            "http://semicomplete.com/presentations/logstash-monitorama-2013/".to_owned(),
            AGENTS[random(4) as usize].to_owned(),
        ];
        let fields: Vec<_> = schema
            .fields()
            .iter()
            .zip(values)
            .map(|(field, value)| format!("\"{}\": \"{value}\"", field.name()))
            .collect();
        out.extend_from_slice(format!("{{{}}}\n", fields.join(", ")).as_bytes());
    }
    out
}

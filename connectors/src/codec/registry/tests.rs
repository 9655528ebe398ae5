//! A stand-in that answers as a registry does; a real one is asked in the end-to-end tests.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Mutex, mpsc},
};

use serde_json::{Value, json};
use tidemill_config::model::{AvroFraming, Codec as Config};

use super::*;
use crate::codec::{
    Codec, codec,
    tests::{as_json, of_records},
};

/// Answers each request by a function of its path, its login and its body, with the method before them where that is not GET;
/// what came is kept.
pub(in crate::codec) struct StandIn {
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl StandIn {
    pub fn new(answer: impl Fn(&str, usize) -> (u16, Value) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut lines = reader.by_ref().lines().map_while(Result::ok);
                let first = lines.next().unwrap_or_default();
                let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
                let header = |name: &str| headers.iter().find_map(|line| line.split_once(name)).map(|(_, value)| value);
                let login = header("uthorization: ").unwrap_or_default();
                let length = header("ontent-length: ").map_or(0, |length| length.parse().unwrap());
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let body = String::from_utf8(body).unwrap();
                let (method, path) = first.split_once(' ').unwrap_or_default();
                let path = path.split(' ').next().unwrap_or_default();
                let asked = match method {
                    "GET" => format!("{path}{login}"),
                    _ => format!("{method} {path}{login} {body}"),
                };
                let before = kept.lock().unwrap().iter().filter(|before| **before == asked).count();
                kept.lock().unwrap().push(asked.clone());
                let (status, body) = answer(&asked, before);
                let body = body.to_string();
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        Self { url, asked }
    }

    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn codec(&self, login: Option<(&str, &str)>, subject: Option<&str>) -> Box<dyn Codec> {
        let (user, password) = login.map(|(user, password)| (user.to_owned(), password.to_owned())).unzip();
        let subject = subject.map(str::to_owned);
        let registry = model::Registry { url: self.url.clone(), user, password, subject, register: true };
        codec(&Config::Avro(model::Avro { registry: Some(registry), schema: None, framing: AvroFraming::Confluent }))
    }
}

fn schema(fields: &Value) -> String {
    json!({"type": "record", "name": "R", "fields": fields}).to_string()
}

fn one() -> String {
    schema(&json!([{"name": "a", "type": "int"}]))
}

fn two() -> String {
    schema(&json!([{"name": "b", "type": "string", "default": ""}, {"name": "a", "type": "long"}]))
}

fn missing() -> (u16, Value) {
    (404, json!({"error_code": 40403, "message": "Schema not found"}))
}

fn by_id(asked: &str, _: usize) -> (u16, Value) {
    match asked {
        "/schemas/ids/1" => (200, json!({"schema": one()})),
        "/schemas/ids/2" => (200, json!({"schema": two(), "schemaType": "AVRO"})),
        "/schemas/ids/3" => (200, json!({"schema": "syntax = \"proto3\";", "schemaType": "PROTOBUF"})),
        "/schemas/ids/4" => (200, json!({"schema": "{\"type\": \"nothing\"}"})),
        _ => missing(),
    }
}

/// A record with the id of its schema.
fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0][..], &id.to_be_bytes(), body].concat()
}

#[tokio::test]
async fn records_are_read_by_the_schemas_that_they_name() {
    let registry = StandIn::new(by_id);
    let codec = registry.codec(None, None);
    let slices = [of_records(&[
        framed(1, &[2]),
        framed(2, &[2, b'x', 4]),
        framed(3, &[2]),
        framed(4, &[]),
        framed(9, &[2]),
        vec![7],
    ])];
    let schema = codec.first_schema(&slices).await.unwrap();
    assert_eq!(crate::codec::tests::types(&schema), ["b: string", "a: int64"], "that of the highest id");
    let decoded = codec.decoder(&schema, &schema).decode(&slices[0]);
    assert_eq!(as_json(&decoded.rows), [json!({"b": null, "a": 1}), json!({"b": "x", "a": 2})]);
    let rejects: Vec<_> = decoded.rejects.iter().map(|reject| (reject.record, reject.reason)).collect();
    assert_eq!(rejects, [(2, "unknown_schema"), (3, "unknown_schema"), (4, "unknown_schema"), (5, "bad_avro")]);
    assert!(decoded.rejects[0].detail.contains("schema 3 of the registry cannot be used: it is of type PROTOBUF"));
    assert!(decoded.rejects[2].detail.contains("no schema 9: Schema not found"));
    let mut asked = registry.asked();
    asked.sort();
    let path = |id| format!("/schemas/ids/{id}");
    assert_eq!(asked, [path(1), path(2), path(3), path(4), path(9), path(9)], "an unknown one twice, the others once");
    codec.prepare(&slices).await.unwrap();
    assert_eq!(registry.asked(), [""; 0], "what is known is not asked for again");
}

/// What a batch was decoded with is named by its plan: another process, whose registry has learned more, makes the same.
#[tokio::test]
async fn a_replay_knows_no_more_schemas_than_the_plan_names() {
    let registry = StandIn::new(by_id);
    let slices = [of_records(&[framed(1, &[2]), framed(9, &[2]), framed(3, &[])])];
    let codec = registry.codec(None, None);
    let schema = codec.first_schema(&slices).await.unwrap();
    let readable = codec.readable(&slices).unwrap();
    assert_eq!(readable, [1], "neither what is missing nor what is no schema");
    let learned = StandIn::new(|asked, at| match asked {
        "/schemas/ids/9" => (200, json!({"schema": one()})),
        _ => by_id(asked, at),
    });
    let replay = learned.codec(None, None);
    replay.prepare(&slices).await.unwrap();
    assert_eq!(replay.readable(&slices).unwrap(), [1, 9]);
    assert_eq!(replay.decoder(&schema, &schema).decode(&slices[0]).records, [0, 1]);
    for codec in [codec, replay] {
        let decoded = codec.decoder_of(&schema, &schema, &readable).decode(&slices[0]);
        assert_eq!(decoded.records, [0]);
        let rejects: Vec<_> = decoded.rejects.iter().map(|reject| (reject.record, reject.reason)).collect();
        assert_eq!(rejects, [(1, "unknown_schema"), (2, "unknown_schema")]);
    }
}

#[tokio::test]
async fn an_id_that_comes_late_is_found() {
    let registry = StandIn::new(|_, before| if before == 0 { missing() } else { (200, json!({"schema": one()})) });
    let codec = registry.codec(None, None);
    let slices = [of_records(&[framed(1, &[2])])];
    let schema = codec.first_schema(&slices).await.unwrap();
    assert_eq!(codec.decoder(&schema, &schema).decode(&slices[0]).records, [0]);
}

#[tokio::test]
async fn a_registry_that_fails_makes_the_batch_wait() {
    let registry = StandIn::new(|_, before| match before {
        0 => (503, json!({"error_code": 50003, "message": "Error while forwarding the request to the leader"})),
        // A proxy in front of it, or another server.
        1 => (404, json!("not found")),
        _ => (200, json!({"schema": one()})),
    });
    let codec = registry.codec(None, None);
    let slices = [of_records(&[framed(1, &[2])])];
    for why in ["forwarding the request to the leader", "is it the URL of a registry?"] {
        match codec.prepare(&slices).await {
            Err(PrepareError::Transient(error)) => assert!(error.contains(why), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    codec.prepare(&slices).await.unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = StandIn { url: format!("http://{nobody}"), asked: Arc::default() };
    let error = gone.codec(None, None).prepare(&slices).await.unwrap_err();
    assert!(matches!(&error, PrepareError::Transient(why) if why.contains("refused")), "{error}");
}

#[tokio::test]
async fn a_user_is_sent_and_a_wrong_one_is_told() {
    let registry = StandIn::new(|asked, _| match asked.split_once("Basic ") {
        Some((_, "bWU6czNjcmV0")) => (200, json!({"schema": one()})),
        _ => (401, json!({"error_code": 401, "message": "Unauthorized"})),
    });
    let slices = [of_records(&[framed(1, &[2])])];
    registry.codec(Some(("me", "s3cret")), None).prepare(&slices).await.unwrap();
    for login in [None, Some(("me", "wrong"))] {
        let error = registry.codec(login, None).prepare(&slices).await.unwrap_err();
        assert!(matches!(&error, PrepareError::Fatal(why) if why.contains("check `user` and `password`")), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
}

#[tokio::test]
async fn the_latest_schema_of_a_subject_gives_the_columns() {
    let registry = StandIn::new(|asked, before| match asked {
        "/subjects/shop%2Forders-value/versions/latest" => (200, json!({"schema": two(), "id": 2, "version": 7})),
        other => by_id(other, before),
    });
    let slices = [of_records(&[framed(1, &[2])])];
    let codec = registry.codec(None, Some("shop/orders-value"));
    let schema = codec.first_schema(&slices).await.unwrap();
    assert_eq!(crate::codec::tests::types(&schema), ["b: string", "a: int64"]);
    let codec = registry.codec(None, Some("absent"));
    let error = codec.first_schema(&slices).await.unwrap_err();
    assert!(matches!(&error, PrepareError::Fatal(why) if why.contains("subject absent: Schema not found")), "{error}");
}

#[tokio::test]
async fn schemas_may_refer_to_others() {
    let registry = StandIn::new(|asked, _| match asked {
        "/schemas/ids/1" => {
            let fields = json!([{"name": "at", "type": "geo.Point"}]);
            let references = json!([{"name": "geo.Point", "subject": "point", "version": 2}]);
            (200, json!({"schema": schema(&fields), "references": references}))
        }
        "/subjects/point/versions/2" => {
            let fields = json!([{"name": "x", "type": "geo.Length"}, {"name": "y", "type": "geo.Length"}]);
            let point = json!({"type": "record", "name": "Point", "namespace": "geo", "fields": fields}).to_string();
            let references = json!([{"name": "geo.Length", "subject": "length", "version": 1}]);
            (200, json!({"schema": point, "references": references}))
        }
        "/subjects/length/versions/1" => {
            let fields = json!([{"name": "m", "type": "int"}]);
            (
                200,
                json!({"schema": json!({"type": "record", "name": "Length", "namespace": "geo", "fields": fields}).to_string()}),
            )
        }
        _ => missing(),
    });
    let codec = registry.codec(None, None);
    let slices = [of_records(&[framed(1, &[2, 4])])];
    let schema = codec.first_schema(&slices).await.unwrap();
    let decoded = codec.decoder(&schema, &schema).decode(&slices[0]);
    assert_eq!(as_json(&decoded.rows), [json!({"at": {"x": {"m": 1}, "y": {"m": 2}}})], "{:?}", decoded.rejects);
}

/// What the registry does not have yet it may have later: such a schema is asked for again, like an id.
#[tokio::test]
async fn a_reference_that_comes_late_is_found() {
    for late in [1, 2] {
        let registry = StandIn::new(move |asked, before| match asked {
            "/schemas/ids/1" => {
                let references = json!([{"name": "P", "subject": "point", "version": 2}]);
                (200, json!({"schema": schema(&json!([{"name": "at", "type": "P"}])), "references": references}))
            }
            "/subjects/point/versions/2" if before >= late => {
                let point = json!({"type": "record", "name": "P", "fields": [{"name": "x", "type": "int"}]});
                (200, json!({"schema": point.to_string()}))
            }
            _ => missing(),
        });
        let given =
            model::Registry { url: registry.url.clone(), user: None, password: None, subject: None, register: true };
        let asking = Registry::new(&given).unwrap();
        asking.fetch(&[1]).await.unwrap();
        match asking.known(1).unwrap() {
            Known::Schema(_) => assert_eq!(late, 1, "the second look finds it"),
            Known::Missing(why) => assert!(late == 2 && why.contains("refers to point, version 2"), "{why}"),
            Known::Unusable(why) => panic!("{why}"),
        }
        asking.ask_for(&[1]).await.unwrap();
        assert!(matches!(asking.known(1), Some(Known::Schema(_))));
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_not_waited_for_without_end() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let registry = StandIn::new(move |_, _| {
        let _ = held.lock().unwrap().recv();
        missing()
    });
    let given =
        model::Registry { url: registry.url.clone(), user: None, password: None, subject: None, register: true };
    let mut asking = Registry::new(&given).unwrap();
    asking.client.timeout = Duration::from_millis(200);
    let error = asking.fetch(&[1]).await.unwrap_err();
    assert!(matches!(&error, PrepareError::Transient(why) if why.contains("no answer within")), "{error}");
    drop(release);
}

#[test]
fn urls_are_checked() {
    for (url, why) in [
        ("registry:8081", "begins with neither"),
        ("http://", "wrong"),
        ("ftp://host", "begins with neither"),
        ("http://me:secret@host", "write `user` and `password` beside it"),
    ] {
        let error = Client::new(url, None).err().unwrap();
        assert!(error.contains(why) && !error.contains("secret"), "{url}: {error}");
    }
    assert!(Client::new("https://[::1]:8443/apis/ccompat/v7", None).is_ok());
}

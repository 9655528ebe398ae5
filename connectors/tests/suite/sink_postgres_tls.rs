//! A PostgreSQL that lets in only those who show a certificate of their own: who has the right one, and what the others are told.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::sinks::{Runner, batch, postgres, services::Postgres};
use tidemill_checkpoint::{Lane, SinkId};
use tidemill_config::{DatabaseSink, Job, SinkKind, Verb};
use tidemill_connectors::{lookup, sink, source};

const PATIENCE: Duration = Duration::from_secs(60);

fn openssl(arguments: &[&str]) {
    let done = Command::new("openssl").args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An authority in a folder: its certificate and key.
fn authority(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (pem, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    let subject = format!("/CN={name}");
    let (pem_text, key_text) = (pem.to_str().unwrap(), key.to_str().unwrap());
    let kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"];
    let more =
        ["-addext", "basicConstraints=critical,CA:TRUE", "-subj", &subject, "-keyout", key_text, "-out", pem_text];
    openssl(&[&kind[..], &more].concat());
    (pem, key)
}

/// The options of a url that shows a certificate for a user, signed by an authority.
fn certificate(folder: &Path, user: &str, by: &(PathBuf, PathBuf)) -> String {
    let name = format!("{user}-by-{}", by.0.file_stem().unwrap().to_str().unwrap());
    let path = |end: &str| folder.join(format!("{name}.{end}")).to_str().unwrap().to_owned();
    let (request, key, pem, subject) = (path("csr"), path("key"), path("pem"), format!("/CN={user}"));
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    openssl(&[&["req"][..], &curve, &["-subj", &subject, "-keyout", &key, "-out", &request]].concat());
    let (ca, ca_key) = (by.0.to_str().unwrap(), by.1.to_str().unwrap());
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        ca,
        "-CAkey",
        ca_key,
        "-CAcreateserial",
        "-days",
        "30",
        "-out",
        &pem,
    ]);
    format!("&sslcert={pem}&sslkey={}", key.replace('/', "%2F"))
}

async fn told(url: &str, ca: &Path) -> String {
    let config = DatabaseSink { ca: Some(ca.to_owned()), ..postgres::config(url, "rows", &[], None) };
    let tried = async {
        let sink = sink::open(SinkId::new("db"), "job", &SinkKind::Postgres(config))?;
        sink.peek(&[Lane::single()]).await?;
        sink.check(Some(&batch(1).schema())).await
    };
    tried.await.err().map(|error| error.to_string()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_our_own_is_shown_and_a_wrong_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = Postgres::private(&dir.path().join("server")) else { return };
    let (trusted, other) = (authority(dir.path(), "trusted"), authority(dir.path(), "other"));
    // Beside the server's own files: it runs as another user, who reads no folder of ours.
    let clients = server.ca.with_file_name("clients.pem");
    fs::copy(&trusted.0, &clients).unwrap();
    let hba = PathBuf::from(server.psql("SHOW hba_file"));
    let rules = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("hostssl all certified all trust clientcert=verify-full\n{rules}")).unwrap();
    server.psql(&format!("CREATE ROLE certified LOGIN; ALTER SYSTEM SET ssl_ca_file = '{}'", clients.display()));
    let url = server.schema("certified");
    server.psql("GRANT ALL ON SCHEMA certified TO certified; SELECT pg_reload_conf()");
    let url = url.replace(&format!("{}:{}@", server.user, server.password), "certified@");
    let right = certificate(dir.path(), "certified", &trusted);
    let start = Instant::now();
    while !told(&format!("{url}{right}"), &server.ca).await.is_empty() {
        let why = told(&format!("{url}{right}"), &server.ca).await;
        assert!(start.elapsed() < PATIENCE, "the right one is not let in: {why}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (own, wanted) in [
        (String::new(), "connection requires a valid client certificate: name one by ?sslcert=FILE&sslkey=FILE"),
        (certificate(dir.path(), "somebody", &trusted), "or the certificate of `sslcert` is for another one (its CN)"),
        // What the server says of it may be lost, and then it is asked for.
        (certificate(dir.path(), "certified", &other), " take the certificate of `sslcert`"),
        (right.replace("sslkey=", "sslkey=/no"), "No such file"),
        (right.split("&sslkey").next().unwrap().to_owned(), "there is no private key in PEM as PKCS #8"),
    ] {
        let why = told(&format!("{url}{own}"), &server.ca).await;
        assert!(why.contains(wanted), "{own}: {why}");
    }
    let config =
        DatabaseSink { ca: Some(server.ca.clone()), ..postgres::config(&format!("{url}{right}"), "rows", &[], None) };
    let sink = sink::open(SinkId::new("db"), "job", &SinkKind::Postgres(config)).unwrap();
    let mut runner = Runner::claim(sink, &Lane::single(), 1).await.unwrap();
    runner.run(2).await.unwrap();
    let seen = "SELECT count(*) > 0 AND bool_and(s.client_dn = '/CN=certified') FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid)
        WHERE usename = 'certified'";
    assert_eq!(server.psql(seen), "t");
    // Sources and lookups have the same connections.
    let server_url = format!("{url}{right}&sslrootcert={}", server.ca.display());
    let text = format!(
        "job: a\ndatabases: {{ db: \"{server_url}\" }}\n\
         sources: {{ s: {{ type: sql, url: \"{server_url}\", table: rows, order_by: n, schema: {{ n: int64, text: string }} }} }}\n\
         steps:\n  - lookup: {{ database: db, table: rows, match: {{ n: n }}, take: {{ text: other }} }}\n\
         sinks: {{ out: {{ type: postgres, url: \"{server_url}\", table: rows }} }}\n"
    );
    let job = Job::parse(&text, Path::new("job.yaml"), &BTreeMap::new()).unwrap_or_else(|errors| panic!("{errors}"));
    let Verb::Lookup(step) = &job.steps[0].verb else { panic!() };
    lookup::open(step).unwrap().read(None).await.unwrap();
    let settings = source::Settings {
        job: "a".into(),
        partitioned: false,
        spool: PathBuf::new(),
        owner: "me".into(),
        ahead_bytes: 1 << 20,
        trigger: Duration::ZERO,
    };
    source::open(&job.sources[0], &settings).unwrap().check().await.unwrap();
    sink::open(SinkId::new("out"), "a", &job.sinks[0].kind).unwrap().peek(&[Lane::single()]).await.unwrap();
    // Two hosts, as for a primary and its replica: the one that takes writes is found.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (one, two) = (format!("127.0.0.1:{}/", server.port), format!("127.0.0.1:{free},127.0.0.1:{}/", server.port));
    let both = format!("{url}{right}&target_session_attrs=read-write&connect_timeout=5").replace(&one, &two);
    assert_eq!(told(&both, &server.ca).await, "");
}

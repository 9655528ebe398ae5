//! The PostgreSQL sink where the server, the network or the user's rights fail it. Whatever happens: each row once, and a
//! message that says what is wrong, at what, and the way out, without the password.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::proxy::Proxy;
use crate::sinks::{ROWS, Runner, batch, postgres, services::Postgres};
use tidemill_checkpoint::{Lane, Permit, SinkId};
use tidemill_config::{DatabaseSink, SinkKind};
use tidemill_connectors::sink::{self, Sink, SinkError};

/// The end of a query that commits, as it stands on the wire; `BEGIN ... READ COMMITTED` is none.
const COMMIT: &[u8] = b"COMMIT\0";
const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    dir: tempfile::TempDir,
    url: String,
    server: &'static Postgres,
}

impl Place {
    fn new() -> Option<Self> {
        let server = postgres::server()?;
        let dir = tempfile::tempdir().unwrap();
        // Sessions under a name of the place's own, so that tests find theirs among all.
        let url = format!("{}&application_name={}", postgres::url(dir.path()), postgres::schema(dir.path()));
        Some(Self { url, dir, server })
    }
    /// Whether a session of the sink's does what a condition says.
    fn is_seen(&self, what: &str) -> bool {
        let name = postgres::schema(self.dir.path());
        let sql = format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = '{name}' AND {what}");
        self.server.psql(&sql) == "t"
    }
    fn sql(&self, sql: &str) -> String {
        self.server.psql_at(&self.url, sql)
    }
    fn numbers(&self) -> Vec<i64> {
        let mut numbers = postgres::numbers(self.dir.path());
        numbers.sort_unstable();
        numbers
    }
    /// The same place by another way, on which everything can be read.
    fn by(&self, proxy: &Proxy) -> String {
        let (from, to) = (self.server.port.to_string(), proxy.address().port().to_string());
        self.url.replace(&format!(":{from}/"), &format!(":{to}/")) + "&sslmode=disable"
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        postgres::forget(self.dir.path());
    }
}

fn open(config: DatabaseSink) -> Arc<dyn Sink> {
    sink::open(SinkId::new("archive"), "job", &SinkKind::Postgres(config)).unwrap()
}

fn append(url: &str) -> Arc<dyn Sink> {
    open(postgres::config(url, "rows", &[], None))
}

fn proxy_to(server: &Postgres) -> Proxy {
    Proxy::start(([127, 0, 0, 1], server.port).into())
}

fn expected(last: u64) -> Vec<i64> {
    (1..=last as i64).flat_map(|seq| (0..ROWS).map(move |row| seq * 10 + row)).collect()
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_there_and_is_found_there() {
    let Some(place) = Place::new() else { return };
    let proxy = proxy_to(place.server);
    let mut runner = Runner::claim(append(&place.by(&proxy)), &Lane::single(), 1).await.unwrap();
    runner.run(2).await.unwrap();
    for last in 3..6 {
        proxy.drop_answers_after(COMMIT);
        let receipt = runner.step().await.unwrap();
        assert_eq!((proxy.dropped(), receipt.rejected()), (last as usize - 2, 0));
        assert_eq!(place.numbers(), expected(last));
    }
    runner.run(7).await.unwrap();
    assert_eq!(place.numbers(), expected(7));
}

/// The claim's own COMMIT: whether it is there or not, the next one is higher.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_is_lost_is_claimed_again() {
    let Some(place) = Place::new() else { return };
    let proxy = proxy_to(place.server);
    let sink = append(&place.by(&proxy));
    Runner::claim(sink.clone(), &Lane::single(), 1).await.unwrap().run(1).await.unwrap();
    proxy.drop_answers_after(COMMIT);
    let lost = Runner::claim(sink.clone(), &Lane::single(), 1).await.err().unwrap();
    assert!(lost.is_transient(), "{lost}");
    let mut runner = Runner::claim(sink, &Lane::single(), 1).await.unwrap();
    runner.run(3).await.unwrap();
    assert_eq!(place.numbers(), expected(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_goes_away_and_comes_back_costs_nothing() {
    let Some(place) = Place::new() else { return };
    let proxy = proxy_to(place.server);
    let sink = append(&place.by(&proxy));
    let mut runner = Runner::claim(sink.clone(), &Lane::single(), 1).await.unwrap();
    runner.run(2).await.unwrap();
    proxy.cut();
    let error = runner.step().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let why = sink.peek(&[Lane::single()]).await.unwrap_err().to_string();
    assert!(why.contains("connecting to postgres://tidemill@127.0.0.1") && why.contains("refused"), "{why}");
    proxy.mend();
    runner.run(4).await.unwrap();
    assert_eq!(place.numbers(), expected(4));
    // Sessions that the server ended by itself are noticed.
    place.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'tidemill job/archive'",
    );
    while let Err(error) = runner.step().await {
        assert!(error.is_transient(), "{error}");
    }
    assert_eq!(place.numbers(), expected(5));
}

/// The sink takes its keys in order, the other session against it: the server ends the sink's transaction, which is tried
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_is_tried_again_in_place() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE rows (n int8 PRIMARY KEY, text text); INSERT INTO rows SELECT n, 'old' FROM generate_series(10, 12) n");
    let sink = open(postgres::config(&place.url, "rows", &["n"], None));
    let mut runner = Runner::claim(sink, &Lane::single(), 1).await.unwrap();
    runner.run(0).await.unwrap();
    let (other, driver) = tokio_postgres::connect(&place.url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(driver);
    // The sink's session is the one that looks for deadlocks first.
    other
        .batch_execute("SET deadlock_timeout = '1h'; BEGIN; UPDATE rows SET text = 'other' WHERE n = 12")
        .await
        .unwrap();
    let step = tokio::spawn(async move { runner.step().await });
    until("the sink waits for a lock", || place.is_seen("wait_event_type = 'Lock'"));
    other.batch_execute("UPDATE rows SET text = 'other' WHERE n = 10; COMMIT").await.unwrap();
    step.await.unwrap().unwrap();
    let rows = place.sql("SELECT n, text = 'other' FROM rows ORDER BY n");
    assert_eq!(rows, "10|f\n11|f\n12|f");
}

/// A row lock of somebody else is no reason to lose or double anything: it is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_waits_for_a_commit_and_sees_its_mark() {
    let Some(place) = Place::new() else { return };
    place.sql(
        "CREATE TABLE rows (n int8, text text);
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$;
        CREATE TRIGGER slow AFTER INSERT ON rows FOR EACH STATEMENT EXECUTE FUNCTION slow()",
    );
    let mut old = Runner::claim(append(&place.url), &Lane::single(), 1).await.unwrap();
    old.run(0).await.unwrap();
    let commit = tokio::spawn(async move { (old.step().await, old) });
    until("the old owner commits", || place.is_seen("query LIKE 'COPY%' AND state = 'active'"));
    let mut new = Runner::claim(append(&place.url), &Lane::single(), 2).await.unwrap();
    assert_eq!(new.seq(), Some(1), "the commit that was under way");
    let (committed, mut old) = commit.await.unwrap();
    committed.unwrap();
    assert!(crate::sinks::is_fenced(&old.step().await));
    new.run(2).await.unwrap();
    assert_eq!(place.numbers(), expected(2));
}

/// SIGKILL to all of a server while it takes rows, and while it commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_it_takes_rows_has_all_of_a_batch_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = Postgres::private(dir.path()) else { return };
    let url = server.schema("killed");
    server.psql_at(
        &url,
        "CREATE TABLE rows (n int8, text text);
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.4); RETURN NEW; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON rows FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let sink = append(&url);
    let mut runner = Runner::claim(sink.clone(), &Lane::single(), 1).await.unwrap();
    runner.run(1).await.unwrap();
    let step = tokio::spawn(async move { runner.step().await });
    let copies = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'";
    until("the server takes rows", || server.psql(copies) == "t");
    server.kill();
    let error = step.await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error}");
    let error = sink.peek(&[Lane::single()]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("is the server running"), "{error}");
    server.start();
    server.psql_at(&url, "DROP TRIGGER slow ON rows");
    let mut runner = Runner::claim(sink, &Lane::single(), 1).await.unwrap();
    assert_eq!(runner.seq(), Some(1));
    runner.run(3).await.unwrap();
    let numbers = server.psql_at(&url, "SELECT string_agg(n::text, ',' ORDER BY n) FROM rows");
    assert_eq!(numbers, expected(3).iter().map(i64::to_string).collect::<Vec<_>>().join(","));

    // A server without TLS, and one that nobody lets in twice.
    server.psql("ALTER SYSTEM SET ssl = off");
    server.stop();
    server.start();
    let bare = server.url.clone();
    let why = told(&format!("{bare}?sslmode=require"), None).await;
    assert!(why.contains("server does not support TLS: turn `ssl` on at the server"), "{why}");
    assert_eq!(told(&format!("{bare}?sslmode=prefer"), None).await, "");
    server.psql("CREATE ROLE crowded LOGIN PASSWORD 'pw' CONNECTION LIMIT 0");
    let error = open(postgres::config(&bare.replace("tidemill:s3cret", "crowded:pw"), "rows", &[], None));
    let error = error.peek(&[Lane::single()]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("raise max_connections"), "{error}");
}

/// What `validate --connect` would say of the table `rows`; nothing where all is well.
async fn told(url: &str, ca: Option<PathBuf>) -> String {
    told_of(DatabaseSink { ca, ..postgres::config(url, "rows", &[], None) }).await
}

async fn told_of(config: DatabaseSink) -> String {
    let sink = match sink::open(SinkId::new("archive"), "job", &SinkKind::Postgres(config)) {
        Ok(sink) => sink,
        Err(error) => return error.to_string(),
    };
    let tried = async {
        sink.peek(&[Lane::single()]).await?;
        sink.check(Some(&batch(1).schema())).await
    };
    let said = tried.await.err().map(|error: SinkError| error.to_string()).unwrap_or_default();
    assert!(!said.contains("s3cret") && !said.contains("wrong-one"), "a password is told: {said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_address_is_told_with_the_way_out() {
    let Some(place) = Place::new() else { return };
    let (url, ca) = (place.url.clone(), place.server.ca.clone());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cases = [
        (
            url.replace(&format!(":{}/", place.server.port), &format!(":{free}/")),
            "refused (os error 111): is the server running",
        ),
        (
            url.replace("s3cret", "wrong-one"),
            "password authentication failed for user \"tidemill\": check the user and",
        ),
        (url.replace(":s3cret", ""), "check the user, the password"),
        (url.replace("tidemill:s3cret", "nobody:wrong-one"), "password authentication failed for user \"nobody\""),
        (url.replace("/tidemill?", "/nowhere?"), "database \"nowhere\" does not exist: make it (CREATE DATABASE)"),
        (format!("{url}&sslmode=sometimes"), "sslmode is disable, prefer, require, verify-ca or verify-full"),
        (url.replace("127.0.0.1", "no-such-host.invalid"), "is the address right?"),
        (format!("{url}&sslmode=verify-full"), "TLS handshake"),
        (
            url.replace("/tidemill?", "/tidemill?options=-c%20search_path%3Dnowhere&x="),
            "the option x is not known: there are",
        ),
        (url.replace("s3cret", "p@ss/w#rd"), "tidemill@***: the url cannot be read: write postgres://"),
        (url.replace("s3cret", "p@ss"), "the url cannot be read: write postgres://"),
    ];
    for (url, part) in cases {
        let why = told(&url, None).await;
        assert!(why.contains(part), "{part}: {why}");
    }
    // TLS as far as it is asked for.
    for (mode, ca) in [("require", None), ("verify-ca", Some(&ca)), ("verify-full", Some(&ca)), ("prefer", None)] {
        assert_eq!(told(&format!("{url}&sslmode={mode}"), ca.cloned()).await, "", "{mode}");
    }
    let encrypted = append(&format!("{url}&sslmode=require"));
    let name = postgres::schema(place.dir.path());
    encrypted.peek(&[Lane::single()]).await.unwrap();
    let sql = format!(
        "SELECT count(*) > 0 AND bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
        WHERE a.application_name = '{name}'"
    );
    assert_eq!(place.server.psql(&sql), "t");
    let why = told(&url, Some(place.dir.path().join("no-file"))).await;
    assert!(why.contains("no-file") && why.contains("No such file"), "{why}");
    std::fs::write(place.dir.path().join("empty"), "nothing").unwrap();
    let why = told(&url, Some(place.dir.path().join("empty"))).await;
    assert!(why.contains("-----BEGIN CERTIFICATE-----"), "{why}");
    // Another name for the same server: the certificate is for 127.0.0.1 and localhost.
    let named = url.replace("127.0.0.1", "127.0.0.2");
    let why = told(&format!("{named}&sslmode=verify-full"), Some(ca.clone())).await;
    assert!(why.contains("the host of `url` is a name in it") || why.contains("refused"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_told_before_anything_runs() {
    let Some(place) = Place::new() else { return };
    let schema = postgres::schema(place.dir.path());
    let user = format!("user_{schema}");
    let url = place.url.replace("tidemill:s3cret", &format!("{user}:s3cret"));
    place.sql(&format!("CREATE ROLE {user} LOGIN PASSWORD 's3cret'"));
    let told = async |key: &[&str], flag: Option<&str>| told_of(postgres::config(&url, "rows", key, flag)).await;
    let grant = |what: &str| drop(place.sql(&format!("GRANT {what} TO {user}")));

    let qualified = postgres::config(&url, &format!("{schema}.rows"), &[], None);
    let why = told_of(qualified.clone()).await;
    assert!(why.contains("permission denied for schema") || why.contains("GRANT USAGE ON SCHEMA"), "{why}");
    let why = told_of(postgres::config(&url, "nowhere.rows", &[], None)).await;
    assert!(
        why.contains(&format!("there is no schema \"nowhere\": CREATE SCHEMA \"nowhere\" AUTHORIZATION \"{user}\"")),
        "{why}"
    );
    grant(&format!("USAGE ON SCHEMA {schema}"));
    let why = told(&[], None).await;
    assert!(why.contains("no right to make Tidemill's own tables") && why.contains("GRANT CREATE ON SCHEMA"), "{why}");
    grant(&format!("CREATE ON SCHEMA {schema}"));
    assert_eq!(told(&[], None).await, "");
    place.sql("CREATE TABLE rows (n int8 PRIMARY KEY, text text)");
    let why = told(&[], None).await;
    assert!(why.contains(&format!("no right to INSERT on \"{schema}\".\"rows\": GRANT INSERT ON")), "{why}");
    grant("INSERT ON rows");
    assert_eq!(told(&[], None).await, "");
    let why = told(&["n"], None).await;
    assert!(why.contains("no right to SELECT, UPDATE on"), "{why}");
    grant("SELECT, UPDATE ON rows");
    assert_eq!(told(&["n"], None).await, "");
    place.sql(&format!("ALTER TABLE rows ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON rows TO {user} USING (true)"));
    let why = told(&[], None).await;
    assert!(why.contains("row-level security holds for this user") && why.contains("BYPASSRLS"), "{why}");
    assert_eq!(told(&["n"], None).await, "", "an upsert is an INSERT");
    place.sql(&format!(
        "ALTER TABLE rows DISABLE ROW LEVEL SECURITY; ALTER ROLE {user} SET default_transaction_read_only = on"
    ));
    let why = told(&[], None).await;
    assert!(why.contains("are read-only: ALTER DATABASE"), "{why}");
    place.sql(&format!("ALTER ROLE {user} RESET default_transaction_read_only"));
    // Rights to insert are all that appending takes; what was looked at is enough to run.
    let mut runner = Runner::claim(open(postgres::config(&url, "rows", &[], None)), &Lane::single(), 1).await.unwrap();
    runner.run(1).await.unwrap();
    place.sql(&format!("REVOKE INSERT ON rows FROM {user}"));
    let error = runner.step().await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("permission denied for table rows"), "{error}");
    assert_eq!(place.numbers(), expected(1));
    drop(runner);
    place.sql(&format!("DROP OWNED BY {user}; DROP ROLE {user}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_while_the_sink_runs_is_told_and_not_made_anew() {
    let Some(place) = Place::new() else { return };
    let mut runner = Runner::claim(append(&place.url), &Lane::single(), 1).await.unwrap();
    runner.run(2).await.unwrap();
    place.sql("DROP TABLE rows");
    let error = runner.step().await.unwrap_err();
    assert!(error.to_string().contains("table `rows`: it is gone"), "{error}");
    assert!(place.numbers().is_empty());
    // Its marks are still there, and say that the batches were written: whoever makes the table knows what it lacks.
    assert_eq!(runner.sink.peek(&[Lane::single()]).await.unwrap()[&Lane::single()].mark, runner.head);
    place.sql("CREATE TABLE rows (n int8, text text)");
    runner.run(3).await.unwrap();
    assert_eq!(place.numbers(), [30, 31, 32]);
}

/// What was committed already is not written again, and not even sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_there_is_there() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE rows (n int8 PRIMARY KEY, text text)");
    let mut runner = Runner::claim(append(&place.url), &Lane::single(), 1).await.unwrap();
    runner.run(2).await.unwrap();
    let head = runner.head.clone().unwrap();
    let staged = runner.sink.stage(&crate::sinks::context(&runner.key, &head, false), &[batch(2)]).await.unwrap();
    let permit = Permit::anchor(runner.key.clone(), head.plan.parent, head.clone(), Vec::new());
    let receipt = runner.sink.commit(vec![(permit, staged)]).await.pop().unwrap().unwrap();
    assert_eq!((receipt.digest(), receipt.rejected()), (head.digest, 0), "no row of it is refused as a double");
    assert_eq!(place.numbers(), expected(2));
}

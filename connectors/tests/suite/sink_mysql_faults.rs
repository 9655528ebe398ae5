//! The MySQL sink where the server, the network or the user's rights fail it, with a real MariaDB and a real MySQL 8. Whatever
//! happens: each row once, and a message that says what is wrong, at what, and the way out, without the password.

use std::{path::Path, sync::Arc, time::Duration};

use crate::proxy::Proxy;
use crate::sinks::{
    Kind, Runner,
    mysql::{self, Place, commit, numbers, on_each_server, open, table, texts},
    services::Mysql,
};
use tidemill_checkpoint::{Lane, SinkId};
use tidemill_config::SinkKind;
use tidemill_connectors::sink;

on_each_server!(
    what_is_wrong_with_the_server_is_said_with_the_way_out_and_without_the_password,
    tls_is_asked_for_and_checks_the_certificate,
    a_new_user_logs_in_without_tls,
    a_connection_that_ends_in_the_middle_of_tls_is_made_again,
    a_commit_whose_answer_is_lost_is_resolved_by_the_mark,
    a_commit_that_never_arrived_is_tried_again,
    a_deadlock_costs_a_second_try,
    a_killed_server_loses_and_doubles_nothing,
);

/// The sink into the table `t` at an address.
fn with_ca(url: &str, ca: Option<&Path>) -> SinkKind {
    match mysql::config(url, "t", &[], None) {
        SinkKind::Mysql(config) => {
            SinkKind::Mysql(tidemill_config::DatabaseSink { ca: ca.map(Path::to_owned), ..config })
        }
        other => other,
    }
}

async fn what_is_wrong_with_the_server_is_said_with_the_way_out_and_without_the_password(place: Place) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (server, port) = (place.server, place.server.port);
    let user = &format!("u{}", &place.name[5..]);
    place.sql(&format!(
        "CREATE TABLE t (n BIGINT, text TEXT); CREATE USER {user}@'%' IDENTIFIED BY 's3cret'; GRANT SELECT ON {}.* TO {user}@'%'",
        place.name
    ));
    let pem = place.dir.path().join("absent.pem");
    let at = |url: &str| mysql::config(url, "t", &[], None);
    let cases: [(SinkKind, bool, &[&str]); 6] = [
        (
            at(&place.url_of("me", "s3cret", free, "d")),
            true,
            &["connecting to mysql://me@127.0.0.1", "refused", "is the server running"],
        ),
        (at(&place.url_of(&server.user, "hunter2", port, "d")), false, &["(1045)", "correct the user or the password"]),
        (
            at(&place.url_of(&server.user, "s3cret", port, "none")),
            false,
            &["Unknown database 'none'", "CREATE DATABASE `none`"],
        ),
        (at(&place.url_of(user, "s3cret", port, &place.name)), false, &["denied", "GRANT SELECT, INSERT", user]),
        (at(&place.url_of(user, "s3cret", port, "mysql")), false, &["denied", "GRANT"]),
        (with_ca(&place.url, Some(&pem)), false, &["absent.pem", "reading the certificates"]),
    ];
    for (config, transient, words) in cases {
        let looked = open(&config).check(Some(&crate::sinks::batch(1).schema())).await;
        let error = looked.err().unwrap_or_else(|| panic!("no error, but {words:?} were expected"));
        assert_eq!(error.is_transient(), transient, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word} is not in: {error}");
        }
        assert!(!error.to_string().contains("s3cret") && !error.to_string().contains("hunter2"), "{error}");
    }
    place.sql(&format!("DROP USER {user}@'%'"));
    for (url, word) in [
        ("mysql://me:p@ss/word#1@h/d".to_owned(), "%40"),
        ("mysql://me:secret@h".to_owned(), "names no database"),
        (format!("{}?sslmode=no", place.url), "`sslmode` is not known"),
    ] {
        let error = sink::open(SinkId::new("db"), "job", &at(&url)).err().unwrap().to_string();
        assert!(error.contains(word) && !error.contains("word#1") && !error.contains("secret"), "{error}");
    }
}

/// Who may come by TLS alone, and what is checked of the server's certificate: MariaDB's is for its host, MySQL's, which it made
/// itself, for no host at all.
async fn tls_is_asked_for_and_checks_the_certificate(place: Place) {
    let user = &format!("s{}", &place.name[5..]);
    place.sql(&format!(
        "CREATE USER {user}@'%' IDENTIFIED BY 's3cret' REQUIRE SSL; GRANT ALL ON {}.* TO {user}@'%'",
        place.name
    ));
    let url = place.url_of(user, "s3cret", place.server.port, &place.name);
    let looked = async |options: &str, ca: Option<&Path>| {
        let sink = open(&with_ca(&format!("{url}{options}"), ca));
        sink.check(Some(&crate::sinks::batch(1).schema())).await.map_err(|error| error.to_string())
    };
    let refused = async |options: &str, ca: Option<&Path>, words: &[&str]| {
        let error = looked(options, ca).await.unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains("s3cret"), "{words:?}: {error}");
    };
    let of_no_host = place.kind == Kind::Mysql;
    let (mine, other) = (&*place.server.ca, if of_no_host { Kind::Mariadb } else { Kind::Mysql });
    refused("", None, &["(1045)", "`?require_ssl=true`"]).await;
    refused("?require_ssl=true", None, &["certificate verify failed", "`ca:`"]).await;
    if let Some(server) = mysql::server(other) {
        refused("?verify_identity=false", Some(&server.ca), &["certificate verify failed", "`ca:`"]).await;
    }
    if of_no_host {
        refused("", Some(mine), &["mismatch", "`?verify_identity=false`"]).await;
    } else {
        looked("", Some(mine)).await.unwrap();
    }
    for (options, ca) in [
        ("?verify_identity=false", Some(mine)),
        ("?require_ssl=true&verify_identity=false", Some(mine)),
        ("?verify_ca=false", None),
    ] {
        looked(options, ca).await.unwrap_or_else(|error| panic!("{options}: {error}"));
    }
    place.sql(&format!("DROP USER {user}@'%'"));
}

/// A user that the server sees for the first time: by MySQL's way of its own the password goes by the server's key, where there
/// is no TLS.
async fn a_new_user_logs_in_without_tls(place: Place) {
    let user = &format!("n{}", &place.name[5..]);
    place.sql(&format!("CREATE USER {user}@'%' IDENTIFIED BY 's3cret'; GRANT ALL ON {}.* TO {user}@'%'", place.name));
    let way = if place.kind == Kind::Mysql { "caching_sha2_password" } else { "mysql_native_password" };
    assert_eq!(place.sql(&format!("SELECT plugin FROM mysql.user WHERE user = '{user}'")), [way]);
    for password in ["wrong", "s3cret", "s3cret"] {
        let url = place.url_of(user, password, place.server.port, &place.name);
        let looked = open(&with_ca(&url, None)).check(Some(&crate::sinks::batch(1).schema())).await;
        assert_eq!(looked.is_ok(), password == "s3cret", "{looked:?}");
    }
    place.sql(&format!("DROP USER {user}@'%'"));
}

/// A server that goes away while keys are exchanged is one that went away, and no wrong certificate.
async fn a_connection_that_ends_in_the_middle_of_tls_is_made_again(place: Place) {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // With something left to read the end is a reset.
    let read = [4, 4096];
    let (port, server) = (listener.local_addr().unwrap().port(), place.server.port);
    let halfway = std::thread::spawn(move || {
        for bytes in read {
            let (mut client, _) = listener.accept().unwrap();
            let mut greeting = [0; 1024];
            let length = TcpStream::connect(("127.0.0.1", server)).unwrap().read(&mut greeting).unwrap();
            client.write_all(&greeting[..length]).unwrap();
            // What asks for TLS, and the first message of it.
            client.read_exact(&mut [0; 36]).unwrap();
            assert!(client.read(&mut vec![0; bytes]).unwrap() > 0);
        }
    });
    let url = place.url_of(&place.server.user, &place.server.password, port, &place.name);
    for _ in read {
        let error = open(&with_ca(&url, Some(&place.server.ca))).check(None).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("is the server running"), "{error}");
    }
    halfway.join().unwrap();
}

/// The server has committed, and nobody hears of it: the receipt is had all the same, with its count of rejects.
async fn a_commit_whose_answer_is_lost_is_resolved_by_the_mark(place: Place) {
    place.sql("CREATE TABLE t (n BIGINT UNIQUE, text TEXT)");
    let proxy = Proxy::start(([127, 0, 0, 1], place.server.port).into());
    let url = place.url_of(&place.server.user, &place.server.password, proxy.address().port(), &place.name);
    let sink = open(&mysql::config(&url, "t", &[], None));
    let mut runner = Runner::claim(sink, &Lane::single(), 1).await.unwrap();
    runner.run(0).await.unwrap();
    proxy.drop_answers_after(b"COMMIT");
    let rows = table(vec![numbers("n", &[Some(1), Some(1), Some(2)]), texts("text", &[None; 3])]);
    assert_eq!(commit(&runner, &[rows]).await.unwrap().rejected(), 1);
    assert_eq!(proxy.dropped(), 1, "an answer was lost");
    assert_eq!(place.sql("SELECT n FROM t"), ["1", "2"]);
}

/// The request is lost and not its answer: nothing was committed, and nothing is said to be.
async fn a_commit_that_never_arrived_is_tried_again(place: Place) {
    let proxy = Proxy::start(([127, 0, 0, 1], place.server.port).into());
    let url = place.url_of(&place.server.user, &place.server.password, proxy.address().port(), &place.name);
    let mut runner = Runner::claim(open(&mysql::config(&url, "rows", &[], None)), &Lane::single(), 1).await.unwrap();
    runner.run(1).await.unwrap();
    proxy.cut();
    let error = runner.step().await.err().unwrap();
    assert!(error.is_transient() && error.to_string().contains("mysql://"), "{error}");
    proxy.mend();
    runner.run(3).await.unwrap();
    assert_eq!(mysql::rows(place.kind, place.dir.path()).len(), 3 * crate::sinks::ROWS as usize);
}

/// Two transactions that wait for each other: the server picks one, and it is tried again unseen.
async fn a_deadlock_costs_a_second_try(place: Place) {
    use mysql_async::prelude::Queryable;
    place.sql("CREATE TABLE t (n BIGINT PRIMARY KEY, v BIGINT) ENGINE=InnoDB; INSERT INTO t VALUES (1, 0), (2, 0)");
    let sink = place.open("t", &["n"]);
    let mut runner = Runner {
        sink: sink.clone(),
        key: sink.claim(&Lane::single(), crate::sinks::generation(1), &crate::sinks::owner(1)).await.unwrap().0,
        head: None,
    };
    let batch = |keys: [i64; 2]| table(vec![numbers("n", &keys.map(Some)), numbers("v", &[Some(7), Some(7)])]);
    sink.prepare(&batch([1, 2]).schema()).await.unwrap();
    runner.run(0).await.unwrap();
    let (count, waits) = match place.kind {
        Kind::Mysql => (
            "SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'",
            "SELECT count(*) FROM performance_schema.data_locks WHERE object_schema = DATABASE() AND lock_status = 'WAITING'",
        ),
        _ => (
            "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Innodb_deadlocks'",
            "SELECT count(*) FROM information_schema.innodb_locks WHERE lock_table LIKE CONCAT('%', DATABASE(), '%')",
        ),
    };
    let deadlocks = || place.sql(count)[0].parse::<u64>();
    let before = deadlocks().unwrap();
    let mut other = mysql_async::Conn::from_url(&place.url).await.unwrap();
    // The heavier transaction survives: this one has changed more.
    other.query_drop("CREATE TABLE heavy (n INT)").await.unwrap();
    other.query_drop("START TRANSACTION").await.unwrap();
    other.query_drop(format!("INSERT INTO heavy VALUES {}", vec!["(1)"; 500].join(","))).await.unwrap();
    other.query_drop("UPDATE t SET v = 1 WHERE n = 2").await.unwrap();
    let committed = tokio::spawn(async move { commit(&runner, &[batch([1, 2])]).await });
    // Until the sink waits for row 2, which means that it holds row 1.
    let begun = std::time::Instant::now();
    while place.sql(waits)[0] == "0" {
        assert!(begun.elapsed() < Duration::from_secs(60), "the sink waits for no row");
        // The server looks anew only where nobody has asked for a tenth of a second.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let locked = other.query_drop("UPDATE t SET v = 1 WHERE n = 1").await;
    assert!(locked.is_ok(), "{locked:?}");
    other.query_drop("COMMIT").await.unwrap();
    committed.await.unwrap().unwrap();
    assert!(deadlocks().unwrap() > before, "there was no deadlock");
    assert_eq!(place.sql("SELECT v FROM t"), ["7", "7"]);
}

/// kill -9 of a server of the test's own, again and again while batches are committed.
async fn a_killed_server_loses_and_doubles_nothing(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let private = if place.kind == Kind::Mysql { Mysql::private } else { Mysql::private_mariadb };
    let Some(server) = private(folder.path()) else { return };
    let sink = open(&mysql::config(&server.url, "rows", &["n"], None));
    sink.check(None).await.unwrap();
    let append = open(&mysql::config(&server.url, "appended", &[], None));
    let mut runner = Runner::claim(append.clone(), &Lane::single(), 1).await.unwrap();
    runner.run(0).await.unwrap();
    let server = Arc::new(server);
    for round in 1..=3_u64 {
        let killer = server.clone();
        let killed = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(150 + 70 * round));
            killer.kill();
        });
        let mut failed = 0;
        while failed == 0 {
            match runner.step().await {
                Ok(_) => {}
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    failed += 1;
                }
            }
        }
        killed.await.unwrap();
        let again = server.clone();
        tokio::task::spawn_blocking(move || again.start()).await.unwrap();
        // Whether the last batch is there, the mark tells.
        runner = loop {
            match Runner::claim(append.clone(), &Lane::single(), round.into()).await {
                Ok(runner) => break runner,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        };
    }
    runner.step().await.unwrap();
    let last = runner.seq().unwrap();
    let rows = server.sql("SELECT count(*), count(DISTINCT n) FROM appended");
    let expected = last * crate::sinks::ROWS as u64;
    assert_eq!(rows.trim(), format!("{expected}\t{expected}"));
    assert!(last > 3, "only {last} batches");
    // A server of the test's own can be told to let nobody in without TLS.
    server.sql("SET GLOBAL require_secure_transport = ON");
    let error = open(&mysql::config(&server.url, "rows", &[], None)).check(None).await.unwrap_err().to_string();
    let code = if place.kind == Kind::Mysql { "(3159)" } else { "(1045)" };
    assert!(error.contains(code) && error.contains("`?require_ssl=true`"), "{error}");
    open(&with_ca(&format!("{}?verify_identity=false", server.url), Some(&server.ca))).check(None).await.unwrap();
}

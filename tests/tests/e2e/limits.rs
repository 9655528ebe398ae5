//! What strangers can cost: connections to HTTP and to a socket source, records that never end, names in log lines, and what
//! others may read of the data dir. Clients of 127.0.0.2 are strangers; those of 127.0.0.1 must be served beside them.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use tidemill_tests::{Daemon, Folder, Run, eventually, feed, free_port, http};

/// docs/operations.md: how long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection from `from` to `port` of 127.0.0.1.
fn connect_from(from: [u8; 4], port: u16) -> TcpStream {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &SocketAddr::from((from, 0))).unwrap();
    connect(&fd, &SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    TcpStream::from(fd)
}

fn job(folder: &Folder, options: &str) -> (String, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let yaml = format!(
        "job: limits\ntrigger: asap\nsources:\n  in: {{ type: socket, listen: \"{address}\", codec: text{options} }}\n\
         sinks:\n  out: {{ type: sqlite, path: {}, table: rows }}\n",
        folder.join("rows.db").display()
    );
    (yaml, address)
}

fn rows(folder: &Folder) -> i64 {
    let Ok(database) = rusqlite::Connection::open(folder.join("rows.db")) else { return 0 };
    database.query_row("SELECT count(*) FROM rows", [], |row| row.get(0)).unwrap_or(0)
}

fn peak_kib(daemon: &Daemon) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The status line of an answer, or what there is of it when the connection ends.
fn answer(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(2 * HEAD_TIMEOUT)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn half_requests_are_bounded_and_others_are_answered() {
    let folder = Folder::new();
    let (yaml, _) = job(&folder, "");
    let daemon = Run::new(&folder).job(&yaml).spawn();
    let began = Instant::now();
    let half: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = connect_from([127, 0, 0, 2], daemon.port());
            // What was refused is closed already.
            let _ = stream.write_all(b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nX: ");
            stream
        })
        .collect();
    assert_eq!(http::get(daemon.port(), "/live").unwrap().status, 200);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    assert!(descriptors < 150, "{descriptors} open files");
    for mut stream in half {
        stream.set_read_timeout(Some(2 * HEAD_TIMEOUT)).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    assert!(began.elapsed() < 2 * HEAD_TIMEOUT, "{:?} until all were closed", began.elapsed());
}

#[test]
fn another_host_is_not_answered() {
    let folder = Folder::new();
    let (yaml, _) = job(&folder, "");
    folder.write("tidemill.yaml", "http_hosts: tides.example.org\n");
    let daemon = Run::new(&folder).job(&yaml).arg("--config").arg(folder.join("tidemill.yaml")).spawn();
    let of = |host: &str| answer(daemon.port(), &format!("GET /jobs HTTP/1.1\r\n{host}Connection: close\r\n\r\n"));
    assert_eq!(of("Host: evil.example\r\n"), "HTTP/1.1 421 Misdirected Request");
    for host in ["localhost:9720", "127.0.0.1", "[::1]:9720", "tides.example.org", "mill"] {
        assert_eq!(of(&format!("Host: {host}\r\n")), "HTTP/1.1 200 OK", "{host}");
    }
    assert_eq!(of(""), "HTTP/1.1 400 Bad Request");
    assert_eq!(of("Host: localhost\r\nHost: evil.example\r\n"), "HTTP/1.1 400 Bad Request");
}

#[test]
fn one_address_does_not_keep_others_from_a_socket() {
    let folder = Folder::new();
    let (yaml, address) = job(&folder, ", max_connections: 4");
    let _daemon = Run::new(&folder).job(&yaml).spawn();
    // More than there are seats; they send nothing.
    let _idle: Vec<TcpStream> = (0..6).map(|_| connect_from([127, 0, 0, 2], address.port())).collect();
    feed::send(address, &[b"first".to_vec()], b"\n");
    eventually("a record beside idle connections", || if rows(&folder) == 1 { Ok(()) } else { Err("none".into()) });
    // All seats are taken by silent ones: after ten seconds one makes room.
    let _more: Vec<TcpStream> = (0..2).map(|_| connect_from([127, 0, 0, 3], address.port())).collect();
    feed::send(address, &[b"second".to_vec()], b"\n");
    eventually("a record in place of a silent connection", || {
        if rows(&folder) == 2 { Ok(()) } else { Err("none".into()) }
    });
}

#[test]
fn records_that_never_end_take_bounded_memory_and_keep_nobody_out() {
    const CLIENTS: usize = 300;
    const HALF: usize = 200 * 1024;
    let folder = Folder::new();
    let (yaml, address) = job(&folder, "");
    let daemon = Run::new(&folder).job(&yaml).spawn();
    feed::send(address, &[b"warm".to_vec()], b"\n");
    eventually("the first row", || if rows(&folder) == 1 { Ok(()) } else { Err("none".into()) });
    let before = peak_kib(&daemon);
    let half = vec![b'x'; HALF];
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut stream = connect_from([127, 0, 0, 2], address.port());
            stream.set_nonblocking(true).unwrap();
            // What the daemon does not read stays in the kernel, or here.
            let _ = stream.write(&half);
            stream
        })
        .collect();
    feed::send(address, &[b"beside".to_vec()], b"\n");
    eventually("a record beside those that never end", || if rows(&folder) >= 2 { Ok(()) } else { Err("none".into()) });
    let grown = (peak_kib(&daemon) - before) / 1024;
    assert!(grown < 32, "{grown} MiB more, for {} MiB of unfinished records", (CLIENTS * HALF) >> 20);
    drop(clients);
}

#[test]
fn a_silent_connection_is_closed_after_the_timeout_and_not_before() {
    let folder = Folder::new();
    let (yaml, address) = job(&folder, ", idle_timeout: 2s");
    let _daemon = Run::new(&folder).job(&yaml).spawn();
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"half of a rec").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let lasted = began.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(10)).contains(&lasted), "closed after {lasted:?}");
}

fn open_to_others(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o077;
        if entry.file_type().unwrap().is_dir() {
            if mode != 0 && folder.ends_with("data") {
                found.push(format!("{} {mode:o}", entry.path().display()));
            }
            open_to_others(&entry.path(), found);
        } else if mode != 0 && entry.path().extension().is_some_and(|name| name == "yaml" || name == "seg") {
            found.push(format!("{} {mode:o}", entry.path().display()));
        }
    }
}

#[test]
fn nobody_else_reads_the_data_dir() {
    let folder = Folder::new();
    let (yaml, address) = job(&folder, "");
    let mut daemon = Run::new(&folder).job(&yaml).spawn();
    feed::send(address, &[b"one".to_vec()], b"\n");
    eventually("a row", || if rows(&folder) == 1 { Ok(()) } else { Err("none".into()) });
    daemon.term();
    daemon.expect_success();
    let data = folder.join("data");
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    let mut found = Vec::new();
    open_to_others(&data, &mut found);
    assert!(found.is_empty(), "{found:?}");
}

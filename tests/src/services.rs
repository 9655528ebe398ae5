//! Real servers for tests: Kafka, PostgreSQL, MariaDB, MySQL, Redis and a schema registry, started by `tests/services/up.sh`.
//!
//! [`kafka`], [`postgres`], [`mariadb`], [`mysql`], [`redis`] and [`registry`] give the one that all tests share: use names of
//! your own in it. It is started where it does not run yet, and stays up for the next run (`make services-down` stops it;
//! `make test` stops its own). `Kafka::private` and the like start one for this test alone, which may be killed, paused and started again at the
//! same address, and ends with the test.
//!
//! A server that cannot be had gives `None` after `skipped: NAME needs ...`; with `CI=true` it is a failure.
//!
//! This file uses nothing but the standard library, so that tests of other crates can include it by `#[path]`.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The longest wait for a server that was told to end.
const END: Duration = Duration::from_secs(60);

/// For so long it is remembered that a server cannot be had here: finding that out again takes a while.
const REMEMBERED: Duration = Duration::from_secs(600);

/// A server's process, and how it is reached. Everything else here derefs to it.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    folder: PathBuf,
    private: bool,
}

/// The shared Kafka. `None`: there is none, and the test is skipped.
///
/// # Panics
/// Where there is none, and `CI=true` says that it must be there. The same holds for the other services.
pub fn kafka() -> Option<Kafka> {
    Server::shared("kafka").map(Kafka::of)
}

/// The shared PostgreSQL.
pub fn postgres() -> Option<Postgres> {
    Server::shared("postgres").map(Postgres::of)
}

/// The shared MariaDB.
pub fn mariadb() -> Option<Mysql> {
    Server::shared("mariadb").map(Mysql::of)
}

/// The shared MySQL 8.
pub fn mysql() -> Option<Mysql> {
    Server::shared("mysql").map(Mysql::of)
}

/// The shared Redis.
pub fn redis() -> Option<Redis> {
    Server::shared("redis").map(Redis::of)
}

/// The shared schema registry.
pub fn registry() -> Option<Registry> {
    Server::shared("registry").map(Registry::of)
}

/// Apache Kafka: one broker. Topics are not made by themselves, internal topics have four partitions.
#[derive(Debug)]
pub struct Kafka {
    /// Host and port of the plain listener.
    pub brokers: String,
    /// Of the one with SASL PLAIN, without TLS.
    pub sasl_brokers: String,
    /// Who may log in there.
    pub sasl_user: String,
    /// With which password.
    pub sasl_password: String,
    /// Of the one with TLS.
    pub tls_brokers: String,
    /// The authority (PEM) of its certificate, which is for `127.0.0.1` and `localhost`.
    pub ca: PathBuf,
    /// Where a proxy must listen, and where it must forward to, so that clients that start there stay there. For a private
    /// instance: of the shared one there is only one such address.
    pub proxy: (SocketAddr, SocketAddr),
    /// What Java finds Kafka's programs with.
    pub classpath: String,
    java: String,
    server: Server,
}

impl Kafka {
    /// Main classes for [`Kafka::tool`].
    pub const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
    /// Groups of consumers: their members, and their offsets.
    pub const GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    /// Settings of topics and brokers.
    pub const CONFIGS: &str = "kafka.admin.ConfigCommand";
    /// Sends lines of its stdin as records.
    pub const PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
    /// Prints records; give it `--max-messages` or `--timeout-ms`.
    pub const CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    /// The first or last offsets of partitions.
    pub const OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
    /// Who may do what.
    pub const ACLS: &str = "org.apache.kafka.tools.AclCommand";
    /// Lists, describes and aborts transactions.
    pub const TRANSACTIONS: &str = "org.apache.kafka.tools.TransactionsCommand";

    fn of(server: Server) -> Self {
        let env = server.env();
        let get = |key: &str| value(&env, key);
        Self {
            brokers: get("KAFKA_BROKERS"),
            sasl_brokers: get("KAFKA_SASL_BROKERS"),
            sasl_user: get("KAFKA_SASL_USER"),
            sasl_password: get("KAFKA_SASL_PASSWORD"),
            tls_brokers: get("KAFKA_TLS_BROKERS"),
            ca: get("KAFKA_CA").into(),
            proxy: (get("KAFKA_PROXY_AT").parse().unwrap(), get("KAFKA_PROXY_TO").parse().unwrap()),
            classpath: get("KAFKA_CLASSPATH"),
            java: get("KAFKA_JAVA"),
            server,
        }
    }

    /// One for this test alone, with its data in `folder`. See [`kafka`].
    pub fn private(folder: &Path) -> Option<Self> {
        Server::private("kafka", folder).map(Self::of)
    }

    /// The same with settings of its own: lines of `server.properties`, which count more than the usual ones.
    pub fn private_with(folder: &Path, settings: &str) -> Option<Self> {
        fs::write(folder.join("kafka.settings"), settings).unwrap();
        Self::private(folder)
    }

    /// A second broker, node 2 of this one's cluster. This one, node 1, is the cluster's controller and must live.
    pub fn joined_by(&self, folder: &Path) -> Option<Self> {
        let env = self.server.env();
        let joins = format!("{} {}\n", value(&env, "KAFKA_CLUSTER"), value(&env, "KAFKA_CONTROLLER"));
        fs::write(folder.join("kafka.joins"), joins).unwrap();
        Self::private(folder)
    }

    /// One that asks for rights: who comes by the listener with SASL may do nothing that was not granted, who comes by another
    /// one may do everything.
    pub fn private_with_rights(folder: &Path) -> Option<Self> {
        let settings = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                        super.users=User:ANONYMOUS\n";
        Self::private_with(folder, settings)
    }

    /// A Java program of Kafka, to be given arguments, input and output. Knows no broker yet.
    pub fn java(&self, main_class: &str) -> Command {
        let mut command = Command::new(&self.java);
        command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"]);
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", &self.classpath, main_class]);
        command
    }

    /// Runs one of Kafka's own tools against this broker's plain listener and returns what it printed. Half a second and
    /// more: for what only Kafka's own eyes can tell.
    ///
    /// # Panics
    /// Where it fails, with what it said.
    pub fn tool(&self, main_class: &str, arguments: &[&str]) -> String {
        self.tool_with(main_class, arguments, "")
    }

    /// The same, with something to read: [`Kafka::PRODUCER`]'s lines.
    pub fn tool_with(&self, main_class: &str, arguments: &[&str], input: &str) -> String {
        let mut command = self.java(main_class);
        command.args(["--bootstrap-server", &self.brokers]).args(arguments);
        output(&mut command, input)
    }

    /// Makes a topic.
    ///
    /// # Panics
    /// Where there is one of that name.
    pub fn topic(&self, name: &str, partitions: u32) {
        self.tool(Self::TOPICS, &["--create", "--topic", name, "--partitions", &partitions.to_string()]);
    }
}

/// PostgreSQL, with passwords (SCRAM) and TLS for those who ask for it.
#[derive(Debug)]
pub struct Postgres {
    /// `postgres://user:password@127.0.0.1:port/database`, of a superuser.
    pub url: String,
    /// The server's port on 127.0.0.1.
    pub port: u16,
    /// The user in `url`.
    pub user: String,
    /// Their password.
    pub password: String,
    /// The database in `url`.
    pub database: String,
    /// The authority (PEM) of its certificate, which is for `127.0.0.1` and `localhost`.
    pub ca: PathBuf,
    /// The folder of `psql`, `pg_dump` and the like.
    pub bin: PathBuf,
    server: Server,
}

impl Postgres {
    fn of(server: Server) -> Self {
        let env = server.env();
        let get = |key: &str| value(&env, key);
        Self {
            url: get("PG_URL"),
            port: get("PG_PORT").parse().unwrap(),
            user: get("PG_USER"),
            password: get("PG_PASSWORD"),
            database: get("PG_DATABASE"),
            ca: get("PG_CA").into(),
            bin: get("PG_BIN").into(),
            server,
        }
    }

    /// One for this test alone, with its data in `folder`. See [`kafka`].
    pub fn private(folder: &Path) -> Option<Self> {
        Server::private("postgres", folder).map(Self::of)
    }

    /// Makes an empty schema of this name, which is the caller's own, and returns a URL that works in it. What was there is
    /// gone.
    ///
    /// # Panics
    /// Where the name is not of `a-z`, `0-9` and `_`, or the server does not answer.
    pub fn schema(&self, name: &str) -> String {
        plain_name(name);
        self.psql(&format!("DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name};"));
        // `options=-c search_path=NAME`.
        format!("{}?options=-c%20search_path%3D{name}", self.url)
    }

    /// Runs statements by `psql -At` and returns what they printed: fields between `|`, no headers.
    ///
    /// # Panics
    /// Where one fails, with what psql said.
    pub fn psql(&self, sql: &str) -> String {
        self.psql_at(&self.url, sql)
    }

    /// The same at a URL: one of [`Postgres::schema`], or through a proxy.
    pub fn psql_at(&self, url: &str, sql: &str) -> String {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-X", "-qAt", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", "-"]);
        output(&mut command, sql)
    }
}

/// A MariaDB or a MySQL 8, with TLS for those who ask for it.
#[derive(Debug)]
pub struct Mysql {
    /// `mysql://user:password@127.0.0.1:port/database`, of a user who may do everything.
    pub url: String,
    /// The server's port on 127.0.0.1.
    pub port: u16,
    /// The user in `url`.
    pub user: String,
    /// Their password.
    pub password: String,
    /// The database in `url`.
    pub database: String,
    /// The authority (PEM) of its certificate. MariaDB's is for `127.0.0.1` and `localhost`, MySQL's, which it made itself, for
    /// no host.
    pub ca: PathBuf,
    server: Server,
}

impl Mysql {
    fn of(server: Server) -> Self {
        let env = server.env();
        let get = |key: &str| value(&env, key);
        Self {
            url: get("MYSQL_URL"),
            port: get("MYSQL_PORT").parse().unwrap(),
            user: get("MYSQL_USER"),
            password: get("MYSQL_PASSWORD"),
            database: get("MYSQL_DATABASE"),
            ca: get("MYSQL_CA").into(),
            server,
        }
    }

    /// A MariaDB for this test alone, with its data in `folder`. See [`kafka`].
    pub fn private_mariadb(folder: &Path) -> Option<Self> {
        Server::private("mariadb", folder).map(Self::of)
    }

    /// A MySQL 8 for this test alone.
    pub fn private(folder: &Path) -> Option<Self> {
        Server::private("mysql", folder).map(Self::of)
    }

    /// `mariadb` or `mysql`.
    pub fn name(&self) -> &'static str {
        self.server.name
    }

    /// Makes an empty database of this name, which is the caller's own, and returns its URL. What was there is gone.
    ///
    /// # Panics
    /// Where the name is not of `a-z`, `0-9` and `_`, or the server does not answer.
    pub fn database(&self, name: &str) -> String {
        plain_name(name);
        self.sql(&format!("DROP DATABASE IF EXISTS {name}; CREATE DATABASE {name};"));
        format!("mysql://{}:{}@127.0.0.1:{}/{name}", self.user, self.password, self.port)
    }

    /// Runs statements by the `mariadb` program and returns what they printed: fields between tabs, no headers. Tables of
    /// another database than `url`'s are named with it.
    ///
    /// # Panics
    /// Where one fails, with what the program said.
    pub fn sql(&self, sql: &str) -> String {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "-NB", "-h", "127.0.0.1", "-P", &self.port.to_string(), "-u", &self.user]);
        command.arg(&self.database).env("MYSQL_PWD", &self.password);
        output(&mut command, sql)
    }
}

/// Redis that writes each change to its log before it answers.
#[derive(Debug)]
pub struct Redis {
    /// `redis://:password@127.0.0.1:port/0`.
    pub url: String,
    /// The server's port on 127.0.0.1.
    pub port: u16,
    /// The password of everybody.
    pub password: String,
    server: Server,
}

impl Redis {
    fn of(server: Server) -> Self {
        let env = server.env();
        let get = |key: &str| value(&env, key);
        Self {
            url: get("REDIS_URL"),
            port: get("REDIS_PORT").parse().unwrap(),
            password: get("REDIS_PASSWORD"),
            server,
        }
    }

    /// One for this test alone, with its data in `folder`. See [`kafka`].
    pub fn private(folder: &Path) -> Option<Self> {
        Server::private("redis", folder).map(Self::of)
    }

    /// Runs one command by `redis-cli` and returns its answer as plain text, a line for each element.
    ///
    /// # Panics
    /// Where redis-cli fails, or the answer is an error.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string()]).args(arguments);
        output(command.env("REDISCLI_AUTH", &self.password), "")
    }
}

/// Apicurio Registry, by the interface that it shares with Confluent's.
#[derive(Debug)]
pub struct Registry {
    /// What stands before `/subjects` and `/schemas`.
    pub url: String,
    /// The server's port on 127.0.0.1.
    pub port: u16,
    server: Server,
}

impl Registry {
    fn of(server: Server) -> Self {
        let env = server.env();
        let get = |key: &str| value(&env, key);
        Self { url: get("REGISTRY_URL"), port: get("REGISTRY_PORT").parse().unwrap(), server }
    }

    /// One for this test alone, with its data in `folder`. See [`kafka`].
    pub fn private(folder: &Path) -> Option<Self> {
        Server::private("registry", folder).map(Self::of)
    }
}

macro_rules! is_a_server {
    ($($service:ty),*) => {$(
        impl Deref for $service {
            type Target = Server;
            fn deref(&self) -> &Server {
                &self.server
            }
        }
    )*};
}
is_a_server!(Kafka, Postgres, Mysql, Redis, Registry);

impl Server {
    fn shared(name: &'static str) -> Option<Self> {
        // Threads of one test program ask once; up.sh sees to it that programs do.
        static ASKING: Mutex<()> = Mutex::new(());
        let folder =
            std::env::var_os("TIDEMILL_SERVICES").map_or_else(|| root().join("target/services"), PathBuf::from);
        let server = Self { name, folder, private: false };
        let _one_at_a_time = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
        (server.answers() || server.up()).then_some(server)
    }

    fn private(name: &'static str, folder: &Path) -> Option<Self> {
        let server = Self { name, folder: folder.to_owned(), private: true };
        server.up().then_some(server)
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.name))
    }

    fn env(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.file("env")).unwrap_or_default();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.trim_matches('\'').to_owned())).collect()
    }

    /// Whether it has been started, and still listens.
    fn answers(&self) -> bool {
        let env = self.env();
        let port = env.iter().find_map(|(key, value)| match key.as_str() {
            "KAFKA_BROKERS" => value.rsplit(':').next().and_then(|port| port.parse().ok()),
            "PG_PORT" | "MYSQL_PORT" | "REDIS_PORT" | "REGISTRY_PORT" => value.parse().ok(),
            _ => None,
        });
        port.is_some_and(|port: u16| {
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(2)).is_ok()
        })
    }

    /// Starts it. False after saying why the test is skipped.
    fn up(&self) -> bool {
        let absent = self.file("absent");
        let age = fs::metadata(&absent).and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
        if self.private || age.is_none_or(|age| age > REMEMBERED) {
            let mut command = Command::new(root().join("tests/services/up.sh"));
            command.arg("--dir").arg(&self.folder).stdin(Stdio::null());
            if self.private {
                command.args(["--owner", &std::process::id().to_string()]);
            }
            let done = command.arg(self.name).output();
            let done = done.unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
            let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            assert!(done.status.success(), "{command:?} ended with {}\n{said}", done.status);
        }
        if self.file("env").exists() {
            return true;
        }
        let why = fs::read_to_string(&absent).unwrap_or_else(|_| self.name.to_owned());
        skip(why.trim(), &format!("`tests/services/up.sh {}` tries again.", self.name));
        false
    }

    /// Its process, of the last start.
    ///
    /// # Panics
    /// Where it was never started.
    pub fn pid(&self) -> u32 {
        let env = self.env();
        let found = env.iter().find(|(key, _)| key.ends_with("_PID")).and_then(|(_, value)| value.parse().ok());
        found.unwrap_or_else(|| panic!("{} names no process", self.file("env").display()))
    }

    /// What it logged since its last start.
    pub fn log(&self) -> String {
        fs::read(self.folder.join(self.name).join("log")).map_or_else(|e| e.to_string(), |log| lossy(&log))
    }

    /// The process and its children: PostgreSQL has one for each connection.
    fn family(&self) -> Vec<u32> {
        let pid = self.pid();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let children: String = children.collect::<Vec<_>>().join(" ");
        std::iter::once(pid).chain(children.split_whitespace().filter_map(|child| child.parse().ok())).collect()
    }

    fn send(&self, signal: &str, to: &[u32]) {
        assert!(self.private, "the {} that all tests share may not be sent a signal: start a private one", self.name);
        let pids: Vec<_> = to.iter().map(u32::to_string).collect();
        // The shell's own `kill`. A child may have ended meanwhile.
        let _ = Command::new("sh").arg("-c").arg(format!("kill -{signal} {} 2>/dev/null", pids.join(" "))).status();
    }

    fn wait_for_the_end(&self, of: &[u32]) {
        let start = Instant::now();
        while of.iter().any(|pid| runs(*pid)) {
            assert!(start.elapsed() < END, "{} does not end: {of:?}\n{}", self.name, self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL to all of it. It is gone when this returns; its data stays.
    ///
    /// # Panics
    /// Where it is not a private one, as with the following.
    pub fn kill(&self) {
        let all = self.family();
        self.send("KILL", &all);
        self.wait_for_the_end(&all);
    }

    /// Has it end in order (SIGTERM; PostgreSQL's SIGINT, which does not wait for clients), and waits for it.
    pub fn stop(&self) {
        let all = self.family();
        self.send(if self.name == "postgres" { "INT" } else { "TERM" }, &all[..1]);
        self.wait_for_the_end(&all);
    }

    /// SIGSTOP to all of it: connections stay open, and nobody answers.
    pub fn pause(&self) {
        self.send("STOP", &self.family());
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.send("CONT", &self.family());
    }

    /// Starts it again after [`Server::kill`] or [`Server::stop`], at the same address with the same data, and waits until it
    /// is ready. Does nothing where it runs.
    pub fn start(&self) {
        assert!(self.private && self.up(), "{} cannot be started", self.name);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.private {
            let mut command = Command::new(root().join("tests/services/down.sh"));
            let _ = command.arg("--dir").arg(&self.folder).arg(self.name).stdout(Stdio::null()).status();
        }
    }
}

/// Whether a process runs; one that is dead and not yet looked at by its parent does not.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn value(env: &BTreeMap<String, String>, key: &str) -> String {
    env.get(key).cloned().unwrap_or_else(|| panic!("the service's .env lacks {key}: {env:?}"))
}

fn plain_name(name: &str) {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(!name.is_empty() && name.chars().all(plain), "not a name of a-z, 0-9 and _: {name:?}");
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command to its end, with this input, and returns what it printed without the last line's end.
fn output(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let text = input.to_owned();
    // Beside reading, so that a long input and a long output do not wait for each other.
    let writing = thread::spawn(move || drop(stdin.write_all(text.as_bytes())));
    let done = child.wait_with_output().unwrap();
    writing.join().unwrap();
    let (out, said) = (lossy(&done.stdout), lossy(&done.stderr));
    assert!(done.status.success(), "{command:?} ended with {}\n{out}\n{said}", done.status);
    out.trim_end_matches('\n').to_owned()
}

// What `tidemill_tests` has too, again here because tests of other crates include this file alone.

/// The repository's root: the folder above the crate that includes this file.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// As `needs::skip`.
fn skip(what: &str, way: &str) {
    let must_have = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    let test = thread::current().name().unwrap_or("a test").to_owned();
    assert!(!must_have, "{test} needs {what}, and CI=true says that it is there. {way}");
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs {what}. {way}");
}

//! Connections to a server, and what its errors mean.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use mysql_async::{
    Column, Conn, Error, IoError, Opts, OptsBuilder, Params, Row,
    prelude::{AsQuery, FromRow, Queryable},
};
use tidemill_config::redacted;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};

use crate::sink::SinkError;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the answer to one statement may take. Statements are of bounded size and wait for locks for a bounded time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// After this idle time a connection is asked whether it still lives before it is used. Shorter than the session's own
/// `wait_timeout`.
const PING_AFTER: Duration = Duration::from_secs(5);
/// What every session sets. The modes make a value that does not fit an error instead of another value, and a
/// `0` in an AUTO_INCREMENT column a 0. Digits of a second that a column does not keep are cut, as MariaDB does it without a
/// word, and not rounded into another second. READ COMMITTED locks no gaps. A client that is paused
/// in a transaction holds its locks until `wait_timeout` has passed: then the server ends the session and rolls back.
const SESSION: &str = "SET SESSION
    sql_mode = CONCAT('STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_VALUE_ON_ZERO',
        IF(VERSION() LIKE '%MariaDB%', '', ',TIME_TRUNCATE_FRACTIONAL')),
    time_zone = '+00:00', autocommit = 1, foreign_key_checks = 1, unique_checks = 1,
    wait_timeout = 20, net_read_timeout = 20, net_write_timeout = 60, innodb_lock_wait_timeout = 10, lock_wait_timeout = 20";
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// A server may give sessions another character set than the one that the client asked for.
const NAMES: &str = "SET NAMES utf8mb4";

/// How a server and a database in it are reached.
#[derive(Clone)]
pub(crate) struct Address {
    opts: Opts,
    ca: Option<PathBuf>,
    /// The address as it may be shown.
    pub(crate) shown: String,
    /// The database.
    pub(crate) database: String,
    /// The user, for messages.
    user: String,
}

impl Address {
    pub(crate) fn new(url: &str, ca: Option<&Path>) -> Result<Self, String> {
        let shown = redacted(url);
        let way_out = "write mysql://USER:PASSWORD@HOST:PORT/DATABASE, and in the password `%40` for `@`, `%2F` for `/`, `%3A` for `:`, `%23` for `#`, `%25` for `%`";
        // A `/` or `#` in a password would end the host: what follows would be asked under another name.
        let behind_host = url.split_once("://").and_then(|(_, rest)| rest.split_once(['/', '?', '#']));
        if behind_host.is_some_and(|(_, behind)| behind.contains('@')) {
            return Err(format!("{shown}: this address cannot be read: {way_out}"));
        }
        // The driver's own words may hold parts of the address, the password too.
        let opts = Opts::from_url(&with_tls(url, ca.is_some())).map_err(|error| match error {
            mysql_async::UrlError::UnknownParameter { param } => {
                format!(
                    "{shown}: its option `{param}` is not known: `require_ssl`, `verify_ca` and `verify_identity` are"
                )
            }
            _ => format!("{shown}: this address cannot be read: {way_out}"),
        })?;
        let Some(database) = opts.db_name().filter(|name| !name.is_empty()).map(str::to_owned) else {
            return Err(format!("{shown}: this address names no database: {way_out}"));
        };
        let user = opts.user().unwrap_or_default().to_owned();
        Ok(Self { opts, ca: ca.map(Path::to_owned), shown, database, user })
    }

    fn has_tls(&self) -> bool {
        self.ca.is_some() || self.opts.ssl_opts().is_some()
    }

    /// A new connection, set up.
    pub(crate) async fn open(&self) -> Result<Conn, Failure> {
        // A local server would be reached by its socket, past whatever stands between (a tunnel, a proxy).
        let mut builder = OptsBuilder::from_opts(self.opts.clone()).prefer_socket(self.opts.socket().is_some());
        builder = builder.tcp_keepalive(Some(Duration::from_secs(10)));
        if let Some(ca) = &self.ca {
            let pem = tokio::fs::read(ca).await.map_err(|error| {
                SinkError::Fatal(format!("{}: reading the certificates in {}: {error}", self.shown, ca.display()))
            })?;
            let given = self.opts.ssl_opts().cloned().unwrap_or_default();
            builder = builder.ssl_opts(given.with_root_certs(vec![pem.into()]).with_disable_built_in_roots(true));
        }
        let mut conn = match timeout(CONNECT_TIMEOUT, Conn::new(builder)).await {
            Ok(conn) => conn.doing("connecting to")?,
            Err(_) => return Err(Failure::Slow("connecting to", CONNECT_TIMEOUT)),
        };
        for statement in [SESSION, ISOLATION, NAMES] {
            within("setting up a session in", conn.query_drop(statement)).await?;
        }
        Ok(conn)
    }

    /// The same, and what a writer has to know of it.
    pub(crate) async fn connect(&self) -> Result<Session, Failure> {
        let mut session = Session { conn: self.open().await?, used: Instant::now(), max_statement: 0 };
        let limit: Option<u64> = session.first("setting up a session in", "SELECT @@max_allowed_packet", ()).await?;
        session.max_statement = usize::try_from(limit.unwrap_or(1 << 20)).unwrap_or(usize::MAX) - MARGIN;
        Ok(session)
    }

    /// What an error means, and what to do.
    pub(crate) fn explain(&self, failure: Failure) -> SinkError {
        let shown = &self.shown;
        let transient = |what: &str, cause: String| SinkError::Transient { what: format!("{what} {shown}"), cause };
        let (what, error) = match failure {
            Failure::Sink(error) => return error,
            Failure::Slow(what, limit) => return transient(what, format!("no answer in {} s", limit.as_secs())),
            Failure::Server(what, error) => (what, error),
        };
        let error = match error {
            Error::Server(error) => error,
            Error::Io(IoError::Tls(error)) if !was_cut(&error) => {
                return SinkError::Fatal(format!(
                    "{what} {shown}: TLS: {error}: give the certificates of its authority by `ca:`, and a host that its certificate is for (`?verify_identity=false` where it is for none, like the one that MySQL makes for itself)"
                ));
            }
            Error::Driver(mysql_async::DriverError::NoClientSslFlagFromServer) => {
                return SinkError::Fatal(format!(
                    "{what} {shown}: the server has no TLS: set it up there, or leave out `ca` and `require_ssl`"
                ));
            }
            Error::Io(error) => {
                return transient(what, format!("{error}: is the server running, and is this its address?"));
            }
            other => return transient(what, other.to_string()),
        };
        let (code, said) = (error.code, &error.message);
        let (user, database) = (&self.user, &self.database);
        match code {
            1045 | 1698 | 1251 => SinkError::Fatal(format!(
                "{what} {shown}: {said} ({code}): correct the user or the password in `url`, or allow this user to log in from here{}",
                if self.has_tls() { "" } else { "; one who may by TLS alone needs `?require_ssl=true`" }
            )),
            3159 => SinkError::Fatal(format!("{what} {shown}: {said} ({code}): add `?require_ssl=true` to `url`")),
            1049 => SinkError::Fatal(format!(
                "{what} {shown}: {said} ({code}): CREATE DATABASE `{database}`, or correct `url`"
            )),
            1044 | 1142 | 1143 | 1227 | 1370 => SinkError::Fatal(format!(
                "{what} {shown}: {said} ({code}): GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON `{database}`.* TO '{user}'"
            )),
            3098 | 3750 => SinkError::Fatal(format!(
                "{what} {shown}: {said} ({code}): the server wants every table to have a primary key: make the table with one of its own (`id BIGINT AUTO_INCREMENT PRIMARY KEY`) beside the job's columns"
            )),
            1665 => SinkError::Fatal(format!(
                "{what} {shown}: {said} ({code}): the server's binlog_format must be MIXED or ROW"
            )),
            1213 => transient(what, "a deadlock with another client".into()),
            1205 => transient(what, "another client holds a lock for more than 10 s".into()),
            // Too many connections, shutting down, a session that was ended, a full disk, a replica that is read-only, a group
            // of servers that does not agree.
            3 | 1020 | 1021 | 1028 | 1030 | 1040 | 1053 | 1114 | 1129 | 1152 | 1180 | 1192 | 1203 | 1206 | 1226
            | 1290 | 1317 | 1412 | 1613 | 1836 | 1927 | 1969 | 3024 | 3032 | 3100 | 3101 | 3168 | 3169 | 4031 => {
                transient(what, format!("{said} ({code})"))
            }
            _ => SinkError::Fatal(format!("{what} {shown}: {said} ({code})")),
        }
    }
}

/// Whether the connection ended while keys were exchanged, which says nothing of them.
fn was_cut(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| cause.is::<std::io::Error>() || cause.to_string().contains("unexpected EOF"))
}

/// The address, in which whatever is said about TLS asks for it: the driver forgets it otherwise, and would go without.
fn with_tls(url: &str, has_ca: bool) -> Cow<'_, str> {
    let options = url.split_once('?').map_or("", |(_, options)| options);
    let mut names = options.split('&').map(|option| option.split_once('=').map_or(option, |(name, _)| name));
    let asks = has_ca || names.clone().any(|name| matches!(name, "verify_ca" | "verify_identity"));
    if !asks || names.any(|name| name == "require_ssl") {
        return url.into();
    }
    format!("{url}{}require_ssl=true", if url.contains('?') { '&' } else { '?' }).into()
}

/// Room for what surrounds the rows in a packet.
const MARGIN: usize = 1024;

/// A connection with its settings.
pub(crate) struct Session {
    conn: Conn,
    used: Instant,
    /// The longest statement in bytes that the server takes.
    pub(crate) max_statement: usize,
}

impl Session {
    /// Runs a statement as it stands; how many rows it changed.
    pub(crate) async fn run(&mut self, what: &'static str, sql: impl AsQuery) -> Result<u64, Failure> {
        self.used = Instant::now();
        let asked = async { self.conn.query_drop(sql).await.map(|()| self.conn.affected_rows()) };
        within(what, asked).await
    }

    /// Runs a prepared statement; how many rows it changed.
    pub(crate) async fn exec(
        &mut self,
        what: &'static str,
        sql: &str,
        values: impl Into<Params> + Send,
    ) -> Result<u64, Failure> {
        self.used = Instant::now();
        let asked = async { self.conn.exec_drop(sql, values).await.map(|()| self.conn.affected_rows()) };
        within(what, asked).await
    }

    /// The rows of a prepared query.
    pub(crate) async fn rows<T: FromRow + Send + 'static>(
        &mut self,
        what: &'static str,
        sql: &str,
        values: impl Into<Params> + Send,
    ) -> Result<Vec<T>, Failure> {
        self.used = Instant::now();
        within(what, self.conn.exec(sql, values)).await
    }

    /// Its first row.
    pub(crate) async fn first<T: FromRow + Send + 'static>(
        &mut self,
        what: &'static str,
        sql: &str,
        values: impl Into<Params> + Send,
    ) -> Result<Option<T>, Failure> {
        Ok(self.rows(what, sql, values).await?.into_iter().next())
    }

    /// The columns and rows of a query, every value as text.
    pub(crate) async fn text(&mut self, what: &'static str, sql: &str) -> Result<(Arc<[Column]>, Vec<Row>), Failure> {
        self.used = Instant::now();
        let asked = async {
            let mut result = self.conn.query_iter(sql).await?;
            let columns = result.columns().unwrap_or_default();
            Ok((columns, result.collect().await?))
        };
        within(what, asked).await
    }

    /// Gives the rows of a query, every value as text, one after the other, for as long as `take` wants more. Where it wants
    /// none, the rest of the answer is still to come: the session is of no further use.
    pub(crate) async fn each(
        &mut self,
        what: &'static str,
        sql: &str,
        mut take: impl FnMut(Row) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.used = Instant::now();
        let mut result = within(what, self.conn.query_iter(sql)).await?;
        while let Some(row) = within(what, result.next()).await? {
            if !take(row)? {
                return Ok(());
            }
        }
        within(what, result.drop_result()).await
    }

    /// Lets the server check a statement (names, rights) without running it.
    pub(crate) async fn look(&mut self, what: &'static str, sql: &str) -> Result<(), Failure> {
        let statement = within(what, self.conn.prep(sql)).await?;
        within(what, self.conn.close(statement)).await
    }

    async fn lives(&mut self) -> bool {
        if self.used.elapsed() < PING_AFTER {
            return true;
        }
        self.used = Instant::now();
        within("asking", self.conn.ping()).await.is_ok()
    }
}

async fn within<T>(what: &'static str, asked: impl Future<Output = mysql_async::Result<T>>) -> Result<T, Failure> {
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer.doing(what),
        Err(_) => Err(Failure::Slow(what, ANSWER_TIMEOUT)),
    }
}

/// A database, by two connections: one writes, and the other looks and beats beside it.
pub(crate) struct Database {
    pub(crate) address: Address,
    writer: Mutex<Option<Session>>,
    reader: Mutex<Option<Session>>,
}

/// A connection that is in use. Dropped without [`Used::done`] it is closed, and the server rolls back: what was cut off
/// halfway is not used again.
pub(crate) struct Used<'a> {
    address: &'a Address,
    place: MutexGuard<'a, Option<Session>>,
    session: Session,
}

impl Database {
    pub(crate) fn new(address: Address) -> Self {
        Self { address, writer: Mutex::default(), reader: Mutex::default() }
    }

    /// The connection for transactions, once it is free.
    pub(crate) async fn writer(&self) -> Result<Used<'_>, SinkError> {
        self.take(&self.writer).await
    }

    /// The connection for short statements of their own.
    pub(crate) async fn reader(&self) -> Result<Used<'_>, SinkError> {
        self.take(&self.reader).await
    }

    async fn take<'a>(&'a self, place: &'a Mutex<Option<Session>>) -> Result<Used<'a>, SinkError> {
        let mut place = place.lock().await;
        if let Some(mut session) = place.take()
            && session.lives().await
        {
            return Ok(Used { address: &self.address, place, session });
        }
        let session = self.address.connect().await.map_err(|failure| self.address.explain(failure))?;
        Ok(Used { address: &self.address, place, session })
    }
}

impl Used<'_> {
    pub(crate) fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Puts the connection back where it still can be used, and says what went wrong.
    pub(crate) fn done<T>(mut self, result: Result<T, Failure>) -> Result<T, SinkError> {
        if result.as_ref().err().is_none_or(|failure| !failure.breaks()) {
            *self.place = Some(self.session);
        }
        result.map_err(|failure| self.address.explain(failure))
    }
}

/// What stops a piece of work on a database.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server or the driver said no, while this was being done.
    Server(&'static str, Error),
    /// No answer in this time.
    Slow(&'static str, Duration),
    /// The protocol or the sink said no.
    Sink(SinkError),
}

impl Failure {
    /// The server's number of the error.
    pub(crate) fn code(&self) -> Option<u16> {
        self.state().map(|(_, code)| code)
    }

    /// The SQLSTATE and the server's number of the error.
    pub(crate) fn state(&self) -> Option<(&str, u16)> {
        match self {
            Self::Server(_, Error::Server(error)) => Some((&error.state, error.code)),
            _ => None,
        }
    }

    /// The server's own sentence.
    pub(crate) fn said(&self) -> String {
        match self {
            Self::Server(_, Error::Server(error)) => format!("{} ({})", error.message, error.code),
            other => format!("{other:?}"),
        }
    }

    /// Whether the connection is of no use any more.
    pub(crate) fn breaks(&self) -> bool {
        match self {
            // The server's own answer leaves it as it was, but for those by which it says good-bye.
            Self::Server(_, Error::Server(error)) => {
                matches!(error.code, 1053 | 1152 | 1153 | 1927 | 1969 | 3032 | 3169 | 4031)
            }
            Self::Server(..) | Self::Slow(..) => true,
            Self::Sink(_) => false,
        }
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

/// `.doing("...")` on a result of the driver.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, Failure>;
}

impl<T> Doing<T> for mysql_async::Result<T> {
    fn doing(self, what: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::Server(what, error))
    }
}

impl Doing<()> for std::io::Result<()> {
    fn doing(self, what: &'static str) -> Result<(), Failure> {
        self.map_err(|error| Failure::Sink(SinkError::io(what, &error)))
    }
}

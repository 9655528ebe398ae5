//! A server: its address, connections to it, and what its errors mean.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use native_tls::{Certificate, Identity, Protocol, TlsConnector};
use postgres_native_tls::MakeTlsConnector;
use tidemill_config::redacted;
use tokio::{task::AbortHandle, time::timeout};
use tokio_postgres::{
    Client, Config, Error, Statement,
    config::SslMode,
    error::SqlState,
    types::{FromSql, Type},
};

use super::failure::{Doing, Failure, said};
use crate::sink::SinkError;

/// How long one try to connect may take, with all that a server does before it answers.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// A peer that takes no bytes and answers no probe for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a peer is asked whether it is still there, where nothing else is said.
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// The same for the server's side: a machine that vanished must not hold locks for two hours.
const SESSION: &str = "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";
/// What every transaction that only reads sets, so that how values are written does not depend on what a server or a role was
/// given. All of it ends with the transaction: behind a pooler the session is somebody else's next.
const READING: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL DateStyle = 'ISO, YMD';
    SET LOCAL IntervalStyle = 'postgres'; SET LOCAL TimeZone = 'UTC'; SET LOCAL standard_conforming_strings = on;
    SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'; SET LOCAL idle_in_transaction_session_timeout = 60000";
/// What an application may be called; the server cuts longer names.
const LONGEST_NAME: usize = 63;

/// What a private key in the one format that is read begins with.
const PKCS8: &[u8] = b"-----BEGIN PRIVATE KEY-----";
/// Those that are taken, for the message about another one.
const TAKEN: &str = "application_name, channel_binding, connect_timeout, keepalives, keepalives_count, keepalives_idle, \
                     keepalives_interval, load_balance_hosts, options, sslcert, sslkey, sslmode, sslrootcert, \
                     target_session_attrs and tcp_user_timeout";

/// How much of a certificate is looked at (libpq's `sslmode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verify {
    Nothing,
    Authority,
    Host,
}

/// What is said of an address that the client cannot read.
const UNREAD: &str = "the url cannot be read: write postgres://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE, with the \
                      characters :/?#[]@% of user and password as %3A, %2F, %3F, %23, %5B, %5D, %40 and %25";

/// A database of a server.
pub(crate) struct Server {
    config: Config,
    verify: Verify,
    ca: Option<PathBuf>,
    /// The certificate that the server is shown, and the file of its key.
    own: Option<(PathBuf, PathBuf)>,
    /// For all of the hosts together.
    connect_limit: Duration,
    shown: String,
}

/// Whether a password is not encoded: more than one `@`, or one behind what ends the host. Options have `=` before theirs.
fn has_open_login(rest: &str) -> bool {
    let (host, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    host.matches('@').count() > 1 || behind.split('=').next().is_some_and(|path| path.contains('@'))
}

impl Server {
    /// The database at `url`. `application` is how the sessions are called in `pg_stat_activity`. Opens and connects
    /// nothing.
    pub(crate) fn new(url: &str, ca: Option<&Path>, application: &str) -> Result<Self, SinkError> {
        let shown = redacted(url);
        let address = Address::split(url);
        let told = |why: &str| SinkError::Fatal(format!("{shown}: {why}"));
        // The rest of a password behind an `@` would be looked up as a host.
        if url.split_once("://").is_some_and(|(_, rest)| has_open_login(rest)) {
            return Err(told(UNREAD));
        }
        // The parser's own message may quote a part of a password that was taken for something else.
        let mut config: Config =
            address.plain.parse().map_err(|_| told(address.wrong_option().as_deref().unwrap_or(UNREAD)))?;
        let own = match (address.cert.map(PathBuf::from), address.key.map(PathBuf::from)) {
            // One file may hold both.
            (Some(cert), key) => Some((cert.clone(), key.unwrap_or(cert))),
            (None, Some(_)) => return Err(told("sslkey is the key of a certificate: add sslcert=FILE")),
            (None, None) => None,
        };
        let ca = ca.map(Path::to_owned).or_else(|| address.ca.map(PathBuf::from));
        let (mode, verify) = match (address.mode.as_deref(), &ca) {
            (None, None) | (Some("prefer" | "allow"), _) => (SslMode::Prefer, Verify::Nothing),
            (Some("disable"), _) => (SslMode::Disable, Verify::Nothing),
            (Some("require"), None) => (SslMode::Require, Verify::Nothing),
            // As in libpq: who names an authority wants it asked.
            (Some("require" | "verify-ca"), _) => (SslMode::Require, Verify::Authority),
            (None, Some(_)) | (Some("verify-full"), _) => (SslMode::Require, Verify::Host),
            (Some(_), _) => {
                return Err(SinkError::Fatal(format!(
                    "{shown}: sslmode is disable, prefer, require, verify-ca or verify-full"
                )));
            }
        };
        config
            .ssl_mode(mode)
            .tcp_user_timeout(SILENCE)
            .keepalives_idle(PROBE_EVERY)
            .keepalives_interval(PROBE_EVERY / 3);
        let hosts = u32::try_from(config.get_hosts().len().max(1)).unwrap_or(u32::MAX);
        let of_host = *config.get_connect_timeout().unwrap_or(&(CONNECT_LIMIT / hosts));
        config.connect_timeout(of_host);
        if config.get_application_name().is_none() {
            config.application_name(application.chars().take(LONGEST_NAME).collect::<String>());
        }
        let connect_limit = CONNECT_LIMIT.max(of_host.saturating_mul(hosts));
        Ok(Self { config, verify, ca, own, connect_limit, shown })
    }

    /// The address as it may be shown.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    fn tls(&self) -> Result<MakeTlsConnector, SinkError> {
        let mut builder = TlsConnector::builder();
        builder.min_protocol_version(Some(Protocol::Tlsv12));
        builder.danger_accept_invalid_certs(self.verify == Verify::Nothing);
        builder.danger_accept_invalid_hostnames(self.verify != Verify::Host);
        if let Some(path) = &self.ca {
            let wrong = |why: String| SinkError::Fatal(format!("the certificates of {}: {why}", path.display()));
            let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let certificates = Certificate::stack_from_pem(&text).map_err(|error| wrong(error.to_string()))?;
            if certificates.is_empty() {
                return Err(wrong(
                    "there is none in the file: it holds PEM, from -----BEGIN CERTIFICATE----- on".into(),
                ));
            }
            builder.disable_built_in_roots(true);
            for certificate in certificates {
                builder.add_root_certificate(certificate);
            }
        }
        if let Some((cert, key)) = &self.own {
            builder.identity(identity(cert, key).map_err(SinkError::Fatal)?);
        }
        let connector = builder.build().map_err(|error| SinkError::Fatal(format!("setting up TLS: {error}")))?;
        Ok(MakeTlsConnector::new(connector))
    }

    /// A new connection of a session that is nobody else's: the sink's.
    pub(crate) async fn connect(&self) -> Result<Connection, SinkError> {
        let connection = self.connect_to_read().await?;
        let session = connection.client.batch_execute(SESSION).await.doing("setting up a session in");
        session.map_err(|failure| failure.explain(self))?;
        Ok(connection)
    }

    /// A new connection, in which nothing is set: see [`Connection::begin_to_read`].
    pub(crate) async fn connect_to_read(&self) -> Result<Connection, SinkError> {
        let tls = self.tls()?;
        let (client, driver) = match timeout(self.connect_limit, self.config.connect(tls)).await {
            Ok(connected) => connected.map_err(|error| self.unreachable(error))?,
            Err(_) => {
                return Err(
                    self.transient("connecting to", "no answer: is the address right, and no firewall between?")
                );
            }
        };
        let encoding = Encoding::of(driver.parameter("server_encoding").unwrap_or("UTF8"));
        let ended = Arc::new(OnceLock::new());
        let last = ended.clone();
        let driver = tokio::spawn(async move {
            let said = match driver.await {
                Ok(()) => "the connection was closed".to_owned(),
                Err(error) => said(&error),
            };
            drop(last.set(said));
        });
        Ok(Connection { client, encoding, ended, driver: driver.abort_handle(), statements: HashMap::new() })
    }

    /// What keeps a connection from being made.
    fn unreachable(&self, error: Error) -> SinkError {
        let (why, at) = (said(&error), &self.shown);
        let fatal = |help: &str| SinkError::Fatal(format!("connecting to {at}: {why}: {help}"));
        match error.code() {
            Some(code) if *code == SqlState::INVALID_PASSWORD => fatal("check the user and the password of `url`"),
            Some(code)
                if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION && why.contains("client certificate") =>
            {
                fatal("name one by ?sslcert=FILE&sslkey=FILE in `url`")
            }
            // It says no more: which rule it was and what it lacked is in the server's log.
            Some(code)
                if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                    && self.own.is_some()
                    && why.contains("authentication failed") =>
            {
                fatal("the user may be unknown, or the certificate of `sslcert` is for another one (its CN)")
            }
            Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => fatal(
                "the user may be unknown, or the server's pg_hba.conf does not let it in from here or without TLS",
            ),
            Some(code) if *code == SqlState::INVALID_CATALOG_NAME => {
                fatal("make it (CREATE DATABASE), or name another in `url`")
            }
            Some(_) => Failure::Postgres("connecting to", error).explain(self),
            None if why.contains("does not support TLS") => {
                fatal("turn `ssl` on at the server, or write ?sslmode=disable where nobody can listen in between")
            }
            // The server says so after its own part of the handshake is done.
            None if self.own.is_some() && why.contains(" alert ") => fatal(
                "the server does not take the certificate of `sslcert`: it has to be valid, and signed by whom the server trusts",
            ),
            None if why.contains("TLS handshake") => fatal(
                "`ca` is the file of the authority that signed the server's certificate, and the host of `url` is a name in it",
            ),
            None if why.contains("authentication") || why.contains("configuration") => {
                fatal("check the user, the password and the options of `url`")
            }
            // What it said may be lost on the way, since it hangs up at once.
            None if self.own.is_some() && why.contains("communicating") => self.transient(
                "connecting to",
                format!("{why}: is the server running, and does it take the certificate of `sslcert`? Its log says"),
            ),
            None => self.transient("connecting to", format!("{why}: is the server running, and is the address right?")),
        }
    }

    /// Something that may pass.
    pub(super) fn transient(&self, doing: &str, cause: impl Into<String>) -> SinkError {
        SinkError::Transient { what: format!("{doing} {}", self.shown), cause: cause.into() }
    }
}

/// How the database keeps texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// It has every character.
    Utf8,
    /// `SQL_ASCII`: bytes that the server does not look at. They may be no UTF-8, and then it does not hand them out as a text.
    Bytes,
    /// It lacks characters (`LATIN1`).
    Other,
}

impl Encoding {
    fn of(name: &str) -> Self {
        match name {
            "UTF8" => Self::Utf8,
            "SQL_ASCII" => Self::Bytes,
            _ => Self::Other,
        }
    }
}

/// A session. One that is dropped is closed.
pub(crate) struct Connection {
    /// The client.
    pub(crate) client: Client,
    /// How its database keeps texts.
    pub(crate) encoding: Encoding,
    ended: Arc<OnceLock<String>>,
    driver: AbortHandle,
    statements: HashMap<String, Statement>,
}

impl Connection {
    /// Whether the server or the network has ended it.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Begins a transaction that only reads. No question in it takes longer than `limit`. It leaves nothing behind in the
    /// session, unless a statement that was prepared in it outlives it.
    pub(crate) async fn begin_to_read(&self, limit: Duration) -> Result<(), Error> {
        let limit = limit.as_millis();
        let limits = format!("SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}");
        self.client.batch_execute(&format!("{READING}; {limits}")).await
    }

    /// Ends it. After an error it is rolled back, which is the same.
    pub(crate) async fn end_reading(&self) -> Result<(), Error> {
        self.client.batch_execute("COMMIT").await
    }

    /// What the server said when it ended the session: an answer that was waited for is told no more than that there is none.
    pub(super) fn last_words(&self) -> Option<&str> {
        self.ended.get().map(String::as_str)
    }

    /// The prepared statement of a text, which is parsed once.
    pub(crate) async fn statement(&mut self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A value as it came, whether it is a text or bytes.
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::TEXT | Type::BYTEA)
    }
}

/// The parts of an address that the client's own parser does not take.
#[derive(Default)]
struct Address {
    plain: String,
    mode: Option<String>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Address {
    fn split(url: &str) -> Self {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut address = Self { plain: base.to_owned(), ..Self::default() };
        let mut others = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sslmode", mode)) => address.mode = Some(mode.to_owned()),
                Some(("sslrootcert", path)) => address.ca = Some(decoded(path)),
                Some(("sslcert", path)) => address.cert = Some(decoded(path)),
                Some(("sslkey", path)) => address.key = Some(decoded(path)),
                // The same by another name.
                Some(("keepalives_count", count)) => others.push(format!("keepalives_retries={count}")),
                Some((name, value)) if says_nothing(name, value) => {}
                _ => others.push(option.to_owned()),
            }
        }
        if !others.is_empty() {
            address.plain = format!("{base}?{}", others.join("&"));
        }
        address
    }

    /// What is wrong with an option, by its name alone: its value may be anything, and a part of a password too.
    fn wrong_option(&self) -> Option<String> {
        let (_, query) = self.plain.split_once('?')?;
        let is_right = |option: &&str| format!("postgres://host?{option}").parse::<Config>().is_ok();
        let option = query.split('&').find(|option| !is_right(option))?;
        let name = option.split_once('=').map_or(option, |(name, _)| name);
        if !name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_') {
            return None;
        }
        Some(match name {
            "target_session_attrs" => "target_session_attrs is any, read-write or read-only".into(),
            "currentSchema" | "search_path" => {
                format!(
                    "the option {name} is not known: write options=-csearch_path%3DSCHEMA, or `table: SCHEMA.TABLE`"
                )
            }
            "ssl" => "the option ssl is not known: write sslmode=require or sslmode=verify-full".into(),
            "passfile" | "service" | "sslpassword" => {
                format!("the option {name} is not known: the password is in the url itself, best by ${{file:PATH}}")
            }
            name if TAKEN.split([' ', ',']).any(|taken| taken == name) => {
                format!("the option {name} has a value that it cannot have")
            }
            name => format!("the option {name} is not known: there are {TAKEN}"),
        })
    }
}

/// Options that are so in any case: texts are UTF-8, TLS is 1.2 at least and not compressed, and Kerberos is not used.
fn says_nothing(name: &str, value: &str) -> bool {
    match name {
        "client_encoding" | "fallback_application_name" | "sslcompression" | "sslsni" => true,
        "gssencmode" => value != "require",
        "ssl_min_protocol_version" => matches!(value, "TLSv1" | "TLSv1.1" | "TLSv1.2"),
        _ => false,
    }
}

/// The certificate that a client shows, and its key, from files of PEM.
fn identity(cert: &Path, key: &Path) -> Result<Identity, String> {
    let of = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let (certificate, text) = (of(cert)?, of(key)?);
    // Other things may come before it.
    let Some(at) = text.windows(PKCS8.len()).position(|window| window == PKCS8) else {
        return Err(format!(
            "{0}: there is no private key in PEM as PKCS #8 (-----BEGIN PRIVATE KEY-----), without a password: make it by \
             `openssl pkcs8 -topk8 -nodes -in {0} -out NEW`",
            key.display()
        ));
    };
    Identity::from_pkcs8(&certificate, &text[at..])
        .map_err(|error| format!("the certificate {} with the key {}: {error}", cert.display(), key.display()))
}

/// `%2F` and its like as the characters that they mean.
fn decoded(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        let (byte, used) = match (first, hex) {
            (b'%', Some(byte)) => (byte, 3),
            _ => (*first, 1),
        };
        out.push(byte);
        rest = &rest[used..];
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_how_much_of_a_certificate_is_looked_at() {
        let of = |url: &str, ca: Option<&str>| {
            let server = Server::new(url, ca.map(Path::new), "tidemill").unwrap();
            (server.config.get_ssl_mode(), server.verify)
        };
        assert_eq!(of("postgres://h/db", None), (SslMode::Prefer, Verify::Nothing));
        assert_eq!(of("postgres://h/db?sslmode=disable", Some("ca")), (SslMode::Disable, Verify::Nothing));
        assert_eq!(of("postgres://h/db?sslmode=require", None), (SslMode::Require, Verify::Nothing));
        assert_eq!(of("postgres://h/db?sslmode=require", Some("ca")), (SslMode::Require, Verify::Authority));
        assert_eq!(
            of("postgres://h/db?sslmode=verify-ca&connect_timeout=3", None),
            (SslMode::Require, Verify::Authority)
        );
        assert_eq!(of("postgres://h/db?sslmode=verify-full", None), (SslMode::Require, Verify::Host));
        assert_eq!(of("postgres://h/db?sslrootcert=%2Fetc%2Fca.pem", None), (SslMode::Require, Verify::Host));
        assert_eq!(Address::split("postgres://h/db?sslrootcert=%2Fetc%2Fca.pem").ca.unwrap(), "/etc/ca.pem");
    }

    #[test]
    fn options_that_are_pasted_are_taken_or_told_by_their_names() {
        let of = |options: &str| {
            let server = Server::new(&format!("postgres://u:hunter2@a:1,b:2/db?{options}"), None, "tidemill");
            server.map_err(|error| error.to_string())
        };
        let server = of(
            "sslmode=verify-full&sslrootcert=/ca.pem&sslcert=%2Fc.pem&connect_timeout=20&application_name=mine&\
                         options=-csearch_path%3Dshop&target_session_attrs=read-write&keepalives_count=3&client_encoding=UTF8&\
                         gssencmode=disable&load_balance_hosts=random&channel_binding=prefer",
        );
        let server = server.unwrap();
        assert_eq!(server.own, Some(("/c.pem".into(), "/c.pem".into())));
        assert_eq!(server.config.get_application_name(), Some("mine"));
        assert_eq!((server.config.get_hosts().len(), server.connect_limit), (2, Duration::from_secs(40)));
        assert_eq!(server.shown(), "postgres://u@a:1,b:2/db");
        let one = of("").unwrap();
        assert_eq!((one.config.get_connect_timeout(), one.connect_limit), (Some(&(CONNECT_LIMIT / 2)), CONNECT_LIMIT));
        for (options, wanted) in [
            ("sslkey=/k.pem", "sslkey is the key of a certificate: add sslcert=FILE"),
            ("target_session_attrs=primary", "target_session_attrs is any, read-write or read-only"),
            ("currentSchema=shop", "the option currentSchema is not known: write options=-csearch_path%3DSCHEMA"),
            ("ssl=true", "write sslmode=require or sslmode=verify-full"),
            ("connect_timeout=soon", "the option connect_timeout has a value that it cannot have"),
            ("krbsrvname=hunter2", "the option krbsrvname is not known: there are application_name, channel_binding, "),
            ("ssl_min_protocol_version=TLSv1.3", "the option ssl_min_protocol_version is not known"),
            ("gssencmode=require", "the option gssencmode is not known"),
            ("passfile=/p", "the option passfile is not known: the password is in the url itself"),
        ] {
            let error = of(options).err().unwrap();
            assert!(error.contains(wanted) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_key_that_cannot_be_read_says_how_to_make_one_that_can() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("old.key");
        assert!(identity(&key, &key).err().unwrap().contains("old.key: No such file"));
        fs::write(&key, "-----BEGIN RSA PRIVATE KEY-----\n").unwrap();
        assert!(identity(&key, &key).err().unwrap().contains("old.key -out NEW`"));
        fs::write(&key, "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n").unwrap();
        assert!(identity(&key, &key).err().unwrap().contains("the certificate "));
    }

    #[test]
    fn a_wrong_address_is_told_without_its_password() {
        for url in [
            "postgres://u:hun?ter2@h/db",
            "postgres://u:hun@ter2@h/db",
            "postgres://u:hunter2@h:port/db",
            "postgres://u:hunter2@h/db?sslmode=hunter2",
        ] {
            let error = Server::new(url, None, "tidemill").err().unwrap().to_string();
            assert!(error.starts_with("postgres://u@") && !error.contains("ter2"), "{error}");
        }
    }
}

//! A server: its address, connections to it, and what its errors mean.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use native_tls::{Certificate, Protocol, TlsConnector};
use postgres_native_tls::MakeTlsConnector;
use tidemill_config::redacted;
use tokio::{task::AbortHandle, time::timeout};
use tokio_postgres::{Client, Config, Error, Statement, config::SslMode, error::SqlState};

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
/// What an application may be called; the server cuts longer names.
const LONGEST_NAME: usize = 63;

/// How much of a certificate is looked at (libpq's `sslmode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verify {
    Nothing,
    Authority,
    Host,
}

/// A database of a server.
pub(crate) struct Server {
    config: Config,
    verify: Verify,
    ca: Option<PathBuf>,
    shown: String,
}

impl Server {
    /// The database at `url`. `application` is how the sessions are called in `pg_stat_activity`. Opens and connects
    /// nothing.
    pub(crate) fn new(url: &str, ca: Option<&Path>, application: &str) -> Result<Self, SinkError> {
        let shown = redacted(url);
        let address = Address::split(url);
        // The parser's own message may quote a part of a password that was taken for something else.
        let mut config: Config = address.plain.parse().map_err(|_| {
            SinkError::Fatal(format!(
                "{shown}: the url cannot be read: write postgres://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE, with the \
                 characters :/?#[]@% of user and password as %3A, %2F, %3F, %23, %5B, %5D, %40 and %25"
            ))
        })?;
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
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_LIMIT);
        }
        if config.get_application_name().is_none() {
            config.application_name(application.chars().take(LONGEST_NAME).collect::<String>());
        }
        Ok(Self { config, verify, ca, shown })
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
        let connector = builder.build().map_err(|error| SinkError::Fatal(format!("setting up TLS: {error}")))?;
        Ok(MakeTlsConnector::new(connector))
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Connection, SinkError> {
        let tls = self.tls()?;
        let (client, driver) = match timeout(CONNECT_LIMIT, self.config.connect(tls)).await {
            Ok(connected) => connected.map_err(|error| self.unreachable(error))?,
            Err(_) => {
                return Err(
                    self.transient("connecting to", "no answer: is the address right, and no firewall between?")
                );
            }
        };
        let ended = Arc::new(OnceLock::new());
        let last = ended.clone();
        let driver = tokio::spawn(async move {
            let said = match driver.await {
                Ok(()) => "the connection was closed".to_owned(),
                Err(error) => said(&error),
            };
            drop(last.set(said));
        });
        let connection = Connection { client, ended, driver: driver.abort_handle(), statements: HashMap::new() };
        let session = connection.client.batch_execute(SESSION).await.doing("setting up a session in");
        session.map_err(|failure| failure.explain(self))?;
        Ok(connection)
    }

    /// What keeps a connection from being made.
    fn unreachable(&self, error: Error) -> SinkError {
        let (why, at) = (said(&error), &self.shown);
        let fatal = |help: &str| SinkError::Fatal(format!("connecting to {at}: {why}: {help}"));
        match error.code() {
            Some(code) if *code == SqlState::INVALID_PASSWORD => fatal("check the user and the password of `url`"),
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
            None if why.contains("TLS handshake") => fatal(
                "`ca` is the file of the authority that signed the server's certificate, and the host of `url` is a name in it",
            ),
            None if why.contains("authentication") || why.contains("configuration") => {
                fatal("check the user, the password and the options of `url`")
            }
            None => self.transient("connecting to", format!("{why}: is the server running, and is the address right?")),
        }
    }

    /// Something that may pass.
    pub(super) fn transient(&self, doing: &str, cause: impl Into<String>) -> SinkError {
        SinkError::Transient { what: format!("{doing} {}", self.shown), cause: cause.into() }
    }
}

/// A session. One that is dropped is closed.
pub(crate) struct Connection {
    /// The client.
    pub(crate) client: Client,
    ended: Arc<OnceLock<String>>,
    driver: AbortHandle,
    statements: HashMap<String, Statement>,
}

impl Connection {
    /// Whether the server or the network has ended it.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
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

/// The parts of an address that the client's own parser does not take.
struct Address {
    plain: String,
    mode: Option<String>,
    ca: Option<String>,
}

impl Address {
    fn split(url: &str) -> Self {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut address = Self { plain: base.to_owned(), mode: None, ca: None };
        let mut others = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sslmode", mode)) => address.mode = Some(mode.to_owned()),
                Some(("sslrootcert", path)) => address.ca = Some(decoded(path)),
                _ => others.push(option),
            }
        }
        if !others.is_empty() {
            address.plain = format!("{base}?{}", others.join("&"));
        }
        address
    }
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
    fn a_wrong_address_is_told_without_its_password() {
        let odd =
            Server::new("postgres://u:hun?ter2@h/db", None, "tidemill").expect("a password may have any character");
        assert!(odd.shown().starts_with("postgres://u") && !odd.shown().contains("ter2"), "{}", odd.shown());
        for url in ["postgres://u:hunter2@h:port/db", "postgres://u:hunter2@h/db?sslmode=hunter2"] {
            let error = Server::new(url, None, "tidemill").err().unwrap().to_string();
            assert!(error.starts_with("postgres://u@h") && !error.contains("ter2"), "{error}");
        }
    }
}

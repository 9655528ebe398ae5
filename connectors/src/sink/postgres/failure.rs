//! What stops a piece of work on a server, and what is to be done about it.

use std::error::Error as _;

use tokio_postgres::{Error, error::SqlState};

use super::database::Server;
use crate::sink::SinkError;

/// What stops a piece of work on a server.
pub(crate) enum Failure {
    /// PostgreSQL or the network said no, while this was being done.
    Postgres(&'static str, Error),
    /// The protocol or the sink said no.
    Sink(SinkError),
    /// The table is not what it was when it was looked at.
    Changed,
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

/// `.doing("...")` on a result of PostgreSQL.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, Failure>;
}

impl<T> Doing<T> for Result<T, Error> {
    fn doing(self, what: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::Postgres(what, error))
    }
}

impl Doing<()> for std::io::Result<()> {
    fn doing(self, what: &'static str) -> Result<(), Failure> {
        self.map_err(|error| Failure::Sink(SinkError::io(what, &error)))
    }
}

/// What a statement that was prepared in another session, or by another client, has for its cause.
const POOLER: &str = ": is there a pooler in between, as PgBouncer in transaction mode? Each session has to be one client's alone: \
                      pool_mode = session, or connect to the server itself";
/// What a text that the database cannot keep, or hand out, has for its cause.
const ENCODING: &str = ": the database is not of ENCODING 'UTF8' and lacks this character, or holds bytes that are no text: name things in \
                        ASCII, or make the database with ENCODING 'UTF8'";

/// The whole of an error in one line.
pub(crate) fn said(error: &Error) -> String {
    if let Some(error) = error.as_db_error() {
        let more = [error.detail(), error.hint()].into_iter().flatten().map(|more| format!(" ({more})"));
        return error.message().to_owned() + &more.collect::<String>();
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// Whether an error is about the values of a row: another row may do. Gives the reason of the reject.
///
/// Class 22 is wrong values; a value that is too big for an index or nested too deep exceeds a limit (54000, 54001). That
/// bytes are no value of the column's type (22P03) is no row's fault: the column is of another type than it was. What is
/// left of the classes is broken constraints, and what functions and triggers raise, who may choose any code.
fn refusal(code: &SqlState) -> Option<&'static str> {
    match (&code.code()[..2], code.code()) {
        (_, "22P03") => None,
        ("22", _) => Some("value"),
        (_, "54000" | "54001") => Some("too_big"),
        // The connection, what the server cannot do, transactions, statements, logins, names and rights, limits, locks, the
        // operator, the system, its settings, foreign data, itself.
        (
            "08" | "0A" | "25" | "26" | "28" | "2B" | "2D" | "3B" | "3D" | "3F" | "40" | "42" | "53" | "54" | "55"
            | "57" | "58" | "72" | "F0" | "HV" | "XX",
            _,
        ) => None,
        _ => Some("constraint"),
    }
}

/// What the server has against a row.
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    /// Its own sentence.
    pub(crate) why: String,
    /// Whether the row may pass once other rows are there, or gone: a foreign key, a unique one, what a trigger raises.
    pub(crate) depends: bool,
    /// Whether a unique index has its value already.
    pub(crate) is_duplicate: bool,
}

impl Failure {
    /// What the server has against a row where the error is about its values; else the failure itself.
    pub(crate) fn refuses_row(self) -> Result<Refusal, Self> {
        match &self {
            Self::Postgres(_, error) => match error.code().and_then(refusal) {
                Some(reason) => {
                    // That a value is null or breaks a check is nobody else's doing.
                    let alone = error.code().is_some_and(|code| matches!(code.code(), "23502" | "23514"));
                    let is_duplicate = error.code() == Some(&SqlState::UNIQUE_VIOLATION);
                    Ok(Refusal { reason, why: said(error), depends: reason == "constraint" && !alone, is_duplicate })
                }
                None => Err(self),
            },
            _ => Err(self),
        }
    }

    /// The code, where the server gave one.
    pub(crate) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(_, error) => error.code(),
            _ => None,
        }
    }

    /// The transaction stood in another one's way: the same again may do.
    pub(crate) fn is_conflict(&self) -> bool {
        let conflicts = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
        self.code().is_some_and(|code| conflicts.contains(code))
    }

    /// The table that a statement was made for is another one now.
    pub(crate) fn is_change(&self) -> bool {
        // A plan whose result is of other types, bytes that are no value of the column's type, more or fewer of them, the
        // guard's division by zero, a column or a table that is gone.
        let codes = ["0A000", "22P03", "08P01", "22012", "42703", "42P01"];
        matches!(self, Self::Changed) || self.code().is_some_and(|code| codes.contains(&code.code()))
    }

    /// Whether the session may be used further, once its transaction is rolled back.
    pub(crate) fn keeps_session(&self) -> bool {
        match self {
            Self::Postgres(_, error) => {
                error.as_db_error().is_some_and(|error| !matches!(error.severity(), "FATAL" | "PANIC"))
            }
            Self::Sink(error) => !error.is_transient(),
            Self::Changed => true,
        }
    }

    /// The error as the job sees it.
    pub(crate) fn explain(self, server: &Server) -> SinkError {
        self.explain_with(server, None)
    }

    /// The same, with what the server said when it ended the session.
    pub(crate) fn explain_with(self, server: &Server, last_words: Option<&str>) -> SinkError {
        let (doing, error) = match self {
            Self::Sink(error) => return error,
            Self::Changed => {
                return server.transient("writing to", "the table was changed meanwhile: it is looked at again");
            }
            Self::Postgres(doing, error) => (doing, error),
        };
        let (said, at) = (said(&error), server.shown());
        let transient = |help: &str| server.transient(doing, format!("{said}{help}"));
        let fatal = |help: &str| SinkError::Fatal(format!("{doing} {at}: {said}{help}"));
        let Some(code) = error.code().map(SqlState::code) else {
            return match last_words.filter(|words| *words != said) {
                Some(words) => server.transient(doing, format!("{said}: {words}")),
                None => transient(""),
            };
        };
        match (&code[..2], code) {
            (_, "42501") => match said.split_once("permission denied for schema ") {
                Some((_, schema)) => {
                    let right = if doing.starts_with("making") { "CREATE" } else { "USAGE" };
                    fatal(&format!(": GRANT {right} ON SCHEMA {schema} to the user, or take another user"))
                }
                None => {
                    let function = error.as_db_error().and_then(|error| error.where_()?.lines().next());
                    let within = function.map(|function| format!(" (in {function})")).unwrap_or_default();
                    fatal(&format!("{within}: GRANT the user what it lacks, or take another user"))
                }
            },
            (_, "42P05" | "26000") => fatal(POOLER),
            (_, "22021" | "22P05") => fatal(ENCODING),
            (_, "42702") => fatal(": two columns of the query have this name: give each a name of its own by `AS`"),
            (_, "42601") => fatal(": a query is one statement, with nothing behind its `;`"),
            (_, "42P01" | "3F000") => fatal(": make it, or name another in the job"),
            (_, "42703") => {
                fatal(": the table has lost a column: ALTER TABLE ... ADD COLUMN it, or drop it in the job")
            }
            (_, "53100") => transient(": the server's disk is full: free some space there"),
            (_, "53300") => transient(": the server has no connection left: raise max_connections, or close others"),
            (_, "55P03") => transient(": another session holds a lock: see pg_stat_activity"),
            (_, "57014") => transient(": it took too long, or somebody cancelled it"),
            (_, "25006") => transient(
                ": this server is read-only, a standby perhaps: is there another one now? Behind a pooler another program may have left its session so",
            ),
            ("08" | "40" | "53" | "57" | "58", _) => transient(""),
            _ => fatal(&format!(" (SQLSTATE {code})")),
        }
    }
}

//! What one text may be: a name, a duration, a port, ...

use serde_yaml::Value;

use crate::{
    error::Problem,
    nearest::did_you_mean,
    tree::{Scalar as Text, UNRESOLVED, shown},
    types, units,
};

/// Kinds of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    /// Any text that is not empty.
    Text,
    /// Any text at all.
    AnyText,
    /// `[a-z][a-z0-9-]*`
    Name,
    /// The name of a step or source.
    Reference,
    /// A column that is there.
    Column,
    /// A column that is made.
    NewColumn,
    /// SQL.
    Expression,
    Glob,
    Path,
    /// `host:port`, port 1 to 65535.
    Connect,
    /// `host:port`, port 0 to 65535.
    Listen,
    Duration {
        min_ms: u64,
    },
    /// A duration, or `asap`.
    Trigger,
    Size {
        min: u64,
        max: u64,
    },
    Count {
        min: u64,
        max: u64,
    },
    /// A whole number, or a percentage: `100`, `5%`.
    Share,
    Flag,
    Type,
    /// One ASCII character.
    Character,
    /// One ASCII character, or several that are no letters and digits.
    Delimiter,
    /// One ASCII character, or `none`.
    Quote,
    /// What may stand between groups of digits.
    Thousands,
    Encoding,
    /// A level of logs, or a filter.
    Level,
    /// A table's name.
    Table,
    /// The address of a server of this scheme, with a password in it: no message shows it.
    Url(&'static str),
}

/// Encodings that people name, for "did you mean".
const ENCODINGS: [&str; 12] = [
    "utf-8",
    "utf-16le",
    "utf-16be",
    "iso-8859-1",
    "iso-8859-2",
    "iso-8859-15",
    "windows-1250",
    "windows-1251",
    "windows-1252",
    "shift_jis",
    "gbk",
    "euc-kr",
];
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Columns that Tidemill makes itself.
const EXTRA: &str = "_extra";
const OWN: &str = "_tidemill";

impl Scalar {
    /// What is wanted, for "expected ...".
    pub fn wanted(self) -> &'static str {
        match self {
            Self::Text | Self::AnyText => "a text",
            Self::Name => "a name like `web-logs`",
            Self::Reference => "the name of a step or source",
            Self::Column | Self::NewColumn => "the name of a column",
            Self::Expression => "an SQL expression",
            Self::Glob => "a glob like `*.json`",
            Self::Path => "a path",
            Self::Connect | Self::Listen => "an address like `127.0.0.1:7777`",
            Self::Duration { .. } => "a duration like `10s`",
            Self::Trigger => "a duration like `1s`, or `asap`",
            Self::Size { .. } => "a size like `64MiB`",
            Self::Count { .. } => "a whole number",
            Self::Share => "a whole number or a percentage like `5%`",
            Self::Flag => "`true` or `false`",
            Self::Type => "a type like `int64`",
            Self::Character | Self::Delimiter => "one ASCII character",
            Self::Quote => "one ASCII character, or `none`",
            Self::Thousands => "one of `.`, `,`, `'`, `_` and a space",
            Self::Encoding => "an encoding like `utf-8`",
            Self::Level => "a level like `info`",
            Self::Table => "the name of a table",
            Self::Url(_) => "the address of a server",
        }
    }

    /// In the tables of the docs.
    pub fn short(self) -> String {
        let name = match self {
            Self::Text | Self::AnyText => "text",
            Self::Name => "name",
            Self::Reference => "name of a step or source",
            Self::Column | Self::NewColumn => "column",
            Self::Expression => "SQL",
            Self::Glob => "glob",
            Self::Path => "path",
            Self::Connect | Self::Listen => "host:port",
            Self::Trigger => "duration or `asap`",
            Self::Share => "number or `N%`",
            Self::Flag => "`true`, `false`",
            Self::Type => "type",
            Self::Character => "character",
            Self::Delimiter => "characters",
            Self::Quote => "character or `none`",
            Self::Thousands => "character",
            Self::Encoding => "encoding",
            Self::Level => "level",
            Self::Table => "table",
            Self::Url(_) => "URL",
            Self::Count { .. } => return self.limits().replace("a whole number", "number"),
            Self::Duration { .. } if self.limits() == self.wanted() => "duration",
            Self::Size { .. } if self.limits() == self.wanted() => "size",
            Self::Duration { .. } | Self::Size { .. } => return self.limits().replace("a ", ""),
        };
        name.to_owned()
    }

    /// The value as serde takes it, or what is wrong. Messages about a substituted text do not hold it.
    pub fn check(self, scalar: &Text) -> Result<Value, Problem> {
        if scalar.text == UNRESOLVED {
            return Ok(Value::Null);
        }
        self.read(&scalar.text).map_err(|problem| {
            if scalar.substituted { hidden(scalar, &self.limits()) } else { taken_as_it_stands(scalar, problem) }
        })
    }

    /// What is wanted, with its limits.
    fn limits(self) -> String {
        match self {
            Self::Count { min, max } => format!("a whole number {}", range(min, max, |n| n.to_string())),
            Self::Size { min, max } if min > 1 || max < u64::MAX => format!("a size {}", range(min, max, bytes)),
            Self::Duration { min_ms } if min_ms > 1 => {
                format!("a duration {}", range(min_ms, u64::MAX, units::show_duration))
            }
            other => other.wanted().into(),
        }
    }

    fn read(self, text: &str) -> Result<Value, Problem> {
        if text.trim().is_empty()
            && !matches!(
                self,
                Self::Text | Self::AnyText | Self::Character | Self::Delimiter | Self::Quote | Self::Thousands
            )
        {
            return Err(Problem::new(format!("an empty text is not {}", self.wanted())));
        }
        match self {
            Self::Text if text.is_empty() => return Err(Problem::new("this text is empty")),
            Self::Text | Self::AnyText | Self::Expression | Self::Reference | Self::Column => {}
            Self::Name => name(text)?,
            Self::NewColumn => new_column(text)?,
            Self::Glob => drop(glob(text)?),
            Self::Path => path(text)?,
            Self::Connect => address(text, 1)?,
            Self::Listen => address(text, 0)?,
            Self::Duration { min_ms } => {
                if units::check_duration(text)?.as_millis() < u128::from(min_ms) {
                    let least = units::show_duration(min_ms);
                    return Err(Problem::new(format!("{} is too short: at least `{least}`", shown(text))));
                }
            }
            Self::Trigger if text == "asap" => {}
            Self::Trigger => {
                let every = units::check_duration(text).map_err(|p| p.maybe(did_you_mean(text, ["asap"])))?;
                if every.is_zero() {
                    return Err(Problem::new("the trigger must be longer than 0")
                        .help("as soon as there is data: `trigger: asap`"));
                }
            }
            Self::Size { min, max } => {
                let size = units::check_size(text)?;
                if size < min || size > max {
                    return Err(Problem::new(format!("{} is out of range: {}", shown(text), self.limits())));
                }
            }
            Self::Count { min, max } => return count(text, min, max),
            Self::Share => drop(units::check_share(text)?),
            Self::Flag => return flag(text),
            Self::Type => drop(types::check(text)?),
            Self::Character => return character(text),
            Self::Delimiter => return delimiter(text),
            Self::Quote if text == "none" => {}
            Self::Quote => return character(text),
            Self::Thousands => return thousands(text),
            Self::Encoding => encoding(text)?,
            Self::Level => level(text)?,
            Self::Table => table(text)?,
            Self::Url(scheme) => url(text, scheme)?,
        }
        Ok(Value::String(text.to_owned()))
    }
}

/// A wrong value that comes from outside. That it is empty may be told, and nothing else.
pub(crate) fn hidden(scalar: &Text, wanted: &str) -> Problem {
    let what = if scalar.text.trim().is_empty() { "`***` is empty" } else { "`***` is not what is wanted here" };
    Problem::new(format!("{what}: expected {wanted}"))
        .help("the value comes from the environment or a file and is not shown")
}

/// `${...}` in a place where nothing is substituted is the likelier mistake.
pub(crate) fn taken_as_it_stands(scalar: &Text, problem: Problem) -> Problem {
    if scalar.substituted || !scalar.text.contains("${") {
        return problem;
    }
    let what = format!("{} is taken as it stands here", shown(&scalar.text));
    Problem::new(what).help("`${...}` works in values of sources, sinks and the daemon's file only")
}

fn range(min: u64, max: u64, show: impl Fn(u64) -> String) -> String {
    if max >= usize::MAX as u64 {
        format!("of {} or more", show(min))
    } else {
        format!("from {} to {}", show(min), show(max))
    }
}

fn bytes(size: u64) -> String {
    [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .iter()
        .find(|(_, bits)| size > 0 && size.trailing_zeros() >= *bits)
        .map_or(format!("{size}B"), |(unit, bits)| format!("{}{unit}", size >> bits))
}

fn name(text: &str) -> Result<(), Problem> {
    /// Names become folders, tables' keys and labels.
    const LONGEST: usize = 63;
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.len() > LONGEST {
        return Err(Problem::new(format!("a name has at most {LONGEST} characters")));
    }
    if text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(rest) {
        return Ok(());
    }
    let lower = text.trim().to_lowercase();
    let slug: String = lower.chars().map(|c| if rest(c) { c } else { '-' }).collect();
    let slug = slug.trim_matches(|c: char| c == '-').trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let wrong = Problem::new(format!("{} is not a name", shown(text)));
    let rule = "names are lower-case letters, digits and `-`, and begin with a letter";
    Err(if slug.is_empty() { wrong.help(rule) } else { wrong.help(format!("{rule}: `{slug}`")) })
}

fn new_column(text: &str) -> Result<(), Problem> {
    if text == EXTRA || text.starts_with(OWN) {
        return Err(Problem::new(format!("{} is a name that Tidemill uses itself", shown(text)))
            .help("name the column otherwise: `_extra` and all that begins with `_tidemill` are reserved"));
    }
    Ok(())
}

pub(crate) fn glob(text: &str) -> Result<globset::GlobMatcher, Problem> {
    globset::GlobBuilder::new(text)
        .literal_separator(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| Problem::new(format!("{} is not a glob: {}", shown(text), error.kind())))
}

fn path(text: &str) -> Result<(), Problem> {
    if text.starts_with("~/") || text == "~" {
        return Err(Problem::new("`~` is not the home folder here")
            .help(format!("write `${{HOME}}{}`", text.trim_start_matches('~'))));
    }
    if text.contains('\0') {
        return Err(Problem::new("a path holds no zero byte"));
    }
    Ok(())
}

fn address(text: &str, min_port: u16) -> Result<(), Problem> {
    let wrong = || Problem::new(format!("{} is not an address", shown(text)));
    if let Some((scheme, rest)) = text.split_once("://") {
        // What stands before an `@` is a password, or nothing that a socket takes.
        let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest).trim_end_matches('/');
        return Err(wrong().help(format!("write host and port without `{scheme}://`: `{rest}`")));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        let help = if text.bytes().all(|b| b.is_ascii_digit()) {
            format!("write host and port: `127.0.0.1:{text}`")
        } else {
            format!("the port is missing: `{text}:7777`")
        };
        return Err(wrong().help(help));
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if host.is_empty() {
        return Err(
            wrong().help(format!("the host is missing: `127.0.0.1:{port}`, or `0.0.0.0:{port}` for all interfaces"))
        );
    }
    if bracketed.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_err()) {
        return Err(wrong().help("in the brackets stands an IPv6 address: `[::1]:7777`"));
    }
    if bracketed.is_none() && host.contains(':') {
        return Err(wrong().help("an IPv6 address stands in brackets: `[::1]:7777`"));
    }
    if host.contains(char::is_whitespace) || host.contains('/') {
        return Err(wrong().help("write host and port: `127.0.0.1:7777`"));
    }
    match port.parse::<u16>() {
        Ok(port) if port >= min_port => Ok(()),
        _ => Err(wrong().help(format!("a port is a number from {min_port} to 65535"))),
    }
}

fn count(text: &str, min: u64, max: u64) -> Result<Value, Problem> {
    let wanted = Scalar::Count { min, max }.limits();
    match units::whole(text) {
        Some(number) if number >= min && number <= max => Ok(Value::Number(number.into())),
        Some(_) => Err(Problem::new(format!("{} is out of range: {wanted}", shown(text)))),
        None => {
            let wrong = Problem::new(format!("{} is not a whole number", shown(text)));
            Err(wrong.help(format!("write {wanted}, like `1000` or `1_000_000`")))
        }
    }
}

fn flag(text: &str) -> Result<Value, Problem> {
    let meant = match text {
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        other => match other.to_lowercase().as_str() {
            "yes" | "on" | "y" | "1" => Some("did you mean `true`?".to_owned()),
            "no" | "off" | "n" | "0" => Some("did you mean `false`?".to_owned()),
            other => did_you_mean(other, ["true", "false"]),
        },
    };
    Err(Problem::new(format!("{} is neither `true` nor `false`", shown(text))).maybe(meant))
}

fn character(text: &str) -> Result<Value, Problem> {
    let text = if text == "\\t" { "\t" } else { text };
    let mut bytes = text.bytes();
    let meant = match text.to_lowercase().as_str() {
        "tab" => "write `\"\\t\"`",
        "comma" => "write `\",\"`",
        "semicolon" => "write `\";\"`",
        "pipe" => "write `\"|\"`",
        _ => "write one character, like `\";\"`, `\"|\"` or `\"\\t\"`",
    };
    match (bytes.next(), bytes.next()) {
        (Some(b'\n' | b'\r' | 0), None) => Err(Problem::new("a line break ends a record and cannot be used here")),
        (Some(byte), None) if byte.is_ascii() => Ok(Value::String(char::from(byte).to_string())),
        (None, _) => Err(Problem::new("an empty text is not one ASCII character").help(meant)),
        _ => Err(Problem::new(format!("{} is not one ASCII character", shown(text))).help(meant)),
    }
}

/// Longer ones are an accident.
const MAX_DELIMITER: usize = 8;

fn delimiter(text: &str) -> Result<Value, Problem> {
    let is_plain = |byte: u8| byte.is_ascii() && !byte.is_ascii_alphanumeric() && !matches!(byte, b'\n' | b'\r' | 0);
    let plain = text.replace("\\t", "\t");
    if (2..=MAX_DELIMITER).contains(&plain.len()) && plain.bytes().all(is_plain) {
        return Ok(Value::String(plain));
    }
    character(text).map_err(|problem| match plain.chars().count() {
        0 | 1 => problem,
        _ => problem.help("several characters are a delimiter too: up to eight of ASCII, and no letters or digits"),
    })
}

fn thousands(text: &str) -> Result<Value, Problem> {
    match text {
        "." | "," | "'" | "_" | " " | "\u{2019}" | "\u{a0}" | "\u{202f}" => Ok(Value::String(text.to_owned())),
        _ => Err(Problem::new(format!("{} does not stand between digits", shown(text)))
            .help("write `\".\"`, `\",\"`, `\"'\"`, `\"_\"` or `\" \"`")),
    }
}

fn encoding(text: &str) -> Result<(), Problem> {
    if encoding_rs::Encoding::for_label(text.as_bytes()).is_some() {
        return Ok(());
    }
    let meant =
        did_you_mean(text, ENCODINGS).unwrap_or_else(|| "labels are those of the web: `utf-8`, `windows-1252`".into());
    Err(Problem::new(format!("{} is not an encoding that is known", shown(text))).help(meant))
}

fn level(text: &str) -> Result<(), Problem> {
    // A filter, as `tracing` writes it: levels, and levels of targets.
    let is_level = |part: &str| LEVELS.contains(&part.rsplit_once('=').map_or(part, |(_, level)| level).trim());
    if text.contains('[') || text.split(',').all(is_level) {
        return Ok(());
    }
    let meant = if text.eq_ignore_ascii_case("warning") {
        Some("did you mean `warn`?".into())
    } else {
        did_you_mean(text, LEVELS)
    };
    let all = format!("levels are {}", LEVELS.map(|level| format!("`{level}`")).join(", "));
    Err(Problem::new(format!("{} is not a level of logs", shown(text))).help(meant.unwrap_or(all)))
}

fn url(text: &str, scheme: &str) -> Result<(), Problem> {
    let like = format!("write `{scheme}://USER@HOST:PORT/DATABASE`, with `:PASSWORD` after the user");
    let rest = text
        .split_once("://")
        .filter(|(given, _)| given.strip_prefix(scheme).is_some_and(|end| matches!(end, "" | "ql")));
    match rest {
        None => Err(Problem::new(format!("this address does not begin with `{scheme}://`")).help(like)),
        Some((_, "")) => Err(Problem::new("this address has no host").help(like)),
        Some(_) => Ok(()),
    }
}

fn table(text: &str) -> Result<(), Problem> {
    let lower = text.to_lowercase();
    if ["tidemill_", "sqlite_"].iter().any(|own| lower.starts_with(own)) || text.contains('\0') {
        return Err(Problem::new(format!("{} is a name that is in use", shown(text)))
            .help("tables that begin with `tidemill_` or `sqlite_` are reserved"));
    }
    Ok(())
}

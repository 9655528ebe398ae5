//! `${NAME}`, `${NAME:-default}`, `${file:PATH}` and `$$` in one text.
//!
//! Values come after parsing: whatever they hold, they cannot change the shape of the file. They are never shown.

use std::{io, path::Path};

use crate::{error::Problem, tree::shown};

/// Where substituted values come from: the process, or a test.
pub trait Environment {
    /// A variable; `None` where it is not set. An error is a sentence about the variable that does not hold its value.
    fn variable(&self, name: &str) -> Result<Option<String>, String>;

    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String> {
        if path.metadata()?.len() > MAX_FILE_BYTES {
            return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
        }
        std::fs::read_to_string(path)
    }
}

/// A file that is named by `${file:...}` holds a secret, not data.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The environment of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variable(&self, name: &str) -> Result<Option<String>, String> {
        match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(format!("the environment variable `{name}` is not UTF-8")),
        }
    }
}

/// For tests: variables by name; files are read from the disk.
impl Environment for std::collections::BTreeMap<String, String> {
    fn variable(&self, name: &str) -> Result<Option<String>, String> {
        Ok(self.get(name).cloned())
    }
}

/// The text with everything replaced, and whether a value from outside is in it.
pub(crate) fn resolve(text: &str, folder: &Path, env: &dyn Environment) -> Result<(String, bool), Problem> {
    let (mut out, mut rest, mut substituted) = (String::with_capacity(text.len()), text, false);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let Some(end) = after.find('}') else {
                return Err(Problem::new("a `${` without its `}`").help("write `${NAME}`; a `$` itself is `$$`"));
            };
            out.push_str(&value(&after[..end], folder, env)?);
            substituted = true;
            rest = &after[end + 1..];
        } else if rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            let name = rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default();
            return Err(Problem::new(format!("`${name}` is not replaced by anything"))
                .help(format!("write `${{{name}}}`; for the text itself, `$${name}`")));
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok((out, substituted))
}

/// Whether something would be put into a text.
pub(crate) fn has_values(text: &str) -> bool {
    text.replace("$$", "").contains("${")
}

fn value(inner: &str, folder: &Path, env: &dyn Environment) -> Result<String, Problem> {
    if let Some(path) = inner.strip_prefix("file:") {
        return file(path.trim(), folder, env);
    }
    let (name, default) = inner.split_once(":-").map_or((inner, None), |(name, default)| (name, Some(default)));
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(Problem::new(format!("{} is not the name of an environment variable", shown(name)))
            .help("write `${NAME}`, `${NAME:-default}` or `${file:PATH}`; a `$` itself is `$$`"));
    }
    if default.is_some_and(|default| default.contains("${")) {
        return Err(Problem::new("a default cannot hold another `${...}`"));
    }
    match (env.variable(name).map_err(Problem::new)?, default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Problem::new(format!("the environment variable `{name}` is not set"))
            .help(format!("set it, or give a default: `${{{name}:-default}}`"))),
    }
}

fn file(path: &str, folder: &Path, env: &dyn Environment) -> Result<String, Problem> {
    if path.is_empty() {
        return Err(Problem::new("`${file:}` names no file").help("write `${file:PATH}`"));
    }
    let mut text = env.read(&folder.join(path)).map_err(|error| {
        let cause = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file".into(),
            io::ErrorKind::InvalidData => "it is not UTF-8".into(),
            _ => error.to_string(),
        };
        Problem::new(format!("cannot read the file {}: {cause}", shown(path)))
            .help("the path of `${file:...}` is relative to the folder of this file")
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn resolved(text: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pw"), "s3cret\n\n").unwrap();
        std::fs::write(folder.path().join("dos"), "s3cret\r\n").unwrap();
        std::fs::write(folder.path().join("big"), "x".repeat(70_000)).unwrap();
        let env = BTreeMap::from([("A".to_owned(), "one".to_owned()), ("EMPTY".to_owned(), String::new())]);
        resolve(text, folder.path(), &env).map(|found| found.0).map_err(|problem| problem.what)
    }

    #[test]
    fn values_are_put_in() {
        for (text, expected) in [
            ("${A}", "one"),
            ("x${A}y${A}", "xoneyone"),
            ("${B:-two}", "two"),
            ("${B:-}", ""),
            ("${A:-two}", "one"),
            ("${EMPTY:-two}", "two"),
            ("${EMPTY}", ""),
            ("$${A} costs $$5", "${A} costs $5"),
            ("$1 and $", "$1 and $"),
            ("${file:pw}", "s3cret\n"),
            ("${file: dos}", "s3cret"),
        ] {
            assert_eq!(resolved(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_put_in_is_an_error() {
        for (text, expected) in [
            ("${B}", "variable `B` is not set"),
            ("${A", "without its `}`"),
            ("a$A", "`$A` is not replaced"),
            ("${}", "not the name"),
            ("${A-x}", "not the name"),
            ("${B:-${A}}", "cannot hold another"),
            ("${file:none}", "no such file"),
            ("${file:big}", "more than 65536 bytes"),
            ("${file:}", "names no file"),
        ] {
            let error = resolved(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_text_without_values_is_no_secret() {
        let env = BTreeMap::new();
        assert_eq!(resolve("a $$ b", Path::new(""), &env).unwrap(), ("a $ b".to_owned(), false));
        assert!(resolve("${A:-x}", Path::new(""), &env).unwrap().1);
    }
}

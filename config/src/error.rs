//! Errors as people see them: file, line, column, path of keys, the line itself, what is wrong, and what to do.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::At;

/// What is wrong, and what may help. Never holds a substituted value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub what: String,
    pub help: Vec<String>,
}

impl Problem {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), help: Vec::new() }
    }
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }
    /// Adds "did you mean" where there is a near name.
    pub fn maybe(mut self, help: Option<impl Into<String>>) -> Self {
        self.help.extend(help.map(Into::into));
        self
    }
}

/// One error in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The file, as it was named by the caller.
    pub file: PathBuf,
    /// The place; line 0 means the file as a whole.
    pub at: At,
    /// What is wrong.
    pub message: String,
    /// What may help, a sentence each.
    pub help: Vec<String>,
    /// The line as it stands in the file (`${...}` is not resolved in it), cut around the error, and where in it the
    /// caret stands.
    line: Option<(String, usize)>,
}

impl Error {
    pub(crate) fn new(file: &Path, text: &str, at: At, problem: Problem) -> Self {
        Self::in_lines(file, &lines_of(text), at, problem)
    }
    pub(crate) fn in_lines(file: &Path, lines: &[&str], at: At, problem: Problem) -> Self {
        let line = at.line.checked_sub(1).and_then(|index| lines.get(index)).map(|line| {
            let line = if line.len() > LONGEST_LINE { "(a line too long to show)" } else { line };
            window(&quoted(line), at.column.saturating_sub(1))
        });
        let help = problem.help.iter().map(|help| without_passwords(help)).collect();
        Self { file: file.to_owned(), at, message: without_passwords(&problem.what), help, line }
    }
    pub(crate) fn of_file(file: &Path, problem: Problem) -> Self {
        Self::new(file, "", At::default(), problem)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.at.line > 0 {
            write!(f, "{}:{}:", self.at.line, self.at.column)?;
        }
        if !self.at.path.is_empty() {
            write!(f, " {}:", self.at.path)?;
        }
        write!(f, " {}", self.message)?;
        if let Some((line, caret)) = &self.line {
            let number = self.at.line.to_string();
            write!(f, "\n  {number} | {line}\n  {:1$} | {2:3$}^", "", number.len(), "", caret)?;
        }
        self.help.iter().try_for_each(|help| write!(f, "\n  help: {help}"))
    }
}

/// All that is wrong, in the order of the files. Prints as its errors, an empty line between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub(crate) Vec<Error>);

impl Errors {
    /// The errors, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Error> {
        self.0.iter()
    }
    /// How many there are; never 0.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index > 0 { "\n\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

impl IntoIterator for Errors {
    type Item = Error;
    type IntoIter = std::vec::IntoIter<Error>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A later error (found by planning, say) in the form of a configuration error. The message's first line says what is
/// wrong, each further line is a help.
pub(crate) fn render(file: &Path, text: &str, at: &At, message: &str) -> String {
    let mut lines = message.lines();
    let what = lines.next().unwrap_or_default().to_owned();
    let help = lines.map(|line| line.trim_start().trim_start_matches("help: ").to_owned()).collect();
    Error::new(file, text, at.clone(), Problem { what, help }).to_string()
}

/// A longer line is not quoted: nobody reads it, and a file may hold an error for each of its words.
const LONGEST_LINE: usize = 10_000;

/// Lines as YAML counts them: a lone `\r` ends one too.
pub(crate) fn lines_of(text: &str) -> Vec<&str> {
    let whole = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let mut lines: Vec<&str> = whole.flat_map(|line| line.split('\r')).collect();
    lines.pop_if(|last| last.is_empty());
    lines
}

/// The line as it is quoted: one column per character, a tab that can be seen, and no secret that stands in it.
fn quoted(line: &str) -> String {
    let visible = |c: char| match c {
        '\t' => '\u{2192}',
        c if c.is_control() => ' ',
        c => c,
    };
    without_secret_values(&without_passwords(&line.chars().map(visible).collect::<String>()))
}

/// A `*` for each character of a password in a URL (`scheme://user:password@host`).
fn without_passwords(text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let starts: Vec<usize> = (0..chars.len()).filter(|&i| chars[i..].starts_with(&[':', '/', '/'])).collect();
    for start in starts {
        let rest = &chars[start + 3..];
        let end = rest.iter().position(|c| matches!(c, ' ' | '"' | '\'' | '/' | '`')).unwrap_or(rest.len());
        let Some(at) = rest[..end].iter().rposition(|c| *c == '@') else { continue };
        let Some(colon) = rest[..at].iter().position(|c| *c == ':') else { continue };
        hide(&mut chars[start + 3 + colon + 1..start + 3 + at]);
    }
    chars.into_iter().collect()
}

/// What a value of a key with one of these words in its name holds is nobody's business.
const SECRET_KEYS: [&str; 5] = ["password", "passwd", "pwd", "secret", "token"];

/// A `*` for each character of the value of such a key: `sasl.password: x`, or `password=x` of a URL or a list of options.
fn without_secret_values(line: &str) -> String {
    let mut chars: Vec<char> = line.chars().collect();
    let signs: Vec<usize> = (0..chars.len()).filter(|&i| matches!(chars[i], ':' | '=')).collect();
    for sign in signs {
        let is_option = chars[sign] == '=';
        let before = |c: &char| matches!(c, '{' | ',' | ' ') || is_option && "?&;\"'`".contains(*c);
        let begin = chars[..sign].iter().rposition(before).map_or(0, |at| at + 1);
        let key = chars[begin..sign].iter().collect::<String>().to_lowercase();
        if !SECRET_KEYS.iter().any(|word| key.contains(word)) || !is_option && chars.get(sign + 1) != Some(&' ') {
            continue;
        }
        let value = sign + if is_option { 1 } else { 2 };
        let closing = chars.get(value).copied().filter(|c| matches!(c, '"' | '\''));
        let begin = value + usize::from(closing.is_some());
        let after = if is_option { " &;\"'`" } else { ",}" };
        let ends = |c: &char| closing.map_or(after.contains(*c), |quote| *c == quote);
        let end = chars[begin..].iter().position(ends).map_or(chars.len(), |length| begin + length);
        hide(&mut chars[begin..end]);
    }
    chars.into_iter().collect()
}

/// `${...}` is the name of a secret, not the secret; and PASSWORD stands for one, where a message shows how to write it.
fn hide(secret: &mut [char]) {
    if !secret.contains(&'$') && !secret.iter().copied().eq("PASSWORD".chars()) {
        secret.iter_mut().filter(|c| **c != ' ').for_each(|c| *c = '*');
    }
}

/// A line is quoted up to this many characters around its error.
const MAX_QUOTED: usize = 110;
/// Characters that stay before the error where a line is cut.
const BEFORE: usize = 60;

fn window(line: &str, column: usize) -> (String, usize) {
    let chars: Vec<char> = line.chars().collect();
    if chars.len() <= MAX_QUOTED {
        return (line.trim_end().to_owned(), width(&chars[..column.min(chars.len())]));
    }
    let from = column.saturating_sub(BEFORE).min(chars.len() - MAX_QUOTED);
    let to = from + MAX_QUOTED;
    let (head, tail) = (if from > 0 { "..." } else { "" }, if to < chars.len() { "..." } else { "" });
    let text: String = chars[from..to].iter().collect();
    (format!("{head}{text}{tail}"), head.len() + width(&chars[from..column.clamp(from, to)]))
}

/// Columns on a terminal: wide characters before the error would move the caret away from it.
fn width(chars: &[char]) -> usize {
    chars.iter().map(|c| unicode_width::UnicodeWidthChar::width(*c).unwrap_or(0)).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize, path: &str) -> At {
        At { line, column, path: path.into() }
    }

    #[test]
    fn a_later_error_looks_like_a_configuration_error() {
        let text = "job: a\nsteps:\n  - trim: [agnt]\n";
        let shown = render(
            Path::new("a.yaml"),
            text,
            &at(3, 12, "steps[0].trim[0]"),
            "no column `agnt`\ndid you mean `agent`?",
        );
        let expected = "a.yaml:3:12: steps[0].trim[0]: no column `agnt`\n  3 |   - trim: [agnt]\n    |            ^\n  help: did you mean `agent`?";
        assert_eq!(shown, expected);
    }

    #[test]
    fn passwords_of_urls_are_hidden_and_the_caret_stays() {
        assert_eq!(quoted("  url: \"postgres://me:se@cret@host/db\""), "  url: \"postgres://me:*******@host/db\"");
        assert_eq!(quoted("url: postgres://me:${PW}@host"), "url: postgres://me:${PW}@host");
        assert_eq!(without_passwords("write postgres://USER:PASSWORD@HOST"), "write postgres://USER:PASSWORD@HOST");
        assert_eq!(quoted("url: http://host:80/a@b"), "url: http://host:80/a@b");
        assert_eq!(without_passwords("`tcp://a:b@c` is wrong"), "`tcp://a:*@c` is wrong");
    }

    #[test]
    fn values_of_keys_that_are_called_secret_are_hidden() {
        for (line, shown) in [
            ("  sasl.password: hun ter2", "  sasl.password: *** ****"),
            ("{ user: me, Password: hunter2, b: 1 }", "{ user: me, Password: *******, b: 1 }"),
            ("api_token: \"a, b\" # x", "api_token: \"** *\" # x"),
            ("secret: ${PW}", "secret: ${PW}"),
            ("schema: { token: string }", "schema: { token: ****** }"),
            ("url: 'host=h password=se,kret dbname=out'", "url: 'host=h password=******* dbname=out'"),
            ("url: \"password='a b' user=u\"", "url: \"password='* *' user=u\""),
            ("url: 'jdbc:mysql://h/db?user=u&Password=pw&x=1'", "url: 'jdbc:mysql://h/db?user=u&Password=**&x=1'"),
            ("url: h;pwd=${PW};a=b", "url: h;pwd=${PW};a=b"),
            ("password:", "password:"),
            ("password: ", "password: "),
        ] {
            assert_eq!(quoted(line), shown);
        }
    }

    #[test]
    fn long_lines_are_cut_around_the_error() {
        let line = format!("{}X{}", "a".repeat(300), "b".repeat(300));
        let (shown, caret) = window(&line, 300);
        assert_eq!(shown.chars().nth(caret), Some('X'));
        assert!(shown.len() <= MAX_QUOTED + 6, "{shown}");
        let (shown, caret) = window("\u{1f30a}\u{1f30a} x", 3);
        assert_eq!((shown.as_str(), caret), ("\u{1f30a}\u{1f30a} x", 5), "a wave is two columns wide");
    }
}

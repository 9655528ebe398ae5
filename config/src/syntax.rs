//! What a YAML parser says, in the words of people, and where the mistake is likelier than where it was noticed.

use crate::{error::Problem, tree::Place};

/// The place and the problem of a text that is not YAML. `info` are the parser's words, `place` is where it stopped.
pub(crate) fn explain(lines: &[&str], place: Place, info: &str) -> (Place, Problem) {
    if info.contains("tab") {
        let tab = first_tab(lines, place.line).unwrap_or(place);
        return (tab, Problem::new("not YAML: a tab").help("indent with spaces: YAML does not take tabs"));
    }
    if let Some((place, name)) = key_without_blank(lines, place, info) {
        let problem = Problem::new(format!("not YAML: no blank after the `:` of `{name}`"));
        return (place, problem.help(format!("write `{name}: ...`")));
    }
    if let Some((place, word)) = word_alone(lines, place, info) {
        let problem = Problem::new(format!("not YAML: `{word}` is a key without its `:`"));
        return (place, problem.help(format!("write `{word}:`, and a blank before its value")));
    }
    // The parser may stop behind the last line.
    let line = lines.get(place.line.saturating_sub(1)).copied().unwrap_or_default();
    let here = line.chars().nth(place.column.saturating_sub(1));
    if let Some(column) = unquoted_variable(line) {
        let place = Place { column, ..place };
        let problem = Problem::new("not YAML: a `${...}` without quotes inside `{ }` or `[ ]`");
        return (place, problem.help("quote it: `\"${NAME}\"`"));
    }
    let flow = info.contains("flow") || info.contains("':' indicator") || info.contains("node content");
    if let Some((opened, bracket)) = unclosed(lines, place).filter(|_| flow && here != Some(',')) {
        let close = if bracket == '[' { ']' } else { '}' };
        let problem = Problem::new(format!("not YAML: a `{bracket}` is opened and not closed by `{close}`"));
        return (opened, problem.help("if it is closed: a text with `{`, `}`, `[`, `]` or `,` in it needs quotes"));
    }
    let problem = Problem::new(format!("not YAML: {}", plain_words(info)));
    (place, problem.maybe(advice(info, line, here)))
}

/// The first tab before the text of a line, from line `from` on (a tab after a text is noticed at the text's begin).
fn first_tab(lines: &[&str], from: usize) -> Option<Place> {
    let (line, text) =
        lines.iter().enumerate().skip(from.saturating_sub(1)).find(|(_, text)| indent(text).contains('\t'))?;
    Some(Place { line: line + 1, column: indent(text).chars().take_while(|c| *c != '\t').count() + 1 })
}

fn indent(line: &str) -> &str {
    &line[..line.len() - line.trim_start().len()]
}

/// `job:a`: YAML takes it for a text, and stops at the next key.
fn key_without_blank<'a>(lines: &[&'a str], place: Place, info: &str) -> Option<(Place, &'a str)> {
    if !info.contains("mapping values") && !info.contains("simple key") {
        return None;
    }
    [place.line, place.line.saturating_sub(1)].into_iter().find_map(|line| {
        let text = lines.get(line.checked_sub(1)?)?;
        let column = indent(text).chars().count() + 1;
        let (name, value) = text.trim().split_once(':')?;
        (is_word(name) && value.starts_with(|c: char| !c.is_whitespace())).then_some((Place { line, column }, name))
    })
}

/// A line above that is one word, where a key was expected: `steps`.
fn word_alone<'a>(lines: &[&'a str], place: Place, info: &str) -> Option<(Place, &'a str)> {
    if !info.contains("simple key") {
        return None;
    }
    let (index, line) = lines.iter().enumerate().take(place.line).rev().find(|(_, line)| is_word(line.trim()))?;
    (index + 2 >= place.line)
        .then(|| (Place { line: index + 1, column: indent(line).chars().count() + 1 }, line.trim()))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// The column of a `${` that begins a text without quotes after `{`, `[`, `,` or `: `.
fn unquoted_variable(line: &str) -> Option<usize> {
    let mut all = line.match_indices("${").map(|found| found.0);
    let at = all.find(|at| line[..*at].trim_end().ends_with(['{', '[', ',', ':']))?;
    Some(line[..at].chars().count() + 1)
}

/// The innermost `{` or `[` before `place` that is not closed there: a reading of quotes and comments good enough for that.
fn unclosed(lines: &[&str], place: Place) -> Option<(Place, char)> {
    let mut open: Vec<(Place, char)> = Vec::new();
    for (index, line) in lines.iter().enumerate().take(place.line) {
        let mut quote = None;
        let mut before = ' ';
        for (column, c) in line.chars().enumerate() {
            if index + 1 == place.line && column + 1 >= place.column {
                break;
            }
            let begins = matches!(before, ' ' | '{' | '[' | ',');
            match (quote, c) {
                (Some(q), c) if q == c => quote = None,
                (Some(_), _) => {}
                (None, '"' | '\'') if begins => quote = Some(c),
                (None, '#') if before == ' ' => break,
                (None, '{' | '[') if begins || !open.is_empty() => {
                    open.push((Place { line: index + 1, column: column + 1 }, c));
                }
                (None, '}' | ']') => drop(open.pop()),
                _ => {}
            }
            before = c;
        }
    }
    open.pop()
}

/// The parser speaks of block collections and simple keys; these are the words of people.
fn plain_words(info: &str) -> &str {
    match info {
        "mapping values are not allowed in this context" => "a `: ` stands where no key can be",
        "simple key expect ':'" | "simple key expected" => "a key without its `:`",
        "while scanning a quoted scalar, found unexpected end of stream" => "a quote is opened and never closed",
        "invalid indentation in quoted scalar" => "a quote is opened and not closed before the next key",
        "invalid trailing content after double-quoted scalar" => "more text follows a text in quotes",
        "while parsing a quoted scalar, found unknown escape character" => "a `\\` in double quotes that is no escape",
        "while parsing node, found unknown anchor" => "an alias (`*name`) without an anchor (`&name`) before it",
        "while parsing a block mapping, did not find expected key" => "a key is expected here",
        "while parsing a block collection, did not find expected '-' indicator" => "a `- ` is expected here",
        "while parsing a node, did not find expected node content" => "a value is expected here",
        "misplaced bracket" => "a bracket is closed that nothing opened",
        "unexpected character: `%'" | "unexpected character: `@'" | "unexpected character: ``'" => {
            "no text begins with this character"
        }
        other => other,
    }
}

fn advice(info: &str, line: &str, here: Option<char>) -> Option<String> {
    let help = if info.contains("anchor") {
        let word = line.split_once('*').map_or("", |(_, rest)| rest);
        let word = word.split(|c: char| c.is_whitespace() || ",]}".contains(c)).next().unwrap_or_default();
        return Some(format!("a text that begins with `*` needs quotes: `\"*{word}\"`"));
    } else if matches!(here, Some('%' | '@' | '`')) {
        "a text that begins with `%`, `@` or a backtick needs quotes"
    } else if info.contains("escape") {
        "write `\\\\`, or use single quotes"
    } else if info.contains("trailing") {
        "quote the whole text: inside single quotes a `'` is written `''`"
    } else if info.contains("quoted scalar") {
        "close it; a quote inside single quotes is written `''`, inside double quotes `\\\"`"
    } else if info.contains("mapping values") {
        "a text with `: ` in it needs quotes; or this line is indented wrongly"
    } else if info.contains("simple key") {
        "write `key: value`, with a blank after the colon"
    } else if info.contains("bracket") {
        "remove it, or quote the text that it belongs to"
    } else if info.contains("node content") {
        "look for a comma or a bracket too many"
    } else if info.contains("indent") || info.contains("block") {
        "lines that belong together begin in the same column"
    } else {
        return None;
    };
    Some(help.to_owned())
}

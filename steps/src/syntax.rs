//! SQL's text to its syntax tree, within bounds. What is nested deeper than [`MAX_DEPTH`] is refused: everything after the
//! parser recurses. Long chains of AND and OR, which the parser makes as deep as they are long, become flat trees of the
//! same meaning, and `SIMILAR TO` the regular expression that it stands for.

use std::ops::ControlFlow;

use datafusion::{
    common::DataFusionError,
    sql::{
        parser::{DFParser, Statement},
        sqlparser::ast::{self, BinaryOperator, Expr, ExprWithAlias, Value, VisitMut, VisitorMut},
    },
};

use crate::expression::sentence;

/// An expression has at most this many levels: what DataFusion's recursion over them takes of a stack was measured, in a
/// debug build, at less than 100 KiB a level.
pub const MAX_DEPTH: usize = 500;

/// One expression or query has at most so many bytes: enough for ten thousand terms, and too few for a syntax tree that is
/// too deep to be looked at.
const MAX_BYTES: usize = 512 << 10;

/// One query reads at most so many tables and parts of a UNION: planning takes more than linear time in them.
const MAX_PARTS: usize = 250;

/// Chains of AND and OR that are longer than this become flat.
const LONG_CHAIN: usize = 16;

/// Parses one expression. The error is a sentence.
pub fn expression(text: &str) -> Result<ExprWithAlias, String> {
    is_short(text)?;
    let mut parsed = DFParser::parse_sql_into_expr(text).map_err(|error| unparsed(&error))?;
    guard(&mut parsed.expr)?;
    Ok(parsed)
}

/// The names of columns that are in double quotes: perhaps they are meant to be texts.
pub fn quoted(part: &Expr) -> Vec<String> {
    struct Quoted(Vec<String>);
    impl ast::Visitor for Quoted {
        type Break = ();
        fn pre_visit_expr(&mut self, part: &Expr) -> ControlFlow<()> {
            if let Expr::Identifier(ast::Ident { value, quote_style: Some('"'), .. }) = part {
                self.0.push(value.clone());
            }
            ControlFlow::Continue(())
        }
    }
    let mut found = Quoted(Vec::new());
    let _ = ast::Visit::visit(part, &mut found);
    found.0
}

/// Parses one SELECT. The error is a sentence.
pub fn query(text: &str) -> Result<Statement, String> {
    is_short(text)?;
    let mut statements = DFParser::parse_sql(text).map_err(|error| unparsed(&error))?;
    let mut statement = match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => statement,
        (None, _) => return Err("there is no query. Write `SELECT ... FROM batch`".into()),
        (_, false) => return Err("there are several statements; a step is one query".into()),
    };
    match &mut statement {
        Statement::Statement(inner) if matches!(inner.as_ref(), ast::Statement::Query(_)) => guard(inner.as_mut())?,
        _ => return Err("a step can only read: write `SELECT ... FROM batch`".into()),
    }
    Ok(statement)
}

fn is_short(text: &str) -> Result<(), String> {
    if text.len() <= MAX_BYTES {
        return Ok(());
    }
    Err(format!(
        "it has {} bytes, and at most {MAX_BYTES} are taken. Values in such numbers belong into the table of a `lookup`",
        text.len()
    ))
}

fn unparsed(error: &DataFusionError) -> String {
    let text = sentence(error);
    if text.starts_with("recursion limit exceeded") {
        return "brackets and functions are nested too deeply. Compute parts of it in steps before".into();
    }
    text
}

fn guard(tree: &mut impl VisitMut) -> Result<(), String> {
    match tree.visit(&mut Guard::default()) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(message) => Err(message),
    }
}

#[derive(Default)]
struct Guard {
    depth: usize,
    parts: usize,
}

impl Guard {
    fn part(&mut self, count: usize) -> ControlFlow<String> {
        self.parts += count;
        if self.parts <= MAX_PARTS {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(format!(
            "the query has more than {MAX_PARTS} tables and parts of a UNION, which are no more planned. Make several steps of it"
        ))
    }
}

impl VisitorMut for Guard {
    type Break = String;

    fn pre_visit_query(&mut self, query: &mut ast::Query) -> ControlFlow<String> {
        let (mut count, mut part) = (0, query.body.as_ref());
        while let ast::SetExpr::SetOperation { left, .. } = part {
            (count, part) = (count + 1, left.as_ref());
        }
        self.part(count)
    }

    fn pre_visit_relation(&mut self, _: &mut ast::ObjectName) -> ControlFlow<String> {
        self.part(1)
    }

    fn pre_visit_expr(&mut self, part: &mut Expr) -> ControlFlow<String> {
        flatten(part);
        let mut chain = 0;
        let mut left: &Expr = part;
        while let Expr::BinaryOp { left: next, .. } = left {
            (chain, left) = (chain + 1, next.as_ref());
        }
        self.depth += 1;
        if self.depth + chain > MAX_DEPTH {
            dismantle(part);
            return ControlFlow::Break(format!(
                "it is nested more than {MAX_DEPTH} levels deep, counting each operator of a chain like `a + b + c`. \
                 Compute parts of it in steps before"
            ));
        }
        match similar_to(part) {
            Ok(()) => ControlFlow::Continue(()),
            Err(message) => ControlFlow::Break(message),
        }
    }

    fn post_visit_expr(&mut self, _: &mut Expr) -> ControlFlow<String> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

fn nothing() -> Expr {
    Expr::Value(Value::Null.into())
}

/// Drops a long chain without recursion.
fn dismantle(part: &mut Expr) {
    let mut rest = std::mem::replace(part, nothing());
    while let Expr::BinaryOp { left, .. } = rest {
        rest = *left;
    }
}

/// `a OR b OR c OR d` as `(a OR b) OR (c OR d)`. Terms keep their order, and with it which of them are looked at.
fn flatten(part: &mut Expr) {
    let Expr::BinaryOp { op, .. } = part else { return };
    if !matches!(op, BinaryOperator::And | BinaryOperator::Or) {
        return;
    }
    let (chain, mut length, mut left) = (op.clone(), 0, &*part);
    while let Expr::BinaryOp { left: next, op, .. } = left
        && *op == chain
    {
        (length, left) = (length + 1, next.as_ref());
    }
    if length < LONG_CHAIN {
        return;
    }
    let (mut terms, mut rest) = (Vec::with_capacity(length + 1), std::mem::replace(part, nothing()));
    loop {
        match rest {
            Expr::BinaryOp { left, op, right } if op == chain => {
                terms.push(*right);
                rest = *left;
            }
            first => {
                terms.push(first);
                break;
            }
        }
    }
    terms.reverse();
    *part = joined(&chain, terms);
}

fn joined(op: &BinaryOperator, mut terms: Vec<Expr>) -> Expr {
    let right = terms.split_off(terms.len().div_ceil(2));
    match (terms.len(), right.len()) {
        (1, 0) => terms.pop().unwrap_or_else(nothing),
        _ => Expr::BinaryOp { left: Box::new(joined(op, terms)), op: op.clone(), right: Box::new(joined(op, right)) },
    }
}

/// `a SIMILAR TO 'pattern'` as `a ~ 'regex'`: DataFusion takes the pattern for a regular expression, which it is not.
fn similar_to(part: &mut Expr) -> Result<(), String> {
    let Expr::SimilarTo { negated, expr, pattern, escape_char } = part else { return Ok(()) };
    let escape = match escape_char.as_ref().map(|escape| &escape.value) {
        None => Some('\\'),
        Some(Value::SingleQuotedString(text)) if text.chars().count() <= 1 => text.chars().next(),
        Some(_) => return Err("ESCAPE takes one letter: write `ESCAPE '#'`".into()),
    };
    let Expr::Value(ast::ValueWithSpan { value: Value::SingleQuotedString(text), .. }) = pattern.as_ref() else {
        return Err(
            "SIMILAR TO takes a pattern in quotes: `a SIMILAR TO '(x|y)%'`. For patterns out of columns there are \
             `LIKE` and `~`, which takes regular expressions"
                .into(),
        );
    };
    let regex = regex_of(text, escape)?;
    let op = if *negated { BinaryOperator::PGRegexNotMatch } else { BinaryOperator::PGRegexMatch };
    let left = std::mem::replace(expr, Box::new(nothing()));
    *part = Expr::BinaryOp {
        // Brackets, since what stands on its left may be anything.
        left: Box::new(Expr::Nested(left)),
        op,
        right: Box::new(Expr::Value(Value::SingleQuotedString(regex).into())),
    };
    Ok(())
}

/// The regular expression of a pattern as SQL's standard has it: all of the text must match, `%` and `_` are as in LIKE, and
/// `| * + ? {} () []` as in regular expressions; all else stands for itself.
fn regex_of(pattern: &str, escape: Option<char>) -> Result<String, String> {
    let mut regex = String::from("^(?s:");
    // How many brackets are open: two in a class like `[[:alpha:]]`.
    let (mut letters, mut open) = (pattern.chars().peekable(), 0_u8);
    let literal = |regex: &mut String, letter: char| {
        if letter.is_ascii_punctuation() {
            regex.push('\\');
        }
        regex.push(letter);
    };
    while let Some(letter) = letters.next() {
        match letter {
            _ if Some(letter) == escape => match letters.next() {
                Some(next) => literal(&mut regex, next),
                None => return Err(format!("the pattern '{pattern}' ends with its escape `{letter}`")),
            },
            ']' if open > 0 => {
                open -= 1;
                regex.push(letter);
            }
            '[' if open == 1 && letters.peek() == Some(&':') => {
                open = 2;
                regex.push(letter);
            }
            '^' | '-' | ':' if open > 0 => regex.push(letter),
            _ if open > 0 => literal(&mut regex, letter),
            '[' => {
                open = 1;
                regex.push(letter);
            }
            '%' => regex.push_str(".*"),
            '_' => regex.push('.'),
            '|' | '*' | '+' | '?' | '{' | '}' | '(' | ')' => regex.push(letter),
            _ => literal(&mut regex, letter),
        }
    }
    regex.push_str(")$");
    Ok(regex)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_that_of_the_standard() {
        let is_similar = |text: &str, pattern: &str| {
            regex::Regex::new(&regex_of(pattern, Some('\\')).unwrap()).unwrap().is_match(text)
        };
        for (text, pattern, expected) in [
            ("abc", "(a|b)%", true),
            ("xa_cx", "a_c", false),
            ("abc", "a_c", true),
            ("abc", "abc", true),
            ("xabc", "abc", false),
            ("abc", "%(b|d)%", true),
            ("abc", "(b|c)%", false),
            ("a\nc", "a_c", true),
            ("a\nbbc", "a%c", true),
            ("a.c", "a.c", true),
            ("abc", "a.c", false),
            ("a%c", "a\\%c", true),
            ("abc", "a\\%c", false),
            ("^a$", "^a$", true),
            ("2015", "[0-9]{4}", true),
            ("20155", "[0-9]{4}", false),
            ("x", "[^0-9]", true),
            ("a1", "[[:alpha:]][[:digit:]]", true),
            ("a|b", "a\\|b", true),
            ("", "%", true),
            ("ab", "a|ab", true),
        ] {
            assert_eq!(is_similar(text, pattern), expected, "{text} SIMILAR TO {pattern}");
        }
        assert!(regex_of("a\\", Some('\\')).is_err());
        assert_eq!(regex_of("a\\", None).unwrap(), "^(?s:a\\\\)$");
    }

    fn depth(part: &Expr) -> usize {
        match part {
            Expr::BinaryOp { left, right, .. } => 1 + depth(left).max(depth(right)),
            _ => 1,
        }
    }

    #[test]
    fn long_chains_are_flat_and_keep_their_order() {
        crate::stack::apart("test", || {
            let terms: Vec<String> = (0..5000).map(|term| format!("v = {term}")).collect();
            let parsed = expression(&terms.join(" OR ")).unwrap();
            assert!(depth(&parsed.expr) < 20, "{}", depth(&parsed.expr));
            assert_eq!(parsed.expr.to_string(), terms.join(" OR "));
            let mixed = expression("a AND b OR c AND d").unwrap();
            assert_eq!(mixed.expr.to_string(), "a AND b OR c AND d");
        })
        .unwrap();
    }

    #[test]
    fn what_is_too_deep_is_an_error() {
        crate::stack::apart("test", || {
            let chain = |operator: &str, terms: usize| vec!["1"; terms].join(operator);
            assert!(expression(&chain(" + ", 100)).is_ok());
            for (text, message) in [
                (chain(" + ", 1000), "nested more than 500 levels"),
                (chain("+", 200_000), "nested more than 500 levels"),
                (chain(" + ", 200_000), "bytes"),
                (format!("{}1{}", "(".repeat(1000), ")".repeat(1000)), "too deeply"),
                (format!("v{}", " IS NULL".repeat(50_000)), "nested more than 500 levels"),
                (format!("v{}", "::int".repeat(50_000)), "nested more than 500 levels"),
                ("- ".repeat(100_000), "too deeply"),
                (format!("{} v", "NOT ".repeat(100_000)), "end of expression"),
            ] {
                let error = expression(&text).map(|_| ()).unwrap_err();
                assert!(error.contains(message), "{}: {error}", &text[..20]);
            }
            assert!(query(&format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(20_000))).unwrap_err().contains("UNION"));
            assert!(
                query(&format!("SELECT 1 FROM b{}", " CROSS JOIN b".repeat(20_000))).unwrap_err().contains("tables")
            );
        })
        .unwrap();
    }
}

//! What is wrong with an expression whatever its rows are: a part without columns that fails, a pattern that is none, a
//! format, a unit or the name of a part of a date that a function does not know. Found while a job is planned, it is a
//! mistake in the job's file; found for each row, it would send them all to the dead letters.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::Schema,
};
use chrono::format::{Item, StrftimeItems};
use datafusion::{
    common::{
        DFSchema, DataFusionError, ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::context::ExecutionProps,
    logical_expr::{
        BinaryExpr, Expr, Operator, Volatility, expr::ScalarFunction,
        physical_planning_context::PhysicalPlanningContext,
    },
    physical_expr::create_physical_expr,
};
use regex::{Regex, RegexBuilder};

use crate::{expression::sentence, stack};

/// A compiled pattern takes at most so many bytes.
const MAX_REGEX_BYTES: usize = 10 << 20;

/// A regular expression with PostgreSQL's flags. The error is a sentence.
pub fn regex(pattern: &str, flags: &str) -> Result<Regex, String> {
    if let Some(flag) = flags.chars().find(|flag| !"imsUxR".contains(*flag)) {
        return Err(format!("`{flag}` is no flag of a regular expression: there are i, m, s, U, x and R"));
    }
    let whole = if flags.is_empty() { pattern.to_owned() } else { format!("(?{flags}){pattern}") };
    RegexBuilder::new(&whole).size_limit(MAX_REGEX_BYTES).build().map_err(|error| {
        let text = error.to_string();
        // The library draws a picture of several lines, whose last says what is wrong.
        let reason = text.rsplit("error: ").next().unwrap_or(&text).trim().to_owned();
        format!("`{}` is no regular expression: {reason}", shown(pattern))
    })
}

/// At most this much of a constant is shown in a message.
const SHOWN: usize = 100;

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Puts values in the place of all parts that have no columns. `logical` has its types already. The error is a sentence:
/// such a part fails, and with it each row.
pub fn fold(logical: Expr) -> Result<Expr, String> {
    let mut wrong = None;
    let folded = logical.transform_up(|part| {
        if wrong.is_some() || !is_constant(&part) {
            return Ok(Transformed::no(part));
        }
        match value(&part) {
            Ok(Some(value)) => Ok(Transformed::yes(Expr::Literal(value, None))),
            Ok(None) => Ok(Transformed::no(part)),
            Err(error) => {
                wrong = Some(format!("it fails whatever the row is: {error}"));
                Ok(Transformed::no(part))
            }
        }
    });
    match (wrong, folded) {
        (Some(wrong), _) => Err(wrong),
        (None, Ok(folded)) => Ok(folded.data),
        (None, Err(error)) => Err(sentence(&error)),
    }
}

/// Whether a part is computed from constants alone, in the same way each time.
fn is_constant(part: &Expr) -> bool {
    let can_be = match part {
        Expr::BinaryExpr(_)
        | Expr::Like(_)
        | Expr::Not(_)
        | Expr::IsNotNull(_)
        | Expr::IsNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::IsNotUnknown(_)
        | Expr::Negative(_)
        | Expr::Between(_)
        | Expr::Case(_)
        | Expr::Cast(_)
        | Expr::TryCast(_)
        | Expr::InList(_) => true,
        Expr::ScalarFunction(function) => function.func.signature().volatility == Volatility::Immutable,
        _ => false,
    };
    if !can_be {
        return false;
    }
    let mut all = true;
    let _ = part.apply_children(|child| {
        all &= matches!(child, Expr::Literal(..));
        Ok(if all { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    all
}

/// The value of a constant part; `None`: it cannot be computed by itself.
fn value(part: &Expr) -> Result<Option<ScalarValue>, String> {
    let schema = DFSchema::empty();
    let Ok(physical) = physical(part, &schema) else { return Ok(None) };
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options);
    let row = row.map_err(|error| error.to_string())?;
    let computed = stack::caught(|| {
        let values = physical.evaluate(&row)?.into_array(1)?;
        ScalarValue::try_from_array(&values, 0)
    })?;
    computed.map(Some).map_err(|error| sentence(&error))
}

fn physical(
    part: &Expr,
    schema: &DFSchema,
) -> Result<Arc<dyn datafusion::physical_expr::PhysicalExpr>, DataFusionError> {
    create_physical_expr(part, schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())
}

/// Looks at the constants that patterns and functions of `logical` have, whose types are there already. The error is a
/// sentence.
pub fn check(logical: &Expr, schema: &DFSchema) -> Result<(), String> {
    let mut wrong = None;
    let _ = logical.apply(|part| {
        let checked = match part {
            Expr::BinaryExpr(BinaryExpr { op, right, .. }) => pattern(*op, right),
            Expr::ScalarFunction(function) => arguments(function).and_then(|()| try_function(part, function, schema)),
            _ => Ok(()),
        };
        Ok(match checked {
            Ok(()) => TreeNodeRecursion::Continue,
            Err(message) => {
                wrong = Some(message);
                TreeNodeRecursion::Stop
            }
        })
    });
    wrong.map_or(Ok(()), Err)
}

fn pattern(op: Operator, right: &Expr) -> Result<(), String> {
    let flags = match op {
        Operator::RegexMatch | Operator::RegexNotMatch => "",
        Operator::RegexIMatch | Operator::RegexNotIMatch => "i",
        _ => return Ok(()),
    };
    text(right).map_or(Ok(()), |pattern| regex(pattern, flags).map(drop))
}

/// The text that an argument is, where it is a constant.
fn text(part: &Expr) -> Option<&str> {
    match part {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        Expr::Cast(cast) => text(&cast.expr),
        _ => None,
    }
}

/// Patterns and formats.
fn arguments(function: &ScalarFunction) -> Result<(), String> {
    let argument = |index: usize| function.args.get(index).and_then(text);
    let is_regex = |flags: usize| match argument(1) {
        // `g` is one of `regexp_replace` alone, and means how often.
        Some(pattern) => regex(pattern, &argument(flags).unwrap_or_default().replace('g', "")).map(drop),
        None => Ok(()),
    };
    match function.func.name() {
        "regexp_match" if argument(2).is_some_and(|flags| flags.contains('g')) => {
            Err("`regexp_match` gives the first match, and has no flag `g`".into())
        }
        "regexp_like" | "regexp_match" => is_regex(2),
        "regexp_count" | "regexp_replace" => is_regex(3),
        "regexp_instr" => is_regex(5),
        "to_char" => argument(1).map_or(Ok(()), |format| strftime(format, true)),
        "to_timestamp"
        | "to_timestamp_seconds"
        | "to_timestamp_millis"
        | "to_timestamp_micros"
        | "to_timestamp_nanos"
        | "to_date"
        | "to_time"
        | "to_unixtime"
        | "to_local_time" => {
            function.args.iter().skip(1).filter_map(text).try_for_each(|format| strftime(format, false))
        }
        _ => Ok(()),
    }
}

/// Whether a text is a format of dates and times.
fn strftime(format: &str, is_written: bool) -> Result<(), String> {
    use std::fmt::Write;
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(format!("`{format}` is no strftime format: it has an unknown `%` sequence"));
    }
    let sample = chrono::DateTime::<chrono::Utc>::default().format_with_items(items.iter());
    if is_written && write!(String::new(), "{sample}").is_err() {
        return Err(format!("`{format}` has a `%` sequence that can be read, not written"));
    }
    Ok(())
}

/// A function with a constant argument that fails without a row: an unknown part of a date, an unknown unit.
fn try_function(part: &Expr, function: &ScalarFunction, schema: &DFSchema) -> Result<(), String> {
    // `random()` needs its row.
    if part.is_volatile() || !function.args.iter().any(|argument| matches!(argument, Expr::Literal(..))) {
        return Ok(());
    }
    let Ok(physical) = physical(part, schema) else { return Ok(()) };
    let none = RecordBatch::new_empty(Arc::clone(schema.inner()));
    let tried = stack::caught(|| physical.evaluate(&none).map(drop));
    let failed = match tried {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => sentence(&error),
        Err(panic) => panic,
    };
    Err(format!("it fails whatever the row is: {failed}"))
}

//! SQL's timestamps are microseconds, as the job's are. DataFusion's are nanoseconds, which end in 1677 and 2262: so casts,
//! and what a timestamp is compared with, are given the job's unit before types are brought together.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, TimestampMicrosecondArray},
    datatypes::{DataType, FieldRef, TimeUnit, TimestampMicrosecondType},
};
use datafusion::{
    common::{
        DFSchema, DataFusionError, Result, ScalarValue,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    logical_expr::{
        Between, BinaryExpr, Cast, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs,
        ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TryCast, Volatility,
        expr::{InList, ScalarFunction},
        expr_rewriter::NamePreserver,
        utils::merge_schema,
    },
};

/// Whether a type is an instant that microseconds can tell.
fn is_instant(kind: &DataType) -> bool {
    matches!(kind, DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Millisecond | TimeUnit::Second, _))
}

fn is_text_or_date(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Date32 | DataType::Date64)
}

/// An expression whose timestamps are microseconds.
pub fn in_micros(logical: Expr, schema: &DFSchema) -> Result<Expr, DataFusionError> {
    logical.transform_up(|part| Ok(rewrite(part, schema))).data()
}

/// The same for all expressions of a query. Names of columns stay as they are.
pub fn plan_in_micros(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    plan.transform_up_with_subqueries(|node| {
        let mut schema = merge_schema(&node.inputs());
        if let LogicalPlan::TableScan(scan) = &node {
            schema.merge(&scan.projected_schema);
        }
        let names = NamePreserver::new(&node);
        let node = node.map_expressions(|part| {
            let name = names.save(&part);
            let part = part.transform_up(|part| Ok(rewrite(part, &schema)))?;
            Ok(part.update_data(|part| name.restore(part)))
        })?;
        // Columns may have another type now.
        node.transform_data(|node| {
            let recomputed = node.clone().recompute_schema();
            Ok(recomputed.map_or_else(|_| Transformed::no(node), Transformed::yes))
        })
    })
    .data()
}

fn rewrite(part: Expr, schema: &DFSchema) -> Transformed<Expr> {
    match part {
        Expr::Cast(Cast { expr, field }) if is_nanos(field.data_type()) => {
            Transformed::yes(Expr::Cast(Cast::new(expr, micros(field.data_type()))))
        }
        Expr::TryCast(TryCast { expr, field }) if is_nanos(field.data_type()) => {
            Transformed::yes(Expr::TryCast(TryCast::new(expr, micros(field.data_type()))))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(op) => {
            let kind = kind_of([left.as_ref(), right.as_ref()], schema);
            let compared = |part: Box<Expr>| Box::new(brought(*part, kind.as_ref(), schema));
            let is_changed = kind.is_some();
            let part = Expr::BinaryExpr(BinaryExpr { left: compared(left), op, right: compared(right) });
            if is_changed { Transformed::yes(part) } else { Transformed::no(part) }
        }
        Expr::Between(Between { expr, negated, low, high }) => {
            let kind = kind_of([expr.as_ref(), low.as_ref(), high.as_ref()], schema);
            let is_changed = kind.is_some();
            let compared = |part: Box<Expr>| Box::new(brought(*part, kind.as_ref(), schema));
            let (expr, low, high) = (compared(expr), compared(low), compared(high));
            let part = Expr::Between(Between { expr, negated, low, high });
            if is_changed { Transformed::yes(part) } else { Transformed::no(part) }
        }
        Expr::InList(InList { expr, list, negated }) => {
            let kind = kind_of(std::iter::once(expr.as_ref()).chain(&list), schema);
            let is_changed = kind.is_some();
            let list = list.into_iter().map(|part| brought(part, kind.as_ref(), schema)).collect();
            let part = Expr::InList(InList { expr: Box::new(brought(*expr, kind.as_ref(), schema)), list, negated });
            if is_changed { Transformed::yes(part) } else { Transformed::no(part) }
        }
        Expr::ScalarFunction(ScalarFunction { func, mut args }) if args.len() == 1 => {
            match (unit(func.name()), args[0].get_type(schema)) {
                (Some(unit), Ok(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)) => {
                    Transformed::yes(cast(args.remove(0), DataType::Timestamp(unit, None)))
                }
                (Some(TimeUnit::Microsecond), Ok(kind)) if func.name() == "to_timestamp" && kind.is_integer() => {
                    // Of a whole number it makes seconds.
                    let seconds = cast(args.remove(0), DataType::Int64);
                    let seconds = cast(seconds, DataType::Timestamp(TimeUnit::Second, None));
                    Transformed::yes(cast(seconds, DataType::Timestamp(TimeUnit::Microsecond, None)))
                }
                _ => Transformed::no(Expr::ScalarFunction(ScalarFunction { func, args })),
            }
        }
        other => Transformed::no(other),
    }
}

fn is_comparison(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// The unit of what a function makes of a text.
fn unit(function: &str) -> Option<TimeUnit> {
    Some(match function {
        "to_timestamp" | "to_timestamp_micros" => TimeUnit::Microsecond,
        "to_timestamp_millis" => TimeUnit::Millisecond,
        "to_timestamp_seconds" => TimeUnit::Second,
        _ => return None,
    })
}

fn is_nanos(kind: &DataType) -> bool {
    matches!(kind, DataType::Timestamp(TimeUnit::Nanosecond, _))
}

fn micros(kind: &DataType) -> DataType {
    match kind {
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        other => other.clone(),
    }
}

fn cast(part: Expr, kind: DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(part), kind))
}

/// The type that parts are compared in, where one is an instant and another a text or a date.
fn kind_of<'a>(parts: impl IntoIterator<Item = &'a Expr>, schema: &DFSchema) -> Option<DataType> {
    let kinds: Vec<DataType> = parts.into_iter().filter_map(|part| part.get_type(schema).ok()).collect();
    let instant = kinds.iter().find(|kind| is_instant(kind))?;
    kinds.iter().any(is_text_or_date).then(|| micros(instant))
}

/// A text or a date as an instant.
fn brought(part: Expr, kind: Option<&DataType>, schema: &DFSchema) -> Expr {
    match (kind, part.get_type(schema)) {
        (Some(kind), Ok(before)) if is_text_or_date(&before) => match (kind, before) {
            // A date is its midnight in UTC; it has no zone to be cast from.
            (DataType::Timestamp(unit, zone), DataType::Date32 | DataType::Date64) if zone.is_some() => {
                cast(cast(part, DataType::Timestamp(*unit, None)), kind.clone())
            }
            _ => cast(part, kind.clone()),
        },
        _ => part,
    }
}

/// A function of DataFusion that takes timestamps in any unit and computes in nanoseconds, or would have them cast to
/// nanoseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct InMicros {
    inner: Arc<ScalarUDF>,
    signature: Signature,
    aliases: Vec<String>,
}

/// The calendar repeats itself after so many microseconds: 400 years, whole weeks.
const CYCLE: i64 = 146_097 * 86_400 * 1_000_000;

/// Nanoseconds are surely enough for instants that are nearer to 1970 than this: 200 years.
const NEAR: i64 = 200 * 365 * 86_400 * 1_000_000;

impl InMicros {
    /// The functions of DataFusion that are meant.
    pub const NAMES: [&str; 2] = ["date_trunc", "to_char"];

    pub fn new(inner: Arc<ScalarUDF>) -> Self {
        let aliases = inner.aliases().to_vec();
        Self { inner, signature: Signature::user_defined(Volatility::Immutable), aliases }
    }
}

impl ScalarUDFImpl for InMicros {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn aliases(&self) -> &[String] {
        &self.aliases
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn coerce_types(&self, kinds: &[DataType]) -> Result<Vec<DataType>> {
        if kinds.iter().any(is_instant) {
            let text = |kind: &DataType| match kind {
                DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
                DataType::Timestamp(..) => micros(kind),
                other => other.clone(),
            };
            let kinds: Vec<DataType> = kinds.iter().map(text).collect();
            let texts = kinds.iter().filter(|kind| **kind == DataType::Utf8).count();
            if kinds.len() == 2 && texts == 1 {
                return Ok(kinds);
            }
        }
        let fields: Vec<FieldRef> =
            kinds.iter().map(|kind| Arc::new(arrow::datatypes::Field::new("argument", kind.clone(), true))).collect();
        let fields = datafusion::logical_expr::type_coercion::functions::fields_with_udf(&fields, self.inner.as_ref())?;
        Ok(fields.iter().map(|field| field.data_type().clone()).collect())
    }
    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        self.inner.return_type(kinds)
    }
    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(arguments)
    }
    fn invoke_with_args(&self, mut arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if self.name() != "date_trunc" {
            return self.inner.invoke_with_args(arguments);
        }
        let Some(ColumnarValue::Array(instants)) = arguments.args.get(1) else {
            return self.truncate_scalar(arguments);
        };
        let Some(moved) = moved(instants) else { return self.inner.invoke_with_args(arguments) };
        arguments.args[1] = ColumnarValue::Array(moved.near);
        let truncated = self.inner.invoke_with_args(arguments)?.into_array(moved.by.len())?;
        Ok(ColumnarValue::Array(back(&truncated, &moved.by)?))
    }
}

impl InMicros {
    fn truncate_scalar(&self, mut arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(ColumnarValue::Scalar(value @ ScalarValue::TimestampMicrosecond(Some(_), _))) = arguments.args.get(1)
        else {
            return self.inner.invoke_with_args(arguments);
        };
        let Some(moved) = moved(&value.to_array()?) else { return self.inner.invoke_with_args(arguments) };
        arguments.args[1] = ColumnarValue::Scalar(ScalarValue::try_from_array(&moved.near, 0)?);
        let truncated = self.inner.invoke_with_args(arguments)?.into_array(1)?;
        Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&back(&truncated, &moved.by)?, 0)?))
    }
}

/// Instants moved by whole cycles of the calendar to where nanoseconds can tell them.
struct Moved {
    near: ArrayRef,
    by: Int64Array,
}

/// `None`: nothing need be moved.
fn moved(instants: &ArrayRef) -> Option<Moved> {
    let DataType::Timestamp(TimeUnit::Microsecond, zone) = instants.data_type() else { return None };
    let values = instants.as_primitive::<TimestampMicrosecondType>();
    if values.iter().flatten().all(|instant| instant.unsigned_abs() < NEAR.unsigned_abs()) {
        return None;
    }
    // What is moved lies within 200 years on both sides of 1970.
    let half = CYCLE / 2;
    let cycles = |instant: i64| {
        if instant.unsigned_abs() < NEAR.unsigned_abs() { 0 } else { instant.saturating_add(half).div_euclid(CYCLE) }
    };
    let by: Int64Array = values.iter().map(|instant| instant.map(cycles)).collect();
    let near: TimestampMicrosecondArray = values.unary(|instant| instant.wrapping_sub(cycles(instant) * CYCLE));
    Some(Moved { near: Arc::new(near.with_timezone_opt(zone.clone())), by })
}

fn back(truncated: &ArrayRef, by: &Int64Array) -> Result<ArrayRef> {
    let values = truncated.as_primitive::<TimestampMicrosecondType>();
    let zone = values.timezone().map(Arc::from);
    let moved: TimestampMicrosecondArray = values
        .iter()
        .zip(by.iter())
        .map(|(instant, cycles)| instant?.checked_add(cycles?.checked_mul(CYCLE)?))
        .collect();
    Ok(Arc::new(moved.with_timezone_opt::<Arc<str>>(zone)))
}

//! Functions whose value may be much larger than their arguments: `repeat('x', 2000000000)` is one row that no machine
//! has the memory for. What they are about to make is counted first: a value of more than [`MAX_VALUE_BYTES`] fails its
//! row, and all of them together are taken off the batch's [account](crate::account) before they are made.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, StringArray},
    compute::cast,
    datatypes::{DataType, Date32Type, Field, FieldRef, Int64Type, IntervalMonthDayNanoType, TimestampNanosecondType},
};
use datafusion::{
    common::{DataFusionError, Result, ScalarValue, exec_err},
    logical_expr::{
        ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    },
};

use crate::{account, functions::REGISTRY};

/// A value that a function makes has at most so many bytes: more is hardly ever meant, and a few such rows would be a
/// batch's memory.
pub const MAX_VALUE_BYTES: u64 = 16 << 20;
/// A regular expression or a text that is looked for is counted exactly where the simple bound of all rows is larger.
const EXACT_FROM_BYTES: u64 = 1 << 20;

/// How many bytes a function's values have, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Rule {
    /// `repeat(text, times)`.
    Repeat,
    /// `lpad(text, length, fill)`, `rpad`.
    Pad,
    /// `replace(text, from, to)`.
    Replace,
    /// `regexp_replace(text, pattern, replacement, flags)`.
    RegexpReplace,
    /// `range(start, stop, step)`, `generate_series`.
    Series,
    /// `array_repeat(element, times)`.
    RepeatElement,
    /// `array_resize(list, length, element)`.
    Resize,
    /// `array_to_string(list, delimiter)`.
    Join,
}

fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "repeat" => Rule::Repeat,
        "lpad" | "rpad" => Rule::Pad,
        "replace" => Rule::Replace,
        "regexp_replace" => Rule::RegexpReplace,
        "range" | "generate_series" => Rule::Series,
        "array_repeat" => Rule::RepeatElement,
        "array_resize" => Rule::Resize,
        "array_to_string" => Rule::Join,
        _ => return None,
    })
}

/// The function, counting first where its values may be large.
pub fn bounded(function: Arc<ScalarUDF>) -> Arc<ScalarUDF> {
    match rule(function.name()) {
        Some(rule) => Arc::new(ScalarUDF::from(Bounded { rule, inner: function })),
        None => function,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    rule: Rule,
    inner: Arc<ScalarUDF>,
}

/// What another function says of itself is its own, but for its simplification: that would put the bare function in this
/// one's place.
impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }
    fn signature(&self) -> &Signature {
        self.inner.signature()
    }
    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        self.inner.return_type(kinds)
    }
    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(arguments)
    }
    fn coerce_types(&self, kinds: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(kinds)
    }
    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let are_constant = arguments.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if are_constant { 1 } else { arguments.number_rows };
        // A constant is one row here: it may be long, and is not made once for each.
        let array = |argument: &ColumnarValue| match argument {
            ColumnarValue::Array(array) => Ok(Arc::clone(array)),
            ColumnarValue::Scalar(value) => value.to_array(),
        };
        let arrays = arguments.args.iter().map(array).collect::<Result<Vec<_>>>()?;
        let sizes = sizes(self.rule, &arrays, rows, || matches(&arguments));
        if let Some(size) = sizes.iter().copied().find(|size| *size > MAX_VALUE_BYTES) {
            return exec_err!(
                "`{}` would make a value of {size} bytes; at most {MAX_VALUE_BYTES} are allowed",
                self.name()
            );
        }
        account::expect(sizes.iter().sum()).map_err(DataFusionError::from)?;
        self.inner.invoke_with_args(arguments)
    }
}

/// The bytes of each row's value, at most. What is null, or fails in the function itself, is 0.
fn sizes(rule: Rule, arguments: &[ArrayRef], rows: usize, matches: impl Fn() -> Option<Vec<u64>>) -> Vec<u64> {
    let lengths = |index: usize| lengths(arguments.get(index));
    let numbers = |index: usize| numbers(arguments.get(index));
    match rule {
        Rule::Repeat => each(rows, [lengths(0), numbers(1)], |[text, times]| text.saturating_mul(times)),
        Rule::Pad => {
            // Its length counts characters, of four bytes at most.
            let wide = if arguments.get(2).is_some_and(|fill| !is_ascii(fill)) { 4 } else { 1 };
            each(rows, [lengths(0), numbers(1)], |[text, length]| {
                text.min(length.saturating_mul(4)).saturating_add(length.saturating_mul(wide))
            })
        }
        Rule::Replace => {
            let bound = each(rows, [lengths(0), lengths(1), lengths(2)], |[text, from, to]| {
                text.saturating_add((text / from.max(1) + 1).saturating_mul(to))
            });
            match bound.iter().sum::<u64>() > EXACT_FROM_BYTES {
                true => found(arguments, rows, |text, from| {
                    if from.is_empty() { text.chars().count() + 1 } else { text.matches(from).count() }
                })
                .unwrap_or(bound),
                false => bound,
            }
        }
        Rule::RegexpReplace => {
            let copies = counts(arguments.get(2), |text| text.matches(['$', '\\']).count() as u64);
            let is_global = counts(arguments.get(3), |flags| u64::from(flags.contains('g')));
            // Between any two letters, if the pattern is empty.
            let places = each(rows, [lengths(0), is_global], |[text, is_global]| 1 + text * is_global);
            let bound = |places: Vec<u64>| {
                each(rows, [lengths(0), lengths(2), copies.clone(), Some(places)], |[text, to, copies, places]| {
                    text.saturating_mul(copies + 1).saturating_add(to.saturating_mul(places))
                })
            };
            let simple = bound(places.clone());
            match simple.iter().sum::<u64>() > EXACT_FROM_BYTES {
                true => matches().map_or(simple, |found| {
                    bound(each(rows, [Some(found), Some(places)], |[found, places]| found.min(places)))
                }),
                false => simple,
            }
        }
        Rule::Series => series(arguments, rows),
        Rule::RepeatElement => each(rows, [lengths(0), numbers(1)], |[element, times]| element.saturating_mul(times)),
        Rule::Resize => {
            let element = arguments.get(2).map_or(Some(vec![9]), |_| lengths(2));
            each(rows, [lengths(0), numbers(1), element], |[list, length, element]| {
                list.saturating_add(length.saturating_mul(element.max(9)))
            })
        }
        Rule::Join => {
            let items = arguments.first().and_then(|list| {
                let list = list.as_list_opt::<i32>()?;
                Some(list.value_offsets().windows(2).map(|pair| (pair[1] - pair[0]) as u64).collect())
            });
            // A number may be written with more bytes than it has.
            each(rows, [lengths(0), items, lengths(1)], |[list, items, delimiter]| {
                (4 * list).saturating_add(items.saturating_mul(delimiter))
            })
        }
    }
}

fn each<const N: usize>(rows: usize, of: [Option<Vec<u64>>; N], size: impl Fn([u64; N]) -> u64) -> Vec<u64> {
    let of = of.map(Option::unwrap_or_default);
    let value = |values: &Vec<u64>, row: usize| values.get(place(values.len(), row)).copied().unwrap_or_default();
    (0..rows).map(|row| size(std::array::from_fn(|index| value(&of[index], row)))).collect()
}

/// Where the value of a row lies: a constant has one for all.
fn place(values: usize, row: usize) -> usize {
    if values == 1 { 0 } else { row }
}

/// The bytes of each value.
fn lengths(array: Option<&ArrayRef>) -> Option<Vec<u64>> {
    let array = array?;
    Some(match array.data_type() {
        DataType::Utf8 => {
            array.as_string::<i32>().value_offsets().windows(2).map(|pair| (pair[1] - pair[0]) as u64).collect()
        }
        DataType::LargeUtf8 => {
            array.as_string::<i64>().value_offsets().windows(2).map(|pair| (pair[1] - pair[0]) as u64).collect()
        }
        DataType::Utf8View => array.as_string_view().lengths().map(u64::from).collect(),
        _ => (0..array.len()).map(|row| account::values(array.as_ref(), row, 1)).collect(),
    })
}

/// Each value as a count; what is negative is 0.
fn numbers(array: Option<&ArrayRef>) -> Option<Vec<u64>> {
    let array = cast(array?, &DataType::Int64).ok()?;
    let values = array.as_primitive::<Int64Type>();
    Some(values.iter().map(|value| value.and_then(|value| u64::try_from(value).ok()).unwrap_or_default()).collect())
}

fn counts(array: Option<&ArrayRef>, count: impl Fn(&str) -> u64) -> Option<Vec<u64>> {
    let array = cast(array?, &DataType::Utf8).ok()?;
    Some(array.as_string::<i32>().iter().map(|text| count(text.unwrap_or_default())).collect())
}

fn is_ascii(array: &ArrayRef) -> bool {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().is_ascii(),
        DataType::LargeUtf8 => array.as_string::<i64>().is_ascii(),
        DataType::Utf8View => array.as_string_view().is_ascii(),
        _ => false,
    }
}

/// How often each text has the pattern of `regexp_replace(text, pattern, replacement, flags)`.
fn matches(arguments: &ScalarFunctionArgs) -> Option<Vec<u64>> {
    let count = REGISTRY.scalar.get("regexp_count")?;
    let text = arguments.args.first()?;
    if text.data_type() != DataType::Utf8 {
        return None;
    }
    let mut args = vec![text.clone(), arguments.args.get(1)?.clone()];
    if let Some(flags) = arguments.args.get(3) {
        let ColumnarValue::Scalar(ScalarValue::Utf8(Some(flags))) = flags else { return None };
        let flags = flags.replace('g', "");
        if !flags.is_empty() {
            args.push(ColumnarValue::Scalar(ScalarValue::Int64(Some(1))));
            args.push(ColumnarValue::Scalar(ScalarValue::Utf8(Some(flags))));
        }
    }
    let arg_fields = args.iter().map(|arg| Arc::new(Field::new("", arg.data_type(), true))).collect();
    let counted = count.inner().invoke_with_args(ScalarFunctionArgs {
        args,
        arg_fields,
        number_rows: arguments.number_rows,
        return_field: Arc::new(Field::new("", DataType::Int64, true)),
        config_options: Arc::clone(&arguments.config_options),
    });
    match counted.ok()? {
        ColumnarValue::Array(counted) => numbers(Some(&counted)),
        ColumnarValue::Scalar(counted) => numbers(Some(&counted.to_array().ok()?)),
    }
}

/// The bytes of texts with another one in the place of each that is found in it.
fn found(arguments: &[ArrayRef], rows: usize, count: impl Fn(&str, &str) -> usize) -> Option<Vec<u64>> {
    let [text, from, to] = [0, 1, 2].map(|index| cast(arguments.get(index)?, &DataType::Utf8).ok());
    let (text, from, to) = (text?, from?, to?);
    let (text, from, to) = (text.as_string::<i32>(), from.as_string::<i32>(), to.as_string::<i32>());
    let value = |of: &StringArray, row: usize| {
        let row = place(of.len(), row);
        of.is_valid(row).then(|| of.value(row).to_owned())
    };
    let size = |row: usize| {
        let (Some(text), Some(from), Some(to)) = (value(text, row), value(from, row), value(to, row)) else { return 0 };
        let (text, from, to) = (text.as_str(), from.as_str(), to.as_str());
        let found = count(text, from);
        text.len().saturating_sub(found * from.len()) as u64 + (found as u64).saturating_mul(to.len() as u64)
    };
    Some((0..rows).map(size).collect())
}

/// The bytes of lists from a start to a stop.
fn series(arguments: &[ArrayRef], rows: usize) -> Vec<u64> {
    const ITEM_BYTES: u64 = 8;
    const DAY_NANOS: i128 = 86_400_000_000_000;
    let is_integer = |array: &ArrayRef| array.data_type().is_integer();
    if arguments.iter().all(is_integer) {
        let whole: Vec<Option<Int64Array>> = arguments
            .iter()
            .map(|array| Some(cast(array, &DataType::Int64).ok()?.as_primitive::<Int64Type>().clone()))
            .collect();
        let value = |index: usize, row: usize| {
            let array = whole.get(index)?.as_ref()?;
            let row = place(array.len(), row);
            array.is_valid(row).then(|| i128::from(array.value(row)))
        };
        let size = |row: usize| {
            let (start, stop) = match whole.len() {
                1 => (Some(0), value(0, row)),
                _ => (value(0, row), value(1, row)),
            };
            let step = if whole.len() > 2 { value(2, row) } else { Some(1) };
            steps(start, stop, step).saturating_mul(ITEM_BYTES)
        };
        return (0..rows).map(size).collect();
    }
    let nanos = |index: usize, row: usize| -> Option<i128> {
        let array = arguments.get(index)?;
        let row = place(array.len(), row);
        if array.is_null(row) {
            return None;
        }
        let date = array.as_primitive_opt::<Date32Type>().map(|days| i128::from(days.value(row)) * DAY_NANOS);
        date.or_else(|| {
            let stamps = cast(&array.slice(row, 1), &DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None));
            Some(i128::from(stamps.ok()?.as_primitive::<TimestampNanosecondType>().value(0)))
        })
    };
    let step = |row: usize| -> Option<i128> {
        let interval = arguments.get(2)?.as_primitive_opt::<IntervalMonthDayNanoType>()?;
        let row = place(interval.len(), row);
        let interval = interval.is_valid(row).then(|| interval.value(row))?;
        // A month has 28 days at least.
        let days = i128::from(interval.months) * 28 + i128::from(interval.days);
        Some(days * DAY_NANOS + i128::from(interval.nanoseconds))
    };
    (0..rows).map(|row| steps(nanos(0, row), nanos(1, row), step(row)).saturating_mul(ITEM_BYTES)).collect()
}

/// How many steps there are from a start to a stop; 0 where the function has to say what is wrong.
fn steps(start: Option<i128>, stop: Option<i128>, step: Option<i128>) -> u64 {
    match (start, stop, step) {
        (Some(start), Some(stop), Some(step)) if step != 0 && (stop - start).signum() * step.signum() >= 0 => {
            u64::try_from((stop - start) / step + 1).unwrap_or(u64::MAX)
        }
        _ => 0,
    }
}

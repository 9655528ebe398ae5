//! The functions of expressions: DataFusion's, but for those that look at a clock or roll dice.
//!
//! `now()` and its like read [`BatchContext::planned_at`], `random()` and `uuid()` are made from [`BatchContext::seed`]
//! and the row: a batch that is replayed gives the same rows. DataFusion's own `now()` is folded into the plan, and plans
//! are kept; these are declared volatile, so that nothing folds them, and read a slot of the thread that evaluates them.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, StringBuilder},
    datatypes::{DataType, TimeUnit, UInt64Type},
};
use datafusion::{
    common::{Result, ScalarValue, exec_err},
    execution::SessionStateDefaults,
    logical_expr::{
        AggregateUDF, ColumnarValue, HigherOrderUDF, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
        TypeSignature, Volatility, WindowUDF, planner::ExprPlanner,
    },
};

use crate::{BatchContext, bounded::bounded, columns};

thread_local! {
    static NOW: Cell<BatchContext> = const { Cell::new(BatchContext { planned_at: 0, seed: 0 }) };
}

/// Evaluates something under a batch's clock and seed. Nothing in `body` may wait for other work of the pool, which
/// might come with another batch's.
pub fn under<T>(context: &BatchContext, body: impl FnOnce() -> T) -> T {
    let before = NOW.replace(*context);
    let result = body();
    NOW.set(before);
    result
}

/// Drives a future under a batch's clock and seed, on a thread that does nothing else meanwhile.
pub async fn under_async<T>(context: &BatchContext, body: impl Future<Output = T>) -> T {
    let before = NOW.replace(*context);
    let result = body.await;
    NOW.set(before);
    result
}

/// All functions by their names, lower case.
pub struct Registry {
    /// Functions of one row.
    pub scalar: HashMap<String, Arc<ScalarUDF>>,
    /// Functions that take functions.
    pub higher: HashMap<String, Arc<HigherOrderUDF>>,
    /// Functions of many rows.
    pub aggregate: HashMap<String, Arc<AggregateUDF>>,
    /// Functions of a window.
    pub window: HashMap<String, Arc<WindowUDF>>,
    /// How SQL's syntax becomes functions (`EXTRACT`, `POSITION`, `a[1]`).
    pub planners: Vec<Arc<dyn ExprPlanner>>,
}

/// The functions, made once: they do not depend on a job.
pub static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let mut scalar = HashMap::new();
    let clocks = [Clock::Timestamp, Clock::Date, Clock::Time].map(|clock| Arc::new(ScalarUDF::from(Now::new(clock))));
    let dice = [Dice::Random, Dice::Uuid].map(|dice| Arc::new(ScalarUDF::from(Seeded::new(dice))));
    for function in SessionStateDefaults::default_scalar_functions().into_iter().chain(clocks).chain(dice) {
        let function = bounded(function);
        for name in function.aliases().iter().cloned().chain([function.name().to_owned()]) {
            scalar.insert(name, Arc::clone(&function));
        }
    }
    let mut aggregate = HashMap::new();
    for function in SessionStateDefaults::default_aggregate_functions() {
        for name in function.aliases().iter().cloned().chain([function.name().to_owned()]) {
            aggregate.insert(name, Arc::clone(&function));
        }
    }
    let mut window = HashMap::new();
    for function in SessionStateDefaults::default_window_functions() {
        for name in function.aliases().iter().cloned().chain([function.name().to_owned()]) {
            window.insert(name, Arc::clone(&function));
        }
    }
    let mut higher = HashMap::new();
    for function in SessionStateDefaults::default_higher_order_functions() {
        higher.insert(function.name().to_owned(), function);
    }
    Registry { scalar, higher, aggregate, window, planners: SessionStateDefaults::default_expr_planners() }
});

/// What a function of the clock gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Clock {
    Timestamp,
    Date,
    Time,
}

/// `now()`, `current_date`, `current_time`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Now {
    clock: Clock,
    aliases: Vec<String>,
    signature: Signature,
}

impl Now {
    fn new(clock: Clock) -> Self {
        let aliases = match clock {
            Clock::Timestamp => vec!["current_timestamp".to_owned()],
            Clock::Date => vec!["today".to_owned()],
            Clock::Time => Vec::new(),
        };
        Self { clock, aliases, signature: Signature::nullary(Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        match self.clock {
            Clock::Timestamp => "now",
            Clock::Date => "current_date",
            Clock::Time => "current_time",
        }
    }
    fn aliases(&self) -> &[String] {
        &self.aliases
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.clock {
            Clock::Timestamp => columns::timestamp(),
            Clock::Date => DataType::Date32,
            Clock::Time => DataType::Time64(TimeUnit::Microsecond),
        })
    }
    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        const DAY: i64 = 86_400_000;
        let millis = NOW.get().planned_at;
        Ok(ColumnarValue::Scalar(match self.clock {
            Clock::Timestamp => ScalarValue::TimestampMicrosecond(Some(millis * 1000), Some("UTC".into())),
            Clock::Date => ScalarValue::Date32(i32::try_from(millis.div_euclid(DAY)).ok()),
            Clock::Time => ScalarValue::Time64Microsecond(Some(millis.rem_euclid(DAY) * 1000)),
        }))
    }
}

/// What the dice give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Dice {
    Random,
    Uuid,
}

/// `random()` and `uuid()`. As a job writes them they have no arguments; planning gives them two: the hidden column that
/// tells rows apart, and the number of the call in its job, so that two calls in one row differ.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Seeded {
    dice: Dice,
    aliases: Vec<String>,
    signature: Signature,
}

impl Seeded {
    fn new(dice: Dice) -> Self {
        let aliases = if dice == Dice::Random { vec!["rand".to_owned()] } else { Vec::new() };
        let arguments = vec![DataType::UInt64, DataType::UInt64];
        let signature =
            Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::Exact(arguments)], Volatility::Volatile);
        Self { dice, aliases, signature }
    }
}

impl ScalarUDFImpl for Seeded {
    fn name(&self) -> &str {
        match self.dice {
            Dice::Random => "random",
            Dice::Uuid => "uuid",
        }
    }
    fn aliases(&self) -> &[String] {
        &self.aliases
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.dice {
            Dice::Random => DataType::Float64,
            Dice::Uuid => DataType::Utf8,
        })
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [rows, ColumnarValue::Scalar(ScalarValue::UInt64(Some(call)))] = arguments.args.as_slice() else {
            return exec_err!("{}() was planned without its row", self.name());
        };
        let rows = rows.to_array(arguments.number_rows)?;
        let seed = mix(NOW.get().seed ^ mix(*call));
        let keys = rows.as_primitive::<UInt64Type>().values().iter().map(|row| mix(seed ^ mix(*row)));
        Ok(ColumnarValue::Array(match self.dice {
            // 53 bits are what a double holds.
            Dice::Random => {
                Arc::new(keys.map(|key| (key >> 11) as f64 / (1u64 << 53) as f64).collect::<Float64Array>())
            }
            Dice::Uuid => uuids(keys, rows.len()),
        }))
    }
}

/// Version 4 UUIDs of two words each.
fn uuids(keys: impl Iterator<Item = u64>, rows: usize) -> ArrayRef {
    use std::fmt::Write;
    const LENGTH: usize = 36;
    let mut builder = StringBuilder::with_capacity(rows, rows * LENGTH);
    for key in keys {
        let (high, low) = ((key & !0xF000) | 0x4000, (mix(key) & (u64::MAX >> 2)) | (1 << 63));
        // Writing into a builder cannot fail.
        let _ = write!(
            builder,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xFFFF,
            high & 0xFFFF,
            low >> 48,
            low & 0xFFFF_FFFF_FFFF
        );
        builder.append_value("");
    }
    Arc::new(builder.finish())
}

/// SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What tells the rows of a batch apart: the raw record and, where one gave several rows, which of them it is.
pub fn row_key(origin: u32, ordinal: u32) -> u64 {
    (u64::from(origin) << 32) | u64::from(ordinal)
}

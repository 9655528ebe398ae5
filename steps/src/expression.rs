//! Expressions: DataFusion SQL, parsed and planned once, evaluated on slices.
//!
//! Arrow's kernels fail a whole slice and name no row: [`Expression::evaluate`] then halves the slice until it has the
//! rows that fail, and gives the others their values. Arithmetic on integers fails on overflow instead of wrapping.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_empty_array, new_null_array},
    compute::{concat, prep_null_mask_filter},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    error::ArrowError,
};
use datafusion::{
    common::{
        DFSchema, DataFusionError, ScalarValue, SchemaError, TableReference,
        config::{ConfigNonZeroUsize, ConfigOptions},
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::context::ExecutionProps,
    logical_expr::{
        AggregateUDF, Cast, ColumnarValue, Expr, ExprSchemable, HigherOrderUDF, Operator, ScalarUDF, TableSource,
        Volatility, WindowUDF, expr::ScalarFunction, physical_planning_context::PhysicalPlanningContext,
        planner::ContextProvider, simplify::SimplifyContext,
    },
    optimizer::simplify_expressions::ExprSimplifier,
    physical_expr::{
        PhysicalExpr, create_physical_expr,
        expressions::{BinaryExpr, Literal},
    },
    sql::{
        parser::DFParser,
        planner::{ParserOptions, PlannerContext, SqlToRel},
    },
};

use crate::{
    SLICE_BYTES, account, columns,
    functions::{REGISTRY, Seeded},
};

/// The hidden column that tells rows apart, for `random()` and `uuid()`. No job can write this name by accident.
const ROW_KEY: &str = "\u{1}row";

/// A row that a step could not process.
#[derive(Clone, Debug)]
pub struct Bad {
    /// Its index in the step's input.
    pub row: u32,
    /// A short, stable word.
    pub reason: &'static str,
    /// The sentence.
    pub detail: String,
}

/// What planning knows: the functions, the tables of a query, and the options of DataFusion.
pub struct Catalog {
    tables: Vec<(String, Arc<dyn TableSource>)>,
    options: ConfigOptions,
}

impl Catalog {
    /// A catalog with these tables (none for expressions).
    pub fn new(tables: Vec<(String, Arc<dyn TableSource>)>) -> Self {
        Self { tables, options: options() }
    }

    /// How SQL is read: names of columns as they are written, text as plain Arrow strings.
    pub fn parser_options(&self) -> ParserOptions {
        ParserOptions::from(&self.options.sql_parser)
    }
}

/// DataFusion's options of every expression and query. One partition: a batch is small, and its order is its own.
pub fn options() -> ConfigOptions {
    let mut options = ConfigOptions::default();
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.target_partitions = 1;
    if let Ok(rows) = ConfigNonZeroUsize::try_new(crate::SLICE_ROWS) {
        options.execution.batch_size = rows;
    }
    options.execution.time_zone = Some("UTC".into());
    options.optimizer.enable_round_robin_repartition = false;
    options.optimizer.repartition_aggregations = false;
    options.optimizer.repartition_joins = false;
    options.optimizer.repartition_sorts = false;
    options.optimizer.repartition_windows = false;
    // `AggregateExec` does not reset its dynamic filter, and plans are run again and again.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    options
}

impl ContextProvider for Catalog {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>, DataFusionError> {
        let table = name.table();
        let found = self.tables.iter().find(|(known, _)| known == table).or_else(|| {
            // `web-logs` must be quoted in SQL; `web_logs` saves the quotes where nothing else has that name.
            self.tables.iter().find(|(known, _)| known.replace('-', "_") == table)
        });
        match found {
            Some((_, source)) if name.schema().is_none() => Ok(Arc::clone(source)),
            _ => Err(DataFusionError::Plan(format!(
                "no input `{name}`{}",
                columns::hint(table, self.tables.iter().map(|(known, _)| known.as_str()))
            ))),
        }
    }
    fn get_expr_planners(&self) -> &[Arc<dyn datafusion::logical_expr::planner::ExprPlanner>] {
        &REGISTRY.planners
    }
    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        REGISTRY.scalar.get(&name.to_lowercase()).cloned()
    }
    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        REGISTRY.higher.get(&name.to_lowercase()).cloned()
    }
    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        REGISTRY.aggregate.get(&name.to_lowercase()).cloned()
    }
    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        REGISTRY.window.get(&name.to_lowercase()).cloned()
    }
    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }
    fn options(&self) -> &ConfigOptions {
        &self.options
    }
    fn udf_names(&self) -> Vec<String> {
        REGISTRY.scalar.keys().cloned().collect()
    }
    fn higher_order_function_names(&self) -> Vec<String> {
        REGISTRY.higher.keys().cloned().collect()
    }
    fn udaf_names(&self) -> Vec<String> {
        REGISTRY.aggregate.keys().cloned().collect()
    }
    fn udwf_names(&self) -> Vec<String> {
        REGISTRY.window.keys().cloned().collect()
    }
}

/// A planned expression over the columns of one schema.
pub struct Expression {
    physical: Arc<dyn PhysicalExpr>,
    text: String,
    kind: DataType,
    seeded: bool,
    columns: BTreeSet<String>,
    /// Bytes of the constants in it, which every row may get.
    literals: u64,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, columns::type_name(&self.kind))
    }
}

impl Expression {
    /// Parses and plans `text` over `schema`. `calls` counts the calls of `random()` and `uuid()` in the job. The error
    /// is a sentence.
    pub fn plan(text: &str, schema: &SchemaRef, calls: &mut u64) -> Result<Self, String> {
        let catalog = Catalog::new(Vec::new());
        let schema = DFSchema::try_from(schema.as_ref().clone()).map_err(|error| sentence(&error))?;
        let parsed = DFParser::parse_sql_into_expr(text).map_err(|error| sentence(&error))?;
        if let Some(alias) = &parsed.alias {
            return Err(format!("`AS {alias}` has no place in an expression: the key before it is the name"));
        }
        let planner = SqlToRel::new_with_options(&catalog, catalog.parser_options());
        let logical = planner
            .sql_to_expr_with_alias(parsed, &schema, &mut PlannerContext::new())
            .map_err(|error| sentence(&error))?;
        Self::compile(logical, &schema, text, calls)
    }

    /// Makes a planned expression ready to be evaluated.
    pub fn compile(logical: Expr, schema: &DFSchema, text: &str, calls: &mut u64) -> Result<Self, String> {
        refuse_all_rows(&logical)?;
        let columns = logical.column_refs().into_iter().map(|column| column.name.clone()).collect();
        let (logical, seeded) = seed(logical, calls)?;
        let schema = with_key(schema).map_err(|error| sentence(&error))?;
        let physical = physical(logical, &schema).map_err(|error| sentence(&error))?;
        let kind = physical.data_type(schema.as_arrow()).map_err(|error| sentence(&error))?;
        let literals = bytes_of_literals(&physical).map_err(|error| sentence(&error))?;
        Ok(Self { physical, text: text.to_owned(), kind, seeded, columns, literals })
    }

    /// The type of its values: one of the job's types.
    pub fn kind(&self) -> &DataType {
        &self.kind
    }

    /// The columns that it reads.
    pub fn columns(&self) -> &BTreeSet<String> {
        &self.columns
    }

    /// Whether it needs the row's key.
    pub fn is_seeded(&self) -> bool {
        self.seeded
    }

    /// A value for each row; null for rows that fail, which are told in `bad`.
    pub fn evaluate(
        &self,
        batch: &RecordBatch,
        keys: Option<&ArrayRef>,
        bad: &mut Vec<Bad>,
    ) -> Result<ArrayRef, ArrowError> {
        if batch.num_rows() == 0 {
            return Ok(new_empty_array(&self.kind));
        }
        let keyed;
        let batch = match keys {
            Some(keys) if self.seeded => {
                keyed = add_key(batch, keys)?;
                &keyed
            }
            _ => batch,
        };
        let (mut parts, rows) = (Vec::new(), batch.num_rows());
        let most = usize::try_from(SLICE_BYTES / self.literals.max(1)).unwrap_or(rows).clamp(1, rows);
        for first in (0..rows).step_by(most) {
            self.halve(&batch.slice(first, most.min(rows - first)), first, &mut parts, bad);
            if most < rows
                && let Some(part) = parts.last()
            {
                // What it comes to is seen before the next rows are tried.
                account::expect(account::bytes_of_values(part))?;
            }
        }
        match parts.as_slice() {
            [whole] => Ok(Arc::clone(whole)),
            parts => concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>()),
        }
    }

    /// For each row whether the expression is true; rows for which it is null are not.
    pub fn test(
        &self,
        batch: &RecordBatch,
        keys: Option<&ArrayRef>,
        bad: &mut Vec<Bad>,
    ) -> Result<BooleanArray, ArrowError> {
        let values = self.evaluate(batch, keys, bad)?;
        let values = values.as_boolean();
        Ok(if values.null_count() == 0 { values.clone() } else { prep_null_mask_filter(values) })
    }

    /// Evaluates `batch`, whose first row is row `first`; halves it where the kernel fails.
    fn halve(&self, batch: &RecordBatch, first: usize, parts: &mut Vec<ArrayRef>, bad: &mut Vec<Bad>) {
        let rows = batch.num_rows();
        if account::is_outgrown() {
            // Of no use to anybody: the whole batch is given up.
            parts.push(new_null_array(&self.kind, rows));
            return;
        }
        let result = self.physical.evaluate(batch).and_then(|value| {
            if let ColumnarValue::Scalar(value) = &value {
                account::expect(on_the_heap(value).saturating_mul(rows as u64))?;
            }
            value.into_array(rows)
        });
        match result {
            Ok(values) => parts.push(values),
            Err(_) if account::is_outgrown() => parts.push(new_null_array(&self.kind, rows)),
            Err(error) if rows == 1 => {
                bad.push(Bad {
                    row: first as u32,
                    reason: "expression",
                    detail: format!("`{}`: {}", self.text, sentence(&error)),
                });
                parts.push(new_null_array(&self.kind, 1));
            }
            Err(_) => {
                let middle = rows / 2;
                self.halve(&batch.slice(0, middle), first, parts, bad);
                self.halve(&batch.slice(middle, rows - middle), first + middle, parts, bad);
            }
        }
    }
}

/// Refuses what needs more than one row.
fn refuse_all_rows(logical: &Expr) -> Result<(), String> {
    let mut found = None;
    let _ = logical.apply(|part| {
        found = match part {
            Expr::AggregateFunction(function) => Some(format!("`{}` is a function of many rows", function.func.name())),
            Expr::WindowFunction(_) => Some("`OVER` is about many rows".to_owned()),
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => Some("a query inside".to_owned()),
            _ => return Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue),
        };
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Stop)
    });
    match found {
        Some(what) => Err(format!("{what}: an expression has one row. Use a `sql` step")),
        None => Ok(()),
    }
}

/// Gives `random()` and `uuid()` their arguments; refuses other functions that differ from call to call.
fn seed(logical: Expr, calls: &mut u64) -> Result<(Expr, bool), String> {
    if let Some(name) = volatile(&logical) {
        return Err(refusal(&name));
    }
    let mut seeded = false;
    let result = logical.transform_up(|part| {
        let Expr::ScalarFunction(ScalarFunction { func, args }) = &part else { return Ok(Transformed::no(part)) };
        if !is_seeded(func) || !args.is_empty() {
            return Ok(Transformed::no(part));
        }
        seeded = true;
        *calls += 1;
        let args = vec![datafusion::prelude::ident(ROW_KEY), Expr::Literal(ScalarValue::UInt64(Some(*calls)), None)];
        Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func: Arc::clone(func), args })))
    });
    result.map(|transformed| (transformed.data, seeded)).map_err(|error| sentence(&error))
}

/// The first function in `logical` that would give other values in a replay.
pub fn volatile(logical: &Expr) -> Option<String> {
    first_function(logical, |function| {
        function.signature().volatility == Volatility::Volatile && !is_seeded(function) && !is_clock(function)
    })
}

/// The first `random()` or `uuid()` in `logical`.
pub fn dice(logical: &Expr) -> Option<String> {
    first_function(logical, is_seeded)
}

/// The sentence for a volatile function.
pub fn refusal(name: &str) -> String {
    format!(
        "`{name}()` gives another value at each call, so a batch that is replayed after a crash would give other rows; \
         `now()`, `random()` and `uuid()` can be used, they are repeated exactly"
    )
}

fn first_function(logical: &Expr, is_meant: impl Fn(&ScalarUDF) -> bool) -> Option<String> {
    let mut found = None;
    let _ = logical.exists(|part| {
        if let Expr::ScalarFunction(ScalarFunction { func, .. }) = part
            && is_meant(func)
        {
            found = Some(func.name().to_owned());
        }
        Ok(found.is_some())
    });
    found
}

fn is_seeded(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<Seeded>().is_some()
}

fn is_clock(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<crate::functions::Now>().is_some()
}

/// Coerced, simplified, in one of the job's types, with checked arithmetic.
fn physical(logical: Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(Arc::new(options()))
        .build();
    let simplifier = ExprSimplifier::new(context);
    let coerced = simplifier.coerce(logical, schema)?;
    // Folding may fail where a row would (`1 / 0`): then the rows shall say so.
    let mut logical = simplifier.simplify(coerced.clone()).unwrap_or(coerced);
    let kind = logical.get_type(schema)?;
    let wanted = columns::job_type(&kind);
    if wanted != kind {
        logical = Expr::Cast(Cast::new(Box::new(logical), wanted));
    }
    let physical = create_physical_expr(&logical, schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())?;
    Ok(physical.transform_up(|part| Ok(checked(part)))?.data)
}

/// The bytes of a constant, beside those that each has.
pub fn on_the_heap(value: &ScalarValue) -> u64 {
    value.size().saturating_sub(size_of::<ScalarValue>()) as u64
}

/// The bytes of its constants.
fn bytes_of_literals(physical: &Arc<dyn PhysicalExpr>) -> Result<u64, DataFusionError> {
    let mut bytes = 0;
    physical.apply(|part| {
        if let Some(constant) = part.downcast_ref::<Literal>() {
            bytes += on_the_heap(constant.value());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(bytes)
}

/// An overflow fails the row instead of wrapping around.
fn checked(part: Arc<dyn PhysicalExpr>) -> Transformed<Arc<dyn PhysicalExpr>> {
    match part.downcast_ref::<BinaryExpr>() {
        Some(binary) if matches!(binary.op(), Operator::Plus | Operator::Minus | Operator::Multiply) => {
            let (left, right) = (Arc::clone(binary.left()), Arc::clone(binary.right()));
            Transformed::yes(Arc::new(BinaryExpr::new(left, *binary.op(), right).with_fail_on_overflow(true)))
        }
        _ => Transformed::no(part),
    }
}

/// The schema with the hidden column at its end.
fn with_key(schema: &DFSchema) -> Result<DFSchema, DataFusionError> {
    let key: FieldRef = Arc::new(Field::new(ROW_KEY, DataType::UInt64, false));
    let fields =
        schema.iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).chain([(None, key)]).collect();
    DFSchema::new_with_metadata(fields, Default::default())
}

fn add_key(batch: &RecordBatch, keys: &ArrayRef) -> Result<RecordBatch, ArrowError> {
    let key: FieldRef = Arc::new(Field::new(ROW_KEY, DataType::UInt64, false));
    let fields: Vec<FieldRef> = batch.schema().fields().iter().cloned().chain([key]).collect();
    let arrays = batch.columns().iter().cloned().chain([Arc::clone(keys)]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

/// What DataFusion says, without the names of its layers, and with the nearest name where a column is unknown.
pub fn sentence(error: &DataFusionError) -> String {
    match error {
        DataFusionError::Context(_, inner) => sentence(inner),
        DataFusionError::Diagnostic(_, inner) => sentence(inner),
        DataFusionError::Shared(inner) => sentence(inner),
        DataFusionError::Collection(errors) => errors.iter().map(sentence).collect::<Vec<_>>().join("; "),
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let names: Vec<&str> =
                    valid_fields.iter().map(|field| field.name()).filter(|name| *name != ROW_KEY).collect();
                format!("no column `{}`{}", field.name(), columns::hint(field.name(), names))
            }
            SchemaError::AmbiguousReference { field } => {
                format!("column `{}` is in several inputs: write `input.{}`", field.name(), field.name())
            }
            other => format!("{other}: give columns names of their own with `AS`"),
        },
        DataFusionError::ArrowError(arrow, _) => arrow_sentence(arrow),
        DataFusionError::SQL(parser, _) => {
            let text = parser.to_string();
            text.strip_prefix("sql parser error: ").unwrap_or(&text).to_owned()
        }
        other => other.message().split('\n').filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join(" "),
    }
}

/// What Arrow says, without the kind of its error.
pub fn arrow_sentence(error: &ArrowError) -> String {
    match error {
        ArrowError::DivideByZero => "division by zero".to_owned(),
        ArrowError::CastError(text)
        | ArrowError::ComputeError(text)
        | ArrowError::ArithmeticOverflow(text)
        | ArrowError::ParseError(text)
        | ArrowError::InvalidArgumentError(text) => text.clone(),
        ArrowError::ExternalError(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => sentence(inner),
            None => inner.to_string(),
        },
        other => other.to_string(),
    }
}

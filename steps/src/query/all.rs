//! Queries over all rows of a batch, by DataFusion: planned once, run on each batch.
//!
//! A run is a function of the rows alone. Inputs are gathered and cut anew, there is one partition, and hashes have fixed
//! seeds: without ORDER BY, groups come in the order in which they first appear. A query that fails is run on ever smaller
//! parts of its inputs until the rows to blame are found.

use std::{collections::BTreeSet, fmt, ops::Range, sync::Arc};

use arrow::{
    array::RecordBatch,
    compute::{CastOptions, cast_with_options},
    datatypes::SchemaRef,
};
use datafusion::{
    common::{
        DataFusionError,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    execution::{SessionStateBuilder, TaskContext, config::SessionConfig, runtime_env::RuntimeEnv},
    logical_expr::LogicalPlan,
    optimizer::Optimizer,
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties, coalesce_partitions::CoalescePartitionsExec, collect, empty::EmptyExec,
        execution_plan::reset_plan_states, limit::GlobalLimitExec, repartition::RepartitionExec,
    },
};

use super::{
    checked,
    leaf::{InOrder, Inputs},
};
use crate::{
    BatchContext, SLICE_ROWS, columns,
    expression::{self, Bad, sentence},
    functions, stack,
};

/// At most this many runs to find the rows to blame in one batch.
const MAX_RUNS: usize = 4_000;

/// The rows of an input that a run takes.
type Kept = Vec<Range<usize>>;

/// What a query gives, and the rows that it was run without, each with the number of its input.
pub type Given = (Vec<RecordBatch>, Vec<(usize, Bad)>);

/// A planned query over all rows.
pub struct Query {
    physical: Arc<dyn ExecutionPlan>,
    config: SessionConfig,
    environment: Arc<RuntimeEnv>,
    schema: SchemaRef,
    reads: BTreeSet<String>,
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", datafusion::physical_plan::displayable(self.physical.as_ref()).indent(false))
    }
}

impl Query {
    /// Plans a query. The error is a sentence.
    pub fn new(logical: &LogicalPlan, schema: SchemaRef, reads: BTreeSet<String>) -> Result<Self, String> {
        let config = SessionConfig::from(expression::options());
        let environment = Arc::new(RuntimeEnv::default());
        let is_exact = super::expressions(logical)?.iter().any(expression::loses_nulls);
        let planned = physical(logical, &config, &environment, !is_exact);
        // Where simplifying renames what a part of the plan gives, DataFusion does not find it again.
        let planned =
            if is_exact { planned } else { planned.or_else(|_| physical(logical, &config, &environment, false)) };
        Ok(Self { physical: planned?, config, environment, schema, reads })
    }

    /// The schema that it gives, in the job's types.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The names of the columns that it mentions.
    pub fn reads(&self) -> &BTreeSet<String> {
        &self.reads
    }

    /// Runs the query. Rows that make it fail are left out and told, as long as they can be found.
    pub fn apply(&self, context: &BatchContext, inputs: &[RecordBatch]) -> Result<Given, String> {
        let all: Vec<Kept> = inputs.iter().map(|batch| without(batch.num_rows(), &[])).collect();
        match self.run(context, inputs, &all) {
            Ok(rows) => Ok((rows, Vec::new())),
            Err(cause) => self.without_bad(context, inputs, all, cause),
        }
    }

    /// Looks for the rows to blame input by input, and runs the query without them.
    fn without_bad(
        &self,
        context: &BatchContext,
        inputs: &[RecordBatch],
        mut kept: Vec<Kept>,
        mut cause: String,
    ) -> Result<Given, String> {
        let (mut all, mut search) = (Vec::new(), Search { query: self, context, inputs, left: MAX_RUNS });
        for table in 0..inputs.len() {
            let mut bad = Vec::new();
            search.halve(&kept, table, 0..inputs[table].num_rows(), &mut bad)?;
            kept[table] = without(inputs[table].num_rows(), &bad);
            all.extend(bad.into_iter().map(|bad| (table, bad)));
            match self.run(context, inputs, &kept) {
                Ok(rows) => return Ok((rows, all)),
                Err(later) => cause = later,
            }
        }
        Err(cause)
    }

    /// One run over these rows of the inputs.
    fn run(&self, context: &BatchContext, inputs: &[RecordBatch], kept: &[Kept]) -> Result<Vec<RecordBatch>, String> {
        let inputs = inputs.iter().zip(kept).map(|(batch, ranges)| slices(batch, ranges)).collect();
        let config = self.config.clone().with_extension(Arc::new(Inputs(inputs)));
        let task = TaskContext::default().with_session_config(config).with_runtime(Arc::clone(&self.environment));
        let plan = reset_plan_states(Arc::clone(&self.physical)).map_err(|error| sentence(&error))?;
        let given = apart(|| async { functions::under_async(context, collect(plan, Arc::new(task))).await })?;
        given.iter().map(|batch| self.in_job_types(batch)).collect()
    }

    fn in_job_types(&self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let arrays = batch.columns().iter().zip(self.schema.fields()).map(|(values, field)| {
            if values.data_type() == field.data_type() {
                return Ok(Arc::clone(values));
            }
            cast_with_options(values, field.data_type(), &options)
        });
        let batch = arrays
            .collect::<Result<_, _>>()
            .and_then(|arrays| columns::batch_of(&self.schema, arrays, batch.num_rows()));
        batch.map_err(|error| expression::arrow_sentence(&error))
    }
}

impl Drop for Query {
    /// Its conditions may be chains of thousands of terms, and dropping recurses over them.
    fn drop(&mut self) {
        let nothing: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(Arc::clone(&self.schema)));
        let physical = std::mem::replace(&mut self.physical, nothing);
        // Without a thread it is dropped here, as anything else is.
        let _ = stack::apart("drop", move || drop(physical));
    }
}

/// The plan of a query. `simplified`: DataFusion may simplify expressions.
fn physical(
    logical: &LogicalPlan,
    config: &SessionConfig,
    environment: &Arc<RuntimeEnv>,
    simplified: bool,
) -> Result<Arc<dyn ExecutionPlan>, String> {
    let registry = &functions::REGISTRY;
    let mut rules = Optimizer::new().rules;
    rules.retain(|rule| simplified || rule.name() != "simplify_expressions");
    let state = SessionStateBuilder::new()
        .with_config(config.clone())
        .with_runtime_env(Arc::clone(environment))
        .with_optimizer_rules(rules)
        .with_scalar_functions(registry.scalar.values().cloned().collect())
        .with_aggregate_functions(registry.aggregate.values().cloned().collect())
        .with_window_functions(registry.window.values().cloned().collect())
        .build();
    let plan = apart(|| async {
        let logical = checked::arithmetic(state.optimize(logical)?)?;
        state.query_planner().create_physical_plan(&logical, &state).await
    });
    plan.and_then(|plan| in_order(plan).map_err(|error| sentence(&error)))
}

/// The search for the rows that make a query fail.
struct Search<'a> {
    query: &'a Query,
    context: &'a BatchContext,
    inputs: &'a [RecordBatch],
    /// Runs that are left.
    left: usize,
}

impl Search<'_> {
    /// Runs the query with the rows `part` of one input and all kept rows of the others; goes on with the halves of what
    /// fails, down to single rows.
    fn halve(&mut self, kept: &[Kept], table: usize, part: Range<usize>, bad: &mut Vec<Bad>) -> Result<(), String> {
        if part.is_empty() {
            return Ok(());
        }
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            format!(
                "so many rows fail that {MAX_RUNS} runs of the query did not find them all, the first: {}",
                first(bad)
            )
        })?;
        let mut tried = kept.to_vec();
        tried[table] = vec![part.clone()];
        let Err(cause) = self.query.run(self.context, self.inputs, &tried) else { return Ok(()) };
        if part.len() == 1 {
            bad.push(Bad { row: part.start as u32, reason: "expression", detail: cause });
            return Ok(());
        }
        let middle = part.start + part.len() / 2;
        self.halve(kept, table, part.start..middle, bad)?;
        self.halve(kept, table, middle..part.end, bad)
    }
}

fn first(bad: &[Bad]) -> &str {
    bad.first().map_or("none yet", |bad| bad.detail.as_str())
}

/// All rows but the bad ones.
fn without(rows: usize, bad: &[Bad]) -> Vec<Range<usize>> {
    let (mut kept, mut start) = (Vec::new(), 0);
    for bad in bad {
        kept.push(start..bad.row as usize);
        start = bad.row as usize + 1;
    }
    kept.push(start..rows);
    kept
}

/// The rows of an input, cut at borders that follow from the rows alone.
fn slices(batch: &RecordBatch, ranges: &[Range<usize>]) -> Vec<RecordBatch> {
    let starts = ranges.iter().flat_map(|range| range.clone().step_by(SLICE_ROWS).map(move |start| (start, range.end)));
    starts.map(|(start, end)| batch.slice(start, SLICE_ROWS.min(end - start))).collect()
}

/// Partitions are read one after the other, where DataFusion would read them side by side and mix their rows.
fn in_order(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let plan = plan.transform_up(|part| {
        if let Some(coalesced) = part.downcast_ref::<CoalescePartitionsExec>() {
            let (read, fetch) = (Arc::new(InOrder::new(Arc::clone(coalesced.input()))), coalesced.fetch());
            return Ok(Transformed::yes(match fetch {
                Some(_) => Arc::new(GlobalLimitExec::new(read, 0, fetch)),
                None => read,
            }));
        }
        match part.downcast_ref::<RepartitionExec>() {
            Some(mixed) if part.output_partitioning().partition_count() == 1 => {
                Ok(Transformed::yes(Arc::new(InOrder::new(Arc::clone(mixed.input())))))
            }
            _ => Ok(Transformed::no(part)),
        }
    });
    let plan = plan.data()?;
    Ok(match plan.output_partitioning().partition_count() {
        1 => plan,
        _ => Arc::new(InOrder::new(plan)),
    })
}

/// Drives a future of DataFusion on a thread of its own: the caller's may be one that must not wait, of another runtime, and
/// has not the stack.
fn apart<T, F>(make: impl FnOnce() -> F + Send) -> Result<T, String>
where
    T: Send,
    F: Future<Output = Result<T, DataFusionError>>,
{
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
        runtime.block_on(make()).map_err(|error| sentence(&error))
    };
    stack::apart("query", work).unwrap_or_else(|panic| Err(format!("the query engine failed: {panic}")))
}

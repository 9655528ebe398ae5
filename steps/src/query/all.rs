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
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    execution::{
        SessionStateBuilder, TaskContext,
        config::SessionConfig,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::MemoryPool,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::{Expr, LogicalPlan},
    physical_plan::{
        ChildrenPropertiesMode, ExecutionPlan, ExecutionPlanProperties, ReplaceChildrenOptions,
        coalesce_partitions::CoalescePartitionsExec, execute_stream, execution_plan::reset_plan_states,
        limit::GlobalLimitExec, repartition::RepartitionExec, unnest::UnnestExec, windows::WindowAggExec,
    },
};
use futures::StreamExt;

use super::{
    checked,
    leaf::{InOrder, Inputs, Spread},
};
use crate::{
    BatchContext, SLICE_ROWS,
    account::{self, Account},
    columns,
    expression::{self, Bad, sentence},
    functions,
};

/// At most this many runs to find the rows to blame in one batch.
const MAX_RUNS: usize = 4_000;

/// Operators make rows in batches of at most so many bytes, where the largest rows of the inputs come together: a join
/// repeats a large row as often as a batch has rows.
const BATCH_BYTES: u64 = 4 << 20;

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
    /// How often the inputs are held by operators that take nothing off the account.
    copies: u64,
    /// Bytes of its constants, which every row may get.
    literals: u64,
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
        // What does not fit is an error, and the batch is made smaller: files are not written beside it.
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let environment = RuntimeEnvBuilder::new().with_disk_manager_builder(disk).build_arc();
        let environment = environment.map_err(|error| sentence(&error))?;
        let registry = &functions::REGISTRY;
        let state = SessionStateBuilder::new()
            .with_config(config.clone())
            .with_runtime_env(Arc::clone(&environment))
            .with_scalar_functions(registry.scalar.values().cloned().collect())
            .with_aggregate_functions(registry.aggregate.values().cloned().collect())
            .with_window_functions(registry.window.values().cloned().collect())
            .build();
        let (physical, literals) = apart(|| async {
            let logical = checked::arithmetic(state.optimize(logical)?)?;
            let literals = bytes_of_literals(&logical)?;
            Ok((state.query_planner().create_physical_plan(&logical, &state).await?, literals))
        })
        .and_then(|(plan, literals)| Ok((in_order(plan).map_err(|error| sentence(&error))?, literals)))?;
        let mut windows = 0;
        let counted = physical.apply(|part| {
            windows += u64::from(part.downcast_ref::<WindowAggExec>().is_some());
            Ok(TreeNodeRecursion::Continue)
        });
        counted.map_err(|error| sentence(&error))?;
        Ok(Self { physical, config, environment, schema, reads, copies: 2 * windows, literals })
    }

    /// The schema that it gives, in the job's types.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The names of the columns that it mentions.
    pub fn reads(&self) -> &BTreeSet<String> {
        &self.reads
    }

    /// Runs the query. Rows that make it fail are left out and told, as long as they can be found. Where the batch outgrows
    /// its memory no row is to blame. What it gives is not on the account any more.
    pub fn apply(
        &self,
        context: &BatchContext,
        inputs: &[RecordBatch],
        account: &Arc<Account>,
    ) -> Result<Given, String> {
        let all: Vec<Kept> = inputs.iter().map(|batch| without(batch.num_rows(), &[])).collect();
        let batch_rows = self.literals + inputs.iter().map(account::largest_row).sum::<u64>().max(1);
        let batch_rows = usize::try_from(BATCH_BYTES / batch_rows).unwrap_or(SLICE_ROWS).clamp(1, SLICE_ROWS);
        let run = Run { query: self, context, inputs, account, batch_rows };
        match run.over(&all) {
            Ok(rows) => Ok((rows, Vec::new())),
            Err(cause) if account.outgrown().is_some() => Err(cause),
            Err(cause) => run.without_bad(all, cause),
        }
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

/// A query over the rows of one batch.
struct Run<'a> {
    query: &'a Query,
    context: &'a BatchContext,
    inputs: &'a [RecordBatch],
    account: &'a Arc<Account>,
    /// Rows of the batches between operators.
    batch_rows: usize,
}

impl Run<'_> {
    /// Looks for the rows to blame input by input, and runs the query without them.
    fn without_bad(&self, mut kept: Vec<Kept>, mut cause: String) -> Result<Given, String> {
        let (mut all, mut search) = (Vec::new(), Search { run: self, left: MAX_RUNS });
        for table in 0..self.inputs.len() {
            let mut bad = Vec::new();
            search.halve(&kept, table, 0..self.inputs[table].num_rows(), &mut bad)?;
            kept[table] = without(self.inputs[table].num_rows(), &bad);
            all.extend(bad.into_iter().map(|bad| (table, bad)));
            match self.over(&kept) {
                Ok(rows) => return Ok((rows, all)),
                Err(later) => cause = later,
            }
        }
        Err(cause)
    }

    /// One run over these rows of the inputs.
    fn over(&self, kept: &[Kept]) -> Result<Vec<RecordBatch>, String> {
        let query = self.query;
        let inputs =
            self.inputs.iter().zip(kept).map(|(batch, ranges)| slices(batch, ranges, self.batch_rows)).collect();
        let config = query.config.clone().with_batch_size(self.batch_rows).with_extension(Arc::new(Inputs(inputs)));
        let pool: Arc<dyn MemoryPool> = Arc::clone(self.account) as Arc<dyn MemoryPool>;
        let environment = RuntimeEnv { memory_pool: pool, ..query.environment.as_ref().clone() };
        let task = TaskContext::default().with_session_config(config).with_runtime(Arc::new(environment));
        let plan = reset_plan_states(Arc::clone(&query.physical)).map_err(|error| sentence(&error))?;
        let copies = query.copies * self.inputs.iter().map(account::bytes_of_rows).sum::<u64>();
        self.account.take(copies).map_err(|outgrown| outgrown.to_string())?;
        let (account, context) = (self.account, self.context);
        let done = apart(|| async move {
            let _entered = account::enter(account);
            let (mut given, mut bytes) = (Vec::new(), 0);
            let all = async {
                let mut rows = execute_stream(plan, Arc::new(task))?;
                while let Some(batch) = rows.next().await {
                    let batch = query.in_job_types(&batch?).map_err(DataFusionError::Execution)?;
                    account::settle();
                    let more = account::bytes_of_rows(&batch);
                    account.take(more)?;
                    bytes += more;
                    given.push(batch);
                }
                Ok::<(), DataFusionError>(())
            };
            let done = functions::under_async(context, all).await;
            account.give_back(bytes);
            done.map(|()| given)
        });
        self.account.give_back(copies);
        done
    }
}

/// The search for the rows that make a query fail.
struct Search<'a> {
    run: &'a Run<'a>,
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
        let Err(cause) = self.run.over(&tried) else { return Ok(()) };
        if self.run.account.outgrown().is_some() {
            return Err(cause);
        }
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

/// The bytes of a plan's constants.
fn bytes_of_literals(plan: &LogicalPlan) -> Result<u64, DataFusionError> {
    let mut bytes = 0;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|whole| {
            whole.apply(|part| {
                if let Expr::Literal(value, _) = part {
                    bytes += expression::on_the_heap(value);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(bytes)
}

/// The rows of an input, cut at borders that follow from the rows alone.
fn slices(batch: &RecordBatch, ranges: &[Range<usize>], rows: usize) -> Vec<RecordBatch> {
    let starts = ranges.iter().flat_map(|range| range.clone().step_by(rows).map(move |start| (start, range.end)));
    starts.map(|(start, end)| batch.slice(start, rows.min(end - start))).collect()
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
        if let Some(unnest) = part.downcast_ref::<UnnestExec>() {
            let lists = unnest.list_column_indices().iter().map(|list| list.index_in_input_schema).collect();
            let child: Arc<dyn ExecutionPlan> = Arc::new(Spread::new(Arc::clone(unnest.input()), lists));
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            return Ok(Transformed::yes(Arc::clone(&part).replace_children(vec![child], options)?));
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

/// Drives a future of DataFusion on a thread of its own: the caller's may be one that must not wait, of another runtime.
fn apart<T, F>(make: impl FnOnce() -> F + Send) -> Result<T, String>
where
    T: Send,
    F: Future<Output = Result<T, DataFusionError>>,
{
    /// Planning and simplifying recurse over expressions.
    const STACK_BYTES: usize = 16 << 20;
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
        runtime.block_on(make()).map_err(|error| sentence(&error))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("query".into()).stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| format!("no thread for a query: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("the query engine panicked".to_owned()))
    })
}

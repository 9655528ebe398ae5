//! Applying: one batch through the graph. Row-wise steps that follow each other run slice by slice, each slice through
//! all of them, several slices in parallel; queries gather.

use std::{collections::BTreeSet, collections::HashMap, sync::Arc, time::Instant};

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, UInt64Array},
    buffer::BooleanBuffer,
    compute::{concat_batches, filter_record_batch, interleave_record_batch},
    error::ArrowError,
};
use rayon::prelude::*;
use tidemill_config::OnError;

use crate::{
    BatchContext, Pipeline, Reject, Rows, SLICE_BYTES, SLICE_ROWS, StepError,
    account::{self, Account, Outgrown, Tally},
    columns,
    expression::{Bad, Expression},
    functions,
    input::Union,
    lookup::{Bound, Joined, Table, Tables},
    pipeline::{Body, Graph, Node},
    query::Query,
    verbs::{Output, Verb},
};

/// What a batch gives.
#[derive(Debug)]
pub struct Applied {
    /// By sink, in the job's order: its rows, in their order, with the schema of [`Pipeline::sink_schema`].
    pub sinks: Vec<(String, Vec<RecordBatch>)>,
    /// Rows that could not be processed, by raw record, then by step.
    pub rejects: Vec<Reject>,
    /// What each step did, in the job's order; after the steps the conditions of sinks, as `sinks.NAME`.
    pub steps: Vec<StepStats>,
}

/// What a step did in one batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepStats {
    /// The step.
    pub name: String,
    /// Rows that it got.
    pub rows_in: u64,
    /// Rows that it gave.
    pub rows_out: u64,
    /// Rows that it rejected.
    pub rejected: u64,
    /// Nanoseconds that it worked, over all threads.
    pub nanos: u64,
}

/// A reject with the number of its step, to sort by.
type Found = (usize, Reject);

impl Pipeline {
    /// Runs a batch through all steps. `inputs` are the chunks of each source, in the order of its records; a source that
    /// has none may be left out. Works on the calling thread and on rayon's; never waits for anything else.
    ///
    /// The same rows give the same output, however they are cut into chunks, as often as they come.
    pub fn apply(&self, context: &BatchContext, inputs: Vec<(String, Vec<Rows>)>) -> Result<Applied, StepError> {
        self.apply_with(context, inputs, &Tables::new())
    }

    /// The same with the tables of the job's lookups, by step. A table that is asked is waited for.
    pub fn apply_with(
        &self,
        context: &BatchContext,
        inputs: Vec<(String, Vec<Rows>)>,
        tables: &Tables,
    ) -> Result<Applied, StepError> {
        self.apply_within(context, inputs, tables, &Account::unlimited())
    }

    /// The same, within the memory of a batch. What comes in is not on the account yet; what comes out stays there.
    pub fn apply_within(
        &self,
        context: &BatchContext,
        inputs: Vec<(String, Vec<Rows>)>,
        tables: &Tables,
        account: &Arc<Account>,
    ) -> Result<Applied, StepError> {
        let graph = &self.graph;
        let mut run = Run {
            graph,
            context,
            tables,
            account,
            held: 0,
            outputs: graph.load(inputs)?,
            left: graph.consumers(),
            rejects: Vec::new(),
            steps: graph.stats(),
        };
        run.measure(&[]).map_err(|outgrown| StepError::Outgrown { step: "decode".to_owned(), outgrown })?;
        let mut index = 0;
        while index < graph.nodes.len() {
            index = run.advance(index)?;
        }
        let mut sinks = Vec::with_capacity(graph.sinks.len());
        for (name, input) in &graph.sinks {
            let rows = run.take(input).map_err(|error| run.defect(name, &error))?;
            sinks.push((
                name.clone(),
                rows.into_iter().map(|rows| rows.batch).filter(|batch| batch.num_rows() > 0).collect(),
            ));
        }
        run.rejects.sort_by_key(|(step, reject)| (reject.origin, *step));
        let rejects = run.rejects.into_iter().map(|(_, reject)| reject).collect();
        Ok(Applied { sinks, rejects, steps: run.steps })
    }
}

impl Graph {
    /// The chunks of each source with the columns that the pipeline uses.
    fn load(&self, mut inputs: Vec<(String, Vec<Rows>)>) -> Result<Vec<Vec<Rows>>, StepError> {
        let mut outputs = Vec::with_capacity(self.sources.len() + self.nodes.len());
        for (name, schema) in &self.sources {
            let chunks =
                inputs.iter_mut().filter(|(given, _)| given == name).flat_map(|(_, chunks)| std::mem::take(chunks));
            let wrong = |what: String| StepError::Input { source_name: name.clone(), what };
            let mut loaded = Vec::new();
            for Rows { batch, origin } in chunks {
                if origin.len() != batch.num_rows() {
                    return Err(wrong(format!("{} rows with {} origins", batch.num_rows(), origin.len())));
                }
                let mut arrays = Vec::with_capacity(schema.fields().len());
                for field in schema.fields() {
                    match batch.column_by_name(field.name()) {
                        Some(values) if values.data_type() == field.data_type() => arrays.push(Arc::clone(values)),
                        Some(values) => {
                            let (is, expected) =
                                (columns::type_name(values.data_type()), columns::type_name(field.data_type()));
                            return Err(wrong(format!("column `{}` is {is}, not {expected}", field.name())));
                        }
                        None => return Err(wrong(format!("it lacks the column `{}`", field.name()))),
                    }
                }
                let batch =
                    columns::batch_of(schema, arrays, batch.num_rows()).map_err(|error| wrong(error.to_string()))?;
                loaded.push(Rows { batch, origin });
            }
            outputs.push(loaded);
        }
        if let Some((name, _)) = inputs.iter().find(|(given, _)| !self.sources.iter().any(|(name, _)| name == given)) {
            return Err(StepError::Input { source_name: name.clone(), what: "the pipeline has no such source".into() });
        }
        outputs.resize_with(self.sources.len() + self.nodes.len(), Vec::new);
        Ok(outputs)
    }

    /// How often each node's rows are taken.
    fn consumers(&self) -> Vec<usize> {
        let mut counts = vec![0; self.sources.len() + self.nodes.len()];
        let mut count = |input: &Union| input.inputs.iter().for_each(|id| counts[*id] += 1);
        for node in &self.nodes {
            match &node.body {
                Body::Rows { input, .. } | Body::Lookup { input, .. } => count(input),
                Body::Query { inputs, .. } => inputs.iter().for_each(&mut count),
            }
        }
        self.sinks.iter().for_each(|(_, input)| count(input));
        counts
    }

    fn stats(&self) -> Vec<StepStats> {
        self.nodes.iter().map(|node| StepStats { name: node.name.clone(), ..StepStats::default() }).collect()
    }
}

/// What a kernel's failure means, where rows are not to blame.
fn defect(account: &Account, step: &str, error: &ArrowError) -> StepError {
    match account.outgrown() {
        Some(outgrown) => StepError::Outgrown { step: step.to_owned(), outgrown },
        None => StepError::Defect { step: step.to_owned(), cause: error.to_string() },
    }
}

/// One batch on its way.
struct Run<'a> {
    graph: &'a Graph,
    context: &'a BatchContext,
    tables: &'a Tables,
    account: &'a Arc<Account>,
    /// Bytes of `outputs` on the account.
    held: u64,
    /// By node, until the last that takes it has it.
    outputs: Vec<Vec<Rows>>,
    /// How often each node's rows will still be taken.
    left: Vec<usize>,
    rejects: Vec<Found>,
    steps: Vec<StepStats>,
}

impl Run<'_> {
    fn defect(&self, step: &str, error: &ArrowError) -> StepError {
        defect(self.account, step, error)
    }

    /// Puts on the account what lives now: all outputs, and these rows.
    fn measure(&mut self, more: &[Rows]) -> Result<(), Outgrown> {
        let mut tally = Tally::default();
        self.outputs.iter().flatten().chain(more).for_each(|rows| tally.add(&rows.batch));
        let before = std::mem::replace(&mut self.held, tally.bytes());
        match self.held.checked_sub(before) {
            Some(more) => self.account.take(more),
            None => {
                self.account.give_back(before - self.held);
                Ok(())
            }
        }
    }

    /// Runs node `first` and the row-wise nodes that follow it alone; returns the node to go on with.
    fn advance(&mut self, first: usize) -> Result<usize, StepError> {
        let graph = self.graph;
        let offset = graph.sources.len();
        let (last, rows) = match &graph.nodes[first].body {
            Body::Query { inputs, query } => (first, self.query(first, inputs, query)?),
            Body::Rows { input, .. } | Body::Lookup { input, .. } => {
                let last = self.chain(first);
                let rows = self.take(input).map_err(|error| self.defect(&graph.nodes[first].name, &error))?;
                (last, self.rows(first..=last, rows)?)
            }
        };
        self.outputs[offset + last] = rows;
        let step = &graph.nodes[last].name;
        self.measure(&[]).map_err(|outgrown| StepError::Outgrown { step: step.clone(), outgrown })?;
        Ok(last + 1)
    }

    /// The last of the nodes after `first` that go through slices together with it: each takes the rows of the one before,
    /// nobody else does, and none needs all rows: to count them, for `random()`, or to ask a table for their keys.
    fn chain(&self, first: usize) -> usize {
        let offset = self.graph.sources.len();
        let mut last = first;
        while let Some(next) = self.graph.nodes.get(last + 1) {
            let (Body::Rows { input, .. } | Body::Lookup { input, .. }) = &next.body else { break };
            let whole = next.is_seeded() || matches!(self.tables.get(&next.name), Some(Table::Asked(_)));
            if input.inputs != [offset + last] || self.left[offset + last] != 1 || whole {
                break;
            }
            last += 1;
        }
        last
    }

    /// The rows of united nodes, under their common schema.
    fn take(&mut self, input: &Union) -> Result<Vec<Rows>, ArrowError> {
        let mut taken = Vec::new();
        for id in &input.inputs {
            self.left[*id] -= 1;
            let rows = match self.left[*id] {
                0 => std::mem::take(&mut self.outputs[*id]),
                _ => self.outputs[*id].clone(),
            };
            if self.graph.schema(*id) == &input.schema {
                taken.extend(rows);
                continue;
            }
            for Rows { batch, origin } in rows {
                taken.push(Rows { batch: columns::widen(&batch, &input.schema)?, origin });
            }
        }
        Ok(taken)
    }

    /// Row-wise nodes over slices.
    fn rows(&mut self, nodes: std::ops::RangeInclusive<usize>, chunks: Vec<Rows>) -> Result<Vec<Rows>, StepError> {
        let first = *nodes.start();
        let (mut joined, mut asked) = (Vec::new(), 0);
        for index in nodes.clone() {
            let node = &self.graph.nodes[index];
            let Body::Lookup { lookup, .. } = &node.body else {
                joined.push(None);
                continue;
            };
            let failed = |cause: String, transient| StepError::Table { step: node.name.clone(), cause, transient };
            let table = self.tables.get(&node.name).ok_or_else(|| failed("it has no table".into(), false))?;
            let done = lookup.join(table, &chunks, &mut self.steps[index].nanos);
            let done = done.map_err(|error| failed(error.cause, error.transient))?;
            if matches!(table, Table::Asked(_)) {
                let bytes = done.bytes();
                asked += bytes;
                let step = || node.name.clone();
                self.account.take(bytes).map_err(|outgrown| StepError::Outgrown { step: step(), outgrown })?;
            }
            joined.push(Some(done));
        }
        let keys = if self.graph.nodes[first].is_seeded() { keys(&chunks) } else { Vec::new() };
        let mut slices = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            for (start, rows) in cut(&chunk.batch) {
                let keys = keys.get(index).map(|keys| keys.slice(start, rows));
                slices.push((chunk, start, rows, keys));
            }
        }
        let (graph, context, account) = (self.graph, self.context, self.account);
        let through = |(chunk, start, rows, keys): (&Rows, usize, usize, Option<ArrayRef>)| {
            let batch = chunk.batch.slice(start, rows);
            let slice = Slice {
                batch,
                origin: chunk.origin[start..start + rows].to_vec(),
                rejects: Vec::new(),
                steps: Vec::new(),
                account,
                made: 0,
            };
            let _entered = account::enter(account);
            functions::under(context, || slice.through(graph, nodes.clone(), &joined, keys))
        };
        let done: Vec<Result<Slice, StepError>> = match slices.len() {
            0 | 1 => slices.into_iter().map(through).collect(),
            _ => slices.into_par_iter().map(through).collect(),
        };
        let (mut rows, mut made) = (Vec::with_capacity(done.len()), 0);
        for slice in done {
            let slice = slice?;
            made += slice.made;
            for (total, step) in self.steps[nodes.clone()].iter_mut().zip(slice.steps) {
                total.rows_in += step.rows_in;
                total.rows_out += step.rows_out;
                total.rejected += step.rejected;
                total.nanos += step.nanos;
            }
            self.rejects.extend(slice.rejects);
            if slice.batch.num_rows() > 0 {
                rows.push(Rows { batch: slice.batch, origin: slice.origin });
            }
        }
        // From now on what the slices made is measured with all that lives.
        self.account.give_back(made + asked);
        Ok(rows)
    }

    /// A query over all rows.
    fn query(&mut self, index: usize, inputs: &[Union], query: &Query) -> Result<Vec<Rows>, StepError> {
        let (begun, node) = (Instant::now(), &self.graph.nodes[index]);
        let outgrown = |outgrown| StepError::Outgrown { step: node.name.clone(), outgrown };
        let (mut batches, mut origins, mut gathered_bytes) = (Vec::new(), Vec::new(), 0);
        for input in inputs {
            let rows = self.take(input).map_err(|error| self.defect(&node.name, &error))?;
            // Gathered they are there twice for a moment.
            let bytes: u64 =
                if rows.len() > 1 { rows.iter().map(|rows| account::bytes_of_rows(&rows.batch)).sum() } else { 0 };
            self.account.take(bytes).map_err(&outgrown)?;
            gathered_bytes += bytes;
            let gathered = concat_batches(&input.schema, rows.iter().map(|rows| &rows.batch));
            batches.push(gathered.map_err(|error| self.defect(&node.name, &error))?);
            origins.push(rows.into_iter().flat_map(|rows| rows.origin).collect::<Vec<u32>>());
        }
        // What was gathered goes in the place of the chunks.
        self.account.give_back(gathered_bytes);
        let here: Vec<Rows> = batches.iter().map(|batch| Rows { batch: batch.clone(), origin: Vec::new() }).collect();
        self.measure(&here).map_err(&outgrown)?;
        drop(here);
        let done = query.apply(self.context, &batches, self.account);
        let (given, bad) = done.map_err(|cause| match self.account.outgrown() {
            Some(found) => outgrown(found),
            None => StepError::Query { step: node.name.clone(), cause },
        })?;
        let stats = &mut self.steps[index];
        stats.rows_in = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        stats.rejected = bad.len() as u64;
        for (input, bad) in bad {
            let reject = node.reject(origins[input][bad.row as usize], bad);
            if node.on_error == OnError::Fail {
                return Err(StepError::Row(reject));
            }
            self.rejects.push((index, reject));
        }
        stats.rows_out = given.iter().map(|batch| batch.num_rows() as u64).sum();
        stats.nanos = begun.elapsed().as_nanos() as u64;
        Ok(given.into_iter().map(|batch| Rows { origin: vec![Rows::NONE; batch.num_rows()], batch }).collect())
    }
}

/// The slices of a batch: (start, rows).
fn cut(batch: &RecordBatch) -> Vec<(usize, usize)> {
    fn halve(batch: &RecordBatch, start: usize, rows: usize, slices: &mut Vec<(usize, usize)>) {
        let bytes = batch.columns().iter().map(|column| account::values(column.as_ref(), start, rows)).sum::<u64>();
        if rows < 2 || bytes <= SLICE_BYTES {
            slices.push((start, rows));
            return;
        }
        halve(batch, start, rows / 2, slices);
        halve(batch, start + rows / 2, rows - rows / 2, slices);
    }
    let mut slices = Vec::new();
    for start in (0..batch.num_rows()).step_by(SLICE_ROWS) {
        halve(batch, start, SLICE_ROWS.min(batch.num_rows() - start), &mut slices);
    }
    slices
}

/// For each chunk what tells its rows apart: the raw record, and which of its rows it is.
fn keys(chunks: &[Rows]) -> Vec<ArrayRef> {
    let mut seen: HashMap<u32, u32> = HashMap::new();
    let mut key = |origin: &u32| {
        let ordinal = seen.entry(*origin).or_insert(0);
        *ordinal += 1;
        functions::row_key(*origin, *ordinal)
    };
    chunks
        .iter()
        .map(|chunk| Arc::new(chunk.origin.iter().map(&mut key).collect::<UInt64Array>()) as ArrayRef)
        .collect()
}

/// Some rows on their way through row-wise nodes.
struct Slice<'a> {
    batch: RecordBatch,
    origin: Vec<u32>,
    rejects: Vec<Found>,
    steps: Vec<StepStats>,
    account: &'a Account,
    /// Bytes on the account for what the steps made, beside the columns that the slice began with.
    made: u64,
}

impl Slice<'_> {
    fn through(
        mut self,
        graph: &Graph,
        nodes: std::ops::RangeInclusive<usize>,
        joined: &[Option<Joined>],
        mut keys: Option<ArrayRef>,
    ) -> Result<Self, StepError> {
        let first = self.batch.columns().to_vec();
        for (index, joined) in nodes.zip(joined) {
            let (begun, node) = (Instant::now(), &graph.nodes[index]);
            let rows_in = self.batch.num_rows() as u64;
            let keys = keys.take();
            let apply = |verb: &dyn Verb, when: &Option<Expression>| match when {
                Some(when) => apply_when(verb, when, &self.batch, keys.as_ref(), node),
                None => verb.apply(&self.batch, keys.as_ref()),
            };
            let output = match (&node.body, joined) {
                (Body::Rows { verb, when, .. }, _) => apply(verb.as_ref(), when),
                (Body::Lookup { lookup, when, .. }, Some(joined)) => apply(&Bound { lookup, joined }, when),
                _ => continue,
            };
            let output = output.map_err(|error| defect(self.account, &node.name, &error))?;
            let rejected = self.settle(index, node, output)?;
            self.measure(&first, &node.name)?;
            let nanos = begun.elapsed().as_nanos() as u64;
            self.steps.push(StepStats {
                name: String::new(),
                rows_in,
                rows_out: self.batch.num_rows() as u64,
                rejected,
                nanos,
            });
        }
        Ok(self)
    }

    /// Puts on the account what the steps made, beside the columns that were there `first`.
    fn measure(&mut self, first: &[ArrayRef], step: &str) -> Result<(), StepError> {
        let is_new = |column: &&ArrayRef| !first.iter().any(|first| Arc::ptr_eq(first, column));
        let columns = self.batch.columns().iter().filter(is_new).map(account::bytes_of_values).sum::<u64>();
        let made = columns + self.batch.num_rows() as u64 * account::ROW_BYTES;
        let outgrown = |outgrown| StepError::Outgrown { step: step.to_owned(), outgrown };
        // What functions made is in the columns now, or gone.
        account::settle();
        match made.checked_sub(self.made) {
            Some(more) => self.account.take(more).map_err(outgrown)?,
            None => self.account.give_back(self.made - made),
        }
        self.made = made;
        // A function may have failed for want of memory, and its rows be null.
        self.account.outgrown().map_or(Ok(()), |found| Err(outgrown(found)))
    }

    /// Does with bad rows what the step says, and goes on with the others. Returns how many were rejected.
    fn settle(&mut self, index: usize, node: &Node, output: Output) -> Result<u64, StepError> {
        let Output { mut batch, mut from, mut bad } = output;
        let mut rejected = 0;
        if !bad.is_empty() && node.on_error != OnError::SetNull {
            // One row is one reject, for the first column that failed.
            bad.sort_by_key(|bad| bad.row);
            bad.dedup_by_key(|bad| bad.row);
            rejected = bad.len() as u64;
            let rows: BTreeSet<u32> = bad.iter().map(|bad| bad.row).collect();
            let bytes = bad.iter().map(|bad| account::REJECT_BYTES + bad.detail.len() as u64).sum();
            self.account.take(bytes).map_err(|outgrown| StepError::Outgrown { step: node.name.clone(), outgrown })?;
            for bad in bad {
                let reject = node.reject(self.origin[bad.row as usize], bad);
                if node.on_error == OnError::Fail {
                    return Err(StepError::Row(reject));
                }
                self.rejects.push((index, reject));
            }
            let input = |row: usize| from.as_ref().map_or(row as u32, |from| from[row]);
            let good = BooleanBuffer::collect_bool(batch.num_rows(), |row| !rows.contains(&input(row)));
            let good = BooleanArray::new(good, None);
            let left = good.values().set_indices().map(input).collect();
            batch = filter_record_batch(&batch, &good).map_err(|error| defect(self.account, &node.name, &error))?;
            from = Some(left);
        }
        if let Some(from) = from {
            self.origin = from.into_iter().map(|row| self.origin[row as usize]).collect();
        }
        self.batch = batch;
        Ok(rejected)
    }
}

impl Node {
    fn is_seeded(&self) -> bool {
        match &self.body {
            Body::Rows { verb, when, .. } => verb.is_seeded() || when.as_ref().is_some_and(Expression::is_seeded),
            Body::Lookup { when, .. } => when.as_ref().is_some_and(Expression::is_seeded),
            Body::Query { .. } => false,
        }
    }

    fn reject(&self, origin: u32, bad: Bad) -> Reject {
        Reject { origin, step: self.name.clone(), reason: bad.reason, detail: bad.detail }
    }
}

/// Applies a verb to the rows for which `when` is true; the others pass. Order is kept.
fn apply_when(
    verb: &dyn Verb,
    when: &Expression,
    batch: &RecordBatch,
    keys: Option<&ArrayRef>,
    node: &Node,
) -> Result<Output, ArrowError> {
    let mut bad = Vec::new();
    let chosen = when.test(batch, keys, &mut bad)?;
    if chosen.true_count() == batch.num_rows() {
        return verb.apply(batch, keys);
    }
    let rows: Vec<u32> = chosen.values().set_indices().map(|row| row as u32).collect();
    let passed = columns::widen(batch, &node.schema)?;
    if rows.is_empty() {
        return Ok(Output { batch: passed, from: None, bad });
    }
    let keys = keys.map(|keys| arrow::compute::filter(keys, &chosen)).transpose()?;
    let changed = verb.apply(&filter_record_batch(batch, &chosen)?, keys.as_ref())?;
    bad.extend(changed.bad.into_iter().map(|bad| Bad { row: rows[bad.row as usize], ..bad }));
    let from = |row: usize| rows[changed.from.as_ref().map_or(row, |from| from[row] as usize)];
    // Both parts are in the order of the input: merge them.
    let (mut order, mut next) = (Vec::with_capacity(batch.num_rows()), 0);
    for row in 0..batch.num_rows() as u32 {
        if !chosen.value(row as usize) {
            order.push(((1, row as usize), row));
        }
        while next < changed.batch.num_rows() && from(next) == row {
            order.push(((0, next), row));
            next += 1;
        }
    }
    let (indices, from): (Vec<(usize, usize)>, Vec<u32>) = order.into_iter().unzip();
    let batch = interleave_record_batch(&[&changed.batch, &passed], &indices)?;
    Ok(Output { batch, from: Some(from), bad })
}

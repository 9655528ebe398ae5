//! Planning: from a job and the schemas of its sources to a graph of steps, checked before the first record.
//!
//! A job is planned twice: once over all columns, to check it and to know which columns it uses, then over these alone, so
//! that codecs need not decode the others.

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::SchemaRef;
use tidemill_config::{At, Job, KafkaSink, Located, OnError, Sink, SinkKind, Step, Verb as Model};

use crate::{
    Schemas, columns,
    expression::Expression,
    input::{self, Union},
    lookup::{self, Lookup},
    query::{self, Query},
    stack,
    verbs::{self, Filter, Notes, Planned, Verb},
};

/// A mistake in a job that only its schemas show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PlanError {
    /// Where it stands in the job's file.
    pub at: Option<At>,
    /// The sentence: what is wrong, and what would be right.
    pub message: String,
}

/// A planned job: steps and the conditions of sinks. It has no state: any number of batches can be applied at once.
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) graph: Graph,
    needed: Vec<(String, Vec<String>)>,
    schemas: Vec<(String, SchemaRef)>,
}

/// Sources, then steps, then sinks with a condition: a node's inputs come before it.
#[derive(Debug)]
pub(crate) struct Graph {
    /// Name and schema; node `i` is source `i`.
    pub sources: Vec<(String, SchemaRef)>,
    /// Node `sources.len() + i`.
    pub nodes: Vec<Node>,
    /// Name and inputs of each sink.
    pub sinks: Vec<(String, Union)>,
}

/// A step, or the condition of a sink.
#[derive(Debug)]
pub(crate) struct Node {
    pub name: String,
    pub on_error: OnError,
    pub body: Body,
    /// The schema of its output.
    pub schema: SchemaRef,
}

/// What a node does.
#[derive(Debug)]
pub(crate) enum Body {
    /// Row by row.
    Rows { input: Union, verb: Box<dyn Verb>, when: Option<Expression> },
    /// Row by row, with a table.
    Lookup { input: Union, lookup: Lookup, when: Option<Expression> },
    /// A query over all rows of its inputs.
    Query { inputs: Vec<Union>, query: Query },
}

impl Pipeline {
    /// Plans a job without lookups.
    pub fn plan(job: &Job, sources: &[(String, SchemaRef)]) -> Result<Self, Vec<PlanError>> {
        Self::plan_with(job, sources, &Schemas::new())
    }

    /// Plans a job's steps and its sinks' conditions. `sources` are the schemas of all sources, in the job's order, `tables`
    /// those of the lookups' tables, by step. All mistakes are told at once.
    ///
    /// It is done on a thread of its own: whatever the steps say, they neither overflow a stack nor end the process.
    pub fn plan_with(job: &Job, sources: &[(String, SchemaRef)], tables: &Schemas) -> Result<Self, Vec<PlanError>> {
        stack::apart("plan", || Self::plan_here(job, sources, tables)).unwrap_or_else(|panic| {
            let message = format!("planning the steps failed: {panic}. This is a defect of Tidemill, please report it");
            Err(vec![PlanError { at: None, message }])
        })
    }

    fn plan_here(job: &Job, sources: &[(String, SchemaRef)], tables: &Schemas) -> Result<Self, Vec<PlanError>> {
        let sources: Vec<_> = sources.iter().map(|(name, schema)| (name.clone(), columns::plain(schema))).collect();
        let mut errors = Vec::new();
        let full = Builder::new(job, &sources, tables, false, &mut errors).build();
        let full = match full {
            Some(full) if errors.is_empty() => full,
            _ => return Err(errors),
        };
        let schemas =
            full.nodes[..job.steps.len()].iter().map(|node| (node.name.clone(), Arc::clone(&node.schema))).collect();
        let needed = full.needed();
        let (graph, needed) = prune(job, full, needed, tables);
        Ok(Self { graph, needed, schemas })
    }

    /// For each source the columns that the job uses, in the order of its schema. Codecs need not decode others, and
    /// [`Pipeline::apply`] ignores them.
    pub fn needed(&self) -> &[(String, Vec<String>)] {
        &self.needed
    }

    /// The schema after each step, for `explain`.
    pub fn schemas(&self) -> &[(String, SchemaRef)] {
        &self.schemas
    }

    /// The schema of the rows that a sink gets; `None` where the job has no such sink.
    pub fn sink_schema(&self, sink: &str) -> Option<SchemaRef> {
        let (_, input) = self.graph.sinks.iter().find(|(name, _)| name == sink)?;
        Some(Arc::clone(&input.schema))
    }

    /// The first step that must see all rows of a batch; `None` where chunks may be applied one by one, each by itself,
    /// and give the same rows in the same order.
    pub fn gathers(&self) -> Option<&str> {
        let unites = |input: &Union| {
            input.inputs.iter().filter(|id| **id >= self.graph.sources.len()).count() > 0 && input.inputs.len() > 1
        };
        self.graph
            .nodes
            .iter()
            .find(|node| match &node.body {
                Body::Query { .. } => true,
                Body::Rows { input, .. } | Body::Lookup { input, .. } => unites(input),
            })
            .map(|node| node.name.as_str())
            .or_else(|| self.graph.sinks.iter().find(|(_, input)| unites(input)).map(|(name, _)| name.as_str()))
    }

    /// The steps that see all rows of a batch at once.
    pub fn queries(&self) -> impl Iterator<Item = &str> {
        let queries = self.graph.nodes.iter().filter(|node| matches!(node.body, Body::Query { .. }));
        queries.map(|node| node.name.as_str())
    }

    /// Whether chunks may be applied one by one ([`Pipeline::gathers`]).
    pub fn is_row_wise(&self) -> bool {
        self.gathers().is_none()
    }
}

/// The graph over the needed columns alone. Where a job cannot be planned without a column that it does not use
/// (`SELECT * EXCLUDE (x)`), all columns are needed.
fn prune(
    job: &Job,
    full: Graph,
    needed: Vec<BTreeSet<String>>,
    tables: &Schemas,
) -> (Graph, Vec<(String, Vec<String>)>) {
    let used = |schema: &SchemaRef, needed: &BTreeSet<String>| -> Vec<String> {
        columns::names(schema).into_iter().filter(|name| needed.contains(*name)).map(str::to_owned).collect()
    };
    let pruned: Vec<(String, SchemaRef)> = full
        .sources
        .iter()
        .zip(&needed)
        .map(|((name, schema), needed)| {
            let kept = schema.fields().iter().filter(|field| needed.contains(field.name()));
            (name.clone(), columns::schema_of(kept.map(|field| (field.name().as_str(), field.data_type().clone()))))
        })
        .collect();
    let whole = |schema: &SchemaRef| columns::names(schema).into_iter().map(str::to_owned).collect();
    let mut errors = Vec::new();
    let graph =
        if pruned == full.sources { None } else { Builder::new(job, &pruned, tables, true, &mut errors).build() };
    let sinks = |graph: &Graph| graph.sinks.iter().map(|(_, input)| Arc::clone(&input.schema)).collect::<Vec<_>>();
    match graph {
        Some(graph) if errors.is_empty() && sinks(&graph) == sinks(&full) => {
            let needed =
                full.sources.iter().zip(&needed).map(|((name, schema), needed)| (name.clone(), used(schema, needed)));
            let needed = needed.collect();
            (graph, needed)
        }
        _ => {
            let needed = full.sources.iter().map(|(name, schema)| (name.clone(), whole(schema))).collect();
            (full, needed)
        }
    }
}

impl Graph {
    /// The schema of a node's output.
    pub fn schema(&self, id: usize) -> &SchemaRef {
        match self.sources.get(id) {
            Some((_, schema)) => schema,
            None => &self.nodes[id - self.sources.len()].schema,
        }
    }

    /// From the sinks backwards: for each source the columns that somebody wants.
    fn needed(&self) -> Vec<BTreeSet<String>> {
        let mut wanted = vec![BTreeSet::new(); self.sources.len() + self.nodes.len()];
        let want = |wanted: &mut Vec<BTreeSet<String>>, input: &Union, names: &BTreeSet<String>| {
            for id in &input.inputs {
                let there = columns::names(self.schema(*id)).into_iter().filter(|name| names.contains(*name));
                wanted[*id].extend(there.map(str::to_owned));
            }
        };
        for (_, input) in &self.sinks {
            let all = columns::names(&input.schema).into_iter().map(str::to_owned).collect();
            want(&mut wanted, input, &all);
        }
        for (index, node) in self.nodes.iter().enumerate().rev() {
            let names = std::mem::take(&mut wanted[self.sources.len() + index]);
            match &node.body {
                Body::Rows { input, verb, when } => {
                    let needs = under(when.as_ref(), verb.needs(names.clone()), names);
                    want(&mut wanted, input, &needs);
                }
                Body::Lookup { input, lookup, when } => {
                    let needs = under(when.as_ref(), lookup.needs(names.clone()), names);
                    want(&mut wanted, input, &needs);
                }
                Body::Query { inputs, query } => {
                    for input in inputs {
                        want(&mut wanted, input, query.reads());
                    }
                }
            }
        }
        wanted.truncate(self.sources.len());
        wanted
    }
}

/// What a step needs under its `when`.
fn under(when: Option<&Expression>, mut needs: BTreeSet<String>, wanted: BTreeSet<String>) -> BTreeSet<String> {
    if let Some(when) = when {
        // Rows that pass unchanged keep what the verb would have replaced.
        needs.extend(wanted);
        needs.extend(when.columns().iter().cloned());
    }
    needs
}

/// Builds a graph, collecting errors. A step that is wrong still has an output where one can be guessed, so that the
/// steps after it are checked too; where not, what depends on it is left unchecked.
struct Builder<'a> {
    job: &'a Job,
    tables: &'a Schemas,
    pruned: bool,
    errors: &'a mut Vec<PlanError>,
    calls: u64,
    sources: Vec<(String, SchemaRef)>,
    /// Names and schemas of all nodes so far, sources first.
    known: Vec<(String, Option<SchemaRef>)>,
    nodes: Vec<Node>,
    /// Nodes whose rows somebody takes.
    taken: BTreeSet<usize>,
}

impl<'a> Builder<'a> {
    fn new(
        job: &'a Job,
        sources: &[(String, SchemaRef)],
        tables: &'a Schemas,
        pruned: bool,
        errors: &'a mut Vec<PlanError>,
    ) -> Self {
        let known = sources.iter().map(|(name, schema)| (name.clone(), Some(Arc::clone(schema)))).collect();
        let (nodes, taken) = (Vec::new(), BTreeSet::new());
        Self { job, tables, pruned, errors, calls: 0, sources: sources.to_vec(), known, nodes, taken }
    }

    /// The graph, where every step could be planned.
    fn build(mut self) -> Option<Graph> {
        for step in &self.job.steps {
            if self.known.iter().any(|(name, _)| *name == step.name) {
                self.error(
                    Some(&step.at),
                    format!("two sources or steps are named `{}`: `from` could mean both", step.name),
                );
            }
            let node = stack::caught(|| self.step(step)).unwrap_or_else(|panic| {
                self.error(
                    Some(&step.at),
                    format!(
                        "step {}: planning it failed: {panic}. This is a defect of Tidemill, please report it",
                        step.name
                    ),
                );
                None
            });
            self.known.push((step.name.clone(), node.as_ref().map(|node| Arc::clone(&node.schema))));
            self.nodes.extend(node);
        }
        let mut sinks = Vec::new();
        for sink in &self.job.sinks {
            let input = self.sink(sink);
            sinks.extend(input.map(|input| (sink.name.value.clone(), input)));
        }
        if let Some(dead) = &self.job.dead_letters
            && let Some(wrong) = dead.from.as_ref().or(dead.filter.as_ref())
        {
            self.error(
                Some(&wrong.at),
                "dead letters take what is rejected, all of it: `from` and `where` have no place here".into(),
            );
        }
        if self.errors.is_empty() {
            self.dead_ends();
        }
        let is_whole = self.known.iter().all(|(_, schema)| schema.is_some()) && sinks.len() == self.job.sinks.len();
        is_whole.then_some(Graph { sources: self.sources, nodes: self.nodes, sinks })
    }

    fn error(&mut self, at: Option<&At>, message: String) {
        self.errors.push(PlanError { at: at.cloned(), message });
    }

    /// Rows that go nowhere are lost without a word: nobody means that.
    fn dead_ends(&mut self) {
        let steps = self.sources.len()..self.sources.len() + self.job.steps.len();
        let dead: Vec<usize> = (0..steps.end).filter(|id| !self.taken.contains(id)).collect();
        for id in dead {
            let name = self.known[id].0.clone();
            let (kind, at) = match id.checked_sub(self.sources.len()) {
                Some(step) => ("step", Some(self.job.steps[step].at.clone())),
                None => ("source", self.job.sources.get(id).map(|source| source.name.at.clone())),
            };
            let message = format!("the rows of {kind} `{name}` go nowhere: name it in the `from` of a step or sink");
            self.errors.push(PlanError { at, message });
        }
    }

    /// The nodes that a name list means; empty: the step before, at the beginning all sources. `None` where one is wrong.
    fn inputs(&mut self, from: &[Located<String>], owner: &str) -> Option<Vec<usize>> {
        let count = self.known.len();
        if from.is_empty() {
            return Some(if count > self.sources.len() { vec![count - 1] } else { (0..count).collect() });
        }
        let mut ids = Vec::new();
        for name in from {
            match self.known.iter().position(|(known, _)| *known == name.value) {
                Some(id) if ids.contains(&id) => {
                    self.error(Some(&name.at), format!("{owner} takes `{}` twice", name.value));
                }
                Some(id) => ids.push(id),
                None => {
                    let later = self.job.steps.iter().any(|step| step.name == name.value);
                    let names: Vec<&str> = self.known.iter().map(|(known, _)| known.as_str()).collect();
                    let why = match later {
                        true => format!("step `{}` comes later; `from` names sources and earlier steps", name.value),
                        false => format!("no source or step `{}`{}", name.value, columns::hint(&name.value, names)),
                    };
                    self.error(Some(&name.at), format!("{owner}: {why}"));
                }
            }
        }
        (ids.len() == from.len()).then_some(ids)
    }

    /// These nodes united by column names; `None` where the schema of one is unknown or types differ.
    fn unite(&mut self, ids: &[usize], at: Option<&At>, owner: &str) -> Option<Union> {
        self.taken.extend(ids);
        let parts = ids.iter().map(|id| Some((self.known[*id].0.as_str(), self.known[*id].1.as_ref()?)));
        let parts: Vec<(&str, &SchemaRef)> = parts.collect::<Option<_>>()?;
        match input::unite(&parts) {
            Ok(schema) => Some(Union { inputs: ids.to_vec(), schema }),
            Err(messages) => {
                for message in messages {
                    self.error(at, format!("{owner}: {message}"));
                }
                None
            }
        }
    }

    fn step(&mut self, step: &Step) -> Option<Node> {
        let owner = format!("step {}", step.name);
        let ids = self.inputs(&step.from, &owner)?;
        let at = step.from.first().map_or(&step.at, |name| &name.at);
        if let Model::Sql(text) = &step.verb {
            return self.query(step, text, &ids, at);
        }
        let input = self.unite(&ids, Some(at), &owner)?;
        let mut notes = Notes { errors: self.errors, calls: &mut self.calls, step: &step.name, pruned: self.pruned };
        let when = step.when.as_ref().map(|when| notes.condition(when, &input.schema));
        if let Model::Lookup(model) = &step.verb {
            let Some(table) = self.tables.get(&step.name) else {
                notes.error(&step.at, format!("the columns of {} are not known", model.shown()));
                return None;
            };
            let lookup = lookup::plan(model, &step.at, &input.schema, table, &mut notes)?;
            let schema = Arc::clone(lookup.schema());
            let body = Body::Lookup { input, lookup, when: when.flatten() };
            return Some(Node { name: step.name.clone(), on_error: step.on_error, body, schema });
        }
        let mut planned = verbs::plan(&step.verb, &step.at, &input.schema, &mut notes)?;
        if let Some(when) = &step.when {
            planned.schema = under_when(&planned, &input.schema, &when.at, &mut notes);
        }
        let body = Body::Rows { input, verb: planned.verb, when: when.flatten() };
        Some(Node { name: step.name.clone(), on_error: step.on_error, body, schema: planned.schema })
    }

    fn query(&mut self, step: &Step, text: &Located<String>, ids: &[usize], at: &At) -> Option<Node> {
        let owner = format!("step {}", step.name);
        if let Some(when) = &step.when {
            self.error(
                Some(&when.at),
                format!("{owner}: `when` is for steps that change rows; in a query use WHERE or CASE"),
            );
        }
        let separate = step.from.len() > 1;
        let unions: Vec<Union> = match separate {
            true => ids.iter().map(|id| self.unite(&[*id], Some(at), &owner)).collect::<Option<_>>()?,
            false => vec![self.unite(ids, Some(at), &owner)?],
        };
        let tables = unions.iter().map(|union| {
            let name = self.known[union.inputs[0]].0.clone();
            let names = match (separate, step.from.is_empty()) {
                (true, _) => vec![name],
                (false, true) => vec!["batch".to_owned()],
                (false, false) => vec![name, "batch".to_owned()],
            };
            (names, Arc::clone(&union.schema))
        });
        let tables: Vec<_> = tables.collect();
        let planned = match query::plan(&text.value, tables, &mut self.calls) {
            Ok(planned) => planned,
            Err(message) => {
                self.error(Some(&text.at), format!("{owner}: {message}"));
                return None;
            }
        };
        let name = step.name.clone();
        match planned {
            query::Planned::Rows(Planned { verb, schema }) => {
                let body = Body::Rows { input: unions.into_iter().next()?, verb, when: None };
                Some(Node { name, on_error: step.on_error, body, schema })
            }
            query::Planned::All(query) => {
                if step.on_error == OnError::SetNull {
                    let message =
                        format!("{owner}: a query over many rows cannot set one of them null. Use `reject` or `fail`");
                    self.error(Some(&step.at), message);
                }
                let schema = Arc::clone(query.schema());
                Some(Node { name, on_error: step.on_error, body: Body::Query { inputs: unions, query }, schema })
            }
        }
    }

    fn sink(&mut self, sink: &Sink) -> Option<Union> {
        let owner = format!("sink {}", sink.name.value);
        let ids = match &sink.from {
            Some(from) => self.inputs(std::slice::from_ref(from), &owner)?,
            None => self.last_step(),
        };
        let mut input = self.unite(&ids, Some(&sink.name.at), &owner)?;
        let name = format!("sinks.{}", sink.name.value);
        if let Some(condition) = &sink.filter {
            let mut notes = Notes { errors: self.errors, calls: &mut self.calls, step: &name, pruned: self.pruned };
            let condition = notes.condition(condition, &input.schema)?;
            let schema = Arc::clone(&input.schema);
            input = self.before_sink(&name, input, Planned { verb: Box::new(Filter(condition)), schema });
        }
        if let Some(key) = key_expression(sink, &input.schema) {
            let column = Located { value: KafkaSink::KEY_COLUMN.to_owned(), at: key.at.clone() };
            let model = Model::Add(vec![(column, key.clone())]);
            let mut notes = Notes { errors: self.errors, calls: &mut self.calls, step: &name, pruned: self.pruned };
            let planned = verbs::plan(&model, &key.at, &input.schema, &mut notes)?;
            input = self.before_sink(&name, input, planned);
        }
        Some(input)
    }

    /// A node between the steps and a sink, which gets its rows.
    fn before_sink(&mut self, name: &str, input: Union, planned: Planned) -> Union {
        let schema = Arc::clone(&planned.schema);
        let body = Body::Rows { input, verb: planned.verb, when: None };
        let node = Node { name: name.to_owned(), on_error: OnError::Reject, body, schema: planned.schema };
        self.nodes.push(node);
        Union { inputs: vec![self.sources.len() + self.nodes.len() - 1], schema }
    }

    /// What a sink gets that does not say: the last step, without steps all sources.
    fn last_step(&self) -> Vec<usize> {
        match self.job.steps.len() {
            0 => (0..self.sources.len()).collect(),
            steps => vec![self.sources.len() + steps - 1],
        }
    }
}

/// The key of a Kafka sink where it is an expression: a column's name means the column, whatever it is called.
fn key_expression<'a>(sink: &'a Sink, schema: &SchemaRef) -> Option<&'a Located<String>> {
    let SinkKind::Kafka(kafka) = &sink.kind else { return None };
    kafka.key.as_ref().filter(|key| schema.index_of(&key.value).is_err())
}

/// Rows that pass unchanged and rows that do not end in one batch: a column that both have keeps its type, one that the
/// step adds is null in the others, and none may go.
fn under_when(planned: &Planned, before: &SchemaRef, at: &At, notes: &mut Notes<'_>) -> SchemaRef {
    for field in before.fields() {
        let (name, kind) = (field.name(), columns::type_name(field.data_type()));
        match planned.schema.field_with_name(name) {
            Ok(after) if after.data_type() == field.data_type() => {}
            Ok(after) => {
                let after = columns::type_name(after.data_type());
                notes.error(
                    at,
                    format!(
                        "under `when` the other rows would keep `{name}` as {kind} and these would have {after}. \
                         Change it for all rows, or write the result to another column with `add` and CASE"
                    ),
                );
            }
            Err(_) => {
                notes.error(at, format!("under `when` the other rows would keep `{name}`, which this step takes away"))
            }
        }
    }
    Arc::clone(&planned.schema)
}

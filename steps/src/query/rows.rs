//! Queries that go row by row: projections and filters over one input.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::{filter, filter_record_batch},
    datatypes::SchemaRef,
    error::ArrowError,
};
use datafusion::{
    common::tree_node::TreeNode,
    logical_expr::{Expr, LogicalPlan},
};

use crate::{
    columns,
    expression::{Bad, Expression},
    verbs::{Output, Planned, Verb},
};

/// One node of the query.
#[derive(Debug)]
enum Stage {
    /// New columns.
    Project(Vec<Expression>, SchemaRef),
    /// Fewer rows.
    Filter(Expression),
}

#[derive(Debug)]
struct Rows {
    stages: Vec<Stage>,
    reads: BTreeSet<String>,
}

impl Verb for Rows {
    fn apply(&self, batch: &RecordBatch, keys: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let (mut batch, mut keys, mut from, mut bad) = (batch.clone(), keys.cloned(), None::<Vec<u32>>, Vec::new());
        for stage in &self.stages {
            let before = bad.len();
            match stage {
                Stage::Project(expressions, schema) => {
                    let arrays = expressions.iter().map(|part| part.evaluate(&batch, keys.as_ref(), &mut bad));
                    batch = columns::batch_of(schema, arrays.collect::<Result<_, _>>()?, batch.num_rows())?;
                    renumber(&mut bad[before..], from.as_deref());
                }
                Stage::Filter(condition) => {
                    let kept = condition.test(&batch, keys.as_ref(), &mut bad)?;
                    renumber(&mut bad[before..], from.as_deref());
                    if kept.true_count() == kept.len() {
                        continue;
                    }
                    let rows = kept.values().set_indices();
                    from = Some(match &from {
                        Some(from) => rows.map(|row| from[row]).collect(),
                        None => rows.map(|row| row as u32).collect(),
                    });
                    batch = filter_record_batch(&batch, &kept)?;
                    keys = keys.map(|keys| filter(&keys, &kept)).transpose()?;
                }
            }
        }
        Ok(Output { batch, from, bad })
    }
    fn needs(&self, _: BTreeSet<String>) -> BTreeSet<String> {
        self.reads.clone()
    }
    fn is_seeded(&self) -> bool {
        self.stages.iter().any(|stage| match stage {
            Stage::Project(expressions, _) => expressions.iter().any(Expression::is_seeded),
            Stage::Filter(condition) => condition.is_seeded(),
        })
    }
}

/// From indices in a stage's input to indices in the step's.
fn renumber(bad: &mut [Bad], from: Option<&[u32]>) {
    if let Some(from) = from {
        bad.iter_mut().for_each(|bad| bad.row = from[bad.row as usize]);
    }
}

/// The plan of a query over one input, `None` where it does not go row by row.
pub fn plan(
    logical: &LogicalPlan,
    input: &SchemaRef,
    reads: &BTreeSet<String>,
    calls: &mut u64,
) -> Result<Option<Planned>, String> {
    if !goes_row_by_row(logical) {
        return Ok(None);
    }
    let mut planned = Vec::new();
    stages(logical, calls, &mut planned)?;
    let last = planned.iter().rev().find_map(|stage| match stage {
        Stage::Project(_, schema) => Some(Arc::clone(schema)),
        Stage::Filter(_) => None,
    });
    let verb = Rows { stages: planned, reads: reads.clone() };
    Ok(Some(Planned { verb: Box::new(verb), schema: last.unwrap_or_else(|| Arc::clone(input)) }))
}

fn goes_row_by_row(logical: &LogicalPlan) -> bool {
    let are_plain = |expressions: &[Expr]| !expressions.iter().any(needs_more);
    match logical {
        LogicalPlan::TableScan(_) => true,
        LogicalPlan::SubqueryAlias(alias) => goes_row_by_row(&alias.input),
        LogicalPlan::Projection(part) => are_plain(&part.expr) && goes_row_by_row(&part.input),
        LogicalPlan::Filter(part) => !needs_more(&part.predicate) && goes_row_by_row(&part.input),
        _ => false,
    }
}

/// Whether an expression needs more than its row, or gives more than one.
fn needs_more(part: &Expr) -> bool {
    let found = part.exists(|part| {
        Ok(matches!(
            part,
            Expr::ScalarSubquery(_)
                | Expr::InSubquery(_)
                | Expr::Exists(_)
                | Expr::SetComparison(_)
                | Expr::AggregateFunction(_)
                | Expr::WindowFunction(_)
                | Expr::Unnest(_)
        ))
    });
    found.unwrap_or(true)
}

fn stages(logical: &LogicalPlan, calls: &mut u64, planned: &mut Vec<Stage>) -> Result<(), String> {
    match logical {
        LogicalPlan::SubqueryAlias(alias) => stages(&alias.input, calls, planned),
        LogicalPlan::Projection(part) => {
            stages(&part.input, calls, planned)?;
            let expressions: Vec<Expression> = part
                .expr
                .iter()
                .map(|expr| Expression::compile(expr.clone(), part.input.schema(), &shown(expr), calls))
                .collect::<Result<_, _>>()?;
            let names = part.schema.fields().iter().map(|field| field.name().as_str());
            let schema = columns::schema_of(names.zip(expressions.iter().map(|expression| expression.kind().clone())));
            planned.push(Stage::Project(expressions, schema));
            Ok(())
        }
        LogicalPlan::Filter(part) => {
            stages(&part.input, calls, planned)?;
            let condition =
                Expression::compile(part.predicate.clone(), part.input.schema(), &shown(&part.predicate), calls)?;
            if condition.kind() != &arrow::datatypes::DataType::Boolean {
                return Err(format!(
                    "WHERE takes a condition, and `{}` gives {}",
                    shown(&part.predicate),
                    columns::type_name(condition.kind())
                ));
            }
            planned.push(Stage::Filter(condition));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// An expression as a message shows it.
fn shown(part: &Expr) -> String {
    part.clone().unalias().human_display().to_string()
}

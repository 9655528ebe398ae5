//! The step `sql`. A query that projects and filters one input goes row by row, like any other step ([`rows`]): it keeps
//! origins, runs over slices and in parallel, and needs no session. Every other query sees all rows ([`all`]).

mod all;
pub mod checked;
mod leaf;
mod rows;

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    catalog::default_table_source::provider_as_source,
    common::tree_node::TreeNodeRecursion,
    logical_expr::{Expr, LogicalPlan, utils::merge_schema},
    sql::planner::SqlToRel,
};

use crate::{
    columns, constants,
    expression::{self, Catalog, sentence},
    instants, syntax, verbs,
};

pub use all::Query;

/// A planned query.
#[derive(Debug)]
pub enum Planned {
    /// Row by row.
    Rows(verbs::Planned),
    /// Over all rows.
    All(Query),
}

/// The names of an input and its columns.
pub type Table = (Vec<String>, SchemaRef);

/// Plans a query over `tables`. The error is a sentence.
pub fn plan(text: &str, tables: Vec<Table>, calls: &mut u64) -> Result<Planned, String> {
    let logical = logical(text, &tables)?;
    let reads = check(&logical)?;
    let schema = columns::plain(logical.schema().as_arrow());
    unique(&schema)?;
    for field in schema.fields() {
        columns::is_of_a_job(field.data_type()).map_err(|wrong| format!("column `{}`: {wrong}", field.name()))?;
    }
    if let [(_, input)] = tables.as_slice()
        && let Some(planned) = rows::plan(&logical, input, &reads, calls)?
    {
        return Ok(Planned::Rows(planned));
    }
    if let Some(name) = expressions(&logical)?.iter().find_map(expression::dice) {
        return Err(format!(
            "`{name}()` belongs to a row, and this query is over many: make a column of it by `add` in a step before"
        ));
    }
    check_constants(&logical)?;
    Ok(Planned::All(Query::new(&logical, schema, reads)?))
}

/// Refuses constants that fail for each row, and patterns, formats and units that are none.
fn check_constants(logical: &LogicalPlan) -> Result<(), String> {
    let mut wrong = None;
    let walked = logical.apply_with_subqueries(|node| {
        let mut schema = merge_schema(&node.inputs());
        if let LogicalPlan::TableScan(scan) = node {
            schema.merge(&scan.projected_schema);
        }
        for part in node.expressions() {
            // Whether types fit is said where the query is planned.
            let Ok(typed) = expression::typed(part, &schema) else { continue };
            let checked = constants::fold(typed).and_then(|folded| constants::check(&folded, &schema));
            if let Err(message) = checked {
                wrong = Some(message);
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.map_err(|error| sentence(&error))?;
    wrong.map_or(Ok(()), Err)
}

/// Parses one SELECT and resolves its names.
fn logical(text: &str, tables: &[Table]) -> Result<LogicalPlan, String> {
    let statement = syntax::query(text)?;
    let sources = tables.iter().enumerate().flat_map(|(index, (names, schema))| {
        let table = provider_as_source(Arc::new(leaf::Table::new(index, Arc::clone(schema))));
        names.iter().map(move |name| (name.clone(), Arc::clone(&table)))
    });
    let catalog = Catalog::new(sources.collect());
    let planner = SqlToRel::new_with_options(&catalog, catalog.parser_options());
    let plan = planner.statement_to_plan(statement).map_err(|error| sentence(&error))?;
    instants::plan_in_micros(plan).map_err(|error| sentence(&error))
}

/// Refuses what changes something or differs in a replay. Returns the names of all columns that are mentioned.
fn check(logical: &LogicalPlan) -> Result<BTreeSet<String>, String> {
    let mut wrong = None;
    let walked = logical.apply_with_subqueries(|node| {
        wrong = match node {
            LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Statement(_) => {
                Some("a step can only read: write `SELECT ... FROM batch`".to_owned())
            }
            LogicalPlan::RecursiveQuery(_) => Some("recursive queries are not supported".to_owned()),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        Ok(TreeNodeRecursion::Stop)
    });
    walked.map_err(|error| sentence(&error))?;
    let expressions = expressions(logical)?;
    if let Some(name) = expressions.iter().find_map(expression::volatile) {
        return Err(expression::refusal(&name));
    }
    match wrong {
        Some(wrong) => Err(wrong),
        None => {
            let names =
                expressions.iter().flat_map(|part| part.column_refs().into_iter().map(|column| column.name.clone()));
            Ok(names.collect())
        }
    }
}

/// All expressions of a query and of the queries in it.
fn expressions(logical: &LogicalPlan) -> Result<Vec<Expr>, String> {
    let mut found = Vec::new();
    let walked = logical.apply_with_subqueries(|node| {
        found.extend(node.expressions());
        Ok(TreeNodeRecursion::Continue)
    });
    walked.map(|_| found).map_err(|error| sentence(&error))
}

/// Columns of what a query gives are told apart by their names alone.
fn unique(schema: &SchemaRef) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match columns::names(schema).into_iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(format!("the query gives two columns named `{name}`: name one of them otherwise with `AS`")),
        None => Ok(()),
    }
}

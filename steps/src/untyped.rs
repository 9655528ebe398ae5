//! What can be said of a job's steps before the columns of its sources are known: whether each expression and query is
//! SQL, whether its functions exist and its constants, formats and zones are what they should be.
//!
//! Types of columns are not known, so they are tried: an expression is wrong where it is so with each of them.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use arrow::datatypes::{DataType, Field};
use datafusion::{
    common::{DFSchema, TableReference},
    logical_expr::ExprSchemable,
    sql::{
        planner::{PlannerContext, SqlToRel},
        sqlparser::ast::{self, Expr, GroupByExpr, Visit, Visitor},
    },
};
use tidemill_config::{At, Job, Located, SinkKind, Verb};

use crate::{
    PlanError, columns, constants,
    expression::{self, Catalog, sentence},
    functions::REGISTRY,
    stack, syntax,
    verbs::{self, Notes},
};

/// What is wrong with the steps and conditions of a job whatever its columns are.
pub fn check(job: &Job) -> Vec<PlanError> {
    stack::apart("check", || check_here(job)).unwrap_or_else(|panic| {
        let message = format!("looking at the steps failed: {panic}. This is a defect of Tidemill, please report it");
        vec![PlanError { at: None, message }]
    })
}

fn check_here(job: &Job) -> Vec<PlanError> {
    let (mut errors, mut calls) = (Vec::new(), 0);
    let mut told = |owner: String, text: &Located<String>, checked: Result<(), String>, quoted: bool| {
        if let Err(message) = checked {
            let text_shown = if quoted { format!("`{}`: ", text.value) } else { String::new() };
            errors.push(PlanError { at: Some(text.at.clone()), message: format!("{owner}: {text_shown}{message}") });
        }
    };
    for step in &job.steps {
        let owner = || format!("step {}", step.name);
        if let Some(when) = &step.when {
            told(owner(), when, condition(&when.value), true);
        }
        match &step.verb {
            Verb::Filter(text) => told(owner(), text, condition(&text.value), true),
            Verb::Add(pairs) => {
                for (_, text) in pairs {
                    told(owner(), text, any(&text.value), true);
                }
            }
            Verb::Sql(text) => told(owner(), text, query(&text.value), false),
            _ => {}
        }
    }
    for sink in &job.sinks {
        let owner = || format!("step sinks.{}", sink.name.value);
        if let Some(text) = &sink.filter {
            told(owner(), text, condition(&text.value), true);
        }
        if let SinkKind::Kafka(kafka) = &sink.kind
            && let Some(key) = &kafka.key
        {
            // Where a column has this name, it is meant, whatever it is as SQL.
            let is_name = !key.value.contains(['(', '\'']);
            let checked = any(&key.value);
            told(owner(), key, if is_name { Ok(()) } else { checked }, true);
        }
    }
    for step in &job.steps {
        if let Verb::ParseTimestamp { formats, zone, .. } = &step.verb {
            let mut notes = Notes { errors: &mut errors, calls: &mut calls, step: &step.name, pruned: false };
            verbs::check_formats(formats, zone.as_ref(), &mut notes);
        }
    }
    errors
}

/// An expression that gives a value.
fn any(text: &str) -> Result<(), String> {
    let parsed = one_row(text)?;
    tried(&parsed, true).map(drop)
}

/// An expression that is true or not.
fn condition(text: &str) -> Result<(), String> {
    let parsed = one_row(text)?;
    match tried(&parsed, true)? {
        Some(kinds) if !kinds.contains(&DataType::Boolean) => {
            let kind = kinds.first().map(|kind| columns::type_name(&columns::job_type(kind))).unwrap_or_default();
            Err(format!("it gives {kind}, a condition gives boolean. Compare it with something"))
        }
        _ => Ok(()),
    }
}

fn one_row(text: &str) -> Result<Expr, String> {
    let parsed = syntax::expression(text)?;
    match &parsed.alias {
        Some(alias) => Err(expression::no_alias(alias)),
        None => Ok(parsed.expr),
    }
}

/// A query: each of its expressions by itself.
fn query(text: &str) -> Result<(), String> {
    let statement = syntax::query(text)?;
    let mut parts = Expressions::default();
    let _ = statement_of(&statement).map(|statement| statement.visit(&mut parts));
    parts.found.iter().try_for_each(|part| tried(part, false).map(drop))
}

fn statement_of(statement: &datafusion::sql::parser::Statement) -> Option<&ast::Statement> {
    match statement {
        datafusion::sql::parser::Statement::Statement(inner) => Some(inner.as_ref()),
        _ => None,
    }
}

/// The outermost expressions of a query that have no query inside.
#[derive(Default)]
struct Expressions {
    depth: usize,
    found: Vec<Expr>,
}

impl Visitor for Expressions {
    type Break = ();
    fn pre_visit_expr(&mut self, part: &Expr) -> ControlFlow<()> {
        if self.depth == 0 && !has_query(part) {
            self.found.push(part.clone());
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }
    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

fn has_query(part: &Expr) -> bool {
    struct Found(bool);
    impl Visitor for Found {
        type Break = ();
        fn pre_visit_query(&mut self, _: &ast::Query) -> ControlFlow<()> {
            self.0 = true;
            ControlFlow::Break(())
        }
    }
    let mut found = Found(false);
    let _ = part.visit(&mut found);
    found.0
}

/// The names of columns, each with its table where it has one; and whether parts of columns are taken.
#[derive(Default)]
struct Names {
    found: BTreeSet<(Option<String>, String)>,
    has_parts: bool,
}

impl Visitor for Names {
    type Break = ();
    fn pre_visit_expr(&mut self, part: &Expr) -> ControlFlow<()> {
        match part {
            Expr::Identifier(name) => drop(self.found.insert((None, name.value.clone()))),
            Expr::CompoundIdentifier(names) => match names.as_slice() {
                [table, name] => drop(self.found.insert((Some(table.value.clone()), name.value.clone()))),
                _ => self.has_parts = true,
            },
            Expr::CompoundFieldAccess { .. } | Expr::Lambda(_) => self.has_parts = true,
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn list() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)))
}

/// Types that columns may have.
fn kinds() -> Vec<DataType> {
    vec![
        DataType::Utf8,
        DataType::Int64,
        columns::timestamp(),
        DataType::Boolean,
        list(),
        DataType::Float64,
        DataType::Date32,
        DataType::Decimal128(20, 4),
        DataType::Binary,
    ]
}

/// Of several columns each may have another type: at most so many combinations are tried.
const MAX_TRIES: usize = 700;

/// How an attempt failed.
struct Failed {
    /// Types fit, and it fails nevertheless.
    is_constant: bool,
    message: String,
}

/// Tries an expression with types for its columns. The error is one that it has with all of them. Else the types that it
/// gave; `None` where no types were found that fit: perhaps they are others.
fn tried(parsed: &Expr, is_one_row: bool) -> Result<Option<Vec<DataType>>, String> {
    let mut names = Names::default();
    let _ = parsed.visit(&mut names);
    let (mut given, mut failed) = (Vec::new(), Vec::new());
    let count = names.found.len();
    let mut attempt = |kinds: &[DataType]| match attempt(parsed, &names, kinds, is_one_row) {
        Ok(kind) => given.push(kind),
        Err(error) => failed.push(error),
    };
    let all = kinds();
    for kind in &all {
        attempt(&vec![kind.clone(); count]);
        if count == 0 {
            break;
        }
    }
    let is_settled = |failed: &[Failed]| {
        failed.iter().any(|failed| failed.is_constant)
            || failed.windows(2).all(|pair| pair[0].message == pair[1].message)
    };
    if !given.is_empty() {
        return Ok(Some(given));
    }
    let mut is_whole = count <= 1;
    if !is_settled(&failed) && count > 1 {
        let used = if count == 2 { all.len() } else { 5 };
        let combinations = used.checked_pow(count as u32).filter(|combinations| *combinations <= MAX_TRIES);
        is_whole = combinations.is_some();
        for number in 0..combinations.unwrap_or(0) {
            let mut rest = number;
            let kinds: Vec<DataType> = (0..count)
                .map(|_| {
                    let kind = all[rest % used].clone();
                    rest /= used;
                    kind
                })
                .collect();
            match self::attempt(parsed, &names, &kinds, is_one_row) {
                Ok(kind) => return Ok(Some(vec![kind])),
                Err(error) => failed.push(error),
            }
        }
    }
    if let Some(constant) = failed.iter().find(|failed| failed.is_constant) {
        return Err(constant.message.clone());
    }
    match failed.first() {
        Some(first) if is_settled(&failed) || (is_whole && is_one_row && !names.has_parts) => {
            Err(first.message.clone())
        }
        _ => Ok(None),
    }
}

fn attempt(parsed: &Expr, names: &Names, kinds: &[DataType], is_one_row: bool) -> Result<DataType, Failed> {
    let fails = |message: String| Failed { is_constant: false, message };
    let fields = names.found.iter().zip(kinds).map(|((table, name), kind)| {
        let table = table.as_ref().map(|table| TableReference::bare(table.clone()));
        (table, Arc::new(Field::new(name, kind.clone(), true)))
    });
    let schema = DFSchema::new_with_metadata(fields.collect(), Default::default());
    let schema = schema.map_err(|error| fails(sentence(&error)))?;
    let catalog = Catalog::new(Vec::new());
    let planner = SqlToRel::new_with_options(&catalog, catalog.parser_options());
    let logical = planner
        .sql_to_expr(parsed.clone(), &schema, &mut PlannerContext::new())
        .map_err(|error| fails(sentence(&error)))?;
    let refused = |message: String| Failed { is_constant: true, message };
    if is_one_row {
        expression::refuse_all_rows(&logical).map_err(refused)?;
    }
    if let Some(name) = expression::volatile(&logical) {
        return Err(refused(expression::refusal(&name)));
    }
    let logical = expression::typed(logical, &schema).map_err(fails)?;
    let logical = constants::fold(logical).map_err(refused)?;
    constants::check(&logical, &schema).map_err(refused)?;
    let kind = logical.get_type(&schema).map_err(|error| fails(sentence(&error)))?;
    if is_one_row {
        columns::is_of_a_job(&columns::job_type(&kind)).map_err(refused)?;
    }
    Ok(kind)
}

/// What a query needs more than one row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathers {
    /// It counts, sums, groups.
    Groups,
    /// It joins tables.
    Joins,
    /// It sorts, numbers, or takes the first rows.
    Orders,
}

/// What the query of a `sql` step needs more than one row for; `None`: it goes row by row, or it is no query.
pub fn gathers(text: &str) -> Option<Gathers> {
    stack::apart("check", || gathers_here(text)).ok().flatten()
}

fn gathers_here(text: &str) -> Option<Gathers> {
    let statement = syntax::query(text).ok()?;
    let mut found = Needs::default();
    let _ = statement_of(&statement)?.visit(&mut found);
    if found.groups {
        Some(Gathers::Groups)
    } else if found.joins {
        Some(Gathers::Joins)
    } else {
        found.orders.then_some(Gathers::Orders)
    }
}

#[derive(Default)]
struct Needs {
    groups: bool,
    joins: bool,
    orders: bool,
    queries: usize,
}

impl Visitor for Needs {
    type Break = ();
    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<()> {
        self.queries += 1;
        self.orders |= query.order_by.is_some() || query.limit_clause.is_some() || query.fetch.is_some();
        self.orders |= matches!(query.body.as_ref(), ast::SetExpr::SetOperation { .. });
        ControlFlow::Continue(())
    }
    fn pre_visit_select(&mut self, select: &ast::Select) -> ControlFlow<()> {
        self.groups |= select.distinct.is_some() || select.having.is_some();
        self.groups |= match &select.group_by {
            GroupByExpr::All(_) => true,
            GroupByExpr::Expressions(parts, modifiers) => !parts.is_empty() || !modifiers.is_empty(),
        };
        self.joins |= select.from.len() > 1 || select.from.iter().any(|table| !table.joins.is_empty());
        ControlFlow::Continue(())
    }
    fn pre_visit_expr(&mut self, part: &Expr) -> ControlFlow<()> {
        match part {
            Expr::Function(function) if function.over.is_some() => self.orders = true,
            Expr::Function(function) => {
                let name = function.name.to_string().to_lowercase();
                self.groups |= REGISTRY.aggregate.contains_key(&name) && !REGISTRY.scalar.contains_key(&name);
            }
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => self.joins = true,
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// A step whose result is of each batch by itself, and what somebody may take it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfOneBatch {
    /// The step.
    pub step: String,
    /// Its place.
    pub at: At,
    /// What it does with the rows of a batch.
    pub gathers: Gathers,
}

/// The steps of a job that gather the rows of a batch.
pub fn of_one_batch(job: &Job) -> Vec<OfOneBatch> {
    let of = |step: &tidemill_config::Step| match &step.verb {
        Verb::Sql(text) => {
            let gathers = gathers(&text.value)?;
            Some(OfOneBatch { step: step.name.clone(), at: text.at.clone(), gathers })
        }
        _ => None,
    };
    job.steps.iter().filter_map(of).collect()
}

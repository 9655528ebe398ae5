//! `type: sql`: new rows of a table or a query, by a column or two that only grow.
//!
//! One shard. A position is the boundary before or behind the rows with a key (see
//! [`Position::key`](tidemill_checkpoint::Position::key)), so a span is a range of keys, and reading it again asks for the
//! same range. Rows with the same key are never parted: [`page`] cuts between keys. [`select`] writes the queries, one file
//! for each database asks them. A row travels as a JSON object; decimals and times are texts in it, so that nothing is
//! rounded.
//!
//! What a table does not tell cannot be seen: deleted rows, changes that leave the key alone, and rows that are committed
//! late with a key that was passed already. `settle` waits for those.

mod asked;
mod mysql;
mod page;
mod patient;
mod postgres;
mod select;
mod sqlite;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use tidemill_checkpoint::{Lane, Position, Positions, ShardId, Span, Spans};
use tidemill_config::{SqlDatabase, SqlFrom, SqlSource as Config, Start};
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::sqlite::may_pass;
use self::{
    asked::{Asked, Question},
    page::{Cut, Row, cut},
    select::{Dialect, Edge, Key, Kind, Range, Select, beginning},
};
use super::{
    Adopted, Base, Budget, Found, History, Origin, Proposal, RawBatch, Slice, Source, SourceError, SourceEvent,
};
use crate::{codec::to_arrow, sink::SinkError};

/// Rows of the first page of a plan, where nothing is known yet of how big rows are.
const FIRST_PAGE: usize = 100;
/// Rows that are asked for at once. A page ends before where its rows have the bytes that are left of the budget.
const PAGE: usize = 5_000;

/// The source `type: sql`.
pub struct SqlSource {
    name: String,
    formerly: Option<String>,
    config: Config,
    order: String,
    database: Arc<dyn Database>,
    state: Mutex<State>,
    /// What `event` has asked.
    asked: Asked,
    finishing: AtomicBool,
    woken: Notify,
}

struct State {
    shard: ShardId,
    /// Up to here rows are planned.
    seen: Position,
    /// There is more beyond: the last plan was full.
    more: bool,
    /// When new rows are asked for next.
    look: Instant,
    /// `--once`: the last key then.
    end: Option<Option<Key>>,
    /// Bytes of the largest row of the last plan: by them the next one guesses how many fit.
    largest: usize,
}

/// The questions that the source asks.
#[async_trait]
trait Database: Send + Sync {
    /// Rows of a range, in order, up to the limits of the range.
    async fn rows(&self, range: &Range) -> Result<Page, SourceError>;
    /// The key of the last row that has settled.
    async fn last(&self) -> Result<Option<Key>, SourceError>;
}

/// Rows that are gathered up to the limit of a range.
#[derive(Default)]
struct Page {
    rows: Vec<Row>,
    bytes: usize,
    /// It was ended by the limit of bytes: more may follow.
    cut: bool,
}

impl Page {
    /// Adds a row. Whether the next one is wanted: two at least, since only the next key shows that one is complete.
    fn push(&mut self, row: Row, range: &Range) -> bool {
        self.bytes += row.json.len();
        self.rows.push(row);
        self.cut = self.rows.len() > 1 && range.bytes.is_some_and(|bytes| self.bytes > bytes);
        !self.cut
    }
}

/// What a plan has read ahead.
struct Ahead(RawBatch);

fn stopped(error: SinkError) -> SourceError {
    match error {
        SinkError::Transient { what, cause } => SourceError::Transient { what, cause },
        other => SourceError::Fatal(other.to_string()),
    }
}

/// Why a column cannot be in the order.
fn no_order<'n>(name: &str, is_there: bool, names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    if is_there {
        format!(
            "column `{name}` of `order_by` is of a type without a usable order: numbers, timestamps, dates and texts have one"
        )
    } else {
        let near = names.iter().find(|near| near.eq_ignore_ascii_case(name));
        let help = match near {
            Some(near) => format!("there is `{near}`: names are taken with their case"),
            None => format!("there are {}", names.join(", ")),
        };
        format!("there is no column `{name}`, which `order_by` names: {help}")
    }
}

fn can_settle(select: &Select) -> Result<(), String> {
    match select.order.first() {
        Some((name, kind)) if !select.settle.is_zero() && !matches!(kind, Kind::Instant { .. }) => {
            Err(format!("`settle` needs a timestamp as the first column of `order_by`, and `{name}` is none"))
        }
        _ => Ok(()),
    }
}

impl SqlSource {
    /// Opens the source of `config`. Connects nowhere.
    pub fn open(config: &tidemill_config::Source, sql: &Config) -> Result<Self, SourceError> {
        let name = config.name.value.clone();
        let columns: Vec<&str> = sql.order_by.iter().map(|column| column.value.as_str()).collect();
        let order = columns.join("+");
        let state = State {
            shard: ShardId::new(&name, &order),
            seen: beginning(),
            more: false,
            look: Instant::now(),
            end: None,
            largest: 0,
        };
        Ok(Self {
            formerly: config.formerly.clone(),
            config: sql.clone(),
            order,
            database: open_database(&name, sql, config.schema.as_deref())?,
            state: Mutex::new(state),
            asked: Asked::default(),
            finishing: AtomicBool::new(false),
            woken: Notify::new(),
            name,
        })
    }

    /// What the table has at a position; see [`crate::source::find`]. Asks the database.
    pub async fn find(&self, position: &Position) -> Result<Found, SourceError> {
        if *position == beginning() {
            return Ok(Found::There { is_end: false });
        }
        if let Err(error) = self.edge(position) {
            return Ok(Found::Nowhere(error.to_string()));
        }
        let end = self.database.last().await?.map_or_else(beginning, |key| Position::behind_key(&key));
        Ok(match *position > end {
            true => Found::Nowhere(format!("its rows end at {end}, before {position}")),
            false => Found::There { is_end: *position == end },
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edge(&self, position: &Position) -> Result<Option<Edge>, SourceError> {
        if *position == beginning() {
            return Ok(None);
        }
        match position.as_key() {
            Some((key, behind)) if key.len() == self.config.order_by.len() => Ok(Some(Edge { key, behind })),
            _ => Err(SourceError::Fatal(format!(
                "source {}: {position} is no position in the order of {}: was `order_by` changed?",
                self.name, self.order
            ))),
        }
    }

    /// The rows as they are handed on.
    fn batch(&self, shard: &ShardId, rows: Vec<Row>) -> RawBatch {
        if rows.is_empty() {
            return RawBatch::default();
        }
        let mut slices = Vec::new();
        let mut rows = rows.into_iter().peekable();
        // A slice is addressed by 32 bits.
        while rows.peek().is_some() {
            let (mut bytes, mut records, mut positions) = (Vec::new(), Vec::new(), Vec::new());
            while let Some(row) = rows.next_if(|row| bytes.is_empty() || bytes.len() + row.json.len() < 1 << 30) {
                let start = bytes.len() as u32;
                bytes.extend_from_slice(&row.json);
                records.push((start, bytes.len() as u32));
                bytes.push(b'\n');
                positions.push(Position::key(&row.key));
            }
            slices.push(Slice {
                shard: shard.clone(),
                bytes: Bytes::from(bytes),
                records,
                base: Base::Each(positions.into()),
                header: None,
                metadata: Vec::new(),
                columns: Vec::new(),
            });
        }
        RawBatch { slices, rejects: Vec::new() }
    }

    /// Rows from `from` on within the budget, and whether more may follow.
    async fn take(&self, from: Option<Edge>, budget: Budget) -> Result<(Vec<Row>, bool), SourceError> {
        let (mut taken, mut bytes, mut from): (Vec<Row>, usize, _) = (Vec::new(), 0, from);
        let (mut largest, mut limit) = match self.state().largest {
            0 => (1, FIRST_PAGE),
            largest => (largest, (budget.bytes / largest).clamp(1, FIRST_PAGE)),
        };
        limit = limit.min(budget.records).max(1);
        loop {
            // One more than wanted shows whether the last key goes on.
            let left = (budget.records - taken.len(), budget.bytes.saturating_sub(bytes));
            let range = Range { from: from.clone(), to: None, limit: Some(limit + 1), bytes: Some(left.1) };
            let Page { rows: mut page, cut: was_cut, .. } = self.database.rows(&range).await?;
            let complete = page.len() <= limit && !was_cut;
            let count = match cut(&page, left.0, left.1, taken.is_empty(), complete) {
                Cut::Behind(count) => count,
                Cut::Ties => {
                    page = self.ties(&page).await?;
                    page.len()
                }
            };
            let all = complete && count == page.len();
            page.truncate(count);
            largest = page.iter().map(|row| row.json.len()).fold(largest, usize::max);
            self.state().largest = largest;
            let Some(last) = page.last() else { return Ok((taken, !all)) };
            from = Some(Edge::behind(last.key.clone()));
            bytes += page.iter().map(|row| row.json.len()).sum::<usize>();
            taken.append(&mut page);
            if all || taken.len() >= budget.records || bytes >= budget.bytes {
                return Ok((taken, !all));
            }
            let fits = (budget.bytes - bytes) / (bytes / taken.len()).max(1);
            limit = fits.clamp(1, PAGE).min(budget.records - taken.len());
        }
    }

    /// All rows with the key that the whole page has.
    async fn ties(&self, page: &[Row]) -> Result<Vec<Row>, SourceError> {
        let Some(row) = page.first() else { return Ok(Vec::new()) };
        let (from, to) = (Edge { key: row.key.clone(), behind: false }, Edge::behind(row.key.clone()));
        Ok(self.database.rows(&Range { from: Some(from), to: Some(to), ..Range::default() }).await?.rows)
    }

    /// Whether there are rows beyond what was planned, up to the end where there is one.
    async fn is_waiting(&self) -> Result<bool, SourceError> {
        let seen = self.edge(&self.state().seen.clone())?;
        let end = self.state().end.clone();
        let to = match end {
            Some(None) => return Ok(false),
            Some(Some(key)) if seen.as_ref().is_some_and(|seen| Position::key(&key) < edge_position(seen)) => {
                return Ok(false);
            }
            Some(Some(key)) => Some(Edge::behind(key)),
            None => None,
        };
        let next = Question::First(Range { from: seen, to, limit: Some(1), bytes: None });
        Ok(self.asked.answer(&self.database, next).await?.is_some())
    }

    fn is_mine(&self, shard: &ShardId) -> bool {
        shard.source() == self.name || self.formerly.as_deref() == Some(shard.source())
    }
}

fn edge_position(edge: &Edge) -> Position {
    if edge.behind { Position::behind_key(&edge.key) } else { Position::key(&edge.key) }
}

fn open_database(
    name: &str,
    sql: &Config,
    schema: Option<&[tidemill_config::Field]>,
) -> Result<Arc<dyn Database>, SourceError> {
    use crate::sink::{mysql::database as my, postgres::database as pg};
    let fatal = |why: &dyn std::fmt::Display| SourceError::Fatal(format!("source {name}: {why}"));
    let dialect = match &sql.database {
        SqlDatabase::Sqlite(_) => Dialect::Sqlite,
        SqlDatabase::Postgres(_) => Dialect::Postgres,
        SqlDatabase::Mysql(_) => Dialect::Mysql,
    };
    let from = match &sql.from {
        SqlFrom::Table(table) => table.split('.').map(|part| dialect.name(part)).collect::<Vec<_>>().join("."),
        // Its last line may be a comment.
        SqlFrom::Query(query) => format!("({}\n)", query.trim().trim_end_matches(';')),
    };
    let order = sql.order_by.iter().map(|column| (column.value.clone(), Kind::Any)).collect();
    let select = Select { dialect, from, order, settle: sql.settle };
    let database: Arc<dyn Database> = match &sql.database {
        SqlDatabase::Sqlite(_) if !sql.settle.is_zero() => {
            return Err(fatal(&"`settle` is for servers: SQLite has one writer at a time"));
        }
        // A file: it waits for locks, and for nobody else.
        SqlDatabase::Sqlite(path) => return Ok(Arc::new(sqlite::Sqlite { path: path.clone(), select })),
        SqlDatabase::Postgres(url) => {
            let server = pg::Server::new(url, sql.ca.as_deref(), "tidemill").map_err(|error| fatal(&error))?;
            Arc::new(postgres::Postgres {
                server,
                connection: tokio::sync::Mutex::default(),
                select,
                limit: sql.timeout,
            })
        }
        SqlDatabase::Mysql(url) => {
            let address = my::Address::new(url, sql.ca.as_deref()).map_err(|why| fatal(&why))?;
            let wanted = schema.map(to_arrow);
            Arc::new(mysql::Mysql { server: my::Database::new(address), select, wanted })
        }
    };
    Ok(Arc::new(patient::Patient { database, limit: sql.timeout, shown: sql.database.shown() }))
}

#[async_trait]
impl Source for SqlSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn rereadable(&self) -> bool {
        true
    }

    async fn check(&self) -> Result<(), SourceError> {
        self.database.rows(&Range { limit: Some(1), ..Range::default() }).await.map(drop)
    }

    async fn start(&self) -> Result<(), SourceError> {
        Ok(())
    }

    async fn event(&self) -> Result<SourceEvent, SourceError> {
        loop {
            let woken = self.woken.notified();
            let finishing = self.finishing.load(Ordering::Acquire);
            if finishing && self.state().end.is_none() {
                let last = self.asked.answer(&self.database, Question::Last).await?;
                self.state().end = Some(last);
            }
            let (more, look) = {
                let state = self.state();
                (state.more, state.look)
            };
            if more && !finishing {
                return Ok(SourceEvent::Data);
            }
            if !finishing && Instant::now() < look {
                tokio::select! {
                    () = tokio::time::sleep_until(look) => {}
                    () = woken => {}
                }
                continue;
            }
            if self.is_waiting().await? {
                return Ok(SourceEvent::Data);
            }
            if finishing {
                return Ok(SourceEvent::End);
            }
            self.state().look = Instant::now() + self.config.poll;
        }
    }

    async fn origin(&self, _lane: &Lane) -> Result<Origin, SourceError> {
        let at = match self.config.start {
            Start::Earliest => beginning(),
            Start::Latest => self.database.last().await?.map_or_else(beginning, |key| Position::behind_key(&key)),
        };
        let shard = self.state().shard.clone();
        Ok(Origin { positions: Positions::from([(shard, at)]), ..Origin::default() })
    }

    async fn adopt(&self, _lane: &Lane, at: &Positions, _history: &History) -> Result<Adopted, SourceError> {
        let mut adopted = Adopted::default();
        let known: Vec<_> = at.iter().filter(|(shard, _)| self.is_mine(shard)).collect();
        if let Some((other, _)) = known.iter().find(|(shard, _)| shard.part() != self.order) {
            return Err(SourceError::Fatal(format!(
                "source {}: it was read in the order of {}, and `order_by` says {}: take that back, or give the source another name to read the table from its beginning",
                self.name,
                other.part().replace('+', ", "),
                self.order.replace('+', ", ")
            )));
        }
        let (shard, position) = match known.first() {
            Some((shard, position)) => ((*shard).clone(), (*position).clone()),
            None => (ShardId::new(&self.name, &self.order), beginning()),
        };
        let edge = self.edge(&position)?;
        if known.is_empty() {
            adopted.new_shards.insert(shard.clone(), position.clone());
        }
        {
            let mut state = self.state();
            (state.shard, state.seen) = (shard, position.clone());
            (state.more, state.look) = (false, Instant::now());
        }
        // A database that does not answer is found out here, where the lane waits for it with a reason. What else is wrong
        // with the table shows when it is read.
        let last = match edge {
            None => self.database.rows(&Range { limit: Some(1), ..Range::default() }).await.map(|_| None),
            Some(_) => self.database.last().await,
        };
        if matches!(&last, Err(SourceError::Transient { .. })) {
            last?;
        } else if let Ok(Some(last)) = last
            && self.config.settle.is_zero()
            && Position::behind_key(&last) < position
        {
            adopted.warnings.push(format!(
                "source {}: its last row has the key {}, before the position {position}: was the table emptied or restored? Rows with smaller keys are not read again",
                self.name,
                Position::key(&last)
            ));
        }
        Ok(adopted)
    }

    async fn plan(&self, _lane: &Lane, from: &Positions, budget: Budget) -> Result<Option<Proposal>, SourceError> {
        let shard = self.state().shard.clone();
        let start = from.get(&shard).cloned().unwrap_or_else(beginning);
        let (rows, more) = self.take(self.edge(&start)?, budget).await?;
        let to = rows.last().map_or_else(|| start.clone(), |row| Position::behind_key(&row.key));
        {
            let mut state = self.state();
            (state.seen, state.more) = (to.clone(), more && !rows.is_empty());
            state.look = Instant::now() + self.config.poll;
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let spans = Spans::from([(shard.clone(), Span { from: start, to })]);
        let ahead = Ahead(self.batch(&shard, rows));
        Ok(Some(Proposal { spans, ahead: Some(Arc::new(ahead)), ..Proposal::default() }))
    }

    async fn read(&self, _lane: &Lane, proposal: &Proposal) -> Result<RawBatch, SourceError> {
        if let Some(Ahead(batch)) = proposal.ahead.as_ref().and_then(|ahead| ahead.downcast_ref()) {
            return Ok(batch.clone());
        }
        let mut all = RawBatch::default();
        for (shard, span) in proposal.spans.iter().filter(|(shard, _)| self.is_mine(shard)) {
            let Some(to) = self.edge(&span.to)? else { continue };
            let range = Range { from: self.edge(&span.from)?, to: Some(to), ..Range::default() };
            all.slices.extend(self.batch(shard, self.database.rows(&range).await?.rows).slices);
        }
        Ok(all)
    }

    async fn release(&self, _lane: &Lane, _reached: &Positions) -> Result<(), SourceError> {
        Ok(())
    }

    fn finish(&self) {
        self.finishing.store(true, Ordering::Release);
        self.woken.notify_waiters();
    }
}

//! A group of lanes in one transaction: their marks by one statement, their rows by one COPY.
//!
//! A lane that is fenced costs the others nothing: its mark is not swapped, and its rows are left out. A transaction that
//! stood in another one's way is tried again in place. Where the answer to COMMIT is lost, the marks say what became of it.
//! Without marks nobody can say it, and the batch is written again.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use tidemill_checkpoint::{Lane, Permit, Receipt, failpoint::pass};
use tidemill_config::Guarantee;
use tokio::time::{sleep, timeout};

use super::{
    Postgres,
    failure::{Doing, Failure},
    rows::{self, Rejected, Rows},
    session::{Ready, Session, begin},
    table::same_columns,
};
use crate::sink::{SinkError, SinkReject, unmarked};

/// How often a transaction that met a deadlock, a serialization failure or a changed table is tried again in place.
const TRIES: u32 = 5;
/// The pause before the first of these; it doubles.
const PAUSE: Duration = Duration::from_millis(20);
/// A commit in which no statement that writes rows has ended for so long is given up. As a whole it may take longer, since
/// each refused row costs statements of its own: where the batch loop waits no more, its next claim waits for the writer.
const LIMIT: Duration = Duration::from_secs(270);
/// How often the marks are asked for after an answer was lost, and the pause before the first time; it doubles.
const QUESTIONS: u32 = 6;
const QUESTION_PAUSE: Duration = Duration::from_millis(100);
const COMMITTING: &str = "committing a batch to";

type Group = [(Permit, Vec<RecordBatch>)];
type Receipts = Vec<Result<Receipt, SinkError>>;

/// Why a transaction did not end well.
enum Halt {
    /// Nothing of it is there.
    Failed(Failure),
    /// COMMIT was sent and not answered: these are the receipts, if it is there.
    Unanswered(Receipts, Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Postgres {
    /// Commits a group together. Without marks, rows that the table refuses stop it: then lane by lane, so that no lane's
    /// rows stop another.
    pub(super) async fn commit_lanes(&self, group: &Group) -> Result<Receipts, SinkError> {
        let together = self.commit_group(group).await;
        if !matches!(together, Err(SinkError::Fatal(_))) || self.guarantee == Guarantee::ExactlyOnce || group.len() < 2
        {
            return together;
        }
        let mut receipts = Receipts::with_capacity(group.len());
        for lane in group.chunks(1) {
            receipts.extend(self.commit_group(lane).await.unwrap_or_else(|error| vec![Err(error)]));
        }
        Ok(receipts)
    }

    /// Commits a group. One result for each permit; an error stops all of them.
    async fn commit_group(&self, group: &Group) -> Result<Receipts, SinkError> {
        let mut pause = PAUSE;
        for tries in 1.. {
            let mut slot = self.writer.lock().await;
            let mut session = self.take(&mut slot).await?;
            let moved = AtomicU64::new(0);
            let Some(transaction) = while_it_moves(self.transact(&mut session, group, &moved), &moved, LIMIT).await
            else {
                return Err(self.server.transient(COMMITTING, format!("no progress in {LIMIT:?}")));
            };
            let failure = match transaction {
                Ok(receipts) => return self.settle(&mut slot, session, Ok(receipts)).await,
                Err(Halt::Unanswered(receipts, failure)) => {
                    let lost = failure.explain_with(&self.server, session.connection.last_words());
                    drop((session, slot));
                    if self.guarantee == Guarantee::AtLeastOnce {
                        return Err(lost);
                    }
                    return self.ask(group, receipts, &lost).await;
                }
                Err(Halt::Failed(failure)) => failure,
            };
            let again = tries < TRIES && (failure.is_conflict() || failure.is_change());
            let error = self.settle::<()>(&mut slot, session, Err(failure)).await.err();
            match error {
                Some(error) if !again => return Err(error),
                _ => {}
            }
            drop(slot);
            sleep(pause + pause.mul_f64(rand::random())).await;
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    /// Counts in `moved` the statements that wrote rows, or were refused.
    async fn transact(&self, session: &mut Session, group: &Group, moved: &AtomicU64) -> Result<Receipts, Halt> {
        // Looking at the table is no part of the transaction.
        let mut targets: Vec<(SchemaRef, Arc<Ready>)> = Vec::new();
        for batch in group.iter().flat_map(|(_, batches)| batches).filter(|batch| batch.num_rows() > 0) {
            let schema = batch.schema();
            if !targets.iter().any(|(known, _)| same_columns(known, &schema)) {
                let ready = session.ready(&self.table, &schema, false, None).await?;
                targets.push((schema, ready));
            }
        }
        pass("postgres.before-begin").doing(COMMITTING)?;
        let permits: Vec<&Permit> = group.iter().map(|(permit, _)| permit).collect();
        let Session { connection, place, .. } = session;
        let swapped = match self.guarantee {
            Guarantee::ExactlyOnce => self.scope.swap(connection, place, &begin(), &permits).await?,
            Guarantee::AtLeastOnce => {
                connection.client.batch_execute(&begin()).await.doing(COMMITTING)?;
                permits.iter().map(|_| Ok(true)).collect()
            }
        };
        pass("postgres.after-mark").doing(COMMITTING)?;
        let mut rejected = Vec::new();
        let mut guards = String::new();
        for (_, ready) in &targets {
            let rows = Rows::new(&ready.target, written(group, &swapped, &ready.target.schema))?;
            if rows.count > 0 {
                rejected.extend(rows::write(connection, &ready.target, &ready.writer, &rows, moved).await?);
                guards.push_str(&ready.target.guard);
                guards.push(';');
            }
        }
        let receipts = self.finish(session, group, swapped, rejected).await?;
        pass("postgres.after-rows").doing(COMMITTING)?;
        pass("postgres.before-commit").doing(COMMITTING)?;
        let committed = session.connection.client.batch_execute(&format!("{guards}COMMIT")).await;
        if let Err(failure) = committed.doing(COMMITTING) {
            // An error that leaves the session alive is a no.
            let answered = failure.keeps_session();
            return Err(if answered { Halt::Failed(failure) } else { Halt::Unanswered(receipts, failure) });
        }
        pass("postgres.after-commit").doing(COMMITTING)?;
        Ok(receipts)
    }

    /// What else belongs to each lane that is written.
    async fn finish(
        &self,
        session: &mut Session,
        group: &Group,
        swapped: Vec<Result<bool, SinkError>>,
        rejected: Vec<Rejected>,
    ) -> Result<Receipts, Failure> {
        let mut of_lanes: Vec<Vec<SinkReject>> = vec![Vec::new(); group.len()];
        for Rejected { lane, reject, .. } in rejected {
            of_lanes[lane].push(reject);
        }
        let mut receipts = Vec::with_capacity(group.len());
        for (((permit, _), swapped), rejects) in group.iter().zip(swapped).zip(of_lanes) {
            if self.guarantee == Guarantee::AtLeastOnce {
                receipts.push(Ok(unmarked::receipt(permit, &rejects)?));
                continue;
            }
            let Session { connection, place, .. } = &mut *session;
            if matches!(swapped, Ok(true)) {
                if !rejects.is_empty() {
                    self.scope.reject(connection, place, permit, &rejects).await?;
                }
                self.scope.append(connection, place, permit).await?;
            }
            receipts.push(swapped.map(|_| Receipt::written(permit).with_rejected(rejects.len() as u64)));
        }
        Ok(receipts)
    }

    /// What became of a transaction whose COMMIT was not answered: the marks tell.
    async fn ask(&self, group: &Group, receipts: Receipts, lost: &SinkError) -> Result<Receipts, SinkError> {
        let lanes: Vec<Lane> = group.iter().map(|(permit, _)| permit.key().lane.clone()).collect();
        let mut pause = QUESTION_PAUSE;
        for _ in 0..QUESTIONS {
            sleep(pause).await;
            pause *= 2;
            let mut slot = self.writer.lock().await;
            let Ok(mut session) = self.take(&mut slot).await else { continue };
            let asked = async {
                let Session { connection, place, .. } = &mut session;
                connection.client.batch_execute(&begin()).await.doing("reading the marks of")?;
                // The lock waits for the transaction where it is still being committed.
                let held = self.scope.read(connection, place, &lanes, "FOR SHARE OF m").await?;
                connection.client.batch_execute("ROLLBACK").await.doing("reading the marks of")?;
                Ok(held)
            };
            let asked = asked.await;
            let Ok(held) = self.settle(&mut slot, session, asked).await else { continue };
            let decided = group.iter().zip(receipts).map(|((permit, _), receipt)| {
                let receipt = receipt?;
                let found = held.get(&permit.key().lane).and_then(|held| held.mark.as_ref()).map(|mark| mark.digest);
                if found == Some(permit.mark().digest) { Ok(receipt) } else { Err(lost.clone()) }
            });
            return Ok(decided.collect());
        }
        Err(lost.clone())
    }
}

/// The result of the work; `None` where `moved` stood still for longer than the limit.
async fn while_it_moves<T>(work: impl Future<Output = T>, moved: &AtomicU64, limit: Duration) -> Option<T> {
    let mut work = pin!(work);
    loop {
        let before = moved.load(Ordering::Relaxed);
        match timeout(limit, &mut work).await {
            Ok(done) => return Some(done),
            Err(_) if moved.load(Ordering::Relaxed) == before => return None,
            Err(_) => {}
        }
    }
}

/// The rows of the lanes whose mark was swapped, if they are of this schema.
fn written<'a>(
    group: &'a Group,
    swapped: &'a [Result<bool, SinkError>],
    schema: &'a Schema,
) -> impl Iterator<Item = (usize, &'a Permit, &'a [RecordBatch])> {
    let lanes = group.iter().zip(swapped).enumerate().filter(|(_, (_, swapped))| matches!(swapped, Ok(true)));
    let of_schema = |batches: &[RecordBatch]| {
        batches.iter().find(|batch| batch.num_rows() > 0).is_some_and(|batch| same_columns(&batch.schema(), schema))
    };
    lanes
        .map(|(lane, ((permit, batches), _))| (lane, permit, batches.as_slice()))
        .filter(move |(_, _, batches)| of_schema(batches))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten statements of 100 ms under a limit of a third of them all.
    async fn ten(moved: &AtomicU64, by: u64) -> &'static str {
        for _ in 0..10 {
            sleep(Duration::from_millis(100)).await;
            moved.fetch_add(by, Ordering::Relaxed);
        }
        "done"
    }

    #[tokio::test]
    async fn a_commit_may_take_as_long_as_it_gets_on() {
        let (limit, moved) = (Duration::from_millis(333), AtomicU64::new(0));
        assert_eq!(while_it_moves(ten(&moved, 1), &moved, limit).await, Some("done"));
        assert_eq!(while_it_moves(ten(&moved, 0), &moved, limit).await, None);
    }
}

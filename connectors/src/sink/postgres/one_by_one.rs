//! Rows that are written one by one: where many are refused, halving would send each row again and again.
//!
//! Each row is an INSERT of its own behind a savepoint. Nobody waits for the answers in between: a range of rows is one way
//! to the server and back. What is to happen after a row is decided by the server, since the same two statements follow a
//! row that was written and one that was refused:
//!
//! ```text
//! SAVEPOINT one                 fails where the row was refused, like every statement after an error
//! ROLLBACK TO SAVEPOINT one     to the savepoint behind the row, or to the one before it
//! ```

use std::{
    error::Error,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::{BufMut as _, BytesMut};
use futures::future::{MaybeDone, maybe_done};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use super::{
    database::Connection,
    failure::{Doing, Failure},
    rows::{Rejected, Rows, WRITING, Writer},
    table::Target,
};

/// Rows that are on their way at once.
pub(super) const AT_ONCE: usize = 256;
const SAVEPOINT: &str = "SAVEPOINT one";
const AFTER: [&str; 2] = [SAVEPOINT, "ROLLBACK TO SAVEPOINT one"];

/// A value as COPY sends it: its length, or -1 for null, and its bytes.
#[derive(Debug)]
struct Value(Option<Vec<u8>>);

impl ToSql for Value {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Some(bytes) = &self.0 else { return Ok(IsNull::Yes) };
        out.put_slice(bytes);
        Ok(IsNull::No)
    }

    /// The target's columns were looked at: their types are those that the bytes are of.
    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, of: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql(of, out)
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Binary
    }
}

/// The values of a row of COPY.
fn values(row: &[u8]) -> Vec<Value> {
    let (_, mut rest) = row.split_at_checked(2).unwrap_or_default();
    let mut values = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (bytes, after) = after.split_at_checked(length.unwrap_or(0)).unwrap_or_default();
        values.push(Value(length.map(|_| bytes.to_vec())));
        rest = after;
    }
    values
}

type Answer<'a> = Pin<Box<MaybeDone<Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a>>>>>;

/// Sends a statement, and does not wait for its answer.
async fn sent<'a>(work: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a) -> Answer<'a> {
    let boxed: Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a>> = Box::pin(work);
    let mut answer = Box::pin(maybe_done(boxed));
    // A statement is under way with the first poll.
    let _ = futures::poll!(answer.as_mut());
    answer
}

/// Waits for an answer, and counts it in `moved`.
async fn answered(mut answer: Answer<'_>, moved: &AtomicU64) -> Result<(), Failure> {
    answer.as_mut().await;
    moved.fetch_add(1, Ordering::Relaxed);
    answer.as_mut().take_output().unwrap_or(Ok(())).doing(WRITING)
}

/// Writes some rows, in this order, behind `savepoint`; gives those that were refused, and counts the answers in `moved`: each row
/// may take long, where triggers or locks make it.
pub(super) async fn write(
    connection: &mut Connection,
    target: &Target,
    writer: &Writer,
    rows: &Rows<'_>,
    these: &[usize],
    savepoint: &str,
    moved: &AtomicU64,
) -> Result<Vec<(usize, Rejected)>, Failure> {
    // The merge of a row looks through all that is in the temporary table.
    let clear = writer.clear.as_deref().unwrap_or_default();
    connection.client.batch_execute(&format!("{savepoint}; {clear}{SAVEPOINT}")).await.doing(WRITING)?;
    let insert = connection.statement(&writer.insert).await.doing(WRITING)?;
    let merge = writer.merging(connection).await?;
    let client = &connection.client;
    let (mut answers, mut refused) = (Vec::new(), Vec::new());
    for &row in these {
        let mut bytes = Vec::new();
        if let Err((reason, why)) = rows.write(target, row, &mut bytes) {
            refused.extend(rows.rejected(row, reason, why).map(|rejected| (row, rejected)));
            continue;
        }
        let (values, insert) = (values(&bytes), &insert);
        let inserted = sent(async move { client.execute_raw(insert, values).await.map(drop) }).await;
        let merged = match &merge {
            Some(merge) => {
                let range = [row as i64, row as i64 + 1];
                Some(sent(async move { client.execute_raw(merge, range).await.map(drop) }).await)
            }
            None => None,
        };
        let [kept, undone] = [sent(client.batch_execute(AFTER[0])).await, sent(client.batch_execute(AFTER[1])).await];
        answers.push((row, inserted, merged, kept, undone));
    }
    for (row, inserted, merged, kept, undone) in answers {
        let mut written = answered(inserted, moved).await;
        if let Some(merged) = merged {
            let merged = answered(merged, moved).await;
            written = written.and(merged);
        }
        let kept = answered(kept, moved).await;
        answered(undone, moved).await?;
        match written {
            Ok(()) => kept?,
            Err(failure) => {
                let refusal = failure.refuses_row()?;
                refused.extend(rows.refused(row, refusal).map(|rejected| (row, rejected)));
            }
        }
    }
    refused.sort_by_key(|(row, _)| *row);
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_copy_falls_into_its_values() {
        let row = [&2_i16.to_be_bytes()[..], &3_i32.to_be_bytes(), b"abc", &(-1_i32).to_be_bytes(), &[0; 4]].concat();
        let found: Vec<Option<Vec<u8>>> = values(&row).into_iter().map(|value| value.0).collect();
        assert_eq!(found, [Some(b"abc".to_vec()), None, Some(Vec::new())]);
    }

    #[tokio::test]
    async fn each_answer_is_progress() {
        let moved = AtomicU64::new(0);
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let there = sent(async { Ok(()) }).await;
        let later = async {
            let _ = told.await;
            Ok(())
        };
        let later = sent(later).await;
        assert_eq!(moved.load(Ordering::Relaxed), 0, "what is on its way is none");
        assert!(answered(there, &moved).await.is_ok());
        assert_eq!(moved.load(Ordering::Relaxed), 1);
        tell.send(()).expect("somebody waits");
        assert!(answered(later, &moved).await.is_ok());
        assert_eq!(moved.load(Ordering::Relaxed), 2);
    }
}

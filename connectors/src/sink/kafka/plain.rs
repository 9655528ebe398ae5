//! Records without marks: one idempotent producer for all lanes, and no transaction.
//!
//! A batch is there once every record of it is acknowledged. Where one is not, the producer goes with all that it has not
//! sent yet, and the batch is sent again by a new one: what came through is there twice then.

use std::sync::PoisonError;

use tidemill_checkpoint::{Permit, Receipt};

use super::{
    Inner,
    cluster::Refusal,
    encode::Rows,
    limits::Again,
    writer::{Writer, passed},
};
use crate::sink::{SinkError, unmarked};

type Receipts = Vec<Result<Receipt, SinkError>>;

/// Records that were not all taken.
struct Failed {
    error: SinkError,
    /// Those of rows that may be to blame.
    refusals: Vec<Refusal>,
    /// What their batches had at most.
    batch_bytes: usize,
}

impl From<SinkError> for Failed {
    fn from(error: SinkError) -> Self {
        Self { error, refusals: Vec::new(), batch_bytes: 0 }
    }
}

impl Inner {
    /// Sends the records of a group together; where that cannot be, lane by lane, so that no lane's records stop another.
    pub(super) fn send_group(&self, group: &mut [(Permit, Rows)]) -> Receipts {
        if let [(permit, rows)] = group {
            return vec![self.send_alone(permit, rows)];
        }
        let sets: Vec<(&Permit, &Rows)> = group.iter().map(|(permit, rows)| (permit, rows)).collect();
        match self.send_lanes(&sets, None) {
            Ok(receipts) => receipts,
            Err(failed) if failed.error.is_transient() && failed.refusals.is_empty() => {
                group.iter().map(|_| Err(failed.error.clone())).collect()
            }
            Err(_) => group.iter_mut().map(|(permit, rows)| self.send_alone(permit, rows)).collect(),
        }
    }

    /// Sends one lane's records, in batches that the topic takes.
    fn send_alone(&self, permit: &Permit, rows: &mut Rows) -> Result<Receipt, SinkError> {
        let (mut batch_bytes, mut shorter) = (None, None);
        loop {
            let failed = match self.send_lanes(&[(permit, rows)], batch_bytes) {
                Ok(mut receipts) => {
                    if let Some(bytes) = shorter {
                        self.keep_batches_below(bytes);
                    }
                    return receipts.pop().unwrap_or_else(|| Ok(Receipt::written(permit)));
                }
                Err(failed) => failed,
            };
            match self.bring_down(rows, &failed.refusals, failed.batch_bytes)? {
                None => return Err(failed.error),
                Some(Again::Without(_)) => {
                    let refused = unmarked::refused(&rows.rejects(permit, 0), "others of the batch may be written");
                    return Err(refused.unwrap_or(failed.error));
                }
                Some(Again::Shorter(bytes)) => (batch_bytes, shorter) = (Some(bytes), Some(bytes)),
                Some(Again::Alone) => batch_bytes = Some(1),
            }
        }
    }

    #[allow(clippy::result_large_err)] // once for each batch that brokers refuse
    fn send_lanes(&self, group: &[(&Permit, &Rows)], batch_bytes: Option<usize>) -> Result<Receipts, Failed> {
        let receipts: Receipts =
            group.iter().map(|(permit, rows)| unmarked::receipt(permit, &rows.rejects(permit, 0))).collect();
        let mut place = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        let how = self.how(batch_bytes);
        let mut writer = match place.take().filter(|writer| writer.batch_bytes() == how.batch_bytes) {
            Some(writer) => writer,
            None => Writer::plain(&self.cluster, self.transaction_timeout, how)?,
        };
        passed("kafka.before-rows")?;
        writer.take_refused();
        let failed = |writer: &Writer, error| Failed {
            error,
            refusals: writer.take_refused(),
            batch_bytes: writer.batch_bytes(),
        };
        for ((_, rows), _) in group.iter().zip(&receipts).filter(|(_, receipt)| receipt.is_ok()) {
            let sent = rows.each(|record| writer.send_row(&self.topic, record));
            sent.map_err(|error| failed(&writer, error))?;
        }
        passed("kafka.after-rows")?;
        writer.settle().map_err(|error| failed(&writer, error))?;
        *place = Some(writer);
        passed("kafka.after-commit")?;
        Ok(receipts)
    }
}

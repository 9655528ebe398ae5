//! Records without marks: one idempotent producer for all lanes, and no transaction.
//!
//! A batch is there once every record of it is acknowledged. Where one is not, the producer goes with all that it has not
//! sent yet, and the batch is sent again by a new one: what came through is there twice then.

use std::sync::PoisonError;

use tidemill_checkpoint::{Permit, Receipt};

use super::{
    Inner,
    encode::Rows,
    writer::{Writer, passed},
};
use crate::sink::{SinkError, unmarked};

type Receipts = Vec<Result<Receipt, SinkError>>;

impl Inner {
    /// Sends the records of a group together; where that cannot be, lane by lane, so that no lane's records stop another.
    pub(super) fn send_group(&self, group: &[(Permit, Rows)]) -> Receipts {
        let alone =
            |lane: &(Permit, Rows)| self.send_lanes(std::slice::from_ref(lane)).unwrap_or_else(|e| vec![Err(e)]);
        match self.send_lanes(group) {
            Ok(receipts) => receipts,
            Err(SinkError::Fatal(_)) if group.len() > 1 => group.iter().flat_map(alone).collect(),
            Err(error) => group.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    fn send_lanes(&self, group: &[(Permit, Rows)]) -> Result<Receipts, SinkError> {
        let receipts: Receipts =
            group.iter().map(|(permit, rows)| unmarked::receipt(permit, &rows.rejects(permit, 0))).collect();
        let mut place = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        let mut writer = match place.take() {
            Some(writer) => writer,
            None => Writer::plain(&self.cluster, self.transaction_timeout, self.compression)?,
        };
        passed("kafka.before-rows")?;
        for ((_, rows), _) in group.iter().zip(&receipts).filter(|(_, receipt)| receipt.is_ok()) {
            rows.each(|record| writer.send(&self.topic, None, record.key, record.value, record.headers))?;
        }
        passed("kafka.after-rows")?;
        writer.settle()?;
        *place = Some(writer);
        passed("kafka.after-commit")?;
        Ok(receipts)
    }
}

//! A database that is not waited for longer than the source says. One that has fallen silent, or a lock that nobody gives up, is
//! then a reason that everybody can read, and not a wait that nothing shows.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    Database, Page,
    select::{Key, Range},
};
use crate::source::SourceError;

pub(super) struct Patient {
    pub(super) database: Arc<dyn Database>,
    pub(super) limit: Duration,
    /// The address as it may be shown.
    pub(super) shown: String,
}

impl Patient {
    async fn wait<T>(&self, asked: impl Future<Output = Result<T, SourceError>> + Send) -> Result<T, SourceError> {
        timeout(self.limit, asked).await.unwrap_or_else(|_| {
            Err(SourceError::Transient {
                what: format!("reading rows of {}", self.shown),
                cause: format!(
                    "no answer in {:?}: is the server there, does another session hold a lock, or is there no index over \
                     `order_by`? A longer `timeout` waits longer",
                    self.limit
                ),
            })
        })
    }
}

#[async_trait]
impl Database for Patient {
    async fn rows(&self, range: &Range) -> Result<Page, SourceError> {
        self.wait(self.database.rows(range)).await
    }

    async fn last(&self) -> Result<Option<Key>, SourceError> {
        self.wait(self.database.last()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server behind a connection that a firewall has dropped.
    struct Silent;

    #[async_trait]
    impl Database for Silent {
        async fn rows(&self, _: &Range) -> Result<Page, SourceError> {
            std::future::pending().await
        }

        async fn last(&self) -> Result<Option<Key>, SourceError> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn silence_is_a_reason_after_a_while() {
        let limit = Duration::from_millis(30);
        let patient = Patient { database: Arc::new(Silent), limit, shown: "postgres://h/db".into() };
        let rows = patient.rows(&Range::default()).await.map(|page| page.rows.len());
        for error in [rows.map(drop), patient.last().await.map(drop)] {
            let error = error.err().map(|error| (matches!(error, SourceError::Transient { .. }), error.to_string()));
            let (transient, said) = error.unwrap_or_default();
            assert!(transient && said.starts_with("reading rows of postgres://h/db: no answer in 30ms"), "{said}");
        }
    }
}

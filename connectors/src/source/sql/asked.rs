//! A question that goes on while nobody waits for its answer: the runner gives up waiting each second to look elsewhere,
//! and a database may need longer. Asked anew each time, it would never be answered, and load the server all the same.

use std::sync::Arc;

use tokio::{sync::Mutex, task::JoinHandle};

use super::{
    Database,
    select::{Key, Range},
};
use crate::source::SourceError;

/// What is asked for: a key, where there is one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// The last that has settled.
    Last,
    /// The first of a range.
    First(Range),
}

/// One question at a time.
#[derive(Default)]
pub(super) struct Asked(Mutex<Option<Open>>);

/// A question without an answer yet.
struct Open {
    question: Question,
    task: JoinHandle<Result<Option<Key>, SourceError>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Open {
    fn new(database: Arc<dyn Database>, question: Question) -> Self {
        let range = match &question {
            Question::Last => None,
            Question::First(range) => Some(range.clone()),
        };
        let task = tokio::spawn(async move {
            match range {
                None => database.last().await,
                Some(range) => Ok(database.rows(&range).await?.rows.into_iter().next().map(|row| row.key)),
            }
        });
        Self { question, task }
    }
}

impl Asked {
    /// The answer to a question. Dropped before there is one, it is waited for again by the next call with the same
    /// question; with another question it is given up.
    pub(super) async fn answer(
        &self,
        database: &Arc<dyn Database>,
        question: Question,
    ) -> Result<Option<Key>, SourceError> {
        let mut open = self.0.lock().await;
        drop(open.take_if(|open| open.question != question));
        let now = open.get_or_insert_with(|| Open::new(database.clone(), question));
        let answer = (&mut now.task).await;
        *open = None;
        answer.map_err(|error| SourceError::Fatal(format!("a task of the source ended: {error}")))?
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tidemill_checkpoint::position::KeyPart;
    use tokio::sync::Semaphore;

    use super::{super::Page, *};

    /// Answers when it is let, and counts what it is asked.
    struct Slow {
        asked: AtomicUsize,
        let_go: Semaphore,
    }

    impl Slow {
        async fn wait(&self) {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.let_go.acquire().await.unwrap().forget();
        }
    }

    #[async_trait]
    impl Database for Slow {
        async fn rows(&self, _range: &Range) -> Result<Page, SourceError> {
            self.wait().await;
            Ok(Page::default())
        }

        async fn last(&self) -> Result<Option<Key>, SourceError> {
            self.wait().await;
            Ok(Some(vec![KeyPart::Number(7)]))
        }
    }

    #[tokio::test]
    async fn a_question_outlives_who_asked_it_and_gives_way_to_another() {
        let slow = Arc::new(Slow { asked: AtomicUsize::new(0), let_go: Semaphore::new(0) });
        let database: Arc<dyn Database> = slow.clone();
        let asked = Asked::default();
        let a_while = std::time::Duration::from_millis(50);
        for _ in 0..5 {
            assert!(tokio::time::timeout(a_while, asked.answer(&database, Question::Last)).await.is_err());
        }
        assert_eq!(slow.asked.load(Ordering::SeqCst), 1, "asked once");
        slow.let_go.add_permits(1);
        assert_eq!(asked.answer(&database, Question::Last).await.unwrap(), Some(vec![KeyPart::Number(7)]));
        assert!(tokio::time::timeout(a_while, asked.answer(&database, Question::Last)).await.is_err());
        assert_eq!(slow.asked.load(Ordering::SeqCst), 2, "an answer is given once");
        slow.let_go.add_permits(1);
        let other = Question::First(Range::default());
        assert_eq!(asked.answer(&database, other).await.unwrap(), None);
    }
}

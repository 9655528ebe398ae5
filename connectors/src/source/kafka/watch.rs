//! The thread that serves the clients and keeps what is known of the topics fresh: ids, partitions, ends.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    Message,
    consumer::{CommitMode, Consumer},
};
use tidemill_config::Start;

use super::{
    beginning,
    client::committed,
    core::Core,
    offsets::offset_list,
    others::Others,
    reader::Reader,
    share,
    topics::{Partition, Topology},
};
use crate::source::SourceError;

/// How long an event of a client may wait.
const SERVE: Duration = Duration::from_millis(100);
/// How often the brokers are asked: a topic that was made again is found out within this time.
const REFRESH: Duration = Duration::from_secs(2);
/// A partition's end is waited for so long: the others wait too, and it is asked again soon.
const END: Duration = Duration::from_secs(2);
/// Brokers that do not answer for so long are told of.
const TROUBLE_AFTER: Duration = Duration::from_secs(10);

/// The thread, which ends with the source.
pub(super) struct Watch {
    core: Arc<Core>,
    ending: Arc<AtomicBool>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Watch {
    pub fn new(core: Arc<Core>) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let (its, end) = (core.clone(), ending.clone());
        let thread = thread::Builder::new().name("kafka-watch".to_owned()).spawn(move || watch(&its, &end));
        if let Err(error) = &thread {
            tracing::warn!(%error, "kafka: no thread to look after the topics");
        }
        Self { core, ending, thread: Mutex::new(thread.ok()) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::warn!("kafka: the thread that looks after the topics panicked");
            }
        }
        self.core.close();
    }
}

fn watch(core: &Core, ending: &AtomicBool) {
    let (mut asked, mut silent): (Option<Instant>, Vec<Partition>) = (None, Vec::new());
    let (mut answered, mut others) = (Instant::now(), Others::new());
    while !ending.load(Ordering::Acquire) {
        let Some(query) = core.existing_query() else {
            // Nothing was asked of the source yet.
            thread::park_timeout(SERVE);
            answered = Instant::now();
            continue;
        };
        let _ = query.poll(Duration::from_millis(1));
        serve(core, ending);
        commit(core, CommitMode::Async);
        share::look(core, &query);
        others.look(core, &query);
        let hurry = { core.view().finishing && core.view().ends.is_none() };
        let due = asked.is_none_or(|at| at.elapsed() >= if hurry { SERVE } else { REFRESH });
        if !due {
            continue;
        }
        asked = Some(Instant::now());
        match refresh(core, &mut silent) {
            Ok(()) => answered = Instant::now(),
            Err(error) => {
                tracing::debug!(source = core.name, %error, "kafka: asking for the topics");
                if answered.elapsed() > TROUBLE_AFTER {
                    core.view().trouble = Some(error.to_string());
                    core.wake.notify_one();
                }
            }
        }
    }
    commit(core, CommitMode::Sync);
}

/// Events of the reader's client. Records come by the queues of their partitions alone; one that does not is read again.
fn serve(core: &Core, ending: &AtomicBool) {
    let reader = core.reader().as_ref().map(|reader| reader.consumer.clone());
    let Some(reader) = reader else {
        if !ending.load(Ordering::Acquire) {
            thread::park_timeout(SERVE);
        }
        return;
    };
    if let Some(Ok(message)) = reader.poll(SERVE) {
        let partition = Partition::new(message.topic(), message.partition());
        tracing::warn!(source = core.name, %partition, "kafka: a record came astray and is read again");
        if let Some(reader) = core.reader().as_mut()
            && let Err(error) = reader.astray(&partition)
        {
            tracing::warn!(source = core.name, %partition, %error, "kafka: it could not be read again");
        }
    }
}

/// Writes the group's offsets, with `lanes: single`: nobody is a member of the group then.
fn commit(core: &Core, mode: CommitMode) {
    let offsets = std::mem::take(&mut core.view().offsets);
    if let (Some(list), Some(query)) = (offset_list(&core.job, &offsets), core.existing_query())
        && let Err(error) = query.commit(&list, mode)
    {
        committed(&Err(error));
    }
}

/// Asks for topics and ends.
fn refresh(core: &Core, silent: &mut Vec<Partition>) -> Result<(), SourceError> {
    let topology = core.refresh()?;
    subscribe(core, &topology)?;
    let made_again = |reader: &mut Reader| reader.stop_made_again(|partition| topology.shard(&core.name, partition));
    let mut news = core.reader().as_mut().is_some_and(made_again);
    let wanted = wanted(core, &topology);
    let ends = ask_ends(core, &wanted, silent)?;
    {
        let mut view = core.view();
        view.watermarks.retain(|partition, _| topology.topics.contains_key(&partition.topic));
        if view.finishing && view.ends.is_none() && ends.len() == wanted.len() {
            view.ends = Some(ends);
            news = true;
        }
    }
    if news || core.has_news() {
        core.wake.notify_one();
    }
    Ok(())
}

/// Members of the group are told which topics there are, once it is known where the job begins. An error where there is none
/// that the job names.
fn subscribe(core: &Core, topology: &Topology) -> Result<(), SourceError> {
    let group = core.members.group();
    if core.members.count() == 0 {
        return Ok(());
    }
    // What is found later was not there when the job began.
    if !group.has_begun() && core.config.start == Start::Latest {
        beginning::pin(core)?;
    }
    let reads_any = group.begins(topology.topics.keys());
    match core.trouble(topology) {
        Some(cause) if !reads_any => Err(SourceError::Transient { what: "joining the group".into(), cause }),
        _ => Ok(()),
    }
}

/// The ends that are known. A partition that does not answer is none of the other lanes' business: it is asked last the next
/// time, one such each time, since each is waited for. An error where none answers.
fn ask_ends(
    core: &Core,
    wanted: &[Partition],
    silent: &mut Vec<Partition>,
) -> Result<BTreeMap<Partition, u64>, SourceError> {
    let (mut ends, mut order) = (BTreeMap::new(), wanted.to_vec());
    order.sort_by_key(|one| silent.iter().position(|other| other == one).map_or(0, |at| at + 1));
    for partition in order {
        let found = core.watermarks_within(&partition, END);
        let was_silent = silent.iter().position(|one| *one == partition).map(|at| silent.remove(at)).is_some();
        match found {
            Ok((_, high)) => drop(ends.insert(partition, high)),
            Err(error) => {
                if !was_silent {
                    tracing::warn!(source = core.name, %partition, %error, "kafka: a partition does not answer");
                }
                silent.push(partition);
                if wanted.iter().all(|one| silent.contains(one)) {
                    return Err(error);
                }
                break;
            }
        }
    }
    Ok(ends)
}

/// The partitions whose ends are asked for: those that are read, or that the group gave though they cannot be, and all of them
/// where the lane has all.
fn wanted(core: &Core, topology: &Topology) -> Vec<Partition> {
    let mine = core.members.group().mine();
    let guard = core.reader();
    let read = |partition: &Partition| {
        mine.contains(partition) || guard.as_ref().is_some_and(|reader| reader.cursors.contains_key(partition))
    };
    let all = !core.partitioned || core.view().finishing;
    topology.partitions().filter(|partition| all || read(partition)).collect()
}

//! How a spool and the sinks' mark can lie to each other: the table of the module's documentation.

use tempfile::tempdir;
use tidemill_checkpoint::{Lane, Position, Positions};
use tidemill_config::{Framing, OnLost, Socket};

use super::{
    tcp::{config, listen},
    *,
};
use crate::source::{Adopted, History, Proposal, Source as _, SourceError, socket::SocketSource};

/// A source over a spool that holds these records, nothing released.
fn source_with(dir: &Path, records: &[&[u8]], socket: &Socket) -> (SocketSource, ShardId) {
    let spool = Spool::open(dir, 4096).unwrap();
    if !records.is_empty() {
        spool.append(&mut group(records)).unwrap();
    }
    let shard = ShardId::new("posts", &spool.id.to_string());
    drop(spool);
    (SocketSource::open(&config(socket), socket, dir).unwrap(), shard)
}

async fn adopt(source: &SocketSource, at: &Positions) -> Result<Adopted, SourceError> {
    source.adopt(&Lane::single(), at, &History::default()).await
}

fn at(shard: &ShardId, position: u64) -> Positions {
    Positions::from([(shard.clone(), Position::number(position))])
}

async fn planned(source: &SocketSource, at: &Positions) -> Vec<String> {
    let lane = Lane::single();
    let Some(proposal) = source.plan(&lane, at, ALL).await.unwrap() else { return Vec::new() };
    let batch = source.read(&lane, &proposal).await.unwrap();
    let slices = batch.slices.iter();
    slices
        .flat_map(|s| {
            (0..s.records.len()).map(|n| String::from_utf8(s.record(n).to_vec()).unwrap()).collect::<Vec<_>>()
        })
        .collect()
}

fn stop() -> Socket {
    Socket { on_lost_spool: Some(OnLost::Stop), ..listen() }
}

fn assert_lost(result: Result<Adopted, SourceError>, shard: &ShardId) {
    let Err(error @ SourceError::Lost { .. }) = result else { panic!("{result:?}") };
    let command = format!("tidemill checkpoint resolve --shard {shard} --accept-loss");
    assert!(error.to_string().contains(&command), "{error}");
}

#[tokio::test]
async fn a_spool_that_the_mark_does_not_know_starts_at_its_first_position() {
    let dir = tempdir().unwrap();
    let (source, shard) = source_with(dir.path(), &[b"a", b"b"], &stop());
    let adopted = adopt(&source, &Positions::new()).await.unwrap();
    assert_eq!((adopted.new_shards, adopted.warnings.len()), (at(&shard, 0), 0));
    assert_eq!(source.origin(&Lane::single()).await.unwrap().positions, at(&shard, 0));
    assert_eq!(planned(&source, &at(&shard, 0)).await, ["a", "b"]);
}

#[tokio::test]
async fn a_mark_within_the_spool_goes_on_from_there() {
    let dir = tempdir().unwrap();
    let (source, shard) = source_with(dir.path(), &[b"a", b"b"], &stop());
    let second = records(&source.spool().0, 0).unwrap()[1].0.parse().unwrap();
    let adopted = adopt(&source, &at(&shard, second)).await.unwrap();
    assert_eq!((adopted.new_shards.len(), adopted.warnings.len()), (0, 0));
    assert_eq!(planned(&source, &at(&shard, second)).await, ["b"]);
    let end = source.spool().0.end();
    adopt(&source, &at(&shard, end)).await.unwrap();
    assert_eq!(planned(&source, &at(&shard, end)).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_mark_before_the_spool_is_lost_whatever_the_policy() {
    for socket in [listen(), stop()] {
        let socket = Socket { max_spool_bytes: 16 * 1024, ..socket };
        let dir = tempdir().unwrap();
        let (source, shard) = source_with(dir.path(), &[&[b'x'; 5000]], &socket);
        let spool = source.spool().0;
        spool.append(&mut group(&[b"next"])).unwrap();
        spool.release(spool.end());
        assert!(spool.first() > 0);
        assert_lost(adopt(&source, &at(&shard, spool.first() - 1)).await, &shard);
        adopt(&source, &at(&shard, spool.first())).await.unwrap();
    }
}

#[tokio::test]
async fn a_mark_beyond_the_spool_stops_or_begins_a_new_one_that_never_gives_a_position_twice() {
    let dir = tempdir().unwrap();
    let (source, shard) = source_with(dir.path(), &[b"a"], &stop());
    let beyond = at(&shard, source.spool().0.end() + 1);
    assert_lost(adopt(&source, &beyond).await, &shard);
    drop(source);

    let source = SocketSource::open(&config(&listen()), &listen(), dir.path()).unwrap();
    let adopted = adopt(&source, &beyond).await.unwrap();
    let new = source.spool().1;
    assert_ne!(new, shard);
    assert_eq!((adopted.new_shards.clone(), adopted.warnings.len()), (at(&new, 0), 1));
    let mut both = beyond;
    both.extend(adopted.new_shards);
    assert_eq!(planned(&source, &both).await, Vec::<String>::new());
    drop(source);
    // The same mark finds the new spool now, and says nothing more.
    let source = SocketSource::open(&config(&listen()), &listen(), dir.path()).unwrap();
    let adopted = adopt(&source, &both).await.unwrap();
    assert_eq!((source.spool().1, adopted.warnings.len(), adopted.new_shards.len()), (new, 0, 0));
}

#[tokio::test]
async fn another_spool_in_the_mark_is_said_once_or_stops_and_its_folder_may_come_back() {
    let (old_dir, new_dir) = (tempdir().unwrap(), tempdir().unwrap());
    let (old, old_shard) = source_with(old_dir.path(), &[b"a", b"b"], &listen());
    let second: u64 = records(&old.spool().0, 0).unwrap()[1].0.parse().unwrap();
    drop(old);
    let mut mark = at(&old_shard, second);
    for policy in [stop(), Socket { ack: true, ..listen() }] {
        let dir = tempdir().unwrap();
        assert_lost(adopt(&source_with(dir.path(), &[], &policy).0, &mark).await, &old_shard);
    }
    let policy = Socket { ack: true, on_lost_spool: Some(OnLost::Continue), ..listen() };
    let (new, new_shard) = source_with(new_dir.path(), &[b"c"], &policy);
    let adopted = adopt(&new, &mark).await.unwrap();
    assert_eq!((adopted.new_shards, adopted.warnings.len()), (at(&new_shard, 0), 1));
    assert_eq!(adopt(&new, &mark).await.unwrap().warnings.len(), 0, "said once");
    mark.extend(at(&new_shard, new.spool().0.end()));
    let replay = Proposal {
        spans: [(
            old_shard.clone(),
            tidemill_checkpoint::Span { from: Position::number(64), to: Position::number(99) },
        )]
        .into(),
        ..Proposal::default()
    };
    assert!(matches!(new.read(&Lane::single(), &replay).await, Err(SourceError::Lost { .. })), "never an empty batch");
    drop(new);
    let (new, _) = source_with(new_dir.path(), &[], &policy);
    assert_eq!(adopt(&new, &mark).await.unwrap().warnings.len(), 0, "not again after a restart");
    // The old folder comes back: it goes on where the mark stands.
    let old = SocketSource::open(&config(&listen()), &listen(), old_dir.path()).unwrap();
    adopt(&old, &mark).await.unwrap();
    assert_eq!(planned(&old, &mark).await, ["b"]);
}

#[tokio::test]
async fn a_renamed_source_goes_on_with_its_spool() {
    let dir = tempdir().unwrap();
    let (source, shard) = source_with(dir.path(), &[b"a", b"b"], &stop());
    let second = records(&source.spool().0, 0).unwrap()[1].0.parse().unwrap();
    drop(source);
    let mut renamed = config(&stop());
    renamed.name.value = "tweets".to_owned();
    renamed.formerly = Some("posts".to_owned());
    let source = SocketSource::open(&renamed, &stop(), dir.path()).unwrap();
    let adopted = adopt(&source, &at(&shard, second)).await.unwrap();
    assert_eq!(adopted.new_shards.len(), 0);
    assert_eq!(planned(&source, &at(&shard, second)).await, ["b"]);
}

#[tokio::test]
async fn a_damaged_record_is_lost_when_it_is_planned() {
    let dir = tempdir().unwrap();
    let (source, shard) = source_with(dir.path(), &[b"aaaa", b"bbbb"], &listen());
    adopt(&source, &Positions::new()).await.unwrap();
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] = b'!';
    fs::write(&path, bytes).unwrap();
    let error = source.plan(&Lane::single(), &at(&shard, 0), ALL).await.unwrap_err();
    assert!(matches!(&error, SourceError::Lost { .. }) && error.to_string().contains("checksum"), "{error}");
}

#[test]
fn what_cannot_work_is_fatal() {
    let dir = tempdir().unwrap();
    for socket in [
        Socket { framing: Framing::Delimiter(Vec::new()), ..listen() },
        Socket { framing: Framing::LengthPrefix(3), ..listen() },
        Socket { max_record_bytes: usize::MAX, ..listen() },
    ] {
        assert!(matches!(SocketSource::open(&config(&socket), &socket, dir.path()), Err(SourceError::Fatal(_))));
    }
}

/// The mark has other records before its position than the spool: a copy of the data dir was at work.
#[tokio::test]
async fn a_mark_of_another_copy_stops_or_begins_a_new_spool() {
    let (dir, copy) = (tempdir().unwrap(), tempdir().unwrap());
    let (source, shard) = source_with(dir.path(), &[b"before"], &stop());
    drop(source);
    copy_dir(dir.path(), copy.path());
    // Both take as much, and the copy commits.
    let mine = source_with(dir.path(), &[b"mine"], &stop()).0;
    let theirs = source_with(copy.path(), &[b"copy"], &stop()).0;
    let lane = Lane::single();
    let adopt_checked = async |source: &SocketSource, checks: &tidemill_checkpoint::Checks, at: &Positions| {
        source.adopt(&lane, at, &History { checks: checks.clone(), ..History::default() }).await
    };
    let proposal = theirs.plan(&lane, &at(&shard, 0), ALL).await.unwrap().unwrap();
    let end = proposal.spans[&shard].to.clone();
    let mark = Positions::from([(shard.clone(), end)]);
    assert_eq!(proposal.checks.len(), 1);
    // The copy itself goes on, and so does a folder that was moved or restored with it.
    adopt_checked(&theirs, &proposal.checks, &mark).await.unwrap();
    // A mark of an older version has no check, and is believed.
    adopt(&mine, &mark).await.unwrap();
    let result = adopt_checked(&mine, &proposal.checks, &mark).await;
    let Err(SourceError::Lost { what, .. }) = &result else { panic!("{result:?}") };
    assert!(what.contains(&format!("tidemill checkpoint rewind --to {shard}=POSITION")), "{what}");
    assert_lost(result, &shard);
    drop(mine);
    let continues = Socket { ack: true, on_lost_spool: Some(OnLost::Continue), ..listen() };
    let mine = SocketSource::open(&config(&continues), &continues, dir.path()).unwrap();
    let adopted = adopt_checked(&mine, &proposal.checks, &mark).await.unwrap();
    assert_eq!(adopted.warnings.len(), 1, "{adopted:?}");
    assert_ne!(mine.spool().1, shard);
    let aside = fs::read_dir(dir.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("aside-"));
    assert_eq!(aside.count(), 1, "what only it has is kept for a person");
}

//! What the file sink publishes: names, partitions, compression, parquet, rolling; and what users may do to its files.

use std::{fs, io::Read as _, path::Path, sync::Arc, time::Duration};

use crate::sinks::{Runner, context, files, next, published};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use tidemill_checkpoint::{Lane, Permit, SinkId};
use tidemill_config::{At, Codec, Compression, Files, Located, Roll, SinkKind};
use tidemill_connectors::sink::{self, Sink, SinkError};

fn open(config: Files) -> Arc<dyn Sink> {
    sink::open(SinkId::new("archive"), "job", &SinkKind::Files(config)).unwrap()
}

fn days(days: &[Option<&str>]) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..days.len() as i64));
    let days: ArrayRef = Arc::new(StringArray::from(days.to_vec()));
    RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("day", days, true)]).unwrap()
}

async fn write(runner: &mut Runner, rows: &[RecordBatch]) -> Result<(), SinkError> {
    if runner.head.is_none() {
        runner.step().await?;
    }
    let head = runner.head.clone().unwrap();
    let (mark, entries) = next(&runner.key, &head, &[], 0);
    let staged = runner.sink.stage(&context(&runner.key, &mark, false), rows).await?;
    let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark.clone(), entries);
    runner.sink.commit(vec![(permit, staged)]).await.pop().unwrap()?;
    runner.head = Some(mark);
    Ok(())
}

async fn claim(config: Files, instance: u128) -> Runner {
    let sink = open(config);
    let lane = Lane::single();
    let held = sink.peek(std::slice::from_ref(&lane)).await.unwrap().remove(&lane).unwrap();
    let (key, head) = sink.claim(&lane, held.generation().next(), &crate::sinks::owner(instance)).await.unwrap();
    Runner { sink, key, head }
}

fn out(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let root = dir.join("out");
    let found = published(&root).into_iter();
    found.map(|(path, bytes)| (path.strip_prefix(&root).unwrap().display().to_string(), bytes)).collect()
}

#[tokio::test]
async fn a_name_tells_lane_generation_and_plan() {
    let dir = tempfile::tempdir().unwrap();
    let sink = open(files(dir.path(), None));
    let mut runner = Runner::claim(sink, &Lane::new("topic/3"), 1).await.unwrap();
    runner.run(1).await.unwrap();
    let input = runner.head.unwrap().plan.input().short();
    let files = out(dir.path());
    assert_eq!(files.len(), 1);
    let (name, bytes) = &files[0];
    assert!(name.starts_with("topic%2F3-g1-") && name.ends_with(&format!("-000001-{input}.json")), "{name}");
    let lines: Vec<serde_json::Value> =
        bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[1]["text"], "row \"11\"\n");
}

#[tokio::test]
async fn partitions_are_folders_and_their_columns_are_not_in_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let by = Located { value: "day".to_owned(), at: At::default() };
    let mut config = files(dir.path(), None);
    config.partition_by = vec![by];
    let mut runner = claim(config.clone(), 1).await;
    let rows = [
        days(&[Some("2015-05-17"), Some("a/../b c"), None, Some("2015-05-17")]),
        days(&[Some(""), Some("2015-05-17")]),
    ];
    write(&mut runner, &rows).await.unwrap();
    let files: Vec<(String, String)> = out(dir.path())
        .into_iter()
        .map(|(name, bytes)| (name.rsplit_once('/').unwrap().0.to_owned(), String::from_utf8(bytes).unwrap()))
        .collect();
    let expected = [
        ("day=", "{\"n\":0}\n"),
        ("day=2015-05-17", "{\"n\":0}\n{\"n\":3}\n{\"n\":1}\n"),
        ("day=__HIVE_DEFAULT_PARTITION__", "{\"n\":2}\n"),
        ("day=a%2F..%2Fb%20c", "{\"n\":1}\n"),
    ];
    assert_eq!(files, expected.map(|(folder, text)| (folder.to_owned(), text.to_owned())));
    // A text that takes 3 bytes a character in a name, the same with another end, and the text that stands for null.
    let long = "é".repeat(100);
    let (one, other) = (format!("{long}1"), format!("{long}2"));
    write(
        &mut runner,
        &[days(&[Some(&one), Some(&other), Some(&one), Some("__HIVE_DEFAULT_PARTITION__"), Some("a=b+c")])],
    )
    .await
    .unwrap();
    let folders = fs::read_dir(dir.path().join("out")).unwrap().map(|entry| entry.unwrap().file_name());
    let folders: Vec<String> = folders.map(|name| name.into_string().unwrap()).collect();
    assert!(folders.contains(&"day=%5F_HIVE_DEFAULT_PARTITION__".to_owned()), "{folders:?}");
    assert!(folders.contains(&"day=a%3Db+c".to_owned()), "a second = is no part of a folder's name: {folders:?}");
    let cut: Vec<_> =
        folders.iter().filter(|name| name.starts_with("day=%C3%A9%C3%A9") && name.contains('~')).collect();
    assert_eq!(cut.len(), 2, "{folders:?}");
    config.partition_by[0].value = "dya".into();
    let error = open(config).prepare(&days(&[]).schema()).await.err().unwrap();
    assert!(error.to_string().contains("no column `dya`") && error.to_string().contains("n, day"), "{error}");
    // Too many folders are a mistake that is named before anything is written.
    let many: Vec<String> = (0..2000).map(|n| n.to_string()).collect();
    let many: Vec<Option<&str>> = many.iter().map(|day| Some(day.as_str())).collect();
    let error = write(&mut runner, &[days(&many)]).await.err().unwrap();
    assert!(matches!(&error, SinkError::Fatal(text) if text.contains("coarser")), "{error}");
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn compressed_files_are_read_by_the_formats_own_readers() {
    for (compression, ending) in [(Compression::Gzip, ".json.gz"), (Compression::Zstd, ".json.zst")] {
        for roll in [None, Some(Roll { bytes: 1 << 20, after: Duration::from_secs(3600) })] {
            let dir = tempfile::tempdir().unwrap();
            let mut runner = claim(Files { compression, ..files(dir.path(), roll) }, 1).await;
            let large = days(&vec![Some("a day that is long enough to fill several members of a file"); 40_000]);
            write(&mut runner, &[large]).await.unwrap();
            write(&mut runner, &[days(&[Some("b")])]).await.unwrap();
            let files = out(dir.path());
            assert_eq!(files.len(), if roll.is_some() { 1 } else { 2 });
            assert!(files.iter().all(|(name, _)| name.ends_with(ending)), "{files:?}");
            let text: String = files
                .iter()
                .map(|(_, bytes)| match compression {
                    Compression::Gzip => gunzip(bytes),
                    _ => String::from_utf8(zstd::decode_all(bytes.as_slice()).unwrap()).unwrap(),
                })
                .collect();
            let numbers: Vec<i64> = text
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_i64().unwrap())
                .collect();
            assert_eq!(numbers, (0..40_000).chain([0]).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn parquet_is_a_file_per_batch_and_cannot_roll() {
    for (compression, pages) in [(Compression::None, "SNAPPY"), (Compression::Zstd, "ZSTD")] {
        let dir = tempfile::tempdir().unwrap();
        let config = Files { codec: Codec::Parquet, compression, ..files(dir.path(), None) };
        let mut runner = claim(config.clone(), 1).await;
        let rows = [days(&[Some("a"), None]), days(&[Some("c")])];
        write(&mut runner, &rows).await.unwrap();
        let (name, bytes) = out(dir.path()).pop().unwrap();
        assert!(name.ends_with(".parquet"), "{name}");
        let builder =
            parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap();
        let of_pages = format!("{:?}", builder.metadata().row_group(0).column(0).compression());
        assert!(of_pages.starts_with(pages), "{of_pages}");
        let read: Vec<RecordBatch> = builder.build().unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(
            arrow::compute::concat_batches(&rows[0].schema(), &read).unwrap(),
            arrow::compute::concat_batches(&rows[0].schema(), &rows).unwrap()
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let config = Files { codec: Codec::Parquet, ..files(dir.path(), None) };
    let roll = Some(Roll { bytes: 1, after: Duration::from_secs(1) });
    let refused = sink::open(SinkId::new("a"), "job", &SinkKind::Files(Files { roll, ..config }));
    assert!(refused.err().unwrap().to_string().contains("cannot roll"));
}

fn csv() -> tidemill_config::Csv {
    tidemill_config::Csv::default()
}

#[tokio::test]
async fn every_csv_file_begins_with_its_header_and_has_it_once() {
    for roll in [None, Some(Roll { bytes: 40, after: Duration::from_secs(3600) })] {
        let dir = tempfile::tempdir().unwrap();
        let config = Files { codec: Codec::Csv(csv()), compression: Compression::Gzip, ..files(dir.path(), roll) };
        let mut runner = claim(config, 1).await;
        let mut rows = 0;
        for _ in 0..3 {
            write(&mut runner, &[days(&[Some("a,b")]), days(&[Some("c"), None])]).await.unwrap();
        }
        for (name, bytes) in out(dir.path()) {
            let text = gunzip(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!((lines[0], lines[1], lines[2]), ("n,day", "0,\"a,b\"", "0,c"), "{name}");
            assert_eq!(lines.iter().filter(|line| **line == "n,day").count(), 1, "{name}");
            rows += lines.len() - 1;
        }
        assert_eq!(rows, 9);
    }
}

/// A job that was edited, or a replay by the old text: the lane goes on, with other columns.
#[tokio::test]
async fn rows_with_another_header_begin_a_rolling_file_of_their_own() {
    let roll = Some(Roll { bytes: 1 << 20, after: Duration::from_secs(3600) });
    let dir = tempfile::tempdir().unwrap();
    let mut runner = claim(Files { codec: Codec::Csv(csv()), ..files(dir.path(), roll) }, 1).await;
    let wide = days(&[Some("a")]);
    let narrow = wide.project(&[0]).unwrap();
    for rows in [&narrow, &narrow, &wide, &wide, &narrow] {
        write(&mut runner, std::slice::from_ref(rows)).await.unwrap();
    }
    let files: Vec<String> = out(dir.path()).into_iter().map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect();
    assert_eq!(files, ["n\n0\n0\n", "n,day\n0,a\n0,a\n", "n\n0\n"]);
}

#[tokio::test]
async fn files_roll_by_size_and_by_the_plans_clock() {
    let dir = tempfile::tempdir().unwrap();
    // Plans are a second apart: a file is full after three.
    let mut runner = claim(files(dir.path(), Some(Roll { bytes: 1 << 20, after: Duration::from_secs(3) })), 1).await;
    for _ in 0..7 {
        write(&mut runner, &[days(&[Some("a")])]).await.unwrap();
    }
    let lines: Vec<usize> =
        out(dir.path()).iter().map(|(_, bytes)| bytes.iter().filter(|b| **b == b'\n').count()).collect();
    assert_eq!(lines, [3, 3, 1]);
    let dir = tempfile::tempdir().unwrap();
    let mut runner = claim(files(dir.path(), Some(Roll { bytes: 30, after: Duration::from_secs(3600) })), 1).await;
    for _ in 0..5 {
        write(&mut runner, &[days(&[Some("a")])]).await.unwrap();
    }
    let lines: Vec<usize> =
        out(dir.path()).iter().map(|(_, bytes)| bytes.iter().filter(|b| **b == b'\n').count()).collect();
    assert_eq!(lines, [2, 2, 1]);
}

/// A zombie's handle, and the garbage that a crash may leave, end at the take-over: the file is another one afterwards.
#[tokio::test]
async fn a_takeover_keeps_the_committed_bytes_of_a_rolling_file_and_no_others() {
    use std::io::Write as _;
    let roll = Some(Roll { bytes: 1 << 20, after: Duration::from_secs(3600) });
    let dir = tempfile::tempdir().unwrap();
    let mut runner = claim(files(dir.path(), roll), 1).await;
    write(&mut runner, &[days(&[Some("a")])]).await.unwrap();
    let (name, committed) = out(dir.path()).pop().unwrap();
    let path = dir.path().join("out").join(&name);
    let mut zombie = fs::File::options().append(true).open(&path).unwrap();
    zombie.write_all(b"{\"n\":99").unwrap();
    let mut runner = claim(files(dir.path(), roll), 2).await;
    assert_eq!(fs::read(&path).unwrap(), committed);
    zombie.write_all(b"9}\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), committed);
    write(&mut runner, &[days(&[Some("b")])]).await.unwrap();
    assert_eq!(out(dir.path()).len(), 2);
    // After a clean stop nobody writes: the file is left as it is.
    runner.sink.release(&runner.key).await.unwrap();
    let before: Vec<_> = published(&dir.path().join("out")).into_keys().map(|path| inode(&path)).collect();
    claim(files(dir.path(), roll), 3).await;
    let after: Vec<_> = published(&dir.path().join("out")).into_keys().map(|path| inode(&path)).collect();
    assert_eq!(before, after);
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
}

#[tokio::test]
async fn users_may_move_and_delete_what_was_published() {
    let dir = tempfile::tempdir().unwrap();
    let by = Located { value: "day".to_owned(), at: At::default() };
    let config = Files { partition_by: vec![by], ..files(dir.path(), None) };
    let mut runner = claim(config.clone(), 1).await;
    write(&mut runner, &[days(&[Some("a")])]).await.unwrap();
    fs::remove_dir_all(dir.path().join("out/day=a")).unwrap();
    write(&mut runner, &[days(&[Some("a")])]).await.unwrap();
    assert_eq!(out(dir.path()).len(), 1);
    fs::remove_dir_all(dir.path().join("out/day=a")).unwrap();
    let mut runner = claim(config, 2).await;
    assert_eq!(runner.seq(), Some(2));
    assert!(out(dir.path()).is_empty());
    write(&mut runner, &[days(&[Some("a")])]).await.unwrap();
    assert_eq!(out(dir.path()).len(), 1);
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_and_a_damaged_log_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("out"), "a file").unwrap();
    let sink = open(files(dir.path(), None));
    let error = sink.claim(&Lane::single(), crate::sinks::generation(1), &crate::sinks::owner(1)).await.err().unwrap();
    assert!(error.to_string().contains("/out"), "{error}");
    fs::remove_file(dir.path().join("out")).unwrap();
    let mut runner = claim(files(dir.path(), None), 1).await;
    runner.run(2).await.unwrap();
    let log = fs::read_dir(dir.path().join("out/_tidemill/job/archive/all"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
        .join("log-g1.mark");
    let mut bytes = fs::read(&log).unwrap();
    bytes[40] ^= 1;
    fs::write(&log, bytes).unwrap();
    let error = open(files(dir.path(), None)).peek(&[Lane::single()]).await.err().unwrap();
    assert!(
        matches!(&error, SinkError::Fatal(text) if text.contains("log-g1.mark") && text.contains("reset --sinks")),
        "{error}"
    );
}

#[tokio::test]
async fn a_log_stays_short_however_many_batches_it_has_seen() {
    let dir = tempfile::tempdir().unwrap();
    let mut runner = claim(files(dir.path(), None), 1).await;
    runner.run(0).await.unwrap();
    let line = "x".repeat(60_000);
    let entries: Vec<&str> = vec![&line; 100];
    for batch in 0..8u64 {
        // Each batch brings 6 MB of entries and drops those of the one before.
        runner.step_with(&entries, batch * 100).await.unwrap();
    }
    let bytes: u64 = published(&dir.path().join("out/_tidemill")).into_values().map(|bytes| bytes.len() as u64).sum();
    assert!(bytes < 40 << 20, "{bytes} bytes of logs");
    let left = runner.sink.history(&Lane::single(), &crate::sinks::log(), 0).await.unwrap();
    assert_eq!((left.len(), left[0].number), (100, 700));
}

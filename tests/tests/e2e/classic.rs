//! The classic first job: posts over TCP, separated by `__end`, lower-cased, the first ten of each second printed, all of
//! them kept. Once against a server that it connects to, once as the server.

use serde_json::Map;
use tidemill_tests::{
    Folder, Rows, Run, eventually,
    feed::{self, Feeder, Pace},
    free_address,
    needs::data,
};

fn job(source: &str) -> String {
    format!(
        r#"
job: classic
trigger: 200ms
sources:
  posts: {{ type: socket, {source}, framing: {{ delimiter: "__end" }}, codec: text }}
steps:
  - drop_empty: [text]
  - lowercase: [text]
sinks:
  screen: {{ type: console, first: 10 }}
  db: {{ type: sqlite, path: posts.db, table: posts }}
  archive: {{ type: files, path: out, codec: json }}
"#
    )
}

/// Posts with what people write: capitals, emoji, line breaks, quotes, doubles, and some that are empty.
fn posts(count: usize) -> Vec<Vec<u8>> {
    let forms =
        ["Hello TIDE no", "Zwei\nZeilen, ÄÖÜ", "🌊 \"Quoted\" & <b>bold</b>", "e\u{301}ÇOLE\t", "the same again"];
    let post = |n: usize| match n % 7 {
        6 => String::new(),
        5 => forms[4].to_owned(),
        form => format!("{} {n}", forms[form]),
    };
    (0..count).map(|n| post(n).into_bytes()).collect()
}

fn expected(posts: &[Vec<u8>]) -> Rows {
    let texts = posts.iter().map(|post| String::from_utf8(post.clone()).unwrap().to_lowercase());
    Rows(texts.filter(|text| !text.is_empty()).map(|text| Map::from_iter([("text".into(), text.into())])).collect())
}

fn check(folder: &Folder, posts: &[Vec<u8>]) {
    let expected = expected(posts);
    let found = Rows::sqlite(&folder.join("posts.db"), "SELECT text FROM posts ORDER BY rowid");
    found.assert_same(&expected, "the table");
    assert_eq!(found, expected, "one connection keeps its order");
    Rows::files(&folder.join("out")).select(&["text"]).assert_same(&expected, "the files");
}

#[test]
fn it_connects_to_a_server_and_works_until_the_server_closes() {
    let folder = Folder::new();
    let posts = posts(2000);
    let feeder = Feeder::serve(posts.clone(), b"__end", Pace::Full);
    let mut daemon = Run::new(&folder).job(&job(&format!("connect: \"{}\"", feeder.address()))).once();
    daemon.expect_success();
    assert_eq!(feeder.sent(), posts.len());
    check(&folder, &posts);
    let screen = daemon.stdout();
    assert!(screen.contains("hello tide no 0"), "the first post is printed: {screen}");
}

#[test]
fn it_listens_prints_ten_of_each_batch_and_ends_cleanly() {
    let folder = Folder::new();
    let address = free_address();
    let mut daemon = Run::new(&folder).job(&job(&format!("listen: \"{address}\""))).spawn();
    let posts = posts(2000);
    feed::send(address, &posts, b"__end");
    eventually("all posts to be stored", || {
        let query = "SELECT count(*) AS n FROM posts";
        let found = Rows::try_sqlite(&folder.join("posts.db"), query).map_err(|e| e.to_string())?.column("n");
        if found == [expected(&posts).len().to_string()] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // Rows are there before the batch is closed and counted.
    eventually("all posts to be counted", || {
        match daemon.metric("tidemill_records_received_total", &["job=\"classic\"", "source=\"posts\""]) {
            2000.0 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    let batches = daemon.metric("tidemill_batches_total", &["job=\"classic\""]);
    let progress = daemon.get("/jobs/classic").unwrap();
    assert_eq!(progress.status, 200, "{}", progress.body);
    daemon.term();
    daemon.expect_success();
    check(&folder, &posts);

    let printed = daemon.stdout().lines().filter(|line| line.contains("hello tide no")).count();
    assert!(printed >= 1 && printed as f64 <= 10.0 * batches, "{printed} lines for {batches} batches");
}

#[test]
fn real_tweets_with_line_breaks_and_emoji_come_through() {
    let Some(file) = data("tweets-mayweather/tweets.csv") else { return };
    let text = std::fs::read_to_string(file).unwrap();
    let tweets = Rows::csv(&text).column("text");
    assert!(tweets.len() > 12_000, "{}", tweets.len());
    assert!(tweets.iter().any(|tweet| tweet.contains('\n')), "some have line breaks");
    let posts: Vec<Vec<u8>> = tweets.into_iter().map(String::into_bytes).collect();
    let folder = Folder::new();
    let feeder = Feeder::serve(posts.clone(), b"__end", Pace::Full);
    Run::new(&folder).job(&job(&format!("connect: \"{}\"", feeder.address()))).once().expect_success();
    check(&folder, &posts);
}

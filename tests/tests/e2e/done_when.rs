//! `examples/classic.yaml` as it stands, against `tidemill feed` and against netcat: posts over TCP, lower-cased, the first
//! ten of each second printed, all of them kept.

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use serde_json::{Map, json};
use tidemill_tests::{Daemon, Folder, Rows, Run, binary, eventually, free_address, needs, root};

/// Killed where the test ends before it.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The example, with a port of its own.
fn classic(address: SocketAddr) -> String {
    let text = fs::read_to_string(root().join("examples/classic.yaml")).unwrap();
    let example = "${CLASSIC:-127.0.0.1:9700}";
    assert!(text.contains(example), "the example's address");
    text.replace(example, &address.to_string())
}

fn post(n: usize) -> String {
    match n % 4 {
        0 => format!("Post {n}: HELLO, Tide!"),
        1 => format!("Zwei Zeilen Nr. {n}\nÄÖÜ und 🌊"),
        2 => format!("\"Quoted\" & <B>Bold</B> {n}"),
        _ => format!("ÉCOLE № {n}\t\\n __END is not the end"),
    }
}

fn expected(posts: impl IntoIterator<Item = String>) -> Rows {
    let row = |post: String| Map::from_iter([("text".to_owned(), post.to_lowercase().into())]);
    Rows(posts.into_iter().map(row).collect())
}

/// The table holds exactly the posts, in order; the screen showed the first ten of every batch, each under its heading.
fn check(folder: &Folder, daemon: &mut Daemon, expected: &Rows, fewest_batches: usize) {
    eventually("all posts to be kept", || {
        let query = "SELECT text FROM posts ORDER BY rowid";
        let found = Rows::try_sqlite(&folder.join("out/posts.db"), query).map_err(|e| e.to_string())?;
        if found == *expected { Ok(()) } else { Err(format!("{} of {}", found.len(), expected.len())) }
    });
    daemon.term();
    daemon.expect_success();
    let screen = daemon.stdout();
    let mut texts = expected.column("text").into_iter();
    let mut lines = screen.lines().peekable();
    let (mut batches, mut seconds) = (0, Vec::new());
    while let Some(heading) = lines.next() {
        let parts: Vec<&str> = heading.split(" · ").collect();
        assert!(parts.len() == 3 && parts[1].starts_with("batch "), "no heading: {heading:?} in\n{screen}");
        seconds.push(parts[0].to_owned());
        let rows: usize = parts[2].split(' ').next().unwrap().parse().unwrap();
        assert_eq!(parts[2].contains("first 10"), rows > 10, "{heading}");
        let batch: Vec<String> = texts.by_ref().take(rows).collect();
        for text in batch.iter().take(10) {
            let shown = text.replace('\n', "⏎").replace('\t', " ");
            assert_eq!(lines.next(), Some(&*shown), "under {heading}");
        }
        batches += 1;
    }
    assert_eq!(texts.next(), None, "every row belongs to a batch that was printed");
    assert!(batches >= fewest_batches, "{batches} batches:\n{screen}");
    seconds.dedup();
    assert_eq!(seconds.len(), batches, "a batch each second:\n{screen}");
}

#[test]
fn the_classic_job_against_feed_that_takes_fields_out_of_json() {
    let folder = Folder::new();
    // As the services of that name write them: long posts have their text elsewhere, and some records are no posts.
    let record = |n: usize| match n % 5 {
        0 => json!({ "text": "cut off …", "extended_tweet": { "full_text": post(n) } }),
        4 => json!({ "delete": { "id": n } }),
        _ => json!({ "text": post(n), "extended_tweet": null }),
    };
    let lines: Vec<_> = (0..500).map(|n| record(n).to_string()).collect();
    folder.write("posts.json", lines.join("\n"));
    let address = free_address();
    let feed = Command::new(binary::tidemill())
        .args(["feed", "posts.json", "--listen", &address.to_string(), "--delimiter", "__end", "--rate", "150"])
        .args(["--field", "extended_tweet.full_text,text"])
        .current_dir(folder.path())
        .stderr(File::create(folder.join("feed.err")).unwrap())
        .spawn()
        .unwrap();
    let mut feed = Kill(feed);
    let mut daemon = Run::new(&folder).job(&classic(address)).start();
    check(&folder, &mut daemon, &expected((0..500).filter(|n| n % 5 != 4).map(post)), 3);
    let status = eventually("feed to end", || feed.0.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
    assert!(status.success(), "{status}");
    let said = fs::read_to_string(folder.join("feed.err")).unwrap();
    assert!(said.contains("feeding 400 records of posts.json") && said.contains("has all 400 records"), "{said}");
}

#[test]
fn the_classic_job_against_netcat() {
    let Some(nc) = needs::tool("nc") else { return };
    let folder = Folder::new();
    let text: String = (0..300).map(|n| post(n) + "__end").collect();
    folder.write("posts.txt", text);
    let address = free_address();
    // As the example says it: listens, serves standard input to the first client, and closes.
    let nc = Command::new(nc)
        .args(["-lN", &address.ip().to_string(), &address.port().to_string()])
        .stdin(File::open(folder.join("posts.txt")).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _nc = Kill(nc);
    let mut daemon = Run::new(&folder).job(&classic(address)).start();
    check(&folder, &mut daemon, &expected((0..300).map(post)), 1);
}

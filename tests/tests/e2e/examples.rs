//! The jobs of `examples/`, run as they stand in a copy of their folder, and what each must have written: a folder of
//! `tests/examples/` in the form of a golden case.

use std::{
    fs,
    net::Shutdown,
    path::{Path, PathBuf},
};

use tidemill_tests::{
    Daemon, Folder, Run,
    feed::{self, Feeder, Pace},
    free_address, golden, root,
};

fn examples() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    found.sort();
    found
}

/// The examples without what somebody's own runs have left there.
fn copy() -> Folder {
    let folder = Folder::new();
    for path in examples() {
        folder.copy(&path, path.file_name().unwrap());
    }
    folder.copy(&root().join("examples/input"), "input");
    folder
}

/// Whether the job needs servers: those are run by `examples_with_servers`.
fn needs_servers(path: &Path) -> bool {
    fs::read_to_string(path).unwrap().contains("make services-up")
}

#[test]
fn every_example_gives_what_it_promises() {
    let mut wrong = Vec::new();
    for path in examples().into_iter().filter(|path| !needs_servers(path)) {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let folder = copy();
        let run = Run::new(&folder).job_file(folder.join(path.file_name().unwrap())).arg("--once");
        // Where an example has another end, its address is a variable.
        let mut daemon = match name.as_str() {
            "classic" => classic(run),
            "socket-ack" => socket_ack(run),
            _ => run.start(),
        };
        let expected = root().join("tests/examples").join(&name);
        assert!(expected.is_dir(), "{name}: tests/examples/{name} says what it must write");
        if let Err(error) = golden::check(&folder, &expected, &mut daemon) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn classic(run: Run) -> Daemon {
    let posts = ["Hello\nworld", "", "TIDE 🌊"].map(|post| post.as_bytes().to_vec());
    let feeder = Feeder::serve(posts.to_vec(), b"__end", Pace::Full);
    let mut daemon = run.env("CLASSIC", feeder.address().to_string()).start();
    daemon.wait();
    assert!(daemon.stdout().contains("tide 🌊"), "{}", daemon.stdout());
    daemon
}

fn socket_ack(run: Run) -> Daemon {
    let address = free_address();
    let daemon = run.env("SOCKET_ACK", address.to_string()).start();
    let lines = ["{\"device\":\"a\",\"value\":1}", "{\"device\":\"b\",\"value\":2}", "{\"device\":\"a\",\"value\":3}"];
    let stream = feed::connect(address);
    let acked = feed::send_acked(&stream, &lines.map(|line| line.as_bytes().to_vec()));
    assert_eq!(acked, 3, "every line is called safe");
    let _ = stream.shutdown(Shutdown::Both);
    daemon
}

#[test]
fn every_example_is_listed_and_says_how_to_run_it() {
    let list = fs::read_to_string(root().join("examples/README.md")).unwrap();
    for path in examples() {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(list.contains(&format!("[{name}]({name})")), "examples/README.md lacks {name}");
        let text = fs::read_to_string(&path).unwrap();
        let header: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        assert!(header.contains(&format!("tidemill run examples/{name}")), "{name} does not say how it is run");
    }
}

//! One job, named in every way in which a job can be named: each path of a source and of a sink is one absolute path.
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tidemill_config::{Daemon, DatabaseAddress, Job, LookupTable, OnDone, SinkKind, SourceKind, SqlDatabase, Verb};

const JOB: &str = "
job: a
sources:
  folder: { type: directory, path: in, on_done: { move: ./done } }
  linked: { type: directory, path: to-far }
  absent: { type: directory, path: not/../here/yet }
  given: { type: test, path: x/../given.json }
  table: { type: sql, url: 'sqlite:data/./shop.db', table: t, order_by: id, schema: { id: int64 } }
steps:
  - lookup: { table: tables/t.csv, match: id, take: name }
sinks:
  out: { type: files, path: ../jobs/out }
  db: { type: sqlite, path: to-far/../hits.db, table: hits }
dead_letters: { type: files, path: dead }
";

/// Every path of the job, in the order of the file.
fn paths(job: &Job) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for source in &job.sources {
        match &source.kind {
            SourceKind::Directory(directory) => {
                paths.push(directory.path.clone());
                if let OnDone::Move(to) = &directory.on_done {
                    paths.push(to.clone());
                }
            }
            SourceKind::Test(test) => paths.push(test.path.clone()),
            SourceKind::Sql(sql) => {
                let SqlDatabase::Sqlite(path) = &sql.database else { panic!() };
                paths.push(path.clone());
            }
            _ => panic!(),
        }
    }
    // A table is read anew each time: links to it are left as they are, and lead to the same file.
    for step in &job.steps {
        let Verb::Lookup(lookup) = &step.verb else { continue };
        let LookupTable::File { path, .. } = &lookup.table else { panic!() };
        paths.push(tidemill_config::paths::resolve(path));
    }
    for sink in job.sinks.iter().chain(&job.dead_letters) {
        paths.push(match &sink.kind {
            SinkKind::Files(files) => files.path.clone(),
            SinkKind::Sqlite { path, .. } => path.clone(),
            _ => panic!(),
        });
    }
    paths
}

/// `to` as a path that begins at the working directory.
fn relative(to: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap().canonicalize().unwrap();
    let up = here.components().skip(1).map(|_| "..").collect::<PathBuf>();
    up.join(to.strip_prefix("/").unwrap())
}

#[test]
fn however_a_job_is_named_its_paths_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::create_dir_all(root.join("jobs/in")).unwrap();
    fs::create_dir_all(root.join("far/folder")).unwrap();
    fs::create_dir_all(root.join("elsewhere")).unwrap();
    fs::write(root.join("jobs/job.yaml"), JOB).unwrap();
    symlink("../far/folder", root.join("jobs/to-far")).unwrap();
    symlink("jobs", root.join("folder-link")).unwrap();
    symlink(root.join("jobs/job.yaml"), root.join("jobs/alias.yaml")).unwrap();
    let at = |path: &str| root.join("jobs").join(path);
    let wanted = [
        at("in"),
        at("done"),
        root.join("far/folder"),
        at("here/yet"),
        at("given.json"),
        at("data/shop.db"),
        at("tables/t.csv"),
        at("out"),
        // `..` of where the link leads, as for every other program.
        root.join("far/hits.db"),
        at("dead"),
    ];
    let absolute = [
        "jobs/job.yaml",
        "./jobs/./job.yaml",
        "jobs/../jobs/job.yaml",
        "elsewhere/../jobs/job.yaml",
        "jobs/in/../job.yaml",
        "folder-link/job.yaml",
        "jobs/alias.yaml",
        "folder-link/alias.yaml",
    ];
    for name in absolute {
        for file in [root.join(name), relative(&root).join(name)] {
            let job = Job::load(&file, &BTreeMap::new()).unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(paths(&job), wanted, "{}", file.display());
        }
    }
    // A job that is a link into another folder: its paths begin where it was named, as with a mounted ConfigMap.
    symlink("../jobs/job.yaml", root.join("elsewhere/job.yaml")).unwrap();
    let job = Job::load(&root.join("elsewhere/job.yaml"), &BTreeMap::new()).unwrap();
    assert_eq!(paths(&job)[0], root.join("elsewhere/in"));
}

/// A sink in the folder that a source reads is found by where the paths lead, not by how they are written.
#[test]
fn one_folder_by_two_names_is_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    symlink("in", folder.path().join("other")).unwrap();
    let with = |sink: &str, done: &str| {
        let text = format!(
            "job: a\nsources: {{ s: {{ type: directory, path: in, on_done: {{ move: {done} }} }} }}\n\
             sinks: {{ o: {{ type: files, path: {sink} }}, p: {{ type: files, path: ./out }} }}\n"
        );
        let errors = Job::parse(&text, &folder.path().join("job.yaml"), &BTreeMap::new()).map(|_| ());
        errors.map_err(|errors| errors.to_string()).err().unwrap_or_default()
    };
    assert_eq!(with("else", "done"), "");
    assert!(with("other", "done").contains("read its own output"));
    assert!(with("sub/../out", "done").contains("writes to the same folder"));
    assert!(with("else", "other").contains("a folder that this source reads"));
}

/// Certificates and tables are read anew each time: a link to them may be changed while the job runs.
#[test]
fn links_to_files_that_are_replaced_stay_links() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    for name in ["t-1.csv", "shop-1.db"] {
        fs::write(root.join(name), "").unwrap();
    }
    symlink("t-1.csv", root.join("t.csv")).unwrap();
    symlink("shop-1.db", root.join("shop.db")).unwrap();
    for (table, link) in [("table: t.csv", "t.csv"), ("database: d, table: t", "shop.db")] {
        let text = format!(
            "job: a\ndatabases: {{ d: {{ url: 'sqlite:shop.db' }} }}\nsources: {{ s: {{ type: directory, path: in }} }}\n\
             steps:\n  - lookup: {{ {table}, match: id, take: name }}\nsinks: {{ o: {{ type: blackhole }} }}\n"
        );
        let job = Job::parse(&text, &root.join("job.yaml"), &BTreeMap::new()).unwrap_or_else(|e| panic!("{e}"));
        let Verb::Lookup(lookup) = &job.steps[0].verb else { panic!() };
        let path = match &lookup.table {
            LookupTable::File { path, .. } => path,
            LookupTable::Sql { database, .. } => {
                let DatabaseAddress::Sqlite(path) = &database.address else { panic!() };
                path
            }
            LookupTable::Redis { .. } => panic!(),
        };
        assert_eq!(*path, root.join(link));
    }
}

#[test]
fn the_data_dir_is_relative_to_the_daemons_file() {
    let daemon = Daemon::parse("data_dir: state", Path::new("etc/t.yaml"), &BTreeMap::new()).unwrap();
    assert_eq!(daemon.data_dir, Path::new("etc/state"));
}

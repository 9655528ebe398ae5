//! What a test needs from the machine, asked for by name.
//!
//! Absent: the test says `skipped: NAME needs ...` and returns; with `CI=true` it fails instead.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::root;

/// Whether absent things are failures.
pub fn must_have() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// Says that the calling test is skipped.
///
/// # Panics
/// Where `CI=true` says that `what` must be there.
pub fn skip(what: &str, way: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(!must_have(), "{test} needs {what}, and CI=true says that it is there. {way}");
    // Past the test runner's capture, which hides what a passing test prints.
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs {what}. {way}");
}

/// A program: looked for in `target/tools/`, where `tests/tools.sh` puts what it fetches, then on the PATH.
pub fn tool(name: &str) -> Option<PathBuf> {
    let ours = ["bin", "python/bin"].map(|folder| root().join("target/tools").join(folder).join(name));
    let found = ours.into_iter().find(|path| path.is_file()).or_else(|| on_path(name));
    if found.is_none() {
        skip(name, "`tests/tools.sh` installs it, or says how.");
    }
    found
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A Python that has this module.
pub fn python_with(module: &str) -> Option<PathBuf> {
    let ours = root().join("target/tools/python/bin/python3");
    let candidates = [Some(ours), on_path("python3")];
    let has = |python: &PathBuf| {
        let mut command = Command::new(python);
        command.args(["-c", &format!("import {module}")]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let found = candidates.into_iter().flatten().filter(|path| path.is_file()).find(has);
    if found.is_none() {
        skip(&format!("the Python module `{module}`"), "`tests/tools.sh` installs it, or says how.");
    }
    found
}

/// A file or folder of the shared data sets, which lie beside the repository and are read in place.
pub fn data(name: &str) -> Option<PathBuf> {
    let path = data_folder().join(name);
    if path.exists() {
        return Some(path);
    }
    skip(&format!("the data set `{name}`"), "It is looked for in ../shared/data, or in TIDEMILL_DATA.");
    None
}

fn data_folder() -> PathBuf {
    std::env::var_os("TIDEMILL_DATA").map_or_else(|| root().join("../shared/data"), PathBuf::from)
}

/// Runs a command to its end and returns what it printed to stdout.
///
/// # Panics
/// Where it fails, with all that it said.
pub fn output(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?} ended with {}\n{out}\n{said}", done.status);
    out
}

/// A Python script of this repository, run with arguments.
pub fn python_script(python: &Path, script: &str, arguments: &[&Path]) -> String {
    output(Command::new(python).arg(root().join(script)).args(arguments))
}

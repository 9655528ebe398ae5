//! The binary under test.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::SystemTime,
};

use crate::root;

/// The path of `tidemill`: `TIDEMILL_BIN` where set, else the one beside this test in the target folder, built first
/// where it is absent or older than a source file.
pub fn tidemill() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(find);
    &BINARY
}

fn find() -> PathBuf {
    if let Some(given) = std::env::var_os("TIDEMILL_BIN") {
        let given = root().join(given);
        assert!(given.is_file(), "TIDEMILL_BIN names {}, which is no file", given.display());
        return given;
    }
    // A test runs as target/<profile>/deps/<name>-<hash>.
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let binary = folder.join("tidemill");
    let built = binary.metadata().and_then(|file| file.modified()).ok();
    if built.is_none_or(|built| newest_source() > built) {
        build(folder);
    }
    assert!(binary.is_file(), "`cargo build -p tidemill` made no {}", binary.display());
    binary
}

fn build(folder: &Path) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "tidemill", "--profile", profile])
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .current_dir(root())
        .status()
        .unwrap();
    assert!(status.success(), "`cargo build -p tidemill` failed; TIDEMILL_BIN=PATH tests another binary");
}

fn newest_source() -> SystemTime {
    ["checkpoint", "config", "connectors", "steps", "daemon"]
        .iter()
        .map(|name| newest(&root().join(name).join("src")))
        .max()
        .unwrap()
}

fn newest(folder: &Path) -> SystemTime {
    let mut latest = SystemTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        latest = latest.max(if meta.is_dir() { newest(&entry.path()) } else { meta.modified().unwrap_or(latest) });
    }
    latest
}

//! Golden tests: every folder of `tests/golden/` is one. To add one, add a folder; `tests/golden/README.md` says how.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tidemill_tests::{Folder, Run, golden, root};

#[test]
fn every_golden_case_gives_what_it_expects() {
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root().join("tests/golden")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert!(!cases.is_empty());
    let wrong: Vec<String> = cases.iter().filter_map(|case| run(case).err()).collect();
    assert!(wrong.is_empty(), "{} of {} cases failed:\n\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}

fn run(case: &Path) -> Result<(), String> {
    let folder = Folder::new();
    folder.copy(&case.join("input"), "input");
    folder.copy(&case.join("job.yaml"), "job.yaml");
    let mut daemon = Run::new(&folder).job_file(folder.join("job.yaml")).arg("--once").start();
    let name = case.file_name().unwrap().to_string_lossy();
    golden::check(&folder, &case.join("expected"), &mut daemon).map_err(|error| format!("{name}: {error}"))
}

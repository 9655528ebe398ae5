//! Globs of files: `jobs/*.yaml`.

use std::path::{Path, PathBuf};

use crate::schema::scalar::glob;

/// Folders inside folders that `**` looks into.
const MAX_DEPTH: usize = 16;

/// The files that `pattern` names, sorted. None is an error, said as a sentence without the pattern.
pub(crate) fn expand(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let is_glob = |part: &str| part.contains(['*', '?', '[', '{']);
    if !is_glob(pattern) {
        let path = folder.join(pattern);
        return match path.is_dir() {
            _ if path.is_file() => Ok(vec![path]),
            true => Err("it is a folder, and jobs in it are named like `FOLDER/*.yaml`".into()),
            false => Err("there is no such file".into()),
        };
    }
    // The folders before the first wildcard are walked to directly.
    let fixed: Vec<&str> = pattern.split('/').take_while(|part| !is_glob(part)).collect();
    let rest = pattern.split('/').skip(fixed.len()).collect::<Vec<_>>().join("/");
    let prefix = if fixed == [""] { "/".to_owned() } else { fixed.join("/") };
    let base = folder.join(prefix);
    let base_shown = if base.as_os_str().is_empty() { Path::new(".") } else { &base };
    let matcher = glob(&rest).map_err(|problem| problem.what)?;
    let depth = if rest.contains("**") { MAX_DEPTH } else { rest.matches('/').count() };
    let mut files = Vec::new();
    walk(base_shown, Path::new(""), depth, &mut |below| {
        if matcher.is_match(below) {
            files.push(base.join(below));
        }
    })
    .map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such folder".to_owned(),
        _ => format!("the folder cannot be read: {error}"),
    })?;
    files.sort();
    if files.is_empty() { Err("no file matches".into()) } else { Ok(files) }
}

fn walk(base: &Path, below: &Path, depth: usize, found: &mut dyn FnMut(&Path)) -> std::io::Result<()> {
    for entry in std::fs::read_dir(base.join(below))? {
        let entry = entry?;
        let below = below.join(entry.file_name());
        let path = base.join(&below);
        if path.is_file() {
            found(&below);
        } else if depth > 0 && path.is_dir() && !entry.file_type()?.is_symlink() {
            walk(base, &below, depth - 1, found)?;
        }
    }
    Ok(())
}

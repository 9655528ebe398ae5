//! One spelling for each path. What watches a folder, compares two of them, or prints one must not depend on how a job
//! was named, nor on where Tidemill was started.

use std::{
    collections::VecDeque,
    path::{Component, Path, PathBuf},
};

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// The absolute path of a folder or file that a job works in: without `.` and `..`, every link in it followed, also where
/// what it names is not there yet. A link that is changed later counts when the job is loaded again.
pub fn resolve(path: &Path) -> PathBuf {
    let (mut resolved, mut links) = (PathBuf::new(), 0);
    let mut parts: VecDeque<_> = owned(&absolute(path)).collect();
    while let Some(part) = parts.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => _ = resolved.pop(),
            Some(Component::CurDir) | None => {}
            Some(_) => {
                // A root replaces what was there before.
                resolved.push(&part);
                match resolved.read_link() {
                    Ok(target) if links < MAX_LINKS => {
                        links += 1;
                        resolved.pop();
                        owned(&target).rev().for_each(|part| parts.push_front(part));
                    }
                    _ => {}
                }
            }
        }
    }
    resolved
}

/// The absolute path of a file that is read anew each time and may be replaced by changing a link (a certificate, a
/// lookup's table): without `.` and `..`, links left as they are.
pub fn absolute(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // It fails only where the working directory is gone: then no relative path means anything.
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut normal = PathBuf::new();
    for part in whole.components() {
        if part != Component::ParentDir {
            normal.push(part);
            continue;
        }
        if normal.is_symlink() {
            normal = resolve(&normal);
        }
        normal.pop();
    }
    normal
}

/// The path of a job's file by which it is found again, from any folder. Its name stays as it is where it is a link:
/// paths in it are relative to the folder in which it was named.
pub fn of_file(file: &Path) -> PathBuf {
    let whole = absolute(file);
    match (whole.parent(), whole.file_name()) {
        (Some(folder), Some(name)) => resolve(folder).join(name),
        _ => whole,
    }
}

fn owned(path: &Path) -> impl DoubleEndedIterator<Item = std::ffi::OsString> {
    path.components().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn every_spelling_of_a_place_is_one_path() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("far/deep")).unwrap();
        fs::write(root.join("a/b/file"), "").unwrap();
        symlink("a", root.join("link")).unwrap();
        symlink(root.join("far/deep"), root.join("a/away")).unwrap();
        symlink("b/file", root.join("a/alias")).unwrap();
        symlink("../not/yet", root.join("a/dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for (given, wanted) in [
            ("a/b", "a/b"),
            ("./a/./b/", "a/b"),
            ("a/b/../b", "a/b"),
            ("link/b", "a/b"),
            ("link/../a/b", "a/b"),
            ("a/away", "far/deep"),
            // As the kernel does: `..` of what the link points to, not of the link.
            ("a/away/../x", "far/x"),
            ("a/alias", "a/b/file"),
            ("a/dangling", "not/yet"),
            ("a/dangling/../z", "not/z"),
            ("not/here/../either", "not/either"),
            ("a/b/file/below", "a/b/file/below"),
        ] {
            assert_eq!(resolve(&root.join(given)), root.join(wanted), "{given}");
        }
        // A circle is left for whoever opens it to report.
        assert!(resolve(&root.join("loop")).starts_with(&root));
        assert_eq!(resolve(Path::new("/../..")), Path::new("/"));
    }

    #[test]
    fn relative_paths_begin_at_the_working_directory() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(resolve(Path::new("")), here);
        assert_eq!(resolve(Path::new("src/../no-such")), here.join("no-such"));
        assert_eq!(of_file(Path::new("job.yaml")), here.join("job.yaml"));
    }

    #[test]
    fn a_file_keeps_its_name_and_a_replaced_file_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        fs::write(root.join("real/job.yaml"), "").unwrap();
        symlink("real/job.yaml", root.join("named.yaml")).unwrap();
        symlink(".", root.join("here")).unwrap();
        assert_eq!(of_file(&root.join("here/named.yaml")), root.join("named.yaml"));
        assert_eq!(absolute(&root.join("./real/../named.yaml")), root.join("named.yaml"));
        symlink("real", root.join("also")).unwrap();
        assert_eq!(absolute(&root.join("also/job.yaml")), root.join("also/job.yaml"));
        assert_eq!(absolute(&root.join("also/../x")), root.join("x"));
    }
}

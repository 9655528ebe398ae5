//! A job's text, kept under its digest in the data dir: a batch that is open while the job is edited is replayed by the
//! text that planned it.
//!
//! A text may hold a password, so texts are readable by the daemon's user alone, and those that no batch can need any more
//! are removed: a password that was changed does not stay. What a batch can need: the text of the job as it is, those
//! that the ledger's batches name, and the newest [`NEWEST_KEPT`], since a sink's mark may be ahead of the ledger.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::SystemTime,
};

use tidemill_checkpoint::Digest;

use super::sync_folder;

/// Texts that are kept beside the one in use and those that the ledger names.
pub const NEWEST_KEPT: usize = 3;

/// Folders and files that only the daemon's user may enter, read or write.
const PRIVATE_FOLDER: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

/// Makes a folder that only the daemon's user may enter, or closes one that is there to others.
pub fn keep_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(folder)?;
    let is_open = fs::metadata(folder)?.permissions().mode() & 0o077 != 0;
    if is_open { fs::set_permissions(folder, Permissions::from_mode(PRIVATE_FOLDER)) } else { Ok(()) }
}

/// Keeps `text` under `digest`, synced.
pub fn keep(folder: &Path, digest: &Digest, text: &str) -> io::Result<()> {
    let path = folder.join(format!("{digest}.yaml"));
    keep_private(folder)?;
    if fs::read(&path).is_ok_and(|kept| kept == text.as_bytes()) {
        // What is newest is what was used last.
        fs::File::open(&path)?.set_modified(SystemTime::now())?;
        return fs::set_permissions(&path, Permissions::from_mode(PRIVATE_FILE));
    }
    let temporary = folder.join(format!(".{digest}.tmp"));
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    sync_folder(folder)
}

/// The text that was kept under `digest`.
pub fn kept(folder: &Path, digest: &Digest) -> Option<String> {
    fs::read_to_string(folder.join(format!("{digest}.yaml"))).ok()
}

/// Removes the texts that no batch can need: see the module.
pub fn prune(folder: &Path, needed: &BTreeSet<Digest>) -> io::Result<()> {
    let needed: BTreeSet<String> = needed.iter().map(|digest| format!("{digest}.yaml")).collect();
    let mut others = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yaml") && !needed.contains(&name) {
            let written = entry.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            others.push((written, entry.path()));
        }
    }
    others.sort();
    let old = others.len().saturating_sub(NEWEST_KEPT);
    others[..old].iter().try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn texts_are_private_and_only_those_that_may_be_needed_stay() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("job/texts");
        let digests: Vec<Digest> = (0..10u8).map(|n| Digest::of(&[n])).collect();
        for (n, digest) in digests.iter().enumerate() {
            keep(&folder, digest, &format!("password: {n}")).unwrap();
            let file = fs::File::open(folder.join(format!("{digest}.yaml"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + n as u64)).unwrap();
        }
        let path = folder.join(format!("{}.yaml", digests[9]));
        assert_eq!((mode(&folder), mode(&path)), (0o700, 0o600));
        // One of an older version, that everybody may read, is closed when it is used again.
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        keep(&folder, &digests[9], "password: 9").unwrap();
        assert_eq!(mode(&path), 0o600);

        prune(&folder, &BTreeSet::from([digests[0], digests[9]])).unwrap();
        let left: Vec<usize> = (0..10).filter(|&n| kept(&folder, &digests[n]).is_some()).collect();
        assert_eq!(left, [0, 6, 7, 8, 9]);
        assert_eq!(kept(&folder, &digests[0]).unwrap(), "password: 0");
    }
}

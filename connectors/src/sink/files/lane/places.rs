//! Putting files in their places: renames that are owed, rolling files that end where the head says, new logs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
};

use tidemill_checkpoint::{Entry, failpoint::pass};

use super::{
    super::log::{Active, Image, Rename, Start, Writer},
    Lane, State, lock,
};
use crate::sink::{SinkError, durable};

impl Lane {
    /// Does the renames that are owed. Each is a proof of ownership: its source lies in the live folder.
    pub(super) fn publish(&self, state: &mut State) -> Result<(), SinkError> {
        while let Some(rename) = state.owed.first() {
            let published = pass("files.before-rename").and_then(|()| self.publish_one(rename));
            published.map_err(|error| self.error(&format!("publishing {}", rename.to), &error))?;
            state.owed.remove(0);
        }
        pass("files.after-renames").map_err(|error| self.error("publishing", &error))
    }

    fn publish_one(&self, rename: &Rename) -> io::Result<()> {
        let (from, to) = (self.live.tmp().join(&rename.from), self.root.join(&rename.to));
        let renamed = match fs::rename(&from, &to) {
            // The target's folder was removed, or the temporary is published already, or the lane is another's.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !from.try_exists()? {
                    if self.live.is_mine()? { Ok(()) } else { Err(error) }
                } else {
                    durable::create_dir_all(durable::parent(&to)).and_then(|()| fs::rename(&from, &to))
                }
            }
            other => other,
        };
        lock(&self.unsynced).insert(durable::parent(&to).to_owned());
        renamed
    }

    /// Leaves files as the head says: rolling files end where it says, renames are done, folders synced.
    pub(super) fn settle(
        &self,
        state: &mut State,
        active: &BTreeMap<String, Active>,
        released: bool,
    ) -> io::Result<()> {
        for active in active.values() {
            let rename = state.owed.iter().find(|rename| rename.to == active.path).cloned();
            self.seal(active, rename.as_ref(), released)?;
            state.owed.retain(|rename| rename.to != active.path);
        }
        for rename in std::mem::take(&mut state.owed) {
            self.publish_one(&rename)?;
        }
        let mut unsynced = lock(&self.unsynced);
        for folder in unsynced.iter().filter(|folder| folder.is_dir()) {
            durable::sync_dir(folder)?;
        }
        unsynced.clear();
        Ok(())
    }

    /// Puts a copy of a rolling file's committed bytes in its place: an earlier owner may still write to the old one.
    fn seal(&self, active: &Active, rename: Option<&Rename>, released: bool) -> io::Result<()> {
        let to = self.root.join(&active.path);
        let temporary = rename.map(|rename| self.live.tmp().join(&rename.from)).filter(|path| path.exists());
        let from = temporary.as_ref().unwrap_or(&to);
        let mut source = match File::open(from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(file = %to.display(), "a rolling file was moved while it was written to; its end is not checked");
                return Ok(());
            }
            other => other?,
        };
        let length = source.metadata()?.len();
        if length < active.bytes {
            tracing::error!(file = %to.display(), length, committed = active.bytes, "a rolling file was cut short by somebody else");
            return Ok(());
        }
        // An owner that let go writes no more.
        if released && length == active.bytes && temporary.is_none() {
            return Ok(());
        }
        let copy = self.live.tmp().join(format!("seal-{}", uuid::Uuid::new_v4().simple()));
        let mut file = File::options().write(true).create_new(true).open(&copy)?;
        io::copy(&mut (&mut source).take(active.bytes), &mut file)?;
        file.sync_all()?;
        durable::sync_dir(&self.live.tmp())?;
        pass("files.before-seal")?;
        durable::create_dir_all(durable::parent(&to))?;
        fs::rename(&copy, &to)?;
        lock(&self.unsynced).insert(durable::parent(&to).to_owned());
        pass("files.after-seal")?;
        if let Some(temporary) = temporary {
            // Synced before it goes: the copy is in place for good, or the temporary is still there.
            durable::sync_dir(durable::parent(&to))?;
            fs::remove_file(temporary)?;
        }
        Ok(())
    }

    fn image(&self, state: &State) -> io::Result<(PathBuf, Image)> {
        let path = self.live.path.join(&state.log.name);
        let image = Image::read(&path)?;
        Ok((path, image))
    }

    /// Begins a new log with what the old one holds up to the head that this process knows.
    pub(super) fn new_log(&self, state: &mut State) -> io::Result<()> {
        let (path, image) = self.image(state)?;
        let mut entries = image.entries(&path, None)?;
        let next =
            |entry: &Entry| state.head.as_ref().and_then(|head| head.logs.get(&entry.log)).map_or(0, |log| log.next);
        // Where the last append failed, the file may hold a batch that the head does not.
        entries.retain(|entry| entry.number < next(entry));
        let mut start = Start::new(self.key.generation, &self.key.owner);
        start.continues = Some((state.log.name.clone(), image.valid));
        start.head = state.head.clone();
        start.renames = state.renames.clone();
        start.active = match state.broken {
            false => {
                state.rolling.iter().map(|(partition, rolling)| (partition.clone(), rolling.active.clone())).collect()
            }
            true => image.active_at(&path, state.head.as_ref().map(|head| head.digest))?,
        };
        let name = self.live.log_name(state.logs + 1);
        state.log = Writer::create(&self.live.path, &name, &start, &entries)?;
        state.logs += 1;
        self.folder.sweep(&self.live, &name)
    }

    /// After a failed write or sync: a new log, and rolling files end for good where the head says.
    pub(super) fn repair(&self, state: &mut State) -> io::Result<()> {
        let (path, image) = self.image(state)?;
        let active = image.active_at(&path, state.head.as_ref().map(|head| head.digest))?;
        self.new_log(state)?;
        state.rolling.clear();
        // No log names them any more.
        state.stranded.drain(..).for_each(|mut temporary| temporary.kept = false);
        self.settle(state, &active, false)?;
        state.broken = false;
        Ok(())
    }
}

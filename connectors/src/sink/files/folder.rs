//! A lane's folder: which generation is live, and how another takes it.
//!
//! The folder always holds exactly one `live-g<generation>-<token>/`; taking the lane is renaming it. The token is the
//! claim's own: where a rename answers ENOENT although it was done (a network file system that sent it twice), the name
//! tells whose it was. The folder itself appears by a rename too, with `live-g0` in it, so two first claims begin from
//! the same name.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidemill_checkpoint::{Claim, Generation, Held, Lane, Owner, failpoint::pass};
use uuid::Uuid;

use super::log::Image;
use crate::sink::durable;

/// How often a folder is looked at again when names change while it is read.
const LOOKS: u32 = 100;
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The folder of one lane.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// The live folder that a claim won, or that a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) generation: Generation,
    pub(super) path: PathBuf,
    token: String,
}

/// Left in the live folder before it is renamed: who is about to take it.
#[derive(Serialize, Deserialize)]
struct Ticket {
    generation: Generation,
    owner: Owner,
}

fn ticket(token: &str) -> String {
    format!("claim-{token}.json")
}

impl Live {
    fn parse(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_prefix("live-g")?;
        let (generation, token) = name.split_once('-').unwrap_or((name, ""));
        let generation = Generation(generation.parse().ok()?);
        Some(Self { generation, token: token.to_owned(), path })
    }

    /// Whether the folder still has this name: the proof of ownership.
    pub(super) fn is_mine(&self) -> io::Result<bool> {
        match fs::symlink_metadata(&self.path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Eight digits that no other claim has: two sinks of one folder may have the same lane, generation and plan.
    pub(super) fn token(&self) -> &str {
        self.token.get(..8).unwrap_or(&self.token)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    pub(super) fn beat(&self) -> PathBuf {
        self.path.join("beat")
    }

    /// Every log in the folder, by (generation, number).
    pub(super) fn logs(&self) -> io::Result<Vec<(u64, u64, PathBuf)>> {
        let mut logs = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let parsed = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
                let name = name.strip_prefix("log-g")?.strip_suffix(".mark")?;
                let (generation, number) = name.split_once('-').unwrap_or((name, "1"));
                Some((generation.parse().ok()?, number.parse().ok()?))
            });
            if let Some((generation, number)) = parsed {
                logs.push((generation, number, path));
            }
        }
        logs.sort();
        Ok(logs)
    }

    /// The newest log, read; `None` where there is none yet (a first claim that was cut short).
    pub(super) fn log(&self) -> io::Result<Option<(PathBuf, Image)>> {
        let logs = self.logs()?;
        logs.last().map(|(_, _, path)| Ok((path.clone(), Image::read(path)?))).transpose()
    }

    /// The name of log `number` of this generation.
    pub(super) fn log_name(&self, number: u64) -> String {
        if number == 1 {
            format!("log-g{}.mark", self.generation)
        } else {
            format!("log-g{}-{number}.mark", self.generation)
        }
    }

    fn held(&self) -> io::Result<Held> {
        let log = self.log()?;
        let mark = log.as_ref().and_then(|(_, image)| image.head().cloned());
        let claim = match &log {
            Some((_, image)) if image.start.generation == self.generation => {
                Some((image.start.owner.clone(), image.released))
            }
            // A claim that took the folder and has not written its log: the ticket says whose it is.
            _ => fs::read(self.path.join(ticket(&self.token))).ok().map(|bytes| {
                let owner = serde_json::from_slice::<Ticket>(&bytes).map(|ticket| ticket.owner);
                (owner.unwrap_or_else(|_| nobody()), false)
            }),
        };
        let (owner, released) = claim.unwrap_or_else(|| (nobody(), false));
        let claim =
            (self.generation > Generation::default()).then_some(Claim { generation: self.generation, owner, released });
        let beat = match fs::read_to_string(self.beat()) {
            Ok(text) => text.trim().parse().unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Held { claim, mark, beat })
    }
}

/// The owner where a power cut took its name: nobody's own, so that it has to be silent before it is taken over.
fn nobody() -> Owner {
    Owner { name: "(unknown)".into(), data_dir: Uuid::nil(), instance: Uuid::nil() }
}

impl Folder {
    pub(super) fn new(marks: &Path, lane: &Lane) -> Self {
        Self { path: marks.join(durable::component(lane.as_str())) }
    }

    /// The live folder; `None` where the lane was never claimed.
    pub(super) fn live(&self) -> io::Result<Option<Live>> {
        for _ in 0..LOOKS {
            let names = match fs::read_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            let paths: Vec<PathBuf> = names.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
            let mut found: Vec<Live> = paths.into_iter().filter_map(Live::parse).collect();
            // A folder that is renamed while the names are read may be seen twice, or not at all.
            match found.pop() {
                Some(live) if found.is_empty() => return Ok(Some(live)),
                _ => std::thread::sleep(LOOK_AGAIN),
            }
        }
        let what = format!("{} does not hold exactly one live-g* folder: it was changed by hand", self.path.display());
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// Looks, and looks again where the folder is taken meanwhile.
    pub(super) fn look<T>(&self, work: impl Fn(&Live) -> io::Result<T>) -> io::Result<Option<T>> {
        let mut last = None;
        for _ in 0..LOOKS {
            let Some(live) = self.live()? else { return Ok(None) };
            match work(&live) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => last = Some(error),
                other => return other.map(Some),
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    pub(super) fn held(&self) -> io::Result<Held> {
        Ok(self.look(Live::held)?.unwrap_or_default())
    }

    /// Takes the lane. `Err(held)` inside: a generation that is not lower has it.
    pub(super) fn take(&self, generation: Generation, owner: &Owner) -> io::Result<Result<Live, Generation>> {
        let token = Uuid::new_v4().simple().to_string()[..12].to_owned();
        let mine = Live { generation, path: self.path.join(format!("live-g{generation}-{token}")), token };
        for _ in 0..LOOKS {
            let Some(live) = self.live()? else {
                self.begin()?;
                continue;
            };
            if live.generation >= generation {
                return Ok(Err(live.generation));
            }
            if self.rename(&live, &mine, owner)? {
                pass("files.claim-after-rename")?;
                durable::sync_dir(&self.path)?;
                pass("files.claim-after-folder-sync")?;
                return Ok(Ok(mine));
            }
        }
        Err(io::Error::other(format!("{} changes hands faster than it can be claimed", self.path.display())))
    }

    fn rename(&self, live: &Live, mine: &Live, owner: &Owner) -> io::Result<bool> {
        let text = serde_json::to_vec(&Ticket { generation: mine.generation, owner: owner.clone() })?;
        pass("files.claim-before-rename")?;
        let renamed =
            fs::write(live.path.join(ticket(&mine.token)), text).and_then(|()| fs::rename(&live.path, &mine.path));
        match renamed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => mine.is_mine(),
            other => other.map(|()| true),
        }
    }

    /// Makes the lane's folder with `live-g0` in it: whole or not at all, whoever comes first.
    fn begin(&self) -> io::Result<()> {
        let marks = durable::parent(&self.path);
        durable::create_dir_all(marks)?;
        let prepared = marks.join(format!(".new-{}", Uuid::new_v4().simple()));
        let live = prepared.join("live-g0");
        fs::create_dir_all(live.join("tmp"))?;
        durable::sync_dir(&live)?;
        durable::sync_dir(&prepared)?;
        let renamed = fs::rename(&prepared, &self.path);
        if renamed.is_err() {
            fs::remove_dir_all(&prepared)?;
            if !self.path.is_dir() {
                return renamed;
            }
        }
        durable::sync_dir(marks)
    }

    /// Removes what earlier claims left beside their logs.
    pub(super) fn sweep(&self, live: &Live, keep: &str) -> io::Result<()> {
        for entry in fs::read_dir(&live.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let stale = (name.starts_with("log-g") && *name != *keep)
                || (name.starts_with("claim-") && *name != ticket(&live.token));
            if stale {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

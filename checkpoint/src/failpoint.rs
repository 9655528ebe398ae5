//! Failpoints: named places where a test makes the process die, stop or fail. Compiled in only with debug assertions.
//!
//! `TIDEMILL_FAILPOINT=NAME:N:ACTION[,...]` acts on the N-th time that NAME is passed (from 1): `kill` sends SIGKILL to
//! the process, `stop` sends SIGSTOP, `panic` panics, `error` makes the place return an I/O error, `full` one of ENOSPC.
//! `error` and `full` may end in `+` (`write:3:full+`): from the N-th time on, every time.
//!
//! The ledger's: `ledger-write` (a batch of records), `ledger-flush`, `ledger-sync`, `ledger-sync-folder`, `ledger-side`
//! (the small files beside it), `ledger-journal`, `ledger-journal-sync`, `ledger-set-aside`.

use std::io;

/// Passes the failpoint `name`: nothing in release builds.
#[inline]
pub fn pass(name: &str) -> io::Result<()> {
    #[cfg(debug_assertions)]
    return active::pass(name);
    #[cfg(not(debug_assertions))]
    {
        let _ = name;
        Ok(())
    }
}

#[cfg(debug_assertions)]
mod active {
    use std::{
        io,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    /// A signal to oneself has arrived by then.
    const STOPPING: std::time::Duration = std::time::Duration::from_millis(50);

    struct Point {
        name: String,
        at: u64,
        action: String,
        passed: AtomicU64,
    }

    static POINTS: LazyLock<Vec<Point>> = LazyLock::new(|| {
        let text = std::env::var("TIDEMILL_FAILPOINT").unwrap_or_default();
        text.split(',').filter(|part| !part.is_empty()).filter_map(parse).collect()
    });

    fn parse(part: &str) -> Option<Point> {
        let mut fields = part.rsplitn(3, ':');
        let (action, at, name) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Point {
            name: name.to_owned(),
            at: at.parse().ok()?,
            action: action.to_owned(),
            passed: AtomicU64::new(0),
        })
    }

    pub fn pass(name: &str) -> io::Result<()> {
        for point in POINTS.iter().filter(|point| point.name == name) {
            let n = point.passed.fetch_add(1, Ordering::SeqCst) + 1;
            let (action, lasting) = point.action.strip_suffix('+').map_or((&*point.action, false), |a| (a, true));
            if n != point.at && !(lasting && n > point.at) {
                continue;
            }
            match action {
                "kill" | "stop" => {
                    let signal =
                        if action == "kill" { rustix::process::Signal::KILL } else { rustix::process::Signal::STOP };
                    let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
                    // Another thread may be the one that takes the signal: this one must not go on until it has.
                    std::thread::sleep(STOPPING);
                }
                "panic" => panic!("failpoint {name}"),
                "full" => return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
                _ => return Err(io::Error::other(format!("failpoint {name}"))),
            }
        }
        Ok(())
    }
}

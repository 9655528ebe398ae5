//! What end-to-end tests are written with: the real binary in a fresh folder, driven from outside.
//!
//! A test makes a [`Folder`], starts a [`Daemon`] in it with [`Run`], sends records with [`feed`], looks at it over
//! [`http`], kills or stops it, and counts with the [`oracle`], which reads sinks with code that is not Tidemill's.
//! A tool or data set that a test needs is asked for in [`needs`]: absent, the test is skipped by name, or fails where
//! `CI=true` says that it must be there. The same goes for a real server from [`services`], which a [`proxy`] can come
//! between.
//!
//! Nothing here waits without an end: [`PATIENCE`] is the longest wait for anything that should happen.

#![allow(clippy::unwrap_used)]

pub mod binary;
pub mod daemon;
pub mod disk;
pub mod feed;
pub mod folder;
pub mod golden;
pub mod http;
pub mod needs;
pub mod oracle;
pub mod powercut;
pub mod proxy;
pub mod services;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use daemon::{Daemon, Run};
pub use disk::Disk;
pub use folder::Folder;
pub use oracle::Rows;
pub use proxy::Proxy;

/// The longest wait for anything that should happen: a debug build on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// A local port that nobody listens on, each once. It is below the range from which the kernel gives out ports, so that no
/// client, and nobody who leaves the choice to the kernel, takes it before the caller does or between two runs of a daemon.
///
/// # Panics
/// Where none is free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static FIRST: LazyLock<u32> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.subsec_nanos() ^ std::process::id().rotate_left(16)
    });
    let port = |n: u32| 10_000 + (FIRST.wrapping_add(n) % 10_000) as u16;
    let mut ports = (0..10_000).map(|_| port(NEXT.fetch_add(1, Ordering::Relaxed)));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port from 10000 to 19999")
}

/// A local address that nobody listens on.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// A Kafka of this test program's own, for as long as it runs: for tests with fixed names of topics, or with a proxy in front
/// of the broker.
pub fn kafka_of_this_program() -> Option<&'static services::Kafka> {
    static STARTED: OnceLock<Option<(Folder, services::Kafka)>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let folder = Folder::new();
        let kafka = services::Kafka::private(folder.path())?;
        Some((folder, kafka))
    });
    started.as_ref().map(|(_, kafka)| kafka)
}

/// Waits until `probe` gives something, asking every 20 ms.
///
/// # Panics
/// After [`PATIENCE`], with `what` and the probe's last words.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(found) => return found,
            Err(last) if start.elapsed() > PATIENCE => panic!("waited {PATIENCE:?} for {what}; last seen: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

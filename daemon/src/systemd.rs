//! The notify protocol of systemd: `READY=1`, `WATCHDOG=1`, `STOPPING=1`, `RELOADING=1` as datagrams to `$NOTIFY_SOCKET`
//! (sd_notify(3)). Nothing happens where the variable is not set.

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

/// Sends one message; errors are of no consequence to the jobs and are logged.
pub fn notify(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path.to_string_lossy(), message) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}

fn send(path: &str, message: &str) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    socket.send_to_addr(message.as_bytes(), &address).map(|_| ())
}

/// How often the watchdog wants to hear of us: half of `$WATCHDOG_USEC`, where it is meant for this process.
pub fn watchdog_interval() -> Option<Duration> {
    let usec: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let mine = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid.parse() == Ok(std::process::id()));
    (mine && usec > 0).then(|| Duration::from_micros(usec / 2))
}

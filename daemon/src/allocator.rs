//! How the C library's allocator gives memory back: as soon as it can.
//!
//! By default glibc raises, with each large piece that is freed, the size from which a piece is a mapping of its own, up to
//! 32 MiB, and keeps an arena for every thread. What batches leave behind then stays in the process, in pieces that the next
//! batch's do not fit into: measured with budgets of 64 MiB, hostile batches that took 58 MiB held up to 122 MiB; with a fixed
//! size and two arenas 19 to 43 MiB more than at rest. The library reads these settings from the environment, at its start;
//! to set them later takes unsafe code. So the daemon begins once more, with the same process id.

use std::process::Command;

/// Pieces of so many bytes are mappings of their own: what is freed goes back to the system.
const OWN_MAPPING: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");
/// Threads share so many arenas.
const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Starts this program anew with the settings in its environment, where nobody has set them. Returns where there is nothing to
/// do, or where it cannot: then the process is larger, and works.
pub fn settle() {
    use std::os::unix::process::CommandExt;
    if cfg!(not(target_env = "gnu")) || std::env::var_os(OWN_MAPPING.0).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    again.arg0(arguments.next().unwrap_or_default()).args(arguments);
    again.env(OWN_MAPPING.0, OWN_MAPPING.1);
    if std::env::var_os(ARENAS.0).is_none() {
        again.env(ARENAS.0, ARENAS.1);
    }
    // It returns only where it fails.
    let _ = again.exec();
}

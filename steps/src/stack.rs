//! Work on what a job's text says, on a thread with a stack of its own: parsers and planners recurse over expressions, and
//! one job's text may neither overflow a stack of the daemon's threads nor end the process by a panic.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

/// Room for [`syntax::MAX_DEPTH`](crate::syntax::MAX_DEPTH) levels of an expression and for conditions of thousands of
/// terms, which DataFusion's optimiser makes into chains. Only what is used of it takes memory.
const STACK_BYTES: usize = 128 << 20;

/// Does `work` on a thread of its own, and waits for it. The error is a sentence: what it panicked with.
pub fn apart<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| format!("no thread could be started: {error}"))?;
        thread.join().map_err(|panic| message(panic.as_ref()))
    })
}

/// Does `work`; the error is what it panicked with. Nothing that `work` was changing may be used after an error.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(panic.as_ref()))
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked ({})", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        assert_eq!(apart("test", || 1 + 1), Ok(2));
        assert_eq!(apart("test", || -> u8 { panic!("no {}", "way") }), Err("it panicked (no way)".to_owned()));
        assert_eq!(caught(|| -> u8 { panic!("no") }), Err("it panicked (no)".to_owned()));
    }

    #[test]
    fn there_is_room() {
        fn deep(level: u64) -> u64 {
            let room = std::hint::black_box([level; 512]);
            if level == 0 { 0 } else { 1 + deep(level - 1) + room[7] - level }
        }
        assert_eq!(apart("test", || deep(10_000)), Ok(10_000), "far beyond what a thread of a pool has");
    }
}

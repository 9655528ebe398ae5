//! Buffers of chunks, used again: fresh memory costs a page fault for every 4 KiB.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::content::CHUNK_BYTES;

/// Idle buffers kept for reuse.
const MAX_IDLE_BUFFERS: usize = 24;
/// What is smaller is not worth keeping, what is larger too much to keep.
const KEPT_BYTES: std::ops::RangeInclusive<usize> = CHUNK_BYTES / 2..=2 * CHUNK_BYTES;

/// Chunks' buffers that nobody uses now.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if KEPT_BYTES.contains(&bytes.capacity())
            && let Ok(mut idle) = self.home.0.lock()
            && idle.len() < MAX_IDLE_BUFFERS
        {
            bytes.clear();
            idle.push(bytes);
        }
    }
}

impl Buffers {
    /// An empty buffer with room for `bytes`.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let worth = bytes >= *KEPT_BYTES.start();
        let mut buffer = worth.then(|| self.0.lock().ok()?.pop()).flatten().unwrap_or_default();
        buffer.reserve_exact(bytes);
        buffer
    }

    /// What a buffer was filled with; it comes back when the last slice of it is dropped.
    pub(super) fn seal(self: &Arc<Self>, bytes: Vec<u8>) -> Bytes {
        if bytes.capacity() < *KEPT_BYTES.start() {
            return bytes.into();
        }
        let buffer = Buffer { bytes, home: self.clone() };
        // What little a small archive holds must not keep a whole buffer.
        if buffer.bytes.len() < *KEPT_BYTES.start() {
            Bytes::copy_from_slice(&buffer.bytes)
        } else {
            Bytes::from_owner(buffer)
        }
    }
}

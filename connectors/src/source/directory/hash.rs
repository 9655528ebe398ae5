//! Digests of a file's content, all from one pass over its bytes:
//!
//! - the *hash*: the first 128 bits of BLAKE3 over all bytes. All of them, because what the hash decides is whether a file is
//!   *left out*: two exports of the same size that differ in one record in their middle must never be taken for one another.
//!   `docs/decisions/6-a-file-is-its-hash.md` says what it costs;
//! - the *head*: the hash of the first [`BLOCK_BYTES`]. Where heads differ the contents do: an archive is unpacked to be
//!   compared only where a listed file has its head;
//! - the *chain*: the digest of each block and of the chain before it. Content that is appended to can be followed from the
//!   last whole block on, and content is the same however it is packed.
//!
//! Content of at most one block has the same three. BLAKE3 is a tree: the blocks' values are nodes of it, so a chain costs
//! one more small hash a block, and not a second pass.

use std::{fmt, io, io::Read};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

/// What a head covers, and each link of a chain. A power of two of at least 1 KiB: a subtree of BLAKE3.
pub(super) const BLOCK_BYTES: usize = 64 * 1024;
/// How much is read at once.
const READ_BYTES: usize = 256 * 1024;

/// 128 bits of BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ContentHash([u8; 16]);

impl ContentHash {
    fn of_hash(hash: &[u8; 32]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        Self(bytes)
    }

    /// A part of it: enough to look it up.
    pub(super) fn short(&self) -> u64 {
        self.0.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    #[cfg(test)]
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::of_hash(blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}
impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl Serialize for ContentHash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        let value = (text.len() == 32).then(|| u128::from_str_radix(&text, 16).ok()).flatten();
        value
            .map(|value| Self(value.to_be_bytes()))
            .ok_or_else(|| serde::de::Error::custom("a content hash is 32 hex digits"))
    }
}

/// The digests of one content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digests {
    /// Of all bytes.
    pub whole: ContentHash,
    /// Of the first block.
    pub head: ContentHash,
    /// Link by link over all blocks.
    pub chain: ContentHash,
    /// How many bytes there were.
    pub size: u64,
}

/// What one pass over a file gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hashed {
    /// Of the first `prefix` bytes, where the file has them.
    pub prefix: Option<ContentHash>,
    /// Of all.
    pub all: Digests,
}

/// Makes [`Digests`] of bytes that come in pieces of any size.
pub(super) struct Digester {
    /// The block that is being filled: closed once a byte comes behind it.
    block: blake3::Hasher,
    in_block: usize,
    closed: u64,
    head: Option<ContentHash>,
    chain: [u8; 32],
    /// Roots of whole subtrees, the largest first: one for each bit of `closed`.
    subtrees: Vec<ChainingValue>,
}

impl Digester {
    pub(super) fn new() -> Self {
        let block = blake3::Hasher::new();
        Self { block, in_block: 0, closed: 0, head: None, chain: [0; 32], subtrees: Vec::new() }
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.in_block == BLOCK_BYTES {
                self.close();
            }
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.in_block));
            self.block.update(now);
            self.in_block += now.len();
            bytes = later;
        }
    }

    /// A whole block with more behind it is a subtree, never the root.
    fn close(&mut self) {
        let mut subtree = self.block.finalize_non_root();
        self.chain = self.linked(&subtree);
        if self.closed == 0 {
            self.head = Some(ContentHash::of_hash(&self.chain));
        }
        self.closed += 1;
        let mut joined = self.closed;
        while joined & 1 == 0
            && let Some(left) = self.subtrees.pop()
        {
            subtree = merge_subtrees_non_root(&left, &subtree, Mode::Hash);
            joined >>= 1;
        }
        self.subtrees.push(subtree);
        self.block = blake3::Hasher::new();
        self.block.set_input_offset(self.closed * BLOCK_BYTES as u64);
        self.in_block = 0;
    }

    /// The chain with the present block as its next link.
    fn linked(&self, block: &ChainingValue) -> [u8; 32] {
        if self.closed == 0 {
            return *self.block.finalize().as_bytes();
        }
        *blake3::Hasher::new().update(&self.chain).update(block).finalize().as_bytes()
    }

    /// The digests of what has come so far.
    pub(super) fn digests(&self) -> Digests {
        let size = self.closed * BLOCK_BYTES as u64 + self.in_block as u64;
        let Some((first, others)) = self.subtrees.split_first() else {
            let whole = ContentHash::of_hash(self.block.finalize().as_bytes());
            return Digests { whole, head: whole, chain: whole, size };
        };
        // A block is closed by a byte behind it, so the present one is not empty.
        let last = self.block.finalize_non_root();
        let right = others.iter().rev().fold(last, |right, left| merge_subtrees_non_root(left, &right, Mode::Hash));
        let whole = ContentHash::of_hash(merge_subtrees_root(first, &right, Mode::Hash).as_bytes());
        let chain = ContentHash::of_hash(&self.linked(&last));
        Digests { whole, head: self.head.unwrap_or(whole), chain, size }
    }
}

/// Hashes all that `source` gives, and its first `prefix` bytes on the way.
pub(super) fn hash(source: &mut dyn Read, prefix: Option<u64>) -> io::Result<Hashed> {
    let mut digester = Digester::new();
    let mut block = vec![0; READ_BYTES];
    let (mut size, mut of_prefix) = (0, None);
    loop {
        if prefix == Some(size) {
            of_prefix = Some(digester.digests().whole);
        }
        // A read ends at the prefix, so that its hash can be taken there.
        let left = prefix.filter(|prefix| *prefix > size).map_or(u64::MAX, |prefix| prefix - size);
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
        match source.read(&mut block[..room]) {
            Ok(0) => break,
            Ok(n) => {
                digester.update(&block[..n]);
                size += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Hashed { prefix: of_prefix, all: digester.digests() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_hashed_on_the_way() {
        let bytes: Vec<u8> = (0..700_000u32).map(|i| (i % 251) as u8).collect();
        for prefix in [0, 1, 262_144, 300_000, 700_000] {
            let hashed = hash(&mut &bytes[..], Some(prefix)).unwrap();
            assert_eq!(hashed.prefix, Some(ContentHash::of(&bytes[..prefix as usize])));
            assert_eq!((hashed.all.whole, hashed.all.size), (ContentHash::of(&bytes), 700_000));
        }
        assert_eq!(hash(&mut &bytes[..], Some(700_001)).unwrap().prefix, None);
    }

    #[test]
    fn one_pass_gives_blake3_the_head_and_a_chain_that_goes_on_from_a_block() {
        let bytes: Vec<u8> = (0..1_200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let blocks =
            (0..=18).flat_map(|blocks| [blocks * BLOCK_BYTES, blocks * BLOCK_BYTES + 1, blocks * BLOCK_BYTES + 777]);
        for size in blocks.chain([5, 1_023, 1_025]) {
            let content = &bytes[..size];
            for piece in [977, BLOCK_BYTES, 300_000] {
                let mut digester = Digester::new();
                content.chunks(piece).for_each(|piece| digester.update(piece));
                let digests = digester.digests();
                assert_eq!(digests.whole, ContentHash::of(content), "{size} bytes in pieces of {piece}");
                assert_eq!(digests.head, ContentHash::of(&content[..size.min(BLOCK_BYTES)]));
                assert_eq!(digests.size, size as u64);
                assert_eq!(digests.chain == digests.whole, size <= BLOCK_BYTES);
                assert_eq!(digests, hash(&mut &content[..], None).unwrap().all);
            }
        }
        // Each byte counts, in each block.
        let chain = |bytes: &[u8]| hash(&mut &bytes[..], None).unwrap().all.chain;
        for at in [0, BLOCK_BYTES, 3 * BLOCK_BYTES + 5, 1_199_999] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(chain(&other), chain(&bytes), "byte {at}");
        }
    }

    #[test]
    fn a_hash_is_written_and_read_as_32_digits() {
        let hash = ContentHash::of(b"x");
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(json.len(), 34);
        assert_eq!(serde_json::from_str::<ContentHash>(&json).unwrap(), hash);
        assert!(serde_json::from_str::<ContentHash>("\"12\"").is_err());
    }
}

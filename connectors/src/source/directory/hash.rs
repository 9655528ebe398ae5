//! The hash of a file's content: the first 128 bits of BLAKE3 over all bytes on disk, compressed files as they lie there.
//!
//! All bytes, because what the hash decides is whether a file is *left out*: two exports of the same size that differ in
//! one record in their middle must never be taken for one another. `docs/decisions/6-a-file-is-its-hash.md` says what it costs.

use std::{fmt, io, io::Read};

use serde::{Deserialize, Serialize};

/// How much is hashed at once.
const BLOCK_BYTES: usize = 256 * 1024;

/// 128 bits of BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ContentHash(u128);

impl ContentHash {
    fn finish(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(u128::from_be_bytes(bytes))
    }

    #[cfg(test)]
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::finish(blake3::Hasher::new().update(bytes))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
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
        value.map(Self).ok_or_else(|| serde::de::Error::custom("a content hash is 32 hex digits"))
    }
}

/// What one pass over a file gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hashed {
    /// Of the first `prefix` bytes, where the file has them.
    pub prefix: Option<ContentHash>,
    /// Of all bytes.
    pub whole: ContentHash,
    /// How many there were.
    pub size: u64,
}

/// Hashes all that `source` gives, and its first `prefix` bytes on the way.
pub(super) fn hash(source: &mut dyn Read, prefix: Option<u64>) -> io::Result<Hashed> {
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut hashed = Hashed { prefix: None, whole: ContentHash::finish(&hasher), size: 0 };
    loop {
        if prefix == Some(hashed.size) {
            hashed.prefix = Some(ContentHash::finish(&hasher));
        }
        // A block ends at the prefix, so that its hash can be taken there.
        let left = prefix.filter(|prefix| *prefix > hashed.size).map_or(u64::MAX, |prefix| prefix - hashed.size);
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        match source.read(&mut block[..room]) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&block[..n]);
                hashed.size += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    hashed.whole = ContentHash::finish(&hasher);
    Ok(hashed)
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
            assert_eq!((hashed.whole, hashed.size), (ContentHash::of(&bytes), 700_000));
        }
        assert_eq!(hash(&mut &bytes[..], Some(700_001)).unwrap().prefix, None);
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

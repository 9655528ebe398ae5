//! One entry of a spool: 20 bytes of head, then the payload. The layout is described in [`super::spool`].

use crc32fast::Hasher;
use uuid::Uuid;

/// Bytes before an entry's payload.
pub const HEAD: usize = 20;
/// Bytes of a group entry: head and payload.
pub const GROUP: usize = HEAD + 16;
/// The same as older versions wrote it, without an epoch.
const OLD_GROUP: usize = HEAD + 8;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A record.
    Record = 1,
    /// What a connection left unfinished.
    Half = 2,
    /// A record over the limit: its length (8 bytes), then its first bytes.
    TooLong = 3,
    /// The head of a group: the position up to which the spool was durable before it (8 bytes), and the epoch of the claim
    /// under which the group came (8 bytes; older versions wrote none).
    Group = 4,
}

/// An entry as it lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: Kind,
    /// Records of its segment before it.
    pub number: u32,
    /// The low 32 bits of the clock, in ms since the epoch, when it came.
    pub received: u32,
    /// The number of its connection, modulo 2^24.
    pub connection: u32,
    /// What it holds.
    pub payload: &'a [u8],
}

impl Entry<'_> {
    /// Its bytes in the spool.
    pub fn size(&self) -> usize {
        HEAD + self.payload.len()
    }
}

/// Why bytes are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The buffer ends before the entry does, which has this many bytes.
    Short(usize),
    /// The checksum does not fit.
    Checksum,
}

/// What makes a spool's checksums its own: bytes of another spool, or of another place in this one, do not fit.
#[derive(Clone, Copy, Debug)]
pub struct Seal(u32);

impl Seal {
    /// The seal of a spool.
    pub fn of(id: Uuid) -> Self {
        Self(crc32fast::hash(id.as_bytes()))
    }

    fn checksum(self, position: u64, entry: &[u8]) -> u32 {
        let mut hasher = Hasher::new_with_initial(self.0);
        hasher.update(&position.to_le_bytes());
        hasher.update(&entry[..4]);
        hasher.update(&entry[8..]);
        hasher.finalize()
    }
}

/// Appends an entry that still lacks its number and checksum.
pub fn push(buffer: &mut Vec<u8>, kind: Kind, connection: u32, received: u32, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).expect("records are at most `MAX_RECORD_BYTES`, far below 4 GiB");
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&received.to_le_bytes());
    buffer.extend_from_slice(&(connection << 8 | kind as u32).to_le_bytes());
    payload.iter().for_each(|part| buffer.extend_from_slice(part));
}

/// Begins a group in an empty buffer: a head that [`set_group`] fills in.
pub fn push_group(buffer: &mut Vec<u8>) {
    push(buffer, Kind::Group, 0, 0, &[&[0; GROUP - HEAD]]);
}

/// Fills in a group's head, before [`complete`].
pub fn set_group(group: &mut [u8], durable: u64, epoch: u64) {
    group[HEAD..HEAD + 8].copy_from_slice(&durable.to_le_bytes());
    group[HEAD + 8..GROUP].copy_from_slice(&epoch.to_le_bytes());
}

/// A checksum over all entries from a spool's beginning to one of its positions (FNV-1a of 64 bits, over the heads, which
/// hold the checksums of what follows them, and over whole group heads). Two copies of a spool that went on by themselves
/// have the same positions, and from their first different group on different chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain(pub u64);

impl Chain {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;

    /// The chain at the beginning of a segment that does not say it: the first, and those of older versions.
    pub fn seed(id: Uuid, base: u64) -> Self {
        Self(Self::BASIS).over(id.as_bytes()).over(&base.to_le_bytes())
    }

    fn over(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |chain, byte| (chain ^ u64::from(*byte)).wrapping_mul(Self::PRIME)))
    }

    /// The chain behind `entry`.
    pub fn then(self, entry: &[u8]) -> Self {
        let is_group = entry.get(16) == Some(&(Kind::Group as u8));
        let most = if is_group { GROUP } else { HEAD };
        self.over(&entry[..most.min(entry.len())])
    }

    /// The chain behind the entry that begins with `bytes`, and its size: of a record, the head alone need be there. Nothing
    /// is checked: damage makes another chain. `None` where there is no whole head.
    pub fn then_head(self, bytes: &[u8]) -> Option<(Self, u64)> {
        let size = HEAD + field(bytes.get(..HEAD)?, 0) as usize;
        Some((self.then(&bytes[..size.min(bytes.len())]), size as u64))
    }

    /// The chain behind all entries of a group.
    pub fn then_all(self, group: &[u8]) -> Self {
        let (mut chain, mut rest) = (self, group);
        while let Some((next, size)) = chain.then_head(rest) {
            chain = next;
            rest = rest.get(size as usize..).unwrap_or_default();
        }
        chain
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Completes the entries of a buffer that will lie at `position`, in a segment that has `number` records before it.
/// Returns how many there are after it.
pub fn complete(buffer: &mut [u8], mut position: u64, mut number: u32, seal: Seal) -> u32 {
    let mut rest = buffer;
    while rest.len() >= HEAD {
        let size = HEAD + field(rest, 0) as usize;
        let (entry, after) = rest.split_at_mut(size);
        entry[8..12].copy_from_slice(&number.to_le_bytes());
        let checksum = seal.checksum(position, entry);
        entry[4..8].copy_from_slice(&checksum.to_le_bytes());
        number += u32::from(entry[16] != Kind::Group as u8);
        position += size as u64;
        rest = after;
    }
    number
}

/// The entry at the beginning of `bytes`, which lie at `position`.
pub fn parse(bytes: &[u8], position: u64, seal: Seal) -> Result<Entry<'_>, Flaw> {
    if bytes.len() < HEAD {
        return Err(Flaw::Short(HEAD));
    }
    let size = HEAD + field(bytes, 0) as usize;
    let Some(entry) = bytes.get(..size) else { return Err(Flaw::Short(size)) };
    if seal.checksum(position, entry) != field(entry, 4) {
        return Err(Flaw::Checksum);
    }
    let kind = match entry[16] {
        1 => Kind::Record,
        2 => Kind::Half,
        3 if size >= HEAD + 8 => Kind::TooLong,
        4 if size == GROUP || size == OLD_GROUP => Kind::Group,
        _ => return Err(Flaw::Checksum),
    };
    let (number, received, connection) = (field(entry, 8), field(entry, 12), field(entry, 16) >> 8);
    Ok(Entry { kind, number, received, connection, payload: &entry[HEAD..] })
}

/// The fields of an entry's head that estimates need, without a check.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// It is a group's head.
    pub is_group: bool,
    /// Bytes of the whole entry.
    pub size: usize,
    /// Records of its segment before it.
    pub number: u32,
    /// See [`Entry::received`].
    pub received: u32,
}

impl Head {
    /// The head at the beginning of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            is_group: field(bytes, 16) as u8 == Kind::Group as u8,
            size: HEAD + field(bytes, 0) as usize,
            number: field(bytes, 8),
            received: field(bytes, 12),
        }
    }
}

/// Whether anywhere in `bytes`, which lie at `position`, a group says that the spool was durable beyond `beyond`.
pub fn proves_durable(bytes: &[u8], position: u64, beyond: u64, seal: Seal) -> bool {
    let is_group = |at: usize| {
        let size = HEAD + field(bytes, at) as usize;
        (size == GROUP || size == OLD_GROUP) && bytes[at + 16] == Kind::Group as u8
    };
    (0..(bytes.len() + 1).saturating_sub(OLD_GROUP))
        .filter(|at| is_group(*at))
        .any(|at| parse(&bytes[at..], position + at as u64, seal).is_ok_and(|group| first_u64(group.payload) > beyond))
}

/// The first 8 bytes of a payload as a number.
pub fn first_u64(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn field(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u32::from_le_bytes(*field))
}

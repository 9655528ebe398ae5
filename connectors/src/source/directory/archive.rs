//! Archives: decompressors chosen by a name's ending.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
};

use flate2::bufread::GzDecoder;

/// A frame of Zstandard that needs a larger window is refused: it is memory for each open file.
const MAX_WINDOW_BITS: u32 = 27;
/// Bytes of an archive that are read at once.
const BLOCK_BYTES: usize = 64 * 1024;

/// Endings of archives that are not unpacked.
const UNKNOWN: [&str; 10] = ["bz2", "xz", "lzma", "zip", "7z", "rar", "tgz", "tar", "lz4", "br"];

/// The formats.
#[derive(Clone, Copy, Debug)]
pub(super) enum Archive {
    Gzip,
    Zstd,
}

/// A decompressor, and what the device under it said.
pub(super) struct Unpacker {
    kind: Archive,
    decoder: Box<dyn Read + Send>,
    device: Arc<Mutex<Seen>>,
}

/// What the device under a decompressor gave.
#[derive(Default)]
struct Seen {
    failed: Option<io::Error>,
    /// The first bytes.
    head: Vec<u8>,
}

/// So many bytes tell the window of an archive's first frame.
const HEAD_BYTES: usize = 18;

/// Why a decompressor gives nothing more.
pub(super) enum Stop {
    /// The device's own error.
    Device(io::Error),
    /// The archive is damaged or cut off, or cannot be decompressed: the sentence.
    Damage(String),
}

impl Archive {
    /// The format of a file by its ending, in upper or lower case.
    pub(super) fn of(path: &str) -> Option<Self> {
        let ending = path.rsplit_once('.')?.1;
        match ending {
            _ if ending.eq_ignore_ascii_case("gz") => Some(Self::Gzip),
            _ if ending.eq_ignore_ascii_case("zst") => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The ending of an archive that is not unpacked: its bytes are read as they are.
    pub(super) fn unknown(path: &str) -> Option<&'static str> {
        let ending = path.rsplit_once('.')?.1;
        UNKNOWN.into_iter().find(|unknown| ending.eq_ignore_ascii_case(unknown))
    }

    /// Unpacks what `source` gives: all members of a gzip file, all frames of a Zstandard one.
    pub(super) fn unpack(self, source: Box<dyn Read + Send>) -> io::Result<Unpacker> {
        let device = Arc::new(Mutex::new(Seen::default()));
        let source = BufReader::with_capacity(BLOCK_BYTES, Device { source, seen: device.clone() });
        let decoder: Box<dyn Read + Send> = match self {
            Self::Gzip => Box::new(Members::new(source)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(MAX_WINDOW_BITS)?;
                Box::new(decoder)
            }
        };
        Ok(Unpacker { kind: self, decoder, device })
    }
}

impl Unpacker {
    /// The next bytes; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Stop> {
        loop {
            match self.decoder.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let Ok(mut seen) = self.device.lock() else { return Err(Stop::Damage(damaged(&error))) };
                    return Err(match seen.failed.take() {
                        Some(error) => Stop::Device(error),
                        None => Stop::Damage(match self.kind {
                            Archive::Zstd => wide_window(&error, &seen.head).unwrap_or_else(|| damaged(&error)),
                            Archive::Gzip => damaged(&error),
                        }),
                    });
                }
                Ok(n) => return Ok(n),
            }
        }
    }
}

fn damaged(error: &io::Error) -> String {
    format!("the archive is damaged or cut off ({error})")
}

/// The sentence for an archive whose window is wider than is allowed.
fn wide_window(error: &io::Error, head: &[u8]) -> Option<String> {
    if !error.to_string().contains("too much memory") {
        return None;
    }
    let size = window_of(head).map_or_else(String::new, |bytes| format!(" of {} MiB", bytes >> 20));
    let limit = 1_u64 << (MAX_WINDOW_BITS - 20);
    Some(format!(
        "the archive needs a window{size} to be decompressed, and {limit} MiB are the limit: compress it without `--long`, or with `--long={MAX_WINDOW_BITS}` at most"
    ))
}

/// The window of the first frame of an archive (RFC 8878, 3.1.1.1).
fn window_of(head: &[u8]) -> Option<u64> {
    let head = head.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (descriptor, rest) = head.split_first()?;
    let is_single = descriptor & 0x20 != 0;
    if !is_single {
        let window = rest.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // A single segment is a window of its own: as long as the content.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = rest.get(dictionary..)?;
    match descriptor >> 6 {
        0 => size.first().map(|byte| u64::from(*byte)),
        1 => size.first_chunk::<2>().map(|bytes| u64::from(u16::from_le_bytes(*bytes)) + 256),
        2 => size.first_chunk::<4>().map(|bytes| u64::from(u32::from_le_bytes(*bytes))),
        _ => size.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)),
    }
}

/// The members of a gzip file, one after another. Zero bytes behind the last one are padding, as tapes and some file systems
/// leave it, and `gzip` passes over them too.
struct Members<R: BufRead> {
    /// `None`: the end was reached.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    fn new(source: R) -> Self {
        Self { member: Some(GzDecoder::new(source)) }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            // The end of a member, checked.
            let source = member.get_mut();
            let mut has_padding = false;
            loop {
                let ahead = match source.fill_buf() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    other => other?,
                };
                let zeros = ahead.iter().take_while(|byte| **byte == 0).count();
                if ahead.is_empty() {
                    self.member = None;
                    break;
                }
                let is_more = zeros < ahead.len();
                has_padding |= zeros > 0;
                source.consume(zeros);
                if is_more && has_padding {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "there is something behind its padding"));
                }
                if is_more {
                    let source = self.member.take().map(GzDecoder::into_inner);
                    self.member = source.map(GzDecoder::new);
                    break;
                }
            }
        }
        Ok(0)
    }
}

/// Remembers the device's own errors, which a decompressor reports like damage of the archive.
struct Device {
    source: Box<dyn Read + Send>,
    seen: Arc<Mutex<Seen>>,
}

impl Read for Device {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.source.read(buffer);
        if let Ok(mut seen) = self.seen.lock() {
            match &result {
                Ok(read) => {
                    let missing = HEAD_BYTES.saturating_sub(seen.head.len());
                    seen.head.extend_from_slice(&buffer[..missing.min(*read)]);
                }
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    seen.failed = Some(io::Error::new(error.kind(), error.to_string()));
                }
                Err(_) => {}
            }
        }
        result
    }
}

/// The first `left` bytes of a file, whatever its cursor does.
pub(super) struct Positioned {
    pub file: File,
    pub at: u64,
    pub left: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..room], self.at)?;
        (self.at, self.left) = (self.at + read as u64, self.left - read as u64);
        Ok(read)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// What an archive gives, and why it ends before its end.
    fn unpacked(kind: Archive, bytes: &[u8]) -> (Vec<u8>, Option<String>) {
        let mut unpacker = kind.unpack(Box::new(io::Cursor::new(bytes.to_vec()))).unwrap();
        let (mut out, mut step) = (Vec::new(), [0; 1000]);
        loop {
            match unpacker.read(&mut step) {
                Ok(0) => return (out, None),
                Ok(n) => out.extend_from_slice(&step[..n]),
                Err(Stop::Damage(why)) => return (out, Some(why)),
                Err(Stop::Device(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn members_are_read_one_after_another_and_padding_is_nothing() {
        let (one, two) = (gzip(b"one\n"), gzip(&b"two\n".repeat(50_000)));
        let whole = [&b"one\n"[..], &b"two\n".repeat(50_000)].concat();
        assert_eq!(unpacked(Archive::Gzip, &[&one[..], &two].concat()), (whole.clone(), None));
        for padding in [1, 512, 3 * BLOCK_BYTES] {
            let padded = [&one[..], &two, &vec![0; padding]].concat();
            assert_eq!(unpacked(Archive::Gzip, &padded), (whole.clone(), None), "{padding}");
        }
        let (text, why) = unpacked(Archive::Gzip, &[&one[..], &[0; 10], &two].concat());
        assert_eq!(
            (text.as_slice(), why.is_some()),
            (&b"one\n"[..], true),
            "a member behind padding is not lost in silence"
        );
        for wrong in [&one[..one.len() - 1], &[&one[..], b"x"].concat(), b"", b"plain"] {
            assert!(unpacked(Archive::Gzip, wrong).1.unwrap().contains("damaged or cut off"), "{wrong:?}");
        }
    }

    #[test]
    fn a_window_that_is_too_wide_is_named() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.window_log(30).unwrap();
        encoder.write_all(&b"line\n".repeat(10)).unwrap();
        let archive = encoder.finish().unwrap();
        let why = unpacked(Archive::Zstd, &archive).1.unwrap();
        assert!(why.contains("a window of 1024 MiB") && why.contains("128 MiB are the limit"), "{why}");
        let narrow = zstd::encode_all(&b"line\n".repeat(10)[..], 1).unwrap();
        assert_eq!(unpacked(Archive::Zstd, &narrow), (b"line\n".repeat(10), None));
        assert!(unpacked(Archive::Zstd, &narrow[..narrow.len() - 1]).1.unwrap().contains("damaged or cut off"));
    }
}

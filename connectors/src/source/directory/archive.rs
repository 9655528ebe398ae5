//! Archives: decompressors chosen by a name's ending.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
};

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
    decoder: Box<dyn Read + Send>,
    failed: Arc<Mutex<Option<io::Error>>>,
}

/// Why a decompressor gives nothing more.
pub(super) enum Stop {
    /// The device's own error.
    Device(io::Error),
    /// The archive is damaged or cut off.
    Damage(io::Error),
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
        let failed = Arc::new(Mutex::new(None));
        let source = BufReader::with_capacity(BLOCK_BYTES, Device { source, failed: failed.clone() });
        let decoder: Box<dyn Read + Send> = match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        };
        Ok(Unpacker { decoder, failed })
    }
}

impl Unpacker {
    /// The next bytes; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Stop> {
        loop {
            match self.decoder.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let device = self.failed.lock().ok().and_then(|mut failed| failed.take());
                    return Err(device.map_or(Stop::Damage(error), Stop::Device));
                }
                Ok(n) => return Ok(n),
            }
        }
    }
}

/// Remembers the device's own errors, which a decompressor reports like damage of the archive.
struct Device {
    source: Box<dyn Read + Send>,
    failed: Arc<Mutex<Option<io::Error>>>,
}

impl Read for Device {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted
                && let Ok(mut failed) = self.failed.lock()
            {
                *failed = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })
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

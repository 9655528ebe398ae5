//! What a file that is not text begins with: a text codec refuses it as a whole, where lines of it would be garbage.

use memchr::memmem;

/// What a file is by its first bytes, and what to do, as the end of a sentence; `None` where it may be text.
pub(super) fn what(bytes: &[u8]) -> Option<String> {
    const TAR: (usize, &[u8]) = (257, b"ustar");
    let archives: [(&[u8], &str, &str); 9] = [
        (b"\x1f\x8b\x08", "a gzip archive", "name it `.gz`: it is decompressed by its ending"),
        (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "name it `.zst`: it is decompressed by its ending"),
        (b"\xfd7zXZ\0", "an xz archive", UNPACK),
        (b"PK\x03\x04", "a zip archive", UNPACK),
        (b"PK\x05\x06", "an empty zip archive", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
        (b"Rar!\x1a\x07", "a rar archive", UNPACK),
        (b"\x04\x22\x4d\x18", "an lz4 archive", UNPACK),
        (b"SQLite format 3\0", "a SQLite database", "read it by `type: sql`"),
    ];
    let is_bzip2 = bytes.starts_with(b"BZh") && bytes.get(4..10) == Some(b"1AY&SY");
    let is_control = |at: usize| bytes.get(at).is_some_and(|byte| *byte < b'\t' || (0x0e..0x20).contains(byte));
    let (name, help) = if let Some((_, name, help)) = archives.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        (*name, *help)
    } else if is_bzip2 {
        ("a bzip2 archive", UNPACK)
    } else if bytes.get(TAR.0..TAR.0 + TAR.1.len()) == Some(TAR.1) {
        ("a tar archive", "unpack its files into the folder")
    } else if bytes.starts_with(b"PAR1") && is_control(4) {
        ("a Parquet file", "sources do not read Parquet")
    } else if bytes.starts_with(b"ORC") && is_control(3) {
        ("an ORC file", "sources do not read ORC")
    } else if is_avro_container(bytes) {
        ("an Avro container file", AVRO_CONTAINER)
    } else {
        return None;
    };
    Some(format!("it is {name}, not text: {help}, or leave it out by `exclude`"))
}

/// Whether it is a container file of Avro: its header names the schema or the codec of its blocks.
pub(super) fn is_avro_container(bytes: &[u8]) -> bool {
    bytes.starts_with(b"Obj\x01") && memmem::find(&bytes[..bytes.len().min(HEADER_BYTES)], b"avro.").is_some()
}

/// So far is looked for what an Avro container's header names.
const HEADER_BYTES: usize = 4_096;

const UNPACK: &str = "unpack it first (`.gz` and `.zst` are decompressed by their ending)";

/// What to do with a container file of Avro.
pub(super) const AVRO_CONTAINER: &str =
    "sources read single values and no container files; turn it into JSON first, for instance with `avro-tools tojson`";

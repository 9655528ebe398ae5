//! Avro's binary encoding, value by value. Every length is checked against the bytes that are there.

use crate::codec::rows::Bad;

/// Items of arrays and maps in one record, beyond one for each of its bytes: items may take no bytes at all, and a count is
/// quickly written.
const MAX_EMPTY_ITEMS: usize = 1_024;
/// Values inside of values.
const MAX_DEPTH: usize = 128;

/// The rest of a record.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
    items: usize,
    depth: usize,
}

#[cold]
fn bad<T>(at: usize, what: &str) -> Result<T, Bad> {
    Err(Bad::Other("bad_avro", format!("at byte {at}: {what}")))
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, items: bytes.len() + MAX_EMPTY_ITEMS, depth: 0 }
    }

    pub fn bad<T>(&self, what: &str) -> Result<T, Bad> {
        bad(self.at, what)
    }

    /// That nothing is left.
    pub fn end(&self) -> Result<(), Bad> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => self.bad(&format!("the record goes on after its value, for {left} bytes: another schema wrote it")),
        }
    }

    /// Goes one value deeper; [`Input::leave`] comes back.
    pub fn enter(&mut self) -> Result<(), Bad> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { self.bad("values are nested too deep") } else { Ok(()) }
    }

    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Bad> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else { return self.bad("the record ends inside of a value") };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    #[inline]
    pub fn long(&mut self) -> Result<i64, Bad> {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let Some(byte) = self.bytes.get(self.at) else { return self.bad("the record ends inside of a number") };
            self.at += 1;
            // Of the tenth byte only one bit fits.
            if shift == 63 && *byte > 1 {
                return self.bad("a number is longer than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
            shift += 7;
        }
    }

    #[inline]
    pub fn int(&mut self) -> Result<i32, Bad> {
        match i32::try_from(self.long()?) {
            Ok(value) => Ok(value),
            Err(_) => self.bad("an int is longer than 32 bits"),
        }
    }

    pub fn boolean(&mut self) -> Result<bool, Bad> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => self.bad("a boolean is neither 0 nor 1"),
        }
    }

    /// Bytes with their length before them.
    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], Bad> {
        match usize::try_from(self.long()?) {
            Ok(length) => self.take(length),
            Err(_) => self.bad("a length is negative"),
        }
    }

    #[inline]
    pub fn text(&mut self) -> Result<&'a str, Bad> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => self.bad("a string is not UTF-8"),
        }
    }

    /// The number of one of `count` things.
    #[inline]
    pub fn index(&mut self, count: usize) -> Result<usize, Bad> {
        match usize::try_from(self.long()?) {
            Ok(index) if index < count => Ok(index),
            _ => self.bad(&format!("the number of one of {count} branches or symbols is none of them")),
        }
    }

    /// The next block of an array or map: how many items, 0 at the end, and their bytes where the writer says so.
    pub fn block(&mut self) -> Result<(usize, Option<usize>), Bad> {
        let count = self.long()?;
        let bytes = if count < 0 { Some(self.long()?) } else { None };
        match (usize::try_from(count.unsigned_abs()), bytes.map(usize::try_from).transpose()) {
            (Ok(count), Ok(bytes)) if count <= self.items => {
                self.items -= count;
                Ok((count, bytes))
            }
            _ => self.bad("an array or map has more items than the record has bytes"),
        }
    }
}

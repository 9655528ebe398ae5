//! Which column a key belongs to, found without hashing: fields mostly come in the order of the record before.

use std::collections::HashMap;

use arrow::datatypes::Fields;

use super::cursor::{Cursor, Fault, unescape};

/// So many different keys are remembered; others are looked up each time. Keeps hostile input from filling memory.
const MAX_KEYS: usize = 4096;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::codec) enum Target {
    /// It goes to the column of this number.
    Column(usize),
    /// Nobody wants it.
    Skip,
    /// It is kept in `_extra`; the number tells keys apart, `usize::MAX` where they are too many.
    Extra(usize),
}

struct Key {
    /// As it is written in the records, with its closing quote.
    written: Box<[u8]>,
    target: Target,
    /// The key that came after it last time.
    next: usize,
}

/// The keys of one object type.
pub(in crate::codec) struct Keys {
    /// The first stands for the beginning of an object and matches nothing.
    keys: Vec<Key>,
    by_text: HashMap<Box<[u8]>, usize>,
    columns: HashMap<String, Target>,
    names: Vec<String>,
    unknown: Target,
    extras: HashMap<String, usize>,
}

impl Keys {
    /// Every field is a column, in this order; other keys are skipped.
    pub(in crate::codec) fn of_columns(fields: &Fields) -> Self {
        let columns = fields.iter().enumerate().map(|(at, field)| (field.name().clone(), Target::Column(at))).collect();
        Self::new(fields.iter().map(|field| field.name().clone()).collect(), columns, Target::Skip)
    }

    /// The keys of records: `names` are the columns, `columns` says what becomes of known keys, `unknown` of others.
    pub(in crate::codec) fn new(names: Vec<String>, columns: HashMap<String, Target>, unknown: Target) -> Self {
        let start = Key { written: Box::new([]), target: Target::Skip, next: 0 };
        Self { keys: vec![start], by_text: HashMap::new(), columns, names, unknown, extras: HashMap::new() }
    }

    /// The name of a column.
    pub(in crate::codec) fn name(&self, column: usize) -> &str {
        self.names.get(column).map_or("", String::as_str)
    }

    /// Takes a key whose opening quote is taken. `last` is the number of the key before it, 0 at the beginning, and
    /// becomes this one's.
    #[inline]
    pub(in crate::codec) fn take(&mut self, cursor: &mut Cursor<'_>, last: &mut usize) -> Result<Target, Fault> {
        let guess = self.keys.get(*last).map_or(0, |key| key.next);
        if let Some(key) = self.keys.get(guess)
            && guess != 0
            && cursor.bytes[cursor.at..].starts_with(&key.written)
        {
            // A key that was read once has exactly one quote that is not escaped: its last byte.
            cursor.at += key.written.len();
            *last = guess;
            return Ok(key.target);
        }
        self.look_up(cursor, last)
    }

    fn look_up(&mut self, cursor: &mut Cursor<'_>, last: &mut usize) -> Result<Target, Fault> {
        let text = cursor.string()?;
        let written = &cursor.bytes[text.range.start..=text.range.end];
        let found = match self.by_text.get(written) {
            Some(found) => *found,
            None => {
                let mut name = Vec::new();
                if text.escaped {
                    unescape(&cursor.bytes[text.range], &mut name);
                } else {
                    name.extend_from_slice(&cursor.bytes[text.range]);
                }
                let target = self.target(String::from_utf8_lossy(&name).into_owned());
                if self.keys.len() >= MAX_KEYS {
                    return Ok(target);
                }
                self.by_text.insert(written.into(), self.keys.len());
                self.keys.push(Key { written: written.into(), target, next: 0 });
                self.keys.len() - 1
            }
        };
        self.keys[*last].next = found;
        *last = found;
        Ok(self.keys[found].target)
    }

    fn target(&mut self, name: String) -> Target {
        match (self.columns.get(&name), self.unknown) {
            (Some(target), _) => *target,
            (None, Target::Extra(_)) => {
                let number = self.extras.len();
                if number >= MAX_KEYS && !self.extras.contains_key(&name) {
                    return Target::Extra(usize::MAX);
                }
                Target::Extra(*self.extras.entry(name).or_insert(number))
            }
            (None, unknown) => unknown,
        }
    }
}

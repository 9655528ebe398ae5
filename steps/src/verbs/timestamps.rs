//! Texts to instants. The two formats that most logs have are read byte by byte; every other format is taken apart once,
//! at planning, and read by chrono, without memory of its own per row, but for what chrono's reader gets wrong or loses:
//! years, fractions of a second and names of zones.

use std::fmt::Write;

use chrono::{
    DateTime, Datelike, FixedOffset, LocalResult, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc,
    format::{Item, Parsed, StrftimeItems, parse_and_remainder},
};
use chrono_tz::Tz;

/// The format of web servers' access logs.
const COMMON_LOG: &str = "%d/%b/%Y:%H:%M:%S %z";

const SECOND: i64 = 1_000_000;

/// Why a text is no instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has not the format.
    Shape,
    /// Its zone's clocks were put forward over it.
    Skipped(String),
    /// It names a zone that nobody knows for sure.
    Zone(String),
}

/// The zone of texts that name none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Of the IANA database.
    Named(Tz),
    /// So many hours and minutes east of UTC.
    Fixed(FixedOffset),
}

impl Zone {
    /// No other was named.
    pub const UTC: Self = Self::Named(Tz::UTC);

    fn name(self) -> String {
        match self {
            Self::Named(zone) => zone.name().to_owned(),
            Self::Fixed(offset) => offset.to_string(),
        }
    }

    /// A wall clock's time: the first of two where the clock was put back, none where it was put forward.
    fn instant(self, time: NaiveDateTime) -> Option<i64> {
        let zone = match self {
            Self::Named(Tz::UTC) => return Some(time.and_utc().timestamp_micros()),
            Self::Named(zone) => zone,
            Self::Fixed(offset) => return Some(offset.from_local_datetime(&time).single()?.timestamp_micros()),
        };
        match zone.from_local_datetime(&time) {
            LocalResult::Single(instant) | LocalResult::Ambiguous(instant, _) => Some(instant.timestamp_micros()),
            LocalResult::None => None,
        }
    }

    fn read(self, time: NaiveDateTime) -> Result<i64, Why> {
        self.instant(time).ok_or_else(|| Why::Skipped(self.name()))
    }

    /// The first instant of a day: its midnight, or where the clocks were put forward at midnight, when they went on.
    fn begin(self, midnight: NaiveDateTime) -> Result<i64, Why> {
        /// No clock was put forward by more; Samoa's left out a whole day.
        const LONGEST: i64 = 24 * 60;
        let minutes = (0..=LONGEST).step_by(15);
        let found = minutes.filter_map(|minutes| midnight.checked_add_signed(TimeDelta::minutes(minutes)));
        found.filter_map(|time| self.instant(time)).next().ok_or_else(|| Why::Skipped(self.name()))
    }
}

/// A part of a format.
#[derive(Debug)]
enum Part {
    /// What chrono reads.
    Items(Vec<Item<'static>>),
    /// `%Y`: four digits, or a sign and more. chrono would take the 24 of `1/2/24` for a year.
    Year,
    /// `%y`: 69 to 99 are of the last century, as POSIX has it.
    ShortYear,
    /// `%f`: the digits of a fraction, as Python has it; chrono counts nanoseconds.
    Fraction,
    /// `%Z`: a zone by its name; chrono passes over it.
    Zone,
}

/// What a number since 1970 counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Digits of a nanosecond behind the unit.
    digits: u32,
}

/// The names of formats of numbers, and what they count.
pub const EPOCHS: [(&str, &str, Epoch); 4] = [
    ("epoch", "seconds", Epoch { digits: 9 }),
    ("epoch_ms", "milliseconds", Epoch { digits: 6 }),
    ("epoch_us", "microseconds", Epoch { digits: 3 }),
    ("epoch_ns", "nanoseconds", Epoch { digits: 0 }),
];

impl Epoch {
    /// Microseconds of so many units of `10^-scale`; what is below a microsecond is cut off.
    pub fn micros(self, value: i128, scale: i32) -> Option<i64> {
        let shift = i64::from(self.digits) - i64::from(scale);
        let nanos = match u32::try_from(shift.unsigned_abs()).ok()? {
            shift_by if shift >= 0 => value.checked_mul(10_i128.checked_pow(shift_by)?)?,
            shift_by => value.div_euclid(10_i128.checked_pow(shift_by)?),
        };
        i64::try_from(nanos.div_euclid(1000)).ok()
    }

    fn read(self, text: &str) -> Option<i64> {
        i64::try_from(crate::convert::exact(text.trim(), i64::from(self.digits))?.div_euclid(1000)).ok()
    }
}

/// A format, ready to read.
#[derive(Debug)]
pub enum Format {
    /// RFC 3339: `2015-05-17T10:05:03.123Z`. A space for the `T`, `+0200` for `+02:00` and a missing offset (then the
    /// step's zone) are read as well.
    Rfc3339,
    /// The access log's format, and how it is read where its shape is unusual.
    CommonLog(Parts),
    /// Any other.
    Other(Parts),
    /// A number since 1970.
    Epoch(Epoch),
}

/// A format taken apart.
#[derive(Debug)]
pub struct Parts {
    parts: Vec<Part>,
    /// It has no year: that of the batch's clock is meant.
    has_year: bool,
}

impl Format {
    /// Takes a strftime format apart. The error is a sentence.
    pub fn new(text: &str) -> Result<Self, String> {
        if text == "%+" {
            return Ok(Self::Rfc3339);
        }
        if let Some((.., epoch)) = EPOCHS.iter().find(|(name, ..)| *name == text) {
            return Ok(Self::Epoch(*epoch));
        }
        if !text.contains('%') {
            return Err(match of_java(text) {
                Some(meant) => format!("`{text}` is a format of Java; as a strftime format it is `{meant}`"),
                None => format!("`{text}` is no strftime format: it has no `%`"),
            });
        }
        let (parts, sample) = take_apart(text)?;
        // What a format cannot read back from its own text lacks something: the year, or more.
        let mut parts = Parts { parts, has_year: true };
        if parts.read(&sample, Zone::UTC, 0).is_err() {
            parts.has_year = false;
            if parts.read(&sample, Zone::UTC, SAMPLE_SECONDS * SECOND).is_err() {
                return Err(format!(
                    "`{text}` gives no instant: it needs month and day (or `%s`), and hours with minutes"
                ));
            }
        }
        Ok(if text == COMMON_LOG { Self::CommonLog(parts) } else { Self::Other(parts) })
    }

    /// Microseconds since the epoch. `zone` is that of texts without one, `now` the batch's clock in microseconds.
    pub fn read(&self, text: &str, zone: Zone, now: i64) -> Result<i64, Why> {
        match self {
            Self::Rfc3339 => rfc3339(text.as_bytes(), zone),
            Self::CommonLog(parts) => common_log(text.as_bytes()).map_or_else(|| parts.read(text, zone, now), Ok),
            Self::Other(parts) => parts.read(text, zone, now),
            Self::Epoch(epoch) => epoch.read(text).ok_or(Why::Shape),
        }
    }
}

/// 2015-05-17T10:05:03Z, which formats are tried with.
const SAMPLE_SECONDS: i64 = 1_431_857_103;

/// The parts of a format, and a text that it should read.
fn take_apart(text: &str) -> Result<(Vec<Part>, String), String> {
    let (mut parts, mut sample) = (Vec::new(), String::new());
    // What chrono reads, and what it would write: offsets are read in all their forms, one of which is written.
    let (mut read, mut written) = (String::new(), String::new());
    let mut finish = |read: &mut String, written: &mut String, part: Option<(Part, &str)>| {
        if !read.is_empty() {
            let items = StrftimeItems::new(read).parse_to_owned();
            let items = items.map_err(|_| format!("`{text}` is no strftime format: it has an unknown `%` sequence"))?;
            let items_written: Vec<Item<'_>> = StrftimeItems::new(written).collect();
            let instant = DateTime::<Utc>::from_timestamp(SAMPLE_SECONDS, 0).unwrap_or_default();
            if write!(sample, "{}", instant.format_with_items(items_written.iter())).is_err() {
                return Err(format!("`{text}` has a `%` sequence that no text has"));
            }
            parts.push(Part::Items(items));
        }
        read.clear();
        written.clear();
        if let Some((part, text)) = part {
            sample.push_str(text);
            parts.push(part);
        }
        Ok(())
    };
    let has_century = text.contains("%C");
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, sequence) = rest.split_at(at);
        read.push_str(before);
        written.push_str(before);
        let padded = sequence[1..].trim_start_matches(['-', '_', '0']);
        let of = |name: &'static str| padded.strip_prefix(name);
        let composed =
            [("F", "%Y-%m-%d"), ("D", "%m/%d/%y"), ("x", "%m/%d/%y"), ("c", "%a %b %e %H:%M:%S %Y"), ("v", "%e-%b-%Y")];
        if let Some((expanded, after)) = composed.iter().find_map(|(name, expanded)| Some((*expanded, of(name)?))) {
            let (inner, inner_sample) = take_apart(expanded)?;
            finish(&mut read, &mut written, None)?;
            for part in inner {
                finish(&mut read, &mut written, Some((part, "")))?;
            }
            finish(&mut read, &mut written, Some((Part::Items(Vec::new()), &inner_sample)))?;
            rest = after;
        } else if let Some(after) = of("Y") {
            finish(&mut read, &mut written, Some((Part::Year, "2015")))?;
            rest = after;
        } else if let Some(after) = of("y").filter(|_| !has_century) {
            finish(&mut read, &mut written, Some((Part::ShortYear, "15")))?;
            rest = after;
        } else if let Some(after) = of("f") {
            finish(&mut read, &mut written, Some((Part::Fraction, "250000")))?;
            rest = after;
        } else if let Some(after) = of("Z") {
            finish(&mut read, &mut written, Some((Part::Zone, "UTC")))?;
            rest = after;
        } else if let Some(after) = of("z").or_else(|| of(":z")).or_else(|| of("#z")) {
            read.push_str("%#z");
            written.push_str("%z");
            rest = after;
        } else {
            // The sign and the letter behind it, which may be another sign.
            let length = 1 + sequence[1..].chars().next().map_or(0, char::len_utf8);
            let (sequence, after) = sequence.split_at(length);
            read.push_str(sequence);
            written.push_str(sequence);
            rest = after;
        }
    }
    read.push_str(rest);
    written.push_str(rest);
    finish(&mut read, &mut written, None)?;
    Ok((parts, sample))
}

/// A format of Java (`yyyy-MM-dd HH:mm`) as strftime has it; `None`: it is none.
fn of_java(text: &str) -> Option<String> {
    let (mut meant, mut rest, mut known) = (String::new(), text, 0);
    let words = [
        ("yyyy", "%Y"),
        ("uuuu", "%Y"),
        ("yy", "%y"),
        ("MMM", "%b"),
        ("MM", "%m"),
        ("dd", "%d"),
        ("HH", "%H"),
        ("hh", "%I"),
        ("mm", "%M"),
        ("ss", "%S"),
        ("SSSSSS", "%f"),
        ("SSS", "%f"),
        ("XXX", "%z"),
        ("X", "%z"),
        ("Z", "%z"),
        ("a", "%p"),
        ("'T'", "T"),
    ];
    while let Some(letter) = rest.chars().next() {
        match words.iter().find(|(word, _)| rest.starts_with(word)) {
            Some((word, item)) => {
                meant.push_str(item);
                known += usize::from(word.len() > 1);
                rest = &rest[word.len()..];
            }
            None if letter.is_alphabetic() && letter != 'T' => return None,
            None => {
                meant.push(letter);
                rest = &rest[letter.len_utf8()..];
            }
        }
    }
    (known > 1).then_some(meant)
}

impl Parts {
    fn read(&self, text: &str, zone: Zone, now: i64) -> Result<i64, Why> {
        let (mut parsed, mut rest, mut zone) = (Parsed::new(), text, zone);
        for part in &self.parts {
            rest = match part {
                Part::Items(items) => parse_and_remainder(&mut parsed, rest, items.iter()).map_err(|_| Why::Shape)?,
                Part::Year => {
                    let (year, rest) = year(rest.trim_start()).ok_or(Why::Shape)?;
                    parsed.set_year(year).map_err(|_| Why::Shape)?;
                    rest
                }
                Part::ShortYear => {
                    let (year, rest) = number(rest.trim_start(), 1..=2).ok_or(Why::Shape)?;
                    let century = if year < 69 { 2000 } else { 1900 };
                    parsed.set_year(century + year).map_err(|_| Why::Shape)?;
                    rest
                }
                Part::Fraction => {
                    let (nanos, rest) = fraction(rest).ok_or(Why::Shape)?;
                    parsed.set_nanosecond(nanos).map_err(|_| Why::Shape)?;
                    rest
                }
                Part::Zone => {
                    let (name, rest) = word(rest);
                    zone = named(name)?;
                    rest
                }
            };
        }
        if !rest.is_empty() {
            return Err(Why::Shape);
        }
        if self.has_year { instant(&parsed, zone) } else { without_year(&parsed, zone, now) }
    }
}

/// The latest year in which a text is not of the future. Clocks differ: a day ahead is not yet the future.
fn without_year(parsed: &Parsed, zone: Zone, now: i64) -> Result<i64, Why> {
    const DAY: i64 = 86_400 * SECOND;
    /// The 29th of February comes every four years, but for 1900 and 2100.
    const YEARS: i64 = 8;
    let clock = DateTime::from_timestamp_micros(now).unwrap_or_default();
    let mut why = Why::Shape;
    for year in (-1..=YEARS).map(|back| i64::from(clock.year()) - back) {
        let mut dated = parsed.clone();
        if dated.set_year(year).is_err() {
            continue;
        }
        match instant(&dated, zone) {
            Ok(instant) if instant <= now.saturating_add(DAY) => return Ok(instant),
            Ok(_) => {}
            Err(Why::Shape) => {}
            // It is of this year, and its clocks were put forward over it.
            Err(other) if year <= i64::from(clock.year()) => return Err(other),
            Err(other) => why = other,
        }
    }
    Err(why)
}

fn instant(parsed: &Parsed, zone: Zone) -> Result<i64, Why> {
    let shape = |_| Why::Shape;
    if parsed.offset().is_some() {
        return Ok(parsed.to_datetime().map_err(shape)?.timestamp_micros());
    }
    if parsed.timestamp().is_some() {
        return Ok(parsed.to_naive_datetime_with_offset(0).map_err(shape)?.and_utc().timestamp_micros());
    }
    let date = parsed.to_naive_date().map_err(shape)?;
    let has_hours = parsed.hour_mod_12().is_some() || parsed.hour_div_12().is_some();
    match has_hours {
        true => zone.read(date.and_time(parsed.to_naive_time().map_err(shape)?)),
        false => zone.begin(date.and_time(NaiveTime::MIN)),
    }
}

/// A number of so many digits, and what follows.
fn number(text: &str, count: std::ops::RangeInclusive<usize>) -> Option<(i64, &str)> {
    let digits = text.bytes().take(*count.end()).take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    count.contains(&digits).then_some(())?;
    Some((number.parse().ok()?, rest))
}

fn year(text: &str) -> Option<(i64, &str)> {
    match text.as_bytes() {
        [b'+', ..] => number(&text[1..], 4..=6),
        [b'-', ..] => number(&text[1..], 4..=6).map(|(year, rest)| (-year, rest)),
        _ => number(text, 4..=4),
    }
}

/// Nanoseconds of the digits behind a point; those beyond them are cut off.
fn fraction(text: &str) -> Option<(i64, &str)> {
    const NANOS: usize = 9;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (fraction, rest) = text.split_at(digits);
    (digits > 0).then_some(())?;
    let nanos = (0..NANOS)
        .fold(0, |value, place| value * 10 + fraction.as_bytes().get(place).map_or(0, |digit| i64::from(digit - b'0')));
    Some((nanos, rest))
}

/// The name of a zone that a text begins with.
fn word(text: &str) -> (&str, &str) {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '/' | '_' | '+' | '-');
    text.split_at(text.find(|letter| !is_part(letter)).unwrap_or(text.len()))
}

/// UTC, or a zone of the IANA database by its whole name. `PST`, `IST` and their like mean several zones.
fn named(name: &str) -> Result<Zone, Why> {
    if ["UTC", "GMT", "UT", "Z"].iter().any(|utc| utc.eq_ignore_ascii_case(name)) {
        return Ok(Zone::UTC);
    }
    if name.is_empty() {
        return Err(Why::Shape);
    }
    let known = name.contains('/').then(|| name.parse().ok()).flatten();
    known.map(Zone::Named).ok_or_else(|| Why::Zone(name.to_owned()))
}

/// `17/May/2015:10:05:03 +0000`, exactly this shape.
fn common_log(text: &[u8]) -> Option<i64> {
    let text: &[u8; 26] = text.try_into().ok()?;
    let is_shape = text[2] == b'/'
        && text[6] == b'/'
        && text[11] == b':'
        && text[14] == b':'
        && text[17] == b':'
        && text[20] == b' ';
    if !is_shape {
        return None;
    }
    let month = match &text[3..6] {
        b"Jan" => 1,
        b"Feb" => 2,
        b"Mar" => 3,
        b"Apr" => 4,
        b"May" => 5,
        b"Jun" => 6,
        b"Jul" => 7,
        b"Aug" => 8,
        b"Sep" => 9,
        b"Oct" => 10,
        b"Nov" => 11,
        b"Dec" => 12,
        _ => return None,
    };
    let date = (digits(&text[7..11])?, month, digits(&text[..2])?);
    let time = (digits(&text[12..14])?, digits(&text[15..17])?, digits(&text[18..20])?);
    Some(seconds(date, time)?.checked_sub(offset(&text[21..])?)? * SECOND)
}

fn rfc3339(text: &[u8], zone: Zone) -> Result<i64, Why> {
    let (seconds, micros, offset) = rfc3339_parts(text).ok_or(Why::Shape)?;
    let instant = match offset {
        None => zone.read(DateTime::from_timestamp(seconds, 0).ok_or(Why::Shape)?.naive_utc())?,
        Some(offset) => (seconds - offset) * SECOND,
    };
    Ok(instant + micros)
}

/// Seconds as if in UTC, microseconds, and the offset where there is one.
fn rfc3339_parts(text: &[u8]) -> Option<(i64, i64, Option<i64>)> {
    let (head, mut rest) = text.split_at_checked(19)?;
    let is_shape = head[4] == b'-'
        && head[7] == b'-'
        && matches!(head[10], b'T' | b't' | b' ')
        && head[13] == b':'
        && head[16] == b':';
    if !is_shape {
        return None;
    }
    let date = (digits(&head[..4])?, digits(&head[5..7])?, digits(&head[8..10])?);
    let time = (digits(&head[11..13])?, digits(&head[14..16])?, digits(&head[17..19])?);
    let seconds = seconds(date, time)?;
    let mut micros = 0;
    if let [b'.', fraction @ ..] = rest {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        // Digits beyond microseconds are cut off.
        micros = (0..6).fold(0, |value, place| {
            value * 10 + fraction[..length].get(place).map_or(0, |digit| i64::from(digit - b'0'))
        });
        rest = &fraction[length..];
    }
    let offset = match rest {
        [] => None,
        _ => Some(offset(rest)?),
    };
    Some((seconds, micros, offset))
}

/// `Z`, `+02:00` or `+0200`, in seconds.
fn offset(text: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match text {
        [b'Z' | b'z'] => return Some(0),
        [sign, hours @ .., b':', ten, one] if hours.len() == 2 => (sign, digits(hours)?, digits(&[*ten, *one])?),
        [sign, hours @ .., ten, one] if hours.len() == 2 => (sign, digits(hours)?, digits(&[*ten, *one])?),
        _ => return None,
    };
    let seconds = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
    match sign {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

/// Seconds since the epoch, as if in UTC. A leap second counts as the first of the next minute.
fn seconds((year, month, day): (i64, i64, i64), (hour, minute, second): (i64, i64, i64)) -> Option<i64> {
    let is_time = hour < 24 && minute < 60 && (second < 60 || (second == 60 && minute == 59));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    (is_time && (1..=length).contains(&day))
        .then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days since the epoch: Howard Hinnant, `chrono`-Compatible Low-Level Date Algorithms, `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The zone of this name, or of an offset like `+02:00`; the error is a sentence.
pub fn zone(name: &str) -> Result<Zone, String> {
    if matches!(name.as_bytes().first(), Some(b'+' | b'-' | b'Z' | b'z')) {
        let seconds = offset(name.as_bytes()).and_then(|seconds| i32::try_from(seconds).ok());
        if let Some(offset) = seconds.and_then(FixedOffset::east_opt) {
            return Ok(Zone::Fixed(offset));
        }
        return Err(format!("`{name}` is no offset: write hours and minutes, like `+02:00`"));
    }
    name.parse().map(Zone::Named).map_err(|_| {
        let meant = crate::columns::nearest(name, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()));
        let meant = meant.map(|zone| format!("; did you mean `{zone}`?")).unwrap_or(".".into());
        format!(
            "no time zone `{name}`{meant} Zones are those of the IANA database, like `Europe/Berlin`, or offsets, like `+02:00`"
        )
    })
}

/// Whether days are counted as chrono counts them, for a test over all of them.
#[cfg(test)]
fn chrono_days(date: chrono::NaiveDate) -> i64 {
    date.signed_duration_since(chrono::NaiveDate::default()).num_days()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use chrono::{Datelike, NaiveDate};

    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        let mut date = NaiveDate::from_ymd_opt(1895, 1, 1).unwrap();
        for _ in 0..100_000 {
            let counted = days(i64::from(date.year()), i64::from(date.month()), i64::from(date.day()));
            assert_eq!(counted, chrono_days(date), "{date}");
            date = date.succ_opt().unwrap();
        }
    }

    fn micros(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
    }

    fn read(format: &str, text: &str, zone_name: &str) -> Result<i64, Why> {
        let format = Format::new(format).unwrap_or_else(|error| panic!("{error}"));
        format.read(text, zone(zone_name).unwrap(), micros("2015-05-17T10:05:03Z"))
    }

    #[test]
    fn the_fast_ways_read_what_chrono_reads() {
        let Format::CommonLog(parts) = Format::new(COMMON_LOG).unwrap() else { panic!("another") };
        for text in ["17/May/2015:10:05:03 +0000", "29/Feb/2016:23:59:59 -0730", "01/Jan/1960:00:00:00 +1400"] {
            let expected = parts.read(text, Zone::UTC, 0).ok();
            assert!(expected.is_some());
            assert_eq!(common_log(text.as_bytes()), expected, "{text}");
        }
        for text in ["2015-05-17T10:05:03Z", "2015-05-17T10:05:03.5+02:00", "1969-12-31T23:59:59.999999-00:30"] {
            assert_eq!(rfc3339(text.as_bytes(), Zone::UTC), Ok(micros(text)), "{text}");
        }
        for text in ["29/Feb/2015:10:05:03 +0000", "32/May/2015:10:05:03 +0000", "17/May/2015:24:05:03 +0000", "-", ""]
        {
            assert_eq!(common_log(text.as_bytes()), None, "{text}");
            assert_eq!(parts.read(text, Zone::UTC, 0), Err(Why::Shape), "{text}");
        }
        for text in
            ["2015-02-29T10:05:03Z", "2015-05-17", "2015-05-17T10:05:03.Z", "2015-05-17T10:05:03+2:00", "17/May"]
        {
            assert_eq!(rfc3339(text.as_bytes(), Zone::UTC), Err(Why::Shape), "{text}");
        }
    }

    #[test]
    fn a_zone_is_for_texts_that_have_none() {
        let seconds = "%Y-%m-%d %H:%M:%S";
        let berlin = |text| read(seconds, text, "Europe/Berlin");
        assert_eq!(berlin("2015-07-01 12:00:00"), Ok(micros("2015-07-01T10:00:00Z")));
        assert_eq!(berlin("2015-03-29 02:30:00"), Err(Why::Skipped("Europe/Berlin".into())));
        assert_eq!(berlin("2015-10-25 02:30:00"), Ok(micros("2015-10-25T00:30:00Z")), "put back: the first");
        assert_eq!(read("%+", "2015-07-01T12:00:00", "Europe/Berlin"), Ok(micros("2015-07-01T10:00:00Z")));
        assert_eq!(read("%+", "2015-07-01T12:00:00Z", "Europe/Berlin"), Ok(micros("2015-07-01T12:00:00Z")));
        assert_eq!(read("%+", "2015-03-29T02:30:00", "Europe/Berlin"), Err(Why::Skipped("Europe/Berlin".into())));
        for offset in ["+02:00", "+0200"] {
            assert_eq!(read(seconds, "2015-07-01 12:00:00", offset), Ok(micros("2015-07-01T10:00:00Z")), "{offset}");
        }
        assert_eq!(read(seconds, "2015-07-01 12:00:00", "-09:30"), Ok(micros("2015-07-01T21:30:00Z")));
        assert!(zone("+2").unwrap_err().contains("no offset"));
        assert!(zone("+25:00").unwrap_err().contains("no offset"));
        // Clocks were put forward at midnight: the day begins at one.
        assert_eq!(read("%Y-%m-%d", "2018-11-04", "America/Sao_Paulo"), Ok(micros("2018-11-04T03:00:00Z")));
        assert_eq!(read("%Y-%m-%d", "2018-11-05", "America/Sao_Paulo"), Ok(micros("2018-11-05T02:00:00Z")));
    }

    #[test]
    fn offsets_are_read_in_all_their_forms() {
        for format in ["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S%:z", "%Y-%m-%dT%H:%M:%S%#z", "%FT%T%z"] {
            for (text, expected) in [
                ("2015-05-17T10:05:03Z", "2015-05-17T10:05:03Z"),
                ("2015-05-17T10:05:03z", "2015-05-17T10:05:03Z"),
                ("2015-05-17T10:05:03+0900", "2015-05-17T01:05:03Z"),
                ("2015-05-17T10:05:03+09:00", "2015-05-17T01:05:03Z"),
                ("2015-05-17T10:05:03+09", "2015-05-17T01:05:03Z"),
                ("2015-05-17T10:05:03-07:30", "2015-05-17T17:35:03Z"),
            ] {
                assert_eq!(read(format, text, "Europe/Berlin"), Ok(micros(expected)), "{format} {text}");
            }
            assert_eq!(read(format, "2015-05-17T10:05:03", "UTC"), Err(Why::Shape), "{format}");
        }
    }

    #[test]
    fn names_of_zones_are_read_or_refused() {
        let named = |text: &str| read("%Y-%m-%d %H:%M:%S %Z", text, "Europe/Berlin");
        for (text, expected) in [
            ("2024-07-29 12:00:00 UTC", "2024-07-29T12:00:00Z"),
            ("2024-07-29 12:00:00 GMT", "2024-07-29T12:00:00Z"),
            ("2024-07-29 12:00:00 Z", "2024-07-29T12:00:00Z"),
            ("2024-07-29 12:00:00 America/New_York", "2024-07-29T16:00:00Z"),
            ("2024-12-29 12:00:00 America/New_York", "2024-12-29T17:00:00Z"),
        ] {
            assert_eq!(named(text), Ok(micros(expected)), "{text}");
        }
        for name in ["PST", "CEST", "IST", "xyzzy", "EST5EDT", "Mars/Base"] {
            assert_eq!(named(&format!("2024-07-29 12:00:00 {name}")), Err(Why::Zone(name.into())), "{name}");
        }
        assert_eq!(named("2024-07-29 12:00:00 "), Err(Why::Shape));
        assert_eq!(
            read("%a %b %d %H:%M:%S %Z %Y", "Mon Jul 29 12:00:00 UTC 2024", "UTC"),
            Ok(micros("2024-07-29T12:00:00Z"))
        );
    }

    #[test]
    fn fractions_are_fractions() {
        for (format, text, expected) in [
            ("%Y-%m-%d %H:%M:%S.%f", "2024-01-02 03:04:05.5", "2024-01-02T03:04:05.5Z"),
            ("%Y-%m-%d %H:%M:%S.%f", "2024-01-02 03:04:05.123456", "2024-01-02T03:04:05.123456Z"),
            ("%Y-%m-%d %H:%M:%S.%f", "2024-01-02 03:04:05.000001", "2024-01-02T03:04:05.000001Z"),
            ("%Y-%m-%d %H:%M:%S.%f", "2024-01-02 03:04:05.1234567899", "2024-01-02T03:04:05.123456Z"),
            ("%Y-%m-%d %H:%M:%S,%f", "2024-01-02 03:04:05,250", "2024-01-02T03:04:05.25Z"),
            ("%Y%m%d%H%M%S%f", "20240102030405250", "2024-01-02T03:04:05.25Z"),
            ("%Y-%m-%d %H:%M:%S%.f", "2024-01-02 03:04:05.25", "2024-01-02T03:04:05.25Z"),
            ("%Y-%m-%d %H:%M:%S%.f", "2024-01-02 03:04:05", "2024-01-02T03:04:05Z"),
            ("%Y-%m-%dT%H:%M:%S.%f%z", "2024-01-02T03:04:05.75Z", "2024-01-02T03:04:05.75Z"),
        ] {
            assert_eq!(read(format, text, "UTC"), Ok(micros(expected)), "{format} {text}");
        }
        assert_eq!(read("%Y-%m-%d %H:%M:%S.%f", "2024-01-02 03:04:05.", "UTC"), Err(Why::Shape));
    }

    #[test]
    fn years_are_whole_or_of_their_century() {
        assert_eq!(read("%d.%m.%y", "01.02.69", "UTC"), Ok(micros("1969-02-01T00:00:00Z")));
        assert_eq!(read("%d.%m.%y", "01.02.68", "UTC"), Ok(micros("2068-02-01T00:00:00Z")));
        assert_eq!(read("%D", "02/01/69", "UTC"), Ok(micros("1969-02-01T00:00:00Z")));
        assert_eq!(read("%m/%d/%Y", "1/2/2024", "UTC"), Ok(micros("2024-01-02T00:00:00Z")));
        for text in ["1/2/24", "1/2/024", "1/2/20245", "1/2/"] {
            assert_eq!(read("%m/%d/%Y", text, "UTC"), Err(Why::Shape), "{text}");
        }
        assert_eq!(read("%Y%m%d", "20240102", "UTC"), Ok(micros("2024-01-02T00:00:00Z")));
    }

    #[test]
    fn without_a_year_it_is_that_of_the_clock() {
        // The clock says 2015-05-17.
        let syslog = |text: &str| read("%b %d %H:%M:%S", text, "UTC");
        assert_eq!(syslog("May 17 09:00:00"), Ok(micros("2015-05-17T09:00:00Z")));
        assert_eq!(syslog("May 17 23:00:00"), Ok(micros("2015-05-17T23:00:00Z")), "another clock, some hours ahead");
        assert_eq!(syslog("May 19 09:00:00"), Ok(micros("2014-05-19T09:00:00Z")), "not of the future");
        assert_eq!(syslog("Dec 31 23:59:59"), Ok(micros("2014-12-31T23:59:59Z")));
        assert_eq!(syslog("Feb 29 00:00:00"), Ok(micros("2012-02-29T00:00:00Z")));
        assert_eq!(syslog("Feb 30 00:00:00"), Err(Why::Shape));
        let format = Format::new("%b %d %H:%M:%S").unwrap();
        let new_year = micros("2015-12-31T23:59:00Z");
        assert_eq!(format.read("Jan  1 00:00:01", Zone::UTC, new_year), Ok(micros("2016-01-01T00:00:01Z")));
    }

    #[test]
    fn numbers_count_what_their_format_says() {
        for (format, text, expected) in [
            ("epoch", "1431857103", "2015-05-17T10:05:03Z"),
            ("epoch", "1431857103.25", "2015-05-17T10:05:03.25Z"),
            ("epoch", "-1", "1969-12-31T23:59:59Z"),
            ("epoch_ms", "-1", "1969-12-31T23:59:59.999Z"),
            ("epoch_ms", "1431857103250", "2015-05-17T10:05:03.25Z"),
            ("epoch_us", "1431857103250001", "2015-05-17T10:05:03.250001Z"),
            ("epoch_ns", "1431857103250001999", "2015-05-17T10:05:03.250001Z"),
            ("epoch_ns", "-1", "1969-12-31T23:59:59.999999Z"),
            ("%s", "1431857103", "2015-05-17T10:05:03Z"),
        ] {
            assert_eq!(read(format, text, "Europe/Berlin"), Ok(micros(expected)), "{format} {text}");
        }
        assert_eq!(read("epoch", "soon", "UTC"), Err(Why::Shape));
        assert_eq!(read("epoch", "99999999999999999999", "UTC"), Err(Why::Shape));
    }

    #[test]
    fn a_format_that_gives_no_instant_is_refused() {
        assert!(Format::new("%H:%M:%S").unwrap_err().contains("month and day"));
        assert!(Format::new("%Q").unwrap_err().contains("strftime"));
        assert!(Format::new("yyyy-MM-dd HH:mm").unwrap_err().contains("`%Y-%m-%d %H:%M`"));
        assert!(Format::new("today").unwrap_err().contains("no `%`"));
        for right in ["%Y-%m-%d", "%s", "%d.%m.%y %H:%M", "%c", "%I:%M %p %Y-%j", "%Y-%m-%dT%H:%M:%S%.f%:z", "%#z %s"] {
            assert!(Format::new(right).is_ok(), "{right}");
        }
        assert!(zone("Europe/Berln").unwrap_err().contains("Europe/Berlin"));
    }

    /// No format panics, whatever it is.
    #[test]
    fn no_format_ends_the_process() {
        let letters = ["%", "#", ":", ".", "-", "_", "0", "3", "z", "Z", "Y", "y", "f", "s", "+", "E", "\u{e9}", " "];
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..6 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(letters[(state >> 33) as usize % letters.len()]);
            }
            if let Ok(format) = Format::new(&text) {
                let _ = format.read("2015-05-17T10:05:03.5\u{e9} +0200", Zone::UTC, 0);
            }
        }
    }
}

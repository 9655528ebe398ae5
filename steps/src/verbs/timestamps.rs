//! Texts to instants. The two formats that most logs have are read byte by byte; every other format is taken apart once,
//! at planning, and read by chrono, without memory of its own per row.

use chrono::{
    DateTime, LocalResult, NaiveDateTime, NaiveTime, TimeZone, Utc,
    format::{Item, Parsed, StrftimeItems, parse},
};
use chrono_tz::Tz;

/// The format of web servers' access logs.
const COMMON_LOG: &str = "%d/%b/%Y:%H:%M:%S %z";

const SECOND: i64 = 1_000_000;

/// A format, ready to read.
#[derive(Debug)]
pub enum Format {
    /// RFC 3339: `2015-05-17T10:05:03.123Z`. A space for the `T`, `+0200` for `+02:00` and a missing offset (then the
    /// step's zone) are read as well.
    Rfc3339,
    /// The access log's format, and how chrono reads it where its shape is unusual.
    CommonLog(Vec<Item<'static>>),
    /// Any other.
    Other(Vec<Item<'static>>),
}

impl Format {
    /// Takes a strftime format apart. The error is a sentence.
    pub fn new(text: &str) -> Result<Self, String> {
        if text == "%+" {
            return Ok(Self::Rfc3339);
        }
        let items = StrftimeItems::new(text)
            .parse_to_owned()
            .map_err(|_| format!("`{text}` is no strftime format: it has an unknown `%` sequence"))?;
        // What a format cannot read back from its own text lacks something: mostly the year.
        let sample = DateTime::<Utc>::from_timestamp(1_431_857_103, 0).unwrap_or_default();
        let written = sample.format_with_items(items.iter()).to_string();
        if read_items(&written, &items, Tz::UTC).is_none() {
            return Err(format!(
                "`{text}` gives no instant: it needs year, month and day (or `%s`), and hours with minutes"
            ));
        }
        Ok(if text == COMMON_LOG { Self::CommonLog(items) } else { Self::Other(items) })
    }

    /// Microseconds since the epoch. `zone` is that of texts without one.
    pub fn read(&self, text: &str, zone: Tz) -> Option<i64> {
        match self {
            Self::Rfc3339 => rfc3339(text.as_bytes(), zone),
            Self::CommonLog(items) => common_log(text.as_bytes()).or_else(|| read_items(text, items, zone)),
            Self::Other(items) => read_items(text, items, zone),
        }
    }
}

fn read_items(text: &str, items: &[Item<'static>], zone: Tz) -> Option<i64> {
    let mut parsed = Parsed::new();
    parse(&mut parsed, text, items.iter()).ok()?;
    if parsed.offset().is_some() {
        return Some(parsed.to_datetime().ok()?.timestamp_micros());
    }
    if parsed.timestamp().is_some() {
        return Some(parsed.to_naive_datetime_with_offset(0).ok()?.and_utc().timestamp_micros());
    }
    let date = parsed.to_naive_date().ok()?;
    let hours = parsed.hour_mod_12().is_some() || parsed.hour_div_12().is_some();
    let time = if hours { parsed.to_naive_time().ok()? } else { NaiveTime::MIN };
    local(date.and_time(time), zone)
}

/// A wall clock's time in its zone: the first of two where the clock was put back, none where it was put forward.
fn local(time: NaiveDateTime, zone: Tz) -> Option<i64> {
    if zone == Tz::UTC {
        return Some(time.and_utc().timestamp_micros());
    }
    match zone.from_local_datetime(&time) {
        LocalResult::Single(instant) | LocalResult::Ambiguous(instant, _) => Some(instant.timestamp_micros()),
        LocalResult::None => None,
    }
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

fn rfc3339(text: &[u8], zone: Tz) -> Option<i64> {
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
    let instant = match rest {
        [] => local(DateTime::from_timestamp(seconds, 0)?.naive_utc(), zone)?,
        _ => seconds.checked_sub(offset(rest)?)? * SECOND,
    };
    Some(instant + micros)
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

/// The zone of this name; the error is a sentence.
pub fn zone(name: &str) -> Result<Tz, String> {
    name.parse().map_err(|_| {
        let meant = crate::columns::nearest(name, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()));
        let meant = meant.map(|zone| format!("; did you mean `{zone}`?")).unwrap_or(".".into());
        format!("no time zone `{name}`{meant} Zones are those of the IANA database, like `Europe/Berlin`")
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

    #[test]
    fn the_fast_ways_read_what_chrono_reads() {
        let items = StrftimeItems::new(COMMON_LOG).parse_to_owned().unwrap();
        for text in ["17/May/2015:10:05:03 +0000", "29/Feb/2016:23:59:59 -0730", "01/Jan/1960:00:00:00 +1400"] {
            let expected = read_items(text, &items, Tz::UTC);
            assert!(expected.is_some());
            assert_eq!(common_log(text.as_bytes()), expected, "{text}");
        }
        for text in ["2015-05-17T10:05:03Z", "2015-05-17T10:05:03.5+02:00", "1969-12-31T23:59:59.999999-00:30"] {
            let expected = DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
            assert_eq!(rfc3339(text.as_bytes(), Tz::UTC), Some(expected), "{text}");
        }
        for text in ["29/Feb/2015:10:05:03 +0000", "32/May/2015:10:05:03 +0000", "17/May/2015:24:05:03 +0000", "-", ""]
        {
            assert_eq!(common_log(text.as_bytes()), None, "{text}");
            assert_eq!(read_items(text, &items, Tz::UTC), None, "{text}");
        }
        for text in
            ["2015-02-29T10:05:03Z", "2015-05-17", "2015-05-17T10:05:03.Z", "2015-05-17T10:05:03+2:00", "17/May"]
        {
            assert_eq!(rfc3339(text.as_bytes(), Tz::UTC), None, "{text}");
        }
    }

    #[test]
    fn a_zone_is_for_texts_that_have_none() {
        let berlin = zone("Europe/Berlin").unwrap();
        let format = Format::new("%Y-%m-%d %H:%M:%S").unwrap();
        let at = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
        assert_eq!(format.read("2015-07-01 12:00:00", berlin), Some(at("2015-07-01T10:00:00Z")));
        assert_eq!(format.read("2015-03-29 02:30:00", berlin), None, "the clock was put forward");
        assert_eq!(format.read("2015-10-25 02:30:00", berlin), Some(at("2015-10-25T00:30:00Z")), "put back: the first");
        assert_eq!(Format::Rfc3339.read("2015-07-01T12:00:00", berlin), Some(at("2015-07-01T10:00:00Z")));
        assert_eq!(Format::Rfc3339.read("2015-07-01T12:00:00Z", berlin), Some(at("2015-07-01T12:00:00Z")));
    }

    #[test]
    fn a_format_that_gives_no_instant_is_refused() {
        assert!(Format::new("%b %d %H:%M:%S").unwrap_err().contains("year"));
        assert!(Format::new("%Q").unwrap_err().contains("strftime"));
        for right in ["%Y-%m-%d", "%s", "%d.%m.%y %H:%M", "%c", "%I:%M %p %Y-%j", "%Y-%m-%dT%H:%M:%S%.f%:z"] {
            assert!(Format::new(right).is_ok(), "{right}");
        }
        assert!(zone("Europe/Berln").unwrap_err().contains("Europe/Berlin"));
    }
}

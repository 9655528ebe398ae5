//! Dates and timestamps as text: RFC 3339, and ISO 8601's signed years beyond 9999. Proleptic Gregorian, UTC.
//!
//! Day numbers and civil dates are turned into each other as Howard Hinnant describes in "chrono-Compatible Low-Level
//! Date Algorithms".

use arrow::{
    array::{
        ArrayRef, AsArray,
        types::{TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType},
    },
    buffer::ScalarBuffer,
    datatypes::TimeUnit,
};

const DAY_MICROS: i64 = 86_400_000_000;

/// Days since 1970-01-01.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_of(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

struct Text<'a>(&'a [u8]);

impl Text<'_> {
    fn take(&mut self, accepted: impl Fn(u8) -> bool) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        accepted(*first).then(|| {
            self.0 = rest;
            *first
        })
    }
    fn number(&mut self, digits: usize) -> Option<i64> {
        let (number, rest) = self.0.split_at_checked(digits)?;
        let value = number
            .iter()
            .try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0')));
        self.0 = rest;
        value
    }
    fn year(&mut self) -> Option<i64> {
        match self.take(|byte| matches!(byte, b'+' | b'-')) {
            None => self.number(4),
            Some(sign) => {
                let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let year = (4..=7).contains(&digits).then(|| self.number(digits))??;
                Some(if sign == b'-' { -year } else { year })
            }
        }
    }
    fn date(&mut self) -> Option<i64> {
        let year = self.year()?;
        self.take(|byte| byte == b'-')?;
        let month = self.number(2).filter(|month| (1..=12).contains(month))?;
        self.take(|byte| byte == b'-')?;
        let day = self.number(2).filter(|day| (1..=month_days(year, month)).contains(day))?;
        Some(days_of(year, month, day))
    }
    /// Microseconds of the day. A leap second is the first of the next minute; digits below a microsecond are cut off.
    fn clock(&mut self) -> Option<i64> {
        let hour = self.number(2).filter(|hour| *hour < 24)?;
        self.take(|byte| byte == b':')?;
        let minute = self.number(2).filter(|minute| *minute < 60)?;
        self.take(|byte| byte == b':')?;
        let second = self.number(2).filter(|second| *second <= 60)?;
        let mut micros = 0;
        if self.take(|byte| matches!(byte, b'.' | b',')).is_some() {
            let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let fraction = (digits > 0).then(|| Text(&self.0[..digits.min(6)]).number(digits.min(6)))??;
            micros = fraction * 10_i64.pow(6 - digits.min(6) as u32);
            self.0 = &self.0[digits..];
        }
        Some(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
    }
    /// Microseconds east of UTC; none given is UTC.
    fn zone(&mut self) -> Option<i64> {
        let Some(sign) = self.take(|byte| matches!(byte, b'Z' | b'z' | b'+' | b'-')) else { return Some(0) };
        if matches!(sign, b'Z' | b'z') {
            return Some(0);
        }
        let hours = self.number(2).filter(|hours| *hours < 24)?;
        self.take(|byte| byte == b':');
        let minutes = self.number(2).filter(|minutes| *minutes < 60)?;
        let east = (hours * 60 + minutes) * 60_000_000;
        Some(if sign == b'-' { -east } else { east })
    }
}

/// Days since the epoch of `2015-05-17`.
pub(super) fn parse_date(text: &[u8]) -> Option<i32> {
    let mut text = Text(text);
    let days = text.date()?;
    if text.0.is_empty() { i32::try_from(days).ok() } else { None }
}

/// Microseconds since the epoch of `2015-05-17T10:05:03.5+02:00`: `T` may be a space, the zone may be missing (UTC).
pub(super) fn parse_timestamp(text: &[u8]) -> Option<i64> {
    let mut text = Text(text);
    let days = text.date()?;
    text.take(|byte| matches!(byte, b'T' | b't' | b' '))?;
    let clock = text.clock()?;
    let east = text.zone()?;
    if !text.0.is_empty() {
        return None;
    }
    i64::try_from(i128::from(days) * i128::from(DAY_MICROS) + i128::from(clock - east)).ok()
}

fn pair(out: &mut [u8], value: i64) {
    out[0] = b'0' + (value / 10) as u8;
    out[1] = b'0' + (value % 10) as u8;
}

/// Appends `2015-05-17`. Years outside 0..=9999 have a sign and at least six digits.
pub(super) fn write_date(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil_of(days);
    let mut text = *b"0000-00-00";
    if (0..=9999).contains(&year) {
        pair(&mut text[..2], year / 100);
        pair(&mut text[2..4], year % 100);
        pair(&mut text[5..7], month);
        pair(&mut text[8..], day);
        out.extend_from_slice(&text);
    } else {
        let sign = if year < 0 { '-' } else { '+' };
        out.extend_from_slice(format!("{sign}{:06}-{month:02}-{day:02}", year.abs()).as_bytes());
    }
}

/// The values of an array of timestamps of this unit, and how many units a second has.
pub(in crate::codec) fn ticks(array: &ArrayRef, unit: TimeUnit) -> (ScalarBuffer<i64>, i64) {
    let (values, units) = match unit {
        TimeUnit::Second => (array.as_primitive::<TimestampSecondType>().values(), 1),
        TimeUnit::Millisecond => (array.as_primitive::<TimestampMillisecondType>().values(), 1_000),
        TimeUnit::Microsecond => (array.as_primitive::<TimestampMicrosecondType>().values(), 1_000_000),
        TimeUnit::Nanosecond => (array.as_primitive::<TimestampNanosecondType>().values(), 1_000_000_000),
    };
    (values.clone(), units)
}

/// Writes timestamps; neighbours are mostly of one day, whose text is kept.
#[derive(Default)]
pub(super) struct Stamps {
    day: Option<i64>,
    text: Vec<u8>,
}

impl Stamps {
    /// Appends `2015-05-17T10:05:03Z` for `value` units since the epoch, with `units` in a second: 1, 1000 (three digits
    /// of fraction), and so on. The fraction is written in groups of three digits, none where it is 0.
    pub(super) fn write(&mut self, value: i64, units: i64, out: &mut Vec<u8>) {
        let day = value.div_euclid(86_400 * units);
        let rest = value.rem_euclid(86_400 * units);
        if self.day != Some(day) {
            self.day = Some(day);
            self.text.clear();
            write_date(day, &mut self.text);
        }
        out.extend_from_slice(&self.text);
        let (second, mut fraction) = (rest / units, rest % units);
        let mut clock = *b"T00:00:00";
        pair(&mut clock[1..3], second / 3600);
        pair(&mut clock[4..6], second / 60 % 60);
        pair(&mut clock[7..], second % 60);
        out.extend_from_slice(&clock);
        if fraction != 0 {
            out.push(b'.');
            let mut unit = units;
            while unit > 1 && fraction != 0 {
                unit /= 1000;
                let group = fraction / unit;
                fraction %= unit;
                out.extend([group / 100, group / 10 % 10, group % 10].map(|digit| b'0' + digit as u8));
            }
        }
        out.push(b'Z');
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(value: i64, units: i64) -> String {
        let mut out = Vec::new();
        Stamps::default().write(value, units, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn timestamps_are_read_as_rfc_3339_has_them() {
        let cases: &[(&str, Option<i64>)] = &[
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01 00:00:00", Some(0)),
            ("1970-01-01T00:00:00.000001Z", Some(1)),
            ("1970-01-01T00:00:00.0000019Z", Some(1)),
            ("1969-12-31T23:59:59.5Z", Some(-500_000)),
            ("2015-05-17T10:05:03+02:00", Some(1_431_849_903_000_000)),
            ("2015-05-17T10:05:03-0730", Some(1_431_884_103_000_000)),
            ("2016-12-31T23:59:60Z", Some(1_483_228_800_000_000)),
            ("2000-02-29T00:00:00Z", Some(951_782_400_000_000)),
            ("1900-02-29T00:00:00Z", None),
            ("2015-13-01T00:00:00Z", None),
            ("2015-05-17T24:00:00Z", None),
            ("2015-05-17T10:05:03.Z", None),
            ("2015-05-17T10:05:03Zulu", None),
            ("2015-05-17", None),
            ("15-05-17T10:05:03Z", None),
            ("+999999-01-01T00:00:00Z", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timestamp(text.as_bytes()), *expected, "{text}");
        }
    }

    #[test]
    fn fractions_come_in_groups_of_three_digits() {
        assert_eq!(written(1_431_849_903_000_000, 1_000_000), "2015-05-17T08:05:03Z");
        assert_eq!(written(1_431_849_903_120_000, 1_000_000), "2015-05-17T08:05:03.120Z");
        assert_eq!(written(1_431_849_903_000_004, 1_000_000), "2015-05-17T08:05:03.000004Z");
        assert_eq!(written(1_431_849_903_000_000_004, 1_000_000_000), "2015-05-17T08:05:03.000000004Z");
        assert_eq!(written(-1, 1), "1969-12-31T23:59:59Z");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(micros: i64, near in -70_000_000_000_000_000_i64..70_000_000_000_000_000, days: i32) {
            for micros in [micros, near] {
                let text = written(micros, 1_000_000);
                prop_assert_eq!(parse_timestamp(text.as_bytes()), Some(micros), "{}", text);
            }
            let mut out = Vec::new();
            write_date(i64::from(days), &mut out);
            prop_assert_eq!(parse_date(&out), Some(days));
        }

        #[test]
        fn dates_agree_with_chrono(days in -700_000_i64..2_900_000) {
            let mut out = Vec::new();
            write_date(days, &mut out);
            let date = chrono::NaiveDate::from_ymd_opt(1970, 1, 1).unwrap() + chrono::Duration::days(days);
            if (0..=9999).contains(&chrono::Datelike::year(&date)) {
                prop_assert_eq!(String::from_utf8(out).unwrap(), date.format("%Y-%m-%d").to_string());
            }
        }
    }
}

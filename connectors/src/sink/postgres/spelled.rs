//! Texts as times of day, intervals and addresses, in the forms in which PostgreSQL writes them, and in ISO 8601.

use std::net::IpAddr;

use super::encode::Refused;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// Whole and micro seconds: `6.789`. Digits behind the sixth are cut, as they are in timestamps.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let micros: String = fraction.chars().chain("000000".chars()).take(6).collect();
    whole.parse::<i64>().ok()?.checked_mul(SECOND)?.checked_add(micros.parse().ok()?)
}

/// `HH:MM`, `HH:MM:SS` or `HH:MM:SS.ffffff` in microseconds; `hours`: how many there may be.
fn clock(text: &str, hours: i64) -> Option<i64> {
    let mut parts = text.splitn(3, ':');
    let (hour, minute) = (seconds(parts.next()?)?, seconds(parts.next()?)?);
    let second = parts.next().map_or(Some(0), seconds)?;
    let is_whole = hour % SECOND == 0 && minute % SECOND == 0;
    let fits = hour / SECOND <= hours && minute < 60 * SECOND && second < 60 * SECOND;
    (is_whole && fits).then(|| hour.checked_mul(3_600)?.checked_add(minute * 60 + second))?
}

/// A time of day in microseconds.
pub(super) fn time(text: &str) -> Result<i64, Refused> {
    let micros = clock(text.trim(), 24).filter(|micros| *micros <= DAY);
    micros.ok_or_else(|| format!("{text:?} is not a time of day, such as 14:05:06.789"))
}

/// Microseconds, days and months.
type Interval = (i64, i32, i32);

/// An interval: `1 year 2 mons -3 days +04:05:06.789`, or `P1Y2M3DT4H5M6.789S`.
pub(super) fn interval(text: &str) -> Result<Interval, Refused> {
    let trimmed = text.trim();
    let read = match trimmed.strip_prefix('P') {
        Some(rest) => iso(rest),
        None => words(trimmed),
    };
    read.ok_or_else(|| format!("{text:?} is not an interval, such as 1 day 02:03:04 or P1DT2H3M4S"))
}

/// Adds `count` of a unit.
fn add(to: Interval, count: i64, unit: char) -> Option<Interval> {
    let (micros, days, months) = to;
    let small = i32::try_from(count).ok();
    Some(match unit {
        'Y' => (micros, days, months.checked_add(small?.checked_mul(12)?)?),
        'M' => (micros, days, months.checked_add(small?)?),
        'W' => (micros, days.checked_add(small?.checked_mul(7)?)?, months),
        'D' => (micros, days.checked_add(small?)?, months),
        'h' => (micros.checked_add(count.checked_mul(3_600 * SECOND)?)?, days, months),
        'm' => (micros.checked_add(count.checked_mul(60 * SECOND)?)?, days, months),
        _ => (micros.checked_add(count)?, days, months),
    })
}

/// A sign, and what is behind it.
fn signed(text: &str) -> (i64, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// What stands behind the `P`.
fn iso(text: &str) -> Option<Interval> {
    let (mut all, mut rest, mut in_day) = ((0, 0, 0), text, false);
    if text.is_empty() || text.ends_with('T') {
        return None;
    }
    while !rest.is_empty() {
        if let Some(behind) = rest.strip_prefix('T').filter(|_| !in_day) {
            (in_day, rest) = (true, behind);
            continue;
        }
        let (sign, digits) = signed(rest);
        let end = digits.find(|one: char| !one.is_ascii_digit() && one != '.')?;
        let (number, behind) = digits.split_at(end);
        let unit = behind.chars().next()?;
        all = match (in_day, unit) {
            (true, 'S') => add(all, sign * seconds(number)?, 's')?,
            (true, 'H' | 'M') => add(all, sign * number.parse::<i64>().ok()?, unit.to_ascii_lowercase())?,
            (false, 'Y' | 'M' | 'W' | 'D') => add(all, sign * number.parse::<i64>().ok()?, unit)?,
            _ => return None,
        };
        rest = &behind[1..];
    }
    Some(all)
}

/// As the server writes it.
fn words(text: &str) -> Option<Interval> {
    let (mut all, mut words) = ((0, 0, 0), text.split_ascii_whitespace().peekable());
    words.peek()?;
    while let Some(word) = words.next() {
        let (sign, digits) = signed(word);
        if digits.contains(':') {
            // More hours than a day has are no days.
            all = add(all, sign * clock(digits, i64::MAX / DAY)?, 's')?;
            continue;
        }
        let unit = match words.next()?.trim_end_matches('s') {
            "year" => 'Y',
            "mon" | "month" => 'M',
            "week" => 'W',
            "day" => 'D',
            "hour" => 'h',
            "minute" | "min" => 'm',
            "second" | "sec" => 's',
            _ => return None,
        };
        let count = if unit == 's' { seconds(digits)? } else { digits.parse().ok()? };
        all = add(all, sign * count, unit)?;
    }
    Some(all)
}

/// An address with its mask, as `inet_recv` and `cidr_recv` read it: family, bits, whether it is a network, and its bytes.
pub(super) fn inet(text: &str, cidr: bool) -> Result<Vec<u8>, Refused> {
    let wrong = || format!("{text:?} is not an address, such as 192.168.0.1, 10.0.0.0/8 or 2001:db8::1");
    let trimmed = text.trim();
    let (address, mask) = match trimmed.split_once('/') {
        Some((address, mask)) => (address, Some(mask.parse::<u8>().map_err(|_| wrong())?)),
        None => (trimmed, None),
    };
    let (family, bytes) = match address.parse::<IpAddr>().map_err(|_| wrong())? {
        IpAddr::V4(four) => (2, four.octets().to_vec()),
        IpAddr::V6(six) => (3, six.octets().to_vec()),
    };
    let (most, length) = if family == 2 { (32, 4) } else { (128, 16) };
    let bits = mask.unwrap_or(most);
    if bits > most {
        return Err(wrong());
    }
    let is_set = |bit: u8| bytes[usize::from(bit / 8)] >> (7 - bit % 8) & 1 == 1;
    if cidr && (bits..most).any(is_set) {
        return Err(format!("{text:?} is not a network: it has bits behind its mask"));
    }
    Ok([&[family, bits, u8::from(cidr), length], &bytes[..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_read_as_the_server_writes_them() {
        assert_eq!(time("14:05:06.789"), Ok((14 * 3_600 + 5 * 60 + 6) * SECOND + 789_000));
        assert_eq!(time("00:00"), Ok(0));
        assert_eq!(time("24:00:00"), Ok(DAY));
        assert_eq!(time("23:59:59.9999999"), Ok(DAY - 1), "cut, and not the next day");
        for wrong in ["", "24:00:01", "12", "12:60", "12:00:60", "1.5:00", "-1:00", "noon", "12:00:00Z"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn intervals_have_two_spellings() {
        let all = ((4 * 3_600 + 5 * 60 + 6) * SECOND + 789_000, 3, 14);
        for same in [
            "1 year 2 mons 3 days 04:05:06.789",
            "P1Y2M3DT4H5M6.789S",
            "1 year 2 months 3 day 4 hours 5 mins 6.789 secs",
        ] {
            assert_eq!(interval(same), Ok(all), "{same}");
        }
        assert_eq!(interval("-1 days +02:03:04"), Ok((7_384 * SECOND, -1, 0)));
        assert_eq!(interval("-00:00:00.5"), Ok((-SECOND / 2, 0, 0)));
        assert_eq!(interval("P-2W"), Ok((0, -14, 0)));
        assert_eq!(interval("100:00:00"), Ok((360_000 * SECOND, 0, 0)));
        for wrong in ["", "P", "PT", "P1", "P1H", "1 fortnight", "day", "1", "P1.5D", "99999999999 years"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_have_masks() {
        assert_eq!(inet("192.168.0.1", false), Ok(vec![2, 32, 0, 4, 192, 168, 0, 1]));
        assert_eq!(inet("10.0.0.0/8", true), Ok(vec![2, 8, 1, 4, 10, 0, 0, 0]));
        assert_eq!(inet("::1/64", false).map(|bytes| bytes[..4].to_vec()), Ok(vec![3, 64, 0, 16]));
        for (wrong, cidr) in
            [("10.0.0.1/8", true), ("10.0.0.0/33", false), ("10.0.0", false), ("host", false), ("", false)]
        {
            assert!(inet(wrong, cidr).is_err(), "{wrong}");
        }
    }
}

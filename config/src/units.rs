//! Durations and sizes are texts with units: `500ms`, `64MiB`. A bare number is an error that suggests the unit.

use std::time::Duration;

use crate::error::Problem;

const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// What people write instead, in lower case, and what they mean.
const MEANT: [(&str, &str); 24] = [
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("min", "m"),
    ("mins", "m"),
    ("minute", "m"),
    ("minutes", "m"),
    ("hr", "h"),
    ("hour", "h"),
    ("hours", "h"),
    ("day", "d"),
    ("days", "d"),
    ("millis", "ms"),
    ("k", "KiB"),
    ("ki", "KiB"),
    ("m", "MiB"),
    ("mi", "MiB"),
    ("mb", "MB"),
    ("kb", "kB"),
    ("gb", "GB"),
    ("g", "GiB"),
    ("gi", "GiB"),
    ("byte", "B"),
];

/// Reads a duration: `500ms`, `1s`, `10m`, `2h`, `1d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    quantity(text, &DURATIONS, "a duration", "s").map(Duration::from_millis).map_err(|problem| problem.what)
}

/// Reads a size in bytes: `512B`, `64MiB`, `10MB`. `kB`, `MB`, ... are powers of 1000, `KiB`, `MiB`, ... of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    quantity(text, &SIZES, "a size", "MiB").map_err(|problem| problem.what)
}

pub(crate) fn check_duration(text: &str) -> Result<Duration, Problem> {
    quantity(text, &DURATIONS, "a duration", "s").map(Duration::from_millis)
}

pub(crate) fn check_size(text: &str) -> Result<u64, Problem> {
    quantity(text, &SIZES, "a size", "MiB")
}

/// Reads a number of records or a part of them: `100`, `5%`, `0.5%`.
pub(crate) fn check_share(text: &str) -> Result<crate::MaxRejected, Problem> {
    let wrong = || Problem::new(format!("`{text}` is neither a number of records nor a percentage"));
    let help = "write a whole number like `100`, or a percentage from `0%` to `100%` like `5%`";
    let Some(percent) = text.strip_suffix('%') else {
        return whole(text).map(crate::MaxRejected::Records).ok_or_else(|| wrong().help(help));
    };
    let percent = percent.trim_end();
    let is_plain =
        percent.starts_with(|c: char| c.is_ascii_digit()) && percent.chars().all(|c| c.is_ascii_digit() || c == '.');
    let value = percent.parse::<f64>().ok().filter(|value| is_plain && (0.0..=100.0).contains(value));
    value.map(crate::MaxRejected::Percent).ok_or_else(|| wrong().help(help))
}

/// Reads a whole number, with `_` between digits.
pub(crate) fn whole(text: &str) -> Option<u64> {
    let tidy = text.starts_with(|c: char| c.is_ascii_digit()) && !text.ends_with('_') && !text.contains("__");
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    (tidy && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

fn quantity(text: &str, units: &[(&str, u64)], noun: &str, usual: &str) -> Result<u64, Problem> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '_')).unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let known = || units.iter().map(|unit| unit.0);
    let list = known().map(|unit| format!("`{unit}`")).collect::<Vec<_>>().join(", ");
    let Some(amount) = whole(number) else {
        return Err(Problem::new(format!("`{text}` is not {noun}"))
            .help(format!("write a whole number and its unit, like `10{usual}`; units are {list}")));
    };
    if unit.is_empty() {
        let wrong = Problem::new(format!("`{text}` has no unit"));
        return Err(wrong.help(format!("write {noun} with its unit, like `{number}{usual}`; units are {list}")));
    }
    if let Some((_, factor)) = units.iter().find(|known| known.0 == unit) {
        return amount.checked_mul(*factor).ok_or_else(|| Problem::new(format!("`{text}` is too large for {noun}")));
    }
    if let Some(sum) = sum(text, units) {
        let wrong = Problem::new(format!("`{text}` is not one whole number with one unit"));
        return Err(wrong.help(format!("did you mean `{}`?", show(sum, units))));
    }
    let wrong = Problem::new(format!("`{text}` is not {noun}: there is no unit `{unit}`"));
    let folded = unit.to_lowercase();
    let exact = known().find(|unit| unit.to_lowercase() == folded);
    let meant = || MEANT.iter().find(|m| m.0 == folded && units.iter().any(|unit| unit.0 == m.1)).map(|m| m.1);
    Err(match exact.or_else(meant) {
        Some(unit) => wrong.help(format!("did you mean `{number}{unit}`?")),
        None => wrong.help(format!("write one whole number and one unit; units are {list}")),
    })
}

/// What `1.5s` or `1h30m` would be: numbers and their units, put together; `None` where it is no such thing, or no whole
/// number of the smallest unit.
fn sum(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (mut total, mut rest) = (0.0_f64, text.trim());
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?);
        let after = after.trim_start();
        let (unit, next) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let factor = units.iter().find(|known| known.0 == unit.trim())?.1;
        total += number.parse::<f64>().ok()? * factor as f64;
        rest = next;
    }
    const EXACT: f64 = (1_u64 << 53) as f64;
    (total > 0.0 && total < EXACT && total.fract() == 0.0).then_some(total as u64)
}

/// In the largest unit that it is a whole number of.
fn show(amount: u64, units: &[(&str, u64)]) -> String {
    let fits = units.iter().filter(|unit| amount >= unit.1 && amount.is_multiple_of(unit.1));
    let (unit, factor) = fits.max_by_key(|unit| unit.1).unwrap_or(&units[0]);
    format!("{}{unit}", amount / factor)
}

/// `90000` is `90s`.
pub(crate) fn show_duration(ms: u64) -> String {
    show(ms, &DURATIONS)
}

/// For serde: a field that holds a duration's text.
pub(crate) fn de_duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(from)?;
    duration(&text).map_err(serde::de::Error::custom)
}

/// For serde: a field that may hold a duration's text.
pub(crate) fn de_optional_duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = <Option<String> as serde::Deserialize>::deserialize(from)?;
    text.map(|text| duration(&text).map_err(serde::de::Error::custom)).transpose()
}

/// For serde: a field that holds a size's text.
pub(crate) fn de_size<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(from)?;
    size(&text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("1s", 1_000), ("10m", 600_000), ("2h", 7_200_000), ("1d", 86_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("1_000 ms"), Ok(Duration::from_secs(1)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0B", 0),
            ("64MiB", 64 << 20),
            ("10MB", 10_000_000),
            ("512KiB", 512 << 10),
            ("1_024 B", 1024),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_ones_say_what_is_meant() {
        for (text, what, help) in [
            ("10", "`10` has no unit", "write a duration with its unit, like `10s`"),
            ("1.5s", "`1.5s` is not one whole number with one unit", "did you mean `1500ms`?"),
            ("0.0001s", "no unit `.0001s`", "write one whole number and one unit"),
            ("-1s", "not a duration", "write a whole number"),
            ("5 minutes", "no unit `minutes`", "did you mean `5m`?"),
            ("1S", "no unit `S`", "did you mean `1s`?"),
            ("1h30m", "not one whole number with one unit", "did you mean `90m`?"),
            ("", "not a duration", "whole number"),
            ("99999999999999999999s", "not a duration", "whole number"),
            ("999999999999999999d", "too large", ""),
        ] {
            let problem = check_duration(text).unwrap_err();
            assert!(problem.what.contains(what), "{text}: {problem:?}");
            assert!(problem.help.concat().contains(help), "{text}: {problem:?}");
        }
        for (text, help) in
            [("64M", "`64MiB`"), ("64mb", "`64MB`"), ("64", "`64MiB`"), ("1kib", "`1KiB`"), ("1.5GiB", "`1536MiB`")]
        {
            assert!(check_size(text).unwrap_err().help.concat().contains(help), "{text}");
        }
    }

    #[test]
    fn whole_numbers() {
        assert_eq!(whole("1_000_000"), Some(1_000_000));
        for wrong in ["", "_1", "1_", "1__0", "-1", "1e6", "0x10", "1.0", "99999999999999999999"] {
            assert_eq!(whole(wrong), None, "{wrong}");
        }
    }
}

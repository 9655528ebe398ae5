//! Exact numbers as `numeric_recv` takes them: digits to the base of 10,000, the first one's weight, a sign, and how many
//! decimal digits stand after the point.

use super::encode::Refused;

const BASE: u128 = 10_000;
const NEGATIVE: u16 = 0x4000;
/// More digits of this base than 128 bits have, on each side of the point.
const MOST: usize = 12;

/// Appends `value / 10^scale`.
pub(super) fn write(value: i128, scale: i8, out: &mut Vec<u8>) -> Result<(), Refused> {
    let unit = 10_u128.checked_pow(scale.unsigned_abs().into());
    let (whole, part) = match (unit, scale) {
        (Some(unit), 0..) => (value.unsigned_abs() / unit, value.unsigned_abs() % unit),
        (Some(unit), _) => (value.unsigned_abs().checked_mul(unit).ok_or_else(too_big)?, 0),
        (None, _) => return Err(too_big()),
    };
    let (mut digits, mut count) = ([0_u16; 2 * MOST], 0);
    let mut weight = -1_i16;
    let mut push = |digit: u128| {
        // A digit to the base of 10,000.
        digits[count] = digit as u16;
        count += 1;
    };
    let mut unit = 1_u128;
    while whole / unit >= BASE {
        unit *= BASE;
    }
    if whole > 0 {
        let mut rest = whole;
        loop {
            push(rest / unit);
            weight += 1;
            rest %= unit;
            if unit == 1 {
                break;
            }
            unit /= BASE;
        }
    }
    let (mut left, mut rest) = (u32::from(scale.max(0).unsigned_abs()), part);
    while left > 0 {
        let unit = 10_u128.pow(left.saturating_sub(4));
        push(rest / unit * 10_u128.pow(4_u32.saturating_sub(left)));
        rest %= unit;
        left = left.saturating_sub(4);
    }
    let sign = if value < 0 { NEGATIVE } else { 0 };
    out.extend_from_slice(&(count as u16).to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&u16::from(scale.max(0).unsigned_abs()).to_be_bytes());
    digits[..count].iter().for_each(|digit| out.extend_from_slice(&digit.to_be_bytes()));
    Ok(())
}

fn too_big() -> Refused {
    "a number of more digits than fit".into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Reads what was written, by long multiplication of texts.
    fn read(bytes: &[u8]) -> String {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (count, weight, sign, scale) = (word(0), word(2) as i16, word(4), word(6));
        let digit = |at: i16| {
            let index = weight - at;
            if (0..count as i16).contains(&index) { word(8 + 2 * index as usize) } else { 0 }
        };
        let whole: String = (0..=weight.max(0)).rev().map(|at| format!("{:04}", digit(at))).collect();
        let part: String =
            (1..=i16::try_from(scale.div_ceil(4)).unwrap()).map(|at| format!("{:04}", digit(-at))).collect();
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        let sign = if sign == NEGATIVE { "-" } else { "" };
        if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{}", &part[..scale.into()]) }
    }

    #[test]
    fn numbers_are_exact() {
        for (value, scale, text) in [
            (0, 0, "0"),
            (0, 2, "0.00"),
            (-105, 2, "-1.05"),
            (10_000, 0, "10000"),
            (99_999_999, 0, "99999999"),
            (1, 5, "0.00001"),
            (100_000_001, 4, "10000.0001"),
            (12, -3, "12000"),
            (i128::MAX, 0, "170141183460469231731687303715884105727"),
            (i128::MIN, 0, "-170141183460469231731687303715884105728"),
            (99_999_999_999_999_999_999_999_999_999_999_999_999, 38, "0.99999999999999999999999999999999999999"),
            (-99_999_999_999_999_999_999_999_999_999_999_999_999, 19, "-9999999999999999999.9999999999999999999"),
        ] {
            let mut out = Vec::new();
            write(value, scale, &mut out).unwrap();
            assert_eq!(read(&out), text);
        }
        assert!(write(i128::MAX, -3, &mut Vec::new()).is_err());
    }
}

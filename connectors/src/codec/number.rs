//! Exact numbers out of text.

/// Digits that an `i128` can hold.
const MAX_DIGITS: i64 = 38;

/// The value of a decimal number (`-12.50`, `1e3`) in units of `10^-scale`; `None` where the text is no number, where the
/// value is no whole number of units, or where it does not fit.
pub(super) fn exact(text: &[u8], scale: i64) -> Option<i128> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    let (mantissa, exponent) = match digits.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => {
            (&digits[..at], lexical_core::parse::<i64>(&digits[at + 1..]).ok()?.clamp(-1_000_000_000, 1_000_000_000))
        }
        None => (digits, 0),
    };
    // Zeros at the end count only once another digit follows, so that `1.000…0` is as good as `1`.
    let (mut value, mut zeros, mut fraction, mut any, mut point) = (0_i128, 0_i64, 0_i64, false, false);
    for byte in mantissa {
        match byte {
            b'0'..=b'9' => {
                any = true;
                fraction += i64::from(point);
                if *byte == b'0' {
                    zeros += i64::from(value != 0);
                    continue;
                }
                value = value.checked_mul(power(zeros + 1)?)?.checked_add(i128::from(byte - b'0'))?;
                zeros = 0;
            }
            b'.' if !point => point = true,
            _ => return None,
        }
    }
    if !any {
        return None;
    }
    let shift = zeros + exponent + scale - fraction;
    let value = match (value, shift) {
        (0, _) => 0,
        (_, 0..) => value.checked_mul(power(shift)?)?,
        _ => {
            let unit = power(-shift)?;
            if value % unit != 0 {
                return None;
            }
            value / unit
        }
    };
    Some(if negative { -value } else { value })
}

/// `10^n`, where it fits.
pub(super) fn power(n: i64) -> Option<i128> {
    if (0..=MAX_DIGITS).contains(&n) { 10_i128.checked_pow(n as u32) } else { None }
}

/// Whether text without quotes may stand for an integer column: no sign but a minus, no leading zero (an id, a post
/// code), and not `-0`.
pub(super) fn looks_like_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    !digits.is_empty()
        && digits.iter().all(u8::is_ascii_digit)
        && (digits[0] != b'0' || text == b"0")
        && lexical_core::parse::<i64>(text).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact_or_refused() {
        let cases: &[(&str, i64, Option<i128>)] = &[
            ("0", 0, Some(0)),
            ("-0.0", 2, Some(0)),
            ("12.5", 2, Some(1250)),
            ("12.50000000000000000000000000000000000000000000000", 2, Some(1250)),
            ("12.505", 2, None),
            ("1e3", 0, Some(1000)),
            ("1.5E1", 0, Some(15)),
            ("1200e-2", 0, Some(12)),
            ("1e-1", 0, None),
            ("0e999999999999", 0, Some(0)),
            ("1e999", 0, None),
            ("99999999999999999999999999999999999999", 0, Some(99_999_999_999_999_999_999_999_999_999_999_999_999)),
            ("999999999999999999999999999999999999999999", 0, None),
            ("1200", -2, Some(12)),
            ("+7", 0, Some(7)),
            (".5", 1, Some(5)),
            ("", 0, None),
            (".", 0, None),
            ("-", 0, None),
            ("1.2.3", 0, None),
            ("12x", 0, None),
        ];
        for (text, scale, expected) in cases {
            assert_eq!(exact(text.as_bytes(), *scale), *expected, "{text} with scale {scale}");
        }
    }
}

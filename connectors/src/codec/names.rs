//! Types by the names that jobs use, and bytes as text.

use arrow::datatypes::DataType;

/// The name of a type as a job would write it, for messages and pinned schemas; Arrow's own, in lower case, where a job has
/// none for it.
pub fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".into(),
        DataType::Int32 => "int32".into(),
        DataType::Int64 => "int64".into(),
        DataType::Float64 => "float64".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Timestamp(..) => "timestamp".into(),
        DataType::Date32 => "date".into(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary".into(),
        DataType::List(item) => format!("list<{}>", type_name(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|field| format!("{}: {}", field.name(), type_name(field.data_type()))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        other => other.to_string().to_lowercase(),
    }
}

/// Bytes as base64 (RFC 4648, with padding): how a record that is no UTF-8 appears among the dead letters.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let digit = ALPHABET[(group >> (18 - 6 * index) & 63) as usize];
            out.push(if index <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// Appends the bytes that base64 stands for, with or without padding; false where the text is none (then something may
/// have been appended).
pub(super) fn decode_base64(text: &[u8], out: &mut Vec<u8>) -> bool {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    if digits.len() % 4 == 1 || (digits.len() < text.len() && !text.len().is_multiple_of(4)) {
        return false;
    }
    for chunk in digits.chunks(4) {
        let mut group = 0_u32;
        for (index, digit) in chunk.iter().enumerate() {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return false,
            };
            group |= u32::from(value) << (26 - 6 * index);
        }
        let bytes = chunk.len() * 6 / 8;
        // Bits past the last byte must be zero: else two texts would stand for the same bytes.
        if chunk.len() < 4 && group << (8 * bytes) != 0 {
            return false;
        }
        out.extend_from_slice(&group.to_be_bytes()[..bytes]);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_back_strictly() {
        for bytes in [&b""[..], b"f", b"fo", b"foo", b"foob", b"\xff\x00\xfe\x80"] {
            let (coded, mut decoded) = (base64(bytes), Vec::new());
            assert!(decode_base64(coded.as_bytes(), &mut decoded));
            assert_eq!(decoded, bytes);
            assert!(decode_base64(coded.trim_end_matches('=').as_bytes(), &mut decoded));
        }
        for wrong in ["Z", "Zh==", "Zm9=v", "Zm9v=", "Zm9v!", "Zg=", "Zm8g=="] {
            assert!(!decode_base64(wrong.as_bytes(), &mut Vec::new()), "{wrong}");
        }
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xff, 0xfe]), "//4=");
    }
}

//! Every byte of a file is in a record, in the reject of what could not be cut, in a header that parses, or is nothing: a
//! mark, a line end, a blank line, what an option leaves out. Over dialects, encodings and damages at random.

use encoding_rs::Encoding;
use proptest::prelude::*;

use super::*;

/// What is done to a file after it was written.
#[derive(Clone, Debug)]
enum Damage {
    None,
    Cut(prop::sample::Index),
    Replace(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index),
}

impl Damage {
    fn to(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::None => {}
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Replace(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(at) => drop(bytes.remove(at.index(bytes.len()))),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    use prop::sample::Index;
    prop_oneof![
        2 => Just(Damage::None),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), prop::sample::select(&b"\"\n\r,;{}[]\\\0\xff\x81a"[..])).prop_map(|(at, byte)| Damage::Replace(at, byte)),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..4)).prop_map(|(at, more)| Damage::Insert(at, more)),
        1 => any::<Index>().prop_map(Damage::Remove),
    ]
}

const ENCODINGS: [&str; 9] =
    ["utf-8", "utf-16le", "utf-16be", "windows-1252", "shift_jis", "big5", "gb18030", "euc-kr", "euc-jp"];

/// A file as an encoder of its own writes it: encoding_rs writes no UTF-16.
fn encoded(text: &str, label: &str, has_mark: bool) -> Vec<u8> {
    let text = if has_mark { format!("\u{feff}{text}") } else { text.to_owned() };
    match label {
        "utf-16le" => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        "utf-16be" => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        _ => Encoding::for_label(label.as_bytes()).unwrap().encode(&text).0.into_owned(),
    }
}

fn csv() -> impl Strategy<Value = model::Csv> {
    let delimiter = prop::sample::select(vec![",", ";", "\t", "|", "||", "~|", "\\"]);
    let quote = prop::sample::select(vec![Some(b'"'), Some(b'"'), Some(b'\''), None]);
    let escape = prop::sample::select(vec![None, None, Some(b'\\')]);
    let reading = (0..3_u64, prop::sample::select(vec![None, None, Some("#".to_owned())]), any::<bool>());
    (delimiter, quote, escape, any::<bool>(), reading, prop::sample::select(&ENCODINGS[..])).prop_map(
        |(delimiter, quote, escape, header, (skip, comment, multiline), encoding)| {
            // As `validate` has it.
            let escape = escape.filter(|escape| quote.is_some() && !delimiter.as_bytes().contains(escape));
            let (delimiter, encoding) = (delimiter.to_owned(), encoding.to_owned());
            model::Csv { delimiter, quote, escape, header, skip, comment, multiline, encoding, ..csv_options() }
        },
    )
}

fn pieces() -> impl Strategy<Value = Vec<&'static str>> {
    let piece = prop::sample::select(vec![
        "D", "D", "Q", "Q", "QQ", "\n", "\n", "\r\n", "\r", "a", "1", "\\", "#", "表", "能", "é", " ", "sep=;", "DQ",
        "QD",
    ]);
    prop::collection::vec(piece, 0..40)
}

/// The lines of what no record holds, whatever ends them.
fn lines(text: &str) -> Vec<String> {
    text.replace("\r\n", "\n").replace('\r', "\n").split('\n').map(str::to_owned).collect()
}

/// Checks a file; `is_nothing` judges the text between what is accounted for: whether it is at the beginning, and the text.
fn account(config: &model::Codec, label: &str, file: &[u8], is_nothing: impl Fn(bool, &str) -> bool) {
    let mut records = Vec::new();
    let framed = framer(config).frame(0, file, true, usize::MAX, &mut records);
    let header = framed.head(file);
    let mut parts: Vec<(usize, usize)> = framed.header.iter().map(|range| (range.start, range.end)).collect();
    parts.extend(records.iter().map(|(start, end)| (*start as usize, *end as usize)));
    match &framed.error {
        Some(error) => parts.push((error.start, file.len())),
        None => assert_eq!(framed.consumed, file.len(), "a file is consumed to its end"),
    }
    let encoding =
        Encoding::for_bom(file).map_or_else(|| Encoding::for_label(label.as_bytes()).unwrap(), |(found, _)| found);
    let mark = Encoding::for_bom(file).map_or(0, |(_, mark)| mark);
    let mut at = 0;
    for (start, end) in parts.into_iter().chain([(file.len(), file.len())]) {
        assert!(start >= at && end >= start && end <= file.len(), "no byte is there twice: {start}..{end} after {at}");
        // The mark may be a part of the head, or be left out.
        let is_beginning = at <= mark;
        let between = &file[if is_beginning { at.max(mark.min(start)) } else { at }..start];
        let text = encoding.decode_without_bom_handling(between).0;
        assert!(
            is_nothing(is_beginning, &text),
            "{text:?} at {at} is nowhere in {file:?}: {records:?} {:?}",
            framed.error
        );
        at = end;
    }
    // And each record is a row or a reject.
    let slice = slice(file, records, header);
    let schema = codec(config).infer(std::slice::from_ref(&slice)).unwrap();
    check(&codec(config).decoder(&with_extra(&schema), &schema).decode(&slice), &slice);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn of_csv(options in csv(), pieces in pieces(), has_mark: bool, written in prop::sample::select(&ENCODINGS[..]), is_as_said in 0..4, damage in damage()) {
        let quote = options.quote.map_or_else(|| "\"".to_owned(), |quote| char::from(quote).to_string());
        let text = pieces.concat().replace('D', &options.delimiter).replace('Q', &quote);
        let written = if is_as_said > 0 { options.encoding.as_str() } else { written };
        let mut file = encoded(&text, written, has_mark && written.starts_with("utf"));
        damage.to(&mut file);
        let (skip, comment) = (options.skip as usize, options.comment.clone());
        let encoding = options.encoding.clone();
        let is_nothing = |is_beginning: bool, text: &str| {
            let left = if is_beginning { skip } else { 0 };
            lines(text).iter().skip(left).all(|line| line.is_empty() || comment.as_ref().is_some_and(|comment| line.starts_with(comment)))
        };
        account(&model::Codec::Csv(options), &encoding, &file, is_nothing);
    }

    #[test]
    fn of_json_and_text(
        pieces in prop::collection::vec(prop::sample::select(vec!["{", "}", "[", "]", "\"", "\"a\":", "1", ",", "\n", "\r\n", " ", "\\", "\0", "表", "{\"a\":1}", "{\"a\":\"x}\n", "{\n"]), 0..40),
        label in prop::sample::select(&ENCODINGS[..]),
        has_mark: bool,
        damage in damage(),
    ) {
        let mut file = encoded(&pieces.concat(), label, has_mark && label.starts_with("utf"));
        damage.to(&mut file);
        let json = model::Codec::JsonWith(model::Json { encoding: label.into(), confluent: false });
        account(&json, label, &file, |_, text| text.chars().all(|c| c.is_ascii_whitespace() || "[],\0".contains(c)));
        account(&model::Codec::TextIn(label.into()), label, &file, |_, text| text.chars().all(|c| "\r\n\0".contains(c)));
    }
}

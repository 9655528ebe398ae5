//! What `_extra` keeps of fields inside of columns, put back: two JSON texts made into one.
//!
//! A record may have a field inside of an object that its pinned column lacks. `_extra` then holds that whole column as it
//! was written, under its own name inside of `_extra`: `{"_extra":{"payload":{...}}}`.

use std::ops::Range;

use super::cursor::{Cursor, Fault, unescape};
use crate::codec::values::quoted;

/// A member of an object: its name, its key as it is written, its value.
struct Member {
    name: Vec<u8>,
    key: Range<usize>,
    value: Range<usize>,
}

/// The value of a member of an object; `None` where there is none, or the text is no object.
pub(super) fn member<'t>(text: &'t [u8], name: &str) -> Option<&'t [u8]> {
    let found = members(text).ok()?.into_iter().rfind(|member| member.name == name.as_bytes())?;
    Some(&text[found.value])
}

/// Appends `ours` with the fields that only `theirs` has. Where both have a value, ours is the one: a step may have
/// changed it. Lists go element by element, unless a step has changed their length.
pub(super) fn merge(ours: &[u8], theirs: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    match (ours.first(), theirs.first()) {
        (Some(b'{'), Some(b'{')) => objects(ours, theirs, out),
        (Some(b'['), Some(b'[')) => {
            let (mine, others) = (elements(ours)?, elements(theirs)?);
            if mine.len() != others.len() {
                out.extend_from_slice(ours);
                return Ok(());
            }
            out.push(b'[');
            for (place, (one, other)) in mine.into_iter().zip(others).enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                merge(&ours[one], &theirs[other], out)?;
            }
            out.push(b']');
            Ok(())
        }
        _ => {
            out.extend_from_slice(ours);
            Ok(())
        }
    }
}

/// The text of an object with other names for the members of these names: `name_2`, or `name_3` and so on where that is
/// taken. `None`: it has none of them, or is no object.
pub(super) fn renamed(text: &[u8], names: &[String]) -> Option<Vec<u8>> {
    let all = members(text).ok()?;
    let is_named = |member: &Member| names.iter().any(|name| name.as_bytes() == member.name);
    if !all.iter().any(is_named) {
        return None;
    }
    let is_taken =
        |name: &str| all.iter().any(|member| member.name == name.as_bytes()) || names.iter().any(|other| other == name);
    let mut out = vec![b'{'];
    for (place, member) in all.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        if is_named(member) {
            let name = String::from_utf8_lossy(&member.name);
            let free = (2..).map(|n| format!("{name}_{n}")).find(|name| !is_taken(name)).unwrap_or_default();
            quoted(free.as_bytes(), &mut out);
        } else {
            out.extend_from_slice(&text[member.key.clone()]);
        }
        out.push(b':');
        out.extend_from_slice(&text[member.value.clone()]);
    }
    out.push(b'}');
    Some(out)
}

fn objects(ours: &[u8], theirs: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let (mine, others) = (members(ours)?, members(theirs)?);
    let mut before = b'{';
    for member in &mine {
        out.push(std::mem::replace(&mut before, b','));
        out.extend_from_slice(&ours[member.key.clone()]);
        out.push(b':');
        match others.iter().rfind(|other| other.name == member.name) {
            Some(other) => merge(&ours[member.value.clone()], &theirs[other.value.clone()], out)?,
            None => out.extend_from_slice(&ours[member.value.clone()]),
        }
    }
    for (at, member) in others.iter().enumerate() {
        let is_last = !others[at + 1..].iter().any(|later| later.name == member.name);
        if is_last && !mine.iter().any(|other| other.name == member.name) {
            out.push(std::mem::replace(&mut before, b','));
            out.extend_from_slice(&theirs[member.key.clone()]);
            out.push(b':');
            out.extend_from_slice(&theirs[member.value.clone()]);
        }
    }
    if before == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
    Ok(())
}

fn members(text: &[u8]) -> Result<Vec<Member>, Fault> {
    let mut cursor = Cursor::new(text);
    let mut found = Vec::new();
    cursor.space();
    if !cursor.take(b'{') {
        return cursor.fault("an object is expected");
    }
    cursor.space();
    while !cursor.take(b'}') {
        let start = cursor.at;
        if !cursor.take(b'"') {
            return cursor.fault("a key in quotes is expected");
        }
        let inner = cursor.string()?.range;
        let key = start..cursor.at;
        let mut name = Vec::new();
        unescape(&text[inner], &mut name);
        cursor.colon()?;
        found.push(Member { name, key, value: cursor.skip()? });
        separator(&mut cursor, b'}')?;
    }
    Ok(found)
}

fn elements(text: &[u8]) -> Result<Vec<Range<usize>>, Fault> {
    let mut cursor = Cursor::new(text);
    let mut found = Vec::new();
    cursor.at += 1;
    cursor.space();
    while !cursor.take(b']') {
        found.push(cursor.skip()?);
        separator(&mut cursor, b']')?;
    }
    Ok(found)
}

/// A comma, or what closes the value, which is left to be taken.
fn separator(cursor: &mut Cursor<'_>, close: u8) -> Result<(), Fault> {
    cursor.space();
    if cursor.take(b',') {
        cursor.space();
    } else if cursor.peek() != close {
        return cursor.fault("a comma or the end is expected");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_get_others() {
        let names = ["_key".to_owned(), "_file".to_owned()];
        let renamed = |text: &str| renamed(text.as_bytes(), &names).map(|text| String::from_utf8(text).unwrap());
        assert_eq!(renamed(r#"{"a":{"_key":1},"_extra":{"_file":2}}"#), None);
        assert_eq!(renamed("[1]"), None);
        assert_eq!(renamed(r#"{"_key":"x","b": [1]}"#).unwrap(), r#"{"_key_2":"x","b":[1]}"#);
        assert_eq!(
            renamed(r#"{"_key_2":1,"\u005fkey":{"y":1},"_file":null}"#).unwrap(),
            r#"{"_key_2":1,"_key_3":{"y":1},"_file_2":null}"#
        );
    }

    #[test]
    fn ours_win_and_what_only_they_have_is_kept() {
        let cases = [
            (r#"{"a":1,"b":null}"#, r#"{"c": [2], "a": 9, "c": 3}"#, r#"{"a":1,"b":null,"c":3}"#),
            (r#"{"a":{"b":1}}"#, r#"{"a":{"b":2,"c":"}"}}"#, r#"{"a":{"b":1,"c":"}"}}"#),
            (r#"[{"a":1},null]"#, r#"[ {"b":2} , {"b":3} ]"#, r#"[{"a":1,"b":2},null]"#),
            (r#"[{"a":1}]"#, r#"[{"b":2},{"b":3}]"#, r#"[{"a":1}]"#),
            ("[]", "[ ]", "[]"),
            ("[[]]", "[[]]", "[[]]"),
            ("{}", "{}", "{}"),
            ("null", r#"{"a":1}"#, "null"),
            (r#""x""#, "[1]", r#""x""#),
        ];
        for (ours, theirs, expected) in cases {
            let mut out = Vec::new();
            merge(ours.as_bytes(), theirs.as_bytes(), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{ours} and {theirs}");
        }
    }
}

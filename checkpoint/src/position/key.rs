//! Positions made of the values of columns: where a table, read in the order of a key, has been read to.
//!
//! A row lies at its key, `20150517T100503.000001:42`; the boundary just behind it is the same with `:+` at the end. A
//! number is its digits, a text begins with `'`. Compared as positions, keys have the order of their values.

use super::Position;

/// One value of a key. The order is that of positions: numbers, then texts (by their bytes), then instants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyPart {
    /// A number from 0.
    Number(u128),
    /// A text.
    Text(String),
    /// A point of a calendar.
    Instant {
        /// The digits of year, month, day, hour, minute and second: 20150517100503.
        second: u64,
        /// Microseconds, below a million.
        micro: u32,
    },
}

/// What a boundary behind a key ends in.
const BEHIND: &str = "+";

impl KeyPart {
    fn write(&self, out: &mut String) {
        match self {
            Self::Number(number) => out.push_str(&number.to_string()),
            Self::Instant { second, micro } => {
                let (day, time) = (second / 1_000_000, second % 1_000_000);
                out.push_str(&format!("{day:08}T{time:06}.{micro:06}"));
            }
            // A `:` would end the component. Its stand-in must lie between those of its neighbours, so `9` has one too.
            Self::Text(text) => {
                out.push('\'');
                for character in text.chars() {
                    match character {
                        '9' => out.push_str("9!"),
                        ':' => out.push_str("9~"),
                        other => out.push(other),
                    }
                }
            }
        }
    }

    fn read(component: &str) -> Option<Self> {
        if let Some(text) = component.strip_prefix('\'') {
            return Some(Self::Text(text.replace("9~", ":").replace("9!", "9")));
        }
        let Some((day, time)) = component.split_once('T') else { return component.parse().ok().map(Self::Number) };
        let (time, micro) = time.split_once('.')?;
        let second = day.parse::<u64>().ok()? * 1_000_000 + time.parse::<u64>().ok()?;
        Some(Self::Instant { second, micro: micro.parse().ok()? })
    }
}

impl Position {
    /// The position of a row with this key, which is before it.
    pub fn key(parts: &[KeyPart]) -> Self {
        let mut text = String::new();
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                text.push(':');
            }
            part.write(&mut text);
        }
        Self::text(&text)
    }

    /// The boundary behind every row with this key.
    pub fn behind_key(parts: &[KeyPart]) -> Self {
        Self::text(&format!("{}:{BEHIND}", Self::key(parts)))
    }

    /// The key of a position made by [`Position::key`] or [`Position::behind_key`], and whether it is the latter.
    pub fn as_key(&self) -> Option<(Vec<KeyPart>, bool)> {
        let mut components: Vec<&str> = self.as_str().split(':').collect();
        let behind = components.last() == Some(&BEHIND);
        if behind {
            components.pop();
        }
        let parts: Option<Vec<KeyPart>> = components.into_iter().map(KeyPart::read).collect();
        Some((parts.filter(|parts| !parts.is_empty())?, behind))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part() -> impl Strategy<Value = KeyPart> {
        let character =
            prop_oneof![Just(':'), Just('9'), Just('8'), Just(';'), Just('~'), Just('!'), Just('+'), any::<char>()];
        prop_oneof![
            (0..200_u128).prop_map(KeyPart::Number),
            any::<u128>().prop_map(KeyPart::Number),
            prop::collection::vec(character, 0..5).prop_map(|text| KeyPart::Text(text.into_iter().collect())),
            (0..100_000_000_000_000_u64, 0..1_000_000_u32)
                .prop_map(|(second, micro)| KeyPart::Instant { second, micro }),
        ]
    }

    fn keys() -> impl Strategy<Value = (Vec<KeyPart>, Vec<KeyPart>)> {
        let near = (part(), part(), part(), any::<bool>())
            .prop_map(|(a, b, c, same)| (vec![a.clone(), b], vec![if same { a } else { c.clone() }, c]));
        prop_oneof![near, (part(), part()).prop_map(|(a, b)| (vec![a], vec![b]))]
    }

    proptest! {
        #[test]
        fn keys_are_ordered_as_their_values_and_the_boundary_behind_lies_between((a, b) in keys()) {
            let (at, bt) = (Position::key(&a), Position::key(&b));
            prop_assert_eq!(at.cmp(&bt), a.cmp(&b), "{} {}", at, bt);
            let behind = Position::behind_key(&a);
            prop_assert!(at < behind);
            prop_assert_eq!(behind < bt, a < b, "{} {}", behind, bt);
            prop_assert_eq!(behind.cmp(&Position::behind_key(&b)), a.cmp(&b));
            // Where a lane starts that has read nothing.
            prop_assert!(Position::number(0) <= at);
        }

        #[test]
        fn a_key_is_read_back((a, _) in keys()) {
            prop_assert_eq!(Position::key(&a).as_key(), Some((a.clone(), false)));
            prop_assert_eq!(Position::behind_key(&a).as_key(), Some((a, true)));
        }
    }

    #[test]
    fn people_can_read_them() {
        let at = KeyPart::Instant { second: 20_150_517_100_503, micro: 1 };
        let key = [at, KeyPart::Number(42)];
        assert_eq!(Position::key(&key).as_str(), "20150517T100503.000001:42");
        assert_eq!(Position::behind_key(&key).as_str(), "20150517T100503.000001:42:+");
        assert_eq!(Position::key(&[KeyPart::Text("a:9".into())]).as_str(), "'a9~9!");
        assert_eq!(Position::text("what").as_key(), None);
    }
}

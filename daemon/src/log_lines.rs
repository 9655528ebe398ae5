//! Text logs: what a line may hold.
//!
//! Names of files, fields and hosts come from strangers, and go into messages. A control character in one would move a
//! terminal's cursor, and a line break would make a line that looks like one of Tidemill's own. So control characters
//! are written as escapes, and what follows a line break is indented: no line that begins with a time is forged.
//! (JSON logs escape by themselves.)

use std::fmt::{self, Write};

use tracing::field::Field;
use tracing_subscriber::{
    field::{MakeExt, RecordFields},
    fmt::{FormatFields, format},
};

/// What lines after the first begin with.
const CONTINUED: &str = "\n    ";

/// The fields of an event, safe to print.
pub fn fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    Fields
}

struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: format::Writer<'writer>, fields: R) -> fmt::Result {
        format::debug_fn(write_field).delimited(" ").format_fields(writer, fields)
    }
}

fn write_field(writer: &mut format::Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(Escaped(writer), "{value:?}"),
        name => {
            write!(writer, "{name}=")?;
            write!(Escaped(writer), "{value:?}")
        }
    }
}

/// Writes through, control characters as escapes.
struct Escaped<'a, W: fmt::Write>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(needs_escape) {
            self.0.write_str(&rest[..at])?;
            let Some(character) = rest[at..].chars().next() else { break };
            match character {
                '\n' => self.0.write_str(CONTINUED)?,
                other => write!(self.0, "{}", other.escape_default())?,
            }
            rest = &rest[at + character.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// Control characters, and those that change the direction of what follows or break a line.
fn needs_escape(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::{fmt, prelude::*};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(event: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = fmt::layer()
            .with_target(false)
            .with_ansi(false)
            .without_time()
            .fmt_fields(fields())
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), event);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_name_from_outside_makes_no_line_and_moves_no_cursor() {
        let name = "a\n2026-01-01T00:00:00Z  INFO all is well\u{0}\u{1b}[2J\r\u{9b}\u{202e}";
        let escaped = "a\n    2026-01-01T00:00:00Z  INFO all is well\\u{0}\\u{1b}[2J\\r\\u{9b}\\u{202e}";
        assert_eq!(logged(|| tracing::info!("file {name}: gone")), format!(" INFO file {escaped}: gone\n"));
        assert_eq!(logged(|| tracing::info!(file = %name, "gone")), format!(" INFO gone file={escaped}\n"));
        let quoted = logged(|| tracing::info!(file = name, "gone"));
        assert_eq!(quoted.matches('\n').count(), 1, "{quoted}");
        assert!(!quoted.contains(['\u{0}', '\u{1b}', '\r', '\u{9b}', '\u{202e}']), "{quoted:?}");
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(
            logged(|| tracing::warn!(job = "sales", n = 3, "Ünïcode ✓ {}", "x")),
            " WARN Ünïcode ✓ x job=\"sales\" n=3\n"
        );
    }
}

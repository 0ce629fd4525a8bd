//! One line of the log, and how it is written as text and as JSON. Pure.

use std::fmt::{self, Write as _};

use serde::ser::{SerializeMap as _, Serializer as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::stderr::LINE_BYTES_MAX;
use crate::time::WallTime;

/// Longest message in bytes; of a longer one the beginning is kept.
const MESSAGE_BYTES_MAX: usize = 2048;
/// The field that names a peer.
const PEER: &str = "peer";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How severe it is.
    pub level: Level,
    /// What happened, in a sentence.
    pub message: String,
    /// What it happened to; name and value.
    pub fields: Vec<(&'static str, String)>,
}

impl Record {
    /// Without fields.
    pub fn new(level: Level, message: &str) -> Record {
        let mut message = message.to_owned();
        shorten(&mut message, MESSAGE_BYTES_MAX);
        Record { level, message, fields: Vec::new() }
    }

    /// What an event says.
    pub fn of(event: &Event<'_>) -> Record {
        let mut record = Record::new(*event.metadata().level(), "");
        event.record(&mut record);
        shorten(&mut record.message, MESSAGE_BYTES_MAX);
        record
    }

    /// Stands for lines that found no room.
    pub fn lost(count: u64) -> Record {
        Record::new(Level::WARN, &format!("{count} log lines were lost: nobody read them"))
    }

    /// The peer it is about.
    pub fn peer(&self) -> Option<&str> {
        self.fields.iter().find(|(name, _)| *name == PEER).map(|(_, value)| value.as_str())
    }

    /// One line of text. The peer comes first, as that is what one looks for.
    pub fn text(&self, time: Option<WallTime>, colour: bool) -> String {
        let mut line = String::new();
        let [dim, level, plain] =
            if colour { ["\x1b[2m", level_colour(self.level), "\x1b[0m"] } else { [""; 3] };
        // Writing to a string does not fail.
        if let Some(time) = time {
            let _ = write!(line, "{dim}{time}{plain} ");
        }
        let _ = write!(line, "{level}{:>5}{plain} ", self.level.as_str());
        if let Some(peer) = self.peer() {
            let _ = write!(line, "peer {}: ", Printable(peer));
        }
        let _ = write!(line, "{}", Printable(&self.message));
        for (name, value) in self.fields.iter().filter(|(name, _)| *name != PEER) {
            let _ = write!(line, " {name}={}", Printable(value));
        }
        line + "\n"
    }

    /// One object: time, level, interface if it is known, message, fields. Never cut in the middle: a message that makes it too
    /// long for a pipe to take at once is shortened.
    pub fn json(&self, time: WallTime, interface: Option<&str>) -> String {
        let mut message = self.message.clone();
        loop {
            let line = self.object(time, interface, &message).unwrap_or_default() + "\n";
            if line.len() <= LINE_BYTES_MAX || message.is_empty() {
                return line;
            }
            let half = message.len() / 2;
            shorten(&mut message, half);
        }
    }

    fn object(&self, time: WallTime, interface: Option<&str>, message: &str) -> serde_json::Result<String> {
        let mut json = serde_json::Serializer::new(Vec::new());
        let mut object = json.serialize_map(None)?;
        object.serialize_entry("time", &time.to_string())?;
        object.serialize_entry("level", &self.level.as_str().to_ascii_lowercase())?;
        interface.map(|name| object.serialize_entry("interface", name)).transpose()?;
        object.serialize_entry("message", message)?;
        for (name, value) in &self.fields {
            object.serialize_entry(name, value)?;
        }
        object.end()?;
        Ok(String::from_utf8_lossy(&json.into_inner()).into_owned())
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            name => self.fields.push((name, value.to_owned())),
        }
    }
}

/// At most `bytes` of `text`, whole characters.
fn shorten(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

fn level_colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    }
}

/// Text that cannot end a line or steer a terminal.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character.is_control() {
                true => write!(out, "{}", character.escape_default())?,
                false => out.write_char(character)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: WallTime = WallTime::from_parts(1_700_000_000, 123_456_789);

    fn record() -> Record {
        let fields = vec![("reason", "none".to_owned()), (PEER, "KEY=".to_owned())];
        Record { fields, ..Record::new(Level::INFO, "hello") }
    }

    #[test]
    fn text_has_the_peer_in_front_and_other_fields_behind() {
        assert_eq!(record().text(None, false), " INFO peer KEY=: hello reason=none\n");
        let timed = record().text(Some(TIME), false);
        assert_eq!(timed, "2023-11-14T22:13:20.123456Z  INFO peer KEY=: hello reason=none\n");
        assert!(record().text(None, true).starts_with("\x1b[32m INFO\x1b[0m peer"));
    }

    #[test]
    fn nothing_in_a_message_ends_the_line_or_steers_a_terminal() {
        let record = Record::new(Level::WARN, "a\nb\x1b[31m\u{9b}c");
        assert_eq!(record.text(None, false), " WARN a\\nb\\u{1b}[31m\\u{9b}c\n");
        let json = record.json(TIME, None);
        assert_eq!(json.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
        assert_eq!(read["message"], "a\nb\x1b[31m\u{9b}c");
    }

    #[test]
    fn json_tells_time_level_interface_and_every_field() {
        assert_eq!(
            record().json(TIME, Some("wg0")),
            "{\"time\":\"2023-11-14T22:13:20.123456Z\",\"level\":\"info\",\"interface\":\"wg0\",\"message\":\"hello\",\
             \"reason\":\"none\",\"peer\":\"KEY=\"}\n"
        );
    }

    #[test]
    fn a_message_of_any_length_is_a_whole_line_of_json() {
        for long in ["x".repeat(1 << 20), "\u{1}".repeat(1 << 20), "ü\"".repeat(1 << 20)] {
            let json = Record::new(Level::ERROR, &long).json(TIME, Some("wg0"));
            assert!(json.len() <= LINE_BYTES_MAX && json.ends_with("\"}\n"), "{} bytes", json.len());
            let read: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
            assert!(read["message"].as_str().is_some_and(|message| long.starts_with(message)));
        }
    }
}

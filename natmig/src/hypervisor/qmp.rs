//! QEMU's monitor protocol, as far as migrations need it: JSON, one message a line, over a Unix
//! socket.
//!
//! Sources: <https://www.qemu.org/docs/master/interop/qmp-spec.html> and, for commands and events,
//! <https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html>.

mod monitor;

pub use monitor::Monitor;

use std::{io, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::Value;

/// How far a migration is, to whoever must act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationStatus {
    /// It is under way.
    Going,
    /// The guest runs at its destination while memory still follows.
    PostCopy,
    /// It succeeded.
    Completed,
    /// It failed or was cancelled: the guest is where it was.
    Ended,
}

impl MigrationStatus {
    /// What QEMU's word for it means; `None` for `none`.
    fn of(word: &str) -> Option<Self> {
        match word {
            "none" => None,
            "completed" => Some(Self::Completed),
            "failed" | "cancelled" => Some(Self::Ended),
            _ if word.starts_with("postcopy-") => Some(Self::PostCopy),
            // `cancelling` too: it can still complete.
            _ => Some(Self::Going),
        }
    }
}

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// QEMU waits for a guest.
    InMigrate,
    /// It runs.
    Running,
    /// It was sent elsewhere.
    PostMigrate,
    /// It does not run, for whatever other reason.
    Paused,
}

impl RunState {
    fn of(word: &str) -> Self {
        match word {
            "inmigrate" => Self::InMigrate,
            "running" => Self::Running,
            "postmigrate" => Self::PostMigrate,
            _ => Self::Paused,
        }
    }
}

/// What a QEMU process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether its guest runs.
    pub run: RunState,
    /// How far its last migration is, if there was one.
    pub migration: Option<MigrationStatus>,
    /// Whether QEMU counts what it sends, as only the source of a migration does.
    pub counted: bool,
}

/// What QEMU says of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest runs (again).
    Resume,
    /// The guest stopped running.
    Stop,
    /// A migration got further.
    Migration(MigrationStatus),
}

/// An event, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedEvent {
    /// The event.
    pub event: Event,
    /// Nanoseconds since the Unix epoch, by QEMU's clock; 0 if it did not say.
    pub at: u64,
}

/// A monitor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens.
    #[error(
        "{}: {error}; start QEMU with -qmp unix:{},server=on,wait=off",
        path.display(), path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why it cannot be connected to.
        error: io::Error,
    },
    /// QEMU is there but does not talk.
    #[error(
        "QEMU does not answer within {0:?}; a monitor serves one client at a time, so give QEMU \
         another -qmp for natmig alone"
    )]
    Silent(Duration),
    /// The connection ended.
    #[error("QEMU closed its monitor")]
    Closed,
    /// The connection broke.
    #[error("the monitor's connection broke: {0}")]
    Io(#[from] io::Error),
    /// This is no monitor.
    #[error("what answers does not speak QMP ({0}); is the socket another program's?")]
    Garbage(String),
    /// A command was refused.
    #[error("QEMU refused {command}: {problem}")]
    Refused {
        /// The command.
        command: String,
        /// What QEMU said.
        problem: String,
    },
}

/// A line from QEMU.
#[derive(Debug)]
enum Message {
    Greeting,
    Event(Option<TimedEvent>),
    Return { id: Option<u64>, value: Value },
    Error { id: Option<u64>, problem: String },
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    data: Option<Data>,
    timestamp: Option<EventTime>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    id: Option<u64>,
}

/// Fields of any event's data that matter; events with others have them left out.
#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    status: Value,
}

#[derive(Deserialize)]
struct EventTime {
    #[serde(default)]
    seconds: i64,
    #[serde(default)]
    microseconds: i64,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

impl EventTime {
    fn nanoseconds(&self) -> u64 {
        let of = |number: i64, unit: u64| u64::try_from(number).unwrap_or(0).saturating_mul(unit);
        of(self.seconds, 1_000_000_000).saturating_add(of(self.microseconds, 1000))
    }
}

impl Message {
    fn parse(line: &[u8]) -> Result<Self, QmpError> {
        let garbage = |why: &dyn std::fmt::Display| {
            let start: String = String::from_utf8_lossy(line).chars().take(60).collect();
            QmpError::Garbage(format!("{start:?}: {why}"))
        };
        let line: Line = serde_json::from_slice(line).map_err(|error| garbage(&error))?;
        if let Some(name) = &line.event {
            let at = line.timestamp.map_or(0, |time| time.nanoseconds());
            let status = line.data.as_ref().and_then(|data| data.status.as_str());
            let event = match name.as_str() {
                "RESUME" => Some(Event::Resume),
                "STOP" => Some(Event::Stop),
                "MIGRATION" => status.and_then(MigrationStatus::of).map(Event::Migration),
                _ => None,
            };
            return Ok(Self::Event(event.map(|event| TimedEvent { event, at })));
        }
        let id = line.id;
        match (line.value, line.error, line.greeting) {
            (Some(value), ..) => Ok(Self::Return { id, value }),
            (_, Some(refusal), _) => Ok(Self::Error {
                id,
                problem: refusal.desc,
            }),
            (.., Some(_)) => Ok(Self::Greeting),
            (None, None, None) => Err(garbage(&"neither greeting, answer nor event")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(line: &str) -> Option<TimedEvent> {
        let message = Message::parse(line.as_bytes()).unwrap();
        let Message::Event(event) = message else {
            panic!("{message:?}");
        };
        event
    }

    #[test]
    fn events_of_migrations_are_told_from_others() {
        let stop = r#"{"timestamp": {"seconds": 1700000000, "microseconds": 5}, "event": "STOP"}"#;
        assert_eq!(
            event(stop),
            Some(TimedEvent {
                event: Event::Stop,
                at: 1_700_000_000_000_005_000
            })
        );
        for (status, meaning) in [
            ("setup", Some(MigrationStatus::Going)),
            ("pre-switchover", Some(MigrationStatus::Going)),
            ("cancelling", Some(MigrationStatus::Going)),
            ("postcopy-active", Some(MigrationStatus::PostCopy)),
            ("completed", Some(MigrationStatus::Completed)),
            ("failed", Some(MigrationStatus::Ended)),
            ("cancelled", Some(MigrationStatus::Ended)),
            ("none", None),
        ] {
            let line = format!(r#"{{"event": "MIGRATION", "data": {{"status": "{status}"}}}}"#);
            let heard = event(&line).map(|event| event.event);
            assert_eq!(heard, meaning.map(Event::Migration), "{status}");
        }
        let other = r#"{"event": "JOB_STATUS_CHANGE", "data": {"status": {"a": 1}, "id": "x"}}"#;
        assert_eq!(event(other), None);
    }

    #[test]
    fn what_is_no_message_is_garbage() {
        for line in [
            "",
            "hello",
            "{}",
            "[]",
            "7",
            r#"{"event": 7}"#,
            r#"{"id": 1}"#,
        ] {
            let error = Message::parse(line.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("does not speak QMP"), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            drop(Message::parse(&line));
        }
    }
}

//! A connection to a monitor.

use std::{collections::VecDeque, path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{Message, MigrationStatus, QmpError, RunState, Status, TimedEvent};
use crate::rule::MacAddress;

/// Longest line that is taken from a monitor. QEMU's own limit is 64 MiB; no answer to what is
/// asked here has a thousandth of it.
const LINE_LIMIT: usize = 1 << 20;

/// QEMU answers at once, but on a busy machine, or one that is migrating, not within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where QEMU's object model keeps devices, with names and without.
const DEVICES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// A connection to a monitor, in command mode.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// Events that came while an answer was waited for.
    heard: VecDeque<TimedEvent>,
    last_id: u64,
}

impl Monitor {
    /// Connects, and has QEMU report how far migrations are.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|error| QmpError::Connect {
                path: path.to_owned(),
                error,
            })?;
        let (reader, writer) = stream.into_split();
        let mut monitor = Self {
            reader: BufReader::new(reader),
            writer,
            line: Vec::new(),
            heard: VecDeque::new(),
            last_id: 0,
        };
        let greeting = timeout(PATIENCE, monitor.message())
            .await
            .map_err(|_| QmpError::Silent(PATIENCE))??;
        if !matches!(greeting, Message::Greeting) {
            return Err(QmpError::Garbage(format!(
                "{greeting:?} instead of a greeting"
            )));
        }
        monitor.execute("qmp_capabilities", json!({})).await?;
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        match monitor.execute("migrate-set-capabilities", events).await {
            Ok(_) => {}
            // Not while a migration is under way: then whoever began it may have asked for events,
            // and if not, the state of the guest tells what it must.
            Err(QmpError::Refused { problem, .. }) => {
                tracing::warn!(problem, "QEMU will not report how far this migration is");
            }
            Err(error) => return Err(error),
        }
        Ok(monitor)
    }

    /// The next event. Nothing is lost when the future is dropped before it is ready.
    pub async fn event(&mut self) -> Result<TimedEvent, QmpError> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Ok(event);
            }
            if let Message::Event(Some(event)) = self.message().await? {
                return Ok(event);
            }
        }
    }

    /// What QEMU is doing.
    pub async fn status(&mut self) -> Result<Status, QmpError> {
        let run = self.execute("query-status", json!({})).await?;
        let migration = self.execute("query-migrate", json!({})).await?;
        let word = |value: &Value| value["status"].as_str().unwrap_or("none").to_owned();
        Ok(Status {
            run: RunState::of(&word(&run)),
            migration: MigrationStatus::of(&word(&migration)),
            counted: migration.get("ram").is_some(),
        })
    }

    /// The guest's name, if QEMU was given one (`-name`).
    pub async fn name(&mut self) -> Result<Option<String>, QmpError> {
        let name = self.execute("query-name", json!({})).await?;
        Ok(name["name"].as_str().map(str::to_owned))
    }

    /// MAC addresses of the guest's network devices.
    pub async fn macs(&mut self) -> Result<Vec<MacAddress>, QmpError> {
        let mut macs = Vec::new();
        for place in DEVICES {
            let devices = self.execute("qom-list", json!({ "path": place })).await?;
            for device in devices.as_array().into_iter().flatten() {
                let is_child = device["type"]
                    .as_str()
                    .is_some_and(|kind| kind.starts_with("child<"));
                let Some(name) = device["name"].as_str().filter(|_| is_child) else {
                    continue;
                };
                let path = format!("{place}/{name}");
                let ask = json!({ "path": path, "property": "mac" });
                match self.execute("qom-get", ask).await {
                    Ok(mac) => {
                        macs.extend(mac.as_str().and_then(|mac| mac.parse::<MacAddress>().ok()));
                    }
                    // Not a network device.
                    Err(QmpError::Refused { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(macs)
    }

    /// Executes a command and returns what it gives.
    async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.last_id += 1;
        let asked = self.last_id;
        let request = json!({ "execute": command, "arguments": arguments, "id": asked });
        self.writer
            .write_all(format!("{request}\n").as_bytes())
            .await?;
        timeout(PATIENCE, self.answer(command, asked))
            .await
            .map_err(|_| QmpError::Silent(PATIENCE))?
    }

    async fn answer(&mut self, command: &str, asked: u64) -> Result<Value, QmpError> {
        loop {
            match self.message().await? {
                Message::Return { id, value } if id == Some(asked) => return Ok(value),
                Message::Error { id, problem } if id == Some(asked) => {
                    let command = command.to_owned();
                    return Err(QmpError::Refused { command, problem });
                }
                Message::Event(event) => self.heard.extend(event),
                other @ (Message::Greeting | Message::Return { .. } | Message::Error { .. }) => {
                    return Err(QmpError::Garbage(format!("{other:?} was not asked for")));
                }
            }
        }
    }

    /// The next message. What has arrived of a line stays when the future is dropped.
    async fn message(&mut self) -> Result<Message, QmpError> {
        loop {
            let arrived = self.reader.fill_buf().await?;
            if arrived.is_empty() {
                return Err(QmpError::Closed);
            }
            let end = arrived.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(arrived.len(), |end| end + 1);
            self.line.extend_from_slice(&arrived[..taken]);
            self.reader.consume(taken);
            if self.line.len() > LINE_LIMIT {
                return Err(QmpError::Garbage("a line without an end".to_owned()));
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                if line.iter().any(|byte| !byte.is_ascii_whitespace()) {
                    return Message::parse(&line);
                }
            }
        }
    }
}

//! QEMU's monitor protocol, as the lab's orchestrator speaks it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// QEMU answers at once, but an emulated machine keeps it busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// An event that changed whether a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happened {
    /// The guest runs since then; else it does not.
    pub runs: bool,
    /// When, in nanoseconds since the epoch.
    pub at: u64,
}

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    happened: Vec<Happened>,
}

impl Monitor {
    /// Connects.
    pub fn connect(path: &Path) -> Result<Self> {
        let writer = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        writer.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self {
            reader: BufReader::new(writer.try_clone()?),
            writer,
            happened: Vec::new(),
        };
        monitor.read().context("QEMU's greeting")?;
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU ended");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Executes a command.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        writeln!(
            self.writer,
            "{}",
            json!({ "execute": command, "arguments": arguments })
        )
        .with_context(|| format!("QEMU's {command}"))?;
        loop {
            let mut message = self
                .read()
                .with_context(|| format!("QEMU's answer to {command}"))?;
            if let Some(event) = message["event"].as_str() {
                let time = &message["timestamp"];
                let number = |field: &str| time[field].as_u64().unwrap_or_default();
                let at = number("seconds") * 1_000_000_000 + number("microseconds") * 1000;
                match event {
                    "RESUME" => self.happened.push(Happened { runs: true, at }),
                    "STOP" => self.happened.push(Happened { runs: false, at }),
                    _ => {}
                }
            } else if let Some(refused) = message.get("error") {
                bail!("QEMU refused {command}: {refused}");
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// What was heard of the guest's running up to the last answer.
    pub fn happened(&self) -> &[Happened] {
        &self.happened
    }

    /// How far the last migration is, as `query-migrate` says.
    pub fn migration(&mut self) -> Result<Value> {
        self.ask("query-migrate", &json!({}))
    }
}

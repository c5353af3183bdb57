//! What happened in a run, in order, with times: on disk as it happens, so that it is there after a
//! crash too.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use crate::clock;

/// The log of a run.
#[derive(Debug)]
pub(super) struct Journal {
    began: u64,
    lines: Mutex<(File, Vec<Line>)>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// When, in nanoseconds since the epoch.
    pub(super) at: u64,
    /// What.
    pub(super) text: String,
}

impl Journal {
    /// Begins it in a file; times count from here.
    pub(super) fn begin(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            began: clock::now(),
            lines: Mutex::new((file, Vec::new())),
        })
    }

    /// Notes something, as of this moment.
    pub(super) fn note(&self, text: impl Into<String>) {
        let line = Line {
            at: clock::now(),
            text: text.into(),
        };
        let shown = self.show(&line);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writeln!(lines.0, "{shown}") {
            eprintln!("natmig-lab: the log of the run: {error}");
        }
        lines.1.push(line);
    }

    /// A line as people read it: seconds from the beginning first.
    pub(super) fn show(&self, line: &Line) -> String {
        format!("{} {}", self.time(line.at), line.text)
    }

    /// Seconds from the beginning.
    pub(super) fn time(&self, at: u64) -> String {
        let since = (i128::from(at) - i128::from(self.began)) as f64 / 1e9;
        format!("{since:9.3} s")
    }

    /// What happened in a time.
    pub(super) fn between(&self, from: u64, to: u64) -> Vec<Line> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = lines.1.iter();
        lines
            .filter(|line| (from..=to).contains(&line.at))
            .cloned()
            .collect()
    }
}

//! What a run has shown: tables for the terminal, one line for programs, pages with pictures.

mod drawing;
mod html;
mod tables;
mod timeline;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    account::{Account, Window, account},
    capture::Findings,
    topology::Topology,
    traffic::{Kind, Record},
};

pub use html::write;
pub use tables::{flows, migrations};

/// A VM's way in a migration.
#[derive(Clone, Debug)]
pub struct Move {
    /// The VM.
    pub vm: String,
    /// The segment that it left.
    pub from: String,
    /// The segment that it went to.
    pub to: String,
}

/// One migration, with what was observed of it; times are nanoseconds since the epoch.
#[derive(Clone, Debug)]
pub struct Step {
    /// natmig's number.
    pub id: u64,
    /// What it is an example of.
    pub title: String,
    /// Who moved.
    pub moves: Vec<Move>,
    /// When it was asked for.
    pub asked: u64,
    /// When all routers were seen to be prepared.
    pub prepared: u64,
    /// When the commit was asked for, which decides.
    pub decided: u64,
    /// Unplugged, plugged in and anchored, by VM.
    pub windows: Vec<Window>,
    /// When each router committed.
    pub commits: BTreeMap<String, u64>,
    /// When its fold was seen.
    pub folded: Option<u64>,
    /// When its old locators were seen to be retired.
    pub retired: Option<u64>,
}

impl Step {
    /// From the first to the last router's commit, in nanoseconds.
    pub fn spread(&self) -> u64 {
        let (first, last) = (self.commits.values().min(), self.commits.values().max());
        first.zip(last).map_or(0, |(first, last)| last - first)
    }

    /// Longest time that natmig added to a guest's own pause, in nanoseconds.
    pub fn natmig_gap(&self) -> u64 {
        self.windows
            .iter()
            .map(Window::natmig_gap)
            .max()
            .unwrap_or(0)
    }

    /// When the first VM was unplugged.
    pub fn unplug(&self) -> u64 {
        self.windows
            .iter()
            .map(|window| window.unplug)
            .min()
            .unwrap_or(self.decided)
    }

    /// When the last VM was plugged in again.
    pub fn replug(&self) -> u64 {
        self.windows
            .iter()
            .map(|window| window.replug)
            .max()
            .unwrap_or(self.decided)
    }

    /// "vm1 rack1 → rack2", for every VM.
    pub fn route(&self) -> String {
        let moves: Vec<_> = self
            .moves
            .iter()
            .map(|m| format!("{} {} → {}", m.vm, m.from, m.to))
            .collect();
        moves.join(", ")
    }
}

/// Text that belongs to the report.
#[derive(Clone, Debug)]
pub struct Listing {
    /// What it shows.
    pub title: String,
    /// As it was printed.
    pub text: String,
}

/// Everything observed in a run.
#[derive(Clone, Debug)]
pub struct Observations {
    /// The lab.
    pub topology: Topology,
    /// All flows.
    pub records: Vec<Record>,
    /// What the captures saw.
    pub findings: Findings,
    /// All migrations.
    pub steps: Vec<Step>,
    /// Dumps of tables.
    pub listings: Vec<Listing>,
}

/// The run in one line, for programs. The order of keys is fixed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Flows.
    pub flows: u64,
    /// Datagrams and echo requests sent.
    pub sent: u64,
    /// Of these, lost outside the windows that excuse it.
    pub lost: u64,
    /// Arrivals beyond the first of each.
    pub duplicated: u64,
    /// Arrivals at a wrong place, from a wrong address, or with wrong content.
    pub misdelivered: u64,
    /// Frames with a locator at an endpoint.
    pub leaked: u64,
    /// Longest time without an arrival in a datagram flow, in milliseconds.
    pub max_gap_ms: f64,
    /// Longest time from the first to the last router's commit of a migration, in microseconds.
    pub commit_spread_us: f64,
    /// Migrations.
    pub migrations: u64,
    /// Longest time that natmig added to a guest's own pause, in milliseconds.
    pub natmig_gap_ms: f64,
}

impl Observations {
    /// All windows in which packets need not arrive.
    pub fn windows(&self) -> Vec<Window> {
        self.steps
            .iter()
            .flat_map(|step| step.windows.clone())
            .collect()
    }

    /// What each flow is charged with.
    pub fn accounts(&self) -> Vec<Account> {
        let windows = self.windows();
        self.records
            .iter()
            .map(|record| account(&record.flow, &record.datagrams, &windows))
            .collect()
    }

    /// Arrivals at the wrong place, by flow: at sockets, and in captures of other endpoints.
    fn misdelivered(&self, id: u32) -> u64 {
        let captured = self
            .findings
            .misdelivered
            .iter()
            .filter(|(flow, _)| *flow == id)
            .count() as u64;
        self.records
            .get(id as usize)
            .map_or(0, |record| record.datagrams.misdelivered)
            + captured
    }

    /// The run in one line.
    pub fn summary(&self) -> Summary {
        let accounts = self.accounts();
        let milliseconds = |nanoseconds: u64| (nanoseconds as f64 / 1e3).round() / 1e3;
        Summary {
            flows: self.records.len() as u64,
            sent: accounts.iter().map(|account| account.sent).sum(),
            lost: accounts
                .iter()
                .map(|account| account.lost.len() as u64)
                .sum(),
            duplicated: self
                .records
                .iter()
                .map(|record| record.datagrams.duplicated)
                .sum(),
            misdelivered: self
                .records
                .iter()
                .map(|record| self.misdelivered(record.flow.id))
                .sum(),
            leaked: self.findings.leaked,
            max_gap_ms: milliseconds(
                self.records
                    .iter()
                    .map(|record| record.datagrams.longest_gap().0)
                    .max()
                    .unwrap_or(0),
            ),
            commit_spread_us: self.steps.iter().map(Step::spread).max().unwrap_or(0) as f64 / 1e3,
            migrations: self.steps.len() as u64,
            natmig_gap_ms: milliseconds(self.steps.iter().map(Step::natmig_gap).max().unwrap_or(0)),
        }
    }

    /// Why the run failed; nothing if every promise was kept.
    pub fn violations(&self) -> Vec<String> {
        let summary = self.summary();
        let mut violations = Vec::new();
        let mut count = |number: u64, what: &str| {
            if number > 0 {
                violations.push(format!("{number} {what}"));
            }
        };
        count(summary.leaked, "frames with a locator at an endpoint (I1)");
        count(summary.lost, "packets lost outside the windows (I2)");
        count(summary.misdelivered, "packets misdelivered (I3)");
        count(summary.duplicated, "packets duplicated (I4)");
        count(
            self.findings.missed,
            "frames that the captures missed, so nothing is known about them",
        );
        for record in &self.records {
            if let Some(why) = &record.broken {
                violations.push(format!("connection broken: {why}"));
            }
            let silent = matches!(record.flow.kind, Kind::Udp | Kind::Ping)
                && record.datagrams.sent.is_empty();
            if silent {
                violations.push(format!(
                    "{} {} → {} sent nothing",
                    record.flow.label(),
                    record.flow.from,
                    record.flow.to
                ));
            }
        }
        violations
    }
}

/// A time span for people: microseconds to seconds.
pub fn span(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000_000 => format!("{:.0} µs", value / 1e3),
        1_000_000..10_000_000 => format!("{:.1} ms", value / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

//! What a run has shown: every packet's fate, what was violated and what happened around it.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use serde::Serialize;

use super::{Counted, fault::Healing, journal::Journal};
use crate::{
    account::account,
    capture::Findings,
    report::span,
    traffic::{Kind, Record},
};

/// How much of the log is shown around lost packets, before and after, in nanoseconds.
const AROUND: [u64; 2] = [4_000_000_000, 1_000_000_000];

/// Losses that are shown with what happened around them.
const SHOWN: usize = 10;

/// Everything that was observed.
#[derive(Debug)]
pub struct Verdict {
    pub(super) records: Vec<Record>,
    pub(super) findings: Findings,
    pub(super) counted: Counted,
    pub(super) unconverged: Vec<String>,
    pub(super) journal: Journal,
}

/// A run in one line, for programs. The order of keys is fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Migrations that were asked for, whatever became of them.
    pub migrations: u64,
    /// Faults.
    pub faults: u64,
    /// Datagrams and echo requests sent.
    pub packets: u64,
    /// Of these, lost outside the windows that excuse it.
    pub lost: u64,
    /// Arrivals beyond the first of each.
    pub duplicated: u64,
    /// Arrivals at a wrong place, from a wrong address, or with wrong content.
    pub misdelivered: u64,
    /// Frames with a locator at an endpoint.
    pub leaked: u64,
    /// Routers, VMs and migrations that did not agree at the end.
    pub unconverged: u64,
}

/// What became of packets that did not arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Losses {
    /// While an end was unplugged, or its anchors had not committed.
    unplugged: u64,
    /// While the fabric healed.
    fabric: u64,
    /// When the others were sent.
    lost: Vec<u64>,
}

/// Whether a packet may be lost for a change of the fabric; `delay` is the flow's longest one.
fn is_healing(healings: &[Healing], sent: u64, delay: u64) -> bool {
    healings
        .iter()
        .any(|healing| sent + delay >= healing.from && sent <= healing.to)
}

impl Verdict {
    fn losses(&self, record: &Record) -> Losses {
        let account = account(&record.flow, &record.datagrams, &self.counted.windows);
        let delay = record.datagrams.longest_delay();
        let is_healing = |sent: &u64| is_healing(&self.counted.healings, *sent, delay);
        let (fabric, lost): (Vec<u64>, Vec<u64>) = account.lost.into_iter().partition(is_healing);
        Losses {
            unplugged: account.excused,
            fabric: fabric.len() as u64,
            lost,
        }
    }

    /// The run in one line.
    pub fn summary(&self) -> Summary {
        let sum = |of: fn(&Record) -> u64| self.records.iter().map(of).sum::<u64>();
        let lost = self
            .records
            .iter()
            .map(|record| self.losses(record).lost.len() as u64);
        Summary {
            migrations: self.counted.migrations.values().sum(),
            faults: self.counted.faults.values().sum(),
            packets: sum(|record| record.datagrams.sent.len() as u64),
            lost: lost.sum(),
            duplicated: sum(|record| record.datagrams.duplicated),
            misdelivered: sum(|record| record.datagrams.misdelivered)
                + self.findings.misdelivered.len() as u64,
            leaked: self.findings.leaked,
            unconverged: self.unconverged.len() as u64,
        }
    }

    /// Why the run failed; nothing if every promise was kept.
    pub fn violations(&self) -> Vec<String> {
        let Summary {
            migrations,
            faults: _,
            packets,
            lost,
            duplicated,
            misdelivered,
            leaked,
            unconverged: _,
        } = self.summary();
        let mut violations = Vec::new();
        for (number, what) in [
            (leaked, "frames with a locator at an endpoint (I1)"),
            (lost, "packets lost outside of all windows (I2)"),
            (misdelivered, "packets misdelivered (I3)"),
            (duplicated, "packets duplicated (I4)"),
            (
                self.findings.missed,
                "frames that the captures missed, so nothing is known about them",
            ),
        ] {
            if number > 0 {
                violations.push(format!("{number} {what}"));
            }
        }
        if migrations == 0 || packets == 0 {
            violations.push(format!(
                "{migrations} migrations, {packets} packets: no run"
            ));
        }
        violations.extend(
            self.unconverged
                .iter()
                .map(|it| format!("unconverged (I8): {it}")),
        );
        violations.extend(self.counted.problems.iter().cloned());
        for record in &self.records {
            let flow = &record.flow;
            let name = format!("{} {} → {}", flow.label(), flow.from, flow.to);
            if let Some(why) = &record.broken {
                violations.push(format!("connection broken: {name}: {why}"));
            }
            let is_counted = matches!(flow.kind, Kind::Udp | Kind::Ping);
            if is_counted && record.datagrams.sent.is_empty() {
                violations.push(format!("{name} sent nothing"));
            }
        }
        violations
    }

    /// The whole run for people.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let counts = |counts: Vec<(&str, u64)>| {
            let parts: Vec<String> = counts
                .into_iter()
                .map(|(what, number)| format!("  {number:>8}  {what}"))
                .collect();
            parts.join("\n")
        };
        let outcomes = self.counted.migrations.iter();
        let outcomes = outcomes.map(|(outcome, number)| (outcome.as_str(), *number));
        writeln!(
            text,
            "migrations by outcome:\n{}",
            counts(outcomes.collect())
        )?;
        let faults = self
            .counted
            .faults
            .iter()
            .map(|(kind, number)| (*kind, *number));
        writeln!(text, "faults by kind:\n{}", counts(faults.collect()))?;
        let mut gaps = self.counted.gaps.clone();
        gaps.sort_unstable();
        if let (Some(median), Some(longest)) = (gaps.get(gaps.len() / 2), gaps.last()) {
            writeln!(
                text,
                "added to the guests' own pauses: median {}, longest {}",
                span(*median),
                span(*longest)
            )?;
        }
        let losses: Vec<Losses> = self.records.iter().map(|it| self.losses(it)).collect();
        let sum = |of: fn(&Losses) -> u64| losses.iter().map(of).sum::<u64>();
        let delays = self.records.iter().map(|it| it.datagrams.longest_delay());
        let packets = vec![
            ("sent", self.summary().packets),
            (
                "not delivered while an end was unplugged",
                sum(|it| it.unplugged),
            ),
            ("not delivered while the fabric healed", sum(|it| it.fabric)),
            ("lost otherwise", sum(|it| it.lost.len() as u64)),
        ];
        writeln!(text, "packets:\n{}", counts(packets))?;
        writeln!(
            text,
            "longest delay of a packet: {}",
            span(delays.max().unwrap_or(0))
        )?;
        self.show_losses(&losses, &mut text)?;
        for leak in self.findings.leaks.iter().take(SHOWN) {
            writeln!(text, "leak at {}: {leak}", self.journal.time(leak.time))?;
        }
        let mut misdelivered: BTreeMap<(u32, &str), u64> = BTreeMap::new();
        for (flow, node) in &self.findings.misdelivered {
            *misdelivered.entry((*flow, node.as_str())).or_default() += 1;
        }
        for ((flow, node), number) in misdelivered {
            writeln!(text, "{number} packets of flow {flow} taken by {node}")?;
        }
        for record in &self.records {
            let flow = &record.flow;
            let (duplicated, wrong) = (record.datagrams.duplicated, record.datagrams.misdelivered);
            if duplicated + wrong > 0 {
                writeln!(
                    text,
                    "flow {} {} {} → {}: {duplicated} duplicated, {wrong} misdelivered",
                    flow.id,
                    flow.label(),
                    flow.from,
                    flow.to
                )?;
            }
        }
        Ok(text)
    }

    /// Lost packets by flow and time, each with what happened around it.
    fn show_losses(&self, losses: &[Losses], text: &mut String) -> fmt::Result {
        let mut bursts: Vec<(u64, u64, String)> = Vec::new();
        for (record, losses) in self.records.iter().zip(losses) {
            let flow = &record.flow;
            let mut rest = &losses.lost[..];
            while let Some(&first) = rest.first() {
                let count = rest
                    .windows(2)
                    .take_while(|pair| pair[1] - pair[0] < 1_000_000_000)
                    .count()
                    + 1;
                let (burst, others) = rest.split_at(count);
                let last = burst.last().copied().unwrap_or(first);
                bursts.push((
                    first,
                    last,
                    format!("{} {} → {}: {count} lost", flow.label(), flow.from, flow.to),
                ));
                rest = others;
            }
        }
        bursts.sort();
        let mut told = 0;
        for (first, last, what) in bursts.iter().take(SHOWN * 10) {
            let (from, to) = (self.journal.time(*first), self.journal.time(*last));
            writeln!(text, "LOST {what}, sent {from} to {to}")?;
        }
        for (first, last, _) in &bursts {
            if *first < told {
                continue;
            }
            told = last + AROUND[1];
            writeln!(text, "around {}:", self.journal.time(*first))?;
            for line in self.journal.between(first.saturating_sub(AROUND[0]), told) {
                writeln!(text, "  {}", self.journal.show(&line))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        account::Window,
        chaos::lane::Outcome,
        traffic::{Datagrams, tests::flow},
    };

    fn verdict(datagrams: Datagrams) -> Verdict {
        let directory = std::env::temp_dir();
        let log = directory.join(format!("natmig-verdict-{}.log", std::process::id()));
        let journal = Journal::begin(&log).unwrap();
        std::fs::remove_file(log).unwrap();
        Verdict {
            records: vec![Record {
                flow: flow("host1", "vm1"),
                datagrams,
                bytes: 0,
                connections: 0,
                stall: 0,
                broken: None,
            }],
            findings: Findings::default(),
            counted: Counted {
                migrations: BTreeMap::from([(Outcome::Success, 1)]),
                windows: vec![Window {
                    vm: "vm1".into(),
                    unplug: 1000,
                    replug: 1100,
                    anchors: 1150,
                }],
                healings: vec![Healing {
                    from: 3000,
                    to: 3500,
                }],
                ..Counted::default()
            },
            unconverged: Vec::new(),
            journal,
        }
    }

    #[test]
    fn losses_are_excused_by_windows_and_by_healing_apart() {
        let verdict = verdict(Datagrams {
            sent: vec![500, 1050, 2000, 3200, 3501],
            received: vec![505, 0, 0, 0, 0],
            ..Datagrams::default()
        });
        let losses = verdict.losses(&verdict.records[0]);
        assert_eq!((losses.unplugged, losses.fabric), (1, 1));
        assert_eq!(losses.lost, [2000, 3501]);
        assert_eq!(verdict.summary().lost, 2);
        assert!(verdict.violations()[0].contains("lost"));
        let text = verdict.text().unwrap();
        assert!(text.contains("LOST udp host1 → vm1"), "{text}");
    }

    #[test]
    fn what_does_not_agree_is_a_violation() {
        let mut verdict = verdict(Datagrams {
            sent: vec![500],
            received: vec![505],
            ..Datagrams::default()
        });
        assert_eq!(verdict.violations(), Vec::<String>::new());
        verdict.unconverged.push("edge1: stale".into());
        verdict.counted.problems.push("vm1: stuck".into());
        assert_eq!(verdict.violations().len(), 2);
        assert_eq!(
            serde_json::to_string(&verdict.summary()).unwrap(),
            "{\"migrations\":1,\"faults\":0,\"packets\":1,\"lost\":0,\"duplicated\":0,\
             \"misdelivered\":0,\"leaked\":0,\"unconverged\":1}"
        );
    }
}

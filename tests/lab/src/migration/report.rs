//! The figures of migrations as tables for people and as one line for programs.

use std::fmt::{self, Write as _};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::{Sample, queue::Queue};

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) one: Vec<Sample>,
    pub(super) group: Vec<Sample>,
    /// Of one VM, on etcd.
    pub(super) etcd: Vec<Sample>,
    pub(super) queue: Option<Queue>,
    /// VMs of the group.
    pub(super) group_size: usize,
}

/// The figures that the project's goals speak of, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(
    clippy::struct_field_names,
    reason = "the names are those of the JSON object, which say the unit"
)]
pub(super) struct Summary {
    /// One VM: median from the announcement to the last router's commit.
    p50_ms: Option<f64>,
    /// The same: 99th percentile.
    p99_ms: Option<f64>,
    /// One VM: 99th percentile from the first to the last router's commit.
    spread_p99_ms: Option<f64>,
    /// A group: 99th percentile from the announcement to the last router's commit.
    group_p99_ms: Option<f64>,
    /// One VM on etcd: 99th percentile from the announcement to the last router's commit.
    etcd_p99_ms: Option<f64>,
}

/// Goals for one VM, in milliseconds: latency and spread.
const GOALS: [(&str, f64); 2] = [("latency", 50.0), ("spread", 5.0)];

fn sorted(samples: &[Sample], of: impl Fn(&Sample) -> Option<f64>) -> Vec<f64> {
    let mut values: Vec<f64> = samples.iter().filter_map(of).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which a part of the sorted values is.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = part * last as f64;
    let low = sorted.get(place as usize)?;
    let high = sorted.get((place as usize + 1).min(last))?;
    Some(low + (high - low) * place.fract())
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

impl Report {
    pub(super) fn summary(&self) -> Summary {
        let part = |samples: &[Sample], of: fn(&Sample) -> f64, part: f64| {
            quantile(&sorted(samples, |sample| Some(of(sample))), part).map(rounded)
        };
        Summary {
            p50_ms: part(&self.one, |sample| sample.latency, 0.5),
            p99_ms: part(&self.one, |sample| sample.latency, 0.99),
            spread_p99_ms: part(&self.one, |sample| sample.spread, 0.99),
            group_p99_ms: part(&self.group, |sample| sample.latency, 0.99),
            etcd_p99_ms: part(&self.etcd, |sample| sample.latency, 0.99),
        }
    }

    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let group = format!("a group of {}", self.group_size);
        for (title, samples) in [
            ("one VM", &self.one),
            (&*group, &self.group),
            ("one VM, on etcd", &self.etcd),
        ] {
            if !samples.is_empty() {
                writeln!(
                    text,
                    "{} migrations of {title}, milliseconds:\n{}\n",
                    samples.len(),
                    table(samples)
                )?;
            }
        }
        let summary = self.summary();
        for ((name, goal), found) in GOALS
            .into_iter()
            .zip([summary.p99_ms, summary.spread_p99_ms])
        {
            if let Some(found) = found {
                let met = if found < goal { "met" } else { "missed" };
                writeln!(text, "goal: {name} of one VM, p99 below {goal} ms: {met}")?;
            }
        }
        if let Some(queue) = &self.queue {
            write_queue(queue, &mut text)?;
        }
        Ok(text)
    }
}

fn write_queue(queue: &Queue, text: &mut String) -> fmt::Result {
    let finished = queue.finished.as_secs_f64();
    writeln!(
        text,
        "\n{} migrations of one VM asked for at once, {} VMs in the inventory:\n  accepted \
         after {:.2} s, all in effect after {finished:.2} s: {:.0} migrations per second",
        queue.migrations,
        queue.inventory,
        queue.accepted.as_secs_f64(),
        queue.migrations as f64 / finished
    )?;
    let mut table = Table::new();
    let header = ["", "memory before, MiB", "most memory, MiB", "processor, s"];
    table.load_style(NOTHING).set_header(header);
    for used in &queue.daemons {
        let mebibytes = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        table.add_row([
            used.name.clone(),
            mebibytes(used.before),
            mebibytes(used.peak),
            format!("{:.2}", used.cpu.as_secs_f64()),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(text, "{table}")
}

/// Percentiles by phase.
fn table(samples: &[Sample]) -> Table {
    let mut table = Table::new();
    let header = ["", "p50", "p90", "p99", "longest"];
    table.load_style(NOTHING).set_header(header);
    let mut row = |name: String, values: Vec<f64>| {
        let mut cells = vec![name];
        for part in [0.5, 0.9, 0.99, 1.0] {
            let value = quantile(&values, part);
            cells.push(value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}")));
        }
        table.add_row(cells);
    };
    let all = |of: fn(&Sample) -> f64| sorted(samples, |sample| Some(of(sample)));
    row("announced, durable".into(), all(|sample| sample.announce));
    row("prepare".into(), all(|sample| sample.prepare));
    row(
        "decide, to first commit".into(),
        all(|sample| sample.decide),
    );
    let stages = samples.iter().map(|sample| sample.stages.len()).max();
    for stage in 0..stages.unwrap_or(0) {
        let values = sorted(samples, |sample| sample.stages.get(stage).copied());
        row(format!("commit, stage {}", stage + 1), values);
    }
    row(
        "spread, first to last commit".into(),
        all(|sample| sample.spread),
    );
    row(
        "announce to last commit".into(),
        all(|sample| sample.latency),
    );
    row("announce to success told".into(), all(|sample| sample.told));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_for_programs_has_percentiles() {
        let sample = |latency| Sample {
            latency,
            spread: latency / 10.0,
            stages: vec![1.0],
            ..Sample::default()
        };
        let report = Report {
            one: (0..=100).map(|number| sample(f64::from(number))).collect(),
            group: vec![sample(60.0)],
            etcd: vec![sample(70.0)],
            group_size: 7,
            queue: None,
        };
        assert_eq!(
            serde_json::to_string(&report.summary()).unwrap(),
            r#"{"p50_ms":50.0,"p99_ms":99.0,"spread_p99_ms":9.9,"group_p99_ms":60.0,"etcd_p99_ms":70.0}"#
        );
        let text = report.text().unwrap();
        assert!(text.contains("a group of 7"), "{text}");
        assert!(
            text.contains("latency of one VM, p99 below 50 ms: missed"),
            "{text}"
        );
    }
}

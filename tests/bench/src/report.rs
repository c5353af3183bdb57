//! The results as tables for people and as JSON for programs.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use crate::{
    bench::Rates,
    change::Changes,
    machine::Machine,
    micro::{self, Nanoseconds},
    plan::LanePlan,
    statistics::{Middle, Samples},
    traffic::{Density, Family},
};

/// All results of a run.
#[derive(Debug, Default)]
pub struct Results {
    /// The machine.
    pub machine: Option<Machine>,
    /// Nanoseconds per step.
    pub steps: Nanoseconds,
    /// The lanes that were measured.
    pub lanes: Vec<LanePlan>,
    /// Packets per second with everything on one CPU.
    pub one: Rates,
    /// Packets per second with everything on each of the CPUs.
    pub all: Rates,
    /// Changing tables.
    pub changes: Changes,
}

/// What the project's goals speak of: medians of ratios within rounds, and figures of changes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// natmig with IPv4, per bare redirect.
    pub v4_bare: Option<f64>,
    /// natmig with IPv4, per XDP forwarding by the routing table without NAT.
    pub v4_fib: Option<f64>,
    /// natmig with IPv4, per nftables with a stateless map of the same bindings.
    pub v4_nft: Option<f64>,
    /// natmig with IPv6, per natmig with IPv4.
    pub v6_v4: Option<f64>,
    /// natmig with 1M bindings, per natmig with 1k.
    pub m1_k1: Option<f64>,
    /// Unbound traffic through natmig, per XDP forwarding by the routing table.
    pub untouched_fib: Option<f64>,
    /// Seconds to load 1M dense bindings of IPv4 as one transaction, the whole command.
    pub load_1m_s: Option<f64>,
    /// Bytes of all tables of IPv4 and of those that families share, by binding.
    pub bytes_per_binding: Option<f64>,
    /// 99th percentile of updates of one binding under load, in microseconds.
    pub update_p99_us: Option<f64>,
}

/// A goal: the figure's name, what it must be, and what it is to be.
const GOALS: [(&str, f64, f64, bool); 9] = [
    ("natmig IPv4 / bare redirect", 0.55, 0.70, true),
    ("natmig IPv4 / XDP routing table", 0.9, 1.05, true),
    ("natmig IPv4 / nftables stateless", 4.0, 6.0, true),
    ("natmig IPv6 / natmig IPv4", 0.7, 0.9, true),
    ("1M bindings / 1k bindings", 0.7, 0.85, true),
    (
        "unbound, forward = \"all\" / XDP routing table",
        0.95,
        1.0,
        true,
    ),
    ("load of 1M bindings, s", 1.5, 0.5, false),
    ("bytes per binding", 256.0, 160.0, false),
    (
        "update of one binding under load, p99, µs",
        10.0,
        2.0,
        false,
    ),
];

impl Results {
    fn rates(&self, key: &str) -> Samples {
        self.one.get(key).cloned().unwrap_or_default()
    }

    fn ratio(&self, key: &str, other: &str) -> Option<f64> {
        let ratio = self.rates(key).per(&self.rates(other)).middle()?;
        Some(ratio.median)
    }

    /// What the goals speak of.
    pub fn summary(&self) -> Summary {
        let updates = &self.changes.updates;
        Summary {
            v4_bare: self.ratio("natmig4", "bare"),
            v4_fib: self.ratio("natmig4", "fib"),
            v4_nft: self.ratio("natmig4", "nft"),
            v6_v4: self.ratio("natmig6", "natmig4"),
            m1_k1: self.ratio("natmig4", "natmig4-1k"),
            untouched_fib: self.ratio("untouched4", "fib"),
            load_1m_s: self.changes.million_seconds(Family::Ipv4, Density::Dense),
            bytes_per_binding: self.changes.million_bytes(Family::Ipv4, Density::Dense),
            update_p99_us: updates.first().map(|updates| updates.p99_us),
        }
    }

    /// All tables, as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(machine) = &self.machine {
            text += &facts(machine);
        }
        if !self.changes.loads.is_empty() {
            text += &self.loads();
        }
        if !self.changes.updates.is_empty() {
            text += &self.updates();
        }
        if !self.steps.is_empty() {
            text += &self.step_table();
        }
        if !self.one.is_empty() {
            text += "\nPackets per second, everything on one CPU (medians, quartiles; ratios within rounds)\n\n";
            let direct = |lane: &LanePlan| match self.one.get("direct6") {
                Some(direct6) if lane.key.contains('6') => direct6.clone(),
                _ => self.rates("direct"),
            };
            // What the router takes of the time between two packets.
            text += &self.rate_table(&self.one, "router ns", |lane, samples| {
                let own = samples.paired(&direct(lane), |rate, direct| 1e3 / rate - 1e3 / direct);
                let own = own.middle().filter(|_| !lane.key.starts_with("direct"))?;
                Some(format!("{:.0}", own.median))
            });
        }
        if !self.all.is_empty() {
            text += "\nPackets per second of all CPUs together, the whole chain on each, with a queue of its own\n\
                 (they cannot gain more on one CPU than they do at once of a plain loop, see above; other work is\n\
                 let in between, so samples spread more)\n\n";
            text += &self.rate_table(&self.all, "/ one CPU", |lane, samples| {
                let one = self.rates(lane.key).middle()?;
                Some(format!("{:.2}", samples.middle()?.median / one.median))
            });
        }
        text + &self.goals()
    }

    /// A table of rates, with a last column of its own.
    fn rate_table(
        &self,
        rates: &Rates,
        last: &str,
        value: impl Fn(&LanePlan, &Samples) -> Option<String>,
    ) -> String {
        let of = |key: &str| rates.get(key).cloned().unwrap_or_default();
        let (bare, fib, nft) = (of("bare"), of("fib"), of("nft"));
        let mut lanes: Vec<_> = self
            .lanes
            .iter()
            .filter_map(|lane| {
                let samples = rates.get(lane.key)?;
                Some((lane, samples, samples.middle()?))
            })
            .collect();
        lanes.sort_by(|(.., one), (.., other)| other.median.total_cmp(&one.median));
        let ratio = |samples: &Samples, other: &Samples, digits: usize| {
            let middle = samples.per(other).middle();
            middle.map_or_else(
                || "-".to_owned(),
                |middle| format!("{:.digits$}", middle.median),
            )
        };
        let rows = lanes.into_iter().map(|(lane, samples, middle)| {
            vec![
                lane.label.to_owned(),
                quartiles(middle, 2),
                ratio(samples, &bare, 2),
                ratio(samples, &fib, 2),
                ratio(samples, &nft, 1),
                value(lane, samples).unwrap_or_else(|| "-".to_owned()),
            ]
        });
        table(
            &["router", "Mpps", "/ bare", "/ XDP fib", "/ nft 1M", last],
            rows,
        )
    }

    fn step_table(&self) -> String {
        let rows = micro::STEPS.iter().filter_map(|step| {
            let mut row = vec![step.label.to_owned()];
            for set in micro::SETS {
                let middle = self.steps.get(&(step.key, set)).and_then(Samples::middle);
                row.push(middle.map_or_else(String::new, |middle| quartiles(middle, 0)));
            }
            row.iter()
                .skip(1)
                .any(|cell| !cell.is_empty())
                .then_some(row)
        });
        let title = "\nNanoseconds per packet by BPF_PROG_TEST_RUN, by number of addresses in use of 1M \
             (the first rows above each other, all others above writing the packet)\n\n";
        title.to_owned() + &table(&["step", "1", "1k", "100k", "1M"], rows)
    }

    fn loads(&self) -> String {
        let rows = self.changes.loads.iter().map(|load| {
            vec![
                format!(
                    "{} {:?} {:?}{}",
                    load.bindings,
                    load.density,
                    load.family,
                    if load.visitors { " + visitors" } else { "" }
                ),
                format!("{:.3}", load.seconds),
                format!("{:.3}", load.inner_seconds),
                format!("{}", load.peak_bytes >> 20),
                format!("{:.0}", load.bytes_per_binding),
            ]
        });
        let mut text = "\nBindings applied as one transaction\n\n".to_owned();
        text += &table(
            &[
                "bindings",
                "command s",
                "until committed s",
                "peak MiB",
                "bytes each",
            ],
            rows,
        );
        for (elements, seconds) in &self.changes.nft {
            writeln!(text, "nft -f with a map of {elements}: {seconds:.3} s").ok();
        }
        text
    }

    fn updates(&self) -> String {
        let rows = self.changes.updates.iter().map(|updates| {
            vec![
                updates.label.clone(),
                updates.count.to_string(),
                format!("{:.2}", updates.p50_us),
                format!("{:.2}", updates.p99_us),
                format!("{:.2}", updates.p999_us),
            ]
        });
        let text = table(&["update", "number", "p50 µs", "p99 µs", "p99.9 µs"], rows);
        format!("\nUpdates of one binding\n\n{text}")
    }

    fn goals(&self) -> String {
        let summary = self.summary();
        let values = [
            summary.v4_bare,
            summary.v4_fib,
            summary.v4_nft,
            summary.v6_v4,
            summary.m1_k1,
            summary.untouched_fib,
            summary.load_1m_s,
            summary.bytes_per_binding,
            summary.update_p99_us,
        ];
        let rows = GOALS.iter().zip(values).filter_map(|(goal, value)| {
            let (label, must, aim, more) = *goal;
            let value = value?;
            let reached = |limit: f64| if more { value >= limit } else { value <= limit };
            let verdict = match (reached(aim), reached(must)) {
                (true, _) => "as aimed at",
                (false, true) => "enough",
                (false, false) => "MISSED",
            };
            Some(vec![
                label.to_owned(),
                format!("{value:.2}"),
                must.to_string(),
                aim.to_string(),
                verdict.to_owned(),
            ])
        });
        let text = table(&["goal", "measured", "must", "aim", ""], rows);
        format!("\nGoals\n\n{text}")
    }

    /// Writes the tables and all medians into a directory.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("report.txt"), self.text())?;
        let middles = |rates: &Rates| -> serde_json::Value {
            rates
                .iter()
                .filter_map(|(key, samples)| Some(((*key).to_owned(), middle_json(samples)?)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let steps: serde_json::Map<_, _> = self
            .steps
            .iter()
            .filter_map(|((key, set), samples)| {
                Some((format!("{key}/{set}"), middle_json(samples)?))
            })
            .collect();
        let value = serde_json::json!({
            "machine": self.machine,
            "summary": self.summary(),
            "mpps_one_cpu": middles(&self.one),
            "mpps_all_cpus": middles(&self.all),
            "nanoseconds": steps,
            "changes": self.changes,
        });
        fs::write(
            directory.join("results.json"),
            serde_json::to_string_pretty(&value)?,
        )?;
        Ok(())
    }
}

fn middle_json(samples: &Samples) -> Option<serde_json::Value> {
    serde_json::to_value(samples.middle()?).ok()
}

fn quartiles(middle: Middle, digits: usize) -> String {
    let Middle { low, median, high } = middle;
    format!("{median:.digits$} [{low:.digits$}-{high:.digits$}]")
}

fn facts(machine: &Machine) -> String {
    let Machine {
        processor,
        cpus,
        cpus_together,
        clock_mhz,
        cache,
        kernel,
        memory_gib,
        virtual_machine,
        clock_source,
        bpf_jit,
        mitigations,
    } = machine;
    let kind = if *virtual_machine {
        "virtual machine"
    } else {
        "bare metal"
    };
    let mitigations = if mitigations.is_empty() {
        "none".to_owned()
    } else {
        mitigations.join("\n             ")
    };
    format!(
        "processor    {processor}, {cpus} CPUs at {clock_mhz} MHz (at once {cpus_together:.2} times the work of one), \
         cache {cache}, {kind}\n\
         memory       {memory_gib:.1} GiB\n\
         kernel       {kernel}, clock {clock_source}, BPF {bpf_jit}\n\
         mitigations  {mitigations}\n"
    )
}

/// A table whose columns but the first are numbers.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = String::new();
    for row in table.lines() {
        text += row.trim_end();
        text.push('\n');
    }
    text
}

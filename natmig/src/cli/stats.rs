//! `natmig stats`.

pub(super) mod sample;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use self::sample::{Rate, Sample};
use super::{output, trace::parse_duration};
use crate::{
    config::{DEFAULT_INSTANCE, check_instance},
    router::{GuardCounter, RouterError, reader::Reader},
};

/// Show this router's counters: by interface and verdict, by binding, and the guard's.
///
/// Every packet is counted in one verdict, and in any steps on its way. A counter's name and number
/// never change. Rates tell of the time between two readings, and survive counters that were reset.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig stats                       # what is not zero, by interface and verdict\n  \
    natmig stats --interval 5s         # and the rates of five seconds\n  \
    natmig stats --watch               # again and again\n  \
    natmig stats bindings --top 10     # the busiest bindings, both ways\n  \
    natmig stats --watch --json        # one object per line and second")]
pub(crate) struct Args {
    /// The instance.
    #[arg(long, global = true, default_value = DEFAULT_INSTANCE)]
    instance: String,
    /// Also show counters that are zero.
    #[arg(long, global = true)]
    all: bool,
    /// Measure rates over this time.
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    interval: Option<Duration>,
    /// Go on, once per interval (a second unless it is given).
    #[arg(long, global = true)]
    watch: bool,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the traffic of each binding, both ways.
    Bindings {
        /// Only so many, those with the most packets.
        #[arg(long, value_name = "N")]
        top: Option<usize>,
    },
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_instance(&args.instance).map_err(anyhow::Error::msg)?;
    let reader = Reader::open(&args.instance)?;
    let interval = match args.interval {
        None if args.watch => Some(Duration::from_secs(1)),
        other => other,
    };
    let with_bindings = args.command.is_some();
    let mut before = None;
    if interval.is_some() {
        before = Some(Sample::read(&reader, with_bindings)?);
    }
    loop {
        if let Some(interval) = interval {
            std::thread::sleep(interval);
        }
        let now = Sample::read(&reader, with_bindings)?;
        let report = Report {
            args,
            before: before.as_ref(),
            now: &now,
        };
        if args.watch && !args.json && std::io::stdout().is_terminal() {
            // Home, and nothing below.
            print!("\x1b[H\x1b[J");
        }
        report.print(&reader)?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        if std::io::stdout().flush().is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        before = Some(now);
    }
}

/// What is shown at once.
struct Report<'a> {
    args: &'a Args,
    before: Option<&'a Sample>,
    now: &'a Sample,
}

impl Report<'_> {
    fn print(&self, reader: &Reader) -> anyhow::Result<()> {
        match &self.args.command {
            Some(Command::Bindings { top }) => self.bindings(*top),
            // Counters are worth showing without the guard's as well.
            None => self.interfaces(&reader.guard()),
        }
    }

    fn json(&self, value: &serde_json::Value) -> anyhow::Result<()> {
        if self.args.watch {
            output::line(&value.to_string())?;
        } else {
            output::json(value)?;
        }
        Ok(())
    }

    fn interfaces(&self, guard: &Result<Vec<GuardCounter>, RouterError>) -> anyhow::Result<()> {
        let rates = self.before.map(|before| self.now.interface_rates(before));
        if self.args.json {
            let mut interfaces = serde_json::to_value(&self.now.interfaces)?;
            for (value, interface) in interfaces
                .as_array_mut()
                .into_iter()
                .flatten()
                .zip(&self.now.interfaces)
            {
                let totals = sample::totals(interface).map(|(class, packets, bytes)| {
                    let total = serde_json::json!({ "packets": packets, "bytes": bytes });
                    (class.to_owned(), total)
                });
                value["totals"] = serde_json::Value::Object(totals.into_iter().collect());
                let rates = rates
                    .as_ref()
                    .and_then(|rates| rates.get(&interface.ifindex));
                for counter in value["counters"].as_array_mut().into_iter().flatten() {
                    let number = counter["number"]
                        .as_u64()
                        .and_then(|n| u8::try_from(n).ok());
                    if let Some(rate) = number.and_then(|number| rates?.get(&number)) {
                        counter["packets_per_second"] = rate.packets_per_second.into();
                        counter["bytes_per_second"] = rate.bytes_per_second.into();
                    }
                }
            }
            return self.json(&serde_json::json!({
                "interfaces": interfaces,
                "guard": guard.as_ref().ok(),
            }));
        }
        let mut rows = Vec::new();
        for interface in &self.now.interfaces {
            let rates = rates
                .as_ref()
                .and_then(|rates| rates.get(&interface.ifindex));
            for counter in &interface.counters {
                if counter.packets != 0 || self.args.all {
                    let rate = rates.and_then(|rates| rates.get(&counter.number));
                    let row = [
                        interface.interface.clone(),
                        interface.role.to_owned(),
                        counter.class.to_owned(),
                        counter.number.to_string(),
                        counter.name.to_owned(),
                        counter.packets.to_string(),
                        counter.bytes.to_string(),
                    ];
                    rows.push(with_rate(row, rate.copied()));
                }
            }
            for (class, packets, bytes) in sample::totals(interface) {
                let rate = rates.map(|rates| sample::class_rate(interface, rates, class));
                let row = [
                    interface.interface.clone(),
                    interface.role.to_owned(),
                    class.to_owned(),
                    String::new(),
                    "total".to_owned(),
                    packets.to_string(),
                    bytes.to_string(),
                ];
                rows.push(with_rate(row, rate));
            }
        }
        let mut header = vec![
            "INTERFACE",
            "ROLE",
            "CLASS",
            "NO",
            "COUNTER",
            "PACKETS",
            "BYTES",
        ];
        if rates.is_some() {
            header.extend(["PACKETS/S", "BYTES/S"]);
        }
        output::table(&header, rows)?;
        output::line("")?;
        match guard {
            Ok(counters) => {
                let rows = counters.iter().map(|counter| {
                    vec![
                        counter.name.clone(),
                        counter.packets.to_string(),
                        counter.bytes.to_string(),
                    ]
                });
                output::table(&["GUARD DROPPED", "PACKETS", "BYTES"], rows)?;
            }
            Err(error) => eprintln!("natmig: warning: no counters of the guard: {error}"),
        }
        Ok(())
    }

    fn bindings(&self, top: Option<usize>) -> anyhow::Result<()> {
        let rates = self.before.map(|before| self.now.binding_rates(before));
        let mut bindings: Vec<_> = self.now.bindings.iter().collect();
        if let Some(top) = top {
            bindings.sort_by_key(|binding| {
                let traffic = binding.traffic;
                std::cmp::Reverse(traffic.packets_to.saturating_add(traffic.packets_from))
            });
            bindings.truncate(top);
        }
        let rate_of = |identity| {
            rates
                .as_ref()
                .and_then(|rates| rates.get(identity))
                .copied()
        };
        if self.args.json {
            let bindings: Vec<_> = bindings
                .iter()
                .map(|binding| {
                    let rate = rate_of(&binding.identity);
                    serde_json::json!({
                        "identity": binding.identity,
                        "locator": binding.locator,
                        "traffic": binding.traffic,
                        "rate_to": rate.map(|(to, _)| to),
                        "rate_from": rate.map(|(_, from)| from),
                    })
                })
                .collect();
            return self.json(&serde_json::json!({ "bindings": bindings }));
        }
        let rows = bindings.iter().map(|binding| {
            let traffic = binding.traffic;
            let mut row = vec![
                binding.identity.to_string(),
                output::or_dash(binding.locator),
                traffic.packets_to.to_string(),
                traffic.bytes_to.to_string(),
                traffic.packets_from.to_string(),
                traffic.bytes_from.to_string(),
            ];
            if let Some((to, from)) = rate_of(&binding.identity) {
                row.extend([to, from].map(|rate| sample::short(rate.packets_per_second)));
            }
            row
        });
        let mut header = vec![
            "IDENTITY",
            "LOCATOR",
            "PACKETS TO",
            "BYTES TO",
            "PACKETS FROM",
            "BYTES FROM",
        ];
        if rates.is_some() {
            header.extend(["TO/S", "FROM/S"]);
        }
        output::table(&header, rows)?;
        Ok(())
    }
}

fn with_rate(row: [String; 7], rate: Option<Rate>) -> Vec<String> {
    let mut row = Vec::from(row);
    if let Some(rate) = rate {
        row.push(sample::short(rate.packets_per_second));
        row.push(sample::short(rate.bytes_per_second));
    }
    row
}

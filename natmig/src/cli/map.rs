//! `natmig map`.

mod verify;

use std::{
    fs,
    io::{BufWriter, Write as _},
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{client::ClientArgs, output};
use crate::{
    config::{DEFAULT_INSTANCE, check_instance},
    router::{
        MapBytes, Router, announce,
        bindings::AppliedBindings,
        reader::{EntryView, Reader, VersionView},
    },
};

/// Read and change this router's tables.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig map list                     # identity, locator, where the VM is, traffic\n  \
    natmig map get 10.1.1.10            # one address, both versions\n  \
    natmig map apply bindings.txt       # the whole file as one transaction\n  \
    natmig map dump --json | jq .       # for programs\n  \
    natmig map verify                   # compare with what the controller believes\n\n\
bindings.txt:\n  \
    10.1.1.10 10.1.3.130 away home rack1 02:00:00:00:00:10   # at home here, now elsewhere\n  \
    10.1.2.11 10.1.3.131 away                                # some other router's VM\n  \
    10.1.3.20 10.1.1.130 here rack1 02:00:00:00:00:20        # visiting this router's rack1")]
pub(crate) struct Args {
    /// The instance.
    #[arg(long, global = true, default_value = DEFAULT_INSTANCE)]
    instance: String,
    /// The controller is asked by `verify` only.
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the bindings.
    List,
    /// Show every entry as it is, both versions.
    Dump,
    /// Show the entry of one address.
    Get {
        /// An identity or a locator.
        address: IpAddr,
    },
    /// Make a file of bindings the whole table, as one transaction.
    ///
    /// One binding per line: IDENTITY LOCATOR away | away home SEGMENT MAC | here SEGMENT MAC.
    /// A file with an error anywhere changes nothing.
    Apply {
        /// The file.
        file: PathBuf,
        /// Keep bindings that the file does not name.
        #[arg(long)]
        merge: bool,
    },
    /// Compare the tables with what the controller believes, and with themselves.
    ///
    /// Prints every difference, the router's side and the controller's. What a migration under way
    /// explains is none; a difference is told only if it is still there after a second look.
    /// Exit status: 0 if there is none, 10 if there is one, 1 if the comparison could not be made.
    Verify(verify::Args),
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    check_instance(&args.instance).map_err(anyhow::Error::msg)?;
    let json = args.client.json;
    match args.command {
        Command::List => list(&args.instance, json),
        Command::Dump => dump(&args.instance, json),
        Command::Get { address } => get(&args.instance, address, json),
        Command::Apply { file, merge } => apply(&args.instance, &file, merge, json),
        Command::Verify(verify) => verify::run(&args.instance, &verify, &args.client),
    }
}

fn list(instance: &str, json: bool) -> anyhow::Result<ExitCode> {
    let bindings = Reader::open(instance)?.bindings();
    if json {
        return output::json(&bindings);
    }
    let rows = bindings.iter().map(|binding| {
        let transaction = binding
            .transaction
            .map(|id| format!("{id} {}", binding.phase));
        let draining: Vec<String> = binding.draining.iter().map(ToString::to_string).collect();
        vec![
            binding.identity.to_string(),
            output::or_dash(binding.locator),
            binding.place.to_owned(),
            output::or_dash(binding.segment.as_ref()),
            output::or_dash(binding.mac),
            transaction.unwrap_or_else(|| binding.phase.to_owned()),
            if draining.is_empty() {
                "-".to_owned()
            } else {
                draining.join(" ")
            },
            binding.traffic.packets_to.to_string(),
            binding.traffic.packets_from.to_string(),
        ]
    });
    output::table(
        &[
            "IDENTITY",
            "LOCATOR",
            "WHERE",
            "SEGMENT",
            "MAC",
            "TRANSACTION",
            "DRAINING",
            "TO",
            "FROM",
        ],
        rows,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn dump(instance: &str, json: bool) -> anyhow::Result<ExitCode> {
    let reader = Reader::open(instance)?;
    let summary = reader.summary()?;
    if json {
        let value = serde_json::json!({
            "summary": summary,
            "transactions": reader.transactions(),
            "entries": reader.entries().collect::<Vec<_>>(),
        });
        return output::json(&value);
    }
    let pools: Vec<String> = summary.pools.iter().map(ToString::to_string).collect();
    let mut out = BufWriter::new(std::io::stdout().lock());
    writeln!(
        out,
        "instance {}, router {}, program {}, layout {}, term {}, room for {} IPv4 and {} IPv6 addresses, maps take {}",
        summary.instance,
        output::or_dash(summary.router),
        output::or_dash(summary.program),
        summary.abi_version,
        summary.term,
        summary.capacity,
        summary.capacity_ipv6,
        output::bytes(summary.map_bytes),
    )?;
    writeln!(
        out,
        "gateway MAC {}, locator pools {}",
        summary.gateway_mac,
        pools.join(" ")
    )?;
    for held in reader.transactions() {
        writeln!(
            out,
            "slot {} generation {}: transaction {}, {}, {} entries, committed at {}",
            held.slot,
            held.generation,
            held.transaction,
            held.phase,
            held.entries,
            held.committed_at
        )?;
    }
    for entry in reader.entries() {
        write_entry(&mut out, &entry)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn get(instance: &str, address: IpAddr, json: bool) -> anyhow::Result<ExitCode> {
    let Some(entry) = Reader::open(instance)?.entry(address)? else {
        anyhow::bail!(
            "{address} is not bound on this router: packets to and from it are not touched"
        );
    };
    if json {
        return output::json(&entry);
    }
    write_entry(&mut std::io::stdout().lock(), &entry)?;
    Ok(ExitCode::SUCCESS)
}

fn write_entry(out: &mut impl std::io::Write, entry: &EntryView) -> std::io::Result<()> {
    let mark = |version| if entry.counts == version { '*' } else { ' ' };
    writeln!(out, "entry {}: {}", entry.index, entry.address)?;
    writeln!(
        out,
        "  {} current: {}",
        mark("current"),
        describe(&entry.current)
    )?;
    if let (Some(pending), Some(reference)) = (&entry.pending, &entry.reference) {
        writeln!(out, "  {} pending: {}", mark("pending"), describe(pending))?;
        writeln!(
            out,
            "    reference: slot {} generation {}, transaction {}, {}",
            reference.slot,
            reference.generation,
            output::or_dash(reference.transaction),
            reference.phase
        )?;
    }
    if let Some(traffic) = entry.traffic {
        writeln!(
            out,
            "    traffic: to {} packets {} bytes, from {} packets {} bytes",
            traffic.packets_to, traffic.bytes_to, traffic.packets_from, traffic.bytes_from
        )?;
    }
    Ok(())
}

fn describe(version: &VersionView) -> String {
    let mut text = version.action.to_owned();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text = format!("{text} {name} {value}");
        }
    };
    let counterpart = match version.action {
        "away" | "local" => "locator",
        _ => "identity",
    };
    add(
        counterpart,
        version.counterpart.map(|address| address.to_string()),
    );
    add(
        "forward to",
        version.forward.map(|address| address.to_string()),
    );
    add("mac", version.mac.map(|mac| mac.to_string()));
    add("on", version.interface.clone());
    add("segment", version.segment.clone());
    if version.home {
        text.push_str(" (home edge)");
    }
    text
}

/// What applying a file took.
#[derive(Serialize)]
struct ApplyOutput {
    #[serde(flatten)]
    applied: AppliedBindings,
    /// From the command's start until the file is in force and the tables are settled.
    seconds: f64,
    /// Of that, what it took to take the tables up.
    open_seconds: f64,
    ns_per_binding: f64,
    map_bytes: MapBytes,
    bytes_per_binding: f64,
    bytes_per_binding_ipv6: f64,
    process_peak_bytes: u64,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn apply(
    instance: &str,
    file: &std::path::Path,
    merge: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut router = Router::open(instance)?;
    let open_seconds = start.elapsed().as_secs_f64();
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:16} {wide_bar} {percent:>3} %") {
        bar.set_style(style);
    }
    let mut progress = |what: &'static str, done: u64, total: u64| {
        bar.set_message(what);
        bar.set_length(total);
        bar.set_position(done);
    };
    let applied = router.apply_file(file, merge, &mut progress);
    bar.finish_and_clear();
    let applied = applied?;
    let seconds = start.elapsed().as_secs_f64();
    let (ipv4, ipv6) = router.capacity();
    let bindings = applied.bindings.max(1) as f64;
    let map_bytes = router.map_bytes()?;
    // A binding is two addresses.
    let per_binding = |own: u64, capacity: u32| {
        (own + map_bytes.shared) as f64 / f64::from(capacity.max(1)) * 2.0
    };
    let output = ApplyOutput {
        seconds,
        open_seconds,
        ns_per_binding: seconds * 1e9 / bindings,
        map_bytes,
        bytes_per_binding: per_binding(map_bytes.ipv4, ipv4),
        bytes_per_binding_ipv6: per_binding(map_bytes.ipv6, ipv6),
        process_peak_bytes: peak_memory(),
        applied,
    };
    let announcements = router.take_announcements();
    // The lock is free from here on: announcing takes seconds.
    drop(router);
    if json {
        output::json(&output)?;
    } else {
        let report = &output.applied.report;
        println!(
            "{} bindings active as one transaction: {} addresses added, {} changed, {} removed, {} unchanged, {} held by migrations",
            output.applied.bindings,
            report.added,
            report.changed,
            report.removed,
            report.unchanged,
            report.held
        );
        println!(
            "{:.3} s, {:.0} ns per binding; grace period {:.1} µs; tables {} ({:.0} bytes per IPv4 binding); peak of this process {}",
            output.seconds,
            output.ns_per_binding,
            report.grace.as_secs_f64() * 1e6,
            output::bytes(output.map_bytes.total()),
            output.bytes_per_binding,
            output::bytes(output.process_peak_bytes),
        );
    }
    let mut sent = Duration::ZERO;
    for at in announce::SCHEDULE {
        if !announcements.is_empty() {
            std::thread::sleep(at.saturating_sub(sent));
            announce::send(&announcements)?;
            sent = at;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Largest memory that this process had, in bytes.
fn peak_memory() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    kib * 1024
}

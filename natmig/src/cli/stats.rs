//! `natmig stats`.

use std::process::ExitCode;

use super::output;
use crate::{
    config::{DEFAULT_INSTANCE, check_instance},
    router::reader::Reader,
};

/// Show this router's counters: by interface and verdict, by binding, and the guard's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig stats                # what is not zero, by interface and verdict\n  \
    natmig stats --bindings     # and the traffic of each bound address")]
pub(crate) struct Args {
    /// The instance.
    #[arg(long, default_value = DEFAULT_INSTANCE)]
    instance: String,
    /// Also show counters that are zero.
    #[arg(long)]
    all: bool,
    /// Also show the traffic of each binding.
    #[arg(long)]
    bindings: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        instance,
        all,
        bindings: with_bindings,
        json,
    } = args;
    check_instance(&instance).map_err(anyhow::Error::msg)?;
    let reader = Reader::open(&instance)?;
    let interfaces = reader.interfaces()?;
    // Counters are worth showing without the guard's as well.
    let guard = reader.guard();
    let bindings = if with_bindings {
        reader.bindings()
    } else {
        Vec::new()
    };
    if json {
        let value = serde_json::json!({
            "interfaces": interfaces,
            "guard": guard.as_ref().ok(),
            "bindings": with_bindings.then_some(&bindings),
        });
        return output::json(&value);
    }
    let mut rows = Vec::new();
    for interface in &interfaces {
        for counter in &interface.counters {
            if counter.packets != 0 || all {
                rows.push(vec![
                    interface.interface.clone(),
                    interface.role.to_owned(),
                    counter.class.to_owned(),
                    counter.name.to_owned(),
                    counter.packets.to_string(),
                    counter.bytes.to_string(),
                ]);
            }
        }
    }
    output::table(
        &["INTERFACE", "ROLE", "CLASS", "COUNTER", "PACKETS", "BYTES"],
        rows,
    )?;
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
    if with_bindings {
        output::line("")?;
        let rows = bindings.iter().map(|binding| {
            let traffic = binding.traffic;
            vec![
                binding.identity.to_string(),
                output::or_dash(binding.locator),
                traffic.packets_to.to_string(),
                traffic.bytes_to.to_string(),
                traffic.packets_from.to_string(),
                traffic.bytes_from.to_string(),
            ]
        });
        let header = [
            "IDENTITY",
            "LOCATOR",
            "PACKETS TO",
            "BYTES TO",
            "PACKETS FROM",
            "BYTES FROM",
        ];
        output::table(&header, rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

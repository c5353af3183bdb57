//! The command line: one module per command, errors as one readable chain on standard error.

mod agent;
mod audit;
mod capabilities;
mod client;
mod controller;
mod daemon;
mod doctor;
mod hypervisor;
mod load;
mod map;
mod migrate;
mod migration;
mod output;
mod pki;
mod progress;
mod router;
mod stats;
mod store;
mod top;
mod topology;
mod trace;
mod unload;
mod vm;

use std::process::ExitCode;

use crate::causes::with_causes;

/// Keeps virtual machines reachable while they migrate between IP subnets.
#[derive(Debug, clap::Parser)]
#[command(name = "natmig", version, propagate_version = true)]
pub struct Command {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    Agent(agent::Args),
    Controller(controller::Args),
    Load(load::Args),
    Unload(unload::Args),
    Map(map::Args),
    Stats(stats::Args),
    Trace(trace::Args),
    Top(top::Args),
    Doctor(doctor::Args),
    Topology(topology::Args),
    Vm(vm::Args),
    Migrate(migrate::Args),
    Migration(migration::Args),
    Router(router::Args),
    QmpWatch(hypervisor::qmp_watch::Args),
    LibvirtHook(hypervisor::libvirt_hook::Args),
    Store(store::Args),
    Audit(audit::Args),
    Pki(pki::Args),
}

/// Runs the command and reports its error.
pub fn run(command: Command) -> ExitCode {
    let result = match command.subcommand {
        Subcommand::Agent(args) => agent::run(&args),
        Subcommand::Controller(args) => controller::run(&args),
        Subcommand::Load(args) => load::run(args),
        Subcommand::Unload(args) => unload::run(args),
        Subcommand::Map(args) => map::run(args),
        Subcommand::Stats(args) => stats::run(&args),
        Subcommand::Trace(args) => trace::run(&args),
        Subcommand::Top(args) => top::run(&args),
        Subcommand::Doctor(args) => doctor::run(args),
        Subcommand::Topology(args) => topology::run(args),
        Subcommand::Vm(args) => vm::run(args),
        Subcommand::Migrate(args) => migrate::run(&args),
        Subcommand::Migration(args) => migration::run(args),
        Subcommand::Router(args) => router::run(args),
        Subcommand::QmpWatch(args) => hypervisor::qmp_watch::run(&args),
        Subcommand::LibvirtHook(args) => hypervisor::libvirt_hook::run(&args),
        Subcommand::Store(args) => store::run(&args),
        Subcommand::Audit(args) => audit::run(&args),
        Subcommand::Pki(args) => pki::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("natmig: {}", with_causes(error.as_ref()));
        ExitCode::FAILURE
    })
}

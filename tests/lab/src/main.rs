//! The lab's command line.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use natmig_lab::{
    Lab, Topology,
    demo::{self, Options},
    echo, guest,
    lab::find_natmig,
    migration,
    namespace::Namespace,
    report, run,
    topology::THREE_TIER,
};

/// A datacenter in network namespaces, with natmig in it
#[derive(Debug, Parser)]
#[command(name = "natmig-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Bring a lab up and keep it until an interrupt
    Up {
        /// Description of the lab; without it the three-tier datacenter
        #[arg(long, value_name = "FILE")]
        topology: Option<PathBuf>,
        /// The natmig program
        #[arg(long, value_name = "FILE", env = "NATMIG_BIN")]
        natmig: Option<PathBuf>,
        /// Without natmig: plain kernel forwarding
        #[arg(long)]
        plain: bool,
    },
    /// End all labs, and clear what crashed ones left
    Down,
    /// Run a shell, or a command, in a node of the running lab
    Shell {
        /// Router, segment, VM, host, outside or mgmt
        node: String,
        /// What to run instead of a shell
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Return what comes, over TCP and UDP: what runs in real guests
    #[command(hide = true)]
    Echo,
    /// Migrate VMs under live traffic and report what happened
    Demo {
        /// The natmig program
        #[arg(long, value_name = "FILE", env = "NATMIG_BIN")]
        natmig: Option<PathBuf>,
        /// Where the report goes
        #[arg(long, value_name = "DIRECTORY", default_value = "target/demo")]
        report: PathBuf,
        /// End with one line of JSON; everything else goes to standard error
        #[arg(long)]
        json: bool,
        /// Datagrams to send at least
        #[arg(long, value_name = "NUMBER", default_value_t = Options::default().packets)]
        packets: u64,
    },
    #[command(name = "bench-migration")]
    BenchMigration(migration::Arguments),
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("natmig-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Subcommand::Up {
            topology,
            natmig,
            plain,
        } => up(topology.as_deref(), natmig, plain),
        Subcommand::Down => run::stop_all(Duration::from_mins(1)).map(|()| ExitCode::SUCCESS),
        Subcommand::Shell { node, command } => shell(&node, &command),
        Subcommand::Echo => echo::serve(guest::ECHO_PORT).map(|()| ExitCode::SUCCESS),
        Subcommand::Demo {
            natmig,
            report,
            json,
            packets,
        } => {
            let options = Options {
                packets,
                ..Options::default()
            };
            demonstrate(natmig, &report, json, &options)
        }
        Subcommand::BenchMigration(arguments) => {
            run::catch_interrupts()?;
            migration::run(&arguments).map(|()| ExitCode::SUCCESS)
        }
    }
}

fn up(topology: Option<&Path>, natmig: Option<PathBuf>, plain: bool) -> Result<ExitCode> {
    run::catch_interrupts()?;
    let topology = topology.map_or_else(|| Topology::parse(THREE_TIER), Topology::read)?;
    let mut lab = if plain {
        Lab::plain(topology)?
    } else {
        Lab::start(topology, &find_natmig(natmig)?)?
    };
    println!("up; files are in {}", lab.directory().display());
    println!(
        "nodes: {}",
        lab.network.nodes().collect::<Vec<_>>().join(" ")
    );
    println!("natmig-lab shell NODE runs a shell in one of them; an interrupt ends the lab");
    loop {
        if run::check_interrupted().is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        lab.check()?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn shell(node: &str, command: &[String]) -> Result<ExitCode> {
    let (id, prefix) = run::running()?;
    let namespace = Namespace::open(&format!("{prefix}{node}"))?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let mut child: Command = match command {
        [] => namespace.command(shell),
        [program, arguments @ ..] => {
            let mut command = namespace.command(program);
            command.args(arguments);
            command
        }
    };
    let socket = run::directory(id).join("controller.sock");
    child.env("NATMIG_CONTROLLER", format!("unix://{}", socket.display()));
    let status = child.status().with_context(|| format!("in {node}"))?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}

fn demonstrate(
    natmig: Option<PathBuf>,
    report: &Path,
    json: bool,
    options: &Options,
) -> Result<ExitCode> {
    run::catch_interrupts()?;
    let natmig = find_natmig(natmig)?;
    let say = |words: &str| {
        if json {
            eprintln!("{words}");
        } else {
            println!("{words}");
        }
    };
    let observations = demo::run(&natmig, options, &report.join("logs"), &say)?;
    for listing in &observations.listings {
        say(&format!("\n{}:\n{}", listing.title, listing.text));
    }
    say(&format!(
        "\nMigrations (times count from the request):\n{}",
        report::migrations(&observations)
    ));
    say(&format!("\nFlows:\n{}", report::flows(&observations)));
    say(
        "excused: sent within [unplug − longest delay of the flow, max(replug, anchors' commit)] of one of its ends;\nanchors: the VM's home edges and the edges that it left",
    );
    let page = report::write(&observations, report)?;
    let violations = observations.violations();
    for leak in observations.findings.leaks.iter().take(5) {
        say(&format!("leak: {leak}"));
    }
    for violation in &violations {
        say(&format!("VIOLATION: {violation}"));
    }
    if violations.is_empty() {
        say(
            "\nEvery promise kept: nothing lost outside the windows, duplicated, misdelivered or leaked; no connection broke.",
        );
    }
    say(&format!("report: {}", page.display()));
    let line = serde_json::to_string(&observations.summary())?;
    if json {
        println!("{line}");
    } else {
        say(&line);
    }
    Ok(if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

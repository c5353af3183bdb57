//! The lab's command line.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use natmig_lab::{
    Lab, Topology, chaos,
    demo::{self, Options},
    echo, guest,
    lab::{Store, find_natmig},
    migration,
    namespace::Namespace,
    report, run,
    topology::THREE_TIER,
    traffic::Rates,
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
    /// Migrate VMs at random under live traffic, while daemons die, links are cut and routers reboot
    #[command(after_help = "Examples:\n  \
        natmig-lab chaos --minutes 30 --seed 7\n  \
        natmig-lab chaos --minutes 0.7 --json | tail -1\n  \
        natmig-lab chaos --minutes 5 --embedded    # one controller, with a file")]
    Chaos {
        /// The natmig program
        #[arg(long, value_name = "FILE", env = "NATMIG_BIN")]
        natmig: Option<PathBuf>,
        /// How long migrations and faults go on
        #[arg(long, value_name = "NUMBER", default_value_t = 1.0, value_parser = minutes)]
        minutes: f64,
        /// What happens follows from it: the same seed plans the same
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        seed: u64,
        /// With one controller and its embedded store, instead of three on etcd's three members
        #[arg(long)]
        embedded: bool,
        /// Where the log of the run and of the daemons goes
        #[arg(long, value_name = "DIRECTORY", default_value = "target/chaos")]
        report: PathBuf,
        /// End with one line of JSON; everything else goes to standard error
        #[arg(long)]
        json: bool,
    },
    #[command(name = "bench-migration")]
    BenchMigration(migration::Arguments),
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok().filter(|it| (0.1..=10_000.0).contains(it));
    minutes.ok_or_else(|| "a number of minutes, 0.1 or more".to_owned())
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
        Subcommand::Chaos {
            natmig,
            minutes,
            seed,
            embedded,
            report,
            json,
        } => {
            let options = chaos::Options {
                seed,
                store: if embedded {
                    Store::File(None)
                } else {
                    Store::THREE
                },
                length: Duration::from_secs_f64(minutes * 60.0),
                report,
                rates: Rates::default(),
            };
            make_chaos(natmig, json, &options)
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

/// Tells people something: where programs read standard output, on the other one.
fn say(json: bool, words: &str) {
    if json {
        eprintln!("{words}");
    } else {
        println!("{words}");
    }
}

fn make_chaos(natmig: Option<PathBuf>, json: bool, options: &chaos::Options) -> Result<ExitCode> {
    run::catch_interrupts()?;
    let natmig = find_natmig(natmig)?;
    let say = |words: &str| say(json, words);
    let verdict = chaos::run(&natmig, options, &say)?;
    say(&verdict.text()?);
    let violations = verdict.violations();
    for violation in &violations {
        say(&format!("VIOLATION: {violation}"));
    }
    if violations.is_empty() {
        say(
            "Every promise kept: nothing lost outside the windows, duplicated, misdelivered or leaked; all agree.",
        );
    }
    say(&format!(
        "seed {}; log: {}",
        options.seed,
        options.report.display()
    ));
    println!("{}", serde_json::to_string(&verdict.summary())?);
    Ok(if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn demonstrate(
    natmig: Option<PathBuf>,
    report: &Path,
    json: bool,
    options: &Options,
) -> Result<ExitCode> {
    run::catch_interrupts()?;
    let natmig = find_natmig(natmig)?;
    let say = |words: &str| say(json, words);
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

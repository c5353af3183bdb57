//! natmig's command line, as an operator's programs use it: what the lab asks and reads.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{namespace::Namespace, run};

/// A migration as `natmig migration show ID --json` prints it.
#[derive(Clone, Debug, Deserialize)]
pub struct Migration {
    /// Its number.
    pub id: u64,
    /// How far it is.
    pub phase: String,
    /// When each phase began.
    #[serde(default)]
    pub times: Vec<PhaseTime>,
    /// What each router did.
    #[serde(default)]
    pub routers: Vec<MigrationRouter>,
    /// Its VMs.
    #[serde(default)]
    pub vms: Vec<MigrationVm>,
}

/// A VM of a migration.
#[derive(Clone, Debug, Deserialize)]
pub struct MigrationVm {
    /// Its name.
    pub vm: String,
    /// That it was heard at its new place.
    pub heard: Option<Heard>,
}

/// A router heard a VM.
#[derive(Clone, Debug, Deserialize)]
pub struct Heard {
    /// The router.
    pub router: String,
    /// When, in nanoseconds since the epoch.
    pub at: u64,
}

/// When a phase began.
#[derive(Clone, Debug, Deserialize)]
pub struct PhaseTime {
    /// The phase.
    pub phase: String,
    /// Nanoseconds since the epoch.
    pub at: u64,
}

/// What a router did in a migration.
#[derive(Clone, Debug, Deserialize)]
pub struct MigrationRouter {
    /// Its name.
    #[serde(alias = "router")]
    pub name: String,
    /// How far it got.
    pub progress: Progress,
}

/// How far a router got.
#[derive(Clone, Debug, Deserialize)]
pub struct Progress {
    /// In one word.
    pub state: String,
    /// When it committed, in nanoseconds since the epoch.
    pub at: Option<u64>,
}

impl Migration {
    /// When a phase began.
    pub fn began(&self, phase: &str) -> Option<u64> {
        self.times
            .iter()
            .find(|time| time.phase == phase)
            .map(|time| time.at)
    }

    /// When each router committed.
    pub fn commits(&self) -> BTreeMap<String, u64> {
        self.routers
            .iter()
            .filter_map(|router| Some((router.name.clone(), router.progress.at?)))
            .collect()
    }

    /// Its VMs may migrate again.
    pub fn is_folded(&self) -> bool {
        matches!(self.phase.as_str(), "draining" | "retiring" | "done")
    }

    /// Nothing is left to do.
    pub fn is_over(&self) -> bool {
        matches!(self.phase.as_str(), "done" | "aborted")
    }
}

/// The command line of one controller.
#[derive(Clone, Debug)]
pub struct Client {
    program: PathBuf,
    socket: PathBuf,
}

impl Client {
    /// Uses `program` and the controller's Unix socket.
    pub fn new(program: &Path, socket: &Path) -> Self {
        Self {
            program: program.to_owned(),
            socket: socket.to_owned(),
        }
    }

    fn run(&self, mut command: Command, arguments: &[&str]) -> Result<Output> {
        command
            .args(arguments)
            .env(
                "NATMIG_CONTROLLER",
                format!("unix://{}", self.socket.display()),
            )
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))
    }

    /// Runs a command and gives its outcome, whatever it is.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        self.run(Command::new(&self.program), arguments)
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        text(&self.attempt(arguments)?, arguments)
    }

    /// Runs a command in a router's namespace and gives its outcome, whatever it is.
    pub fn attempt_in(&self, namespace: &Namespace, arguments: &[&str]) -> Result<Output> {
        self.run(namespace.command(&self.program), arguments)
    }

    /// Runs a command in a router's namespace.
    pub fn ask_in(&self, namespace: &Namespace, arguments: &[&str]) -> Result<String> {
        text(&self.attempt_in(namespace, arguments)?, arguments)
    }

    /// Asks for a migration that waits to be activated; returns its number.
    pub fn migrate(&self, moves: &[(&str, &str)]) -> Result<u64> {
        self.migrate_on("manual", moves)
    }

    /// Asks for a migration that is activated in this way (`--activate`); returns its number.
    pub fn migrate_on(&self, activation: &str, moves: &[(&str, &str)]) -> Result<u64> {
        let pairs: Vec<String> = moves
            .iter()
            .map(|(vm, segment)| format!("{vm}={segment}"))
            .collect();
        let mut arguments = vec!["migrate"];
        arguments.extend(pairs.iter().map(String::as_str));
        arguments.extend(["--activate", activation, "--json"]);
        let migration: Migration = parse(&self.ask(&arguments)?)?;
        Ok(migration.id)
    }

    /// A migration as it is.
    pub fn migration(&self, id: u64) -> Result<Migration> {
        parse(&self.ask(&["migration", "show", &id.to_string(), "--json"])?)
    }

    /// Waits until a migration is as it should be.
    pub fn wait(
        &self,
        id: u64,
        what: &str,
        deadline: Duration,
        done: impl Fn(&Migration) -> bool,
    ) -> Result<Migration> {
        run::wait_for(&format!("migration {id} {what}"), deadline, || {
            let migration = self.migration(id)?;
            ensure!(
                migration.phase != "aborted" || done(&migration),
                "migration {id} was aborted"
            );
            Ok(done(&migration).then_some(migration))
        })
    }

    /// Names of connected routers.
    pub fn connected(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Router {
            name: String,
            connected: bool,
        }
        let routers: Vec<Router> = parse(&self.ask(&["router", "list", "--json"])?)?;
        Ok(routers
            .into_iter()
            .filter(|router| router.connected)
            .map(|router| router.name)
            .collect())
    }
}

fn text(output: &Output, arguments: &[&str]) -> Result<String> {
    ensure!(
        output.status.success(),
        "natmig {}: {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json)
        .with_context(|| format!("natmig printed other JSON than expected: {json}"))
}

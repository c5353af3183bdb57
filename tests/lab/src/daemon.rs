//! natmig's daemons in the lab: controller and agents, started, killed and started again.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::{namespace::Namespace, run::Run};

/// A daemon that ends with its value.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    namespace: Namespace,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Starts `program` in a namespace; what it says goes to `logs/NAME.log` of the run directory.
    pub fn start(
        run: &Run,
        name: &str,
        namespace: &Namespace,
        program: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        let logs = run.directory().join("logs");
        fs::create_dir_all(&logs)?;
        let mut daemon = Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
            namespace: namespace.clone(),
            log: logs.join(format!("{name}.log")),
            child: None,
        };
        daemon.restart(run)?;
        Ok(daemon)
    }

    /// Starts it again after it was killed.
    pub fn restart(&mut self, run: &Run) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command: Command = self.namespace.command(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env("NO_COLOR", "1")
            // An interrupt from the terminal is for the lab, which ends its daemons in order.
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        run.note_process(child.id())?;
        self.child = Some(child);
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it logs.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills it without warning.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self
            .child
            .as_ref()
            .with_context(|| format!("{} does not run", self.name))?;
        signal::kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        Ok(())
    }

    /// Whether it was started and not killed since.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Its process, while it was started and not killed since.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Asks it to end, and kills it if it does not within `patience`.
    pub fn stop(&mut self, patience: Duration) -> Result<()> {
        if let Some(child) = &mut self.child {
            let pid = Pid::from_raw(i32::try_from(child.id())?);
            signal::kill(pid, Signal::SIGTERM)?;
            let start = Instant::now();
            while child.try_wait()?.is_none() && start.elapsed() < patience {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.kill()
    }

    /// An error with the end of its log if it ended by itself.
    pub fn check(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        if let Some(status) = child.try_wait()? {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            bail!("{} ended with {status}:\n{tail}", self.name);
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("natmig-lab: ending {}: {error:#}", self.name);
        }
    }
}

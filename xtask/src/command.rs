//! Running other programs: what is run is said, and a failure names the command.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Says what is about to happen. Standard output belongs to the programs that are run.
pub(crate) fn step(text: &str) {
    eprintln!("xtask: {text}");
}

/// Runs a command to its end; an exit status other than 0 is an error.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command
        .status()
        .with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Runs a command and returns what it printed, or `None` if it failed or does not exist.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command and returns what it printed; an exit status other than 0 is an error.
pub(crate) fn captured(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({})", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed no text"))
}

/// Where a program is in `PATH` or in the directories of system programs.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// A `cargo` that is not influenced by the `cargo run` that started this program.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// This machine's target triple.
pub(crate) fn host() -> String {
    output(Command::new("rustc").arg("-vV"))
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        })
        .unwrap_or_else(|| format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
}

fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// How programs that need root are run.
pub(crate) struct Privileged {
    sudo: bool,
}

impl Privileged {
    /// As root directly, otherwise through `sudo`.
    pub(crate) fn find() -> Result<Self> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Self { sudo: false });
        }
        if find("sudo").is_none() {
            bail!("this needs root, and there is no sudo: run it as root");
        }
        Ok(Self { sudo: true })
    }

    /// A command that runs `program` as root, with these environment variables.
    pub(crate) fn command(&self, program: &Path, variables: &[(&str, &OsStr)]) -> Command {
        if self.sudo {
            let mut command = Command::new("sudo");
            for (name, value) in variables {
                let mut assignment = OsString::from(name);
                assignment.push("=");
                assignment.push(value);
                command.arg(assignment);
            }
            command.arg(program);
            command
        } else {
            let mut command = Command::new(program);
            command.envs(variables.iter().copied());
            command
        }
    }

    /// What runs a program as root with this environment, or `None` for nothing at all.
    pub(crate) fn prefix(&self) -> Option<&'static str> {
        self.sudo.then_some("sudo --preserve-env")
    }

    /// Runs `program` as root and returns its exit code.
    pub(crate) fn run_to_exit(
        &self,
        program: &Path,
        arguments: &[OsString],
        variables: &[(&str, &OsStr)],
    ) -> Result<ExitCode> {
        let status = self
            .command(program, variables)
            .args(arguments)
            .status()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
    }
}

//! rustup's toolchains, for what Debian's compiler does not bring.

use std::{path::Path, process::Command};

use crate::command::{check, output, step};

/// A toolchain of rustup's, by its name.
pub(crate) struct Toolchain(String);

impl Toolchain {
    /// The toolchain of this name, whether it is installed or not.
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The one that runs this program; `None` if rustup does not.
    pub(crate) fn current() -> Option<Self> {
        let text = output(Command::new("rustup").args(["show", "active-toolchain"]))?;
        text.split_whitespace().next().map(Self::named)
    }

    /// A program of it, without what a cargo around this program has set.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("rustup");
        command.args(["run", &self.0, program]);
        for variable in [
            "CARGO",
            "RUSTC",
            "RUSTUP_TOOLCHAIN",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(variable);
        }
        command
    }

    /// Whether it has the sources of its standard library.
    pub(crate) fn has_sources(&self) -> bool {
        output(self.command("rustc").args(["--print", "sysroot"])).is_some_and(|sysroot| {
            let core = "lib/rustlib/src/rust/library/core";
            Path::new(&sysroot).join(core).is_dir()
        })
    }

    /// Whether `cargo` of it has this subcommand.
    pub(crate) fn has_subcommand(&self, name: &str) -> bool {
        output(self.command("cargo").args([name, "--version"])).is_some()
    }

    /// Adds components to it; whether that was possible.
    pub(crate) fn add(&self, components: &[&str]) -> bool {
        let list = components.join(" ");
        step(&format!("adding {list} to rustup's {}", self.0));
        let mut command = Command::new("rustup");
        command.args(["component", "add", "--toolchain", &self.0]);
        check(command.args(components).stdout(std::io::stderr())).is_ok()
    }

    /// Installs it with no more than these components; an error says what failed.
    pub(crate) fn install(&self, components: &[&str]) -> anyhow::Result<()> {
        step(&format!("installing rustup's {}", self.0));
        let mut command = Command::new("rustup");
        command.args(["toolchain", "install", &self.0, "--profile", "minimal"]);
        for component in components {
            command.args(["--component", component]);
        }
        check(command.stdout(std::io::stderr()))
    }
}

//! `cargo xtask`: natmig's set-up, build, demo and tests, on a fresh Debian machine with rustup.

mod calls;
mod command;
mod fuzz;
mod kernel;
mod miri;
mod object;
mod packages;
mod rustup;
mod setup;
mod test;
mod toolchain;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser as _;

use crate::command::{Privileged, cargo, check, step};

/// Sets up, builds, demonstrates and tests natmig.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Finds or installs what building and running needs, and says what it does.
    Setup,
    /// Builds the eBPF object and the `natmig` binary with the object embedded.
    Build {
        /// Byte order to build the object for; for another than this machine's, the object alone.
        #[arg(long, value_enum, default_value_t = object::Target::NATIVE)]
        target: object::Target,
    },
    /// Builds natmig and attaches it to this machine's interfaces.
    ///
    /// Example: `cargo xtask load --config router.toml`
    #[command(disable_help_flag = true)]
    Load {
        /// Arguments of `natmig load`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Migrates VMs under live traffic in a three-tier lab of network namespaces.
    #[command(disable_help_flag = true)]
    Demo {
        /// Arguments of the demo, such as `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Makes what the lab's real guests (QEMU) boot, and prints the variables that name it.
    ///
    /// Example: `export $(cargo xtask guest)`
    Guest,
    /// Migrates VMs at random in the lab while daemons die, links are cut and routers reboot.
    ///
    /// Example: `cargo xtask chaos --minutes 30 --seed 7`
    #[command(disable_help_flag = true)]
    Chaos {
        /// Arguments of the run, such as `--minutes`, `--seed` and `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measures natmig beside other ways to forward and to translate: see `--help`.
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of the benchmarks, such as `--quick` or `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Runs every check: format, lints, documentation, unit and property tests, packet fixtures in
    /// the kernel, router and lab scenarios.
    #[command(visible_alias = "ci")]
    Test(test::Arguments),
    /// Runs the packet core's tests on an interpreted big-endian machine, under Miri.
    ///
    /// Example: `cargo xtask miri --cases 64`
    Miri(miri::Arguments),
    /// Fuzzes the packet logic against the oracle.
    ///
    /// Example: `cargo xtask fuzz --minutes 30`
    Fuzz(fuzz::Arguments),
    /// Checks natmig's invariants in every state of small fabrics: see `--help`.
    #[command(disable_help_flag = true)]
    Model {
        /// Arguments of the model checker, such as `--more 1` or `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    std::env::set_current_dir(root())?;
    match task {
        Task::Setup => {
            setup::prepare(setup::For::Tests)?;
            packages::ensure(kernel::NEEDS)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Build { target } => {
            let object = object::build_for(&setup::prepare(setup::For::Build)?, target)?;
            if target != object::Target::NATIVE {
                step(&format!("built {}", object.display()));
                return Ok(ExitCode::SUCCESS);
            }
            let binary = object::build_binary(&object, "natmig")?;
            step(&format!("built {}", binary.display()));
            Ok(ExitCode::SUCCESS)
        }
        Task::Load { mut arguments } => {
            let object = object::build(&setup::prepare(setup::For::Run)?)?;
            let binary = object::build_binary(&object, "natmig")?;
            arguments.insert(0, "load".into());
            Privileged::find()?.run_to_exit(&binary, &arguments, &[])
        }
        Task::Demo { arguments } => run_lab("demo", arguments),
        Task::Chaos { arguments } => run_lab("chaos", arguments),
        Task::Bench { mut arguments } if arguments.first().is_some_and(|it| it == "migration") => {
            arguments.remove(0);
            run_lab("bench-migration", arguments)
        }
        Task::Guest => {
            let object = object::build(&setup::prepare(setup::For::Build)?)?;
            let boot = kernel::guest(&object::build_binary(&object, "natmig-lab")?)?;
            println!("NATMIG_GUEST_KERNEL={}", boot.kernel.display());
            println!("NATMIG_GUEST_IMAGE={}", boot.image.display());
            Ok(ExitCode::SUCCESS)
        }
        Task::Bench { arguments } => {
            let toolchain = setup::prepare(setup::For::Tests)?;
            let object = object::build(&toolchain)?;
            let programs = object::build_bench(&toolchain)?;
            let natmig = object::build_binary(&object, "natmig")?;
            let bench = object::build_binary(&object, "natmig-bench")?;
            let variables = [
                ("NATMIG_EBPF_OBJECT", object.as_os_str()),
                ("NATMIG_BENCH_OBJECT", programs.as_os_str()),
                ("NATMIG_BIN", natmig.as_os_str()),
            ];
            Privileged::find()?.run_to_exit(&bench, &arguments, &variables)
        }
        Task::Test(arguments) => test::run(&arguments),
        Task::Miri(arguments) => miri::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Model { arguments } => {
            let mut model = cargo();
            model.args(["run", "--quiet", "--locked", "--release"]);
            model.args(["--package", "natmig-model", "--"]);
            check(model.args(arguments))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Builds natmig and its lab, and runs one of the lab's commands.
fn run_lab(command: &str, mut arguments: Vec<OsString>) -> Result<ExitCode> {
    let object = object::build(&setup::prepare(setup::For::Tests)?)?;
    let natmig = object::build_binary(&object, "natmig")?;
    let lab = object::build_binary(&object, "natmig-lab")?;
    arguments.insert(0, command.into());
    Privileged::find()?.run_to_exit(&lab, &arguments, &[("NATMIG_BIN", natmig.as_os_str())])
}

/// The workspace's top directory.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), PathBuf::from)
}

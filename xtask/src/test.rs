//! `cargo xtask test`: every check that CI runs.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    calls,
    command::{Privileged, cargo, check, host, step},
    kernel, object,
    setup::{self, For},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leaves format, lints and documentation out.
    #[arg(long)]
    no_lint: bool,
    /// Runs only the packet fixtures, on Debian's kernel of this version, such as 6.1.
    ///
    /// The kernel is taken from the newest package `linux-image-VERSION…-cloud-amd64` of the
    /// configured archives, unpacked below `target`, and booted in an emulator without network.
    /// Prints what the verifier made of the program. Give the option again for another version.
    #[arg(long, value_name = "VERSION", conflicts_with = "no_lint")]
    kernel: Vec<kernel::Version>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !arguments.kernel.is_empty() {
        let object = object::build(&setup::prepare(For::Build)?)?;
        kernel::test(&arguments.kernel, &object)?;
        return Ok(ExitCode::SUCCESS);
    }
    let root = Privileged::find()?;
    let toolchain = setup::prepare(For::Tests)?;
    let object = object::build(&toolchain)?;
    if !arguments.no_lint {
        lint(&object)?;
    }
    let natmig = object::build_binary(&object, "natmig")?;
    let lab = object::build_binary(&object, "natmig-lab")?;
    let variables: [(&str, &OsStr); 4] = [
        ("NATMIG_EBPF_OBJECT", object.as_os_str()),
        ("NATMIG_BIN", natmig.as_os_str()),
        ("NATMIG_LAB_BIN", lab.as_os_str()),
        ("NATMIG_REQUIRE_ROOT", OsStr::new("1")),
    ];

    step("unit and property tests, packet fixtures, router tests");
    let mut tests = cargo();
    tests.args([
        "test",
        "--locked",
        "--release",
        "--workspace",
        "--exclude",
        "natmig-lab",
        "--no-fail-fast",
    ]);
    check(as_root(&root, &mut tests, &variables))?;

    step("what the verifier makes of the program");
    let fixtures = object::build_binary(&object, kernel::FIXTURES)?;
    check(root.command(&fixtures, &variables).arg("--json"))?;

    step("benchmarks, too briefly to measure anything");
    let bench = object::build_binary(&object, "natmig-bench")?;
    let programs = object::build_bench(&toolchain)?;
    if !arguments.no_lint {
        calls::check(&programs)?;
    }
    let mut smoke = root.command(
        &bench,
        &[
            variables[0],
            variables[1],
            ("NATMIG_BENCH_OBJECT", programs.as_os_str()),
        ],
    );
    check(smoke.args(["--smoke", "--json"]))?;
    let mut migrations = root.command(&lab, &variables[1..2]);
    check(
        migrations
            .args(["bench-migration", "--migrations", "4"])
            .args(["--group-migrations", "2", "--group", "50"])
            .args(["--etcd-migrations", "4", "--inventory", "500"])
            .args(["--queued", "100", "--json"]),
    )?;

    step("lab scenarios");
    let guest = guest_of(&lab)?;
    let mut scenario_variables = variables.to_vec();
    if let Some(boot) = &guest {
        scenario_variables.push(("NATMIG_GUEST_KERNEL", boot.kernel.as_os_str()));
        scenario_variables.push(("NATMIG_GUEST_IMAGE", boot.image.as_os_str()));
    }
    let mut scenarios = cargo();
    scenarios
        .args([
            "test",
            "--locked",
            "--release",
            "--package",
            "natmig-lab",
            "--no-fail-fast",
        ])
        // The scenarios share the machine's two or more CPUs with forty namespaces each.
        .args(["--", "--test-threads=1", "--nocapture"]);
    check(as_root(&root, &mut scenarios, &scenario_variables))?;
    Ok(ExitCode::SUCCESS)
}

/// What real guests boot, where there can be any.
fn guest_of(lab: &Path) -> Result<Option<kernel::Boot>> {
    if cfg!(target_arch = "x86_64") {
        kernel::guest(lab).map(Some)
    } else {
        Ok(None)
    }
}

/// Has cargo build as the caller and run the tests as root.
fn as_root<'a>(
    root: &Privileged,
    cargo: &'a mut Command,
    variables: &[(&str, &OsStr)],
) -> &'a mut Command {
    if let Some(sudo) = root.prefix() {
        let host = host().to_uppercase().replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{host}_RUNNER"), sudo);
    }
    cargo.envs(variables.iter().copied())
}

fn lint(object: &Path) -> Result<()> {
    step("format, lints, documentation");
    check(cargo().args(["fmt", "--all", "--check"]))?;
    check(
        cargo()
            .args([
                "clippy",
                "--quiet",
                "--locked",
                "--release",
                "--workspace",
                "--all-targets",
            ])
            .args(["--", "--deny", "warnings"])
            .env("NATMIG_EBPF_OBJECT", object),
    )?;
    object::lint()?;
    calls::check(object)?;
    check(
        cargo()
            .args([
                "doc",
                "--quiet",
                "--locked",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("NATMIG_EBPF_OBJECT", object)
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )
}

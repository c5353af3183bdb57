//! Building the eBPF object and the binaries that embed it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    command::{cargo, check, step},
    rustup,
    toolchain::Toolchain,
};

/// Flags of the eBPF build: instruction set v3 (32-bit registers, atomics; Linux 5.12 and later),
/// and type information.
const RUSTFLAGS: &str = "-C target-cpu=v3 -C debuginfo=2 -C link-arg=--btf";

/// An object: the package that it is built from, and its name.
struct Program {
    package: &'static str,
    name: &'static str,
}

/// natmig's.
const NATMIG: Program = Program {
    package: "natmig-ebpf",
    name: "natmig-bpf",
};
/// The benchmarks' own.
const BENCH: Program = Program {
    package: "natmig-bench-ebpf",
    name: "natmig-bench-bpf",
};

/// Byte order of the machine that an object is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// Little-endian, such as x86-64 and ARM64.
    Bpfel,
    /// Big-endian, such as s390x.
    Bpfeb,
}

impl Target {
    /// This machine's.
    pub(crate) const NATIVE: Self = if cfg!(target_endian = "big") {
        Self::Bpfeb
    } else {
        Self::Bpfel
    };

    /// The compiler's name of it.
    const fn triple(self) -> &'static str {
        match self {
            Self::Bpfel => "bpfel-unknown-none",
            Self::Bpfeb => "bpfeb-unknown-none",
        }
    }
}

/// Builds natmig's eBPF object for this machine and returns its path.
pub(crate) fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    build_for(toolchain, Target::NATIVE)
}

/// Builds natmig's eBPF object for machines of this byte order and returns its path.
pub(crate) fn build_for(toolchain: &Toolchain, target: Target) -> Result<PathBuf> {
    build_object(toolchain, target, &NATMIG)
}

/// Builds the object of the benchmarks' own programs and returns its path.
pub(crate) fn build_bench(toolchain: &Toolchain) -> Result<PathBuf> {
    build_object(toolchain, Target::NATIVE, &BENCH)
}

/// Lints the programs of all objects, for this machine's byte order, where rustup has a compiler with clippy
/// and the sources of `core` or can add what is missing: Debian's has no clippy. Else it says what is skipped.
pub(crate) fn lint() -> Result<()> {
    const COMPONENTS: [&str; 2] = ["clippy", "rust-src"];
    let complete = |toolchain: &rustup::Toolchain| {
        toolchain.has_sources() && toolchain.has_subcommand("clippy")
    };
    let toolchain = rustup::Toolchain::current()
        .filter(|it| complete(it) || it.add(&COMPONENTS) && complete(it));
    let Some(toolchain) = toolchain else {
        step(&format!(
            "SKIPPED: lints of the eBPF programs need `rustup component add {}`",
            COMPONENTS.join(" ")
        ));
        return Ok(());
    };
    for program in [NATMIG, BENCH] {
        step(&format!("lints of the eBPF program {}", program.name));
        let mut clippy = toolchain.command("cargo");
        clippy.args(["clippy", "--quiet"]);
        program.arguments(&mut clippy, Target::NATIVE);
        clippy
            .args(["--target-dir", "target/bpf-lint"])
            .args(["--", "--deny", "warnings"])
            // A stable compiler may use `-Z build-std` only this way.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", RUSTFLAGS);
        check(&mut clippy)?;
    }
    Ok(())
}

impl Program {
    /// Adds what every cargo command on the program is told.
    fn arguments(&self, cargo: &mut Command, target: Target) {
        cargo
            .args(["--locked", "--release", "-Z", "build-std=core"])
            .args(["--target", target.triple()])
            .args(["--package", self.package, "--bin", self.name])
            .args(["--features", "program"]);
    }
}

fn build_object(toolchain: &Toolchain, target: Target, program: &Program) -> Result<PathBuf> {
    let (triple, name) = (target.triple(), program.name);
    step(&format!("building the eBPF object {name} ({triple})"));
    let directory = std::env::current_dir()?.join("target/bpf");
    let mut cargo = toolchain.cargo()?;
    cargo.args(["build", "--quiet"]);
    program.arguments(&mut cargo, target);
    cargo
        .arg("--target-dir")
        .arg(&directory)
        .env("RUSTFLAGS", RUSTFLAGS);
    check(&mut cargo)?;
    Ok(directory.join(triple).join("release").join(name))
}

/// Builds one of the workspace's binaries, with the object embedded where it embeds one.
pub(crate) fn build_binary(object: &Path, package: &str) -> Result<PathBuf> {
    step(&format!("building {package}"));
    check(
        cargo()
            .args([
                "build",
                "--quiet",
                "--locked",
                "--release",
                "--package",
                package,
            ])
            .env("NATMIG_EBPF_OBJECT", object),
    )?;
    let binary = std::env::current_dir()?
        .join("target/release")
        .join(package);
    binary
        .canonicalize()
        .with_context(|| format!("{} was not built", binary.display()))
}

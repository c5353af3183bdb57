//! Building the eBPF object and the binaries that embed it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    command::{cargo, check, step},
    toolchain::Toolchain,
};

/// Flags of the eBPF build: instruction set v3 (32-bit registers, atomics; Linux 5.12 and later),
/// and type information.
const RUSTFLAGS: &str = "-C target-cpu=v3 -C debuginfo=2 -C link-arg=--btf";

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
    build_object(toolchain, target, "natmig-ebpf", "natmig-bpf")
}

/// Builds the object of the benchmarks' own programs and returns its path.
pub(crate) fn build_bench(toolchain: &Toolchain) -> Result<PathBuf> {
    build_object(
        toolchain,
        Target::NATIVE,
        "natmig-bench-ebpf",
        "natmig-bench-bpf",
    )
}

fn build_object(
    toolchain: &Toolchain,
    target: Target,
    package: &str,
    program: &str,
) -> Result<PathBuf> {
    let triple = target.triple();
    step(&format!("building the eBPF object {program} ({triple})"));
    let directory = std::env::current_dir()?.join("target/bpf");
    check(
        toolchain
            .cargo()?
            .args([
                "build",
                "--quiet",
                "--locked",
                "--release",
                "-Z",
                "build-std=core",
            ])
            .args(["--target", triple, "--package", package, "--bin", program])
            .args(["--features", "program", "--target-dir"])
            .arg(&directory)
            .env("RUSTFLAGS", RUSTFLAGS),
    )?;
    Ok(directory.join(triple).join("release").join(program))
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

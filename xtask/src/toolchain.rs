//! The eBPF toolchain: a Rust compiler that may build `core` from source, and `bpf-linker` for its LLVM.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{cargo, check, find, output, step},
    packages,
};

/// Version of `bpf-linker` that natmig is built with.
const BPF_LINKER: &str = "0.13.0";
/// LLVM versions that this `bpf-linker` supports.
const LLVM_SUPPORTED: std::ops::RangeInclusive<u32> = 21..=23;

/// Where Debian's packages put their compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// Debian's compiler, its sources, and the LLVM that the linker is built with.
const DEBIAN_PACKAGES: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
];

/// A complete eBPF toolchain.
pub(crate) struct Toolchain {
    rust: Rust,
    /// Directory of the `bpf-linker` for this compiler's LLVM.
    linker: PathBuf,
}

/// A Rust compiler with the sources of its standard library.
enum Rust {
    /// rustup's nightly.
    Nightly { llvm: u32 },
    /// Debian's packages.
    Debian { llvm: u32 },
}

impl Rust {
    fn llvm(&self) -> u32 {
        match *self {
            Self::Nightly { llvm } | Self::Debian { llvm } => llvm,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Nightly { llvm } => format!("rustup's nightly with rust-src (LLVM {llvm})"),
            Self::Debian { llvm } => format!("Debian's rustc with rust-web-src (LLVM {llvm})"),
        }
    }
}

impl Toolchain {
    /// Finds a toolchain, or installs Debian's.
    pub(crate) fn find_or_install() -> Result<Self> {
        let rust = if let Some(rust) = nightly().or_else(debian) {
            rust
        } else {
            step("no Rust compiler with the sources of `core` here; taking Debian's");
            packages::install(DEBIAN_PACKAGES).context(
                "an eBPF toolchain is needed: either `rustup toolchain install nightly \
                 --component rust-src`, or Debian's packages",
            )?;
            debian().context("Debian's rustc-web is installed, but has no usable rust-src")?
        };
        step(&format!("eBPF compiler: {}", rust.describe()));
        let linker = linker(rust.llvm())?;
        Ok(Self { rust, linker })
    }

    /// A `cargo` that builds for the BPF target.
    pub(crate) fn cargo(&self) -> Result<Command> {
        let mut command = match self.rust {
            Rust::Nightly { .. } => {
                let mut command = Command::new("rustup");
                command
                    .args(["run", "nightly", "cargo"])
                    .env_remove("RUSTC");
                command
            }
            Rust::Debian { .. } => {
                let mut command = Command::new(DEBIAN_CARGO);
                // Debian's compiler is a stable one, which may use `-Z build-std` only this way.
                command
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        for variable in [
            "CARGO",
            "RUSTUP_TOOLCHAIN",
            "RUSTC_WRAPPER",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(variable);
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(
            [self.linker.clone()]
                .into_iter()
                .chain(env::split_paths(&path)),
        )?;
        command.env("PATH", path);
        Ok(command)
    }
}

fn nightly() -> Option<Rust> {
    let sysroot =
        output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
    if !Path::new(&sysroot)
        .join("lib/rustlib/src/rust/library/core")
        .is_dir()
    {
        return None;
    }
    let llvm = llvm_version(Command::new("rustup").args(["run", "nightly", "rustc", "-vV"]))?;
    if !LLVM_SUPPORTED.contains(&llvm) {
        step(&format!(
            "rustup's nightly has LLVM {llvm}, which bpf-linker {BPF_LINKER} does not know"
        ));
        return None;
    }
    Some(Rust::Nightly { llvm })
}

fn debian() -> Option<Rust> {
    let has_sources = Path::new("/usr/lib/rustlib/src/rust/library/core").is_dir();
    if !has_sources || !Path::new(DEBIAN_CARGO).is_file() {
        return None;
    }
    let llvm = llvm_version(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
    LLVM_SUPPORTED
        .contains(&llvm)
        .then_some(Rust::Debian { llvm })
}

fn llvm_version(rustc: &mut Command) -> Option<u32> {
    let text = output(rustc)?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// The directory of a `bpf-linker` for this LLVM: one in `target/tools`, built if need be.
fn linker(llvm: u32) -> Result<PathBuf> {
    let root = env::current_dir()?
        .join("target/tools")
        .join(format!("llvm-{llvm}"));
    let directory = root.join("bin");
    let stamp = root.join("version");
    if fs::read_to_string(&stamp).is_ok_and(|version| version == BPF_LINKER)
        && directory.join("bpf-linker").is_file()
    {
        return Ok(directory);
    }
    let prefix = llvm_prefix(llvm)?;
    step(&format!(
        "building bpf-linker {BPF_LINKER} for LLVM {llvm} (about a minute)"
    ));
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        [prefix.join("bin")]
            .into_iter()
            .chain(env::split_paths(&path)),
    )?;
    check(
        cargo()
            .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{llvm}"),
            ])
            .arg("--root")
            .arg(&root)
            .arg("--target-dir")
            .arg(root.join("build"))
            .env("LLVM_PREFIX", &prefix)
            .env("PATH", path),
    )?;
    fs::remove_dir_all(root.join("build")).ok();
    fs::write(stamp, BPF_LINKER)?;
    Ok(directory)
}

/// Where the development files of this LLVM are.
fn llvm_prefix(llvm: u32) -> Result<PathBuf> {
    let prefix = || {
        let config = find(&format!("llvm-config-{llvm}"))
            .unwrap_or_else(|| format!("/usr/lib/llvm-{llvm}/bin/llvm-config").into());
        output(Command::new(config).arg("--prefix")).map(PathBuf::from)
    };
    let complete = |prefix: &PathBuf| prefix.join("include/llvm-c").is_dir();
    if let Some(prefix) = prefix().filter(complete) {
        return Ok(prefix);
    }
    let package = format!("llvm-{llvm}-dev");
    packages::install(&[&package, "zlib1g-dev", "libzstd-dev"])?;
    match prefix().filter(complete) {
        Some(prefix) => Ok(prefix),
        None => bail!("package {package} is installed, but llvm-config-{llvm} is not to be found"),
    }
}

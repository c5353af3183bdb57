//! Finds or installs everything that a task needs.

use std::path::Path;

use anyhow::Result;

use crate::{
    command::{Privileged, check, find, step},
    packages,
    toolchain::Toolchain,
};

/// What the set-up is for; each needs all that the ones before it need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum For {
    /// Building alone.
    Build,
    /// Running natmig on this machine.
    Run,
    /// The lab: demo and tests.
    Tests,
}

/// Prepares the machine and returns the eBPF toolchain.
pub(crate) fn prepare(purpose: For) -> Result<Toolchain> {
    if find("cc").is_none() {
        packages::install(&["gcc", "libc6-dev"])?;
    }
    let toolchain = Toolchain::find_or_install()?;
    if purpose >= For::Run {
        packages::ensure(packages::RUN)?;
        mount_bpffs()?;
    }
    if purpose >= For::Tests {
        packages::ensure(packages::LAB)?;
    }
    Ok(toolchain)
}

/// Mounts the file system in which maps and links are pinned, where it is not mounted.
fn mount_bpffs() -> Result<()> {
    const BPFFS: &str = "/sys/fs/bpf";
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if mounted {
        return Ok(());
    }
    step(&format!("mounting the bpf file system on {BPFFS}"));
    check(
        Privileged::find()?
            .command(Path::new("mount"), &[])
            .args(["-t", "bpf", "bpf", BPFFS]),
    )
}

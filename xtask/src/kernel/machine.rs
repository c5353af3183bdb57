//! The emulated machine.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;

use super::package::Kernel;
use crate::command::check;

/// Seconds that a run may take. It takes ten minutes, and with 6.1, whose verifier is slower, more than half an hour.
const LIMIT: &str = "7200";

/// A kernel that panics ends the machine at once. On a busy machine the emulated timer may come too
/// late for the kernel's check of it, which is therefore left out.
const PARAMETERS: &str = "console=ttyS0 quiet panic=-1 no_timer_check";

/// Boots the kernel with this image and lets it run to its end. Returns the programs that ended in
/// it, with their exit statuses; their output goes to standard output.
pub(super) fn run(kernel: &Kernel, image: &Path) -> Result<Vec<(String, i32)>> {
    let statuses = kernel.root.join("statuses");
    check(
        Command::new("timeout")
            .args(["--foreground", LIMIT, "qemu-system-x86_64"])
            // Software emulation: the same everywhere, also where machines cannot be nested.
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"])
            .args(["-nodefaults", "-nic", "none", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-serial"])
            .arg(format!("file:{}", statuses.display()))
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(image)
            .args(["-append", PARAMETERS])
            .stdin(Stdio::null()),
    )?;
    let ended = fs::read_to_string(statuses)?;
    Ok(ended
        .lines()
        .filter_map(|line| {
            let (name, status) = line.trim().split_once(' ')?;
            Some((name.to_owned(), status.parse().ok()?))
        })
        .collect())
}

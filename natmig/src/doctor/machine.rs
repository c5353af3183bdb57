//! Kernel, BPF and clock.

use super::{
    facts::Machine,
    finding::{Chapter, Finding, Subject},
    sysctl,
};

/// The oldest kernel that natmig runs on.
const OLDEST: (u32, u32) = (6, 1);

/// Version of a kernel, from its release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn kernel(machine: &Machine, findings: &mut Vec<Finding>) {
    let mut chapter = Chapter::new(Subject::Kernel, findings);
    let release = format!("Linux {}", machine.release);
    match version(&machine.release) {
        Some(version) if version < OLDEST => chapter.error(
            "version",
            release,
            format!(
                "natmig's programs need Linux {}.{} or newer; this kernel may refuse them",
                OLDEST.0, OLDEST.1
            ),
            "apt install linux-image-amd64 && reboot",
        ),
        Some(_) => chapter.ok("version", release),
        None => chapter.note(
            "version",
            release,
            "its version cannot be read from that; natmig needs 6.1 or newer",
            None,
        ),
    }
    if machine.btf {
        chapter.ok("btf", "the kernel describes its types (BTF)");
    } else {
        chapter.warning(
            "btf",
            "/sys/kernel/btf/vmlinux does not exist",
            "natmig is tested on kernels with BTF only, and programs may be refused without it",
            "grep CONFIG_DEBUG_INFO_BTF= /boot/config-$(uname -r)   # boot a kernel that has it set to y",
        );
    }
}

pub(super) fn bpf(machine: &Machine, findings: &mut Vec<Finding>) {
    let mut chapter = Chapter::new(Subject::Bpf, findings);
    if machine.bpffs {
        chapter.ok("bpffs", "mounted on /sys/fs/bpf");
    } else {
        chapter.error(
            "bpffs",
            "/sys/fs/bpf is no BPF file system",
            "natmig cannot pin its maps, so it refuses to load",
            "mount -t bpf bpf /sys/fs/bpf",
        );
    }
    match machine.jit {
        Some(false) => chapter.warning(
            "jit",
            "the BPF compiler is off (net.core.bpf_jit_enable=0)",
            "every packet runs through an interpreter, several times slower",
            sysctl::set("net.core.bpf_jit_enable", 1),
        ),
        Some(true) => chapter.ok("jit", "programs are compiled"),
        None => chapter.note(
            "jit",
            "net.core.bpf_jit_enable cannot be read here",
            "only the machine's first network namespace shows whether programs are compiled",
            None,
        ),
    }
    if machine.jit_harden == Some(2) {
        chapter.note(
            "jit_harden",
            "constants are blinded for root's programs as well (net.core.bpf_jit_harden=2)",
            "natmig's program is longer and slower",
            Some(sysctl::set("net.core.bpf_jit_harden", 1)),
        );
    }
    if machine.bpf_stats.is_some_and(|value| value != 0) {
        chapter.warning(
            "bpf_stats",
            "every run of a program is timed (kernel.bpf_stats_enabled=1)",
            "two readings of the clock per packet",
            sysctl::set("kernel.bpf_stats_enabled", 0),
        );
    }
    match machine.unprivileged_bpf_disabled {
        Some(0) => chapter.warning(
            "unprivileged_bpf",
            "any user may load programs (kernel.unprivileged_bpf_disabled=0)",
            "a program of anybody's may read the tables through the CPU's side channels",
            sysctl::set("kernel.unprivileged_bpf_disabled", 2),
        ),
        Some(_) => chapter.ok("unprivileged_bpf", "only privileged users load programs"),
        None => {}
    }
}

pub(super) fn clock(machine: &Machine, findings: &mut Vec<Finding>) {
    let mut chapter = Chapter::new(Subject::Clock, findings);
    match machine.clock_synchronised {
        Some(true) => chapter.ok("synchronised", "the clock is synchronised"),
        Some(false) => chapter.warning(
            "synchronised",
            "the kernel's clock is not synchronised",
            "commit times of different routers, and gaps computed from them, mean nothing; forwarding does not depend on it",
            "timedatectl set-ntp true",
        ),
        None => {}
    }
}

//! A machine that runs the packet fixtures, one program after the other.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{initramfs::Image, package::Kernel};

/// Modules that the fixtures need, by path below a kernel's modules, in the order of loading.
const MODULES: &[&str] = &["drivers/net/veth"];

/// What init does before it runs the tests, and how it runs one: its output on the first serial
/// line, its name and exit status on the second one.
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin NATMIG_EBPF_OBJECT=/natmig.o NATMIG_REQUIRE_ROOT=1
# An emulated machine is slow.
export NATMIG_RANDOM_HOST=10000 NATMIG_RANDOM_KERNEL=4000
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
stty -onlcr
stty -onlcr </dev/ttyS1
run() { \"$@\"; echo \"$1 $?\" >/dev/ttyS1; }";

/// A program that runs in the machine.
pub(super) struct Program {
    /// Its name there.
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    pub(super) arguments: &'static str,
}

/// Makes the image that runs these programs in turn, and returns its path.
pub(super) fn image(kernel: &Kernel, programs: &[Program], object: &Path) -> Result<PathBuf> {
    let mut image = Image::new(kernel, "initramfs", INIT)?;
    image.file(object, "natmig.o")?;
    for module in MODULES {
        image.module(module)?;
    }
    image.tool("ip")?;
    for program in programs {
        image.program(&program.path, program.name)?;
        image.run(["run", program.name, program.arguments].join(" "));
    }
    image.run("poweroff -f");
    image.pack()
}

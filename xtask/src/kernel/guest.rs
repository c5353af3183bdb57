//! What the lab's real guests boot: Debian's kernel for virtual machines, and a file system with
//! the lab's echo service in it.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{DIRECTORY, NEEDS, Version, initramfs::Image, package};
use crate::{command::step, packages};

/// Kernels that a guest may have: the one of this machine's Debian, whichever it is.
const VERSIONS: [&str; 2] = ["6.1", "6.12"];

/// Modules of a guest's network card, by path below a kernel's modules, in the order of loading.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

/// The lab's program in the guest.
const LAB: &str = "natmig-lab";

const BEGIN: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev";

/// Addresses come on the kernel's command line. Nobody else has them, so none is asked for.
const END: &str = "\
value() { sed -n \"s/.*guest.$1=\\([^ ]*\\).*/\\1/p\" /proc/cmdline; }
for setting in accept_dad dad_transmits accept_ra router_solicitations; do
  echo 0 >/proc/sys/net/ipv6/conf/eth0/$setting
done
ip link set lo up
ip link set eth0 up
ip address add $(value address) dev eth0
ip -6 address add $(value address6) dev eth0
ip route add default via $(value gateway)
ip -6 route add default via $(value gateway6) dev eth0
natmig-lab echo
poweroff -f";

/// What a guest boots.
pub(crate) struct Boot {
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// Its file system.
    pub(crate) image: PathBuf,
}

/// Makes what real guests boot, with the lab's program in it.
pub(crate) fn guest(lab: &Path) -> Result<Boot> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "real guests run on x86-64 machines only"
    );
    packages::ensure(NEEDS)?;
    let directory = std::env::current_dir()?.join(DIRECTORY);
    let versions: Vec<Version> = VERSIONS
        .iter()
        .filter_map(|version| version.parse().ok())
        .collect();
    let kernel = package::unpack(&versions, &directory)?;
    step(&format!(
        "file system of guests with Linux {}",
        kernel.release
    ));
    let mut image = Image::new(&kernel, "guest", BEGIN)?;
    for module in MODULES {
        image.module(module)?;
    }
    image.program(lab, LAB)?;
    image.run(END);
    Ok(Boot {
        kernel: kernel.image(),
        image: image.pack()?,
    })
}

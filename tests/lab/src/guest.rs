//! Real guests: QEMU processes under software emulation, on the lab's racks.
//!
//! The lab's other VMs are namespaces that are plugged in elsewhere; these are migrated by QEMU itself.
//! Each process has a tap that is a port of its rack's bridge, beside the edge router's port: so
//! frames reach the router through veth, where XDP sees them and can answer, which a tap cannot do
//! for frames redirected into it. The guest's network card has no offloads, because XDP would see
//! checksums that nobody has computed.
//!
//! Kernel and file system of the guests come from `cargo xtask guest`, which names them in
//! [`KERNEL`] and [`IMAGE`].

pub mod monitor;
pub mod probe;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Lab,
    daemon::Daemon,
    device,
    namespace::ip,
    topology::{Segment, Topology},
};

pub use monitor::Monitor;

/// Environment variable that names the guests' kernel.
pub const KERNEL: &str = "NATMIG_GUEST_KERNEL";
/// Environment variable that names the guests' file system.
pub const IMAGE: &str = "NATMIG_GUEST_IMAGE";

/// Port of the guests' echo service, of TCP and of UDP.
pub const ECHO_PORT: u16 = 7;

/// Debian's kernel, the file system and the page cache of a guest fit into this many MiB.
const MEMORY: &str = "160";

/// Bytes of a file system that fit, unpacked beside the packed one.
const LARGEST_IMAGE: u64 = 40 << 20;

/// Emulated machines are slow, and start beside the lab's other programs.
const PATIENCE: Duration = Duration::from_mins(4);

/// A guest boots in seconds; one that takes this long never will.
const BOOT_PATIENCE: Duration = Duration::from_secs(90);

/// An emulated kernel may hang while it starts. So often it is tried.
const BOOTS: u32 = 3;

/// Lines of a guest's console that an error shows.
const CONSOLE_LINES: usize = 20;

/// What guests boot.
#[derive(Clone, Debug)]
pub struct Boot {
    kernel: PathBuf,
    image: PathBuf,
}

impl Boot {
    /// As the environment says.
    pub fn find() -> Result<Self> {
        let file = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from).with_context(|| {
                format!("{name} is not set; `cargo xtask guest` prints what real guests need")
            })?;
            ensure!(path.is_file(), "{name}: {} is no file", path.display());
            Ok(path)
        };
        let image = file(IMAGE)?;
        let bytes = image.metadata()?.len();
        ensure!(
            bytes <= LARGEST_IMAGE,
            "{IMAGE}: {} has {} MiB, and a guest has {MEMORY}: is its program stripped?",
            image.display(),
            bytes >> 20
        );
        Ok(Self {
            kernel: file(KERNEL)?,
            image,
        })
    }
}

/// A guest, wherever it runs.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name in natmig's inventory.
    pub name: String,
    /// Its home.
    pub home: Segment,
    /// Its identity.
    pub address: Ipv4Addr,
    /// Its IPv6 identity.
    pub address_ipv6: Ipv6Addr,
}

impl Guest {
    /// Its MAC address.
    pub fn mac(&self) -> String {
        Topology::mac(self.address)
    }

    /// Both identities.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.address.into(), self.address_ipv6.into()]
    }

    /// What its init reads from the kernel's command line.
    fn settings(&self) -> Result<String> {
        let home = &self.home;
        let (prefix_ipv6, gateway_ipv6) = home
            .prefix_ipv6
            .zip(home.gateway_ipv6)
            .with_context(|| format!("{} has no IPv6", home.name))?;
        Ok(format!(
            "guest.address={}/{} guest.gateway={} guest.address6={}/{} guest.gateway6={gateway_ipv6}",
            self.address,
            home.prefix.prefix_len(),
            home.gateway,
            self.address_ipv6,
            prefix_ipv6.prefix_len(),
        ))
    }
}

/// A QEMU process on a rack.
#[derive(Debug)]
pub struct Machine {
    process: Daemon,
    directory: PathBuf,
    name: String,
    /// The rack's node, and the tap's name there.
    pub tap: (String, String),
}

impl Machine {
    /// Starts one on a rack; `name` tells it from the lab's others. With `incoming` it waits there
    /// for a guest that is sent to [`Self::incoming`], else it boots the guest.
    pub fn start(
        lab: &Lab,
        name: &str,
        segment: &str,
        guest: &Guest,
        boot: &Boot,
        incoming: bool,
    ) -> Result<Self> {
        let tap = format!("tap-{name}");
        let rack = lab.network.node(segment)?;
        ip(
            Some(rack),
            &format!("tuntap add dev {tap} mode tap\nlink set {tap} up\n"),
        )?;
        rack.enter(|| device::add_port("rack", &tap))?;
        let directory = lab.directory().to_owned();
        let place = |what: &str| format!("{}/{name}.{what}", directory.display());
        let append = format!(
            "console=ttyS0 quiet panic=-1 no_timer_check {}",
            guest.settings()?
        );
        let monitor = |what: &str| format!("unix:{},server=on,wait=off", place(what));
        let card = format!(
            "virtio-net-pci,id=net0,netdev=rack,mac={},romfile=,csum=off,guest_csum=off,gso=off,\
             guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,\
             host_ecn=off,host_ufo=off",
            guest.mac()
        );
        let kernel = boot.kernel.display().to_string();
        let image = boot.image.display().to_string();
        let netdev = format!("tap,id=rack,ifname={tap},script=no,downscript=no,vnet_hdr=off");
        let (lab_monitor, natmig_monitor) = (monitor("qmp"), monitor("watch"));
        let mut arguments = vec![
            // A lab that is killed takes its machines with it.
            "--pdeathsig=KILL",
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-machine",
            "pc",
            "-cpu",
            "qemu64",
            "-m",
            MEMORY,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-name",
            &guest.name,
            "-kernel",
            &kernel,
            "-initrd",
            &image,
            "-append",
            &append,
            "-netdev",
            &netdev,
            "-device",
            &card,
            "-qmp",
            &lab_monitor,
            "-qmp",
            &natmig_monitor,
        ];
        let uri = format!("unix:{}", place("incoming"));
        if incoming {
            arguments.extend(["-incoming", &uri]);
        }
        let process = lab.start_program(name, segment, Path::new("setpriv"), &arguments)?;
        Ok(Self {
            process,
            directory,
            name: name.to_owned(),
            tap: (segment.to_owned(), tap),
        })
    }

    /// Starts one that boots the guest, and waits until it is up. One that hangs is given up, and
    /// another one started.
    pub fn boot(lab: &Lab, name: &str, segment: &str, guest: &Guest, boot: &Boot) -> Result<Self> {
        let mut last = None;
        for attempt in 1..=BOOTS {
            let name = format!("{name}{attempt}");
            let mut machine = Self::start(lab, &name, segment, guest, boot, false)?;
            let Err(error) = machine.wait_booted() else {
                return Ok(machine);
            };
            let console = std::fs::read_to_string(machine.process.log()).unwrap_or_default();
            let lines: Vec<&str> = console.lines().collect();
            let tail = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
            let error = error.context(format!("its console: {tail:?}"));
            eprintln!("{error:#}");
            // It may have ended by itself.
            let _ignored = machine.kill();
            last = Some(error);
        }
        Err(last.context("no attempt")?)
    }

    fn place(&self, what: &str) -> PathBuf {
        self.directory.join(format!("{}.{what}", self.name))
    }

    /// Where a guest is sent that it waits for, as QEMU writes it.
    pub fn incoming(&self) -> String {
        format!("unix:{}", self.place("incoming").display())
    }

    /// The monitor that is for natmig.
    pub fn watched(&self) -> PathBuf {
        self.place("watch")
    }

    /// A connection to the lab's monitor. Waits until there is one.
    pub fn monitor(&mut self) -> Result<Monitor> {
        let path = self.place("qmp");
        crate::run::wait_for(&format!("monitor of {}", self.name), PATIENCE, || {
            self.process.check()?;
            Ok(Monitor::connect(&path).ok())
        })
    }

    /// Waits until its guest says that it is up.
    fn wait_booted(&mut self) -> Result<()> {
        crate::run::wait_for(&format!("guest of {}", self.name), BOOT_PATIENCE, || {
            self.process.check()?;
            let said = std::fs::read_to_string(self.process.log()).unwrap_or_default();
            Ok(said.contains("guest is up").then_some(()))
        })
    }

    /// What QEMU and its guest said.
    pub fn log(&self) -> &Path {
        self.process.log()
    }

    /// An error if it ended by itself.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Waits until it has ended by itself.
    pub fn wait_ended(&mut self) -> Result<()> {
        crate::run::wait_for(&format!("end of {}", self.name), PATIENCE, || {
            Ok(self.process.check().is_err().then_some(()))
        })
    }

    /// Ends it, as if its host lost power.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}

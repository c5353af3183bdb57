//! Reads the machine into facts. Nothing in here judges.

mod ethtool;
mod netdev;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use natmig_common::{Aligned, Entry, Ipv4, Ipv6, PackedTraffic, Settled};

use self::{ethtool::Ethtool, netdev::Netdev};
use super::facts::{
    Facts, Forwarding, Instance, Interface, Link, Lower, Machine, MemoryLimit, Pins, Port, Xdp,
};
use crate::{
    config::{DEFAULT_INSTANCE, RouterConfig},
    router::{
        RouterError,
        inspect::{Inspected, InspectedLink, InspectedProgram, inspect},
    },
};

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The instance; the configuration's unless it is named.
    pub instance: Option<String>,
    /// A router's configuration, and its file.
    pub config: Option<(PathBuf, RouterConfig)>,
    /// Interfaces to look at instead of the configuration's.
    pub interfaces: Vec<String>,
}

/// Why the machine could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// Programs and pins are root's.
    #[error("only root can see programs and pinned maps: run `sudo natmig doctor`")]
    NotRoot,
    /// The instance or the interfaces could not be read.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// A system call failed.
    #[error("cannot {doing}: {cause}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        cause: std::io::Error,
    },
}

/// Reads the machine, in the network namespace of the calling thread.
pub fn gather(request: &Request) -> Result<Facts, GatherError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(GatherError::NotRoot);
    }
    let given = request.config.as_ref();
    let name = request
        .instance
        .clone()
        .or_else(|| given.map(|(_, config)| config.instance.clone()))
        .unwrap_or_else(|| DEFAULT_INSTANCE.to_owned());
    let inspected = inspect(&name)?;
    let config = given
        .map(|(_, config)| config)
        .or(inspected.config.as_ref());
    let ethtool = Ethtool::open().map_err(|cause| GatherError::System {
        doing: "open a socket for ethtool",
        cause,
    })?;
    // Kernels before 6.3 have no such family.
    let mut netdev = Netdev::open().ok();
    let names = if request.interfaces.is_empty() {
        config.map_or_else(Vec::new, |config| {
            config
                .interfaces
                .iter()
                .map(|interface| interface.name.clone())
                .collect()
        })
    } else {
        request.interfaces.clone()
    };
    let interfaces = names
        .into_iter()
        .map(|name| {
            let configured = config.and_then(|config| {
                config
                    .interfaces
                    .iter()
                    .find(|interface| interface.name == name)
            });
            Interface {
                role: configured.map(|interface| interface.role),
                prefix: configured.and_then(|interface| interface.prefix),
                gateway: configured.and_then(|interface| interface.gateway),
                link: link(&name, &inspected, &ethtool, netdev.as_mut()),
                name,
            }
        })
        .collect();
    Ok(Facts {
        machine: machine(&inspected),
        forwarding: forwarding(),
        instance: instance(name, request, config, &inspected, &ethtool),
        interfaces,
    })
}

fn instance(
    name: String,
    request: &Request,
    config: Option<&RouterConfig>,
    inspected: &Inspected,
    ethtool: &Ethtool,
) -> Instance {
    let pins = match &inspected.pins {
        Ok(None) => Pins::None,
        Ok(Some(abi_version)) => Pins::Loaded {
            abi_version: *abi_version,
        },
        Err(RouterError::Abi {
            found, expected, ..
        }) => Pins::OtherLayout {
            found: *found,
            expected: *expected,
        },
        Err(error) => Pins::Unreadable(error.to_string()),
    };
    let port = &inspected.port;
    Instance {
        name,
        config_file: request.config.as_ref().map(|(file, _)| file.clone()),
        pins,
        memory: inspected.memory.or_else(|| config.map(memory)),
        missing_guards: inspected.missing_guards.clone(),
        pulse: inspected.pulse,
        trace_lost: inspected.trace_lost,
        port: Port {
            up: inspected
                .links
                .iter()
                .any(|link| link.name == *port && link.up),
            tx_checksum: ethtool.offloads(port).tx_checksum,
            name: port.clone(),
        },
    }
}

/// The program on an interface.
fn xdp(link: &InspectedLink) -> Xdp {
    match &link.program {
        None => Xdp::None,
        Some(InspectedProgram::Ours { generic }) => Xdp::Ours { generic: *generic },
        Some(InspectedProgram::Foreign { id, name }) => Xdp::Foreign {
            id: *id,
            name: name.clone(),
        },
    }
}

/// Kernel memory that an instance's large maps will take.
fn memory(config: &RouterConfig) -> u64 {
    /// A bucket of the index, of which there are as many as addresses, to the next power of two.
    const BUCKET: u64 = 16;
    let banks = aya::util::nr_cpus()
        .ok()
        .and_then(|cpus| u32::try_from(cpus).ok())
        .map_or(1, |cpus| config.binding_banks(cpus));
    let family = |addresses: u32, entry: usize, settled: usize| {
        let each = entry + settled + 2 * size_of::<PackedTraffic>() * banks as usize;
        let buckets = u64::from(addresses).next_power_of_two();
        let aligned = u64::from(Aligned::count(addresses)) * size_of::<Aligned>() as u64;
        u64::from(addresses) * each as u64 + buckets * BUCKET + aligned
    };
    let ipv4 = family(
        config.max_addresses,
        size_of::<Entry<Ipv4>>(),
        size_of::<Settled<Ipv4>>(),
    );
    let ipv6 = family(
        config.max_addresses_ipv6,
        size_of::<Entry<Ipv6>>(),
        size_of::<Settled<Ipv6>>(),
    );
    ipv4 + ipv6
}

fn link(
    name: &str,
    inspected: &Inspected,
    ethtool: &Ethtool,
    netdev: Option<&mut Netdev>,
) -> Option<Link> {
    let find = |ifindex: u32| {
        inspected
            .links
            .iter()
            .find(|other| other.ifindex == ifindex)
    };
    let link = inspected.links.iter().find(|link| link.name == name)?;
    let is_vlan_on_it = |other: &&InspectedLink| {
        other.kind.as_deref() == Some("vlan") && other.lower == Some(link.ifindex)
    };
    Some(Link {
        up: link.up,
        kind: link.kind.clone(),
        lower: link.lower.and_then(find).map(|lower| Lower {
            name: lower.name.clone(),
            kind: lower.kind.clone(),
            offloads: ethtool.offloads(&lower.name),
            mtu: lower.mtu,
            xdp: xdp(lower),
        }),
        vlans: inspected
            .links
            .iter()
            .filter(is_vlan_on_it)
            .map(|vlan| vlan.name.clone())
            .collect(),
        mtu: link.mtu,
        xdp: xdp(link),
        driver: ethtool.driver(name),
        xdp_features: netdev.and_then(|netdev| netdev.xdp_features(link.ifindex)),
        queues: ethtool.queues(name),
        offloads: ethtool.offloads(name),
        addresses: link.addresses.clone(),
        rp_filter: number(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")),
        forwarding: number(&format!("/proc/sys/net/ipv4/conf/{name}/forwarding")),
        send_redirects: number(&format!("/proc/sys/net/ipv4/conf/{name}/send_redirects")),
    })
}

fn machine(inspected: &Inspected) -> Machine {
    Machine {
        release: text("/proc/sys/kernel/osrelease").unwrap_or_else(|| "?".to_owned()),
        cpus: aya::util::online_cpus()
            .map_or(1, |cpus| u32::try_from(cpus.len()).unwrap_or(u32::MAX)),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        bpffs: nix::sys::statfs::statfs("/sys/fs/bpf")
            .is_ok_and(|system| system.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC),
        jit: number("/proc/sys/net/core/bpf_jit_enable")
            .map_or(inspected.compiled.then_some(true), |enabled| {
                Some(enabled != 0)
            }),
        jit_harden: number("/proc/sys/net/core/bpf_jit_harden"),
        bpf_stats: number("/proc/sys/kernel/bpf_stats_enabled"),
        unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
        memory_limit: memory_limit(),
        clock_synchronised: clock_synchronised(),
    }
}

fn forwarding() -> Forwarding {
    Forwarding {
        ip_forward: number("/proc/sys/net/ipv4/ip_forward"),
        ipv6_forwarding: number("/proc/sys/net/ipv6/conf/all/forwarding"),
        rp_filter: number("/proc/sys/net/ipv4/conf/all/rp_filter"),
        send_redirects: number("/proc/sys/net/ipv4/conf/all/send_redirects"),
        neighbor_limit: number("/proc/sys/net/ipv4/neigh/default/gc_thresh3"),
        nft: Command::new("nft")
            .arg("--version")
            .output()
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
    }
}

/// The tightest limit of this process's control groups, of either version.
fn memory_limit() -> Option<MemoryLimit> {
    let groups = text("/proc/self/cgroup")?;
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (root, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let file = Path::new(root).join(group).join(file);
            // "max" is no number, and so no limit.
            let limit: Option<u64> = fs::read_to_string(&file)
                .ok()
                .and_then(|text| text.trim().parse().ok());
            limits.extend(limit.map(|bytes| MemoryLimit { file, bytes }));
        }
    }
    limits.into_iter().min_by_key(|limit| limit.bytes)
}

fn clock_synchronised() -> Option<bool> {
    // SAFETY: all zero is a valid `timex`; with `modes` 0 it only asks.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `clock` is valid during the call.
    let state = unsafe { libc::adjtimex(&raw mut clock) };
    (state >= 0).then_some(state != libc::TIME_ERROR && clock.status & libc::STA_UNSYNC == 0)
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn number(path: &str) -> Option<u32> {
    text(path)?.parse().ok()
}

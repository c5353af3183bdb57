//! Programs, maps and links: created, adopted, upgraded and removed.
//!
//! A link is never detached to be replaced: its program is exchanged in place. Whatever a fresh
//! start made is removed again when it fails.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{ProgramFd, Xdp},
};
use natmig_common::{Aligned, Meta, names};

use super::{
    AttachedInterface, RouterError,
    bpf::{self, LinkInfo, ProgramInfo},
    instance::Instance,
    netlink::Link,
};
use crate::config::{Forward, RouterConfig};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natmig.bpf.o"));

/// Whether the binary holds the program.
pub(super) fn has_program() -> bool {
    !OBJECT.is_empty()
}

/// Interfaces that may come after the start.
const SPARE_INDICES: u32 = 256;
/// Interfaces that the counters have room for beyond those that exist.
const SPARE_COUNTERS: u32 = 16;

/// Addresses whose counters by binding may overflow; each has had more than 2^25 packets.
const BUSY_ADDRESSES: u32 = 65_536;

/// The loaded programs.
pub(super) struct Program {
    _ebpf: Ebpf,
    fd: ProgramFd,
    heartbeat: ProgramFd,
    bank: ProgramFd,
}

impl Program {
    /// [`names::BANK_PROGRAM`].
    pub(super) fn bank(&self) -> Result<OwnedFd, RouterError> {
        let bank = self.bank.as_fd().try_clone_to_owned();
        bank.map_err(RouterError::system("keep the program"))
    }
}

impl AsFd for Program {
    /// The translating one.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The sizes of maps that are created.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) addresses_ipv4: u32,
    pub(super) addresses_ipv6: u32,
    pub(super) cpus: u32,
    pub(super) largest_ifindex: u32,
    pub(super) interfaces: u32,
    /// Banks of counters by binding; 0 if nothing is counted.
    pub(super) binding_banks: u32,
    /// Whether all traffic is forwarded.
    pub(super) forward_all: bool,
}

/// Refuses interfaces on which somebody else's program runs.
pub(super) fn check_foreign(instance: &Instance, link: &Link) -> Result<(), RouterError> {
    let Some(id) = link.xdp else { return Ok(()) };
    let ours = open_link(instance, link.ifindex)?
        .is_some_and(|(_, info)| info.ifindex == link.ifindex && info.program_id == id);
    if ours {
        return Ok(());
    }
    let name = bpf::program_by_id(id).map_or_else(|_| "?".to_owned(), |info| info.name());
    Err(RouterError::ForeignProgram {
        interface: link.name.clone(),
        id,
        name,
    })
}

fn open_link(
    instance: &Instance,
    ifindex: u32,
) -> Result<Option<(OwnedFd, LinkInfo)>, RouterError> {
    let path = instance.link(ifindex);
    if !path.exists() {
        return Ok(None);
    }
    let doing = || RouterError::system(format!("open the pinned link {}", path.display()));
    let link = bpf::open_pin(&path, false).map_err(doing())?;
    let info = bpf::info(link.as_fd()).map_err(doing())?;
    Ok(Some((link, info)))
}

/// Creates the directories of the pins.
pub(super) fn create_directories(instance: &Instance) -> Result<(), RouterError> {
    for directory in [instance.maps(), instance.links(), instance.programs()] {
        fs::create_dir_all(&directory).map_err(RouterError::system(format!(
            "create {}",
            directory.display()
        )))?;
    }
    Ok(())
}

/// Loads the program; maps that are pinned are adopted, others created and pinned.
pub(super) fn load(
    instance: &Instance,
    object: Option<&[u8]>,
    sizes: Sizes,
) -> Result<Program, RouterError> {
    let object = object.unwrap_or(OBJECT);
    if object.is_empty() {
        return Err(RouterError::NoProgram);
    }
    // The verifier's log is expensive, so it is only asked for when it has to explain a refusal.
    load_once(instance, object, sizes, VerifierLogLevel::DISABLE)
        .or_else(|_| load_once(instance, object, sizes, VerifierLogLevel::default()))
}

fn load_once(
    instance: &Instance,
    object: &[u8],
    sizes: Sizes,
    log: VerifierLogLevel,
) -> Result<Program, RouterError> {
    let describe = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        RouterError::Program(text)
    };
    let forward_all = u32::from(sizes.forward_all);
    // x86 and s390 keep stores in order; elsewhere `left` has to be an exchange as well.
    let weak_order = u32::from(!cfg!(any(target_arch = "x86_64", target_arch = "s390x")));
    let counters = |addresses: u32| {
        addresses
            .saturating_mul(2)
            .saturating_mul(sizes.binding_banks)
            .max(1)
    };
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .verifier_log_level(log)
        .override_global("BINDING_BANKS", &sizes.binding_banks, false)
        .override_global("ENTRY_CAPACITY_IPV4", &sizes.addresses_ipv4, false)
        .override_global("ENTRY_CAPACITY_IPV6", &sizes.addresses_ipv6, false)
        .override_global("FORWARD_ALL", &forward_all, false)
        .override_global("WEAK_ORDER", &weak_order, false)
        .map_max_entries(names::ENTRIES_IPV4, sizes.addresses_ipv4)
        .map_max_entries(names::ENTRIES_IPV6, sizes.addresses_ipv6)
        .map_max_entries(names::SETTLED_IPV4, sizes.addresses_ipv4)
        .map_max_entries(names::SETTLED_IPV6, sizes.addresses_ipv6)
        .map_max_entries(names::ALIGNED_IPV4, Aligned::count(sizes.addresses_ipv4))
        .map_max_entries(names::ALIGNED_IPV6, Aligned::count(sizes.addresses_ipv6))
        .map_max_entries(names::INDEX_IPV4, sizes.addresses_ipv4)
        .map_max_entries(names::INDEX_IPV6, sizes.addresses_ipv6)
        .map_max_entries(names::ACTIVITY, sizes.cpus)
        .map_max_entries(names::UNBANKED, sizes.cpus.saturating_mul(2))
        .map_max_entries(names::INTERFACES, sizes.largest_ifindex + SPARE_INDICES)
        .map_max_entries(names::DEVICES, sizes.largest_ifindex + SPARE_INDICES)
        .map_max_entries(names::COUNTERS, sizes.interfaces + SPARE_COUNTERS)
        .map_max_entries(names::BINDING_COUNTERS_IPV4, counters(sizes.addresses_ipv4))
        .map_max_entries(names::BINDING_COUNTERS_IPV6, counters(sizes.addresses_ipv6))
        .map_max_entries(names::BINDING_TOTALS, BUSY_ADDRESSES);
    let directory = instance.maps();
    for name in names::MAPS {
        loader.map_pin_path(name, directory.join(name));
    }
    let mut ebpf = loader.load(object).map_err(|error| describe(&error))?;
    let mut load = |name: &str| {
        let program = ebpf
            .program_mut(name)
            .ok_or_else(|| RouterError::Program(format!("the object has no program {name}")))?;
        // The kernel gives up verifying when something interrupts it, and wants to be asked again.
        let mut attempts = 20;
        loop {
            let result = if let aya::programs::Program::RawTracePoint(program) = program {
                program.load()
            } else {
                <&mut Xdp>::try_from(&mut *program).and_then(Xdp::load)
            };
            match result {
                Err(aya::programs::ProgramError::LoadError { io_error, .. })
                    if io_error.kind() == std::io::ErrorKind::WouldBlock && attempts > 0 =>
                {
                    attempts -= 1;
                }
                result => break result.map_err(|error| describe(&error))?,
            }
        }
        program
            .fd()
            .map_err(|error| describe(&error))?
            .try_clone()
            .map_err(RouterError::system("keep the program"))
    };
    let fd = load(names::PROGRAM)?;
    let heartbeat = load(names::HEARTBEAT_PROGRAM)?;
    let bank = load(names::BANK_PROGRAM)?;
    let program = Program {
        _ebpf: ebpf,
        fd,
        heartbeat,
        bank,
    };
    // Maps that the program does not use are no less the instance's.
    for name in names::MAPS {
        let path = directory.join(name);
        if !path.exists() {
            return Err(RouterError::Program(format!(
                "the object has no map {name}"
            )));
        }
    }
    Ok(program)
}

/// Pins the program that who opens the tables needs, in the place of its predecessor.
pub(super) fn pin_bank(instance: &Instance, program: &Program) -> Result<(), RouterError> {
    pin_programs(instance, &[(names::BANK_PROGRAM, &program.bank)])
}

/// Pins the other programs in the place of their predecessors.
pub(super) fn pin_program(instance: &Instance, program: &Program) -> Result<(), RouterError> {
    let programs = [
        (names::HEARTBEAT_PROGRAM, &program.heartbeat),
        (names::PROGRAM, &program.fd),
    ];
    pin_programs(instance, &programs)
}

fn pin_programs(instance: &Instance, programs: &[(&str, &ProgramFd)]) -> Result<(), RouterError> {
    for (name, fd) in programs {
        let path = instance.programs().join(name);
        let aside = instance.programs().join("next");
        let pin = || -> io::Result<()> {
            remove_file(&aside)?;
            bpf::pin(fd.as_fd(), &aside)?;
            fs::rename(&aside, &path)
        };
        pin().map_err(RouterError::system(format!("pin {}", path.display())))?;
    }
    Ok(())
}

/// The pinned program of this name.
pub(super) fn open_program(instance: &Instance, name: &str) -> Result<OwnedFd, RouterError> {
    let path = instance.programs().join(name);
    bpf::open_pin(&path, false).map_err(RouterError::system(format!(
        "open the pinned program {}",
        path.display()
    )))
}

/// Whether a program of the instance's was attached to any interface since the machine booted.
pub(super) fn has_links(instance: &Instance) -> Result<bool, RouterError> {
    let directory = instance.links();
    let doing = || RouterError::system(format!("read {}", directory.display()));
    let mut files = fs::read_dir(&directory).map_err(doing())?;
    files
        .next()
        .transpose()
        .map_err(doing())
        .map(|file| file.is_some())
}

/// Whether a program of the instance's runs on an interface.
pub(super) fn is_attached(instance: &Instance, link: &Link) -> Result<bool, RouterError> {
    let pinned = open_link(instance, link.ifindex)?;
    Ok(pinned.is_some_and(|(_, info)| info.ifindex == link.ifindex))
}

/// Runs the program on an interface: in the place of its predecessor, or attached anew.
pub(super) fn attach(
    instance: &Instance,
    program: BorrowedFd<'_>,
    link: &Link,
    role: &'static str,
    generic: bool,
) -> Result<AttachedInterface, RouterError> {
    let name = &link.name;
    let attached = |mode, replaced| AttachedInterface {
        name: name.clone(),
        ifindex: link.ifindex,
        role,
        mode,
        replaced,
    };
    let mode = |generic: bool| if generic { "generic" } else { "native" };
    if let Some((pinned, info)) = open_link(instance, link.ifindex)? {
        if info.ifindex == link.ifindex {
            bpf::update_link(pinned.as_fd(), program).map_err(RouterError::system(format!(
                "replace the program of {name}"
            )))?;
            return Ok(attached(mode(link.xdp_generic), true));
        }
        // The interface it was on is gone.
        let path = instance.link(link.ifindex);
        remove_file(&path).map_err(RouterError::system(format!("remove {}", path.display())))?;
    }
    let flags = if generic {
        bpf::XDP_GENERIC
    } else {
        bpf::XDP_NATIVE
    };
    let attached_link = bpf::attach_xdp(program, link.ifindex, flags).map_err(|cause| {
        let interface = name.clone();
        match cause.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE) if !generic => {
                RouterError::NoNativeXdp { interface, cause }
            }
            _ => RouterError::system(format!("attach to {name}"))(cause),
        }
    })?;
    let path = instance.link(link.ifindex);
    bpf::pin(attached_link.as_fd(), &path)
        .map_err(RouterError::system(format!("pin {}", path.display())))?;
    Ok(attached(mode(generic), false))
}

/// Detaches from interfaces that are not among these.
pub(super) fn detach_others(instance: &Instance, keep: &[u32]) -> Result<(), RouterError> {
    let directory = instance.links();
    let doing = || RouterError::system(format!("clean up {}", directory.display()));
    let keep: Vec<_> = keep.iter().map(|ifindex| instance.link(*ifindex)).collect();
    for file in fs::read_dir(&directory).map_err(doing())? {
        let path = file.map_err(doing())?.path();
        if !keep.contains(&path) {
            remove_file(&path).map_err(doing())?;
        }
    }
    Ok(())
}

/// Removes all pins: links first, so that no program runs without its maps' names.
pub(super) fn remove_pins(instance: &Instance) -> Result<(), RouterError> {
    for directory in [
        instance.links(),
        instance.programs(),
        instance.maps(),
        instance.pins(),
    ] {
        let remove = || -> io::Result<()> {
            if !directory.exists() {
                return Ok(());
            }
            for file in fs::read_dir(&directory)? {
                let path = file?.path();
                if path.is_dir() {
                    fs::remove_dir(&path)?;
                } else {
                    fs::remove_file(&path)?;
                }
            }
            fs::remove_dir(&directory)
        };
        remove().map_err(RouterError::system(format!(
            "remove {}",
            directory.display()
        )))?;
    }
    Ok(())
}

/// Id of the program that is pinned.
pub(super) fn pinned_program(instance: &Instance) -> Option<u32> {
    pinned_program_info(instance).map(|info| info.id)
}

/// What the kernel says of the program that is pinned.
pub(super) fn pinned_program_info(instance: &Instance) -> Option<ProgramInfo> {
    let fd = bpf::open_pin(&instance.programs().join(names::PROGRAM), false).ok()?;
    bpf::info(fd.as_fd()).ok()
}

/// Room that the tables' sizes are computed for; tables that are adopted keep theirs.
pub(super) fn sizes(
    config: &RouterConfig,
    adopted: Option<&Meta>,
    largest_ifindex: u32,
) -> Result<Sizes, RouterError> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| RouterError::system(format!("read {path}"))(error))?;
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let (addresses_ipv4, addresses_ipv6, binding_banks) = match adopted {
        Some(meta) => (
            meta.entry_capacity,
            meta.entry_capacity_ipv6,
            meta.binding_banks,
        ),
        None => (
            config.max_addresses,
            config.max_addresses_ipv6,
            config.binding_banks(cpus),
        ),
    };
    Ok(Sizes {
        addresses_ipv4,
        addresses_ipv6,
        cpus,
        largest_ifindex,
        interfaces: u32::try_from(config.interfaces.len() + 1).unwrap_or(u32::MAX),
        binding_banks,
        forward_all: config.forward == Forward::All,
    })
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

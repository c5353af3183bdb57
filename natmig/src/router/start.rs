//! How a router begins and ends: what pins and kernel state it finds, takes up, makes and removes.

use std::{collections::BTreeMap, fs, os::fd::AsFd as _, sync::Arc};

use natmig_common::{ABI_VERSION, Interface, META_MAGIC, Meta, SlotState, names};

use super::{
    Hearing, Instance, Kernel, Lock, MapBytes, Maps, Router, RouterError, Socket, Tables,
    attachments::{attach, segments},
    guard, interfaces, kernel, loader, netlink, next_hops, open_socket,
};
use crate::config::RouterConfig;

/// How to start.
#[derive(Clone, Debug, Default)]
pub struct StartOptions {
    /// Attach in generic mode where it has to be attached: slow, for tests without driver support.
    pub generic: bool,
    /// The eBPF object to load instead of the one in the binary.
    pub object: Option<Vec<u8>>,
    /// A router on which natmig does not run yet is attached by [`Router::attach`] only: when its
    /// table is whole.
    pub wait_for_table: bool,
}

/// A router that runs, and what was found and done on the way.
#[must_use]
pub struct Started {
    /// The router.
    pub router: Router,
    /// What starting it found and did.
    pub report: StartReport,
}

/// What starting a router found and did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct StartReport {
    /// Whether pinned maps were adopted, so that bindings survived.
    pub adopted: bool,
    /// Whether the program runs on no interface until [`Router::attach`] is called.
    pub waits: bool,
    /// The interfaces.
    pub interfaces: Vec<AttachedInterface>,
    /// Bound addresses found in adopted maps.
    pub addresses: usize,
    /// Transactions that were half prepared or half aborted and were taken back.
    pub rolled_back: usize,
    /// Bytes of kernel memory that the maps take.
    pub map_bytes: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// An interface that natmig runs on.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AttachedInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its role's name.
    pub role: &'static str,
    /// `native` or `generic`.
    pub mode: &'static str,
    /// Whether the program of an attached link was replaced, instead of attached anew.
    pub replaced: bool,
}

impl Router {
    /// Opens or creates the instance's tables, recovers what a killed process left, sets up guard
    /// and port, loads the program and attaches it.
    ///
    /// What a start made that fails is removed again; what it adopted stays.
    pub fn start(config: &RouterConfig, options: &StartOptions) -> Result<Started, RouterError> {
        let instance = Instance::new(&config.instance);
        Instance::check_bpffs()?;
        let lock = instance.lock()?;
        let pinned = Maps::probe(&instance.maps())?;
        let adopted = pinned.is_some();
        let mut socket = open_socket()?;
        let found = interfaces::find(&mut socket, config)?;
        for found in &found {
            loader::check_foreign(&instance, found.carrier())?;
        }
        if !adopted {
            // What a load that was killed left.
            loader::remove_pins(&instance)?;
        }
        Self::start_locked(config, options, &instance, lock, pinned.as_ref()).inspect_err(|_| {
            if !adopted && let Err(error) = remove_all(&instance) {
                tracing::warn!(%error, "a failed start could not be cleaned up: run natmig unload");
            }
        })
    }

    fn start_locked(
        config: &RouterConfig,
        options: &StartOptions,
        instance: &Instance,
        lock: Lock,
        pinned: Option<&Meta>,
    ) -> Result<Started, RouterError> {
        let adopted = pinned.is_some();
        let mut socket = open_socket()?;
        let found = interfaces::find(&mut socket, config)?;
        let mtu = interfaces::port_mtu(&found);
        let port = Kernel::ensure_port(&mut socket, instance, mtu)?;
        let largest = found
            .iter()
            .flat_map(|found| [found.link.ifindex, found.carrier().ifindex])
            .chain([port.near, port.far])
            .max();
        let sizes = loader::sizes(config, pinned, largest.unwrap_or(0))?;
        loader::create_directories(instance)?;
        let program = loader::load(instance, options.object.as_deref(), sizes)?;
        loader::pin_bank(instance, &program)?;
        let maps = Maps::open(&instance.maps(), false, Some(program.bank()?))?;
        let map_bytes = MapBytes::of(&instance.maps())?.total();
        write_meta(&maps, config, adopted);
        // Of a predecessor's routes nothing is believed.
        next_hops::withdraw(&maps);
        let attached = interfaces::fill(&mut socket, &maps, &found, port)?;
        let (tables, recovery) = Tables::open(maps)?;
        let mut router = Self {
            config: config.clone(),
            instance: instance.clone(),
            tables,
            segments: segments(config, &attached),
            interfaces: attached,
            kernel: Kernel::new(socket, port),
            announcements: Vec::new(),
            committed: Vec::new(),
            following: Vec::new(),
            unsettled: false,
            generic: options.generic,
            waits: options.wait_for_table && !loader::has_links(instance)?,
            next_hops: None,
            figures: Arc::default(),
            hearing: Hearing::default(),
            lock,
        };
        router.adopt_interfaces()?;
        router.kernel.keep_gateways(&router.interfaces)?;
        let pools = if config.locator_pools.is_empty() {
            router.pools()
        } else {
            config.locator_pools.clone()
        };
        router.set_pools(&pools)?;
        router.stop_awaiting_decided()?;
        router.save_state()?;
        let mut report = StartReport {
            adopted,
            addresses: recovery.addresses,
            rolled_back: recovery.rolled_back,
            map_bytes,
            ..StartReport::default()
        };
        if adopted {
            router.warn_of_capacity(&mut report.warnings);
        }
        report.waits = router.waits;
        if options.generic {
            report.warnings.push(
                "XDP runs in generic mode where it is not attached yet: every packet is copied first, this is slow and not for production"
                    .to_owned(),
            );
        }
        if !router.waits {
            for attached in router.interfaces.values().filter(|it| it.runs_program()) {
                let interface = attach(instance, program.as_fd(), attached, options.generic)?;
                report.interfaces.push(interface);
            }
        }
        loader::pin_program(instance, &program)?;
        router.detach_others()?;
        if let Err(error) = router.reconcile() {
            router.unsettled = true;
            report
                .warnings
                .push(format!("host routes do not follow the table yet: {error}"));
        }
        for held in router.held() {
            if held.state == SlotState::Committed {
                router.announce(held.id);
            }
        }
        let names: Vec<String> = found
            .iter()
            .map(|found| found.config.name.clone())
            .collect();
        let ipv6 = found.iter().any(|found| found.config.prefix_ipv6.is_some());
        report.warnings.extend(kernel::warnings(&names, ipv6));
        Ok(Started { router, report })
    }

    /// Says where tables that were adopted have other room than is configured.
    fn warn_of_capacity(&self, warnings: &mut Vec<String>) {
        let capacity = self.tables.capacity();
        let (ipv4, ipv6) = (self.config.max_addresses, self.config.max_addresses_ipv6);
        for (found, name, wanted) in [
            (capacity.ipv4, "max_addresses", ipv4),
            (capacity.ipv6, "max_addresses_ipv6", ipv6),
        ] {
            if found != wanted {
                warnings.push(format!(
                    "the pinned tables have room for {found} addresses and {name} is {wanted}: unload and load again to change that"
                ));
            }
        }
    }

    /// Opens the tables of a loaded instance for writing, without touching programs and links.
    pub fn open(instance: &str) -> Result<Self, RouterError> {
        let instance = Instance::new(instance);
        let config = load_state(&instance)?;
        let lock = instance.lock()?;
        if Maps::probe(&instance.maps())?.is_none() {
            return Err(not_loaded(&instance));
        }
        let bank = loader::open_program(&instance, names::BANK_PROGRAM)?;
        let maps = Maps::open(&instance.maps(), false, Some(bank))?;
        let mut socket = open_socket()?;
        let found = interfaces::find(&mut socket, &config)?;
        let Some(port) = Kernel::find_port(&mut socket, &instance)? else {
            return Err(RouterError::NoInterface(instance.port().0));
        };
        let attached = interfaces::fill(&mut socket, &maps, &found, port)?;
        let (tables, _) = Tables::open(maps)?;
        let mut router = Self {
            segments: segments(&config, &attached),
            config,
            instance,
            tables,
            interfaces: attached,
            kernel: Kernel::new(socket, port),
            announcements: Vec::new(),
            committed: Vec::new(),
            following: Vec::new(),
            unsettled: false,
            generic: false,
            waits: false,
            next_hops: None,
            figures: Arc::default(),
            hearing: Hearing::default(),
            lock,
        };
        router.adopt_interfaces()?;
        router.kernel.keep_gateways(&router.interfaces)?;
        if let Err(error) = router.reconcile() {
            tracing::warn!(%error, "host routes do not follow the table yet");
            router.unsettled = true;
        }
        Ok(router)
    }
}

/// Whether this binary holds an eBPF program.
pub fn has_program() -> bool {
    loader::has_program()
}

/// Detaches an instance and removes all that it holds in the kernel: links, maps, port, guard,
/// routes, promiscuous mode.
pub fn unload(instance: &str) -> Result<(), RouterError> {
    let instance = Instance::new(instance);
    if !instance.pins().exists() {
        return Err(not_loaded(&instance));
    }
    let lock = instance.lock()?;
    remove_all(&instance)?;
    lock.remove(&instance)
        .map_err(RouterError::system("remove the lock file"))
}

fn remove_all(instance: &Instance) -> Result<(), RouterError> {
    let mut socket = open_socket()?;
    let interfaces = match Maps::open(&instance.maps(), true, None) {
        Ok(maps) => interfaces::read(&maps)?,
        // Maps of another layout, or a start that failed early: the names have to do.
        Err(_) => named_interfaces(&mut socket, instance)?,
    };
    loader::remove_pins(instance)?;
    let port = Kernel::find_port(&mut socket, instance)?;
    let gateway_mac = load_state(instance).ok().map(|config| config.gateway_mac.0);
    kernel::remove(&mut socket, port, &interfaces, gateway_mac)?;
    guard::remove(instance)?;
    let path = instance.state_file();
    loader::remove_file(&path).map_err(RouterError::system(format!("remove {}", path.display())))
}

/// The interfaces that an instance was loaded with, as far as their names tell.
fn named_interfaces(
    socket: &mut Socket,
    instance: &Instance,
) -> Result<BTreeMap<u32, Interface>, RouterError> {
    let Ok(config) = load_state(instance) else {
        return Ok(BTreeMap::new());
    };
    let links = socket
        .links()
        .map_err(RouterError::system("list interfaces"))?;
    let is_ours = |link: &&netlink::Link| {
        config
            .interfaces
            .iter()
            .any(|interface| interface.name == link.name)
    };
    Ok(links
        .iter()
        .filter(is_ours)
        .map(|link| (link.ifindex, Interface::default()))
        .collect())
}

/// Says what the maps are; the magic last, so that it vouches for the rest.
fn write_meta(maps: &Maps, config: &RouterConfig, adopted: bool) {
    let term = if adopted { maps.meta.get(0).term } else { 0 };
    let meta = Meta {
        magic: META_MAGIC,
        abi_version: ABI_VERSION,
        term,
        entry_capacity: maps.ipv4.capacity(),
        interface_capacity: maps.counters.info.max_entries,
        gateway_mac: config.gateway_mac.0,
        _pad: [0; 2],
        entry_capacity_ipv6: maps.ipv6.capacity(),
        binding_banks: maps.ipv4.banks(),
        _reserved: [0; 3],
    };
    let bytes = bytemuck::bytes_of(&meta);
    maps.meta.write(0, 8, &bytes[8..]);
    maps.meta.write(0, 0, &bytes[..8]);
}

/// What the instance was loaded with.
pub(super) fn load_state(instance: &Instance) -> Result<RouterConfig, RouterError> {
    let path = instance.state_file();
    if !path.exists() {
        return Err(not_loaded(instance));
    }
    let read =
        || -> std::io::Result<RouterConfig> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
    read().map_err(RouterError::system(format!("read {}", path.display())))
}

pub(super) fn not_loaded(instance: &Instance) -> RouterError {
    RouterError::NotLoaded {
        instance: instance.name.clone(),
        path: instance.maps(),
    }
}

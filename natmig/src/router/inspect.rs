//! A look at an instance and its interfaces as they are, loaded or not, for `natmig doctor`.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    RouterError, guard,
    instance::Instance,
    load_state, loader,
    maps::{MapBytes, Maps},
    netlink::Socket,
    next_hops::{self, Pulse},
    tracer,
};
use crate::config::RouterConfig;

/// An instance as it is.
#[derive(Debug)]
pub(crate) struct Inspected {
    /// What it was loaded with.
    pub(crate) config: Option<RouterConfig>,
    /// Version of the layout of its maps, if it is loaded.
    pub(crate) pins: Result<Option<u32>, RouterError>,
    /// Bytes of kernel memory that its maps take, if it is loaded.
    pub(crate) memory: Option<u64>,
    /// Whether its program is known to be compiled.
    pub(crate) compiled: bool,
    /// Families in which the guard's table is missing; `None` if nobody can say.
    pub(crate) missing_guards: Option<Vec<&'static str>>,
    /// Its heartbeat, if it is loaded.
    pub(crate) pulse: Option<Pulse>,
    /// Events that its last trace lost, if it is loaded.
    pub(crate) trace_lost: Option<u64>,
    /// The kernel's end of the router's port.
    pub(crate) port: String,
    /// All interfaces of the network namespace.
    pub(crate) links: Vec<InspectedLink>,
}

/// An interface as it is.
#[derive(Debug)]
pub(crate) struct InspectedLink {
    pub(crate) ifindex: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) kind: Option<String>,
    /// The interface below it, or its peer, in this network namespace.
    pub(crate) lower: Option<u32>,
    pub(crate) mtu: u32,
    pub(crate) program: Option<InspectedProgram>,
    pub(crate) addresses: Vec<Ipv4Addr>,
}

/// The XDP program on an interface.
#[derive(Debug)]
pub(crate) enum InspectedProgram {
    Ours { generic: bool },
    Foreign { id: u32, name: String },
}

/// Looks at an instance and at all interfaces.
pub(crate) fn inspect(name: &str) -> Result<Inspected, RouterError> {
    let instance = Instance::new(name);
    let (pins, memory) = match Maps::probe(&instance.maps()) {
        Ok(Some(meta)) => match MapBytes::of(&instance.maps()) {
            Ok(bytes) => (Ok(Some(meta.abi_version)), Some(bytes.total())),
            Err(error) => (Err(error), None),
        },
        Ok(None) => (Ok(None), None),
        Err(error) => (Err(error), None),
    };
    let mut socket = Socket::open().map_err(RouterError::system("open a netlink socket"))?;
    let addresses = socket
        .addresses()
        .map_err(RouterError::system("list addresses"))?;
    let mut links = Vec::new();
    for link in socket
        .links()
        .map_err(RouterError::system("list interfaces"))?
    {
        let program = match loader::check_foreign(&instance, &link) {
            Ok(()) => link.xdp.map(|_| InspectedProgram::Ours {
                generic: link.xdp_generic,
            }),
            Err(RouterError::ForeignProgram { id, name, .. }) => {
                Some(InspectedProgram::Foreign { id, name })
            }
            Err(other) => return Err(other),
        };
        links.push(InspectedLink {
            ifindex: link.ifindex,
            up: link.flags & libc::IFF_UP.cast_unsigned() != 0,
            lower: link.lower.filter(|_| !link.lower_is_elsewhere),
            mtu: link.mtu,
            program,
            addresses: addresses
                .iter()
                .filter(|(ifindex, _)| *ifindex == link.ifindex)
                .filter_map(|(_, address)| match address {
                    IpAddr::V4(address) => Some(*address),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            name: link.name,
            kind: link.kind,
        });
    }
    let is_loaded = memory.is_some();
    Ok(Inspected {
        config: load_state(&instance).ok(),
        pins,
        memory,
        compiled: loader::pinned_program_info(&instance).is_some_and(|info| info.is_compiled()),
        missing_guards: guard::missing(&instance).ok(),
        pulse: next_hops::listen(&instance).ok().filter(|_| is_loaded),
        trace_lost: tracer::lost_events(name).ok().filter(|_| is_loaded),
        port: instance.port().0,
        links,
    })
}

//! A small fabric: its topology, its routers' interfaces, its routing, and who is attached where.
//!
//! Every edge router is connected to every core router, and every core router to the outside.
//! Routing is ideal: a router sends a packet to any neighbour on a shortest way that is up.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::Ipv4Net;
use natmig::{
    addresses::Addresses,
    names::{RouterName, SegmentName, VmName},
    planner::Vm,
    rule::MacAddress,
    topology::{Segment, Subnet, Tier, Topology},
};
use natmig_common::{
    CHUNK_LENGTH, FLAG_GATEWAY_OWNER, Interface, Mac, PoolMask, PrefixIpv4, Role, WIDE_PREFIXES,
};

use crate::tables::address;

/// The fabric's routers, by number in the order of their names.
pub type Number = usize;

/// The interface of every router towards the fabric.
pub const FABRIC: u32 = 1;
/// The interface of a core router towards the outside.
pub const EXTERNAL: u32 = 2;
/// The access interface for segment `rack1`; those of the others follow.
const ACCESS: u32 = 11;

/// A host outside the datacenter.
pub const OUTSIDE: [u8; 4] = [203, 0, 113, 9];

/// The MAC address that answers for away VMs.
pub const GATEWAY_MAC: Mac = [0x02, 0x6e, 0x6d, 0, 0, 1];

/// A router.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name.
    pub name: RouterName,
    /// Its interfaces, by number.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Its access interfaces, by segment.
    pub segments: BTreeMap<SegmentName, u32>,
}

/// Where routing sends a packet from a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To a host of a segment that the router serves.
    Access(u32),
    /// To another router.
    Fabric,
    /// Out of the datacenter.
    External,
}

/// How many locators a segment has: the length of its pool's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Pool {
    /// One.
    One = 32,
    /// Two.
    Two = 31,
}

/// The fabric.
#[derive(Clone, Debug)]
pub struct Fabric {
    /// What the controller is told.
    pub topology: Topology,
    /// The routers, by name.
    pub places: Vec<Place>,
    /// The VMs.
    pub vms: Vec<Vm>,
    /// `PREFIXES_IPV4`, the same on all routers.
    pub prefixes: BTreeMap<u32, PrefixIpv4>,
    /// `POOL_MASKS`, the same on all routers.
    pub masks: Vec<PoolMask>,
}

/// A segment's prefix, `10.1.NUMBER.0/24`.
fn prefix(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, number, 0)
}

impl Fabric {
    /// A fabric with these core routers, and these edge routers for its segments `rack1`, `rack2` …;
    /// each VM has a home, by its number. Each pool has so many locators.
    pub fn new(cores: &[&str], edges: &[&[&str]], homes: &[u8], pool: Pool) -> Self {
        let mut topology = Topology {
            drain: Duration::from_secs(5),
            quarantine: Duration::from_secs(30),
            routers: cores
                .iter()
                .map(|name| (RouterName::new(*name), Tier::Core))
                .collect(),
            segments: BTreeMap::new(),
        };
        for (number, routers) in (1..).zip(edges) {
            let routers: BTreeSet<_> = routers.iter().map(|name| RouterName::new(*name)).collect();
            for router in &routers {
                topology.routers.insert(router.clone(), Tier::Edge);
            }
            let [a, b, c, _] = prefix(number).octets();
            let subnets = vec![Subnet {
                prefix: net(prefix(number), 24).into(),
                gateway: address([a, b, c, 1]),
                pool: net(Ipv4Addr::new(a, b, c, 250), pool as u8).into(),
            }];
            topology.segments.insert(
                SegmentName::new(format!("rack{number}")),
                Segment { subnets, routers },
            );
        }
        let vms = (1..).zip(homes).map(|(number, home)| vm(number, *home));
        let places = topology.routers.keys().zip(1..);
        let places = places
            .map(|(name, number)| place(&topology, name, number))
            .collect();
        let (prefixes, masks) = prefixes(&topology);
        Self {
            places,
            vms: vms.collect(),
            prefixes,
            masks,
            topology,
        }
    }

    /// The number of a router.
    pub fn number(&self, name: &RouterName) -> Option<Number> {
        self.places.iter().position(|place| place.name == *name)
    }

    /// Whether an address is in a locator pool.
    pub fn is_locator(&self, address: [u8; 4]) -> bool {
        let address = crate::tables::address(address);
        let mut segments = self.topology.segments.values();
        segments.any(|segment| segment.subnets.iter().any(|it| it.pool.contains(&address)))
    }

    /// The segment behind an interface of a router.
    pub fn segment(&self, router: Number, ifindex: u32) -> Option<&SegmentName> {
        let mut segments = self.places[router].segments.iter();
        segments
            .find(|(_, number)| **number == ifindex)
            .map(|(name, _)| name)
    }

    /// The routers that serve a segment.
    pub fn edges(&self, segment: &SegmentName) -> Vec<Number> {
        let serves = |place: &Place| place.segments.contains_key(segment);
        (0..self.places.len())
            .filter(|number| serves(&self.places[*number]))
            .collect()
    }

    /// Whether a router is at the edge.
    pub fn is_edge(&self, router: Number) -> bool {
        !self.places[router].segments.is_empty()
    }

    /// The core routers.
    pub fn cores(&self) -> Vec<Number> {
        (0..self.places.len())
            .filter(|number| !self.is_edge(*number))
            .collect()
    }

    /// Where a router's routing table sends a packet.
    pub fn way(&self, router: Number, destination: [u8; 4]) -> Way {
        match self.topology.segment_of(address(destination)) {
            Some(segment) => match self.places[router].segments.get(segment) {
                Some(ifindex) => Way::Access(*ifindex),
                None => Way::Fabric,
            },
            None if self.is_edge(router) => Way::Fabric,
            None => Way::External,
        }
    }

    /// The routers to which a router may send a packet.
    pub fn next(&self, router: Number, destination: [u8; 4]) -> Vec<Number> {
        if self.is_edge(router) {
            return self.cores();
        }
        self.topology
            .segment_of(address(destination))
            .map(|segment| self.edges(segment))
            .unwrap_or_default()
    }

    /// The MAC address of the host or VM that has an address.
    pub fn mac_of(&self, wanted: [u8; 4]) -> Mac {
        let vm = self
            .vms
            .iter()
            .find(|vm| vm.identities.contains(address(wanted)));
        vm.map_or([0x02, 0xbb, 0, 0, wanted[2], wanted[3]], |vm| vm.mac.0)
    }

    /// A host of a segment that natmig has nothing to do with.
    pub fn host(&self, segment: &SegmentName) -> Option<[u8; 4]> {
        let subnet = self.topology.segments.get(segment)?.subnets.first()?;
        let [a, b, c, _] = crate::tables::octets(subnet.prefix.network())?;
        Some([a, b, c, 50])
    }
}

fn net(address: Ipv4Addr, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(address, length)
}

fn vm(number: u8, home: u8) -> Vm {
    let [a, b, c, _] = prefix(home).octets();
    Vm {
        name: VmName::new(format!("vm{number}")),
        identities: Addresses::collect([IpAddr::from([a, b, c, 9 + number])]).unwrap_or_default(),
        mac: MacAddress([2, 0, 0, 0, home, number]),
        home: SegmentName::new(format!("rack{home}")),
    }
}

fn place(topology: &Topology, name: &RouterName, number: u8) -> Place {
    let interface = |role: Role, ifindex: u32| Interface {
        role: role as u8,
        flags: if role == Role::Access {
            FLAG_GATEWAY_OWNER
        } else {
            0
        },
        slot: u16::try_from(ifindex).unwrap_or(1),
        mac: [0x02, 0xaa, 0, 0, number, ifindex.to_le_bytes()[0]],
        mtu: 1500,
        ..Interface::default()
    };
    let segments: BTreeMap<SegmentName, u32> = topology
        .segments
        .keys()
        .zip(ACCESS..)
        .filter(|(segment, _)| topology.serves(name, segment))
        .map(|(segment, ifindex)| (segment.clone(), ifindex))
        .collect();
    let mut interfaces = BTreeMap::from([(FABRIC, interface(Role::Fabric, FABRIC))]);
    if segments.is_empty() {
        interfaces.insert(EXTERNAL, interface(Role::External, EXTERNAL));
    }
    for ifindex in segments.values() {
        interfaces.insert(*ifindex, interface(Role::Access, *ifindex));
    }
    Place {
        name: name.clone(),
        interfaces,
        segments,
    }
}

/// What routers know of prefixes: which have entries in the index, and which addresses are locators.
fn prefixes(topology: &Topology) -> (BTreeMap<u32, PrefixIpv4>, Vec<PoolMask>) {
    let chunk = PrefixIpv4 {
        block: PrefixIpv4::FIRST,
        ..PrefixIpv4::default()
    };
    let mut prefixes = BTreeMap::from([((10 << 8) | 1, chunk)]);
    for third in 0..CHUNK_LENGTH {
        prefixes.insert(WIDE_PREFIXES + third, PrefixIpv4::default());
    }
    let mut masks = Vec::new();
    let subnets = topology
        .segments
        .values()
        .flat_map(|segment| &segment.subnets);
    for (number, subnet) in (0_u16..).zip(subnets) {
        let Some([_, _, third, _]) = crate::tables::octets(subnet.prefix.network()) else {
            continue;
        };
        let mut mask = PoolMask::default();
        for octet in 0..=255_u8 {
            if subnet.pool.contains(&address([10, 1, third, octet])) {
                mask.bits[usize::from(octet / 64)] |= 1 << (octet % 64);
            }
        }
        masks.push(mask);
        let element = PrefixIpv4 {
            block: PrefixIpv4::HASH,
            pool: number + u16::try_from(PrefixIpv4::FIRST).unwrap_or(2),
            route: 0,
        };
        prefixes.insert(WIDE_PREFIXES + u32::from(third), element);
    }
    (prefixes, masks)
}

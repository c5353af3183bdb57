//! The `INTERFACES` and `VLANS` maps: what the program knows of each interface, from configuration
//! and netlink.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use natmig_common::{
    FLAG_GATEWAY_OWNER, FLAG_KEEP_SOURCE, FLAG_PROMISCUOUS, FLAG_TRUNK, Interface, Role,
    UNKNOWN_SLOT, VlanKey,
};

use super::{
    RouterError,
    kernel::Port,
    maps::Maps,
    netlink::{Link, Socket},
    vlan::vlan_of,
};
use crate::config::{InterfaceConfig, RouterConfig};

/// An interface of the instance, as it is.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) name: String,
    pub(super) link: Link,
    pub(super) interface: Interface,
}

impl Attached {
    /// Whether the program runs on the interface itself; for a VLAN it runs on what carries it.
    pub(super) const fn runs_program(&self) -> bool {
        self.interface.parent == 0
    }
}

/// A configured interface and what carries it, if it is a VLAN.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) config: InterfaceConfig,
    pub(super) link: Link,
    pub(super) parent: Option<Link>,
}

impl Found {
    /// The interface whose program handles its packets.
    pub(super) fn carrier(&self) -> &Link {
        self.parent.as_ref().unwrap_or(&self.link)
    }
}

/// The MTU of the router's port: packets of any size that the fabric takes fit through it.
pub(super) fn port_mtu(found: &[Found]) -> u32 {
    let fabric = found
        .iter()
        .filter(|found| found.config.role == Role::Fabric);
    fabric.map(|found| found.link.mtu).max().unwrap_or(1500)
}

/// Reads the configured interfaces and checks that natmig can run on them.
pub(super) fn find(socket: &mut Socket, config: &RouterConfig) -> Result<Vec<Found>, RouterError> {
    let (found, missing) = find_present(socket, config)?;
    match missing.into_iter().next() {
        Some(missing) => Err(RouterError::NoInterface(missing)),
        None => Ok(found),
    }
}

/// As [`find`], but passes over interfaces that do not exist; with the names of those.
pub(super) fn find_present(
    socket: &mut Socket,
    config: &RouterConfig,
) -> Result<(Vec<Found>, Vec<String>), RouterError> {
    let links = socket
        .links()
        .map_err(RouterError::system("list interfaces"))?;
    let mut found: Vec<Found> = Vec::new();
    let mut missing = Vec::new();
    for interface in &config.interfaces {
        let by_name = |name: &str| links.iter().find(|link| link.name == name);
        let Some(link) = by_name(&interface.name) else {
            missing.push(interface.name.clone());
            continue;
        };
        let vlan = vlan_of(interface, link, &links)?;
        let mut parent = None;
        if let Some(vlan) = &vlan {
            let Some(below) = by_name(&vlan.parent) else {
                missing.push(vlan.parent.clone());
                continue;
            };
            parent = Some(below.clone());
        }
        check(link, &links)?;
        if let Some(parent) = &parent {
            check(parent, &links)?;
        }
        let is_same = |other: &&Found| vlan.is_some() && other.config.vlan == vlan;
        if let Some(other) = found.iter().find(is_same) {
            return Err(RouterError::UnsuitableVlan {
                interface: link.name.clone(),
                problem: format!(
                    "is the same VLAN as {}: name one of the two",
                    other.link.name
                ),
            });
        }
        found.push(Found {
            config: InterfaceConfig {
                vlan,
                ..interface.clone()
            },
            link: link.clone(),
            parent,
        });
    }
    Ok((found, missing))
}

/// Refuses interfaces that cannot be the target of a redirect.
fn check(link: &Link, links: &[Link]) -> Result<(), RouterError> {
    let by_index = |ifindex: u32| links.iter().find(|link| link.ifindex == ifindex);
    let is_bridge = |link: &Link| link.kind.as_deref() == Some("bridge");
    let unsuitable = |kind: &str| {
        Err(RouterError::UnsuitableInterface {
            interface: link.name.clone(),
            kind: kind.to_owned(),
        })
    };
    if is_bridge(link) {
        return unsuitable("bridge");
    }
    if link.kind.as_deref() == Some("vlan") && link.lower.and_then(by_index).is_some_and(is_bridge)
    {
        return unsuitable("VLAN interface of a bridge");
    }
    if link.name == "lo" {
        return unsuitable("loopback interface");
    }
    Ok(())
}

/// Writes the elements of all interfaces of the instance, and zeroes those of others.
pub(super) fn fill(
    socket: &mut Socket,
    maps: &Maps,
    found: &[Found],
    port: Port,
) -> Result<BTreeMap<u32, Attached>, RouterError> {
    let addresses = socket
        .addresses()
        .map_err(RouterError::system("list addresses"))?;
    let known = read(maps)?;
    let mut filling = Filling {
        capacity: maps.counters.info.max_entries,
        slots: known.values().map(|interface| interface.slot).collect(),
        known,
        attached: BTreeMap::new(),
    };
    for found in found {
        let mut interface = describe(&found.config, &found.link, &addresses);
        if let (Some(parent), Some(vlan)) = (&found.parent, &found.config.vlan) {
            interface.parent = parent.ifindex;
            interface.vlan = vlan.id;
        }
        filling.insert(&found.config.name, &found.link, interface)?;
    }
    for parent in found.iter().filter_map(|found| found.parent.as_ref()) {
        // It may have a role of its own besides.
        let interface = match filling.attached.get(&parent.ifindex) {
            Some(attached) => attached.interface,
            None => Interface {
                mac: parent.mac,
                mtu: clamp_mtu(parent.mtu),
                ..Interface::default()
            },
        };
        let interface = Interface {
            flags: interface.flags | FLAG_TRUNK,
            ..interface
        };
        filling.insert(&parent.name, parent, interface)?;
    }
    let link = Link {
        ifindex: port.far,
        name: "port".to_owned(),
        mac: port.mac,
        mtu: port.mtu,
        ..Link::default()
    };
    // Tells the kernel's own senders that a packet is too big.
    let interface = Interface {
        role: Role::Kernel as u8,
        mac: port.mac,
        mtu: clamp_mtu(port.mtu),
        address: first_ipv4(&addresses, |_| true).octets(),
        address_ipv6: first_ipv6(&addresses, |_| true).octets(),
        ..Interface::default()
    };
    filling.insert("port", &link, interface)?;
    filling.write(maps)?;
    fill_vlans(maps, &filling.attached)?;
    Ok(filling.attached)
}

/// The table while it is put together.
struct Filling {
    known: BTreeMap<u32, Interface>,
    slots: Vec<u16>,
    capacity: u32,
    attached: BTreeMap<u32, Attached>,
}

impl Filling {
    fn insert(
        &mut self,
        name: &str,
        link: &Link,
        mut interface: Interface,
    ) -> Result<(), RouterError> {
        let before = self.known.get(&link.ifindex);
        let again = self.attached.get(&link.ifindex);
        interface.slot = match (again.map(|again| again.interface.slot), before) {
            (Some(slot), _) => slot,
            (None, Some(before)) => before.slot,
            (None, None) => (UNKNOWN_SLOT + 1..u16::try_from(self.capacity).unwrap_or(u16::MAX))
                .find(|slot| !self.slots.contains(slot))
                .ok_or_else(|| RouterError::TooManyInterfaces {
                    interface: name.to_owned(),
                    ifindex: link.ifindex,
                    capacity: self.capacity,
                })?,
        };
        interface.flags |= before.map_or(0, |before| before.flags & FLAG_PROMISCUOUS);
        self.slots.push(interface.slot);
        self.attached.insert(
            link.ifindex,
            Attached {
                name: name.to_owned(),
                link: link.clone(),
                interface,
            },
        );
        Ok(())
    }

    fn write(&self, maps: &Maps) -> Result<(), RouterError> {
        let doing = || RouterError::system("fill the table of interfaces");
        for (ifindex, attached) in &self.attached {
            if *ifindex >= maps.interfaces.info.max_entries {
                return Err(RouterError::TooManyInterfaces {
                    interface: attached.name.clone(),
                    ifindex: *ifindex,
                    capacity: self.capacity,
                });
            }
            // The ifindex, and no program of the device's own. Each time: the kernel takes an element out
            // when its device goes.
            maps.devices
                .update(ifindex, &[*ifindex, 0])
                .map_err(RouterError::system(format!(
                    "let frames leave on {}",
                    attached.name
                )))?;
            if self.known.get(ifindex) != Some(&attached.interface) {
                maps.interfaces
                    .update(ifindex, &attached.interface)
                    .map_err(doing())?;
            }
        }
        for ifindex in self.known.keys() {
            if !self.attached.contains_key(ifindex) {
                maps.devices.delete(ifindex).map_err(doing())?;
                maps.interfaces
                    .update(ifindex, &Interface::default())
                    .map_err(doing())?;
            }
        }
        Ok(())
    }
}

/// Lets tags lead to the VLANs among the interfaces, and no others.
fn fill_vlans(maps: &Maps, attached: &BTreeMap<u32, Attached>) -> Result<(), RouterError> {
    let doing = || RouterError::system("fill the table of VLANs");
    let mut wanted = Vec::new();
    for (ifindex, attached) in attached {
        if attached.interface.parent != 0 {
            let key = VlanKey {
                parent: attached.interface.parent,
                vlan: attached.interface.vlan.into(),
            };
            maps.vlans.update(&key, ifindex).map_err(doing())?;
            wanted.push(key);
        }
    }
    let present: Vec<(VlanKey, u32)> = maps.vlans.read_all().map_err(doing())?;
    for (key, _) in present {
        if !wanted.contains(&key) {
            maps.vlans.delete(&key).map_err(doing())?;
        }
    }
    Ok(())
}

/// The interfaces that the table holds.
pub(super) fn read(maps: &Maps) -> Result<BTreeMap<u32, Interface>, RouterError> {
    let doing = || RouterError::system("read the table of interfaces");
    let mut known = BTreeMap::new();
    for ifindex in 0..maps.interfaces.info.max_entries {
        let interface: Interface = maps
            .interfaces
            .lookup(&ifindex)
            .map_err(doing())?
            .unwrap_or_default();
        if interface.slot != UNKNOWN_SLOT {
            known.insert(ifindex, interface);
        }
    }
    Ok(known)
}

fn clamp_mtu(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

fn describe(config: &InterfaceConfig, link: &Link, addresses: &[(u32, IpAddr)]) -> Interface {
    let own = |ifindex: u32| ifindex == link.ifindex;
    let has = |address: IpAddr| addresses.contains(&(link.ifindex, address));
    let gateway = config.gateway.filter(|gateway| has((*gateway).into()));
    let gateway_ipv6 = config.gateway_ipv6.filter(|gateway| has((*gateway).into()));
    // Unnumbered interfaces speak with an address of the router's, as the kernel does.
    let address = gateway.unwrap_or_else(|| match first_ipv4(addresses, own) {
        Ipv4Addr::UNSPECIFIED => first_ipv4(addresses, |_| true),
        address => address,
    });
    let address_ipv6 =
        gateway_ipv6
            .filter(is_global)
            .unwrap_or_else(|| match first_ipv6(addresses, own) {
                Ipv6Addr::UNSPECIFIED => first_ipv6(addresses, |_| true),
                address => address,
            });
    let mut flags = 0;
    // Where a segment has gateways of both families, the IPv4 one says who owns them.
    let owns = match config.gateway {
        Some(_) => gateway.is_some(),
        None => gateway_ipv6.is_some(),
    };
    if owns {
        flags |= FLAG_GATEWAY_OWNER;
    }
    if config.keeps_source {
        flags |= FLAG_KEEP_SOURCE;
    }
    Interface {
        role: config.role as u8,
        flags,
        mac: link.mac,
        mtu: clamp_mtu(link.mtu),
        address: address.octets(),
        prefix: config
            .prefix
            .map_or([0; 4], |prefix| prefix.network().octets()),
        netmask: config
            .prefix
            .map_or([0; 4], |prefix| prefix.netmask().octets()),
        prefix_length_ipv6: config.prefix_ipv6.map_or(0, |prefix| prefix.prefix_len()),
        address_ipv6: address_ipv6.octets(),
        prefix_ipv6: config
            .prefix_ipv6
            .map_or([0; 16], |prefix| prefix.network().octets()),
        ..Interface::default()
    }
}

/// The first address on such an interface by which others can reach the router; unspecified if
/// there is none.
fn first_ipv4(addresses: &[(u32, IpAddr)], on: impl Fn(u32) -> bool) -> Ipv4Addr {
    let found = addresses.iter().find_map(|(ifindex, address)| {
        if let IpAddr::V4(address) = address
            && on(*ifindex)
            && !address.is_loopback()
        {
            Some(*address)
        } else {
            None
        }
    });
    found.unwrap_or(Ipv4Addr::UNSPECIFIED)
}

/// As [`first_ipv4`]. Link-local addresses mean nothing to a sender farther away.
fn first_ipv6(addresses: &[(u32, IpAddr)], on: impl Fn(u32) -> bool) -> Ipv6Addr {
    let found = addresses.iter().find_map(|(ifindex, address)| {
        if let IpAddr::V6(address) = address
            && on(*ifindex)
            && is_global(address)
        {
            Some(*address)
        } else {
            None
        }
    });
    found.unwrap_or(Ipv6Addr::UNSPECIFIED)
}

fn is_global(address: &Ipv6Addr) -> bool {
    !address.is_loopback() && !address.is_unicast_link_local() && !address.is_unspecified()
}

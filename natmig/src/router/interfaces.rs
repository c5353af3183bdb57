//! The `INTERFACES` map: what the program knows of each interface, from configuration and netlink.

use std::{collections::BTreeMap, net::Ipv4Addr};

use natmig_common::{
    Counter, FLAG_GATEWAY_OWNER, FLAG_KEEP_SOURCE, FLAG_PROMISCUOUS, Interface, Role, UNKNOWN_SLOT,
};

use super::{
    RouterError,
    kernel::Port,
    maps::Maps,
    netlink::{Link, Socket},
};
use crate::config::{InterfaceConfig, RouterConfig};

/// An interface of the instance, as it is.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) name: String,
    pub(super) link: Link,
    pub(super) interface: Interface,
}

/// Reads the configured interfaces and checks that natmig can run on them.
pub(super) fn find(
    socket: &mut Socket,
    config: &RouterConfig,
) -> Result<Vec<(InterfaceConfig, Link)>, RouterError> {
    let links = socket
        .links()
        .map_err(RouterError::system("list interfaces"))?;
    let by_index = |ifindex: u32| links.iter().find(|link| link.ifindex == ifindex);
    let is_bridge = |link: &Link| link.kind.as_deref() == Some("bridge");
    let mut found = Vec::new();
    for interface in &config.interfaces {
        let Some(link) = links.iter().find(|link| link.name == interface.name) else {
            return Err(RouterError::NoInterface(interface.name.clone()));
        };
        let unsuitable = |kind: &str| RouterError::UnsuitableInterface {
            interface: interface.name.clone(),
            kind: kind.to_owned(),
        };
        if is_bridge(link) {
            return Err(unsuitable("bridge"));
        }
        if link.kind.as_deref() == Some("vlan")
            && link.lower.and_then(by_index).is_some_and(is_bridge)
        {
            return Err(unsuitable("VLAN interface of a bridge"));
        }
        if link.name == "lo" {
            return Err(unsuitable("loopback interface"));
        }
        found.push((interface.clone(), link.clone()));
    }
    Ok(found)
}

/// Writes the elements of all interfaces of the instance, and zeroes those of others.
pub(super) fn fill(
    socket: &mut Socket,
    maps: &Maps,
    found: &[(InterfaceConfig, Link)],
    port: Port,
) -> Result<BTreeMap<u32, Attached>, RouterError> {
    let addresses = socket
        .addresses()
        .map_err(RouterError::system("list addresses"))?;
    let known = read(maps)?;
    let capacity = maps.counters.info.max_entries / Counter::COUNT;
    let mut slots: Vec<u16> = known.values().map(|interface| interface.slot).collect();
    let mut attached = BTreeMap::new();
    for (config, link) in found {
        let before = known.get(&link.ifindex);
        let interface = describe(config, link, &addresses, before);
        insert(
            &mut attached,
            &mut slots,
            capacity,
            before,
            &config.name,
            link,
            interface,
        )?;
    }
    let link = Link {
        ifindex: port.far,
        name: "port".to_owned(),
        mac: port.mac,
        mtu: port.mtu,
        ..Link::default()
    };
    let interface = Interface {
        role: Role::Kernel as u8,
        mac: port.mac,
        mtu: clamp_mtu(port.mtu),
        // Tells the kernel's own senders that a packet is too big.
        address: addresses
            .iter()
            .map(|(_, address)| *address)
            .find(|address| !address.is_loopback())
            .map_or([0; 4], |address| address.octets()),
        ..Interface::default()
    };
    let before = known.get(&port.far);
    insert(
        &mut attached,
        &mut slots,
        capacity,
        before,
        "port",
        &link,
        interface,
    )?;
    let doing = || RouterError::system("fill the table of interfaces");
    for (ifindex, attached) in &attached {
        if *ifindex >= maps.interfaces.info.max_entries {
            return Err(RouterError::TooManyInterfaces {
                interface: attached.name.clone(),
                ifindex: *ifindex,
                capacity,
            });
        }
        maps.interfaces
            .update(ifindex, &attached.interface)
            .map_err(doing())?;
    }
    for ifindex in known
        .keys()
        .filter(|ifindex| !attached.contains_key(*ifindex))
    {
        maps.interfaces
            .update(ifindex, &Interface::default())
            .map_err(doing())?;
    }
    Ok(attached)
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
        if interface.role != 0 {
            known.insert(ifindex, interface);
        }
    }
    Ok(known)
}

fn insert(
    attached: &mut BTreeMap<u32, Attached>,
    slots: &mut Vec<u16>,
    capacity: u32,
    before: Option<&Interface>,
    name: &str,
    link: &Link,
    mut interface: Interface,
) -> Result<(), RouterError> {
    interface.slot = match before {
        Some(before) => before.slot,
        None => (UNKNOWN_SLOT + 1..u16::try_from(capacity).unwrap_or(u16::MAX))
            .find(|slot| !slots.contains(slot))
            .ok_or_else(|| RouterError::TooManyInterfaces {
                interface: name.to_owned(),
                ifindex: link.ifindex,
                capacity,
            })?,
    };
    slots.push(interface.slot);
    attached.insert(
        link.ifindex,
        Attached {
            name: name.to_owned(),
            link: link.clone(),
            interface,
        },
    );
    Ok(())
}

fn clamp_mtu(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

fn describe(
    config: &InterfaceConfig,
    link: &Link,
    addresses: &[(u32, Ipv4Addr)],
    before: Option<&Interface>,
) -> Interface {
    let own = || {
        addresses
            .iter()
            .filter(|(ifindex, _)| *ifindex == link.ifindex)
    };
    let gateway = config
        .gateway
        .filter(|gateway| own().any(|(_, address)| address == gateway));
    // Unnumbered interfaces speak with an address of the router's, as the kernel does.
    let address = gateway
        .or_else(|| own().map(|(_, address)| *address).next())
        .or_else(|| {
            addresses
                .iter()
                .map(|(_, address)| *address)
                .find(|address| !address.is_loopback())
        });
    let mut flags = 0;
    if gateway.is_some() {
        flags |= FLAG_GATEWAY_OWNER;
    }
    if config.keeps_source {
        flags |= FLAG_KEEP_SOURCE;
    }
    flags |= before.map_or(0, |before| before.flags & FLAG_PROMISCUOUS);
    Interface {
        role: config.role as u8,
        flags,
        mac: link.mac,
        mtu: clamp_mtu(link.mtu),
        address: address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
        prefix: config
            .prefix
            .map_or([0; 4], |prefix| prefix.network().octets()),
        netmask: config
            .prefix
            .map_or([0; 4], |prefix| prefix.netmask().octets()),
        ..Interface::default()
    }
}

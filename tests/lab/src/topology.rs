//! The description of a lab: what its file says, checked and with every derived name and address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::Ipv4Net;
use serde::Deserialize;

/// The default topology, also readable as a file beside the sources.
pub const THREE_TIER: &str = include_str!("../topologies/three-tier.toml");

/// A whole lab.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// How long natmig lets old locators drain.
    #[serde(default = "default_drain")]
    pub drain: String,
    /// How long natmig keeps a locator from being used again.
    #[serde(default = "default_quarantine")]
    pub quarantine: String,
    /// Fabric links take their /31 prefixes from here.
    pub links: Ipv4Net,
    /// All routers.
    #[serde(rename = "router")]
    pub routers: Vec<Router>,
    /// Fabric links.
    #[serde(default, rename = "link")]
    pub fabric: Vec<Link>,
    /// Racks.
    #[serde(rename = "segment")]
    pub segments: Vec<Segment>,
    /// Guests that can move.
    #[serde(default, rename = "vm")]
    pub vms: Vec<Vm>,
    /// Machines that stay.
    #[serde(default, rename = "host")]
    pub hosts: Vec<Host>,
    /// The host beyond the fabric.
    pub outside: Option<Outside>,
}

fn default_drain() -> String {
    "2s".into()
}

fn default_quarantine() -> String {
    "5s".into()
}

/// Layer of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Serves segments.
    Edge,
    /// Connects the edge routers of a pod.
    Aggregation,
    /// Connects pods and the outside.
    Core,
}

impl Tier {
    /// As natmig's topology file spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Aggregation => "aggregation",
            Self::Core => "core",
        }
    }
}

/// A router.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Its name, also of the interfaces that lead to it.
    pub name: String,
    /// Its layer.
    pub tier: Tier,
}

/// A fabric link between two routers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The routers it connects.
    pub between: [String; 2],
    /// Largest packet, of both ends.
    #[serde(default = "default_mtu")]
    pub mtu: u32,
}

fn default_mtu() -> u32 {
    1500
}

/// A rack: a bridge and the edge routers that serve it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Its name, also of the access interface.
    pub name: String,
    /// The subnet.
    pub prefix: Ipv4Net,
    /// The first router's address in it.
    pub gateway: Ipv4Addr,
    /// Locators come from here.
    pub pool: Ipv4Net,
    /// One or two edge routers.
    pub routers: Vec<String>,
}

/// A guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Its home.
    pub segment: String,
    /// Its identity.
    pub address: Ipv4Addr,
    /// The group that it migrates with.
    pub group: Option<String>,
}

/// A machine that stays.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub segment: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The host beyond the fabric.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// Its name.
    pub name: String,
    /// Its address, on its loopback, reached over all its links.
    pub address: Ipv4Addr,
    /// Its links take their /31 prefixes from here.
    pub links: Ipv4Net,
    /// The routers that it is connected to.
    pub routers: Vec<String>,
}

/// One end of a routed link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The node.
    pub node: String,
    /// Its interface.
    pub interface: String,
    /// The interface's address.
    pub address: Ipv4Addr,
}

/// A routed point-to-point link with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedLink {
    /// Both ends.
    pub ends: [End; 2],
    /// Largest packet.
    pub mtu: u32,
    /// Leads out of the datacenter.
    pub external: bool,
}

/// A machine whose only interface is `eth0` (or the outside host).
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its interfaces.
    pub interfaces: Vec<String>,
}

impl Topology {
    /// Reads a description.
    pub fn parse(text: &str) -> Result<Self> {
        let topology: Self = toml::from_str(text)?;
        topology.check()?;
        Ok(topology)
    }

    /// Reads a description from a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no lab topology", path.display()))
    }

    fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        let all = (self.routers.iter().map(|router| &router.name))
            .chain(self.segments.iter().map(|segment| &segment.name))
            .chain(self.vms.iter().map(|vm| &vm.name))
            .chain(self.hosts.iter().map(|host| &host.name))
            .chain(self.outside.iter().map(|outside| &outside.name));
        for name in all {
            let plain = name.chars().all(|letter| letter.is_ascii_alphanumeric());
            ensure!(
                plain && (1..=12).contains(&name.len()),
                "{name:?}: names have 1 to 12 letters and digits, they become interface names"
            );
            ensure!(names.insert(name), "{name} is there twice");
        }
        for link in &self.fabric {
            for end in &link.between {
                ensure!(
                    self.router(end).is_some(),
                    "link {} – {}: no router {end}",
                    link.between[0],
                    link.between[1]
                );
            }
            ensure!(
                link.mtu >= 576,
                "link {} – {}: an MTU under 576",
                link.between[0],
                link.between[1]
            );
        }
        for segment in &self.segments {
            ensure!(
                (1..=2).contains(&segment.routers.len()),
                "segment {}: one or two routers",
                segment.name
            );
            for router in &segment.routers {
                ensure!(
                    self.router(router).is_some(),
                    "segment {}: no router {router}",
                    segment.name
                );
            }
            ensure!(
                segment.prefix.contains(&segment.gateway),
                "segment {}: gateway outside of the prefix",
                segment.name
            );
            ensure!(
                segment.prefix.contains(&segment.pool),
                "segment {}: pool outside of the prefix",
                segment.name
            );
        }
        let machines = (self
            .vms
            .iter()
            .map(|vm| (&vm.name, &vm.segment, vm.address)))
        .chain(
            self.hosts
                .iter()
                .map(|host| (&host.name, &host.segment, host.address)),
        );
        for (name, segment, address) in machines {
            let Some(segment) = self.segment(segment) else {
                bail!("{name}: no segment {segment}")
            };
            ensure!(
                segment.prefix.contains(&address),
                "{name}: {address} is not in {}",
                segment.name
            );
            ensure!(
                !segment.pool.contains(&address),
                "{name}: {address} is in the pool of {}",
                segment.name
            );
        }
        for router in self.outside.iter().flat_map(|outside| &outside.routers) {
            ensure!(self.router(router).is_some(), "outside: no router {router}");
        }
        Ok(())
    }

    /// A router by name.
    pub fn router(&self, name: &str) -> Option<&Router> {
        self.routers.iter().find(|router| router.name == name)
    }

    /// A segment by name.
    pub fn segment(&self, name: &str) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.name == name)
    }

    /// A VM by name.
    pub fn vm(&self, name: &str) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.name == name)
    }

    /// All routed links, with addresses that depend on the order in the file only.
    pub fn routed_links(&self) -> Vec<RoutedLink> {
        fn pair(net: Ipv4Net, index: usize) -> [Ipv4Addr; 2] {
            let first = u32::from(net.network()) + 2 * u32::try_from(index).unwrap_or(u32::MAX / 4);
            [Ipv4Addr::from(first), Ipv4Addr::from(first + 1)]
        }
        fn link(
            nodes: [&String; 2],
            [a, b]: [Ipv4Addr; 2],
            mtu: u32,
            external: bool,
        ) -> RoutedLink {
            let end = |node: &String, peer: &String, address| End {
                node: node.clone(),
                interface: peer.clone(),
                address,
            };
            RoutedLink {
                ends: [end(nodes[0], nodes[1], a), end(nodes[1], nodes[0], b)],
                mtu,
                external,
            }
        }
        let fabric = self.fabric.iter().enumerate().map(|(index, l)| {
            link(
                [&l.between[0], &l.between[1]],
                pair(self.links, index),
                l.mtu,
                false,
            )
        });
        let external = self.outside.iter().flat_map(|outside| {
            outside
                .routers
                .iter()
                .enumerate()
                .map(move |(index, router)| {
                    link(
                        [router, &outside.name],
                        pair(outside.links, index),
                        default_mtu(),
                        true,
                    )
                })
        });
        fabric.chain(external).collect()
    }

    /// Every machine at which natmig must not show.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let eth0 = || vec!["eth0".to_owned()];
        let vms = self.vms.iter().map(|vm| Endpoint {
            name: vm.name.clone(),
            address: vm.address,
            interfaces: eth0(),
        });
        let hosts = self.hosts.iter().map(|host| Endpoint {
            name: host.name.clone(),
            address: host.address,
            interfaces: eth0(),
        });
        let outside = self.outside.iter().map(|outside| Endpoint {
            name: outside.name.clone(),
            address: outside.address,
            interfaces: outside.routers.clone(),
        });
        vms.chain(hosts).chain(outside).collect()
    }

    /// The address of an endpoint.
    pub fn address(&self, endpoint: &str) -> Option<Ipv4Addr> {
        self.endpoints()
            .into_iter()
            .find(|e| e.name == endpoint)
            .map(|e| e.address)
    }

    /// All locator pools.
    pub fn pools(&self) -> Vec<Ipv4Net> {
        self.segments.iter().map(|segment| segment.pool).collect()
    }

    /// Address of the `index`th router of a segment: the gateway, or the one after it.
    pub fn access_address(segment: &Segment, index: usize) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(segment.gateway) + u32::from(index > 0))
    }

    /// MAC address of a machine: made of its address, so that captures are readable.
    pub fn mac(address: Ipv4Addr) -> String {
        let [a, b, c, d] = address.octets();
        format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    /// VMs by group; a VM without one is its own.
    pub fn groups(&self) -> BTreeMap<String, Vec<String>> {
        let mut groups = BTreeMap::<String, Vec<String>>::new();
        for vm in &self.vms {
            let group = vm.group.clone().unwrap_or_else(|| vm.name.clone());
            groups.entry(group).or_default().push(vm.name.clone());
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_topology_is_valid_and_redundant() {
        let topology = Topology::parse(THREE_TIER).unwrap();
        assert_eq!(topology.routers.len(), 10);
        assert_eq!(topology.segments.len(), 4);
        assert_eq!(topology.routed_links().len(), 18);
        let addresses: BTreeSet<_> = topology
            .routed_links()
            .iter()
            .flat_map(|link| [link.ends[0].address, link.ends[1].address])
            .collect();
        assert_eq!(addresses.len(), 36);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let text = THREE_TIER.replace("segment = \"rack3\"", "segment = \"rack9\"");
        let error = Topology::parse(&text).unwrap_err().to_string();
        assert_eq!(error, "host3: no segment rack9");
    }
}

//! The description of a lab: what its file says, checked and with every derived name and address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
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
    /// And their /127 prefixes from here, in a lab with IPv6.
    pub links_ipv6: Option<Ipv6Net>,
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
    /// The subnet's IPv6 prefix.
    pub prefix_ipv6: Option<Ipv6Net>,
    /// The first router's IPv6 address in it, which may be link-local.
    pub gateway_ipv6: Option<Ipv6Addr>,
    /// IPv6 locators come from here.
    pub pool_ipv6: Option<Ipv6Net>,
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
    /// Its IPv6 identity.
    pub address_ipv6: Option<Ipv6Addr>,
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
    /// Its IPv6 address.
    pub address_ipv6: Option<Ipv6Addr>,
}

/// The host beyond the fabric.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// Its name.
    pub name: String,
    /// Its address, on its loopback, reached over all its links.
    pub address: Ipv4Addr,
    /// Its IPv6 address, likewise.
    pub address_ipv6: Option<Ipv6Addr>,
    /// Its links take their /31 prefixes from here.
    pub links: Ipv4Net,
    /// And their /127 prefixes from here.
    pub links_ipv6: Option<Ipv6Net>,
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
    /// The interface's IPv6 address.
    pub address_ipv6: Option<Ipv6Addr>,
}

impl End {
    /// Its addresses, with the lengths of the link's prefixes.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + use<> {
        let ipv4 = IpNet::new(self.address.into(), 31).ok();
        let ipv6 = self.address_ipv6.map(IpAddr::V6);
        let ipv6 = ipv6.and_then(|address| IpNet::new(address, 127).ok());
        ipv4.into_iter().chain(ipv6)
    }
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
    /// Its IPv6 address.
    pub address_ipv6: Option<Ipv6Addr>,
    /// Its interfaces.
    pub interfaces: Vec<String>,
}

impl Endpoint {
    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        addresses(self.address, self.address_ipv6)
    }
}

fn addresses(ipv4: Ipv4Addr, ipv6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> + use<> {
    std::iter::once(IpAddr::V4(ipv4)).chain(ipv6.map(IpAddr::V6))
}

impl Vm {
    /// Its identities, IPv4 first.
    pub fn identities(&self) -> impl Iterator<Item = IpAddr> + use<> {
        addresses(self.address, self.address_ipv6)
    }
}

impl Segment {
    /// Its prefixes, IPv4 first.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + use<> {
        let ipv6 = self.prefix_ipv6.map(IpNet::V6);
        std::iter::once(IpNet::V4(self.prefix)).chain(ipv6)
    }

    /// Its gateways, IPv4 first.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + use<> {
        addresses(self.gateway, self.gateway_ipv6)
    }

    /// Its pools, IPv4 first.
    pub fn pools(&self) -> impl Iterator<Item = IpNet> + use<> {
        let ipv6 = self.pool_ipv6.map(IpNet::V6);
        std::iter::once(IpNet::V4(self.pool)).chain(ipv6)
    }

    /// The prefix that contains an address.
    fn prefix_of(&self, address: IpAddr) -> Option<IpNet> {
        self.prefixes().find(|prefix| prefix.contains(&address))
    }
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
            for gateway in segment.gateways() {
                let link_local =
                    matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
                ensure!(
                    link_local || segment.prefix_of(gateway).is_some(),
                    "segment {}: gateway outside of the prefix",
                    segment.name
                );
            }
            for pool in segment.pools() {
                ensure!(
                    segment.prefixes().any(|prefix| prefix.contains(&pool)),
                    "segment {}: pool outside of the prefix",
                    segment.name
                );
            }
            let ipv6 = [
                segment.prefix_ipv6.is_some(),
                segment.gateway_ipv6.is_some(),
                segment.pool_ipv6.is_some(),
            ];
            ensure!(
                ipv6 == [ipv6[0]; 3],
                "segment {}: IPv6 needs prefix_ipv6, gateway_ipv6 and pool_ipv6",
                segment.name
            );
        }
        let vms = self
            .vms
            .iter()
            .map(|vm| (&vm.name, &vm.segment, vm.address, vm.address_ipv6));
        let hosts = self
            .hosts
            .iter()
            .map(|host| (&host.name, &host.segment, host.address, host.address_ipv6));
        for (name, segment, ipv4, ipv6) in vms.chain(hosts) {
            let Some(segment) = self.segment(segment) else {
                bail!("{name}: no segment {segment}")
            };
            for address in addresses(ipv4, ipv6) {
                ensure!(
                    segment.prefix_of(address).is_some(),
                    "{name}: {address} is not in {}",
                    segment.name
                );
                ensure!(
                    !segment.pools().any(|pool| pool.contains(&address)),
                    "{name}: {address} is in the pool of {}",
                    segment.name
                );
            }
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
        type Pair = ([Ipv4Addr; 2], Option<[Ipv6Addr; 2]>);
        fn pair(net: Ipv4Net, net_ipv6: Option<Ipv6Net>, index: usize) -> Pair {
            let offset = 2 * u32::try_from(index).unwrap_or(u32::MAX / 4);
            let first = u32::from(net.network()) + offset;
            let ipv6 = net_ipv6.map(|net| {
                let first = u128::from(net.network()) + u128::from(offset);
                [first, first + 1].map(Ipv6Addr::from)
            });
            ([first, first + 1].map(Ipv4Addr::from), ipv6)
        }
        fn link(nodes: [&String; 2], (ipv4, ipv6): Pair, mtu: u32, external: bool) -> RoutedLink {
            let end = |own: usize, peer: usize| End {
                node: nodes[own].clone(),
                interface: nodes[peer].clone(),
                address: ipv4[own],
                address_ipv6: ipv6.map(|addresses| addresses[own]),
            };
            RoutedLink {
                ends: [end(0, 1), end(1, 0)],
                mtu,
                external,
            }
        }
        let fabric = self.fabric.iter().enumerate().map(|(index, l)| {
            link(
                [&l.between[0], &l.between[1]],
                pair(self.links, self.links_ipv6, index),
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
                        pair(outside.links, outside.links_ipv6, index),
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
            address_ipv6: vm.address_ipv6,
            interfaces: eth0(),
        });
        let hosts = self.hosts.iter().map(|host| Endpoint {
            name: host.name.clone(),
            address: host.address,
            address_ipv6: host.address_ipv6,
            interfaces: eth0(),
        });
        let outside = self.outside.iter().map(|outside| Endpoint {
            name: outside.name.clone(),
            address: outside.address,
            address_ipv6: outside.address_ipv6,
            interfaces: outside.routers.clone(),
        });
        vms.chain(hosts).chain(outside).collect()
    }

    /// An endpoint.
    pub fn endpoint(&self, name: &str) -> Option<Endpoint> {
        self.endpoints().into_iter().find(|e| e.name == name)
    }

    /// The IPv4 address of an endpoint.
    pub fn address(&self, endpoint: &str) -> Option<Ipv4Addr> {
        self.endpoint(endpoint).map(|e| e.address)
    }

    /// The IPv6 address of an endpoint.
    pub fn address_ipv6(&self, endpoint: &str) -> Option<Ipv6Addr> {
        self.endpoint(endpoint).and_then(|e| e.address_ipv6)
    }

    /// All locator pools.
    pub fn pools(&self) -> Vec<IpNet> {
        self.segments.iter().flat_map(Segment::pools).collect()
    }

    /// Addresses of the `index`th router of a segment, with the lengths of their prefixes: the
    /// gateway, or the one after it. If the gateway is link-local, the router has the prefix'
    /// `index`th address too.
    pub fn access_addresses(segment: &Segment, index: usize) -> Vec<IpNet> {
        let second = u8::from(index > 0);
        let ipv4 = u32::from(segment.gateway) + u32::from(second);
        let mut addresses = vec![(
            IpAddr::from(Ipv4Addr::from(ipv4)),
            segment.prefix.prefix_len(),
        )];
        if let (Some(prefix), Some(gateway)) = (segment.prefix_ipv6, segment.gateway_ipv6) {
            let after = |address| Ipv6Addr::from(u128::from(address) + u128::from(second));
            addresses.push((after(gateway).into(), prefix.prefix_len()));
            if gateway.is_unicast_link_local() {
                let first = Ipv6Addr::from(u128::from(prefix.network()) + 1);
                addresses.push((after(first).into(), prefix.prefix_len()));
            }
        }
        addresses
            .into_iter()
            .filter_map(|(address, length)| IpNet::new(address, length).ok())
            .collect()
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
        let links = topology.routed_links();
        let addresses: BTreeSet<_> = links
            .iter()
            .flat_map(|link| &link.ends)
            .flat_map(|end| {
                end.prefixes()
                    .map(|prefix| prefix.addr())
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(addresses.len(), 72);
        assert_eq!(topology.pools().len(), 8);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let text = THREE_TIER.replace("segment = \"rack3\"", "segment = \"rack9\"");
        let error = Topology::parse(&text).unwrap_err().to_string();
        assert_eq!(error, "host3: no segment rack9");
    }
}

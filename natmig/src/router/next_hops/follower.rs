//! Follows the kernel's tables: reads them, takes events in, reads again what the kernel does not
//! tell of, and feeds the mirror with it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use natmig_common::{Interface, Role};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, link::LinkMessage, neighbour::NeighbourMessage,
    route::RouteMessage, rule::RuleMessage,
};

use super::{
    decode::{self, Event, LinkEvent},
    links::LinkState,
    mirror::Mirror,
    monitor::{Monitor, MonitorError},
    paths::{ChangeKind, RouteChange},
    prefix::Ip,
    settings,
};

/// Events that are taken in before the tables follow them.
const EVENTS: usize = 4096;

/// How often all routes are read again although nothing seems to be wrong: the kernel does not tell
/// of every change.
const AUDIT: Duration = Duration::from_mins(1);

/// How often settings are read that the kernel tells nothing of when they change.
const SETTINGS: Duration = Duration::from_secs(1);

/// Reading routes again takes at most one part in so many of the time.
const SHARE: u32 = 10;

const FAMILIES: [(Ip, AddressFamily); 2] = [
    (Ip::V4, AddressFamily::Inet),
    (Ip::V6, AddressFamily::Inet6),
];

/// What is to be read again.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is read by itself, in any combination"
)]
struct Stale {
    everything: bool,
    routes: bool,
    rules: bool,
    settings: bool,
}

/// The mirror, and what feeds it.
pub(super) struct Follower {
    pub(super) mirror: Mirror,
    monitor: Monitor,
    links: HashMap<u32, LinkEvent>,
    interfaces: BTreeMap<u32, Interface>,
    rules: [bool; 2],
    stale: Stale,
    /// Routes are not read again before this.
    earliest: Instant,
    audit: Instant,
    next_settings: Instant,
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

impl Follower {
    pub(super) fn new(monitor: Monitor, interfaces: BTreeMap<u32, Interface>) -> Self {
        let now = Instant::now();
        Self {
            mirror: Mirror::new(),
            monitor,
            links: HashMap::new(),
            interfaces,
            rules: [false; 2],
            stale: Stale {
                everything: true,
                ..Stale::default()
            },
            earliest: now,
            audit: now + AUDIT,
            next_settings: now,
        }
    }

    /// Sets the interfaces as the program knows them.
    pub(super) fn set_interfaces(&mut self, interfaces: BTreeMap<u32, Interface>) {
        self.interfaces = interfaces;
        self.stale.settings = true;
    }

    /// Has everything read again.
    pub(super) const fn doubt(&mut self) {
        self.stale.everything = true;
    }

    /// Whether the mirror says what the kernel says, as far as events have been taken in.
    pub(super) const fn is_certain(&self) -> bool {
        !self.stale.everything && !self.stale.routes
    }

    /// Whether a part of that takes so long that the program must not wait for it.
    pub(super) const fn knows_nothing(&self) -> bool {
        self.stale.everything
    }

    /// Takes events in; whether there are no more.
    pub(super) fn take_events(&mut self) -> Result<bool, MonitorError> {
        if self.stale.everything {
            return Ok(true);
        }
        for _ in 0..EVENTS {
            match self.monitor.next()? {
                None => return Ok(true),
                Some(event) => self.take(event),
            }
        }
        Ok(false)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Route(route, replaced) => {
                let kind = if replaced {
                    ChangeKind::Replaced
                } else {
                    ChangeKind::Added
                };
                self.mirror.change_route(RouteChange { route, kind });
            }
            Event::RouteGone(route) => self.mirror.change_route(RouteChange {
                route,
                kind: ChangeKind::Removed,
            }),
            Event::Neighbor(way, mac, permanent) => {
                self.mirror.set_neighbor(way, mac);
                self.mirror.set_permanent(way, permanent);
            }
            Event::NeighborGone(way) => self.mirror.forget_neighbor(way),
            Event::Link(link) => {
                let ifindex = link.ifindex;
                self.links.insert(ifindex, link);
                self.link_changed(ifindex);
            }
            Event::LinkGone(ifindex) => {
                self.links.remove(&ifindex);
                self.link_changed(ifindex);
            }
            // Of routes that go with an address the kernel does not tell.
            Event::AddressGone => self.stale.routes = true,
            Event::Rules => self.stale.rules = true,
            Event::Settings => self.stale.settings = true,
            Event::Nexthop(number) => self.mirror.touch_nexthop(number),
            Event::Nothing => {}
        }
        self.stale.routes |= self.mirror.take_doubt();
    }

    fn link_changed(&mut self, ifindex: u32) {
        let state = self.links.get(&ifindex).map(|link| self.state(link));
        // Nor of those that go with an interface.
        self.stale.routes |= self.mirror.set_link(ifindex, state);
        self.stale.settings |= self.interfaces.contains_key(&ifindex);
    }

    fn state(&self, link: &LinkEvent) -> LinkState {
        LinkState {
            up: link.up,
            carrier: link.carrier,
            mac: link.mac,
            mtu: link.mtu,
            mtu_ipv6: if self.interfaces.contains_key(&link.ifindex) {
                settings::mtu_ipv6(&link.name)
            } else {
                0
            },
        }
    }

    /// Reads what is stale.
    pub(super) fn read_again(&mut self) -> Result<(), MonitorError> {
        let now = Instant::now();
        if now >= self.audit && !self.stale.everything {
            self.audit = now + AUDIT;
            self.stale.routes = true;
        }
        if self.stale.everything {
            self.read_everything()?;
        }
        if std::mem::take(&mut self.stale.rules) {
            self.read_rules()?;
            self.stale.settings = true;
        }
        if std::mem::take(&mut self.stale.settings) || now >= self.next_settings {
            self.next_settings = now + SETTINGS;
            self.read_settings();
        }
        if self.stale.routes && now >= self.earliest {
            self.read_routes()?;
        }
        Ok(())
    }

    fn read_everything(&mut self) -> Result<(), MonitorError> {
        self.monitor.skip()?;
        let links = self
            .monitor
            .dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        self.links = links
            .into_iter()
            .filter_map(|message| {
                if let Event::Link(link) = decode::event(message) {
                    Some((link.ifindex, link))
                } else {
                    None
                }
            })
            .collect();
        self.read_settings();
        let mut neighbors = HashMap::new();
        let mut fixed = HashSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            for message in self
                .monitor
                .dump(&RouteNetlinkMessage::GetNeighbour(request))?
            {
                if let Event::Neighbor(way, Some(mac), permanent) = decode::event(message) {
                    neighbors.insert(way, mac);
                    if permanent {
                        fixed.insert(way);
                    }
                }
            }
        }
        self.mirror.replace_neighbors(neighbors, fixed);
        self.read_rules()?;
        self.read_settings();
        self.read_routes()?;
        self.stale = Stale::default();
        self.audit = Instant::now() + AUDIT;
        Ok(())
    }

    fn read_rules(&mut self) -> Result<(), MonitorError> {
        for (family, number) in FAMILIES {
            let mut request = RuleMessage::default();
            request.header.family = number;
            let messages = self.monitor.dump(&RouteNetlinkMessage::GetRule(request))?;
            let rules: Vec<RuleMessage> = messages
                .into_iter()
                .filter_map(|message| {
                    if let RouteNetlinkMessage::NewRule(rule) = message {
                        Some(rule)
                    } else {
                        None
                    }
                })
                .collect();
            self.rules[family.index()] = decode::rules_are_plain(&rules, family);
        }
        Ok(())
    }

    /// Reads all routes; what that changes was not told of.
    fn read_routes(&mut self) -> Result<usize, MonitorError> {
        let begun = Instant::now();
        let mut changed = 0;
        for (family, number) in FAMILIES {
            let mut request = RouteMessage::default();
            request.header.address_family = number;
            let messages = self.monitor.dump(&RouteNetlinkMessage::GetRoute(request))?;
            let routes = messages
                .into_iter()
                .filter_map(|message| {
                    if let Event::Route(route, _) = decode::event(message) {
                        Some(route)
                    } else {
                        None
                    }
                })
                .collect();
            changed += self.mirror.replace_routes(family, routes);
        }
        self.mirror.take_doubt();
        self.stale.routes = false;
        let took = begun.elapsed();
        self.earliest = begun + took * SHARE;
        let (prefixes, routes) = self.mirror.sizes();
        tracing::debug!(prefixes, routes, changed, ?took, "read the kernel's routes");
        Ok(changed)
    }

    fn read_settings(&mut self) {
        let links: HashMap<u32, LinkState> = self
            .links
            .iter()
            .map(|(ifindex, link)| (*ifindex, self.state(link)))
            .collect();
        self.mirror.replace_links(links);
        let mut plain = self.rules;
        let through = |role| role != 0 && role != Role::Kernel as u8;
        for (ifindex, interface) in &self.interfaces {
            if through(interface.role)
                && let Some(link) = self.links.get(ifindex)
            {
                for (plain, forwards) in plain.iter_mut().zip(settings::forwards(&link.name)) {
                    *plain &= forwards;
                }
            }
        }
        self.mirror
            .set_rules(plain, settings::forwards_by_route_mtu());
        self.mirror.set_interfaces(self.interfaces.clone());
    }
}

#[cfg(test)]
impl Follower {
    /// Reads all routes again; how many prefixes that changes.
    fn audit(&mut self) -> Result<usize, MonitorError> {
        self.read_routes()
    }
}

#[cfg(test)]
#[path = "tests/kernel.rs"]
mod tests;

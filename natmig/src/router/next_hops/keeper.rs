//! The thread that keeps the tables of next hops: it reads the kernel's tables, follows their events,
//! and lets the heart beat while it has caught up with them.
//!
//! Invariant: whenever the program believes the routes, they are what the kernel said a moment ago.
//! What takes time (reading everything again, or having prefixes changed, which the writer of the
//! tables does) begins with a withdrawal, after which the program asks the kernel.

use std::{
    collections::{BTreeMap, HashMap},
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::mpsc::{Receiver, TryRecvError},
    time::{Duration, Instant},
};

use natmig_common::{Interface, Role};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, link::LinkMessage, neighbour::NeighbourMessage,
    route::RouteMessage, rule::RuleMessage,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    super::{
        RouterError,
        netlink::{Change, Socket},
    },
    Message, PrefixRoute,
    decode::{self, Event, LinkEvent},
    heartbeat::{self, Heartbeat},
    links::LinkState,
    mirror::{Mirror, Update},
    monitor::{Monitor, MonitorError},
    paths::{ChangeKind, RouteChange},
    prefix::Ip,
    sets::Way,
    settings,
    table::Table,
};

/// Events that are taken in before the tables follow them.
const EVENTS: usize = 4096;

/// How often everything is read again although nothing seems to be wrong: the kernel does not tell
/// of every change.
const AUDIT: Duration = Duration::from_mins(1);

/// How often settings are read that the kernel tells nothing of when they change.
const SETTINGS: Duration = Duration::from_secs(1);

/// Pause after the kernel's tables could not be read.
const RETRY: Duration = Duration::from_millis(500);

/// Reading routes again takes at most one part in so many of the time.
const SHARE: u32 = 10;

/// What does not work.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Router(#[from] RouterError),
}

/// What is to be read again.
#[derive(Debug)]
struct Stale {
    everything: bool,
    routes: bool,
    rules: bool,
    settings: bool,
}

/// Has the routes of prefixes changed; `false` if nobody does that any longer.
pub(super) type Setter = Box<dyn FnMut(Vec<PrefixRoute>) -> bool + Send>;

/// The state of the thread.
pub(super) struct Keeper {
    monitor: Monitor,
    /// For neighbours to keep.
    socket: Socket,
    mirror: Mirror,
    table: Table,
    heartbeat: Heartbeat,
    set_routes: Setter,
    messages: Receiver<Message>,
    wake: UnixStream,
    links: HashMap<u32, LinkEvent>,
    interfaces: BTreeMap<u32, Interface>,
    rules: [bool; 2],
    stale: Stale,
    /// Routes are not read again before this.
    earliest: Instant,
    audit: Instant,
    next_settings: Instant,
    next_beat: Instant,
    stopping: bool,
}

/// What a keeper is made of.
pub(super) struct Parts {
    pub(super) monitor: Monitor,
    pub(super) socket: Socket,
    pub(super) table: Table,
    pub(super) heartbeat: Heartbeat,
    pub(super) interfaces: BTreeMap<u32, Interface>,
    pub(super) set_routes: Setter,
    pub(super) messages: Receiver<Message>,
    pub(super) wake: UnixStream,
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        Self {
            monitor: parts.monitor,
            socket: parts.socket,
            mirror: Mirror::new(),
            table: parts.table,
            heartbeat: parts.heartbeat,
            set_routes: parts.set_routes,
            messages: parts.messages,
            wake: parts.wake,
            links: HashMap::new(),
            interfaces: parts.interfaces,
            rules: [false; 2],
            stale: Stale {
                everything: true,
                routes: false,
                rules: false,
                settings: false,
            },
            earliest: now,
            audit: now + AUDIT,
            next_settings: now,
            next_beat: now,
            stopping: false,
        }
    }

    /// Keeps the tables until it is told to stop; then the program asks the kernel.
    pub(super) fn run(mut self) {
        while !self.stopping {
            if let Err(error) = self.turn() {
                tracing::warn!(%error, "next hops are asked of the kernel until its tables have been read again");
                self.table.withdraw();
                self.stale.everything = true;
                self.wait(RETRY, false);
                self.take_messages();
            }
        }
        self.table.withdraw();
    }

    /// Does what there is to do, then waits for more.
    fn turn(&mut self) -> Result<(), KeeperError> {
        self.take_messages();
        let caught_up = self.take_events()?;
        self.read_again()?;
        self.follow()?;
        if caught_up {
            let now = Instant::now();
            if now >= self.next_beat && !self.stale.routes {
                self.check_prefixes()?;
                self.beat(now)?;
            }
            self.wait(self.next_beat.saturating_duration_since(now), true);
        }
        Ok(())
    }

    fn beat(&mut self, now: Instant) -> Result<(), KeeperError> {
        self.heartbeat.beat(&self.table)?;
        self.next_beat = now + heartbeat::INTERVAL;
        let freed = self.table.reclaim()?;
        self.mirror.freed(&freed);
        Ok(())
    }

    /// Sleeps until something happens.
    fn wait(&self, longest: Duration, events: bool) {
        let mut descriptors = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        if events {
            descriptors.push(PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN));
        }
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        if let Err(error) = poll(&mut descriptors, timeout)
            && error != nix::errno::Errno::EINTR
        {
            tracing::error!(%error, "cannot wait for events of rtnetlink");
            std::thread::sleep(longest.min(RETRY));
        }
    }

    fn take_messages(&mut self) {
        let mut bytes = [0; 64];
        while matches!(std::io::Read::read(&mut self.wake, &mut bytes), Ok(count) if count > 0) {}
        loop {
            match self.messages.try_recv() {
                Ok(Message::Interfaces(interfaces)) => {
                    self.interfaces = interfaces;
                    self.stale.settings = true;
                }
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    /// Takes events in; whether there are no more.
    fn take_events(&mut self) -> Result<bool, KeeperError> {
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
            Event::Neighbor(way, mac) => self.mirror.set_neighbor(way, mac),
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
    fn read_again(&mut self) -> Result<(), KeeperError> {
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
        if self.stale.routes {
            if now >= self.earliest {
                self.read_routes()?;
            } else {
                self.table.withdraw();
                self.next_beat = self.next_beat.max(now + Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn read_everything(&mut self) -> Result<(), KeeperError> {
        self.table.withdraw();
        self.monitor.skip()?;
        let links = self
            .monitor
            .dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        self.links = links
            .into_iter()
            .filter_map(|message| match decode::event(message) {
                Event::Link(link) => Some((link.ifindex, link)),
                _ => None,
            })
            .collect();
        self.read_settings();
        let mut neighbors = HashMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            for message in self
                .monitor
                .dump(&RouteNetlinkMessage::GetNeighbour(request))?
            {
                if let Event::Neighbor(way, Some(mac)) = decode::event(message) {
                    neighbors.insert(way, mac);
                }
            }
        }
        self.mirror.replace_neighbors(neighbors);
        self.read_rules()?;
        self.read_settings();
        self.read_routes()?;
        self.stale = Stale {
            everything: false,
            routes: false,
            rules: false,
            settings: false,
        };
        self.audit = Instant::now() + AUDIT;
        Ok(())
    }

    fn read_rules(&mut self) -> Result<(), KeeperError> {
        for (family, number) in FAMILIES {
            let mut request = RuleMessage::default();
            request.header.family = number;
            let messages = self.monitor.dump(&RouteNetlinkMessage::GetRule(request))?;
            let rules: Vec<RuleMessage> = messages
                .into_iter()
                .filter_map(|message| match message {
                    RouteNetlinkMessage::NewRule(rule) => Some(rule),
                    _ => None,
                })
                .collect();
            self.rules[family.index()] = decode::rules_are_plain(&rules, family);
        }
        Ok(())
    }

    /// Reads all routes; what that changes was not told of.
    fn read_routes(&mut self) -> Result<(), KeeperError> {
        let begun = Instant::now();
        let mut changed = 0;
        for (family, number) in FAMILIES {
            let mut request = RouteMessage::default();
            request.header.address_family = number;
            let messages = self.monitor.dump(&RouteNetlinkMessage::GetRoute(request))?;
            let routes = messages
                .into_iter()
                .filter_map(|message| match decode::event(message) {
                    Event::Route(route, _) => Some(route),
                    _ => None,
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
        Ok(())
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

    /// Lets the tables follow what was read.
    fn follow(&mut self) -> Result<(), KeeperError> {
        let begun = Instant::now();
        let Update {
            routes,
            mut grains,
            unused,
            keep,
            let_go,
        } = self.mirror.update();
        if routes.is_empty() && grains.is_empty() && unused.is_empty() {
            self.keep_neighbors(&keep, &let_go);
            return Ok(());
        }
        let counts = (routes.len(), grains.len());
        if !grains.is_empty() {
            self.table.withdraw();
        }
        for (id, hops) in routes {
            self.table.set_route(id, &hops)?;
        }
        self.table.leave_out_unseen(&mut grains);
        if !grains.is_empty() {
            self.change_prefixes(grains);
        }
        for id in unused {
            self.table.give_up(id);
        }
        self.keep_neighbors(&keep, &let_go);
        if counts.1 != 0 {
            self.next_beat = Instant::now();
        }
        tracing::debug!(routes = counts.0, prefixes = counts.1, took = ?begun.elapsed(), "next hops follow");
        Ok(())
    }

    /// Finds prefixes that came since, and sets their routes.
    fn check_prefixes(&mut self) -> Result<(), KeeperError> {
        let (chunks, slots) = self.table.tracked();
        self.mirror.track(&chunks, &slots);
        let differences = self.table.differences(self.mirror.grains());
        if !differences.is_empty() {
            tracing::debug!(prefixes = differences.len(), "prefixes get their routes");
            self.table.withdraw();
            self.change_prefixes(differences);
        }
        Ok(())
    }

    fn change_prefixes(&mut self, grains: Vec<(super::grains::Grain, u16)>) {
        let changes = grains
            .into_iter()
            .map(|(grain, route)| PrefixRoute {
                prefix: grain.prefix(),
                route,
            })
            .collect();
        self.stopping |= !(self.set_routes)(changes);
    }

    fn keep_neighbors(&mut self, keep: &[Way], let_go: &[Way]) {
        let keep = keep
            .iter()
            .map(|(ifindex, address)| Change::KeepNeighbor {
                address: *address,
                ifindex: *ifindex,
            });
        let let_go = let_go
            .iter()
            .map(|(ifindex, address)| Change::LetGoNeighbor {
                address: *address,
                ifindex: *ifindex,
            });
        let changes: Vec<Change> = keep.chain(let_go).collect();
        if !changes.is_empty()
            && let Err(error) = self.socket.apply(&changes)
        {
            tracing::debug!(%error, "a gateway is not kept resolved");
        }
    }
}

const FAMILIES: [(Ip, AddressFamily); 2] = [
    (Ip::V4, AddressFamily::Inet),
    (Ip::V6, AddressFamily::Inet6),
];

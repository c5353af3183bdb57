//! What a route says about where packets go, as the kernel tells it and before it is known which
//! next hops are reachable.

use std::net::IpAddr;

use super::prefix::{Ip, Prefix};

/// One way of a route: to a gateway, out of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Path {
    pub(super) ifindex: u32,
    pub(super) gateway: IpAddr,
    /// Share of the flows, from 1 on.
    pub(super) weight: u16,
}

/// The ways of a route. Routes with equal ways share one element of `ROUTES`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::struct_field_names, reason = "the paths are what it is about")]
pub(super) struct Paths {
    /// The family of the destinations; a gateway may be of the other one.
    pub(super) family: Ip,
    /// At least one.
    pub(super) paths: Vec<Path>,
    /// The route's own limit of a packet's size.
    pub(super) mtu: Option<RouteMtu>,
}

/// The metric `mtu` of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RouteMtu {
    pub(super) bytes: u32,
    /// Whether it holds for forwarded packets as well.
    pub(super) locked: bool,
}

/// A route of the kernel's main or local table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) family: Ip,
    pub(super) prefix: Prefix,
    /// The kernel prefers the lowest.
    pub(super) priority: u32,
    /// Where packets go; `None` for everything that only the kernel understands: connected, local
    /// and refused destinations, tunnels, type of service, routes that expire.
    pub(super) paths: Option<Paths>,
    /// What else distinguishes routes of one prefix.
    pub(super) mark: Mark,
    /// Number of the nexthop object, 0 without.
    pub(super) nexthop: u32,
}

/// What distinguishes routes of one prefix and priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// In the table of local addresses, which the kernel looks into first.
    pub(super) local: bool,
    /// `RTN_*`.
    pub(super) kind: u8,
    /// Type of service.
    pub(super) tos: u8,
    /// Only for packets from some sources.
    pub(super) source: bool,
    /// The interface of a route that is not plain.
    pub(super) ifindex: u32,
}

impl Route {
    /// Whether the kernel may prefer the route to others of its prefix whatever its priority.
    pub(super) const fn overrides(&self) -> bool {
        self.mark.local || self.mark.tos != 0 || self.mark.source
    }

    /// Whether both have the same place among the routes of one prefix.
    pub(super) fn shares_place(&self, other: &Self) -> bool {
        (
            self.priority,
            self.mark.local,
            self.mark.tos,
            self.mark.source,
        ) == (
            other.priority,
            other.mark.local,
            other.mark.tos,
            other.mark.source,
        )
    }
}

/// A change of the kernel's routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RouteChange {
    pub(super) route: Route,
    pub(super) kind: ChangeKind,
}

/// What happened to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeKind {
    Added,
    /// It took the place of another one of the same prefix and priority.
    Replaced,
    Removed,
}

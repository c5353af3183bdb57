//! What is sent, and what must come out: the address plan of all benchmarks.

use std::net::{Ipv4Addr, Ipv6Addr};

use natmig_bench_ebpf::{BINDINGS, IPV6_PREFIX, SCATTERED, Side, TABLE};

/// Visiting VMs of the router on which both ends of the traffic are bound.
pub const VISITORS: u32 = 1000;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// How the addresses of a table lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Density {
    /// One after the other, as in segments and locator pools.
    Dense,
    /// As [`Density::Dense`], but the locators in another order than their identities.
    Shuffled,
    /// One in sixteen, all over a prefix.
    Sparse,
}

/// Addresses with something in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Of VMs that are elsewhere.
    Identities(Density),
    /// Of the same VMs.
    Locators(Density),
    /// Of VMs that visit the router's own segment.
    Visitors,
    /// Of the same VMs.
    VisitorLocators,
    /// Bound nowhere, forwarded like any other.
    Untouched,
    /// Bound nowhere, peers of VMs.
    Clients,
}

impl Area {
    /// How numbers become addresses of the area.
    pub const fn side(self) -> Side {
        let (ipv4, ipv6) = match self {
            Self::Identities(_) => (10, 1),
            Self::Locators(_) => (11, 2),
            Self::Untouched => (12, 4),
            Self::Visitors => (13, 5),
            Self::VisitorLocators => (14, 6),
            Self::Clients => (128, 3),
        };
        let sparse = matches!(
            self,
            Self::Identities(Density::Sparse) | Self::Locators(Density::Sparse)
        );
        let shuffled = matches!(self, Self::Locators(Density::Shuffled));
        Side {
            kind: if matches!(self, Self::Clients) {
                SCATTERED
            } else {
                TABLE
            },
            second: matches!(self, Self::Visitors | Self::VisitorLocators) as u32,
            // The IPv4 address's first octet and the IPv6 address's third word.
            base: ipv4 << 24 | ipv6,
            multiplier: if sparse || shuffled { 0x9e37_79b1 } else { 1 },
            mask: if shuffled {
                BINDINGS.next_power_of_two() - 1
            } else {
                0x00ff_ffff
            },
            shift: if sparse { 18 } else { 12 },
        }
    }

    /// The side as the programs take it for a family.
    pub const fn side_for(self, family: Family) -> Side {
        let mut side = self.side();
        match family {
            Family::Ipv4 => {
                side.base &= 0xff00_0000;
                side.shift = 0;
            }
            Family::Ipv6 => side.base &= 0xffff,
        }
        side
    }

    /// The IPv4 address of a number.
    pub fn ipv4(self, number: u32) -> Ipv4Addr {
        self.side_for(Family::Ipv4).ipv4(number).into()
    }

    /// The IPv6 address of a number.
    pub fn ipv6(self, number: u32) -> Ipv6Addr {
        let side = self.side_for(Family::Ipv6);
        let [segment, high, low] = side.ipv6(number);
        let [a, b] = IPV6_PREFIX;
        Ipv6Addr::from([a, b, side.base as u16, segment, 0, 0, high, low])
    }

    /// A prefix that holds the area's addresses and no others'.
    pub fn prefix(self, family: Family) -> String {
        match family {
            Family::Ipv4 if self == Self::Clients => "128.0.0.0/2".to_owned(),
            Family::Ipv4 => format!("{}/8", Ipv4Addr::from(self.side().base & 0xff00_0000)),
            Family::Ipv6 => {
                let [a, b] = IPV6_PREFIX;
                format!("{a:x}:{b:x}:{:x}::/48", self.side().base & 0xffff)
            }
        }
    }

    /// The prefixes of `count` addresses as locator pools.
    pub fn pools(self, family: Family, count: u32) -> Vec<String> {
        match family {
            Family::Ipv4 => vec![self.prefix(family)],
            Family::Ipv6 => {
                let side = self.side_for(family);
                let mut segments: Vec<u16> = (0..count).map(|n| side.ipv6(n)[0]).collect();
                segments.sort_unstable();
                segments.dedup();
                let [a, b] = IPV6_PREFIX;
                let pool = |segment| format!("{a:x}:{b:x}:{:x}:{segment:x}::/64", side.base);
                segments.into_iter().map(pool).collect()
            }
        }
    }
}

/// Which way packets take through the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// In from outside or a segment, out to the fabric.
    Inwards,
    /// The other way.
    Outwards,
}

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Its address family.
    pub family: Family,
    /// Its way.
    pub direction: Direction,
    /// Sources and destinations as they are sent.
    pub sent: (Area, Area),
    /// Sources and destinations as they must arrive.
    pub expected: (Area, Area),
    /// By how much the TTL must be less.
    pub hops: u8,
    /// Number of different first numbers.
    pub flows: u32,
    /// Numbers of the table are this many times those numbers.
    pub stride: u32,
}

impl Traffic {
    /// Traffic from clients to `to`, which must arrive at `arrives`.
    pub const fn to(family: Family, to: Area, arrives: Area, flows: u32) -> Self {
        Self {
            family,
            direction: Direction::Inwards,
            sent: (Area::Clients, to),
            expected: (Area::Clients, arrives),
            hops: 1,
            flows,
            stride: 1,
        }
    }

    /// To bound VMs that are elsewhere.
    pub const fn destination_hit(family: Family, density: Density, flows: u32) -> Self {
        Self::to(
            family,
            Area::Identities(density),
            Area::Locators(density),
            flows,
        )
    }

    /// From bound VMs that are elsewhere to clients.
    pub const fn source_hit(family: Family, density: Density, flows: u32) -> Self {
        Self {
            direction: Direction::Outwards,
            sent: (Area::Locators(density), Area::Clients),
            expected: (Area::Identities(density), Area::Clients),
            ..Self::destination_hit(family, density, flows)
        }
    }

    /// From visitors to bound VMs that are elsewhere.
    pub const fn both_hit(family: Family, flows: u32) -> Self {
        Self {
            sent: (Area::Visitors, Area::Identities(Density::Dense)),
            expected: (Area::VisitorLocators, Area::Locators(Density::Dense)),
            ..Self::destination_hit(family, Density::Dense, flows)
        }
    }

    /// To bound addresses, but nothing is translated.
    pub const fn plain(family: Family) -> Self {
        let identities = Area::Identities(Density::Dense);
        Self::to(family, identities, identities, BINDINGS)
    }

    /// Between addresses that nothing binds.
    pub const fn untouched(family: Family) -> Self {
        Self::to(family, Area::Untouched, Area::Untouched, BINDINGS)
    }

    /// The same, over a table that is larger than the number of flows.
    pub const fn spread(self, table: u32) -> Self {
        Self {
            stride: table / self.flows,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_number_has_an_address_of_its_own_inside_the_prefix() {
        for area in [
            Area::Identities(Density::Dense),
            Area::Locators(Density::Shuffled),
            Area::Identities(Density::Sparse),
            Area::Untouched,
        ] {
            let ipv4: HashSet<_> = (0..BINDINGS).map(|number| area.ipv4(number)).collect();
            let ipv6: HashSet<_> = (0..BINDINGS).map(|number| area.ipv6(number)).collect();
            assert_eq!(ipv4.len(), BINDINGS as usize, "{area:?}");
            assert_eq!(ipv6.len(), BINDINGS as usize, "{area:?}");
            let first = area.ipv4(0).octets()[0];
            assert!(ipv4.iter().all(|address| address.octets()[0] == first));
            let third = area.ipv6(0).segments()[2];
            assert!(ipv6.iter().all(|address| address.segments()[2] == third));
        }
    }

    #[test]
    fn clients_are_scattered_over_their_prefix() {
        let prefixes: HashSet<_> = (0..BINDINGS)
            .map(|number| {
                let [a, b, ..] = Area::Clients.ipv4(number).octets();
                assert!((128..192).contains(&a));
                (a, b)
            })
            .collect();
        assert_eq!(prefixes.len(), 64 * 256);
    }

    #[test]
    fn pools_hold_every_locator() {
        for density in [Density::Dense, Density::Shuffled, Density::Sparse] {
            let area = Area::Locators(density);
            let pools: HashSet<_> = area.pools(Family::Ipv6, BINDINGS).into_iter().collect();
            for number in (0..BINDINGS).step_by(777) {
                let [a, b, c, d, ..] = area.ipv6(number).segments();
                assert!(pools.contains(&format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")));
            }
        }
    }

    #[test]
    fn ports_carry_both_numbers() {
        for numbers in [(0, 0), (999_999, 999), (65_536, 1), (0xf_ffff, 0x3ff)] {
            let ports = (
                natmig_bench_ebpf::source_port(numbers.0, numbers.1),
                natmig_bench_ebpf::destination_port(numbers.0),
            );
            assert_eq!(natmig_bench_ebpf::numbers(ports.0, ports.1), numbers);
        }
    }
}

//! The mirror against an oracle that knows nothing of tables: a list of routes, searched from end to
//! end for every address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use natmig_common::{Interface, NextHop, Role};
use proptest::prelude::*;

use super::*;
use crate::router::next_hops::{
    paths::{ChangeKind, Mark, Path, Paths},
    prefix::{at_front, bits},
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::of(address.parse().unwrap(), length.parse().unwrap())
}

fn family(prefix: &str) -> Ip {
    if prefix.contains(':') { Ip::V6 } else { Ip::V4 }
}

/// A route by gateways `INTERFACE ADDRESS WEIGHT`; opaque without any.
fn route(to: &str, priority: u32, ways: &[(u32, &str, u16)]) -> Route {
    let paths = (!ways.is_empty()).then(|| Paths {
        family: family(to),
        paths: ways
            .iter()
            .map(|(ifindex, gateway, weight)| Path {
                ifindex: *ifindex,
                gateway: address(gateway),
                weight: *weight,
            })
            .collect(),
        mtu: None,
    });
    Route {
        family: family(to),
        prefix: prefix(to),
        priority,
        paths,
        mark: Mark {
            kind: 1,
            ..Mark::default()
        },
        nexthop: 0,
    }
}

fn link(number: u8) -> LinkState {
    LinkState {
        up: true,
        carrier: true,
        mac: [2, 0, 0, 0, 0, number],
        mtu: 1500,
        mtu_ipv6: 1400,
    }
}

/// A router with two fabric interfaces, 1 and 2, whose gateways answer.
fn router() -> Mirror {
    let mut mirror = Mirror::new();
    mirror.set_rules([true; 2], false);
    let fabric = Interface {
        role: Role::Fabric as u8,
        ..Interface::default()
    };
    mirror.set_interfaces(BTreeMap::from([(1, fabric), (2, fabric)]));
    for ifindex in [1, 2, 3] {
        mirror.set_link(ifindex.into(), Some(link(ifindex)));
        for host in 1..=8 {
            for gateway in [
                format!("192.168.{ifindex}.{host}"),
                format!("fe80::{ifindex}:{host}"),
            ] {
                let way = (ifindex.into(), address(&gateway));
                mirror.set_neighbor(way, Some([6, 0, 0, 0, ifindex, host]));
            }
        }
    }
    mirror
}

fn added(mirror: &mut Mirror, route: Route) {
    mirror.change_route(RouteChange {
        route,
        kind: ChangeKind::Added,
    });
}

fn removed(mirror: &mut Mirror, route: Route) {
    mirror.change_route(RouteChange {
        route,
        kind: ChangeKind::Removed,
    });
}

/// What the tables hold after all updates.
#[derive(Default)]
struct Tables {
    routes: BTreeMap<RouteId, Vec<NextHop>>,
    grains: BTreeMap<Grain, RouteId>,
    kept: BTreeSet<Way>,
}

impl Tables {
    fn take(&mut self, mirror: &mut Mirror) -> Update {
        let update = mirror.update();
        for (id, hops) in &update.routes {
            self.routes.insert(*id, hops.clone());
        }
        for (grain, id) in &update.grains {
            self.grains.insert(*grain, *id);
        }
        for id in &update.unused {
            assert!(
                !self.grains.values().any(|used| used == id),
                "route {id} is given up and used"
            );
            self.routes.remove(id);
        }
        self.kept.extend(&update.keep);
        for way in &update.let_go {
            assert!(self.kept.remove(way));
        }
        mirror.freed(&update.unused);
        update
    }

    /// The elements of the route of a prefix.
    fn hops(&self, grain: Grain) -> Vec<NextHop> {
        let id = self.grains.get(&grain).copied().unwrap_or(0);
        self.routes.get(&id).cloned().unwrap_or_default()
    }

    fn devices(&self, grain: Grain) -> Vec<u32> {
        self.hops(grain).iter().map(|hop| hop.ifindex).collect()
    }
}

#[test]
fn default_route_is_one_route_for_all_prefixes() {
    let (mut mirror, mut tables) = (router(), Tables::default());
    added(&mut mirror, route("0.0.0.0/0", 0, &[(1, "192.168.1.1", 1)]));
    let update = tables.take(&mut mirror);
    assert_eq!((update.grains.len(), update.routes.len()), (65536, 1));
    let hop = tables.hops(Grain::Wide(0x0a01))[0];
    assert_eq!((hop.ifindex, hop.device, hop.mtu), (1, 1, 1500));
    assert_eq!((hop.valid, hop.role), (1, Role::Fabric as u8));
    assert_eq!(hop.destination_mac, [6, 0, 0, 0, 1, 1]);
    assert_eq!(hop.source_mac, [2, 0, 0, 0, 0, 1]);
    // The gateway's MAC address changes one route, not one prefix.
    mirror.set_neighbor((1, address("192.168.1.1")), Some([6, 6, 6, 6, 6, 6]));
    let update = tables.take(&mut mirror);
    assert_eq!((update.grains.len(), update.routes.len()), (0, 1));
    assert_eq!(tables.hops(Grain::Wide(0))[0].destination_mac, [6; 6]);
}

#[test]
fn more_specific_routes_ask_the_kernel_unless_there_is_a_chunk() {
    let (mut mirror, mut tables) = (router(), Tables::default());
    mirror.track(&BTreeSet::from([0x0a02]), &BTreeSet::new());
    added(&mut mirror, route("0.0.0.0/0", 0, &[(1, "192.168.1.1", 1)]));
    for to in ["10.1.3.0/24", "10.2.3.0/24"] {
        added(&mut mirror, route(to, 0, &[(2, "192.168.2.1", 1)]));
    }
    added(&mut mirror, route("10.2.4.8/32", 0, &[]));
    tables.take(&mut mirror);
    assert_eq!(tables.devices(Grain::Wide(0x0a00)), [1]);
    assert_eq!(tables.devices(Grain::Wide(0x0a01)), [0; 0]);
    assert_eq!(tables.devices(Grain::Narrow(0x0a0202)), [1]);
    assert_eq!(tables.devices(Grain::Narrow(0x0a0203)), [2]);
    assert_eq!(tables.devices(Grain::Narrow(0x0a0204)), [0; 0]);
    assert_eq!(tables.devices(Grain::Narrow(0x0a0205)), [1]);
}

#[test]
fn only_plain_routes_are_taken_over() {
    let (mut mirror, mut tables) = (router(), Tables::default());
    mirror.track(&BTreeSet::new(), &BTreeSet::from([0x2001_0db8_0000_0001]));
    let plain = route("2001:db8::/32", 1024, &[(1, "fe80::1:1", 1)]);
    let slot = Grain::Slot(0x2001_0db8_0000_0001);
    added(&mut mirror, plain.clone());
    tables.take(&mut mirror);
    assert_eq!(tables.hops(slot)[0].mtu, 1400);
    // Worse than the plain one.
    added(&mut mirror, route("2001:db8::/32", 2000, &[]));
    tables.take(&mut mirror);
    assert_eq!(tables.devices(slot), [1]);
    // Equally good: only the kernel knows.
    let equal = route("2001:db8::/32", 1024, &[]);
    added(&mut mirror, equal.clone());
    tables.take(&mut mirror);
    assert_eq!(tables.devices(slot), [0; 0]);
    removed(&mut mirror, equal);
    tables.take(&mut mirror);
    assert_eq!(tables.devices(slot), [1]);
    // Everything inside a local prefix is local, whatever else there is.
    let mut local = route("2000::/3", 0, &[]);
    local.mark.local = true;
    added(&mut mirror, local.clone());
    tables.take(&mut mirror);
    assert_eq!(tables.devices(slot), [0; 0]);
    removed(&mut mirror, local);
    // Policy rules decide.
    mirror.set_rules([true, false], false);
    tables.take(&mut mirror);
    assert_eq!(tables.devices(slot), [0; 0]);
    mirror.set_rules([true, true], false);
    tables.take(&mut mirror);
    assert_eq!(tables.devices(slot), [1]);
    assert!(!mirror.take_doubt());
}

#[test]
fn dead_next_hops_are_left_out() {
    let (mut mirror, mut tables) = (router(), Tables::default());
    let two = [(1, "192.168.1.1", 1), (2, "192.168.2.1", 3)];
    added(&mut mirror, route("10.0.0.0/8", 0, &two));
    tables.take(&mut mirror);
    let ten = Grain::Wide(0x0a00);
    assert_eq!(tables.devices(ten), [1, 2, 2, 2]);
    assert_eq!(tables.kept.len(), 2);
    mirror.set_neighbor((2, address("192.168.2.1")), None);
    tables.take(&mut mirror);
    assert_eq!(tables.devices(ten), [1]);
    mirror.set_neighbor((2, address("192.168.2.1")), Some([9; 6]));
    let down = LinkState {
        carrier: false,
        ..link(1)
    };
    assert!(!mirror.set_link(1, Some(down)), "routes stay");
    tables.take(&mut mirror);
    assert_eq!(tables.devices(ten), [2]);
    assert!(mirror.set_link(2, None), "routes may go with the link");
    tables.take(&mut mirror);
    assert_eq!(tables.devices(ten), [0; 0]);
    // A way out of an interface that is not natmig's: only the kernel knows which it takes.
    mirror.set_link(1, Some(link(1)));
    mirror.set_link(2, Some(link(2)));
    added(
        &mut mirror,
        route(
            "11.0.0.0/8",
            0,
            &[(1, "192.168.1.1", 1), (3, "192.168.3.1", 1)],
        ),
    );
    tables.take(&mut mirror);
    assert_eq!(tables.devices(ten), [1, 2, 2, 2]);
    assert_eq!(tables.devices(Grain::Wide(0x0b00)), [0; 0]);
}

#[test]
fn ipv6_ways_come_and_go_one_by_one() {
    let (mut mirror, mut tables) = (router(), Tables::default());
    let slot = 0x2001_0db8_0000_0001;
    mirror.track(&BTreeSet::new(), &BTreeSet::from([slot]));
    let (one, other) = ((1, "fe80::1:1", 1), (2, "fe80::2:1", 1));
    added(&mut mirror, route("2001:db8::/32", 1024, &[one]));
    added(&mut mirror, route("2001:db8::/32", 1024, &[one, other]));
    tables.take(&mut mirror);
    assert_eq!(tables.devices(Grain::Slot(slot)), [1, 2]);
    removed(&mut mirror, route("2001:db8::/32", 1024, &[one]));
    tables.take(&mut mirror);
    assert_eq!(tables.devices(Grain::Slot(slot)), [2]);
    removed(&mut mirror, route("2001:db8::/32", 1024, &[other]));
    tables.take(&mut mirror);
    assert_eq!(tables.devices(Grain::Slot(slot)), [0; 0]);
    assert_eq!(mirror.sizes(), (0, 0));
    assert!(!mirror.take_doubt());
    assert!(tables.kept.is_empty());
}

#[test]
fn neighbours_are_kept_while_something_goes_there() {
    let (mut mirror, mut tables) = (router(), Tables::default());
    let to = route("0.0.0.0/0", 0, &[(1, "192.168.1.1", 1)]);
    let way = (1, address("192.168.1.1"));
    added(&mut mirror, to.clone());
    assert_eq!(tables.take(&mut mirror).keep, [way]);
    // Flushed: it is to be kept again.
    mirror.forget_neighbor(way);
    let update = tables.take(&mut mirror);
    assert_eq!(update.keep, [way]);
    assert_eq!(tables.devices(Grain::Wide(7)), [0; 0]);
    removed(&mut mirror, to);
    assert_eq!(tables.take(&mut mirror).let_go, [way]);
}

/// Routes that are not understood after all are asked of the kernel; numbers are used again.
#[test]
fn numbers_run_out_and_come_back() {
    let (mut mirror, mut tables) = (router(), Tables::default());
    let mut many = Vec::new();
    for number in 0..20_000_u32 {
        let gateway = IpAddr::V4((0xc0a8_0000 + number).into()).to_string();
        let to = format!("{}/24", IpAddr::V4((number << 8).into()));
        many.push(route(&to, 0, &[(1, &gateway, 1)]));
    }
    for route in &many {
        added(&mut mirror, route.clone());
    }
    added(
        &mut mirror,
        route("99.0.0.0/16", 0, &[(2, "192.168.2.1", 1)]),
    );
    tables.take(&mut mirror);
    let (prefixes, sets) = mirror.sizes();
    assert_eq!((prefixes, sets), (20_001, 16_383));
    assert_eq!(tables.devices(Grain::Wide(0x6300)), [0; 0]);
    for route in many {
        removed(&mut mirror, route);
    }
    tables.take(&mut mirror);
    tables.take(&mut mirror);
    assert_eq!(mirror.sizes(), (1, 1));
    assert_eq!(tables.devices(Grain::Wide(0x6300)), [2]);
}

/// The kernel as the oracle imagines it.
#[derive(Clone, Debug, Default)]
struct Oracle {
    routes: Vec<Route>,
}

impl Oracle {
    /// What the address takes, `None` if that is not plain.
    fn look_up(&self, address: u128) -> Option<Paths> {
        let covers =
            |route: &&Route| route.prefix.bits <= address && address <= route.prefix.last();
        let covering: Vec<&Route> = self.routes.iter().filter(covers).collect();
        if covering.iter().any(|route| route.mark.local) {
            return None;
        }
        let longest = covering.iter().map(|route| route.prefix.length).max()?;
        let longest: Vec<&&Route> = covering
            .iter()
            .filter(|route| route.prefix.length == longest)
            .collect();
        if longest.iter().any(|route| route.mark.tos != 0) {
            return None;
        }
        let best = longest.iter().map(|route| route.priority).min()?;
        let best: Vec<_> = longest
            .iter()
            .filter(|route| route.priority == best)
            .collect();
        match best.as_slice() {
            [one] => one.paths.clone(),
            _ => None,
        }
    }

    /// What all addresses of a prefix take.
    fn all(&self, prefix: Prefix) -> Option<Paths> {
        let inside = |route: &Route| {
            route.prefix.length > prefix.length
                && prefix.bits <= route.prefix.bits
                && route.prefix.bits <= prefix.last()
        };
        if self.routes.iter().any(inside) {
            return None;
        }
        self.look_up(prefix.bits)
    }
}

#[derive(Clone, Debug)]
enum Event {
    Add(Route),
    Replace(Route),
    Remove(usize),
    Reread,
    Neighbor(u8, u8, bool),
    Link(u8, bool, bool),
}

fn any_route() -> impl Strategy<Value = Route> {
    let lengths = prop::sample::select(vec![0_u8, 7, 8, 12, 15, 16, 17, 20, 23, 24, 25, 31, 32]);
    let lengths_ipv6 = prop::sample::select(vec![0_u8, 3, 16, 32, 48, 63, 64, 65, 96, 128]);
    let destination = prop_oneof![
        (0_u8..4, 0_u8..4, 0_u8..4, lengths).prop_map(|(second, third, fourth, length)| {
            let address = IpAddr::from([10, second, third << 6, fourth]);
            (Ip::V4, Prefix::of(address, length))
        }),
        (0_u16..3, 0_u16..3, 0_u16..3, lengths_ipv6).prop_map(|(third, fourth, last, length)| {
            let address = IpAddr::from([0x2001, 0xdb8, third, fourth, 0, 0, 0, last]);
            (Ip::V6, Prefix::of(address, length))
        }),
    ];
    let ways = prop::collection::btree_map((1_u32..=3, 1_u8..4), 1_u16..4, 0..3);
    let odd = prop_oneof![8 => Just((false, 0_u8)), 1 => Just((true, 0)), 1 => Just((false, 4))];
    (destination, 0_u32..3, ways, odd).prop_map(|((family, prefix), priority, ways, odd)| {
        let paths: Vec<Path> = ways
            .into_iter()
            .map(|((ifindex, host), weight)| Path {
                ifindex,
                gateway: match family {
                    Ip::V4 => address(&format!("192.168.{ifindex}.{host}")),
                    Ip::V6 => address(&format!("fe80::{ifindex}:{host}")),
                },
                weight,
            })
            .collect();
        let plain = !paths.is_empty() && !odd.0 && odd.1 == 0;
        Route {
            family,
            prefix,
            priority,
            paths: plain.then_some(Paths {
                family,
                paths,
                mtu: None,
            }),
            mark: Mark {
                local: odd.0,
                kind: if plain { 1 } else { 2 },
                tos: odd.1,
                ..Mark::default()
            },
            nexthop: 0,
        }
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => any_route().prop_map(Event::Add),
        3 => any_route().prop_map(Event::Replace),
        5 => any::<usize>().prop_map(Event::Remove),
        1 => Just(Event::Reread),
        2 => (1_u8..=3, 1_u8..4, any::<bool>()).prop_map(|(link, host, is)| Event::Neighbor(link, host, is)),
        2 => (1_u8..=3, any::<bool>(), any::<bool>()).prop_map(|(link, up, carrier)| Event::Link(link, up, carrier)),
    ]
}

fn play(mirror: &mut Mirror, oracle: &mut Oracle, event: Event) {
    match event {
        Event::Add(route) => {
            if oracle.routes.iter().any(|other| {
                other.shares_place(&route)
                    && other.prefix == route.prefix
                    && other.family == route.family
            }) {
                // The kernel refuses a second one, unless told to append it.
                return;
            }
            oracle.routes.push(route.clone());
            added(mirror, route);
        }
        Event::Replace(route) => {
            oracle.routes.retain(|other| {
                (other.family, other.prefix) != (route.family, route.prefix)
                    || !other.shares_place(&route)
            });
            oracle.routes.push(route.clone());
            mirror.change_route(RouteChange {
                route,
                kind: ChangeKind::Replaced,
            });
        }
        Event::Remove(number) => {
            if !oracle.routes.is_empty() {
                let route = oracle.routes.remove(number % oracle.routes.len());
                removed(mirror, route);
            }
        }
        Event::Reread => {
            for family in Ip::BOTH {
                let routes = oracle.routes.iter().filter(|route| route.family == family);
                assert_eq!(
                    mirror.replace_routes(family, routes.cloned().collect()),
                    0,
                    "nothing was missed"
                );
            }
        }
        Event::Neighbor(ifindex, host, is) => {
            for gateway in [
                format!("192.168.{ifindex}.{host}"),
                format!("fe80::{ifindex}:{host}"),
            ] {
                let mac = is.then_some([6, 0, 0, 0, ifindex, host]);
                mirror.set_neighbor((ifindex.into(), address(&gateway)), mac);
            }
        }
        Event::Link(ifindex, up, carrier) => {
            mirror.set_link(
                ifindex.into(),
                Some(LinkState {
                    up,
                    carrier,
                    ..link(ifindex)
                }),
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tables_say_what_the_oracle_says(
        events in prop::collection::vec(any_event(), 1..60),
        pauses in prop::collection::vec(any::<bool>(), 60),
    ) {
        let (mut mirror, mut tables, mut oracle) = (router(), Tables::default(), Oracle::default());
        let chunks = BTreeSet::from([0x0a01, 0x0a02]);
        let slot = |third: u64, fourth: u64| 0x2001_0db8 << 32 | third << 16 | fourth;
        let slots: BTreeSet<u64> = (0..3).map(|fourth| slot(fourth % 2, fourth)).collect();
        mirror.track(&chunks, &BTreeSet::new());
        for (event, pause) in events.into_iter().zip(pauses) {
            play(&mut mirror, &mut oracle, event);
            if pause {
                tables.take(&mut mirror);
            }
        }
        // A slot that comes late gets its route as well.
        mirror.track(&chunks, &slots);
        for slot in &slots {
            let grain = Grain::Slot(*slot);
            tables.grains.insert(grain, mirror.grains().route(grain));
        }
        tables.take(&mut mirror);
        prop_assert!(!mirror.take_doubt());
        let expected = |family: Ip, prefix: Prefix| {
            let oracle = Oracle {
                routes: oracle.routes.iter().filter(|route| route.family == family).cloned().collect(),
            };
            oracle.all(prefix).map(|paths| mirror.surroundings.resolve(&paths)).unwrap_or_default()
        };
        let mut grains: Vec<(Grain, Ip, Prefix)> = Vec::new();
        for wide in [0, 0x09ff, 0x0a00, 0x0a01, 0x0a02, 0x0a03, 0x0a04, 0xffff_u16] {
            grains.push((Grain::Wide(wide), Ip::V4, Prefix::new(at_front(wide.into(), 16), 16)));
        }
        for narrow in 0x0a_0100..=0x0a_02ff_u32 {
            grains.push((Grain::Narrow(narrow), Ip::V4, Prefix::new(at_front(narrow.into(), 24), 24)));
        }
        for slot in &slots {
            grains.push((Grain::Slot(*slot), Ip::V6, Prefix::new(at_front(*slot, 64), 64)));
        }
        for (grain, family, prefix) in grains {
            let id = tables.grains.get(&grain).copied().unwrap_or(0);
            prop_assert_eq!(id, mirror.grains().route(grain));
            prop_assert_eq!(tables.hops(grain), expected(family, prefix), "{:?}", grain);
        }
    }
}

/// How long large tables take. Run with `--ignored --nocapture`; it asserts no times.
#[test]
#[ignore = "measures"]
fn scale() {
    let time = |what: &str, run: &mut dyn FnMut()| {
        let begun = std::time::Instant::now();
        run();
        eprintln!("{what}: {:?}", begun.elapsed());
    };
    let mut mirror = router();
    let mut tables = Tables::default();
    mirror.track(&(0..1000).collect(), &BTreeSet::new());
    let routes: Vec<Route> = (0..200_000_u32)
        .map(|number| {
            let to = format!("{}/24", IpAddr::V4((number << 8).into()));
            let gateway = format!("192.168.{}.{}", 1 + number % 2, 1 + number % 8);
            route(&to, 0, &[(1 + number % 2, &gateway, 1)])
        })
        .chain([route("0.0.0.0/0", 0, &[(1, "192.168.1.1", 1)])])
        .collect();
    time("read 200,001 routes", &mut || {
        mirror.replace_routes(Ip::V4, routes.clone());
    });
    time("update after that, 1000 chunks", &mut || {
        mirror.update();
    });
    time("read them again", &mut || {
        mirror.replace_routes(Ip::V4, routes.clone());
    });
    time("update after that", &mut || {
        mirror.update();
    });
    time("10,000 routes change", &mut || {
        for route in &routes[..10_000] {
            let mut route = route.clone();
            route.paths = Some(Paths {
                family: Ip::V4,
                paths: vec![Path {
                    ifindex: 2,
                    gateway: address("192.168.2.3"),
                    weight: 1,
                }],
                mtu: None,
            });
            mirror.change_route(RouteChange {
                route,
                kind: ChangeKind::Replaced,
            });
        }
        mirror.update();
    });
    time("the default route changes", &mut || {
        mirror.change_route(RouteChange {
            route: route("0.0.0.0/0", 0, &[(2, "192.168.2.1", 1)]),
            kind: ChangeKind::Replaced,
        });
        mirror.update();
    });
    time("a gateway's MAC address changes", &mut || {
        mirror.set_neighbor((2, address("192.168.2.1")), Some([8; 6]));
        mirror.update();
    });
    assert_eq!(bits(address("10.0.0.0")) >> 96, 10 << 24);
    tables.take(&mut mirror);
}

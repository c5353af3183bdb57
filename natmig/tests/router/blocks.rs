//! Where entries lie: direct blocks, what was removed, traffic counters and locator pools.

use super::{killed::killed_at, *};

/// Few enough addresses of a prefix to be in the index.
pub(super) const SPARSE: u8 = 100;

/// Enough of them for a direct block.
pub(super) const GROWN: u8 = 150;

/// Bindings whose identities and locators are in one prefix each, of both families.
pub(super) fn dense(count: u8) -> BTreeMap<IpAddr, Rule> {
    let mut table = BTreeMap::new();
    for last in 0..count {
        let ipv4 = [
            Ipv4Addr::new(10, 2, 0, last),
            Ipv4Addr::new(100, 64, 0, last),
        ];
        let ipv6 = ["2001:db8:2::", "2001:db8:3::"].map(|prefix| {
            let prefix: Ipv6Addr = prefix.parse().unwrap();
            Ipv6Addr::from(u128::from(prefix) + u128::from(last))
        });
        for [identity, locator] in [ipv4.map(IpAddr::from), ipv6.map(IpAddr::from)] {
            let rule = Rule::Away {
                locator,
                home: None,
            };
            table.insert(identity, rule);
            table.insert(locator, Rule::Known { identity });
        }
    }
    table
}

fn assert_same(instance: &str, table: &BTreeMap<IpAddr, Rule>, case: &str) {
    let found = effective(instance);
    assert_eq!(found.len(), table.len(), "{case}");
    for (address, rule) in table {
        let (action, counterpart) = match rule {
            Rule::Away { locator, .. } => ("away", *locator),
            Rule::Known { identity } => ("known", *identity),
            other @ (Rule::Absent
            | Rule::Local { .. }
            | Rule::Deliver { .. }
            | Rule::Forward { .. }) => panic!("{other:?}"),
        };
        assert_eq!(
            found[address],
            (action, Some(counterpart)),
            "{case}: {address}"
        );
    }
}

/// What is said of 256 entries at once is said of each of them too, and of none that must be looked at. Of how
/// many entries it is said.
pub(super) fn assert_aligned(place: &Place) -> u32 {
    fn array<T: aya::Pod>(place: &Place, name: &str) -> aya::maps::Array<aya::maps::MapData, T> {
        let path = place.pins().join("maps").join(name);
        let map = aya::maps::MapData::from_pin(path).unwrap();
        aya::maps::Map::from_map_data(map)
            .unwrap()
            .try_into()
            .unwrap()
    }
    fn check<F: Family, const N: usize, const M: usize>(place: &Place, version: u8) -> u32 {
        let aligned = array::<[u64; 8]>(place, &format!("ALIGNED_IPV{version}"));
        let settled = array::<[u64; N]>(place, &format!("SETTLED_IPV{version}"));
        let entries = array::<[u64; M]>(place, &format!("ENTRIES_IPV{version}"));
        let mut said = 0;
        for entry in 0..entries.len() {
            let (element, at) = Aligned::place(entry);
            let element: Aligned = bytemuck::cast(aligned.get(&element, 0).unwrap());
            if element.bits[at as usize / 64] >> (at % 64) & 1 == 0 {
                continue;
            }
            said += 1;
            let octets = size_of::<F::Octets>();
            let base: F::Octets = bytemuck::pod_read_unaligned(&element.base[..octets]);
            let settled = settled.get(&entry, 0).unwrap();
            let settled = bytemuck::bytes_of(&settled)[..octets].to_vec();
            assert_eq!(settled, bytemuck::bytes_of(&F::plus(base, at)), "{entry}");
            let words = entries.get(&entry, 0).unwrap();
            let found: Entry<F> = bytemuck::pod_read_unaligned(bytemuck::bytes_of(&words));
            assert_eq!((found.family, found.reference), (F::NUMBER, 0), "{entry}");
            let counterpart = bytemuck::bytes_of(&found.current.counterpart).to_vec();
            assert_eq!(settled, counterpart, "{entry}");
        }
        said
    }
    check::<natmig_common::Ipv4, 1, 8>(place, 4) + check::<natmig_common::Ipv6, 2, 16>(place, 6)
}

/// Entries of direct blocks, as they lie in the table.
fn are_in_a_row(instance: &str) -> bool {
    let reader = Reader::open(instance).unwrap();
    reader.entries().all(|entry| {
        let last = match entry.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        entry.index % 256 == u32::from(last)
    })
}

#[test]
fn a_dense_prefix_gets_a_block_whoever_is_killed_at_it() {
    in_place(|place| {
        drop(place.start());
        // A chunk that was made stays until chunks are short.
        for point in ["chunk:filled", "chunk:placed"] {
            killed_at(place, "grow", point);
            let router = Router::open(&place.instance).unwrap();
            assert_eq!(router.table(), BTreeMap::new(), "killed at {point}");
        }
        let mut router = Router::open(&place.instance).unwrap();
        router.replace(&dense(SPARSE)).unwrap();
        router.replace(&dense(GROWN)).unwrap();
        assert!(are_in_a_row(&place.instance));
        router.replace(&BTreeMap::new()).unwrap();
        drop(router);
        let points = [
            "prefix:filled",
            "prefix:placed#2",
            "block:copied#1",
            "block:filled#1",
            "block:placed#1",
            "block:placed#3",
            "block:placed#4",
            "block:unindexed#1",
            "block:counted#1",
            "release:counters#1",
            "block:unindexed#2",
            "prepare:entries#2",
            "prepare:written",
        ];
        for point in points {
            let case = format!("killed at {point}");
            let before = if point.starts_with("prefix") {
                BTreeMap::new()
            } else {
                dense(SPARSE)
            };
            let mut router = Router::open(&place.instance).unwrap();
            router.replace(&before).unwrap();
            drop(router);
            if point.starts_with("prepare:entries") {
                // In blocks that are there already.
                let mut router = Router::open(&place.instance).unwrap();
                router.replace(&dense(GROWN)).unwrap();
                router.replace(&before).unwrap();
                drop(router);
            }
            killed_at(place, "grow", point);
            let mut router = Router::open(&place.instance).unwrap();
            assert_same(&place.instance, &before, &case);
            assert_eq!(router.table(), before, "{case}");
            router.replace(&dense(GROWN)).unwrap();
            assert_same(&place.instance, &dense(GROWN), &case);
            router.replace(&BTreeMap::new()).unwrap();
            assert_same(&place.instance, &BTreeMap::new(), &case);
        }
        for point in [
            "remove:absent",
            "remove:unindexed",
            "block:taken#1",
            "block:taken#2",
            "release:counters#1",
            "release:counters#2",
        ] {
            let case = format!("emptied, killed at {point}");
            let mut router = Router::open(&place.instance).unwrap();
            router.replace(&dense(GROWN)).unwrap();
            drop(router);
            killed_at(place, "empty", point);
            let mut router = Router::open(&place.instance).unwrap();
            assert!(router.table().is_empty(), "{case}");
            assert_same(&place.instance, &BTreeMap::new(), &case);
            router.replace(&dense(GROWN)).unwrap();
            assert_same(&place.instance, &dense(GROWN), &case);
            assert!(are_in_a_row(&place.instance), "{case}");
            router.replace(&dense(SPARSE)).unwrap();
            assert_same(&place.instance, &dense(SPARSE), &case);
        }
    });
}

#[test]
fn blocks_make_way_when_their_room_is_needed() {
    in_place(|place| {
        let mut config = place.config();
        config.max_addresses = 1000;
        config.max_addresses_ipv6 = 1000;
        let Started { mut router, .. } = Router::start(&config, &StartOptions::default()).unwrap();
        // Two blocks of each family, with holes.
        router.replace(&dense(GROWN)).unwrap();
        assert!(are_in_a_row(&place.instance));
        let mut table = dense(GROWN);
        for number in 0..700_u32 {
            let identity = IpAddr::from(Ipv4Addr::from(0x0b00_0000 + number * 256));
            let locator = IpAddr::from(Ipv4Addr::from(0x6441_0000 + number));
            table.insert(identity, Rule::Known { identity: locator });
        }
        router.replace(&table).unwrap();
        assert_same(&place.instance, &table, "a full table");
        drop(router);
        let router = Router::open(&place.instance).unwrap();
        assert_eq!(router.table(), table);
    });
}

#[test]
fn what_was_removed_rests_and_can_be_bound_again_at_once() {
    in_place(|place| {
        let mut config = place.config();
        // Two blocks of each family and no room beside them.
        config.max_addresses = 512;
        config.max_addresses_ipv6 = 512;
        let Started { mut router, .. } = Router::start(&config, &StartOptions::default()).unwrap();
        router.replace(&dense(GROWN)).unwrap();
        for round in 0..5 {
            let case = format!("round {round}");
            // In blocks that stay.
            router.replace(&dense(SPARSE)).unwrap();
            let reader = Reader::open(&place.instance).unwrap();
            assert_eq!(reader.entries().count(), 4 * usize::from(SPARSE), "{case}");
            assert!(reader.snapshot().unwrap().faults.is_empty(), "{case}");
            router.replace(&dense(GROWN)).unwrap();
            assert_same(&place.instance, &dense(GROWN), &case);
            // With their blocks.
            router.replace(&BTreeMap::new()).unwrap();
            assert_eq!(reader.entries().count(), 0, "{case}");
            assert!(reader.snapshot().unwrap().faults.is_empty(), "{case}");
            router.replace(&dense(GROWN)).unwrap();
            assert_same(&place.instance, &dense(GROWN), &case);
            assert!(are_in_a_row(&place.instance), "{case}");
        }
        drop(router);
        let router = Router::open(&place.instance).unwrap();
        assert_eq!(router.table(), dense(GROWN));
        assert_same(&place.instance, &dense(GROWN), "after the writer's end");
    });
}

#[test]
fn traffic_follows_an_entry_into_its_block_and_ends_with_it() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&dense(SPARSE)).unwrap();
        let traffic = |address: IpAddr| {
            let reader = Reader::open(&place.instance).unwrap();
            let entry = reader.entry(address).unwrap().unwrap();
            (entry.index, entry.traffic.unwrap())
        };
        let addresses: [IpAddr; 2] =
            ["10.2.0.7", "2001:db8:2::7"].map(|text| text.parse().unwrap());
        for (address, family) in addresses.into_iter().zip([4_u32, 6]) {
            let (index, before) = traffic(address);
            assert_eq!(before.packets_to, 0);
            let open = |name: &str| {
                let path = place.pins().join("maps").join(name);
                aya::maps::Map::from_map_data(aya::maps::MapData::from_pin(path).unwrap()).unwrap()
            };
            let map = open(&format!("BINDING_COUNTERS_IPV{family}"));
            let mut counters: aya::maps::Array<_, u64> = map.try_into().unwrap();
            let capacity = counters.len() / 2;
            for (to, bytes) in [(true, 100), (false, 60)] {
                let place = binding_counter(0, capacity, index, to);
                let traffic = PackedTraffic::packet(bytes).0;
                counters.set(place, traffic, 0).unwrap();
            }
            let map = open("BINDING_TOTALS");
            let mut totals: aya::maps::HashMap<_, [u32; 2], [u64; 4]> = map.try_into().unwrap();
            totals
                .insert([index, family], [10, 1000, 20, 2000], 0)
                .unwrap();
        }
        router.replace(&dense(GROWN)).unwrap();
        for address in addresses {
            let (_, after) = traffic(address);
            assert_eq!((after.packets_to, after.bytes_to), (11, 1100));
            assert_eq!((after.packets_from, after.bytes_from), (21, 2060));
        }
        router.replace(&BTreeMap::new()).unwrap();
        router.replace(&dense(GROWN)).unwrap();
        for address in addresses {
            assert_eq!(traffic(address).1.packets_to, 0);
        }
    });
}

#[test]
fn locator_pools_are_kept_as_they_are_set() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let nets = |texts: &[&str]| -> Vec<ipnet::IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let cases: [&[&str]; 5] = [
            &[
                "10.1.1.128/25",
                "10.3.0.0/16",
                "100.64.0.0/10",
                "2001:db8:1::/80",
            ],
            &[
                "10.1.1.192/26",
                "10.3.7.0/24",
                "100.64.0.0/10",
                "2001:db8:1::/96",
            ],
            &[
                "10.1.1.0/24",
                "10.3.7.16/28",
                "2001:db8:1:0:8000::/65",
                "2001:db8:9::/64",
            ],
            &["10.3.0.0/16"],
            &[],
        ];
        for case in cases {
            router.set_pools(&nets(case)).unwrap();
            assert_eq!(router.pools(), nets(case));
            let summary = Reader::open(&place.instance).unwrap().summary().unwrap();
            assert_eq!(summary.pools, nets(case));
        }
        for case in [
            &["2001:db8::/48"][..],
            &["2001:db8::/80", "2001:db8::1:0:0:0/80"],
        ] {
            let error = router.set_pools(&nets(case)).unwrap_err();
            assert!(
                matches!(error, RouterError::UnsuitablePool { .. }),
                "{error}"
            );
        }
    });
}

/// What is said of a settled entry without looking at it depends on whether its address is in a pool.
#[test]
fn what_is_settled_follows_the_pools_and_keeps_its_traffic() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&dense(GROWN)).unwrap();
        let map = |name: &str| {
            let path = place.pins().join("maps").join(name);
            aya::maps::Map::from_map_data(aya::maps::MapData::from_pin(path).unwrap()).unwrap()
        };
        let entry = |address: &str| {
            let reader = Reader::open(&place.instance).unwrap();
            reader.entry(address.parse().unwrap()).unwrap().unwrap()
        };
        let settled_ipv4: aya::maps::Array<_, [u32; 2]> = map("SETTLED_IPV4").try_into().unwrap();
        let settled_ipv6: aya::maps::Array<_, [u64; 2]> = map("SETTLED_IPV6").try_into().unwrap();
        let ipv4 = |address: &str| {
            let [counterpart, _] = settled_ipv4.get(&entry(address).index, 0).unwrap();
            Ipv4Addr::from(counterpart.to_ne_bytes())
        };
        let ipv6 = |address: &str| {
            let [first, second] = settled_ipv6.get(&entry(address).index, 0).unwrap();
            let halves = [first, second].map(u64::to_ne_bytes);
            Ipv6Addr::from(<[u8; 16]>::try_from(halves.concat()).unwrap())
        };
        let none = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
        let (identity, locator) = ("10.2.0.7", "100.64.0.7");
        let (identity_ipv6, locator_ipv6) = ("2001:db8:2::7", "2001:db8:3::7");

        assert_eq!(ipv4(identity), locator.parse::<Ipv4Addr>().unwrap());
        assert_eq!(ipv4(locator), identity.parse::<Ipv4Addr>().unwrap());
        assert_eq!(
            ipv6(identity_ipv6),
            locator_ipv6.parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(
            ipv6(locator_ipv6),
            none.1,
            "in no pool, so it must be looked at"
        );

        // As the program notes it: to an identity, from a locator.
        let mut unbanked: aya::maps::Array<_, [u64; 40]> = map("UNBANKED").try_into().unwrap();
        let element = Unbanked::element::<natmig_common::Ipv4>(0);
        let mut notes = unbanked.get(&element, 0).unwrap();
        assert_eq!(notes[0] & Unbanked::NUMBER, 0, "no packet came here");
        notes[0] += 2;
        notes[1] = Note::new(entry(identity).index, true, 100).0;
        notes[2] = Note::new(entry(locator).index, false, 60).0;
        unbanked.set(element, notes, 0).unwrap();
        let check_traffic = || {
            let to = entry(identity).traffic.unwrap();
            assert_eq!((to.packets_to, to.bytes_to, to.packets_from), (1, 100, 0));
            let from = entry(locator).traffic.unwrap();
            assert_eq!(
                (from.packets_from, from.bytes_from, from.packets_to),
                (1, 60, 0)
            );
        };
        check_traffic();

        // Identities of both families, and locators of IPv4.
        assert_eq!(assert_aligned(place), 3 * u32::from(GROWN));
        let pools = ["10.1.1.128/25", "2001:db8:3::/64"].map(|pool| pool.parse().unwrap());
        router.set_pools(&pools).unwrap();
        assert_eq!(assert_aligned(place), 3 * u32::from(GROWN));
        assert_eq!(ipv4(locator), none.0, "in no pool any longer");
        assert_eq!(
            ipv6(locator_ipv6),
            identity_ipv6.parse::<Ipv6Addr>().unwrap()
        );
        check_traffic();
    });
}

/// Counterparts that lie in the order of their entries are known of 256 at once; others, and those of which
/// something is pending, are not.
#[test]
fn counterparts_in_order_are_known_of_a_whole_block() {
    const fn away(locator: IpAddr) -> Rule {
        Rule::Away {
            locator,
            home: None,
        }
    }
    /// VMs with identities in a row, whose locators are in one from here on.
    fn rack(first: u8) -> BTreeMap<IpAddr, Rule> {
        let mut table = BTreeMap::new();
        for last in 0..GROWN {
            let identity = Ipv4Addr::new(10, 2, 0, last).into();
            let locator = Ipv4Addr::new(100, 64, 0, first + last).into();
            table.insert(identity, away(locator));
            table.insert(locator, Rule::Known { identity });
        }
        table
    }
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let element = || -> Aligned {
            let path = place.pins().join("maps/ALIGNED_IPV4");
            let map = aya::maps::MapData::from_pin(path).unwrap();
            let map = aya::maps::Map::from_map_data(map).unwrap();
            let aligned: aya::maps::Array<_, [u64; 8]> = map.try_into().unwrap();
            let reader = Reader::open(&place.instance).unwrap();
            let identity = Ipv4Addr::new(10, 2, 0, 0).into();
            let index = reader.entry(identity).unwrap().unwrap().index;
            assert!(index.is_multiple_of(256));
            bytemuck::cast(aligned.get(&(index / 256), 0).unwrap())
        };
        let check = |base: [u8; 4], without: Option<u8>| {
            let element = element();
            assert_eq!(element.base[..4], base);
            for last in 0..=u8::MAX {
                let is_set = element.bits[usize::from(last / 64)] >> (last % 64) & 1 != 0;
                let expected = last < GROWN && Some(last) != without;
                assert_eq!(is_set, expected, "{last}");
            }
        };
        router.replace(&rack(0)).unwrap();
        check([100, 64, 0, 0], None);

        // One of them moves on to a place of its own.
        let identity: IpAddr = Ipv4Addr::new(10, 2, 0, 7).into();
        let elsewhere = Ipv4Addr::new(100, 64, 9, 9).into();
        let changes = Changes {
            early: Vec::new(),
            pending: vec![change(identity, away(elsewhere))],
        };
        router.prepare(MOVE, &changes).unwrap();
        check([100, 64, 0, 0], Some(7));
        router.abort(MOVE).unwrap();
        check([100, 64, 0, 0], None);
        router.prepare(MOVE, &changes).unwrap();
        router.commit(MOVE).unwrap();
        router.fold(MOVE).unwrap();
        check([100, 64, 0, 0], Some(7));

        // All of them move on, and the first to another place than most.
        let mut moved = rack(3);
        moved.insert(Ipv4Addr::new(10, 2, 0, 0).into(), away(elsewhere));
        router.replace(&moved).unwrap();
        check([100, 64, 0, 3], Some(0));
        router.replace(&rack(3)).unwrap();
        check([100, 64, 0, 3], None);
        drop(router);
        let Started { router, .. } = place.start();
        check([100, 64, 0, 3], None);
        drop(router);
    });
}

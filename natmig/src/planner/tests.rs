//! Every order of commits that a plan allows, with packets walked between any two of them. And
//! bugs planted in the order and in the rules, which the walk must find.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proptest::prelude::*;

use super::{Binding, Move, Plan, PlanError, Stages, VmState, destinations, rules};
use crate::{
    addresses::Addresses,
    coordinator::{Command, Timestamp},
    digest::Parts,
    model::{Place, Routers, Start, Walk, fabric, starts, topology, vm},
    names::{RouterName, SegmentName},
    rule::{Change, Rule, TransactionId},
    topology::Topology,
};

const ID: TransactionId = TransactionId(1);

/// Makes these the whole table.
fn replace(version: u64, rules: Vec<Change>) -> Command {
    Command::Replace {
        version,
        parts: Parts::All,
        rules,
    }
}

/// Routers that hold a transaction, from tables of the state before it.
fn prepared(topology: &Topology, moves: &[Move], plan: impl Fn(&RouterName) -> Prepare) -> Routers {
    let mut routers = fabric(topology);
    for (name, router) in &mut routers {
        let before = super::table(topology, moves.iter().map(|step| &step.before), name);
        let rules = before
            .into_iter()
            .map(|(address, rule)| Change { address, rule })
            .collect();
        router.execute(Timestamp(0), replace(1, rules));
        let changes = plan(name);
        let prepare = Command::Prepare {
            id: ID,
            changes,
            await_announcements: false,
        };
        router.execute(Timestamp(0), prepare);
    }
    routers
}

type Prepare = crate::rule::Changes;

/// What packets to a VM reach now that should not be reached: once the anchors have committed,
/// everything but the new place.
fn wrong(topology: &Topology, routers: &Routers, step: &Move) -> BTreeSet<Place> {
    let mut anchors = topology.edges(&step.after.vm.home);
    anchors.extend(topology.edges(step.before.segment()));
    let anchored = anchors.iter().all(|name| {
        let after: BTreeMap<_, _> = rules(topology, &step.after, name).into_iter().collect();
        let mut identities = step.after.vm.identities.iter();
        identities.all(|identity| {
            routers[name].rule(identity) == after.get(&identity).unwrap_or(&Rule::Absent)
        })
    });
    let new = Place::Segment(step.after.segment().clone());
    let old = Place::Segment(step.before.segment().clone());
    let walk = Walk {
        topology,
        routers,
        vm: &step.after.vm,
    };
    let mut walks = starts(topology, routers, &step.after.vm);
    for binding in step.after.current.iter().chain(&step.after.draining) {
        for edge in topology.edges(&binding.segment) {
            for locator in binding.locators.iter() {
                walks.push((edge.clone(), Start::Fabric, locator));
            }
        }
    }
    walks
        .into_iter()
        .flat_map(|(router, start, address)| walk.places(&router, start, address))
        .filter(|place| *place != new && (anchored || *place != old))
        .collect()
}

/// Commits in this order, and says what went wrong on the way, if anything did.
fn commit(
    topology: &Topology,
    routers: &mut Routers,
    moves: &[Move],
    order: &[RouterName],
) -> BTreeSet<Place> {
    let mut found = BTreeSet::new();
    for router in order {
        for step in moves {
            found.extend(wrong(topology, routers, step));
        }
        let commit = Command::Commit { id: ID };
        routers
            .get_mut(router)
            .unwrap()
            .execute(Timestamp(0), commit);
    }
    for step in moves {
        found.extend(wrong(topology, routers, step));
    }
    found
}

/// Addresses of a rack, one of each family.
fn locators(rack: u8, byte: u8) -> [IpAddr; 2] {
    let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, rack.into(), 0, 0, 0, 0, byte.into());
    [Ipv4Addr::new(10, 1, rack, byte).into(), ipv6.into()]
}

/// A history of one VM, by racks, as it looks after the last but one move, and the last move.
fn history(topology: &Topology, number: u8, home: u8, racks: &[u8]) -> Option<Move> {
    let mut state = VmState::at_home(vm(number, home));
    let mut used = BTreeSet::new();
    let mut last = None;
    for rack in racks {
        let segment = SegmentName::new(format!("rack{rack}"));
        if *state.segment() == segment {
            continue;
        }
        // Locators of different VMs differ.
        used.extend(
            (248..=255_u8)
                .filter(|byte| (byte - 248) % 3 != number - 1)
                .flat_map(|byte| locators(*rack, byte)),
        );
        let step = destinations(topology, &[(state, segment)], &used)
            .ok()?
            .pop()?;
        used.extend(step.new_locators().iter());
        state = step.after.clone();
        last = Some(step);
    }
    last
}

/// Racks 1 to 3, each with edges of its own; the first has a pair.
fn racks() -> Topology {
    topology(&[&["edge1a", "edge1b"], &["edge2"], &["edge3"]])
}

fn names(order: &[&str]) -> Vec<RouterName> {
    order.iter().map(|name| RouterName::new(*name)).collect()
}

#[test]
fn the_walk_finds_a_return_that_commits_the_previous_edge_first() {
    let topology = racks();
    let moves = [history(&topology, 1, 1, &[2, 1]).unwrap()];
    let plan = Plan::new(&topology, &moves);
    let right = names(&["edge1a", "edge1b", "edge2", "core1", "core2", "edge3"]);
    let mut routers = prepared(&topology, &moves, |name| plan.changes(name));
    assert_eq!(commit(&topology, &mut routers, &moves, &right), [].into());
    for wrong in [
        ["edge2", "edge1a", "edge1b", "core1", "core2", "edge3"],
        ["edge1a", "edge2", "edge1b", "core1", "core2", "edge3"],
    ] {
        let mut routers = prepared(&topology, &moves, |name| plan.changes(name));
        let found = commit(&topology, &mut routers, &moves, &names(&wrong));
        assert!(found.iter().any(|place| matches!(place, Place::Loop(..))));
    }
}

#[test]
fn the_walk_finds_routers_other_than_home_edges_that_anchor() {
    let topology = racks();
    let moves = [history(&topology, 1, 1, &[2, 1]).unwrap()];
    let plan = Plan::new(&topology, &moves);
    let home = rules(&topology, &moves[0].before, &"edge1a".into());
    let mut routers = prepared(&topology, &moves, |name| plan.changes(name));
    // The third edge anchors too: a packet that passes it on its way home is sent back.
    let rules = home
        .into_iter()
        .map(|(address, rule)| Change { address, rule })
        .collect();
    let edge3 = routers.get_mut(&"edge3".into()).unwrap();
    edge3.execute(Timestamp(0), Command::Abort { id: ID });
    edge3.execute(Timestamp(0), replace(2, rules));
    let order = names(&["edge1a", "edge1b", "edge2"]);
    assert!(!commit(&topology, &mut routers, &moves, &order).is_empty());
}

#[test]
fn the_walk_finds_a_locator_that_is_not_known_early() {
    let topology = racks();
    let moves = [history(&topology, 1, 1, &[2, 3]).unwrap()];
    let plan = Plan::new(&topology, &moves);
    let mut routers = prepared(&topology, &moves, |name| {
        let mut changes = plan.changes(name);
        let early = std::mem::take(&mut changes.early);
        changes.pending.extend(early);
        changes
    });
    // The previous edge forwards to a locator that the next one does not deliver yet.
    let order = names(&["edge2", "edge3", "edge1a", "edge1b", "core1", "core2"]);
    let found = commit(&topology, &mut routers, &moves, &order);
    assert!(found.iter().any(|place| matches!(place, Place::Lost(..))));
}

#[test]
fn the_walk_finds_a_locator_that_is_retired_too_early() {
    let topology = racks();
    let moves = [history(&topology, 1, 1, &[2, 3]).unwrap()];
    let plan = Plan::new(&topology, &moves);
    let mut routers = prepared(&topology, &moves, |name| plan.changes(name));
    let order = names(&["edge2", "edge3", "edge1a", "edge1b"]);
    assert_eq!(commit(&topology, &mut routers, &moves, &order), [].into());
    // The core still sends packets there.
    let edge2 = routers.get_mut(&"edge2".into()).unwrap();
    edge2.execute(Timestamp(0), Command::Fold { id: ID });
    let old: Vec<_> = moves[0].old_locators().iter().collect();
    edge2.execute(
        Timestamp(0),
        Command::Retire {
            id: ID,
            addresses: old.clone(),
        },
    );
    let found = wrong(&topology, &routers, &moves[0]);
    for locator in old {
        assert!(found.contains(&Place::Lost("edge2".into(), locator)));
    }
}

#[test]
fn the_walk_finds_a_chain_that_is_not_repointed() {
    let topology = racks();
    // It moved on and goes home while its first locator drains.
    let step = history(&topology, 1, 1, &[2, 3, 1]).unwrap();
    let mut forgetful = step.clone();
    forgetful.after.draining.remove(0);
    let moves = [step];
    let plan = Plan::new(&topology, &moves);
    let forgotten = [forgetful];
    let bad = Plan::new(&topology, &forgotten);
    let order = names(&["edge1a", "edge1b", "edge3", "edge2", "core1", "core2"]);
    let mut routers = prepared(&topology, &moves, |name| plan.changes(name));
    assert_eq!(commit(&topology, &mut routers, &moves, &order), [].into());
    let mut routers = prepared(&topology, &moves, |name| bad.changes(name));
    assert!(!commit(&topology, &mut routers, &moves, &order).is_empty());
}

#[test]
fn previous_and_new_edges_commit_before_the_home_edges() {
    let topology = racks();
    let moves = [history(&topology, 1, 1, &[2, 3]).unwrap()];
    let stages = Stages::new(&topology, &moves).unwrap();
    let sets: Vec<BTreeSet<_>> = [
        &["edge2", "edge3"][..],
        &["edge1a", "edge1b"],
        &["core1", "core2"],
    ]
    .map(|names| names.iter().map(|name| RouterName::new(*name)).collect())
    .into();
    assert_eq!(stages.stages, sets);
    assert!(stages.strict.is_empty());
}

#[test]
fn a_group_that_swaps_places_has_an_order_all_the_same() {
    // Each one's previous edge is the other one's home edge: no order suits both, and none is needed.
    let topology = racks();
    let moves = [
        history(&topology, 1, 1, &[2, 3]).unwrap(),
        history(&topology, 2, 2, &[1, 3]).unwrap(),
    ];
    let stages = Stages::new(&topology, &moves).unwrap();
    let all: usize = stages.stages.iter().map(BTreeSet::len).sum();
    assert_eq!(all, topology.routers.len());
}

#[test]
fn moves_and_returns_in_one_group_put_returns_first() {
    let topology = racks();
    // The move asks for edge2 before edge3, the return for edge3 before edge2.
    let moves = [
        history(&topology, 1, 3, &[2, 1]).unwrap(),
        history(&topology, 2, 3, &[2, 3]).unwrap(),
    ];
    let stages = Stages::new(&topology, &moves).unwrap();
    assert!(stages.stage_of(&"edge3".into()) < stages.stage_of(&"edge2".into()));
}

#[test]
fn a_router_that_serves_both_segments_of_a_move_delivers_both_locators() {
    let topology = topology(&[&["edge1"], &["edge2"], &["edge2"]]);
    let step = history(&topology, 1, 1, &[2, 3]).unwrap();
    let rules: BTreeMap<_, _> = rules(&topology, &step.after, &"edge2".into())
        .into_iter()
        .collect();
    for locator in step.after.locators() {
        assert!(matches!(rules[&locator], Rule::Deliver { .. }));
    }
}

#[test]
fn locators_are_the_lowest_that_are_free() {
    let topology = racks();
    let used = [
        locators(2, 248)[0],
        locators(2, 250)[0],
        locators(2, 249)[1],
    ]
    .into();
    // Of both families, IPv6 alone, IPv4 alone.
    let wanted = [1, 3, 4].map(|number| (VmState::at_home(vm(number, 1)), "rack2".into()));
    let taken: Vec<_> = destinations(&topology, &wanted, &used)
        .unwrap()
        .iter()
        .map(|step| step.new_locators().to_string())
        .collect();
    assert_eq!(
        taken,
        ["10.1.2.249 2001:db8:2::f8", "2001:db8:2::fa", "10.1.2.251"]
    );
}

/// As of a rack that is evacuated: routers remember 256 of them in a few words.
#[test]
fn locators_end_as_identities_do_where_that_can_be() {
    let mut topology = racks();
    let rack2 = topology.segments.get_mut(&"rack2".into()).unwrap();
    rack2.subnets[0].prefix = "10.2.0.0/16".parse().unwrap();
    rack2.subnets[0].gateway = "10.2.128.9".parse().unwrap();
    rack2.subnets[0].pool = "10.2.128.0/22".parse().unwrap();
    let used = ["10.2.128.7", "10.2.129.7"].map(|locator| locator.parse().unwrap());
    let wanted: Vec<_> = [7, 8, 9, 7, 7]
        .into_iter()
        .enumerate()
        .map(|(place, octet)| {
            let mut vm = vm(4, 1);
            vm.name = format!("vm{place}").as_str().into();
            let identity = Ipv4Addr::new(10, 1, u8::try_from(place).unwrap(), octet);
            vm.identities = Addresses::collect([identity.into()]).unwrap();
            (VmState::at_home(vm), "rack2".into())
        })
        .collect();
    let taken: Vec<_> = destinations(&topology, &wanted, &used.into())
        .unwrap()
        .iter()
        .map(|step| step.new_locators().to_string())
        .collect();
    // The gateway is not given away, and when none is left that ends so, the lowest is.
    assert_eq!(
        taken,
        [
            "10.2.130.7",
            "10.2.128.8",
            "10.2.129.9",
            "10.2.131.7",
            "10.2.128.0"
        ]
    );
}

#[test]
fn a_segment_without_a_family_of_the_vm_is_refused() {
    let mut topology = racks();
    let rack2 = topology.segments.get_mut(&"rack2".into()).unwrap();
    rack2.subnets.pop();
    let go = |number| {
        let wanted = [(VmState::at_home(vm(number, 1)), "rack2".into())];
        destinations(&topology, &wanted, &BTreeSet::new()).map(|_| ())
    };
    assert_eq!(go(4), Ok(()));
    for number in [1, 3] {
        let error = go(number).unwrap_err();
        assert!(matches!(error, PlanError::NoSuchFamily { .. }));
        assert!(error.to_string().contains("rack2 has no IPv6 prefix"));
    }
}

#[test]
fn an_exhausted_pool_is_named_with_its_family() {
    let topology = racks();
    let used = (0..=255).map(|byte| locators(2, byte)[1]).collect();
    let wanted = [(VmState::at_home(vm(1, 1)), "rack2".into())];
    let error = destinations(&topology, &wanted, &used).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the IPv6 locator pool of segment rack2")
    );
}

#[test]
fn a_vm_that_returns_takes_no_locator_from_one_that_visits_its_home() {
    let topology = racks();
    let mut away = VmState::at_home(vm(1, 1));
    away.current = Some(Binding {
        segment: "rack2".into(),
        locators: Addresses::collect(locators(2, 248)).unwrap(),
    });
    let visitor = VmState::at_home(vm(2, 3));
    let wanted = [(away, "rack1".into()), (visitor, "rack1".into())];
    let moves = destinations(&topology, &wanted, &BTreeSet::new()).unwrap();
    assert!(moves[0].is_return());
    assert_eq!(
        moves[1].new_locators(),
        Addresses::collect(locators(1, 248)).unwrap()
    );
}

/// Any order that the stages allow: within a stage, as `shuffle` says.
fn any_order(stages: &Stages, shuffle: &[u8]) -> Vec<RouterName> {
    let mut shuffle = shuffle.iter().cycle();
    stages
        .stages
        .iter()
        .flat_map(|stage| {
            let mut routers: Vec<_> = stage
                .iter()
                .map(|router| (shuffle.next().copied().unwrap_or(0), router.clone()))
                .collect();
            routers.sort();
            routers.into_iter().map(|(_, router)| router)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_mixture_of_old_and_new_routers_delivers(
        racks in prop::collection::vec((0_usize..5, 0_usize..5), 3..5),
        histories in prop::collection::vec((1_u8..4, prop::collection::vec(1_u8..4, 1..5)), 1..4),
        shuffle in prop::collection::vec(any::<u8>(), 1..12),
        lagging in prop::collection::btree_set(0_usize..7, 0..3),
    ) {
        let names = ["edge1", "edge2", "edge3", "edge4", "edge5"];
        let edges: Vec<Vec<&str>> = racks
            .iter()
            .map(|(one, other)| vec![names[*one], names[*other]])
            .collect();
        let edges: Vec<&[&str]> = edges.iter().map(Vec::as_slice).collect();
        let topology = topology(&edges);
        let moves: Vec<_> = (1_u8..)
            .zip(&histories)
            .filter_map(|(number, (home, racks))| history(&topology, number, *home, racks))
            .collect();
        prop_assume!(!moves.is_empty());
        let stages = match Stages::new(&topology, &moves) {
            Ok(stages) => stages,
            Err(error) => {
                let cycle = matches!(error, PlanError::Cycle { .. });
                prop_assert!(cycle);
                return Ok(());
            }
        };
        let plan = Plan::new(&topology, &moves);
        let mut routers = prepared(&topology, &moves, |name| plan.changes(name));
        let order = any_order(&stages, &shuffle);
        // Some are silent and passed over; they commit at last, strict orders kept.
        let mut late = Vec::new();
        let mut now = Vec::new();
        for (index, router) in order.into_iter().enumerate() {
            let blocked = stages
                .strict
                .get(&router)
                .is_some_and(|before| before.iter().any(|other| late.contains(other)));
            if blocked || lagging.contains(&index) {
                late.push(router);
            } else {
                now.push(router);
            }
        }
        now.extend(late);
        prop_assert_eq!(commit(&topology, &mut routers, &moves, &now), BTreeSet::new());
        for (name, router) in &mut routers {
            router.execute(Timestamp(0), Command::Fold { id: ID });
            let table = super::table(&topology, moves.iter().map(|step| &step.after), name);
            prop_assert_eq!(router.table(), table);
            let states: Vec<_> = moves
                .iter()
                .map(|step| {
                    let old = step.old_locators();
                    if old.is_empty() {
                        step.after.clone()
                    } else {
                        step.after.retired(old)
                    }
                })
                .collect();
            let addresses = plan.retired(name, &states);
            router.execute(Timestamp(0), Command::Retire { id: ID, addresses });
            let table = super::table(&topology, &states, name);
            prop_assert_eq!(router.table(), table.clone());
            let left: Vec<_> = table.into_keys().collect();
            prop_assert_eq!(router.addresses(), left);
        }
    }
}

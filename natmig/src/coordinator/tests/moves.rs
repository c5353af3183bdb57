//! Migrations that take their course, or are aborted.

use super::*;

#[test]
fn first_move_is_done_without_draining() {
    let mut world = world();
    let id = world.migrate(&[("vm1", "rack2")]).unwrap();
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Done);
    assert_eq!(world.place("vm1"), "rack2");
    assert_eq!(
        commits(&world),
        ["edge2a", "edge2b", "edge1", "core1", "core2", "edge3"]
    );
    let view = world.coordinator.migration(id).unwrap();
    assert!(view.commit_spread_ns.unwrap() > 0);
    assert!(view.prepare_ns.unwrap() > 0 && view.commit_ns.unwrap() > 0);
    world.run();
    world.check_final();
}

#[test]
fn move_on_forwards_from_the_previous_edge_until_retired() {
    let mut world = world();
    world.migrate(&[("vm1", "rack2")]).unwrap();
    world.deliver_all();
    let id = world.migrate(&[("vm1", "rack3")]).unwrap();
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Draining);
    let old = world
        .store
        .vms
        .iter()
        .find_map(|it| it.draining.first())
        .unwrap();
    assert_eq!(old.locators.iter().count(), 2);
    for locator in old.locators.iter() {
        let rule = world.routers[&name("edge2a")].rule(locator);
        assert!(matches!(rule, Rule::Forward { .. }));
    }
    world.pass(Duration::from_secs(6));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Done);
    world.run();
    world.check_final();
}

#[test]
fn return_home_commits_home_edges_first_and_leaves_nothing() {
    let mut world = world();
    world.migrate(&[("vm1", "rack2")]).unwrap();
    world.deliver_all();
    world.sent.clear();
    world.migrate(&[("vm1", "rack1")]).unwrap();
    world.deliver_all();
    assert_eq!(
        commits(&world),
        ["edge1", "edge2a", "edge2b", "core1", "core2", "edge3"]
    );
    assert_eq!(world.place("vm1"), "rack1");
    world.run();
    world.check_final();
    for router in world.routers.values() {
        assert!(router.addresses().is_empty());
    }
}

#[test]
fn a_vm_moves_on_while_its_old_locators_drain() {
    let mut world = world();
    for rack in ["rack2", "rack3", "rack2", "rack1", "rack3"] {
        world.migrate(&[("vm1", rack)]).unwrap();
        world.deliver_all();
        assert_eq!(world.place("vm1"), rack);
    }
    let view = world.coordinator.vm(&VmName::new("vm1")).unwrap();
    // Three bindings of two families.
    assert_eq!(view.draining.len(), 6);
    world.run();
    world.check_final();
}

#[test]
fn a_group_spreads_over_several_segments() {
    let mut world = world();
    let id = world
        .migrate(&[
            ("vm1", "rack2"),
            ("vm2", "rack3"),
            ("vm3", "rack1"),
            ("vm4", "rack2"),
        ])
        .unwrap();
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Done);
    world
        .migrate(&[
            ("vm1", "rack3"),
            ("vm2", "rack2"),
            ("vm3", "rack3"),
            ("vm4", "rack1"),
        ])
        .unwrap();
    world.deliver_all();
    world.run();
    world.check_final();
}

#[test]
fn two_groups_move_at_once() {
    let mut world = world();
    let one = world
        .migrate(&[("vm1", "rack2"), ("vm3", "rack3")])
        .unwrap();
    let other = world
        .migrate(&[("vm2", "rack2"), ("vm4", "rack1")])
        .unwrap();
    world.deliver_all();
    assert_eq!(world.phase(one), Phase::Done);
    assert_eq!(world.phase(other), Phase::Done);
    world.run();
    world.check_final();
}

#[test]
fn manual_activation_waits_for_the_trigger() {
    let mut world = world();
    let id = world
        .migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    world.deliver_all();
    world.pass(Duration::from_hours(1));
    assert_eq!(world.phase(id), Phase::Prepared);
    assert!(commits(&world).is_empty());
    world.request(Request::Activate(id)).unwrap();
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Done);
    world.request(Request::Activate(id)).unwrap();
}

#[test]
fn a_trigger_that_comes_early_is_not_lost() {
    let mut world = world();
    let id = world
        .migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    world.request(Request::Activate(id)).unwrap();
    world.crash();
    world.run();
    assert_eq!(world.phase(id), Phase::Done);
}

#[test]
fn abort_before_the_decision_leaves_no_trace() {
    // After each number of steps that the preparation takes.
    for steps in 0..14 {
        let mut world = world();
        let id = world
            .migrate_with(
                &[("vm1", "rack2"), ("vm4", "rack1")],
                Activation::Manual,
                Unreachable::Abort,
            )
            .unwrap();
        step(&mut world, steps);
        world.request(Request::Abort(id)).unwrap();
        world.deliver_all();
        assert_eq!(world.phase(id), Phase::Aborted);
        assert_eq!(world.place("vm1"), "rack1");
        assert!(world.migrate(&[("vm1", "rack3")]).is_ok());
        world.run();
        world.check_final();
    }
}

/// The VM may be there already, and send with the locator.
#[test]
fn an_abort_leaves_the_locator_known_until_the_new_edge_has_given_it_up() {
    let mut world = world();
    let id = world
        .migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    world.deliver_all();
    let edge = name("edge2a");
    let others: Vec<_> = world
        .router_names()
        .into_iter()
        .filter(|router| *router != edge && *router != name("edge2b"))
        .collect();
    let holding = |world: &World| -> Vec<_> {
        let holds = |router: &&RouterName| world.routers[*router].holds(id);
        others.iter().filter(holds).cloned().collect()
    };
    world.disconnect(&edge);
    world.request(Request::Abort(id)).unwrap();
    world.deliver_all();
    world.pass(Duration::from_hours(1));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Aborting);
    assert_eq!(holding(&world), others, "all of them know the locator");
    // One that connects anew keeps it too, also with another controller.
    world.disconnect(&name("edge1"));
    world.connect(&name("edge1"));
    world.deliver_all();
    world.crash();
    for router in &others {
        world.connect(router);
    }
    world.deliver_all();
    assert_eq!(holding(&world), others);
    let refusal = world.migrate(&[("vm1", "rack3")]).unwrap_err();
    assert!(matches!(refusal, Refusal::Busy { .. }), "{refusal}");

    world.connect_all();
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Aborted);
    assert_eq!(holding(&world), []);
    world.run();
    world.check_final();
}

#[test]
fn abort_after_the_decision_is_refused() {
    let mut world = world();
    let id = world.migrate(&[("vm1", "rack2")]).unwrap();
    while world.phase(id) < Phase::Committing {
        for router in world.router_names() {
            world.deliver_command(&router);
            world.deliver_reply(&router);
        }
    }
    let refusal = world.request(Request::Abort(id)).unwrap_err();
    assert!(matches!(refusal, Refusal::WrongPhase { .. }));
    world.run();
    assert_eq!(world.phase(id), Phase::Done);
}

#[test]
fn old_migrations_are_forgotten() {
    let mut world = world();
    for _ in 0..3 {
        world.migrate(&[("vm1", "rack2")]).unwrap();
        world.run();
        world.migrate(&[("vm1", "rack1")]).unwrap();
        world.run();
    }
    assert_eq!(world.coordinator.migrations().len(), 4);
    assert_eq!(world.store.migrations.len(), 4);
    world.crash();
    let id = world.migrate(&[("vm1", "rack2")]).unwrap();
    assert_eq!(id, TransactionId(7));
}

#[test]
fn views_survive_json() {
    let mut world = world();
    world.migrate(&[("vm1", "rack2")]).unwrap();
    world.deliver_all();
    let views = world.coordinator.migrations();
    let json = serde_json::to_string(&views).unwrap();
    assert!(json.contains(r#""phase":"done""#));
    let back: Vec<crate::coordinator::MigrationView> = serde_json::from_str(&json).unwrap();
    assert_eq!(back, views);
    let routers = serde_json::to_string(&world.coordinator.routers()).unwrap();
    assert!(routers.contains(r#""in_sync":true"#));
    let vms = serde_json::to_string(&world.coordinator.vms()).unwrap();
    assert!(vms.contains(r#""locators":["10.1.2.248","2001:db8:2::f8"]"#));
}

#[test]
fn a_thousand_vms_move_as_one() {
    let mut topology = topology(&[&["edge1"], &["edge2a", "edge2b"], &["edge3"]]);
    for (number, segment) in (1_u8..).zip(topology.segments.values_mut()) {
        segment.subnets[0].prefix = format!("10.{number}.0.0/16").parse().unwrap();
        segment.subnets[0].gateway = [10, number, 0, 1].into();
        segment.subnets[0].pool = format!("10.{number}.128.0/17").parse().unwrap();
        segment.subnets[1].pool = format!("2001:db8:{number}:0:f::/80").parse().unwrap();
    }
    let vms: Vec<Vm> = (0..1000_u16)
        .map(|index| {
            let [high, low] = (index + 256).to_be_bytes();
            let identities: [IpAddr; 2] = [
                Ipv4Addr::new(10, 1, high, low).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, index).into(),
            ];
            Vm {
                name: VmName::new(format!("vm{index}")),
                identities: Addresses::collect(identities).unwrap(),
                mac: crate::rule::MacAddress([2, 0, 0, 0, high, low]),
                home: "rack1".into(),
            }
        })
        .filter(|vm| vm.mac.0[5] != 255)
        .collect();
    let mut world = World::bare(topology.clone());
    world.checked = false;
    world.request(Request::ApplyTopology(topology)).unwrap();
    world.request(Request::AddVms(vms.clone())).unwrap();
    world.connect_all();
    for rack in ["rack2", "rack3", "rack1"] {
        let moves: Vec<_> = vms.iter().map(|vm| (vm.name.as_str(), rack)).collect();
        let id = world.migrate(&moves).unwrap();
        world.deliver_all();
        assert!(world.phase(id) >= Phase::Draining);
    }
    world.run();
    world.check_final();
}

//! Routers and controllers that are silent, wrong, away or killed.

use super::*;

#[test]
fn a_router_that_cannot_prepare_aborts_the_migration() {
    let mut world = world();
    world.routers.get_mut(&name("core2")).unwrap().fail_prepare = true;
    let id = world.migrate(&[("vm1", "rack2")]).unwrap();
    world.deliver_all();
    let view = world.coordinator.migration(id).unwrap();
    assert_eq!(view.phase, Phase::Aborted);
    assert_eq!(view.error.unwrap(), "router core2 cannot prepare: no room");
    world.run();
    world.check_final();
}

#[test]
fn an_unreachable_router_aborts_after_the_deadline() {
    let mut world = world();
    world.disconnect(&name("core1"));
    let id = world.migrate(&[("vm1", "rack2")]).unwrap();
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Preparing);
    let view = world.coordinator.migration(id).unwrap();
    assert_eq!(view.waiting_for, [name("core1")]);
    world.pass(Duration::from_secs(5));
    world.deliver_all();
    let view = world.coordinator.migration(id).unwrap();
    assert_eq!(view.phase, Phase::Aborted);
    assert!(
        view.error
            .unwrap()
            .starts_with("not prepared in time: core1;")
    );
    world.run();
    world.check_final();
}

#[test]
fn an_unreachable_router_is_waited_for_by_policy() {
    let mut world = world();
    world.disconnect(&name("core1"));
    let id = world
        .migrate_with(
            &[("vm1", "rack2")],
            Activation::Immediate,
            Unreachable::Wait,
        )
        .unwrap();
    world.deliver_all();
    world.pass(Duration::from_hours(1));
    assert_eq!(world.phase(id), Phase::Preparing);
    world.connect(&name("core1"));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Done);
}

#[test]
fn a_silent_router_is_passed_over_and_caught_up() {
    let mut world = world();
    let id = world
        .migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    world.deliver_all();
    world.request(Request::Activate(id)).unwrap();
    world.disconnect(&name("edge2b"));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Committing);
    assert_eq!(commits(&world), ["edge2a", "edge2b"]);
    world.pass(Duration::from_secs(2));
    world.deliver_all();
    let view = world.coordinator.migration(id).unwrap();
    assert_eq!(view.phase, Phase::Committed);
    assert_eq!(view.waiting_for, [name("edge2b")]);
    assert!(view.routers.iter().any(|it| it.passed_over));
    assert!(world.migrate(&[("vm1", "rack3")]).is_err());
    world.pass(Duration::from_hours(1));
    assert_eq!(world.phase(id), Phase::Committed);
    world.connect(&name("edge2b"));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Done);
    world.run();
    world.check_final();
}

#[test]
fn a_silent_home_edge_holds_back_the_previous_edges_of_a_return() {
    let mut world = world();
    world.migrate(&[("vm3", "rack1")]).unwrap();
    world.deliver_all();
    let id = world
        .migrate_with(&[("vm3", "rack2")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    world.deliver_all();
    world.sent.clear();
    world.disconnect(&name("edge2b"));
    // The preparation is lost with the connection: it has to show that it still holds it.
    assert_eq!(world.phase(id), Phase::Preparing);
    world.connect(&name("edge2b"));
    world.deliver_all();
    world.request(Request::Activate(id)).unwrap();
    world.disconnect(&name("edge2b"));
    world.deliver_all();
    world.pass(Duration::from_secs(2));
    world.deliver_all();
    world.pass(Duration::from_secs(2));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Committed);
    let edge1 = |world: &World| commits(world).contains(&"edge1");
    assert!(!edge1(&world));
    world.connect(&name("edge2b"));
    world.deliver_all();
    assert!(edge1(&world));
    world.run();
    world.check_final();
}

#[test]
fn a_drained_router_is_not_needed_and_catches_up_when_undrained() {
    let mut world = world();
    world.disconnect(&name("core1"));
    let waiting = world.migrate(&[("vm2", "rack3")]).unwrap();
    world.deliver_all();
    assert_eq!(world.phase(waiting), Phase::Preparing);
    world.request(Request::DrainRouter(name("core1"))).unwrap();
    assert_eq!(world.phase(waiting), Phase::Committing);
    let id = world.migrate(&[("vm1", "rack2")]).unwrap();
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Done);
    world.connect(&name("core1"));
    world.deliver_all();
    assert!(world.routers[&name("core1")].addresses().is_empty());
    world
        .request(Request::UndrainRouter(name("core1")))
        .unwrap();
    assert!(!world.is_connected(&name("core1")));
    world.run();
    world.check_final();
    assert!(!world.routers[&name("core1")].addresses().is_empty());
}

#[test]
fn a_router_is_removed_once_it_is_drained() {
    let mut world = world();
    world.migrate(&[("vm1", "rack2")]).unwrap();
    let refusal = world
        .request(Request::RemoveRouter(name("edge2b")))
        .unwrap_err();
    assert!(refusal.to_string().contains("natmig router drain edge2b"));
    world.request(Request::DrainRouter(name("edge2b"))).unwrap();
    world
        .request(Request::RemoveRouter(name("edge2b")))
        .unwrap();
    world.request(Request::DrainRouter(name("edge1"))).unwrap();
    assert!(world.request(Request::RemoveRouter(name("edge1"))).is_err());
    world
        .request(Request::UndrainRouter(name("edge1")))
        .unwrap();
    world.topology = world.coordinator.topology().unwrap().clone();
    assert_eq!(world.topology.segments[&"rack2".into()].routers.len(), 1);
    world.run();
    world.check_final();
}

#[test]
fn an_agent_reconnects_at_any_step() {
    for router in ["edge1", "edge2a", "core1"] {
        for steps in 0..60 {
            for reboot in [false, true] {
                let mut world = world();
                world.migrate(&[("vm1", "rack2")]).unwrap();
                world.run();
                let id = world
                    .migrate(&[("vm1", "rack3"), ("vm2", "rack2")])
                    .unwrap();
                step(&mut world, steps);
                if reboot {
                    world.reboot(&name(router));
                } else {
                    world.disconnect(&name(router));
                }
                step(&mut world, 9);
                world.connect(&name(router));
                world.deliver_all();
                assert!(world.phase(id) >= Phase::Draining, "{}", world.phase(id));
                world.run();
                world.check_final();
                assert_eq!(world.place("vm1"), "rack3");
            }
        }
    }
}

#[test]
fn the_controller_restarts_at_any_step() {
    for steps in 0..90 {
        let mut world = world();
        world
            .migrate(&[("vm1", "rack2"), ("vm3", "rack1")])
            .unwrap();
        world.run();
        let id = world
            .migrate(&[("vm1", "rack1"), ("vm2", "rack3"), ("vm3", "rack3")])
            .unwrap();
        step(&mut world, steps);
        world.crash();
        world.run();
        assert_eq!(world.phase(id), Phase::Done);
        world.check_final();
        assert_eq!(world.place("vm1"), "rack1");
    }
}

#[test]
fn a_wrong_table_is_replaced() {
    let mut world = world();
    world.migrate(&[("vm1", "rack2")]).unwrap();
    world.run();
    world.sent.clear();
    world.reboot(&name("edge1"));
    world.disconnect(&name("core1"));
    world.run();
    let replaced: Vec<_> = world
        .sent
        .iter()
        .filter(|(_, command)| matches!(command, Command::Replace { .. }))
        .map(|(router, _)| router.as_str())
        .collect();
    assert_eq!(replaced, ["edge1"]);
    world.check_final();
}

#[test]
fn a_wrong_entry_is_mended_without_the_rest() {
    let mut world = world();
    world
        .migrate(&[("vm1", "rack2"), ("vm2", "rack2"), ("vm4", "rack2")])
        .unwrap();
    world.run();
    world.disconnect(&name("core1"));
    // Until it is mended, packets go astray.
    world.checked = false;
    let core = world.routers.get_mut(&name("core1")).unwrap();
    let wrong = core.addresses()[0];
    let rules = vec![Change {
        address: wrong,
        rule: Rule::Known {
            identity: "10.9.9.9".parse().unwrap(),
        },
    }];
    let parts = Parts::Some([part(wrong)].into());
    core.execute(
        Timestamp(0),
        Command::Replace {
            version: 0,
            parts: parts.clone(),
            rules,
        },
    );
    world.sent.clear();
    world.run();
    let replaced: Vec<_> = world
        .sent
        .iter()
        .filter_map(|(_, command)| {
            let Command::Replace { parts, rules, .. } = command else {
                return None;
            };
            Some((parts.clone(), rules.len()))
        })
        .collect();
    let [(sent, count)] = replaced.as_slice() else {
        panic!("replaced {replaced:?}");
    };
    assert_eq!(*sent, parts);
    world.checked = true;
    world.check();
    assert!(*count < world.routers[&name("core1")].addresses().len());
    world.check_final();
}

#[test]
fn a_router_attaches_when_its_table_is_whole() {
    let mut world = world();
    world.migrate(&[("vm1", "rack2")]).unwrap();
    world.run();
    world.sent.clear();
    world.reboot(&name("core1"));
    world.run();
    let commands: Vec<_> = world
        .sent
        .iter()
        .filter(|(router, _)| *router == name("core1"))
        .map(|(_, command)| command.reference())
        .collect();
    let replaced = commands
        .iter()
        .position(|it| matches!(it, CommandRef::Replace(_)));
    let attached = commands.iter().position(|it| *it == CommandRef::Attach);
    assert!(replaced.is_some() && replaced < attached, "{commands:?}");
    assert!(!world.routers[&name("core1")].booting);
}

#[test]
fn stale_replies_are_ignored() {
    let mut world = world();
    let id = world
        .migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Wait)
        .unwrap();
    let core = name("core1");
    let connection = world.connection_of(&core);
    let committed = Reply::Committed {
        id,
        at: Timestamp(1),
        grace: Duration::ZERO,
    };
    // Of another phase, of another migration, of a connection that is over.
    world.stray_reply(&core, connection, committed.clone());
    world.stray_reply(&core, connection, Reply::Folded(id));
    world.stray_reply(&core, connection, Reply::Prepared(TransactionId(77)));
    world.stray_reply(&core, connection, Reply::Replaced(77));
    world.stray_reply(&core, connection - 1, Reply::Prepared(id));
    world.stray_reply(&name("nobody"), connection, Reply::Prepared(id));
    let progress = |world: &World| {
        let view = world.coordinator.migration(id).unwrap();
        view.routers
            .iter()
            .find(|it| it.router == core)
            .unwrap()
            .progress
    };
    assert_eq!(progress(&world), Progress::Waiting);
    world.deliver_all();
    assert_eq!(progress(&world), Progress::Prepared);
    world.stray_reply(&core, connection, committed);
    assert_eq!(progress(&world), Progress::Prepared);
    assert_eq!(world.phase(id), Phase::Prepared);
}

fn disjoint(one: Addresses, other: Addresses) -> bool {
    assert_eq!([one, other].map(|it| it.iter().count()), [2, 2]);
    one.iter().all(|locator| !other.contains(locator))
}

#[test]
fn a_locator_of_an_aborted_migration_waits_for_the_router_that_may_hold_it() {
    let mut world = world();
    let id = world
        .migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    world.deliver_all();
    world.disconnect(&name("core1"));
    world.pass(Duration::from_secs(5));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Aborted);
    assert!(world.routers[&name("core1")].holds(id));
    world.pass(Duration::from_hours(1));
    world.crash();
    // Another VM goes there, and gets another locator.
    let other = world
        .migrate_with(
            &[("vm2", "rack2")],
            Activation::Immediate,
            Unreachable::Wait,
        )
        .unwrap();
    let locators = |world: &World, id| world.coordinator.migration(id).unwrap().vms[0].to.locators;
    assert!(disjoint(locators(&world, id), locators(&world, other)));
    world.run();
    assert_eq!(world.phase(other), Phase::Done);
    assert!(!world.routers[&name("core1")].holds(id));
    world.check_final();
}

#[test]
fn a_silent_router_holds_back_retiring_and_the_locator() {
    let mut world = world();
    world.migrate(&[("vm1", "rack2")]).unwrap();
    world.deliver_all();
    let id = world.migrate(&[("vm1", "rack3")]).unwrap();
    world.deliver_all();
    world.disconnect(&name("core1"));
    world.pass(Duration::from_hours(1));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Retiring);
    world.pass(Duration::from_hours(1));
    let view = world.coordinator.migration(id).unwrap();
    assert_eq!(view.waiting_for, [name("core1")]);
    let old = view.vms[0].from.locators;
    let other = world
        .migrate_with(
            &[("vm2", "rack2")],
            Activation::Immediate,
            Unreachable::Wait,
        )
        .unwrap();
    let given = world.coordinator.migration(other).unwrap().vms[0]
        .to
        .locators;
    assert!(disjoint(given, old));
    world.run();
    assert_eq!(world.phase(id), Phase::Done);
    world.check_final();
}

#[test]
fn an_unknown_router_is_turned_away() {
    let mut world = world();
    let name = RouterName::new("stranger");
    world
        .routers
        .insert(name.clone(), world.routers[&self::name("core1")].clone());
    world.connect(&name);
    assert!(!world.is_connected(&name));
}

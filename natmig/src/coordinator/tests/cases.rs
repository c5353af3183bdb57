//! One test for each case, by name. [`World`] walks packets after every step of each.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use super::world::World;
use crate::{
    addresses::Addresses,
    coordinator::{
        Activation, Command, CommandRef, Phase, Progress, Refusal, RefusalKind, Reply, Request,
        Timestamp, Unreachable,
    },
    digest::{Parts, part},
    model::{topology, vm},
    names::{RouterName, VmName},
    planner::{PlanError, Vm},
    rule::{Change, Rule, TransactionId},
};

/// Three racks; the second one has a pair of edges.
fn world() -> World {
    let topology = topology(&[&["edge1"], &["edge2a", "edge2b"], &["edge3"]]);
    World::connected(topology, &[vm(1, 1), vm(2, 1), vm(3, 2), vm(4, 3)])
}

fn name(router: &str) -> RouterName {
    RouterName::new(router)
}

fn commits(world: &World) -> Vec<&str> {
    world
        .sent
        .iter()
        .filter(|(_, command)| matches!(command, Command::Commit { .. }))
        .map(|(router, _)| router.as_str())
        .collect()
}

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
fn returns_in_opposite_directions_are_refused_as_one_group() {
    let mut world = world();
    world
        .migrate(&[("vm1", "rack2"), ("vm3", "rack1")])
        .unwrap();
    world.run();
    let refusal = world
        .migrate(&[("vm1", "rack1"), ("vm3", "rack2")])
        .unwrap_err();
    assert!(matches!(refusal, Refusal::Plan(PlanError::Cycle { .. })));
    assert!(refusal.to_string().contains("split the group"));
    world.migrate(&[("vm1", "rack1")]).unwrap();
    world.migrate(&[("vm3", "rack2")]).unwrap();
    world.run();
    world.check_final();
}

#[test]
fn a_busy_vm_is_refused() {
    let mut world = world();
    let id = world.migrate(&[("vm1", "rack2")]).unwrap();
    let before = world.store.clone();
    let refusal = world
        .migrate(&[("vm2", "rack2"), ("vm1", "rack3")])
        .unwrap_err();
    assert_eq!(
        refusal,
        Refusal::Busy {
            vm: VmName::new("vm1"),
            migration: id,
            phase: Phase::Preparing
        }
    );
    assert_eq!(refusal.kind(), RefusalKind::Refused);
    assert_eq!(world.store, before);
    world.run();
    world.migrate(&[("vm1", "rack3")]).unwrap();
}

#[test]
fn an_exhausted_pool_refuses_the_whole_group() {
    let topology = topology(&[&["edge1"], &["edge2"]]);
    // All of them have both families.
    let numbers = [1, 2, 5, 7, 10, 11, 13, 14, 17];
    let vms: Vec<Vm> = numbers.map(|number| vm(number, 1)).into();
    let mut world = World::connected(topology, &vms);
    let names = numbers.map(|number| format!("vm{number}"));
    let all: Vec<_> = names.iter().map(|vm| (vm.as_str(), "rack2")).collect();
    let before = world.store.clone();
    let refusal = world.migrate(&all).unwrap_err();
    // The last address of the pool is the prefix's broadcast address.
    assert!(matches!(
        refusal,
        Refusal::Plan(PlanError::PoolExhausted {
            needed: 9,
            free: 7,
            ..
        })
    ));
    assert_eq!(world.store, before);
    world.migrate(&all[..7]).unwrap();
    world.deliver_all();
    assert!(world.migrate(&all[7..8]).is_err());
    world.migrate(&[("vm1", "rack1")]).unwrap();
    world.deliver_all();
    // Its locator drains, then it is in quarantine.
    assert!(world.migrate(&all[7..8]).is_err());
    world.pass(Duration::from_secs(6));
    world.deliver_all();
    assert!(world.migrate(&all[7..8]).is_err());
    world.run();
    world.migrate(&all[7..8]).unwrap();
    world.run();
    world.check_final();
}

#[test]
fn nonsense_is_refused() {
    let mut world = world();
    let refusals = [
        world.migrate(&[]).unwrap_err(),
        world.migrate(&[("vm9", "rack2")]).unwrap_err(),
        world.migrate(&[("vm1", "rack9")]).unwrap_err(),
        world.migrate(&[("vm1", "rack1")]).unwrap_err(),
        world
            .migrate(&[("vm1", "rack2"), ("vm1", "rack3")])
            .unwrap_err(),
        world
            .request(Request::Activate(TransactionId(9)))
            .unwrap_err(),
        world
            .request(Request::DrainRouter(name("edge9")))
            .unwrap_err(),
        world
            .request(Request::RemoveVms(vec![VmName::new("vm9")]))
            .unwrap_err(),
    ];
    let kinds = refusals.map(|refusal| refusal.kind());
    assert_eq!(
        kinds,
        [
            RefusalKind::Invalid,
            RefusalKind::NotFound,
            RefusalKind::NotFound,
            RefusalKind::Refused,
            RefusalKind::Invalid,
            RefusalKind::NotFound,
            RefusalKind::NotFound,
            RefusalKind::NotFound,
        ]
    );
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

/// Delivers a number of messages, router by router.
fn step(world: &mut World, steps: usize) {
    let routers = world.router_names();
    for step in 0..steps {
        let router = &routers[(step / 2) % routers.len()];
        if step % 2 == 0 {
            world.deliver_command(router);
        } else {
            world.deliver_reply(router);
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
fn a_vm_is_removed_only_at_home() {
    let mut world = world();
    let remove = Request::RemoveVms(vec![VmName::new("vm1")]);
    world.migrate(&[("vm1", "rack2")]).unwrap();
    assert!(matches!(
        world.request(remove.clone()).unwrap_err(),
        Refusal::Busy { .. }
    ));
    world.run();
    let refusal = world.request(remove.clone()).unwrap_err();
    assert!(refusal.to_string().contains("migrate it to rack1 first"));
    world.migrate(&[("vm1", "rack1")]).unwrap();
    world.deliver_all();
    assert!(world.request(remove.clone()).is_err());
    world.run();
    world.request(remove).unwrap();
    assert!(world.coordinator.vm(&VmName::new("vm1")).is_none());
    world.check_final();
}

fn ipv6(address: &str) -> Addresses {
    address.parse::<Ipv6Addr>().unwrap().into()
}

#[test]
fn bad_vms_are_refused_all_together() {
    let mut world = world();
    let before = world.store.clone();
    let good = vm(9, 1);
    let with = |change: fn(&mut Vm)| {
        let mut vm = vm(8, 1);
        change(&mut vm);
        vm
    };
    let bad = [
        with(|vm| vm.identities = Ipv4Addr::new(10, 1, 2, 8).into()),
        with(|vm| vm.identities = Ipv4Addr::new(10, 1, 1, 250).into()),
        with(|vm| vm.identities = Ipv4Addr::new(10, 1, 1, 1).into()),
        with(|vm| vm.identities = Ipv4Addr::new(10, 1, 1, 255).into()),
        with(|vm| vm.identities = Ipv4Addr::new(10, 1, 1, 11).into()),
        with(|vm| vm.identities = ipv6("2001:db8:2::8")),
        with(|vm| vm.identities = ipv6("2001:db8:1::f9")),
        with(|vm| vm.identities = ipv6("2001:db8:1::1")),
        with(|vm| vm.identities = ipv6("2001:db8:1::")),
        with(|vm| vm.identities = ipv6("2001:db8:1::b")),
        with(|vm| vm.identities = Addresses::default()),
        with(|vm| vm.home = "rack9".into()),
        with(|vm| vm.mac = self::vm(1, 1).mac),
        with(|vm| vm.name = "vm1".into()),
        with(|vm| vm.name = "".into()),
        good.clone(),
    ];
    for bad in bad {
        let request = Request::AddVms(vec![good.clone(), bad]);
        assert!(world.request(request).is_err());
        assert_eq!(world.store, before);
    }
    world.request(Request::AddVms(vec![good.clone()])).unwrap();
    world.request(Request::AddVms(vec![good])).unwrap();
}

#[test]
fn a_topology_that_contradicts_bindings_is_refused() {
    let mut world = world();
    let mut topology = world.topology.clone();
    let id = world.migrate(&[("vm1", "rack2")]).unwrap();
    topology.drain = Duration::from_secs(1);
    let refusal = world
        .request(Request::ApplyTopology(topology.clone()))
        .unwrap_err();
    assert!(
        refusal
            .to_string()
            .contains(&format!("migration {id} is preparing"))
    );
    world.run();
    let mut without = topology.clone();
    without.segments.remove(&"rack2".into());
    assert!(world.request(Request::ApplyTopology(without)).is_err());
    world
        .request(Request::ApplyTopology(topology.clone()))
        .unwrap();
    // An edge joins the first rack: all routers get the table that follows.
    topology
        .segments
        .get_mut(&"rack1".into())
        .unwrap()
        .routers
        .insert(name("edge3"));
    world
        .request(Request::ApplyTopology(topology.clone()))
        .unwrap();
    world.topology = topology;
    world.run();
    world.check_final();
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
fn an_unknown_router_is_turned_away() {
    let mut world = world();
    let name = RouterName::new("stranger");
    world
        .routers
        .insert(name.clone(), world.routers[&self::name("core1")].clone());
    world.connect(&name);
    assert!(!world.is_connected(&name));
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

//! Migrations that wait until their VMs are heard at their new places.

use std::time::Duration;

use super::world::World;
use crate::{
    coordinator::{Activation, Announced, MigrationRecord, Phase, Request, Timestamp, Unreachable},
    model::{topology, vm},
    names::{RouterName, VmName},
    rule::TransactionId,
};

/// Three racks; the second one has a pair of edges.
fn world() -> World {
    let topology = topology(&[&["edge1"], &["edge2a", "edge2b"], &["edge3"]]);
    World::connected(topology, &[vm(1, 1), vm(2, 1), vm(3, 2), vm(4, 3)])
}

fn name(router: &str) -> RouterName {
    RouterName::new(router)
}

fn migrate(world: &mut World, moves: &[(&str, &str)]) -> TransactionId {
    world
        .migrate_with(moves, Activation::OnAnnounce, Unreachable::Abort)
        .unwrap()
}

/// Who was heard, and by whom.
fn heard(world: &World, id: TransactionId) -> Vec<(String, Option<String>)> {
    let view = world.coordinator.migration(id).unwrap();
    view.vms
        .into_iter()
        .map(|vm| {
            let router = vm.heard.map(|heard| heard.router.to_string());
            (vm.vm.to_string(), router)
        })
        .collect()
}

/// What follows is as after any other migration.
fn finish(world: &mut World, id: TransactionId) {
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Done);
    world.run();
    world.check_final();
}

#[test]
fn it_commits_when_the_vm_is_heard() {
    let mut world = world();
    let id = migrate(&mut world, &[("vm1", "rack2")]);
    world.deliver_all();
    world.pass(Duration::from_hours(1));
    assert_eq!(world.phase(id), Phase::Prepared);
    assert_eq!(heard(&world, id), [("vm1".to_owned(), None)]);
    world.speak("vm1", "rack2");
    assert_eq!(world.phase(id), Phase::Committing);
    let by = Some("edge2a".to_owned());
    assert_eq!(heard(&world, id), [("vm1".to_owned(), by)]);
    finish(&mut world, id);
}

#[test]
fn a_vm_that_is_heard_before_all_are_prepared_is_not_heard_in_vain() {
    let mut world = world();
    let id = migrate(&mut world, &[("vm1", "rack2")]);
    // One of the pair is prepared; nobody else has even got the command.
    assert!(world.deliver_command(&name("edge2b")));
    world.speak("vm1", "rack2");
    assert_eq!(world.phase(id), Phase::Preparing);
    assert!(world.record(id).unwrap().activated, "it is durable");
    finish(&mut world, id);
}

#[test]
fn what_was_heard_while_nobody_listened_is_told_later() {
    // The controller is away.
    let mut world = world();
    let id = migrate(&mut world, &[("vm1", "rack2")]);
    world.deliver_all();
    world.crash();
    world.speak("vm1", "rack2");
    assert_eq!(world.phase(id), Phase::Preparing);
    world.connect_all();
    finish(&mut world, id);

    // The agents of the new edge are.
    let id = migrate(&mut world, &[("vm1", "rack3")]);
    world.deliver_all();
    world.disconnect(&name("edge3"));
    world.speak("vm1", "rack3");
    assert_eq!(heard(&world, id), [("vm1".to_owned(), None)]);
    world.connect(&name("edge3"));
    world.deliver_all();
    assert!(world.phase(id).is_success());
    world.run();
    world.check_final();
}

#[test]
fn a_controller_that_restarts_before_it_decides_hears_it_again() {
    for after in 0..4 {
        let mut world = world();
        let id = migrate(&mut world, &[("vm1", "rack2")]);
        world.deliver_all();
        world.crash_after = Some(after);
        world.speak("vm1", "rack2");
        if world.crash_after.is_some() {
            world.crash();
        }
        world.connect_all();
        finish(&mut world, id);
    }
}

#[test]
fn a_group_waits_for_its_last_vm() {
    let mut world = world();
    let id = migrate(&mut world, &[("vm1", "rack2"), ("vm2", "rack3")]);
    world.deliver_all();
    world.speak("vm2", "rack3");
    assert_eq!(world.phase(id), Phase::Prepared);
    let by = Some("edge3".to_owned());
    let half = [("vm1".to_owned(), None), ("vm2".to_owned(), by)];
    assert_eq!(heard(&world, id), half);
    // Half of it is known to the new edge only; the controller hears of it again.
    world.crash();
    world.connect_all();
    world.deliver_all();
    assert_eq!(heard(&world, id), half);
    assert_eq!(world.phase(id), Phase::Prepared);
    world.speak("vm1", "rack2");
    finish(&mut world, id);
}

#[test]
fn an_operator_need_not_wait_for_a_straggler() {
    let mut world = world();
    let id = migrate(&mut world, &[("vm1", "rack2"), ("vm2", "rack3")]);
    world.deliver_all();
    world.speak("vm2", "rack3");
    world.request(Request::Activate(id)).unwrap();
    finish(&mut world, id);
}

#[test]
fn it_can_be_aborted_after_a_vm_was_heard() {
    let mut world = world();
    let id = migrate(&mut world, &[("vm1", "rack2"), ("vm2", "rack3")]);
    world.deliver_all();
    world.speak("vm2", "rack3");
    world.request(Request::Abort(id)).unwrap();
    world.speak("vm1", "rack2");
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Aborted);
    world.speak("vm1", "rack2");
    world.run();
    assert_eq!(world.phase(id), Phase::Aborted);
    world.check_final();
    // What was heard then says nothing of the next one.
    let next = migrate(&mut world, &[("vm2", "rack3")]);
    world.deliver_all();
    assert_eq!(world.phase(next), Phase::Prepared);
    world.speak("vm2", "rack3");
    finish(&mut world, next);
}

#[test]
fn a_new_edge_that_reboots_listens_again() {
    let mut world = world();
    let id = migrate(&mut world, &[("vm1", "rack3")]);
    world.deliver_all();
    world.reboot(&name("edge3"));
    world.speak("vm1", "rack3");
    world.connect(&name("edge3"));
    world.deliver_all();
    assert_eq!(world.phase(id), Phase::Prepared);
    world.speak("vm1", "rack3");
    finish(&mut world, id);
}

#[test]
fn only_the_new_edge_is_believed_and_only_of_what_migrates() {
    let mut world = world();
    let id = migrate(&mut world, &[("vm1", "rack2")]);
    let manual = world
        .migrate_with(&[("vm2", "rack3")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    world.deliver_all();
    let mac = |vm: &str, world: &World| world.coordinator.vm(&VmName::new(vm)).unwrap().mac;
    let at = Timestamp(7);
    let (vm1, vm2) = (mac("vm1", &world), mac("vm2", &world));
    let before = world.store.clone();
    for (router, id, mac) in [
        ("edge1", id, vm1),
        ("edge3", id, vm1),
        ("core1", id, vm1),
        ("edge2a", id, vm2),
        ("edge2a", TransactionId(99), vm1),
        ("edge3", manual, vm2),
    ] {
        world.announced(&name(router), Announced { id, mac, at });
    }
    assert_eq!(world.phase(id), Phase::Prepared);
    assert_eq!(world.phase(manual), Phase::Prepared);
    assert_eq!(world.store, before);
    world.announced(&name("edge2b"), Announced { id, mac: vm1, at });
    let by = Some("edge2b".to_owned());
    assert_eq!(heard(&world, id), [("vm1".to_owned(), by)]);
    world.request(Request::Abort(manual)).unwrap();
    finish(&mut world, id);
}

#[test]
fn a_vm_is_awaited_wherever_it_comes() {
    let mut world = world();
    for (place, rack) in ["rack2", "rack3", "rack1", "rack2", "rack1"]
        .into_iter()
        .zip(1..)
    {
        let id = migrate(&mut world, &[("vm1", place)]);
        world.deliver_all();
        assert_eq!(world.phase(id), Phase::Prepared, "move {rack}");
        // Where it is or was, it may speak as much as it likes.
        for other in ["rack1", "rack2", "rack3"] {
            if other != place {
                world.speak("vm1", other);
            }
        }
        assert_eq!(world.phase(id), Phase::Prepared, "move {rack}");
        world.speak("vm1", place);
        world.deliver_all();
        assert_eq!(world.place("vm1"), place);
        world.run();
        world.check_final();
    }
}

#[test]
fn records_without_announcements_are_understood() {
    let mut world = world();
    let id = world
        .migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    let record = world.record(id).unwrap();
    let mut json = serde_json::to_value(record).unwrap();
    json.as_object_mut().unwrap().remove("heard").unwrap();
    let read: MigrationRecord = serde_json::from_value(json).unwrap();
    assert_eq!(read, *record);
}

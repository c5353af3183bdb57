//! Many migrations at once: how many there may be, and who is waited for.

use std::time::Duration;

use super::world::World;
use crate::{
    coordinator::{Activation, Phase, Refusal, RefusalKind, Unreachable},
    model::{topology, vm},
    names::RouterName,
};

fn world() -> World {
    let topology = topology(&[&["edge1"], &["edge2"], &["edge3"]]);
    World::connected(topology, &[vm(1, 1), vm(2, 1), vm(3, 2), vm(4, 3)])
}

#[test]
fn more_migrations_than_there_may_be_are_refused_until_some_are_done() {
    let mut world = world();
    world.limit(2);
    let first = world
        .migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Abort)
        .unwrap();
    world.migrate(&[("vm2", "rack2")]).unwrap();
    let before = world.store.clone();
    let refusal = world.migrate(&[("vm3", "rack3")]).unwrap_err();
    assert_eq!(refusal, Refusal::TooMany { limit: 2 });
    assert_eq!(refusal.kind(), RefusalKind::Exhausted);
    assert_eq!(world.store, before);
    world.deliver_all();
    // The second one is done; the first one waits for its trigger, and counts.
    world.migrate(&[("vm3", "rack3")]).unwrap();
    assert!(world.migrate(&[("vm4", "rack1")]).is_err());
    world.deliver_all();
    assert_eq!(world.phase(first), Phase::Prepared);
    world.migrate(&[("vm4", "rack1")]).unwrap();
    world.run();
}

/// Everything that the others have to do; of `name`, only so many commands.
fn deliver(world: &mut World, name: &RouterName, commands: usize) {
    for _ in 0..commands {
        assert!(world.deliver_command(name) && world.deliver_reply(name));
    }
    let others: Vec<_> = world.router_names();
    let others: Vec<_> = others.iter().filter(|other| *other != name).collect();
    while others
        .iter()
        .any(|other| world.deliver_command(other) || world.deliver_reply(other))
    {}
}

#[test]
fn a_router_that_has_much_to_do_is_not_taken_for_a_silent_one() {
    let mut world = world();
    let busy = RouterName::new("core1");
    let first = world.migrate(&[("vm1", "rack2")]).unwrap();
    let second = world.migrate(&[("vm2", "rack2")]).unwrap();
    let third = world.migrate(&[("vm3", "rack3")]).unwrap();
    deliver(&mut world, &busy, 0);
    world.pass(Duration::from_secs(4));
    deliver(&mut world, &busy, 1);
    world.pass(Duration::from_secs(4));
    assert_ne!(world.phase(first), Phase::Preparing);
    assert_eq!(world.phase(second), Phase::Preparing);
    deliver(&mut world, &busy, 1);
    world.pass(Duration::from_secs(4));
    assert_eq!(world.phase(third), Phase::Preparing);
    // Nothing is heard of it any longer.
    world.pass(Duration::from_secs(6));
    assert_eq!(world.phase(third), Phase::Aborting);
    let view = world.coordinator.migration(third).unwrap();
    assert!(view.error.unwrap().contains("core1"));
    world.run();
    world.check_final();
}

#[test]
fn a_router_that_has_much_to_do_is_not_passed_over() {
    let mut world = world();
    let busy = RouterName::new("edge1");
    let first = world.migrate(&[("vm1", "rack2")]).unwrap();
    world.migrate(&[("vm3", "rack3")]).unwrap();
    // The first one is prepared everywhere, and decided.
    deliver(&mut world, &busy, 1);
    let passed_over = |world: &World| {
        let view = world.coordinator.migration(first).unwrap();
        let routers = view.routers.iter();
        routers.filter(|router| router.passed_over).count()
    };
    world.pass(Duration::from_millis(1500));
    deliver(&mut world, &busy, 1);
    world.pass(Duration::from_millis(1500));
    assert_eq!(world.phase(first), Phase::Committing);
    assert_eq!(passed_over(&world), 0);
    world.pass(Duration::from_millis(1500));
    world.pass(Duration::from_millis(1500));
    assert_eq!(passed_over(&world), 1);
    world.run();
    world.check_final();
}

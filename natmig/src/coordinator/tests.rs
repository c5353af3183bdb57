//! The machine against a model of routers: one test for each case, by name. [`World`] walks packets
//! after every step of each.

mod announced;
mod moves;
mod queue;
mod random;
mod refusals;
mod routers;
mod world;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use self::world::World;
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

//! Random sequences of everything that can happen: moves, activations, aborts, messages in any
//! order between routers, lost connections, reboots, crashes of the controller between any two of
//! its actions, deadlines, drained routers. [`World`] checks every step; at the end everything is
//! delivered, and every router's table must be that of the final state.

use std::time::Duration;

use proptest::prelude::*;

use super::world::World;
use crate::{
    coordinator::{Activation, MigrateRequest, Phase, Request, Unreachable},
    model::{topology, vm},
    names::{RouterName, SegmentName, VmName},
    rule::TransactionId,
    topology::Topology,
};

/// What happens next. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Command(u8),
    Reply(u8),
    /// Messages of one router until nothing is under way.
    Flush(u8),
    FlushAll,
    /// A router falls silent, and is waited for until a deadline.
    Silent(u8),
    Connect(u8),
    Disconnect(u8),
    Reboot(u8),
    FailPrepare(u8),
    /// The controller crashes, if the next thing that it does has more actions than this.
    CrashWithin(u8),
    Crash,
    Pass(u16),
    PassToDeadline,
    Migrate {
        moves: Vec<(u8, u8)>,
        activation: Activation,
        wait: bool,
    },
    /// A VM speaks, wherever it may be.
    Speak {
        vm: u8,
        segment: u8,
    },
    /// VMs go home, and the trigger finds everything prepared.
    BringHome(Vec<u8>),
    Activate(u8),
    Abort(u8),
    Drain(u8),
    Undrain(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let any_moves = prop::collection::vec((any::<u8>(), any::<u8>()), 1..4);
    prop_oneof![
        20 => any::<u8>().prop_map(Step::Command),
        20 => any::<u8>().prop_map(Step::Reply),
        12 => any::<u8>().prop_map(Step::Flush),
        10 => Just(Step::FlushAll),
        4 => any::<u8>().prop_map(Step::Silent),
        8 => any::<u8>().prop_map(Step::Connect),
        3 => any::<u8>().prop_map(Step::Disconnect),
        1 => any::<u8>().prop_map(Step::Reboot),
        1 => any::<u8>().prop_map(Step::FailPrepare),
        2 => (0_u8..6).prop_map(Step::CrashWithin),
        1 => Just(Step::Crash),
        4 => (0_u16..7000).prop_map(Step::Pass),
        6 => Just(Step::PassToDeadline),
        12 => (any_moves, activation(), prop::bool::weighted(0.3))
            .prop_map(|(moves, activation, wait)| Step::Migrate { moves, activation, wait }),
        8 => (any::<u8>(), any::<u8>()).prop_map(|(vm, segment)| Step::Speak { vm, segment }),
        4 => prop::collection::vec(any::<u8>(), 1..3).prop_map(Step::BringHome),
        4 => any::<u8>().prop_map(Step::Activate),
        2 => any::<u8>().prop_map(Step::Abort),
        1 => any::<u8>().prop_map(Step::Drain),
        2 => any::<u8>().prop_map(Step::Undrain),
    ]
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        3 => Just(Activation::Immediate),
        1 => Just(Activation::Manual),
        1 => Just(Activation::OnAnnounce),
    ]
}

/// Two to four racks, each with one or two edges; an edge may serve two racks.
fn any_topology() -> impl Strategy<Value = Topology> {
    prop::collection::vec((0_usize..5, 0_usize..5), 2..5).prop_map(|racks| {
        let names = ["edge1", "edge2", "edge3", "edge4", "edge5"];
        let edges: Vec<Vec<&str>> = racks
            .iter()
            .map(|(one, other)| vec![names[*one], names[*other]])
            .collect();
        let edges: Vec<&[&str]> = edges.iter().map(Vec::as_slice).collect();
        topology(&edges)
    })
}

fn choose<T: Clone>(from: &[T], number: u8) -> T {
    from[usize::from(number) % from.len()].clone()
}

fn apply(world: &mut World, step: Step) {
    let routers = world.router_names();
    let router = |number| choose::<RouterName>(&routers, number);
    let migration = |world: &World, number: u8| {
        let ids: Vec<_> = world
            .coordinator
            .migrations()
            .iter()
            .filter(|view| !view.phase.is_final())
            .map(|view| view.id)
            .collect();
        (!ids.is_empty()).then(|| choose::<TransactionId>(&ids, number))
    };
    match step {
        Step::Command(number) => {
            world.deliver_command(&router(number));
        }
        Step::Reply(number) => {
            world.deliver_reply(&router(number));
        }
        Step::Flush(number) => {
            let router = router(number);
            while world.deliver_command(&router) | world.deliver_reply(&router) {}
        }
        Step::FlushAll => world.deliver_all(),
        Step::Silent(number) => {
            world.disconnect(&router(number));
            world.deliver_all();
            world.pass_to_deadline();
            world.deliver_all();
        }
        Step::Connect(number) => world.connect(&router(number)),
        Step::Disconnect(number) => world.disconnect(&router(number)),
        Step::Reboot(number) => world.reboot(&router(number)),
        Step::FailPrepare(number) => {
            world.routers.get_mut(&router(number)).unwrap().fail_prepare = true;
        }
        Step::CrashWithin(actions) => world.crash_after = Some(usize::from(actions)),
        Step::Crash => world.crash(),
        Step::Pass(milliseconds) => world.pass(Duration::from_millis(milliseconds.into())),
        Step::PassToDeadline => {
            world.pass_to_deadline();
        }
        Step::Migrate {
            moves,
            activation,
            wait,
        } => {
            let vms: Vec<VmName> = world
                .store
                .vms
                .iter()
                .map(|it| it.vm.name.clone())
                .collect();
            let segments: Vec<SegmentName> = world.topology.segments.keys().cloned().collect();
            let moves = moves
                .into_iter()
                .map(|(vm, segment)| (choose(&vms, vm), choose(&segments, segment)))
                .collect();
            let request = MigrateRequest {
                moves,
                activation,
                unreachable: if wait {
                    Unreachable::Wait
                } else {
                    Unreachable::Abort
                },
            };
            refusable(world, Request::Migrate(request));
        }
        Step::Speak { vm, segment } => {
            let vms: Vec<_> = world.store.vms.iter().map(|it| &it.vm.name).collect();
            let segments: Vec<_> = world.topology.segments.keys().collect();
            let (vm, segment) = (choose(&vms, vm).clone(), choose(&segments, segment).clone());
            world.speak(vm.as_str(), segment.as_str());
        }
        Step::BringHome(vms) => bring_home(world, vms),
        Step::Activate(number) => {
            if let Some(id) = migration(world, number) {
                refusable(world, Request::Activate(id));
            }
        }
        Step::Abort(number) => {
            if let Some(id) = migration(world, number) {
                refusable(world, Request::Abort(id));
            }
        }
        Step::Drain(number) => {
            let name = router(number);
            // First traffic is taken off it, then an operator attests that.
            world.routers.get_mut(&name).unwrap().detached = true;
            refusable(world, Request::DrainRouter(name));
        }
        Step::Undrain(number) => refusable(world, Request::UndrainRouter(router(number))),
    }
}

fn bring_home(world: &mut World, vms: Vec<u8>) {
    let moves = vms
        .into_iter()
        .map(|number| {
            let state = choose(&world.store.vms, number);
            (state.vm.name, state.vm.home)
        })
        .collect();
    let request = MigrateRequest {
        moves,
        activation: Activation::Manual,
        unreachable: Unreachable::Wait,
    };
    refusable(world, Request::Migrate(request));
    world.deliver_all();
    if let Some(view) = world.coordinator.migrations().last()
        && view.phase == Phase::Prepared
    {
        refusable(world, Request::Activate(view.id));
    }
}

/// A request that is refused changes nothing.
fn refusable(world: &mut World, request: Request) {
    let before = world.store.clone();
    if world.request(request).is_err() {
        assert_eq!(world.store, before);
    }
}

/// Ends everything that is under way.
fn finish(world: &mut World) {
    world.crash_after = None;
    for name in world.router_names() {
        world.routers.get_mut(&name).unwrap().fail_prepare = false;
        world.request(Request::UndrainRouter(name)).unwrap();
    }
    let waiting: Vec<_> = world
        .coordinator
        .migrations()
        .iter()
        .filter(|view| view.phase <= Phase::Prepared)
        .map(|view| view.id)
        .collect();
    for id in waiting {
        world.request(Request::Activate(id)).unwrap();
    }
    world.run();
    world.check_final();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        max_shrink_iters: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_packets_arrive_and_tables_converge(
        topology in any_topology(),
        homes in prop::collection::vec(any::<u8>(), 1..4),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let racks = u8::try_from(topology.segments.len()).unwrap();
        let vms: Vec<_> = (1_u8..)
            .zip(&homes)
            .map(|(number, home)| vm(number, 1 + home % racks))
            .collect();
        let mut world = World::connected(topology, &vms);
        for step in steps {
            apply(&mut world, step);
        }
        finish(&mut world);
    }
}

/// How many cases to run: `NATMIG_CASES`, else as many as take seconds.
fn cases() -> u32 {
    std::env::var("NATMIG_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(200)
}

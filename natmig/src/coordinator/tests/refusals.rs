//! What the machine refuses, and that nothing comes of it.

use super::*;

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

//! What the store on etcd does when leaders and members die.

use std::time::{Duration, Instant};

use natmig::{
    coordinator::{StoreOp, Stored},
    store::{EtcdConfig, EtcdError, EtcdStore, Store, StoreError},
};

use crate::{
    places::Server,
    proxy::Proxy,
    records::{moves, sorted, topology, vm},
};

fn is_lost(error: &StoreError) -> bool {
    matches!(error, StoreError::Etcd(EtcdError::Lost { .. }))
}

/// A change that takes several parts.
fn large_change() -> Vec<StoreOp> {
    let vms = moves(4000)
        .into_iter()
        .map(|step| StoreOp::PutVm(step.after));
    [StoreOp::PutTopology(topology())]
        .into_iter()
        .chain(vms)
        .collect()
}

fn applied(to: &Stored, ops: &[StoreOp]) -> Stored {
    let mut stored = to.clone();
    for op in ops {
        stored.apply(op.clone());
    }
    stored
}

/// A leader whose requests go through a proxy.
fn lead_through_proxy(server: &Server, config: &EtcdConfig) -> (EtcdStore, Proxy) {
    let proxy = server
        .runtime
        .block_on(Proxy::start(server.etcd.client_address(0)));
    let through = EtcdConfig {
        endpoints: vec![format!("http://{}", proxy.address)],
        ..config.clone()
    };
    (server.lead(&through), proxy)
}

/// The leader is cut off after more and more of a large change: its successor finds all of it or
/// nothing, and nothing of what was left lying about does any harm.
#[test]
fn leader_that_dies_amid_a_large_change_leaves_all_or_nothing() {
    let Some(server) = Server::start(1) else {
        return;
    };
    let (mut nothing, mut all) = (0, 0);
    let change = large_change();
    // Long enough that the lease ends because of the cut alone, on any machine.
    let config = || EtcdConfig {
        lease: Duration::from_secs(6),
        ..server.config()
    };
    let size = {
        let (mut store, proxy) = lead_through_proxy(&server, &config());
        store.load().unwrap();
        let before = proxy.passed();
        store.apply(&change).unwrap();
        store.apply(&[StoreOp::PutNextId(6)]).unwrap();
        proxy.passed() - before
    };
    println!("the change takes {size} bytes, staged and written");
    let cuts = [0, 1, 3, 5, 7, 9].map(|tenths| size * tenths / 10);
    std::thread::scope(|scope| {
        let server = &server;
        let change = &change;
        let cases: Vec<_> = cuts
            .iter()
            .map(|cut| {
                let config = config();
                let (mut store, proxy) = lead_through_proxy(server, &config);
                scope.spawn(move || {
                    let small = [StoreOp::PutVm(vm(1)), StoreOp::PutNextId(5)];
                    store.load().unwrap();
                    store.apply(&small).unwrap();
                    let before = applied(&Stored::default(), &small);
                    let after = applied(&before, change);
                    proxy.hold_after(*cut);
                    // The large change, and one behind it, which writes out the large one.
                    let outcome = store
                        .apply(change)
                        .and_then(|()| store.apply(&[StoreOp::PutNextId(6)]));
                    assert!(is_lost(&outcome.unwrap_err()));
                    assert!(!store.leadership().lasts());
                    let mut successor = server.lead(&config);
                    let found = sorted(successor.load().unwrap());
                    // The number of the next migration may have made it as well.
                    let whole = found == sorted(after.clone());
                    assert!(whole || found == sorted(before), "cut after {cut} bytes");
                    // What is left of it does not come back.
                    let ops = [StoreOp::PutVm(vm(3)), StoreOp::DeleteVm(vm(1).vm.name)];
                    successor.apply(&ops).unwrap();
                    let expected = sorted(applied(&found, &ops));
                    assert_eq!(sorted(successor.load().unwrap()), expected);
                    whole
                })
            })
            .collect();
        for case in cases {
            if case.join().unwrap() {
                all += 1;
            } else {
                nothing += 1;
            }
        }
    });
    println!("all of it: {all} times, nothing: {nothing} times");
    assert!(all > 0 && nothing > 0, "{all} and {nothing}");
}

/// A leader decides; before its decision arrives, its lease ends and another one has taken over.
#[test]
fn decision_in_flight_when_the_lease_ends_is_refused() {
    let Some(server) = Server::start(1) else {
        return;
    };
    let config = server.config();
    let (mut old, proxy) = lead_through_proxy(&server, &config);
    old.load().unwrap();
    old.apply(&[StoreOp::PutNextId(1)]).unwrap();
    let held = proxy.clone();
    let deciding = std::thread::spawn(move || {
        held.hold_after(0);
        let outcome = old.apply(&[StoreOp::PutNextId(2), StoreOp::PutVm(vm(1))]);
        (old, outcome)
    });
    let mut successor = server.lead(&config);
    assert!(proxy.holds());
    let before = successor.load().unwrap();
    assert_eq!(before.next_id, 1);
    let (mut old, outcome) = deciding.join().unwrap();
    assert!(is_lost(&outcome.unwrap_err()));
    proxy.release_first();
    // Whatever arrives of it arrives before what the successor does from here on, or finds it done.
    for _ in 0..50 {
        assert_eq!(successor.load().unwrap(), before);
        std::thread::sleep(Duration::from_millis(5));
    }
    successor.apply(&[StoreOp::PutNextId(9)]).unwrap();
    assert_eq!(successor.load().unwrap().next_id, 9);
    assert!(is_lost(&old.confirm().unwrap_err()));
}

#[test]
fn leader_without_its_lease_changes_nothing() {
    let Some(server) = Server::start(1) else {
        return;
    };
    let config = server.config();
    let mut old = server.lead(&config);
    old.load().unwrap();
    old.apply(&[StoreOp::PutNextId(1)]).unwrap();
    let led = server.lead_unless_led(&config).unwrap_err();
    assert!(matches!(led, EtcdError::Led { .. }), "{led}");
    // By its own clock the old leader's lease lasts.
    server.resign(&old.lease());
    assert!(old.leadership().lasts());
    let mut successor = server.lead(&config);
    for outcome in [
        old.apply(&[StoreOp::PutNextId(2)]),
        old.apply(&large_change()),
        old.confirm(),
        old.load().map(|_| ()),
        old.begin_term(0)
            .and_then(|_| old.begin_term(0))
            .map(|_| ()),
    ] {
        assert!(is_lost(&outcome.unwrap_err()));
    }
    assert_eq!(successor.load().unwrap().next_id, 1);
    successor.apply(&[StoreOp::PutNextId(3)]).unwrap();
}

#[test]
fn one_member_of_three_may_die_and_two_stop_everything() {
    let Some(mut server) = Server::start(3) else {
        return;
    };
    let config = server.config();
    let mut store = server.lead(&config);
    store.load().unwrap();
    store.apply(&[StoreOp::PutNextId(1)]).unwrap();
    server.etcd.kill(0);
    let begun = Instant::now();
    store.apply(&[StoreOp::PutNextId(2)]).unwrap();
    println!(
        "one member killed: {:?} for the change after",
        begun.elapsed()
    );
    server.etcd.kill(1);
    let begun = Instant::now();
    let error = store.apply(&[StoreOp::PutNextId(3)]).unwrap_err();
    println!("two members killed: gave up after {:?}", begun.elapsed());
    assert!(is_lost(&error), "{error}");
    assert!(!store.leadership().lasts());
    server.etcd.restart(0);
    let mut store = server.lead(&config);
    let next_id = store.load().unwrap().next_id;
    // The change that was given up may have been made, as any other without an answer.
    assert!(next_id == 2 || next_id == 3, "{next_id}");
    store.apply(&[StoreOp::PutNextId(4)]).unwrap();
    assert_eq!(store.load().unwrap().next_id, 4);
}

#[test]
fn foreign_versions_and_absent_members_are_named() {
    let Some(server) = Server::start(1) else {
        return;
    };
    let config = EtcdConfig {
        endpoints: vec!["http://127.0.0.1:1".to_owned()],
        ..server.config()
    };
    let error = server.lead_unless_led(&config).unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

//! What every store does.

use std::time::Instant;

use natmig::{
    coordinator::{MigrationRecord, Phase, StoreOp, Stored},
    rule::TransactionId,
    store::{Dump, DumpError},
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::{
    places::{FilePlace, Place, Server},
    records::{any_op, migration, moves, sorted, topology, vm},
};

/// The reference is [`Stored::apply`]; the store is opened anew after every batch.
fn holds_what_was_applied<P: Place>(cases: u32, new: impl Fn() -> P) {
    let batches = prop::collection::vec(prop::collection::vec(any_op(), 0..8), 0..6);
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&batches, |batches| {
        let mut place = new();
        let mut expected = Stored::default();
        for batch in batches {
            let mut store = place.open();
            prop_assert_eq!(sorted(store.load().unwrap()), sorted(expected.clone()));
            store.apply(&batch).unwrap();
            for op in batch {
                expected.apply(op);
            }
            prop_assert_eq!(sorted(store.load().unwrap()), sorted(expected.clone()));
        }
        Ok(())
    });
    outcome.unwrap();
}

/// A group of ten thousand VMs in every phase, and all of them as single records.
fn takes_changes_of_any_size(place: &mut impl Place) {
    let moves = moves(10_000);
    let mut record = MigrationRecord {
        id: TransactionId(9),
        moves: moves.clone(),
        ..migration(9)
    };
    let mut expected = Stored::default();
    let mut store = place.open();
    let mut apply = |store: &mut dyn natmig::store::Store, what: &str, ops: Vec<StoreOp>| {
        let begun = Instant::now();
        store.apply(&ops).unwrap();
        println!("{what}: {:?}", begun.elapsed());
        for op in ops {
            expected.apply(op);
        }
        expected.clone()
    };
    let put = |record: &MigrationRecord| StoreOp::PutMigration(Box::new(record.clone()));
    let vms = moves.iter().map(|step| StoreOp::PutVm(step.before.clone()));
    let first = [StoreOp::PutTopology(topology()), StoreOp::PutNextId(10)];
    apply(
        store.as_mut(),
        "10,000 VMs",
        first.into_iter().chain(vms).collect(),
    );
    apply(store.as_mut(), "their migration", vec![put(&record)]);
    record.phase = Phase::Committing;
    let expected_then = apply(store.as_mut(), "its decision", vec![put(&record)]);
    drop(store);
    let mut store = place.open();
    assert_eq!(sorted(store.load().unwrap()), sorted(expected_then));
    record.phase = Phase::Folding;
    let vms = moves.iter().map(|step| StoreOp::PutVm(step.after.clone()));
    let fold = vms.chain([put(&record)]).collect();
    let expected_then = apply(store.as_mut(), "its bindings", fold);
    // Whatever is not written yet counts.
    drop(store);
    let mut store = place.open();
    let begun = Instant::now();
    assert_eq!(sorted(store.load().unwrap()), sorted(expected_then));
    println!("loaded by a successor: {:?}", begun.elapsed());
    let last = apply(
        store.as_mut(),
        "forgotten",
        vec![StoreOp::DeleteMigration(record.id)],
    );
    assert_eq!(sorted(store.load().unwrap()), sorted(last));
}

fn terms_only_grow(place: &mut impl Place) {
    let mut last = 0;
    for at_least in [0, 5, 1 << 40, 7, 1 << 41] {
        let term = place.open().begin_term(at_least).unwrap();
        assert!(term > last && term >= at_least, "{term} after {last}");
        last = term;
    }
    // Also in one leadership.
    let mut store = place.open();
    for at_least in [0, 3, 1 << 42] {
        let term = store.begin_term(at_least).unwrap();
        assert!(term > last && term >= at_least, "{term} after {last}");
        last = term;
    }
    store.apply(&[StoreOp::PutNextId(4)]).unwrap();
    assert_eq!(store.load().unwrap().next_id, 4);
}

fn leadership_is_confirmed(place: &mut impl Place) {
    let mut store = place.open();
    store.confirm().unwrap();
    assert!(store.leadership().lasts());
}

/// Everything goes from one place to the other; what is there already is not overwritten unasked.
fn moves_to(from: &mut impl Place, to: &mut impl Place) {
    let ops = [
        StoreOp::PutTopology(topology()),
        StoreOp::PutNextId(30),
        StoreOp::PutVm(vm(1)),
        StoreOp::PutMigration(Box::new(MigrationRecord {
            moves: moves(3000),
            ..migration(7)
        })),
    ];
    let mut store = from.open();
    store.apply(&ops).unwrap();
    let dump = Dump::of(store.as_mut()).unwrap();
    let text = dump.to_text().unwrap();
    drop(store);

    let mut store = to.open();
    let mine = [StoreOp::PutVm(vm(2)), StoreOp::PutNextId(3)];
    store.apply(&mine).unwrap();
    let present = store.load().unwrap();
    let dump = Dump::parse(&text).unwrap();
    let refused = dump.import(store.as_mut(), false).unwrap_err();
    assert!(
        matches!(refused, DumpError::NotEmpty { vms: 1, .. }),
        "{refused}"
    );
    assert_eq!(store.load().unwrap(), present);
    dump.import(store.as_mut(), true).unwrap();
    drop(store);
    let mut store = to.open();
    assert_eq!(sorted(store.load().unwrap()), sorted(dump.stored));
    assert!(store.begin_term(0).unwrap() > dump.term);
}

#[test]
fn file_holds_what_was_applied() {
    holds_what_was_applied(24, FilePlace::new);
}

#[test]
fn file_takes_changes_of_any_size() {
    takes_changes_of_any_size(&mut FilePlace::new());
}

#[test]
fn file_terms_only_grow() {
    terms_only_grow(&mut FilePlace::new());
}

#[test]
fn file_leadership_is_confirmed() {
    leadership_is_confirmed(&mut FilePlace::new());
}

#[test]
fn etcd_holds_what_was_applied() {
    let Some(server) = Server::start(1) else {
        return;
    };
    holds_what_was_applied(16, || server.place());
}

#[test]
fn etcd_takes_changes_of_any_size() {
    let Some(server) = Server::start(1) else {
        return;
    };
    takes_changes_of_any_size(&mut server.place());
}

#[test]
fn etcd_terms_only_grow_and_leadership_is_confirmed() {
    let Some(server) = Server::start(1) else {
        return;
    };
    terms_only_grow(&mut server.place());
    leadership_is_confirmed(&mut server.place());
}

#[test]
fn stores_move_between_file_and_etcd() {
    let Some(server) = Server::start(1) else {
        return;
    };
    moves_to(&mut FilePlace::new(), &mut server.place());
    moves_to(&mut server.place(), &mut FilePlace::new());
}

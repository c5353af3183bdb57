//! What every store does, and what the file store does with files that are not its own.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::Path};

use natmig::{
    coordinator::{
        Activation, MigrationRecord, Phase, Quarantined, StoreOp, Stored, Timestamp, Unreachable,
    },
    names::{RouterName, SegmentName, VmName},
    planner::{Binding, Move, Vm, VmState},
    rule::{MacAddress, TransactionId},
    store::{FileStore, Store, StoreError},
    topology::Topology,
};
use proptest::prelude::*;

fn vm(number: u8) -> VmState {
    VmState::at_home(Vm {
        name: VmName::new(format!("vm{number}")),
        identity: [10, 1, 1, number].into(),
        mac: MacAddress([2, 0, 0, 0, 0, number]),
        home: SegmentName::new("rack1"),
    })
}

fn migration(number: u8) -> MigrationRecord {
    let before = vm(number);
    let after = before.moved(Some(Binding {
        segment: SegmentName::new("rack2"),
        locator: [10, 1, 2, number].into(),
    }));
    MigrationRecord {
        id: TransactionId(number.into()),
        moves: vec![Move { before, after }],
        activation: Activation::Manual,
        activated: false,
        unreachable: Unreachable::Wait,
        phase: Phase::Prepared,
        times: vec![
            (Phase::Preparing, Timestamp(1)),
            (Phase::Prepared, Timestamp(u64::MAX)),
        ],
        drain_until: Some(Timestamp(5)),
        error: Some("none".to_owned()),
        routers: [(
            RouterName::new("edge1"),
            natmig::coordinator::Progress::Prepared,
        )]
        .into(),
        uncleared: [RouterName::new("edge1")].into(),
    }
}

fn topology() -> Topology {
    Topology::parse(
        "test.toml",
        "drain = \"1s\"\n[[router]]\nname = \"edge1\"\ntier = \"edge\"\n[[segment]]\nname = \"rack1\"\n\
         prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\npool = \"10.1.1.128/25\"\n\
         routers = [\"edge1\"]\n",
    )
    .unwrap()
}

fn any_op() -> impl Strategy<Value = StoreOp> {
    let number = 0..6_u8;
    prop_oneof![
        Just(StoreOp::PutTopology(topology())),
        number.clone().prop_map(|number| StoreOp::PutVm(vm(number))),
        number
            .clone()
            .prop_map(|number| StoreOp::DeleteVm(vm(number).vm.name)),
        number
            .clone()
            .prop_map(|number| StoreOp::PutMigration(Box::new(migration(number)))),
        number
            .clone()
            .prop_map(|number| StoreOp::DeleteMigration(TransactionId(number.into()))),
        (number.clone(), any::<u64>()).prop_map(|(number, until)| {
            StoreOp::PutQuarantined(Quarantined {
                locator: [10, 1, 2, number].into(),
                until: Timestamp(until),
            })
        }),
        number
            .clone()
            .prop_map(|number| StoreOp::DeleteQuarantined([10, 1, 2, number].into())),
        number
            .clone()
            .prop_map(|n| StoreOp::PutDrained(RouterName::new(format!("edge{n}")))),
        number.prop_map(|n| StoreOp::DeleteDrained(RouterName::new(format!("edge{n}")))),
        any::<u64>().prop_map(StoreOp::PutNextId),
    ]
}

/// Order within a table is no part of what is stored.
fn sorted(mut stored: Stored) -> Stored {
    stored
        .vms
        .sort_by(|one, other| one.vm.name.cmp(&other.vm.name));
    stored.migrations.sort_by_key(|record| record.id);
    stored.quarantined.sort_by_key(|record| record.locator);
    stored
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The reference is [`Stored::apply`]; the store is opened anew after every batch.
    #[test]
    fn store_holds_what_was_applied(batches in prop::collection::vec(prop::collection::vec(any_op(), 0..8), 0..6)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let mut expected = Stored::default();
        for batch in batches {
            let mut store = FileStore::open(&path).unwrap();
            prop_assert_eq!(sorted(store.load().unwrap()), sorted(expected.clone()));
            store.apply(&batch).unwrap();
            for op in batch {
                expected.apply(op);
            }
            prop_assert_eq!(sorted(store.load().unwrap()), sorted(expected.clone()));
        }
    }

    /// Whatever happens to its bytes, a store opens with sound content or is refused.
    #[test]
    fn damaged_file_is_an_error_or_sound(at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..64)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let mut store = FileStore::open(&path).unwrap();
        store.apply(&[StoreOp::PutTopology(topology()), StoreOp::PutVm(vm(1)), StoreOp::PutNextId(7)]).unwrap();
        drop(store);
        let mut content = fs::read(&path).unwrap();
        let at = at.index(content.len());
        for (byte, damage) in content[at..].iter_mut().zip(bytes) {
            *byte = damage;
        }
        fs::write(&path, content).unwrap();
        match FileStore::open(&path).and_then(|mut store| store.load()) {
            Ok(_) => {}
            Err(error) => prop_assert!(error.to_string().contains("store.redb"), "{}", error),
        }
    }
}

fn open_error(path: &Path) -> StoreError {
    FileStore::open(path).unwrap_err()
}

#[test]
fn foreign_files_are_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    for content in [
        &b"x"[..],
        b"not a database, but long enough to look into",
        &[0; 8192],
    ] {
        fs::write(&path, content).unwrap();
        assert!(matches!(open_error(&path), StoreError::Foreign(_)));
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    fs::remove_file(&path).unwrap();
    let table: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("theirs");
    let database = redb::Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(table).unwrap().insert(1, 1).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(open_error(&path), StoreError::Foreign(_)));
}

fn overwrite(path: &Path, table: &'static str, key: &'static str, value: &[u8]) {
    let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new(table);
    let database = redb::Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(table).unwrap().insert(key, value).unwrap();
    write.commit().unwrap();
}

#[test]
fn other_versions_and_damaged_records_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut store = FileStore::open(&path).unwrap();
    store.apply(&[StoreOp::PutVm(vm(1))]).unwrap();
    drop(store);

    overwrite(&path, "vms", "vm1", b"{\"vm\":");
    let error = FileStore::open(&path).unwrap().load().unwrap_err();
    assert!(
        matches!(&error, StoreError::Damaged { what, .. } if what == "a VM"),
        "{error}"
    );
    assert!(error.to_string().contains("backup"));

    overwrite(&path, "natmig", "format", b"999");
    let error = open_error(&path);
    assert!(
        matches!(error, StoreError::Version { found: 999, .. }),
        "{error}"
    );
}

#[test]
fn one_controller_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = FileStore::open(&path).unwrap();
    assert!(matches!(open_error(&path), StoreError::InUse(_)));
    drop(store);
    FileStore::open(&path).unwrap();
}

#[test]
fn terms_only_grow() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut terms = Vec::new();
    for clock in [1000, 1000, 5, 3000] {
        terms.push(FileStore::open(&path).unwrap().begin_term(clock).unwrap());
    }
    assert_eq!(terms, [1000, 1001, 1002, 3000]);
}

#[test]
fn unusable_paths_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open_error(&file.join("store.redb"));
    assert!(error.to_string().contains("file"), "{error}");
    assert!(matches!(
        open_error(directory.path()),
        StoreError::System { .. }
    ));
}

//! What the file store does with files that are not its own.

use std::{fs, net::IpAddr, path::Path};

use natmig::{
    addresses::Addresses,
    coordinator::StoreOp,
    store::{FileStore, Store, StoreError},
    topology::Topology,
};
use proptest::prelude::*;

use crate::records::{topology, vm};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

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

/// A store as natmig wrote it before it knew IPv6.
#[test]
fn an_ipv4_store_is_upgraded() {
    type Numbered = redb::TableDefinition<'static, u64, &'static [u8]>;
    const SEGMENT: &str =
        r#""prefix":"10.1.1.0/24","gateway":"10.1.1.1","pool":"10.1.1.128/25","routers":["edge1"]"#;
    const VM: &str =
        r#""vm":{"name":"vm1","identity":"10.1.1.1","mac":"02:00:00:00:00:01","home":"rack1"}"#;
    const AWAY: &str = r#""current":{"segment":"rack2","locator":"10.1.2.1"},"draining":[{"segment":"rack3","locator":"10.1.3.1"}],"returned":false"#;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let single = |key, value: &str| overwrite(&path, "natmig", key, value.as_bytes());
    single("format", "1");
    single("term", "7");
    single("next_id", "5");
    single(
        "topology",
        &format!(
            r#"{{"drain":{{"secs":1,"nanos":0}},"quarantine":{{"secs":30,"nanos":0}},"routers":{{"edge1":"edge"}},"segments":{{"rack1":{{{SEGMENT}}}}}}}"#
        ),
    );
    overwrite(&path, "vms", "vm1", format!("{{{VM},{AWAY}}}").as_bytes());
    let home = format!(r#"{{{VM},"current":null,"draining":[],"returned":false}}"#);
    let record = format!(
        r#"{{"id":4,"moves":[{{"before":{home},"after":{{{VM},{AWAY}}}}}],"activation":"manual","activated":true,"unreachable":"wait","phase":"draining","times":[["preparing",1]],"drain_until":5,"error":null,"routers":{{}},"uncleared":[]}}"#
    );
    let database = redb::Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    for (table, key, value) in [
        ("migrations", 4, record.as_str()),
        (
            "quarantined",
            0x0a01_0203,
            r#"{"locator":"10.1.2.3","until":9}"#,
        ),
    ] {
        let mut table = write.open_table(Numbered::new(table)).unwrap();
        table.insert(key, value.as_bytes()).unwrap();
    }
    let drained: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("drained");
    write.open_table(drained).unwrap();
    write.commit().unwrap();
    drop(database);

    let mut store = FileStore::open(&path).unwrap();
    let stored = store.load().unwrap();
    let one = |address: [u8; 4]| Addresses::from(IpAddr::from(address));
    assert_eq!(
        stored.topology,
        Some(topology()).map(|it| Topology {
            quarantine: std::time::Duration::from_secs(30),
            ..it
        })
    );
    let state = &stored.vms[0];
    assert_eq!(state.vm.identities, one([10, 1, 1, 1]));
    assert_eq!(state.current.as_ref().unwrap().locators, one([10, 1, 2, 1]));
    assert_eq!(state.draining[0].locators, one([10, 1, 3, 1]));
    assert_eq!(stored.migrations[0].moves[0].after, *state);
    assert_eq!(stored.quarantined[0].locator, IpAddr::from([10, 1, 2, 3]));
    assert_eq!(stored.next_id, 5);
    assert_eq!(store.begin_term(1).unwrap(), 8);
    drop(store);
    // It stays upgraded, and quarantines end as others do.
    let mut store = FileStore::open(&path).unwrap();
    assert_eq!(store.load().unwrap(), stored);
    store
        .apply(&[StoreOp::DeleteQuarantined([10, 1, 2, 3].into())])
        .unwrap();
    assert!(store.load().unwrap().quarantined.is_empty());
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

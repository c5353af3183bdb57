//! The store in one file: redb, records as JSON.
//!
//! redb locks its file, so a second controller on it is refused; it checksums its pages and commits
//! by one pointer, so a crash leaves the last commit, whole.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition, TableHandle as _,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Leadership, Store, StoreError};
use crate::{
    audit::KEPT,
    coordinator::{StoreOp, Stored},
};

/// Version of what the tables hold.
const FORMAT: u64 = 2;

/// The version before, of IPv4 alone: a store that has it is upgraded when it is opened.
const IPV4_FORMAT: u64 = 1;

/// First bytes of every redb file.
const REDB_MAGIC: &[u8; 4] = b"redb";

type Definition = TableDefinition<'static, &'static str, &'static [u8]>;
type NumberedDefinition = TableDefinition<'static, u64, &'static [u8]>;

/// Single values, by the keys below.
const NATMIG: Definition = TableDefinition::new("natmig");
const FORMAT_KEY: &str = "format";
const TERM_KEY: &str = "term";
const NEXT_ID_KEY: &str = "next_id";
const TOPOLOGY_KEY: &str = "topology";

/// VMs by name.
const VMS: Definition = TableDefinition::new("vms");
/// Migrations by number.
const MIGRATIONS: NumberedDefinition = TableDefinition::new("migrations");
/// Locators in quarantine, by address as text.
const QUARANTINED: Definition = TableDefinition::new("quarantined_locators");
/// The same in [`IPV4_FORMAT`], by address as a number.
const IPV4_QUARANTINED: NumberedDefinition = TableDefinition::new("quarantined");
/// What operators did, by number.
const AUDIT: NumberedDefinition = TableDefinition::new("audit");
/// Drained routers by name.
const DRAINED: Definition = TableDefinition::new("drained");

/// A store in a file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    database: ManuallyDrop<Database>,
}

impl Drop for FileStore {
    fn drop(&mut self) {
        let database = &mut self.database;
        let closed = guarded(&self.path, || {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(database) }
        });
        if let Err(error) = closed {
            tracing::error!(%error, "cannot close the store");
        }
    }
}

impl FileStore {
    /// Opens the store, or begins one where there is no file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let system = |source| StoreError::System {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(system)?;
        }
        let mut magic = [0; 4];
        match fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
            Ok(()) if magic == *REDB_MAGIC => {}
            Ok(()) => return Err(StoreError::Foreign(path.to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                if fs::metadata(path).map_err(system)?.len() != 0 {
                    return Err(StoreError::Foreign(path.to_owned()));
                }
            }
            Err(source) => return Err(system(source)),
        }
        let database = guarded(path, || Database::create(path))?.map_err(|error| {
            if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
                StoreError::InUse(path.to_owned())
            } else if let DatabaseError::Storage(StorageError::Io(source)) = error {
                system(source)
            } else {
                damaged(path, "the file", &error)
            }
        })?;
        let mut store = Self {
            path: path.to_owned(),
            database: ManuallyDrop::new(database),
        };
        store.check_format()?;
        Ok(store)
    }

    /// Makes sure that the tables are there, and are of this program's version.
    fn check_format(&mut self) -> Result<(), StoreError> {
        let tables = self.read(|read| {
            Ok(read
                .list_tables()?
                .map(|table| table.name().to_owned())
                .collect::<Vec<_>>())
        })?;
        if tables.is_empty() {
            return self.write(|write| {
                put(&mut write.open_table(NATMIG)?, FORMAT_KEY, &FORMAT)?;
                write.open_table(VMS)?;
                write.open_table(MIGRATIONS)?;
                write.open_table(QUARANTINED)?;
                write.open_table(DRAINED)?;
                write.open_table(AUDIT)?;
                Ok(())
            });
        }
        if !tables.iter().any(|table| table == NATMIG.name()) {
            return Err(StoreError::Foreign(self.path.clone()));
        }
        // A store that was begun without an audit log is given one: nothing else in it changes.
        if !tables.iter().any(|table| table == AUDIT.name()) {
            self.write(|write| {
                write.open_table(AUDIT)?;
                Ok(())
            })?;
        }
        match self.value::<u64>(FORMAT_KEY)? {
            Some(FORMAT) => Ok(()),
            Some(IPV4_FORMAT) => self.upgrade(),
            Some(found) => Err(StoreError::Version {
                path: self.path.clone(),
                found,
                expected: FORMAT,
            }),
            None => Err(StoreError::Foreign(self.path.clone())),
        }
    }

    /// Writes all that an IPv4 store holds as this program does: all or nothing.
    fn upgrade(&mut self) -> Result<(), StoreError> {
        let stored = self.load_with(IPV4_QUARANTINED)?;
        self.write(|write| {
            write.delete_table(IPV4_QUARANTINED)?;
            let mut natmig = write.open_table(NATMIG)?;
            if let Some(topology) = &stored.topology {
                put(&mut natmig, TOPOLOGY_KEY, topology)?;
            }
            let mut vms = write.open_table(VMS)?;
            for state in &stored.vms {
                put(&mut vms, state.vm.name.as_str(), state)?;
            }
            let mut migrations = write.open_table(MIGRATIONS)?;
            for record in &stored.migrations {
                put_numbered(&mut migrations, record.id.0, record)?;
            }
            let mut quarantined = write.open_table(QUARANTINED)?;
            for record in &stored.quarantined {
                put(&mut quarantined, &record.locator.to_string(), record)?;
            }
            put(&mut natmig, FORMAT_KEY, &FORMAT)
        })
    }

    fn failed(&self, error: &redb::Error) -> StoreError {
        StoreError::Database {
            path: self.path.clone(),
            problem: error.to_string(),
        }
    }

    /// One transaction, on disk when this returns.
    fn write(
        &mut self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let database = &self.database;
        guarded(&self.path, || -> Result<(), redb::Error> {
            let write = database.begin_write()?;
            change(&write)?;
            write.commit()?;
            Ok(())
        })?
        .map_err(|error| self.failed(&error))
    }

    fn read<T>(
        &self,
        access: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        guarded(&self.path, || access(&self.database.begin_read()?))?
            .map_err(|error| self.failed(&error))
    }

    /// A single value.
    fn value<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let bytes = self.read(|read| {
            let table = read.open_table(NATMIG)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        })?;
        bytes.map(|bytes| self.decode(&bytes, key)).transpose()
    }

    /// All values of a table.
    fn values<K, T>(
        &self,
        definition: TableDefinition<'static, K, &'static [u8]>,
        what: &str,
    ) -> Result<Vec<T>, StoreError>
    where
        K: redb::Key + 'static,
        T: DeserializeOwned,
    {
        let records = self.read(|read| {
            let table = read.open_table(definition)?;
            let mut records = Vec::new();
            for record in table.iter()? {
                records.push(record?.1.value().to_vec());
            }
            Ok(records)
        })?;
        records
            .iter()
            .map(|bytes| self.decode(bytes, what))
            .collect()
    }

    /// Everything, quarantines from this table.
    fn load_with<K: redb::Key + 'static>(
        &self,
        quarantined: TableDefinition<'static, K, &'static [u8]>,
    ) -> Result<Stored, StoreError> {
        Ok(Stored {
            topology: self.value(TOPOLOGY_KEY)?,
            vms: self.values(VMS, "a VM")?,
            migrations: self.values(MIGRATIONS, "a migration")?,
            quarantined: self.values(quarantined, "a quarantine")?,
            drained: self
                .values(DRAINED, "a drained router")?
                .into_iter()
                .collect(),
            next_id: self.value(NEXT_ID_KEY)?.unwrap_or_default(),
            audit: self.values(AUDIT, "an audit record")?,
        })
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8], what: &str) -> Result<T, StoreError> {
        serde_json::from_slice(bytes).map_err(|error| damaged(&self.path, what, &error))
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        self.load_with(QUARANTINED)
    }

    fn apply(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        self.write(|write| {
            let mut natmig = write.open_table(NATMIG)?;
            let mut vms = write.open_table(VMS)?;
            let mut migrations = write.open_table(MIGRATIONS)?;
            let mut quarantined = write.open_table(QUARANTINED)?;
            let mut drained = write.open_table(DRAINED)?;
            let mut audit = write.open_table(AUDIT)?;
            for op in ops {
                match op {
                    StoreOp::PutTopology(topology) => put(&mut natmig, TOPOLOGY_KEY, topology)?,
                    StoreOp::PutNextId(next_id) => put(&mut natmig, NEXT_ID_KEY, next_id)?,
                    StoreOp::PutVm(state) => put(&mut vms, state.vm.name.as_str(), state)?,
                    StoreOp::DeleteVm(name) => {
                        vms.remove(name.as_str())?;
                    }
                    StoreOp::PutMigration(record) => {
                        put_numbered(&mut migrations, record.id.0, record)?;
                    }
                    StoreOp::DeleteMigration(id) => {
                        migrations.remove(id.0)?;
                    }
                    StoreOp::PutQuarantined(record) => {
                        put(&mut quarantined, &record.locator.to_string(), record)?;
                    }
                    StoreOp::DeleteQuarantined(locator) => {
                        quarantined.remove(locator.to_string().as_str())?;
                    }
                    StoreOp::PutAudit(record) => {
                        put_numbered(&mut audit, record.id, record)?;
                        if let Some(forgotten) = record.id.checked_sub(KEPT) {
                            audit.remove(forgotten)?;
                        }
                    }
                    StoreOp::DeleteAudit(id) => {
                        audit.remove(id)?;
                    }
                    StoreOp::PutDrained(router) => put(&mut drained, router.as_str(), router)?,
                    StoreOp::DeleteDrained(router) => {
                        drained.remove(router.as_str())?;
                    }
                }
            }
            Ok(())
        })
    }

    fn begin_term(&mut self, at_least: u64) -> Result<u64, StoreError> {
        let last: u64 = self.value(TERM_KEY)?.unwrap_or_default();
        let term = at_least.max(last + 1);
        self.write(|write| put(&mut write.open_table(NATMIG)?, TERM_KEY, &term))?;
        Ok(term)
    }

    fn confirm(&mut self) -> Result<(), StoreError> {
        // The file is locked: nobody else leads.
        Ok(())
    }

    fn leadership(&self) -> Leadership {
        Leadership::ALONE
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Io(error.into()))
}

fn put<T: Serialize>(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &str,
    value: &T,
) -> Result<(), redb::Error> {
    table.insert(key, json(value)?.as_slice())?;
    Ok(())
}

fn put_numbered<T: Serialize>(
    table: &mut redb::Table<'_, u64, &'static [u8]>,
    key: u64,
    value: &T,
) -> Result<(), redb::Error> {
    table.insert(key, json(value)?.as_slice())?;
    Ok(())
}

fn damaged(path: &Path, what: &str, problem: &dyn std::error::Error) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
        problem: problem.to_string(),
    }
}

/// redb panics on some kinds of damage; an operator gets an error instead.
fn guarded<T>(path: &Path, access: impl FnOnce() -> T) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(access)).map_err(|panic| StoreError::Damaged {
        path: path.to_owned(),
        what: "the file".to_owned(),
        problem: panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "it cannot be read".to_owned()),
    })
}

//! The pinned maps of an instance, opened.

use std::path::Path;

use natmig_common::{
    ABI_VERSION, Activity, BindingTraffic, Entry, Interface, META_MAGIC, Meta, PoolKey, Slot,
    Traffic, names,
};

use super::{
    RouterError,
    bpf::{MapHandle, Shared},
};

/// All maps of an instance. Arrays that userspace writes in place are memory-mapped.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) meta: Shared<Meta>,
    pub(super) entries: Shared<Entry>,
    pub(super) transactions: Shared<Slot>,
    pub(super) activity: Shared<Activity>,
    pub(super) index: MapHandle,
    pub(super) interfaces: MapHandle,
    pub(super) pools: MapHandle,
    pub(super) counters: MapHandle,
    pub(super) binding_counters: MapHandle,
    /// Bytes of kernel memory that all maps take.
    pub(super) bytes: u64,
}

impl Maps {
    /// Opens the maps pinned in a directory, without looking at what they hold.
    pub(super) fn open(directory: &Path, read_only: bool) -> Result<Self, RouterError> {
        let mut bytes = 0;
        let mut open = |name: &str, key_size, value_size| {
            let path = directory.join(name);
            let doing = format!("open the pinned map {}", path.display());
            // The kernel maps a map into memory, even for reading, only from a descriptor that may
            // write; what is mapped read-only cannot be written all the same.
            let map = MapHandle::open(&path, key_size, value_size, false)
                .map_err(RouterError::system(&*doing))?;
            bytes += map.memory().map_err(RouterError::system(doing))?;
            Ok::<_, RouterError>(map)
        };
        let meta = open(names::META, 4, size_of::<Meta>())?;
        let entries = open(names::ENTRIES, 4, size_of::<Entry>())?;
        let transactions = open(names::TRANSACTIONS, 4, size_of::<Slot>())?;
        let activity = open(names::ACTIVITY, 4, size_of::<Activity>())?;
        let index = open(names::INDEX_IPV4, 4, 4)?;
        let interfaces = open(names::INTERFACES, 4, size_of::<Interface>())?;
        let pools = open(names::POOLS_IPV4, size_of::<PoolKey>(), 4)?;
        let counters = open(names::COUNTERS, 4, size_of::<Traffic>())?;
        let binding_counters = open(names::BINDING_COUNTERS, 4, size_of::<BindingTraffic>())?;
        let doing = || RouterError::system("map the tables into memory");
        Ok(Self {
            meta: meta.map_memory(!read_only).map_err(doing())?,
            entries: entries.map_memory(!read_only).map_err(doing())?,
            transactions: transactions.map_memory(!read_only).map_err(doing())?,
            activity: activity.map_memory(!read_only).map_err(doing())?,
            index,
            interfaces,
            pools,
            counters,
            binding_counters,
            bytes,
        })
    }

    /// What the maps pinned in a directory are: `None` if there are none, or none that a load
    /// finished making.
    pub(super) fn probe(directory: &Path) -> Result<Option<Meta>, RouterError> {
        let path = directory.join(names::META);
        if !path.exists() {
            return Ok(None);
        }
        let Ok(map) = MapHandle::open(&path, 4, size_of::<Meta>(), true) else {
            return Err(RouterError::NotOurs { path });
        };
        let meta: Option<Meta> = map
            .lookup(&0_u32)
            .map_err(RouterError::system(format!("read {}", path.display())))?;
        match meta {
            // The magic is written last: what has none holds nothing.
            None | Some(Meta { magic: 0, .. }) => Ok(None),
            Some(meta) if meta.magic != META_MAGIC => Err(RouterError::NotOurs { path }),
            Some(meta) if meta.abi_version != ABI_VERSION => Err(RouterError::Abi {
                path: directory.to_owned(),
                found: meta.abi_version,
                expected: ABI_VERSION,
            }),
            Some(meta) => Ok(Some(meta)),
        }
    }
}

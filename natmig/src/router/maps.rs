//! The pinned maps of an instance, opened.

use std::{
    mem,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

use bytemuck::Zeroable as _;
use natmig_common::{
    ABI_VERSION, Activity, Aligned, Awaited, AwaitedKey, BindingKey, BindingTotal, BlockBucket,
    Entry, Heartbeat, Interface, InterfaceTraffic, Ipv4, Ipv6, META_MAGIC, Meta, NextHop,
    PackedTraffic, PoolMask, PrefixBucket, PrefixIpv4, Settled, Slot, VlanKey, binding_counter,
    names,
};

use super::{
    RouterError,
    bpf::{MapHandle, Shared},
    family::Net,
};

/// How often, and for how long, a CPU is asked that is always processing a packet when it is.
const ATTEMPTS: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(1);

/// The maps of one family that have an element per bound address.
#[derive(Debug)]
pub(super) struct FamilyMaps<F: Net> {
    pub(super) entries: Shared<Entry<F>>,
    pub(super) settled: Shared<Settled<F>>,
    aligned: Shared<Aligned>,
    pub(super) index: MapHandle,
    /// See [`binding_counter`]; one element alone if nothing counts.
    pub(super) counters: Shared<PackedTraffic>,
}

impl<F: Net> FamilyMaps<F> {
    /// Number of entries.
    pub(super) fn capacity(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// The binding counters of an entry, one pair per bank: traffic to its address, and from it.
    pub(super) fn counters_of(&self, entry: u32) -> impl Iterator<Item = [&AtomicU64; 2]> {
        let capacity = self.capacity();
        (0..self.banks()).map(move |bank| {
            [true, false].map(|to| {
                let counter = binding_counter(bank, capacity, entry, to);
                &self.counters.words(counter as usize)[0]
            })
        })
    }

    /// Banks of counters; 0 if nothing is counted.
    pub(super) fn banks(&self) -> u32 {
        let banks = self.counters.len().checked_div(2 * self.entries.len());
        u32::try_from(banks.unwrap_or(0)).unwrap_or(0)
    }

    /// Says what may be known of an entry without looking at it; unspecified for nothing.
    pub(super) fn set_settled(&self, entry: u32, counterpart: F::Octets) {
        let is_aligned = counterpart != F::UNSPECIFIED && self.lies_aligned(entry, counterpart);
        if !is_aligned {
            self.set_aligned(entry, false);
        }
        let settled = Settled::<F> {
            counterpart,
            ..Settled::zeroed()
        };
        let (first, second) = bytemuck::bytes_of(&settled).split_at(8);
        if counterpart != F::UNSPECIFIED {
            self.settled.write(entry as usize, 8, second);
        }
        self.settled.write(entry as usize, 0, first);
        if is_aligned {
            self.set_aligned(entry, true);
        }
    }

    /// Whether an entry's counterpart lies where the base of its [`Aligned`] says. The first one says
    /// where that is.
    fn lies_aligned(&self, entry: u32, counterpart: F::Octets) -> bool {
        let (element, place) = Aligned::place(entry);
        let known = self.aligned.get(element as usize).base;
        let base = F::minus(counterpart, place);
        let base = bytemuck::bytes_of(&base);
        if base.iter().all(|octet| *octet == 0) {
            // That stands for none.
            return false;
        }
        if known == [0; 16] {
            self.set_base(element, base);
        }
        known == [0; 16] || known.starts_with(base)
    }

    /// Sets the base of an element of [`Aligned`] that has said nothing of any entry for a grace period; none
    /// for no octets.
    pub(super) fn set_base(&self, element: u32, base: &[u8]) {
        let mut whole = [0; 16];
        whole[..base.len()].copy_from_slice(base);
        let offset = mem::offset_of!(Aligned, base);
        self.aligned.write(element as usize, offset, &whole);
    }

    /// Says whether an entry's counterpart lies where the base of its [`Aligned`] says.
    fn set_aligned(&self, entry: u32, is_aligned: bool) {
        let (element, place) = Aligned::place(entry);
        let offset = mem::offset_of!(Aligned, bits) + place as usize / 64 * 8;
        let bit = 1 << (place % 64);
        let word = self.aligned.load(element as usize, offset);
        let changed = if is_aligned { word | bit } else { word & !bit };
        if changed != word {
            self.aligned.publish(element as usize, offset, changed);
        }
    }

    /// The elements of [`Aligned`] that have one of these entries, and say nothing of any entry.
    pub(super) fn unaligned(&self, entries: &[u32]) -> Vec<u32> {
        let mut elements: Vec<u32> = entries.iter().map(|it| Aligned::place(*it).0).collect();
        elements.sort_unstable();
        elements.dedup();
        elements.retain(|element| self.aligned.get(*element as usize).bits == [0; 4]);
        elements
    }

    /// Forgets the bases of elements that have said nothing of any entry for a grace period: the next
    /// counterpart may lie anywhere.
    pub(super) fn forget_bases(&self, elements: &[u32]) {
        for element in elements {
            self.set_base(*element, &[]);
        }
    }
}

/// All maps of an instance. Arrays that userspace writes in place are memory-mapped.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) meta: Shared<Meta>,
    pub(super) ipv4: FamilyMaps<Ipv4>,
    pub(super) ipv6: FamilyMaps<Ipv6>,
    pub(super) prefixes_ipv4: Shared<PrefixIpv4>,
    pub(super) pool_masks: Shared<PoolMask>,
    pub(super) prefixes_ipv6: Shared<PrefixBucket>,
    pub(super) blocks_ipv6: Shared<BlockBucket>,
    pub(super) transactions: Shared<Slot>,
    pub(super) activity: Shared<Activity>,
    /// Words of [`natmig_common::Route`].
    #[expect(dead_code, reason = "the keeper of next hops writes it")]
    pub(super) routes: Shared<u64>,
    #[expect(dead_code, reason = "the keeper of next hops writes it")]
    pub(super) next_hops: Shared<NextHop>,
    pub(super) heartbeat: Shared<Heartbeat>,
    pub(super) interfaces: MapHandle,
    pub(super) devices: MapHandle,
    pub(super) vlans: MapHandle,
    pub(super) counters: MapHandle,
    pub(super) totals: MapHandle,
    pub(super) awaited: MapHandle,
    /// [`names::BANK_PROGRAM`].
    bank: Option<OwnedFd>,
}

/// Bytes of kernel memory that an instance's maps take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MapBytes {
    /// What grows with the IPv4 addresses that there is room for, or that are bound.
    pub ipv4: u64,
    /// As `ipv4`.
    pub ipv6: u64,
    /// All else.
    pub shared: u64,
}

impl MapBytes {
    /// All together.
    pub const fn total(&self) -> u64 {
        self.ipv4 + self.ipv6 + self.shared
    }

    /// What the maps pinned in a directory take, as they are.
    pub(super) fn of(directory: &Path) -> Result<Self, RouterError> {
        let mut bytes = Self::default();
        for name in names::MAPS {
            let path = directory.join(name);
            let memory = super::bpf::open_pin(&path, false)
                .and_then(MapHandle::new)
                .and_then(|map| map.memory())
                .map_err(RouterError::system(format!(
                    "open the pinned map {}",
                    path.display()
                )))?;
            match name {
                names::ENTRIES_IPV4
                | names::SETTLED_IPV4
                | names::ALIGNED_IPV4
                | names::INDEX_IPV4
                | names::BINDING_COUNTERS_IPV4 => {
                    bytes.ipv4 += memory;
                }
                names::ENTRIES_IPV6
                | names::SETTLED_IPV6
                | names::ALIGNED_IPV6
                | names::INDEX_IPV6
                | names::BINDING_COUNTERS_IPV6 => {
                    bytes.ipv6 += memory;
                }
                _ => bytes.shared += memory,
            }
        }
        Ok(bytes)
    }
}

impl Maps {
    /// Opens the maps pinned in a directory, without looking at what they hold. `bank` is
    /// [`names::BANK_PROGRAM`], without which [`Maps::bank`] does nothing.
    pub(super) fn open(
        directory: &Path,
        read_only: bool,
        bank: Option<OwnedFd>,
    ) -> Result<Self, RouterError> {
        let opener = Opener {
            directory,
            read_only,
        };
        Ok(Self {
            meta: opener.memory(names::META)?,
            ipv4: FamilyMaps {
                entries: opener.memory(names::ENTRIES_IPV4)?,
                settled: opener.memory(names::SETTLED_IPV4)?,
                aligned: opener.memory(names::ALIGNED_IPV4)?,
                index: opener.map::<[u8; 4], u32>(names::INDEX_IPV4)?,
                counters: opener.memory(names::BINDING_COUNTERS_IPV4)?,
            },
            ipv6: FamilyMaps {
                entries: opener.memory(names::ENTRIES_IPV6)?,
                settled: opener.memory(names::SETTLED_IPV6)?,
                aligned: opener.memory(names::ALIGNED_IPV6)?,
                index: opener.map::<[u8; 16], u32>(names::INDEX_IPV6)?,
                counters: opener.memory(names::BINDING_COUNTERS_IPV6)?,
            },
            prefixes_ipv4: opener.memory(names::PREFIXES_IPV4)?,
            pool_masks: opener.memory(names::POOL_MASKS)?,
            prefixes_ipv6: opener.memory(names::PREFIXES_IPV6)?,
            blocks_ipv6: opener.memory(names::BLOCKS_IPV6)?,
            transactions: opener.memory(names::TRANSACTIONS)?,
            activity: opener.memory(names::ACTIVITY)?,
            routes: opener.memory(names::ROUTES)?,
            next_hops: opener.memory(names::NEXT_HOPS)?,
            heartbeat: opener.memory(names::HEARTBEAT)?,
            interfaces: opener.map::<u32, Interface>(names::INTERFACES)?,
            devices: opener.map::<u32, [u32; 2]>(names::DEVICES)?,
            vlans: opener.map::<VlanKey, u32>(names::VLANS)?,
            counters: opener.map::<u32, InterfaceTraffic>(names::COUNTERS)?,
            totals: opener.map::<BindingKey, BindingTotal>(names::BINDING_TOTALS)?,
            awaited: opener.map::<AwaitedKey, Awaited>(names::AWAITED)?,
            bank,
        })
    }

    /// As [`Maps::bank`], before counters are reset or moved. What cannot be done is warned of: then a few
    /// packets of an address that is gone may be counted for one that comes.
    pub(super) fn bank_for_reuse(&self) {
        if let Err(error) = self.bank() {
            tracing::warn!(%error, "traffic by binding may be off by a few packets");
        }
    }

    /// Has every CPU add to the counters by binding what it has not added yet: see
    /// [`natmig_common::Unbanked`]. What was counted before the call is in them then.
    pub(super) fn bank(&self) -> Result<(), RouterError> {
        let Some(program) = &self.bank else {
            return Ok(());
        };
        for cpu in 0..u32::try_from(self.activity.len()).unwrap_or(u32::MAX) {
            let start = Instant::now();
            let mut attempts = 0;
            loop {
                attempts += 1;
                match super::bpf::run_on_cpu(program.as_fd(), cpu) {
                    Ok(0) => break,
                    // It is processing a packet, as it happens.
                    Ok(_) if attempts < ATTEMPTS || start.elapsed() < PATIENCE => {
                        std::thread::yield_now();
                    }
                    Ok(_) => return Err(RouterError::BusyCpu(cpu)),
                    // There is no such CPU, or it is switched off.
                    Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
                    Err(error) => {
                        let doing = "have the counters by binding brought up to date";
                        return Err(RouterError::system(doing)(error));
                    }
                }
            }
        }
        Ok(())
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

/// Opens the maps of a directory.
struct Opener<'a> {
    directory: &'a Path,
    read_only: bool,
}

impl Opener<'_> {
    fn doing(&self, name: &str) -> String {
        format!(
            "open the pinned map {}",
            self.directory.join(name).display()
        )
    }

    fn map<K, V>(&self, name: &str) -> Result<MapHandle, RouterError> {
        // The kernel maps a map into memory, even for reading, only from a descriptor that may
        // write; what is mapped read-only cannot be written all the same.
        let path = self.directory.join(name);
        MapHandle::open(&path, size_of::<K>(), size_of::<V>(), false)
            .map_err(RouterError::system(self.doing(name)))
    }

    fn memory<V: bytemuck::Pod>(&self, name: &str) -> Result<Shared<V>, RouterError> {
        self.map::<u32, V>(name)?
            .map_memory(!self.read_only)
            .map_err(RouterError::system(format!("map {name} into memory")))
    }
}

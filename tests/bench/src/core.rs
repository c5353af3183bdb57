//! natmig's program with tables that are written directly, without loader and agent: every setting
//! can be chosen by itself, so that the difference between two runs is the cost of one step.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, xdp::DevMap},
    programs::{Xdp, XdpMode},
};
use bytemuck::{AnyBitPattern, NoUninit, Zeroable as _};
use natmig_bench_ebpf::{BINDINGS, IN, OUT};
use natmig_common::{
    ABI_VERSION, Action, Aligned, BLOCK_BUCKETS, BLOCK_LENGTH, BlockBucket, BlockIpv6,
    CHUNK_LENGTH, Counter, Entry, Heartbeat, Interface, Ipv4, Ipv6, META_MAGIC, Meta, NextHop,
    PREFIX_BLOCKS, PREFIX_BUCKETS, PREFIX_HASH, PrefixBucket, PrefixIpv4, PrefixIpv6, Role, Route,
    Settled, Version, WIDE_PREFIXES, buckets, names,
};

use crate::{
    site::{MACS, Site},
    traffic::{Area, Density},
};

/// What the program runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each can be chosen by itself"
)]
pub struct Settings {
    /// Whether traffic is counted by binding.
    pub counted: bool,
    /// Whether routes are its own; else the kernel is asked.
    pub own_routes: bool,
    /// Whether unbound traffic is forwarded.
    pub forward_all: bool,
    /// Whether entries are found through direct blocks; else through the hash index.
    pub blocks: bool,
}

impl Settings {
    /// Everything on.
    pub const ALL: Self = Self {
        counted: true,
        own_routes: true,
        forward_all: true,
        blocks: true,
    };
}

/// Entries of each family: identities, then locators, each in whole blocks.
const ENTRIES: u32 = 2 * FIRST_LOCATOR;
const FIRST_LOCATOR: u32 = BINDINGS.next_multiple_of(BLOCK_LENGTH);
/// Route to the fabric.
const OUTWARDS: u16 = 1;

/// The program, and its maps.
#[derive(Debug)]
pub struct Core {
    ebpf: Ebpf,
    /// The router's interfaces.
    devices: [u32; 2],
}

/// A memory-mapped array, as `T`s.
struct Memory<T> {
    start: *mut T,
    length: usize,
}

impl<T: AnyBitPattern + NoUninit> Memory<T> {
    fn map(map: &MapData) -> Result<Self> {
        let info = map.info()?;
        // Some tables are one element with all of it.
        let bytes = info.value_size() as usize * info.max_entries() as usize;
        ensure!(
            info.value_size() as usize == size_of::<T>()
                || info.max_entries() == 1 && bytes.is_multiple_of(size_of::<T>()),
            "{:?} is laid out differently",
            info.name_as_str()
        );
        let length = bytes / size_of::<T>();
        // SAFETY: a shared mapping of a whole map, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (length * size_of::<T>()).next_multiple_of(4096),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        ensure!(
            start != libc::MAP_FAILED,
            "cannot map {:?}: {}",
            info.name_as_str(),
            std::io::Error::last_os_error()
        );
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    fn get(&self, at: u32) -> T {
        assert!((at as usize) < self.length, "element {at}");
        // SAFETY: inside the mapping, as was checked.
        unsafe { self.start.add(at as usize).read_volatile() }
    }

    fn set(&self, at: u32, value: T) {
        assert!((at as usize) < self.length, "element {at}");
        // SAFETY: inside the mapping, as was checked, and no packet comes before all is written.
        unsafe { self.start.add(at as usize).write_volatile(value) }
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        let bytes = (self.length * size_of::<T>()).next_multiple_of(4096);
        // SAFETY: the mapping is this value's own.
        let refused = unsafe { libc::munmap(self.start.cast(), bytes) };
        debug_assert_eq!(refused, 0, "the mapping exists");
    }
}

/// Says of the entry that its counterpart lies in the same order as it does, if that is so.
fn align<F: natmig_common::Family>(aligned: &Memory<Aligned>, number: u32, counterpart: F::Octets) {
    let (element, place) = Aligned::place(number);
    let base = F::minus(counterpart, place);
    let base = bytemuck::bytes_of(&base);
    let mut element_now = aligned.get(element);
    if element_now.bits == [0; 4] {
        element_now.base[..base.len()].copy_from_slice(base);
    }
    if element_now.base.starts_with(base) {
        element_now.bits[place as usize / 64] |= 1 << (place % 64);
        aligned.set(element, element_now);
    }
}

/// What may be known of an entry.
fn known<F: natmig_common::Family>(entry: &Entry<F>, in_pool: bool) -> Settled<F> {
    Settled {
        counterpart: Settled::counterpart_of(entry, in_pool),
        ..Settled::zeroed()
    }
}

impl Core {
    /// Loads the program for a site and fills its tables with [`BINDINGS`] dense bindings of each
    /// family.
    pub fn load(object: &Path, site: &Site, settings: Settings) -> Result<Self> {
        let banks = u32::from(settings.counted);
        let counters = (2 * banks * ENTRIES).max(1);
        let mut loader = EbpfLoader::new();
        let ebpf = loader
            .override_global("BINDING_BANKS", &banks, true)
            .override_global("ENTRY_CAPACITY_IPV4", &ENTRIES, true)
            .override_global("ENTRY_CAPACITY_IPV6", &ENTRIES, true)
            .override_global("WEAK_ORDER", &0u32, true)
            .override_global("FORWARD_ALL", &u32::from(settings.forward_all), true)
            .map_max_entries(names::ENTRIES_IPV4, ENTRIES)
            .map_max_entries(names::ENTRIES_IPV6, ENTRIES)
            .map_max_entries(names::SETTLED_IPV4, ENTRIES)
            .map_max_entries(names::SETTLED_IPV6, ENTRIES)
            .map_max_entries(names::ALIGNED_IPV4, Aligned::count(ENTRIES))
            .map_max_entries(names::ALIGNED_IPV6, Aligned::count(ENTRIES))
            .map_max_entries(names::INDEX_IPV4, ENTRIES)
            .map_max_entries(names::INDEX_IPV6, ENTRIES)
            .map_max_entries(names::BINDING_COUNTERS_IPV4, counters)
            .map_max_entries(names::BINDING_COUNTERS_IPV6, counters)
            .load_file(object)
            .with_context(|| format!("cannot load {}", object.display()))?;
        let mut core = Self {
            ebpf,
            devices: [0; 2],
        };
        core.program()?
            .load()
            .context("the kernel refuses natmig")?;
        core.fill(site, settings)?;
        Ok(core)
    }

    /// The program.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        let program = self
            .ebpf
            .program_mut(names::PROGRAM)
            .context("no program")?;
        Ok(program.try_into()?)
    }

    /// Attaches it to both interfaces of the calling thread's namespace.
    pub fn attach(&mut self) -> Result<()> {
        for interface in ["in", "out"] {
            self.program()?.attach(interface, XdpMode::Driver)?;
        }
        let map = self.ebpf.map_mut(names::DEVICES).context("no devices")?;
        let mut devices: DevMap<_> = map.try_into()?;
        for ifindex in self.devices {
            devices.set(ifindex, ifindex, None, 0)?;
        }
        Ok(())
    }

    fn memory<T: AnyBitPattern + NoUninit>(&self, name: &str) -> Result<Memory<T>> {
        let map = self
            .ebpf
            .map(name)
            .with_context(|| format!("no map {name}"))?;
        let aya::maps::Map::Array(map) = map else {
            anyhow::bail!("{name} is no array");
        };
        Memory::map(map)
    }

    /// Writes all tables.
    fn fill(&mut self, site: &Site, settings: Settings) -> Result<()> {
        self.memory(names::META)?.set(
            0,
            Meta {
                magic: META_MAGIC,
                abi_version: ABI_VERSION,
                entry_capacity: ENTRIES,
                interface_capacity: 64,
                entry_capacity_ipv6: ENTRIES,
                ..Meta::zeroed()
            },
        );
        let interfaces = self.memory::<Interface>(names::INTERFACES)?;
        let [_, inner, outer, far] = MACS;
        for (ifindex, role, slot, mac) in [
            (IN + site.lane, Role::External, 1, inner),
            (OUT + site.lane, Role::Fabric, 2, outer),
        ] {
            let element = Interface {
                role: role as u8,
                slot,
                mac,
                mtu: 1500,
                ..Interface::default()
            };
            interfaces.set(ifindex, element);
        }
        self.devices = [IN + site.lane, OUT + site.lane];
        self.memory::<NextHop>(names::NEXT_HOPS)?.set(
            0,
            NextHop {
                ifindex: OUT + site.lane,
                device: OUT + site.lane,
                mtu: 1500,
                role: Role::Fabric as u8,
                valid: 1,
                destination_mac: far,
                source_mac: outer,
                ..NextHop::default()
            },
        );
        let route = Route { first: 0, count: 1 };
        self.memory::<u64>(names::ROUTES)?
            .set(u32::from(OUTWARDS), route.word());
        self.memory::<Heartbeat>(names::HEARTBEAT)?.set(
            0,
            Heartbeat {
                patience: if settings.own_routes { u64::MAX } else { 0 },
                ..Heartbeat::default()
            },
        );
        self.fill_ipv4(settings)?;
        self.fill_ipv6(settings)
    }

    fn fill_ipv4(&mut self, settings: Settings) -> Result<()> {
        let (identities, locators) = areas();
        let entries = self.memory::<Entry<Ipv4>>(names::ENTRIES_IPV4)?;
        let settled = self.memory::<Settled<Ipv4>>(names::SETTLED_IPV4)?;
        let aligned = self.memory::<Aligned>(names::ALIGNED_IPV4)?;
        let prefixes = self.memory::<PrefixIpv4>(names::PREFIXES_IPV4)?;
        let mut chunk = 0;
        for (first, area, other, action) in [
            (0, identities, locators, Action::Away),
            (FIRST_LOCATOR, locators, identities, Action::Known),
        ] {
            let pool = if area == locators {
                PrefixIpv4::WHOLE
            } else {
                0
            };
            let start = u32::from(area.ipv4(0));
            for number in 0..BINDINGS {
                let version = Version {
                    action: action as u8,
                    counterpart: other.ipv4(number).octets(),
                    ..Version::zeroed()
                };
                let entry = Entry {
                    address: area.ipv4(number).octets(),
                    family: 4,
                    current: version,
                    ..Entry::zeroed()
                };
                entries.set(first + number, entry);
                settled.set(first + number, known(&entry, area == locators));
                align::<Ipv4>(&aligned, first + number, version.counterpart);
            }
            // All of the area's /8, the /16s with entries with a chunk.
            for wide in 0..256 {
                let mut element = PrefixIpv4 {
                    block: PrefixIpv4::NONE,
                    pool,
                    route: OUTWARDS,
                };
                if wide << 16 < BINDINGS {
                    element.block = chunk + PrefixIpv4::FIRST;
                    for narrow in 0..CHUNK_LENGTH {
                        let number = wide << 16 | narrow << 8;
                        let block = match settings.blocks {
                            _ if number >= BINDINGS => PrefixIpv4::NONE,
                            true => first + number + PrefixIpv4::FIRST,
                            false => PrefixIpv4::HASH,
                        };
                        let element = PrefixIpv4 {
                            block,
                            pool,
                            route: OUTWARDS,
                        };
                        prefixes.set(WIDE_PREFIXES + chunk * CHUNK_LENGTH + narrow, element);
                    }
                    chunk += 1;
                }
                prefixes.set((start >> 16) + wide, element);
            }
        }
        let untouched = u32::from(Area::Untouched.ipv4(0)) >> 16;
        for wide in 0..256 {
            let element = PrefixIpv4 {
                route: OUTWARDS,
                ..PrefixIpv4::default()
            };
            prefixes.set(untouched + wide, element);
        }
        if !settings.blocks {
            let map = self.ebpf.map_mut(names::INDEX_IPV4).context("no index")?;
            let mut index: HashMap<_, [u8; 4], u32> = map.try_into()?;
            for number in 0..BINDINGS {
                index.insert(identities.ipv4(number).octets(), number, 0)?;
                index.insert(locators.ipv4(number).octets(), FIRST_LOCATOR + number, 0)?;
            }
        }
        Ok(())
    }

    fn fill_ipv6(&mut self, settings: Settings) -> Result<()> {
        let (identities, locators) = areas();
        let entries = self.memory::<Entry<Ipv6>>(names::ENTRIES_IPV6)?;
        let settled = self.memory::<Settled<Ipv6>>(names::SETTLED_IPV6)?;
        let aligned = self.memory::<Aligned>(names::ALIGNED_IPV6)?;
        let prefixes = self.memory::<PrefixBucket>(names::PREFIXES_IPV6)?;
        let blocks = self.memory::<BlockBucket>(names::BLOCKS_IPV6)?;
        let mut homeless = Vec::new();
        let halves = |address: std::net::Ipv6Addr| {
            let bits = address.to_bits();
            ((bits >> 64) as u64, bits as u64)
        };
        for (first, area, other, action) in [
            (0, identities, locators, Action::Away),
            (FIRST_LOCATOR, locators, identities, Action::Known),
        ] {
            let mut last = None;
            for number in 0..BINDINGS {
                let address = area.ipv6(number);
                let version = Version {
                    action: action as u8,
                    counterpart: other.ipv6(number).octets(),
                    ..Version::zeroed()
                };
                let entry = Entry {
                    address: address.octets(),
                    family: 6,
                    current: version,
                    ..Entry::zeroed()
                };
                entries.set(first + number, entry);
                settled.set(first + number, known(&entry, area == locators));
                align::<Ipv6>(&aligned, first + number, version.counterpart);
                let (high, low) = halves(address);
                if low.trailing_zeros() >= 8 && settings.blocks {
                    let block = BlockIpv6 {
                        prefix: address.octets(),
                        first: first + number,
                        used: 1,
                        ..BlockIpv6::default()
                    };
                    let two = buckets(high, low, BLOCK_BUCKETS);
                    if !place(&blocks, two, &block, |bucket| &mut bucket.slots, |b| b.used) {
                        homeless.push((area, first, number));
                    }
                }
                if last != Some(high) {
                    last = Some(high);
                    let prefix = PrefixIpv6 {
                        prefix: high.to_be_bytes(),
                        used: 1,
                        flags: if settings.blocks {
                            PREFIX_BLOCKS | PREFIX_HASH
                        } else {
                            PREFIX_HASH
                        },
                        pool_length: if area == locators { 64 } else { 0 },
                        route: OUTWARDS,
                        ..PrefixIpv6::default()
                    };
                    let two = buckets(high, 0, PREFIX_BUCKETS);
                    let placed = place(
                        &prefixes,
                        two,
                        &prefix,
                        |bucket| &mut bucket.slots,
                        |p| p.used,
                    );
                    ensure!(placed, "no room for the prefix of {address}");
                }
            }
        }
        if !settings.blocks {
            homeless.extend([(identities, 0, 0), (locators, FIRST_LOCATOR, 0)]);
        }
        let count = if settings.blocks {
            BLOCK_LENGTH
        } else {
            BINDINGS
        };
        let map = self.ebpf.map_mut(names::INDEX_IPV6).context("no index")?;
        let mut index: HashMap<_, [u8; 16], u32> = map.try_into()?;
        for (area, first, start) in homeless {
            for number in start..(start + count).min(BINDINGS) {
                index.insert(area.ipv6(number).octets(), first + number, 0)?;
            }
        }
        Ok(())
    }

    /// Packets that a counter has counted, on both interfaces and all CPUs.
    pub fn counted(&mut self, counter: Counter) -> Result<u64> {
        let map = self.ebpf.map(names::COUNTERS).context("no counters")?;
        let counters: PerCpuArray<_, [[u64; 2]; Counter::COUNT as usize]> = map.try_into()?;
        let mut sum = 0;
        for slot in 0..3 {
            let values = counters.get(&slot, 0)?;
            let values = values.iter().map(|all| all[usize::from(counter.raw())]);
            sum += values.map(|[packets, _]| packets).sum::<u64>();
        }
        Ok(sum)
    }

    /// What counters say, by family, of those that are not 0.
    pub fn counts(&mut self) -> Result<String> {
        let mut said = Vec::new();
        for counter in Counter::ALL {
            let packets = self.counted(*counter)?;
            if packets != 0 {
                said.push(format!("{} {packets}", counter.name()));
            }
        }
        Ok(said.join(", "))
    }
}

/// Identities and locators.
fn areas() -> (Area, Area) {
    (
        Area::Identities(Density::Dense),
        Area::Locators(Density::Dense),
    )
}

/// Puts something into the emptier of two buckets; false if both are full.
fn place<T: AnyBitPattern + NoUninit, S: Copy>(
    memory: &Memory<T>,
    two: [u32; 2],
    value: &S,
    slots: impl Fn(&mut T) -> &mut [S; 2],
    used: impl Fn(&S) -> u8,
) -> bool {
    let taken = |at: &u32| {
        let mut bucket = memory.get(*at);
        slots(&mut bucket)
            .iter()
            .filter(|slot| used(slot) != 0)
            .count()
    };
    let Some(at) = two.into_iter().min_by_key(taken) else {
        return false;
    };
    let mut bucket = memory.get(at);
    let Some(slot) = slots(&mut bucket).iter_mut().find(|slot| used(slot) == 0) else {
        return false;
    };
    *slot = *value;
    memory.set(at, bucket);
    true
}

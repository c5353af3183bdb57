//! Read-only view of an instance's pinned maps; needs no daemon and no lock.

mod rules;

use std::{collections::HashMap, net::IpAddr, rc::Rc, sync::atomic::Ordering};

use ipnet::IpNet;
use natmig_common::{
    Action, BindingKey, BindingTotal, Counter, CounterClass, Entry, InterfaceTraffic, Ipv4, Ipv6,
    PackedTraffic, Role, SlotState, names,
};
use serde::Serialize;

pub use self::rules::{Fault, Snapshot};
use super::{
    GuardCounter, RouterError,
    address_map::AddressMap,
    family::Net,
    guard,
    instance::Instance,
    interfaces, load_state, loader,
    maps::{MapBytes, Maps},
    netlink::Socket,
    not_loaded,
    tables::{Prefixes as _, Tables, total_key},
    version::{Decoded, action},
};
use crate::{config::RouterConfig, rule::MacAddress};

/// An instance's tables, as they are while they are read.
#[derive(Debug)]
pub struct Reader {
    instance: Instance,
    config: Option<RouterConfig>,
    maps: Maps,
    links: HashMap<u32, String>,
}

/// Traffic that was taken out of counters that were full.
type Totals = HashMap<(u32, u32), BindingTotal>;

const fn id(key: BindingKey) -> (u32, u32) {
    (key.family, key.entry)
}

/// Where an instance stands as a whole.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The instance.
    pub instance: String,
    /// The router's name.
    pub router: Option<String>,
    /// Id of the program that runs.
    pub program: Option<u32>,
    /// Version of the maps' layout.
    pub abi_version: u32,
    /// Highest term of a controller.
    pub term: u64,
    /// IPv4 addresses that the tables have room for.
    pub capacity: u32,
    /// IPv6 addresses that the tables have room for.
    pub capacity_ipv6: u32,
    /// Bytes of kernel memory that the maps take.
    pub map_bytes: u64,
    /// The locator pools.
    pub pools: Vec<IpNet>,
    /// MAC address that answers for away VMs.
    pub gateway_mac: MacAddress,
}

/// One version of an entry, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionView {
    /// The action's name.
    pub action: &'static str,
    /// The other address of the binding.
    pub counterpart: Option<IpAddr>,
    /// Where packets go on to, for a locator from which the VM moved on.
    pub forward: Option<IpAddr>,
    /// Whether this router is a home edge of the identity.
    pub home: bool,
    /// The VM's MAC address.
    pub mac: Option<MacAddress>,
    /// The VM's access interface.
    pub interface: Option<String>,
    /// The segment behind that.
    pub segment: Option<String>,
}

/// The transaction that an entry refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReferenceView {
    /// The slot.
    pub slot: u32,
    /// The generation of the slot's use.
    pub generation: u32,
    /// The transaction's number, if the slot is in that use.
    pub transaction: Option<u64>,
    /// `preparing`, `prepared`, `committed` or `stale`.
    pub phase: &'static str,
}

/// An entry, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntryView {
    /// Its place in the table.
    pub index: u32,
    /// The bound address.
    pub address: IpAddr,
    /// `current` or `pending`: the version that counts.
    pub counts: &'static str,
    /// The current version.
    pub current: VersionView,
    /// The pending version and its transaction.
    pub pending: Option<VersionView>,
    /// The transaction of the pending version.
    pub reference: Option<ReferenceView>,
    /// The entry's traffic, if it is counted.
    pub traffic: Option<TrafficView>,
}

impl EntryView {
    /// The version that counts.
    pub fn effective(&self) -> &VersionView {
        match &self.pending {
            Some(pending) if self.counts == "pending" => pending,
            Some(_) | None => &self.current,
        }
    }
}

/// Traffic of a bound address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrafficView {
    /// Packets to the address.
    pub packets_to: u64,
    /// Their bytes.
    pub bytes_to: u64,
    /// Packets from the address.
    pub packets_from: u64,
    /// Their bytes.
    pub bytes_from: u64,
}

impl TrafficView {
    fn add(&mut self, other: Self) {
        self.packets_to += other.packets_to;
        self.bytes_to += other.bytes_to;
        self.packets_from += other.packets_from;
        self.bytes_from += other.bytes_from;
    }
}

/// A binding: an identity and its locators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BindingView {
    /// The identity.
    pub identity: IpAddr,
    /// The locator; none for a VM that has returned.
    pub locator: Option<IpAddr>,
    /// `here`, `away`, `away (home edge)` or `returned`.
    pub place: &'static str,
    /// The segment, where this router serves it.
    pub segment: Option<String>,
    /// The VM's MAC address, where this router needs it.
    pub mac: Option<MacAddress>,
    /// The transaction that changes it.
    pub transaction: Option<u64>,
    /// `settled`, or where that transaction stands.
    pub phase: &'static str,
    /// Older locators that still lead to it.
    pub draining: Vec<IpAddr>,
    /// Traffic of identity and locators together.
    pub traffic: TrafficView,
}

/// A transaction that the router holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TransactionView {
    /// Its number.
    pub transaction: u64,
    /// Its slot.
    pub slot: u32,
    /// The generation of the slot's use.
    pub generation: u32,
    /// Where it stands.
    pub phase: &'static str,
    /// Entries that it changes.
    pub entries: u32,
    /// When it was committed: nanoseconds since the Unix epoch, 0 before.
    pub committed_at: u64,
}

/// One counter of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterView {
    /// The counter's name.
    pub name: &'static str,
    /// Its number, which never changes.
    pub number: u8,
    /// `passed`, `dropped`, `sent` or `step`.
    pub class: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The counters of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceView {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Its role.
    pub role: &'static str,
    /// Whether this router owns the gateway address of its segment.
    pub gateway_owner: bool,
    /// Whether natmig switched promiscuous mode on.
    pub promiscuous: bool,
    /// Counters, by number.
    pub counters: Vec<CounterView>,
}

impl Reader {
    /// Opens an instance's pinned maps.
    pub fn open(instance: &str) -> Result<Self, RouterError> {
        let instance = Instance::new(instance);
        if Maps::probe(&instance.maps())?.is_none() {
            return Err(not_loaded(&instance));
        }
        let bank = loader::open_program(&instance, names::BANK_PROGRAM)?;
        let maps = Maps::open(&instance.maps(), true, Some(bank))?;
        Ok(Self {
            config: load_state(&instance).ok(),
            instance,
            maps,
            links: link_names()?,
        })
    }

    /// Reads again how the kernel names the interfaces.
    pub fn refresh_names(&mut self) -> Result<(), RouterError> {
        self.links = link_names()?;
        Ok(())
    }

    /// Whether the program takes next hops from natmig's own table: not before an agent has shown
    /// that it keeps them, nor after it ended in an orderly way.
    pub fn believes_next_hops(&self) -> bool {
        self.maps.heartbeat.get(0).patience != 0
    }

    /// When an agent last vouched for natmig's own next hops, in the kernel's jiffies. Whatever happens to
    /// routes, neighbours and links is followed when it has vouched for them twice more.
    pub fn last_beat(&self) -> u64 {
        self.maps.heartbeat.get(0).beat
    }

    /// Where the instance stands as a whole.
    pub fn summary(&self) -> Result<Summary, RouterError> {
        let meta = self.maps.meta.get(0);
        Ok(Summary {
            instance: self.instance.name.clone(),
            router: self.config.as_ref().map(|config| config.router.to_string()),
            program: loader::pinned_program(&self.instance),
            abi_version: meta.abi_version,
            term: meta.term,
            capacity: meta.entry_capacity,
            capacity_ipv6: meta.entry_capacity_ipv6,
            map_bytes: MapBytes::of(&self.instance.maps())?.total(),
            pools: Tables::pools(&self.maps),
            gateway_mac: MacAddress(meta.gateway_mac),
        })
    }

    /// All entries, by family and place in the table.
    pub fn entries(&self) -> impl Iterator<Item = EntryView> {
        self.bring_traffic_up_to_date();
        // A traffic counter that is full goes there after it was read here, or never.
        let totals = self.maps.totals.read_all::<BindingKey, _>();
        let totals = totals.unwrap_or_default().into_iter();
        let totals: Rc<Totals> = Rc::new(totals.map(|(key, total)| (id(key), total)).collect());
        let ipv4 = self.entries_of::<Ipv4>(Rc::clone(&totals));
        ipv4.chain(self.entries_of::<Ipv6>(totals))
    }

    fn entries_of<F: Net>(&self, totals: Rc<Totals>) -> impl Iterator<Item = EntryView> {
        (0..F::maps(&self.maps).capacity()).filter_map(move |index| self.view::<F>(index, &totals))
    }

    /// The entry of an address, found as the program finds it.
    pub fn entry(&self, address: IpAddr) -> Result<Option<EntryView>, RouterError> {
        match address {
            IpAddr::V4(found) => self.found::<Ipv4>(address, found.into()),
            IpAddr::V6(found) => self.found::<Ipv6>(address, found.into()),
        }
    }

    fn found<F: Net>(
        &self,
        address: IpAddr,
        number: F::Number,
    ) -> Result<Option<EntryView>, RouterError> {
        let Some(index) = self.lead::<F>(number)? else {
            return Ok(None);
        };
        self.bring_traffic_up_to_date();
        let key = total_key::<F>(index);
        let total: Option<BindingTotal> = self
            .maps
            .totals
            .lookup(&key)
            .map_err(RouterError::system("read counters by binding"))?;
        let totals = total.map(|total| (id(key), total)).into_iter().collect();
        let entry = self.view::<F>(index, &totals);
        Ok(entry.filter(|entry| entry.address == address))
    }

    /// Has what CPUs have not added to the counters by binding added now. What that cannot be done for is
    /// a few packets, which are added soon.
    fn bring_traffic_up_to_date(&self) {
        if let Err(error) = self.maps.bank() {
            tracing::debug!(%error, "traffic by binding lacks a few packets");
        }
    }

    /// The entry to which packets of an address are led, whosever it is.
    fn lead<F: Net>(&self, number: F::Number) -> Result<Option<u32>, RouterError> {
        Ok(match F::Prefixes::lead(&self.maps, number) {
            (_, Some(block)) => block.checked_add(u32::from(F::last(number))),
            (true, None) => self.indexed::<F>(number)?,
            (false, None) => None,
        })
    }

    fn indexed<F: Net>(&self, address: F::Number) -> Result<Option<u32>, RouterError> {
        F::maps(&self.maps)
            .index
            .lookup(&F::octets(address))
            .map_err(RouterError::system("look an address up"))
    }

    /// All bindings, by identity.
    pub fn bindings(&self) -> Vec<BindingView> {
        let mut bindings: AddressMap<IpAddr, BindingView> = AddressMap::default();
        let mut locators = Vec::new();
        for entry in self.entries() {
            let version = entry.effective();
            let place = match (version.action, version.counterpart) {
                ("away", _) if version.home => "away (home edge)",
                ("away", _) => "away",
                ("local", Some(_)) => "here",
                ("local", None) => "returned",
                ("absent", _) => {
                    // A binding that is only prepared.
                    let Some(pending) = &entry.pending else {
                        continue;
                    };
                    if matches!(pending.action, "away" | "local") {
                        bindings.insert(entry.address, binding(&entry, pending, "home"));
                    }
                    continue;
                }
                _ => {
                    locators.push(entry);
                    continue;
                }
            };
            bindings.insert(entry.address, binding(&entry, version, place));
        }
        for entry in locators {
            let version = entry.effective();
            let Some(binding) = version
                .counterpart
                .and_then(|identity| bindings.get_mut(&identity))
            else {
                continue;
            };
            if binding.locator != Some(entry.address) {
                binding.draining.push(entry.address);
            }
            binding.traffic.add(entry.traffic.unwrap_or_default());
        }
        let mut bindings: Vec<_> = bindings.into_values().collect();
        bindings.sort_by_key(|binding| binding.identity);
        bindings
    }

    /// The transactions that are held.
    pub fn transactions(&self) -> Vec<TransactionView> {
        (0..self.maps.transactions.len())
            .filter_map(|index| {
                let slot = self.maps.transactions.get(index);
                let number = u32::try_from(index).ok()?;
                let phase = phase(slot.state, slot.word);
                (slot.state != SlotState::Free as u32).then_some(TransactionView {
                    transaction: slot.transaction,
                    slot: number,
                    generation: slot.generation(),
                    phase,
                    entries: slot.entries,
                    committed_at: slot.committed_at,
                })
            })
            .collect()
    }

    /// The counters of every interface.
    pub fn interfaces(&self) -> Result<Vec<InterfaceView>, RouterError> {
        let cpus = self.maps.activity.len();
        let mut views = Vec::new();
        for (ifindex, interface) in interfaces::read(&self.maps)? {
            let traffic: Vec<InterfaceTraffic> = self
                .maps
                .counters
                .lookup_per_cpu(&u32::from(interface.slot), cpus)
                .map_err(RouterError::system("read counters"))?
                .unwrap_or_default();
            let counters = Counter::ALL.iter().map(|counter| {
                let values = || traffic.iter().map(|all| all[usize::from(counter.raw())]);
                CounterView {
                    name: counter.name(),
                    number: counter.raw(),
                    class: class_name(counter.class()),
                    packets: values().map(|value| value.packets).sum(),
                    bytes: values().map(|value| value.bytes).sum(),
                }
            });
            let counters = counters.collect();
            views.push(InterfaceView {
                interface: self.interface_name(ifindex),
                ifindex,
                role: Role::from_raw(interface.role).map_or("?", Role::name),
                gateway_owner: interface.owns_gateway(),
                promiscuous: interface.flags & natmig_common::FLAG_PROMISCUOUS != 0,
                counters,
            });
        }
        Ok(views)
    }

    /// The guard's counters.
    pub fn guard(&self) -> Result<Vec<GuardCounter>, RouterError> {
        guard::counters(&self.instance)
    }

    fn interface_name(&self, ifindex: u32) -> String {
        self.links
            .get(&ifindex)
            .cloned()
            .unwrap_or_else(|| format!("#{ifindex}"))
    }

    fn segment(&self, interface: &str) -> Option<String> {
        let interfaces = &self.config.as_ref()?.interfaces;
        let interface = interfaces.iter().find(|config| config.name == interface)?;
        interface.segment.as_ref().map(ToString::to_string)
    }

    /// Reads an entry; a writer may be at it, so it is read until two readings agree.
    fn stable<F: Net>(&self, index: u32) -> Entry<F> {
        let entries = &F::maps(&self.maps).entries;
        let mut entry = entries.get(index as usize);
        for _ in 0..100 {
            let again = entries.get(index as usize);
            if again == entry {
                break;
            }
            entry = again;
        }
        entry
    }

    /// An entry, unless it is free, or was removed and will be.
    fn in_use<F: Net>(&self, index: u32) -> Option<Entry<F>> {
        let entry = self.stable::<F>(index);
        let is_removed = entry.reference == 0 && action(&entry.current) == Action::Absent;
        (entry.family != 0 && !is_removed).then_some(entry)
    }

    fn view<F: Net>(&self, index: u32, totals: &Totals) -> Option<EntryView> {
        if index >= F::maps(&self.maps).capacity() {
            return None;
        }
        let entry = self.in_use::<F>(index)?;
        let reference = entry.reference().map(|reference| {
            let slot = self.maps.transactions.get(reference.slot() as usize);
            let held =
                slot.generation() == reference.generation() && slot.state != SlotState::Free as u32;
            ReferenceView {
                slot: reference.slot(),
                generation: reference.generation(),
                transaction: held.then_some(slot.transaction),
                phase: if held {
                    phase(slot.state, slot.word)
                } else {
                    "stale"
                },
            }
        });
        let committed = reference
            .as_ref()
            .is_some_and(|view| matches!(view.phase, "committed" | "folding"));
        Some(EntryView {
            index,
            address: F::address(F::number(entry.address)),
            counts: if committed { "pending" } else { "current" },
            current: self.version(&Decoded::of(&entry.current)),
            pending: reference
                .is_some()
                .then(|| self.version(&Decoded::of(&entry.pending))),
            reference,
            traffic: self.traffic::<F>(index, totals),
        })
    }

    fn version(&self, version: &Decoded) -> VersionView {
        let name = match version.action {
            Action::Absent => "absent",
            Action::Away => "away",
            Action::Local => "local",
            Action::Deliver => "deliver",
            Action::Forward => "forward",
            Action::Known => "known",
        };
        let interface = (version.ifindex != 0).then(|| self.interface_name(version.ifindex));
        VersionView {
            action: name,
            counterpart: version.counterpart,
            forward: version
                .forward
                .filter(|_| version.action == Action::Forward),
            home: version.is_home(),
            mac: (version.mac != [0; 6]).then_some(MacAddress(version.mac)),
            segment: interface
                .as_deref()
                .and_then(|interface| self.segment(interface)),
            interface,
        }
    }

    /// What all banks have counted, and what was taken out of them when they were full.
    fn traffic<F: Net>(&self, index: u32, totals: &Totals) -> Option<TrafficView> {
        let family = F::maps(&self.maps);
        if family.banks() == 0 {
            return None;
        }
        let mut sum = TrafficView::default();
        let banks = family
            .counters_of(index)
            .map(|words| words.map(|word| PackedTraffic(word.load(Ordering::Relaxed))));
        for [to, from] in banks {
            sum.add(TrafficView {
                packets_to: to.packets(),
                bytes_to: to.bytes(),
                packets_from: from.packets(),
                bytes_from: from.bytes(),
            });
        }
        if let Some(total) = totals.get(&id(total_key::<F>(index))) {
            sum.add(TrafficView {
                packets_to: total.packets_to,
                bytes_to: total.bytes_to,
                packets_from: total.packets_from,
                bytes_from: total.bytes_from,
            });
        }
        Some(sum)
    }
}

/// Names of interfaces by index.
fn link_names() -> Result<HashMap<u32, String>, RouterError> {
    let mut socket = Socket::open().map_err(RouterError::system("open a netlink socket"))?;
    let links = socket
        .links()
        .map_err(RouterError::system("list interfaces"))?;
    Ok(links
        .into_iter()
        .map(|link| (link.ifindex, link.name))
        .collect())
}

fn binding(entry: &EntryView, version: &VersionView, place: &'static str) -> BindingView {
    BindingView {
        identity: entry.address,
        locator: version.counterpart,
        place,
        segment: version.segment.clone(),
        mac: version.mac,
        transaction: entry
            .reference
            .as_ref()
            .and_then(|reference| reference.transaction),
        phase: entry
            .reference
            .as_ref()
            .map_or("settled", |reference| reference.phase),
        draining: Vec::new(),
        traffic: entry.traffic.unwrap_or_default(),
    }
}

/// The name of a class of counters, in reports and options.
pub fn class_name(class: CounterClass) -> &'static str {
    match class {
        CounterClass::Passed => "passed",
        CounterClass::Dropped => "dropped",
        CounterClass::Sent => "sent",
        CounterClass::Step => "step",
    }
}

fn phase(state: u32, word: u64) -> &'static str {
    if word >> 63 != 0 && state != SlotState::Folding as u32 {
        return "committed";
    }
    match SlotState::from_raw(state) {
        Some(SlotState::Free) => "free",
        Some(SlotState::Preparing) => "preparing",
        Some(SlotState::Prepared) => "prepared",
        Some(SlotState::Committed) => "committed",
        Some(SlotState::Folding) => "folding",
        None => "?",
    }
}

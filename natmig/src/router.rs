//! One router: its tables, programs and kernel state, and the transactions on them.
//!
//! [`Router`] is the only writer of an instance. Everything in here blocks; it works in the network
//! namespace of the calling thread.

mod address_map;
pub mod announce;
mod attachments;
mod awaited;
pub mod bindings;
mod bpf;
mod error;
#[doc(hidden)]
pub mod failpoint;
mod family;
mod figures;
mod grace;
mod guard;
pub(crate) mod inspect;
mod instance;
mod interfaces;
mod kernel;
mod loader;
mod maps;
mod netlink;
pub mod next_hops;
pub mod reader;
mod start;
mod tables;
pub mod tracer;
mod version;
mod vlan;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use natmig_common::{Action, FLAG_PROMISCUOUS, Ipv4, Ipv6, Meta, Role, SlotState};

pub use self::{
    announce::Announcement,
    awaited::{Heard, TellHeard},
    error::RouterError,
    figures::{Addresses, Figures},
    guard::GuardCounter,
    maps::MapBytes,
    start::{AttachedInterface, StartOptions, StartReport, Started, has_program, unload},
    tables::Progress,
};
use self::{
    attachments::elements,
    awaited::Hearing,
    family::Net,
    instance::{Instance, Lock},
    interfaces::Attached,
    kernel::Kernel,
    maps::Maps,
    netlink::Socket,
    next_hops::{NextHops, PrefixRoute},
    start::{load_state, not_loaded},
    tables::{APPLY, Bound, Tables, Write, Writes},
    version::{Decoded, Segments},
};
use crate::{
    config::RouterConfig,
    digest::{Parts, TableDigest},
    rule::{Changes, Rule, TransactionId},
};

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitReport {
    /// When the commit had been stored: nanoseconds since the Unix epoch. A packet that comes later
    /// meets the new state.
    pub committed_at: u64,
    /// How long it took until no packet was any longer processed under the old state. Zero when
    /// the transaction had been committed before.
    pub grace: Duration,
}

/// What replacing the table did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ApplyReport {
    /// Addresses bound for the first time.
    pub added: usize,
    /// Addresses whose rule changed.
    pub changed: usize,
    /// Addresses that are no longer bound.
    pub removed: usize,
    /// Addresses whose rule was right already.
    pub unchanged: usize,
    /// Addresses left alone because an unfinished transaction holds them.
    pub held: usize,
    /// When it was committed: nanoseconds since the Unix epoch, 0 if nothing had to change.
    pub committed_at: u64,
    /// How long it took until no packet was any longer processed under the old table.
    pub grace: Duration,
}

/// A transaction that the router holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number.
    pub id: TransactionId,
    /// Where it stands: prepared or committed.
    pub state: SlotState,
    /// When it was committed: nanoseconds since the Unix epoch, 0 before.
    pub committed_at: u64,
}

/// The single writer of an instance's tables.
#[derive(Debug)]
pub struct Router {
    config: RouterConfig,
    instance: Instance,
    tables: Tables,
    segments: Segments,
    interfaces: BTreeMap<u32, Attached>,
    kernel: Kernel,
    announcements: Vec<Announcement>,
    /// Transactions that were committed and are neither announced nor followed yet.
    committed: Vec<TransactionId>,
    /// Versions that count and that the kernel's state does not follow yet.
    following: Vec<(IpAddr, Decoded)>,
    /// The kernel refused something, so its state may differ from what the tables say.
    unsettled: bool,
    /// Interfaces that appear are attached in generic mode.
    generic: bool,
    /// The program runs on no interface until the table is whole.
    waits: bool,
    /// Keeps routes and next hops, once it has been started.
    next_hops: Option<NextHops>,
    figures: Arc<Figures>,
    hearing: Hearing,
    #[expect(dead_code, reason = "held until the router is dropped")]
    lock: Lock,
}

impl Router {
    /// Writes pending versions of everything a transaction changes. All or nothing, idempotent.
    pub fn prepare(&mut self, id: TransactionId, changes: &Changes) -> Result<(), RouterError> {
        self.follow_first();
        let mut writes = Writes::default();
        for (changes, early) in [(&changes.early, true), (&changes.pending, false)] {
            for change in changes {
                self.add_write(&mut writes, change.address, &change.rule, early)?;
            }
        }
        let concerned = self.concerned(&writes);
        self.tables
            .prepare(id, writes, &self.segments, &mut |_, _, _| {})?;
        self.watch(concerned.iter().copied())?;
        self.follow_entries(&concerned);
        Ok(())
    }

    fn add_write(
        &self,
        writes: &mut Writes,
        address: IpAddr,
        rule: &Rule,
        early: bool,
    ) -> Result<(), RouterError> {
        match address {
            IpAddr::V4(address) => writes.ipv4.push(Write {
                address: Ipv4::number(address.octets()),
                version: self.segments.version(rule)?,
                early,
            }),
            IpAddr::V6(address) => writes.ipv6.push(Write {
                address: Ipv6::number(address.octets()),
                version: self.segments.version(rule)?,
                early,
            }),
        }
        Ok(())
    }

    /// Those of a transaction's addresses that concern the kernel.
    fn concerned(&self, writes: &Writes) -> Vec<IpAddr> {
        writes
            .decoded()
            .filter(|(address, version)| self.kernel.is_concerned(*address, version))
            .map(|(address, _)| address)
            .collect()
    }

    /// Makes a transaction count: one store. Idempotent; it is announced each time, since the
    /// process that committed it may have been killed before it announced anything.
    ///
    /// What a group takes in proportion to its size comes later: its announcements are made by
    /// [`Self::take_announcements`], and the kernel follows in [`Self::settle`].
    pub fn commit(&mut self, id: TransactionId) -> Result<CommitReport, RouterError> {
        let report = self.tables.commit(id)?;
        self.figures.committed(&report);
        self.committed.push(id);
        Ok(report)
    }

    /// Stops listening for VMs whose transactions are decided, and lets the kernel's host routes and
    /// neighbours follow what was committed. Packets in transit need none of them, so the caller
    /// acknowledges a commit first; for every other change the kernel follows before it begins.
    pub fn settle(&mut self) -> Result<(), RouterError> {
        self.stop_awaiting_decided()?;
        self.follow()
    }

    fn follow(&mut self) -> Result<(), RouterError> {
        self.announce_committed();
        let following = std::mem::take(&mut self.following);
        if self.unsettled {
            return self.reconcile();
        }
        self.kernel
            .follow(following.into_iter())
            .inspect_err(|_| self.unsettled = true)
    }

    /// Lets the kernel follow before another change. What the kernel refuses, for example because a
    /// link is down, holds nothing back: it is tried again with the next change and when links change.
    fn follow_first(&mut self) {
        if let Err(error) = self.follow() {
            tracing::warn!(%error, "host routes do not follow the table yet");
        }
    }

    /// Lets the kernel follow what became of these addresses, as [`Self::follow_first`] does.
    fn follow_entries(&mut self, addresses: &[IpAddr]) {
        let tables = &self.tables;
        let entries = addresses.iter().map(|address| {
            let bound = tables.bound(*address).unwrap_or(Bound::none(*address));
            (bound, tables.effective(&bound))
        });
        if let Err(error) = self.kernel.follow_entries(entries) {
            self.unsettled = true;
            tracing::warn!(%error, "host routes do not follow the table yet");
        }
    }

    /// Makes the announcements of what was committed since the last call.
    fn announce_committed(&mut self) {
        for id in std::mem::take(&mut self.committed) {
            let changed = self.announce(id);
            self.following.extend(changed);
        }
    }

    /// Queues a transaction's announcements; returns what of its changes concerns the kernel.
    fn announce(&mut self, id: TransactionId) -> Vec<(IpAddr, Decoded)> {
        let gateway_mac = self.config.gateway_mac.0;
        let mut changed = Vec::new();
        for bound in self.tables.changed_by(id) {
            let Some(version) = bound.pending else {
                continue;
            };
            if !self.kernel.is_concerned(bound.address, &version) {
                continue;
            }
            if let Some(attached) = self.interfaces.get(&version.ifindex) {
                let announcement =
                    Announcement::of(bound.address, &version, gateway_mac, &attached.interface);
                self.announcements.extend(announcement);
            }
            changed.push((bound.address, version));
        }
        changed
    }

    /// Queues announcements of all that this router answers for behind interfaces whose gateway's
    /// address it has taken over: switches learn where the gateway's MAC address is.
    fn announce_taken_over(&mut self, interfaces: &HashSet<u32>) {
        let gateway_mac = self.config.gateway_mac.0;
        for bound in self.tables.addresses() {
            let version = self.tables.effective(&bound);
            let Some(attached) = self
                .interfaces
                .get(&version.ifindex)
                .filter(|_| interfaces.contains(&version.ifindex))
            else {
                continue;
            };
            let announcement =
                Announcement::of(bound.address, &version, gateway_mac, &attached.interface);
            self.announcements.extend(announcement);
        }
    }

    /// Interfaces whose gateway's address this router has.
    fn gateways(&self) -> HashSet<u32> {
        self.interfaces
            .iter()
            .filter(|(_, attached)| attached.interface.owns_gateway())
            .map(|(ifindex, _)| *ifindex)
            .collect()
    }

    /// Takes every trace of a transaction back. Idempotent, also for transactions that the router
    /// does not hold; refused after the commit.
    pub fn abort(&mut self, id: TransactionId) -> Result<(), RouterError> {
        self.follow_first();
        let addresses = self.addresses_of(id);
        self.tables.abort(id)?;
        self.watch(addresses.iter().copied())?;
        self.follow_entries(&addresses);
        Ok(())
    }

    /// Brings current versions up to a committed transaction's and frees its slot. Idempotent, also
    /// for transactions that the router does not hold.
    pub fn fold(&mut self, id: TransactionId) -> Result<(), RouterError> {
        self.follow_first();
        let addresses = self.addresses_of(id);
        self.tables.fold(id)?;
        self.watch(addresses.into_iter())
    }

    /// Removes the entries of old locators and of identities that are at home for good. Idempotent.
    pub fn retire(&mut self, addresses: &[IpAddr]) -> Result<(), RouterError> {
        self.follow_first();
        self.tables.retire(addresses)?;
        self.follow_entries(addresses);
        self.watch(addresses.iter().copied())
    }

    /// Makes `rules` the whole table, as one transaction. Entries that an unfinished transaction
    /// holds are left alone.
    pub fn replace(&mut self, rules: &BTreeMap<IpAddr, Rule>) -> Result<ApplyReport, RouterError> {
        self.replace_parts(&Parts::All, rules)
    }

    /// Makes `rules` all that the table has in these parts, as [`Router::replace`] does.
    pub fn replace_parts(
        &mut self,
        parts: &Parts,
        rules: &BTreeMap<IpAddr, Rule>,
    ) -> Result<ApplyReport, RouterError> {
        let mut table = Writes::default();
        for (address, rule) in rules {
            self.add_write(&mut table, *address, rule, false)?;
        }
        self.apply(table, parts, &mut |_, _, _| {})
    }

    /// Makes a table count as one transaction: of the parts `whole` it names all that is to be
    /// there, other addresses that it does not name stay as they are.
    fn apply(
        &mut self,
        table: Writes,
        whole: &Parts,
        progress: Progress<'_>,
    ) -> Result<ApplyReport, RouterError> {
        self.follow_first();
        let mut report = ApplyReport::default();
        let writes = self.tables.difference(table, whole, &mut report);
        if writes.is_empty() {
            return Ok(report);
        }
        let concerned = self.concerned(&writes);
        self.tables
            .prepare(APPLY, writes, &self.segments, progress)?;
        self.watch(concerned.iter().copied())?;
        self.follow_entries(&concerned);
        progress("committing", 0, 1);
        let committed = self.commit(APPLY)?;
        report.committed_at = committed.committed_at;
        report.grace = committed.grace;
        progress("folding", 0, 1);
        self.follow_first();
        self.tables.fold(APPLY)?;
        self.watch(concerned.into_iter())?;
        progress("folding", 1, 1);
        Ok(report)
    }

    /// Transactions that are prepared or committed and not folded.
    pub fn held(&self) -> Vec<Held> {
        self.tables
            .held()
            .map(|(id, state, committed_at)| Held {
                id,
                state,
                committed_at,
            })
            .collect()
    }

    /// The table as it was before the transactions that are held.
    pub fn table(&self) -> BTreeMap<IpAddr, Rule> {
        self.tables
            .addresses()
            // An early change is the transaction's that it came with.
            .filter(|bound| bound.pending != Some(bound.current))
            .filter(|bound| bound.current.action != Action::Absent)
            .map(|bound| (bound.address, self.segments.rule(&bound.current)))
            .collect()
    }

    /// Digest of [`Router::table`].
    pub fn digest(&self) -> TableDigest {
        TableDigest::of(self.table().iter().map(|(address, rule)| (*address, rule)))
    }

    /// The fabric's locator pools as the tables hold them, as few prefixes as say the same.
    pub fn pools(&self) -> Vec<IpNet> {
        Tables::pools(&self.tables.maps)
    }

    fn install_guard(&self, pools: &[IpNet]) -> Result<(), RouterError> {
        let boundary: Vec<(String, [u8; 6])> = self
            .interfaces
            .values()
            .filter(|attached| {
                let role = Role::from_raw(attached.interface.role);
                matches!(role, Some(Role::Access | Role::External))
            })
            .map(|attached| (attached.name.clone(), attached.interface.mac))
            .collect();
        guard::install(&self.instance, &boundary, pools)
    }

    /// Sets the fabric's locator pools, in the tables and in the guard.
    pub fn set_pools(&mut self, pools: &[IpNet]) -> Result<(), RouterError> {
        self.install_guard(pools)?;
        self.tables.set_pools(pools)
    }

    /// The highest term of a controller that this router has seen.
    pub fn term(&self) -> u64 {
        self.tables
            .maps
            .meta
            .load(0, std::mem::offset_of!(Meta, term))
    }

    /// Stores a higher term; a lower one is left alone.
    pub fn set_term(&mut self, term: u64) -> Result<(), RouterError> {
        if term > self.term() {
            self.tables
                .maps
                .meta
                .store(0, std::mem::offset_of!(Meta, term), term);
        }
        Ok(())
    }

    /// Announcements of the commits since the last call; the caller sends them with
    /// [`announce::send`] on [`announce::SCHEDULE`].
    #[must_use]
    pub fn take_announcements(&mut self) -> Vec<Announcement> {
        self.announce_committed();
        std::mem::take(&mut self.announcements)
    }

    /// Starts to keep routes and next hops of the program's own, until the router is dropped. The
    /// routes of prefixes go through `set_routes`, which has [`Router::set_routes`] called with them
    /// before it returns; if it returns `false`, that was the last time.
    pub fn keep_next_hops(
        &mut self,
        set_routes: impl FnMut(Vec<PrefixRoute>) -> bool + Send + 'static,
    ) -> Result<(), RouterError> {
        self.next_hops = None;
        let interfaces = elements(&self.interfaces);
        self.next_hops = Some(NextHops::start(&self.instance, interfaces, set_routes)?);
        Ok(())
    }

    /// Sets which routes prefixes take.
    pub fn set_routes(&mut self, routes: &[PrefixRoute]) {
        for PrefixRoute { prefix, route } in routes {
            let set = match prefix {
                IpNet::V4(prefix) => self.tables.set_route_ipv4(*prefix, *route),
                IpNet::V6(prefix) => self.tables.set_route_ipv6(*prefix, *route),
            };
            if let Err(error) = set {
                tracing::debug!(%error, %prefix, "no room for the route of a prefix");
                if let IpNet::V4(narrow) = prefix
                    && let Ok(wide) = ipnet::Ipv4Net::new(narrow.addr(), 16)
                    && let Err(error) = self.tables.set_route_ipv4(wide.trunc(), 0)
                {
                    tracing::error!(%error, %wide, "a prefix keeps its route");
                }
            }
        }
    }

    /// Bytes of kernel memory that the maps take.
    pub fn map_bytes(&self) -> Result<MapBytes, RouterError> {
        MapBytes::of(&self.instance.maps())
    }

    /// Addresses that the tables have room for, IPv4 and IPv6.
    pub fn capacity(&self) -> (u32, u32) {
        let capacity = self.tables.capacity();
        (capacity.ipv4, capacity.ipv6)
    }

    /// What this writer did, for whoever reports it.
    pub fn figures(&self) -> Arc<Figures> {
        self.figures.set_addresses(self.tables.used());
        Arc::clone(&self.figures)
    }

    /// Those of a held transaction's addresses that concern the kernel.
    fn addresses_of(&self, id: TransactionId) -> Vec<IpAddr> {
        let is_concerned = |bound: &Bound| {
            let versions = [Some(bound.current), bound.pending];
            versions
                .iter()
                .flatten()
                .any(|version| self.kernel.is_concerned(bound.address, version))
        };
        self.tables
            .changed_by(id)
            .filter(is_concerned)
            .map(|bound| bound.address)
            .collect()
    }

    /// Lets promiscuous mode follow what became of these addresses.
    fn watch(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), RouterError> {
        for address in addresses {
            let bound = self.tables.bound(address).unwrap_or(Bound::none(address));
            self.kernel.watch(&bound);
        }
        self.figures.set_addresses(self.tables.used());
        self.follow_promiscuity()
    }

    fn follow_promiscuity(&mut self) -> Result<(), RouterError> {
        for (ifindex, attached) in &mut self.interfaces {
            let ours = attached.interface.flags & FLAG_PROMISCUOUS != 0;
            let needed = self.kernel.needs_promiscuity(*ifindex);
            // What the operator switched on stays on.
            if needed == ours || (needed && attached.link.is_promiscuous()) {
                continue;
            }
            attached.interface.flags ^= FLAG_PROMISCUOUS;
            self.tables
                .maps
                .interfaces
                .update(ifindex, &attached.interface)
                .map_err(RouterError::system("note promiscuous mode"))?;
            self.kernel.set_promiscuous(*ifindex, needed)?;
            // Else it would be taken for the operator's.
            attached.link.set_promiscuous(needed);
        }
        Ok(())
    }

    /// Makes the kernel's state follow the tables, whatever it was.
    fn reconcile(&mut self) -> Result<(), RouterError> {
        let access: HashSet<u32> = self
            .interfaces
            .iter()
            .filter(|(_, attached)| attached.interface.role == Role::Access as u8)
            .map(|(ifindex, _)| *ifindex)
            .collect();
        let tables = &self.tables;
        let entries = tables
            .addresses()
            .map(|bound| (bound, tables.effective(&bound)));
        self.kernel.reconcile(entries, &access)?;
        self.unsettled = false;
        self.following.clear();
        self.follow_promiscuity()
    }

    fn save_state(&self) -> Result<(), RouterError> {
        let path = self.instance.state_file();
        let write = || -> std::io::Result<()> {
            let aside = path.with_extension("next");
            fs::write(&aside, serde_json::to_vec_pretty(&self.config)?)?;
            fs::rename(&aside, &path)
        };
        write().map_err(RouterError::system(format!("write {}", path.display())))
    }
}

fn open_socket() -> Result<Socket, RouterError> {
    Socket::open().map_err(RouterError::system("open a netlink socket"))
}

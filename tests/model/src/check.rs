//! The invariants of a state.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use natmig::{
    coordinator::{MigrationRecord, Phase, StoreOp},
    names::SegmentName,
    planner::{self, Move},
    rule::{Rule, TransactionId},
};

use crate::{
    fabric::{EXTERNAL, FABRIC, Number, OUTSIDE},
    model::FabricModel,
    packet::{self, Arrival, Forwarded},
    shared::hash_of,
    state::{Aim, State},
    tables::{address, octets},
};

/// The invariants of DESIGN.md, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// I1: no locator leaves the fabric.
    NoLeak,
    /// I2: packets arrive.
    NoBlackhole,
    /// I3: packets arrive nowhere else; an address has one owner.
    NoMisdelivery,
    /// I4: packets do not loop.
    NoLoop,
    /// I5: all of a transaction or nothing of it.
    Atomic,
    /// I6: what is decided and reported stays so, and nothing else takes effect.
    Durable,
    /// I7: a controller that lost its leadership changes nothing.
    Fenced,
    /// I8: every router gets to the state that it should have.
    Convergent,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NoLeak,
        Self::NoBlackhole,
        Self::NoMisdelivery,
        Self::NoLoop,
        Self::Atomic,
        Self::Durable,
        Self::Fenced,
        Self::Convergent,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoLeak => "I1 no leak",
            Self::NoBlackhole => "I2 no blackhole",
            Self::NoMisdelivery => "I3 no misdelivery",
            Self::NoLoop => "I4 no duplicates, no loops",
            Self::Atomic => "I5 atomic",
            Self::Durable => "I6 durable",
            Self::Fenced => "I7 fenced",
            Self::Convergent => "I8 convergent",
        }
    }
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub text: String,
}

impl Violation {
    /// An invariant is broken.
    pub fn new(invariant: Invariant, text: impl Into<String>) -> Self {
        Self {
            invariant,
            text: text.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.name(), self.text)
    }
}

/// Routers that a packet may pass, at most; more is a loop.
pub const MOST_HOPS: u8 = 10;

/// Where a VM may be found, and from where it speaks.
#[derive(Clone, Debug)]
pub struct Whereabouts {
    /// The VM, by its number in the fabric.
    pub vm: usize,
    /// The segments in which packets may reach it.
    pub allowed: BTreeSet<SegmentName>,
    /// The segment in which it runs.
    pub runs: SegmentName,
    /// The segment in which it may run already, although its migration is not decided.
    pub early: Option<SegmentName>,
}

/// The stored record of a migration.
pub fn record(state: &State, id: TransactionId) -> Option<&MigrationRecord> {
    state.store.migrations.iter().find(|record| record.id == id)
}

/// Whether a migration's outcome is that it happens.
pub fn is_decided(phase: Phase) -> bool {
    (Phase::Committing..=Phase::Done).contains(&phase)
}

impl FabricModel {
    /// Whether packets may come to a router.
    pub fn is_up(state: &State, router: Number) -> bool {
        !state.routers[router].booting
    }

    /// What is wrong with a state.
    pub fn check(&self, state: &State) -> Option<Violation> {
        self.check_commits(state)
            .or_else(|| Self::check_told(state))
            .or_else(|| self.check_packets(state))
            .or_else(|| self.check_rest(state))
    }

    /// What is wrong with a change of the store, before it is made.
    pub fn check_store(&self, state: &State, ops: &[StoreOp]) -> Option<Violation> {
        ops.iter().find_map(|op| {
            if let StoreOp::PutMigration(record) = op {
                self.check_record(state, record)
            } else {
                None
            }
        })
    }

    fn check_record(&self, state: &State, new: &MigrationRecord) -> Option<Violation> {
        let id = new.id;
        let old = record(state, id).map(|record| record.phase);
        let durable = |text: String| Some(Violation::new(Invariant::Durable, text));
        if old.is_some_and(is_decided) && !is_decided(new.phase) {
            return durable(format!(
                "migration {id} was decided and becomes {}",
                new.phase
            ));
        }
        if matches!(old, Some(Phase::Aborting | Phase::Aborted)) && is_decided(new.phase) {
            return durable(format!(
                "migration {id} was aborted and becomes {}",
                new.phase
            ));
        }
        for (number, router) in state.routers.iter().enumerate() {
            let name = &self.fabric.places[number].name;
            if old.is_none() {
                let locators = new
                    .moves
                    .iter()
                    .flat_map(|step| step.new_locators().iter().collect::<Vec<_>>());
                for locator in locators {
                    if router.tables.knows(locator) {
                        return Some(Violation::new(
                            Invariant::NoMisdelivery,
                            format!(
                                "locator {locator} is given to migration {id}, and {name} still has a rule of its earlier use"
                            ),
                        ));
                    }
                }
            }
            if router.booting {
                continue;
            }
            if new.phase == Phase::Committing
                && old != Some(Phase::Committing)
                && !router.tables.holds(id)
            {
                return durable(format!(
                    "it is decided that migration {id} happens, and {name} has not prepared it"
                ));
            }
            if new.phase == Phase::Folding
                && old != Some(Phase::Folding)
                && !new
                    .moves
                    .iter()
                    .all(|step| self.has_outcome(state, number, step))
            {
                return Some(Violation::new(
                    Invariant::Atomic,
                    format!("migration {id} is folded, and {name} has not committed it"),
                ));
            }
        }
        None
    }

    /// Whether a router does what it should after a move.
    fn has_outcome(&self, state: &State, router: Number, step: &Move) -> bool {
        let name = &self.fabric.places[router].name;
        let after: BTreeMap<_, _> = planner::rules(&self.fabric.topology, &step.after, name)
            .into_iter()
            .collect();
        let addresses = step.after.locators().chain(step.after.vm.identities.iter());
        addresses.into_iter().all(|it| {
            state.routers[router].tables.rule(it) == after.get(&it).unwrap_or(&Rule::Absent)
        })
    }

    /// I6: nothing is committed that is not decided.
    fn check_commits(&self, state: &State) -> Option<Violation> {
        for (number, router) in state.routers.iter().enumerate() {
            for (id, committed) in router.tables.held() {
                let phase = record(state, id).map(|record| record.phase);
                if committed && !phase.is_some_and(is_decided) {
                    let name = &self.fabric.places[number].name;
                    let phase = phase.map_or("forgotten", Phase::as_str);
                    return Some(Violation::new(
                        Invariant::Durable,
                        format!(
                            "{name} has committed migration {id}, which is {phase} in the store"
                        ),
                    ));
                }
            }
        }
        None
    }

    /// I6: what was reported is so.
    fn check_told(state: &State) -> Option<Violation> {
        state.told.iter().find_map(|(id, success)| {
            let phase = record(state, *id)?.phase;
            let kept = if *success {
                is_decided(phase)
            } else {
                matches!(phase, Phase::Aborting | Phase::Aborted)
            };
            let outcome = if *success { "success" } else { "an abort" };
            (!kept).then(|| {
                Violation::new(
                    Invariant::Durable,
                    format!(
                        "{outcome} of migration {id} was reported, and it is {phase} in the store"
                    ),
                )
            })
        })
    }

    /// Where each VM may be.
    pub fn whereabouts(&self, state: &State) -> Vec<Whereabouts> {
        let mut all = Vec::new();
        for vm_state in &state.store.vms {
            let Some(vm) = self.fabric.vms.iter().position(|vm| *vm == vm_state.vm) else {
                continue;
            };
            let moves = |record: &MigrationRecord| {
                let mut moves = record.moves.iter();
                moves
                    .find(|step| step.after.vm.name == vm_state.vm.name)
                    .cloned()
            };
            let mut records = state.store.migrations.iter();
            let under_way = records.find_map(|record| {
                let busy = record.phase <= Phase::Committed && is_decided(record.phase);
                busy.then(|| moves(record)).flatten()
            });
            let mut records = state.store.migrations.iter();
            let early = records.find_map(|record| {
                let open = matches!(record.phase, Phase::Preparing | Phase::Prepared);
                let step = open.then(|| moves(record)).flatten()?;
                Some(step.after.segment().clone())
            });
            let (allowed, runs) = match under_way {
                None => (
                    [vm_state.segment().clone()].into(),
                    vm_state.segment().clone(),
                ),
                Some(step) => {
                    let after = step.after.segment().clone();
                    let mut allowed: BTreeSet<_> = [after.clone()].into();
                    if !self.is_anchored(state, &step) {
                        allowed.insert(step.before.segment().clone());
                    }
                    (allowed, after)
                }
            };
            all.push(Whereabouts {
                vm,
                allowed,
                runs,
                early,
            });
        }
        all
    }

    /// Whether the VM's home edges and previous edges have committed.
    fn is_anchored(&self, state: &State, step: &Move) -> bool {
        let mut anchors = self.fabric.edges(&step.after.vm.home);
        anchors.extend(self.fabric.edges(step.before.segment()));
        anchors.into_iter().all(|router| {
            let name = &self.fabric.places[router].name;
            let after: BTreeMap<_, _> = planner::rules(&self.fabric.topology, &step.after, name)
                .into_iter()
                .collect();
            let tables = &state.routers[router].tables;
            let mut identities = step.after.vm.identities.iter();
            !Self::is_up(state, router)
                || identities.all(|it| tables.rule(it) == after.get(&it).unwrap_or(&Rule::Absent))
        })
    }

    /// Packets that may be sent in a state, to and from every VM.
    pub fn packets(&self, state: &State) -> Vec<(Arrival, Aim)> {
        let mut packets = Vec::new();
        let all = self.whereabouts(state);
        for it in all.clone() {
            let Whereabouts {
                vm,
                allowed,
                runs,
                early,
            } = it;
            let Some(identity) = self.identity(vm) else {
                continue;
            };
            let home = &self.fabric.vms[vm].home;
            let aim = Aim::Vm {
                vm,
                allowed: allowed.clone(),
                early: false,
            };
            for core in self.fabric.cores() {
                packets.extend(
                    self.arrival(state, core, EXTERNAL, OUTSIDE, identity)
                        .map(|it| (it, aim.clone())),
                );
            }
            for segment in self.fabric.topology.segments.keys() {
                let Some(host) = self.fabric.host(segment) else {
                    continue;
                };
                for edge in self.fabric.edges(segment) {
                    let rule = state.routers[edge].tables.rule(address(identity));
                    // A neighbour reaches a VM at home without a router.
                    if segment == home && !matches!(rule, Rule::Away { .. }) {
                        continue;
                    }
                    let ifindex = self.fabric.places[edge].segments[segment];
                    packets.extend(
                        self.arrival(state, edge, ifindex, host, identity)
                            .map(|it| (it, aim.clone())),
                    );
                }
            }
            packets.extend(self.spoken(state, &all, (vm, &runs), false));
            if let Some(early) = &early {
                packets.extend(self.spoken(state, &all, (vm, early), true));
            }
        }
        packets
    }

    /// Packets of a VM that runs in a segment, or does so before that is decided.
    fn spoken(
        &self,
        state: &State,
        all: &[Whereabouts],
        (vm, segment): (usize, &SegmentName),
        early: bool,
    ) -> Vec<(Arrival, Aim)> {
        let mut packets = Vec::new();
        let Some(identity) = self.identity(vm) else {
            return packets;
        };
        let is_home = *segment == self.fabric.vms[vm].home;
        for edge in self.fabric.edges(segment) {
            let ifindex = self.fabric.places[edge].segments[segment];
            let others = self.fabric.topology.segments.keys();
            let others = others.filter(|other| *other != segment || !is_home);
            let hosts = others.filter_map(|segment| self.fabric.host(segment));
            for peer in hosts.chain([OUTSIDE]) {
                let aim = Aim::Peer { vm, peer, early };
                let arrival = self.arrival(state, edge, ifindex, identity, peer);
                packets.extend(arrival.map(|it| (it, aim)));
            }
            for other in all.iter().filter(|it| it.vm != vm) {
                // Two VMs at home in the segment reach each other without a router.
                let home = &self.fabric.vms[other.vm].home;
                let Some(peer) = self.identity(other.vm).filter(|_| home != segment) else {
                    continue;
                };
                let aim = Aim::Vm {
                    vm: other.vm,
                    allowed: other.allowed.clone(),
                    early,
                };
                let arrival = self.arrival(state, edge, ifindex, identity, peer);
                packets.extend(arrival.map(|it| (it, aim)));
            }
        }
        packets
    }

    /// A VM's IPv4 identity.
    pub fn identity(&self, vm: usize) -> Option<[u8; 4]> {
        self.fabric.vms[vm].identities.iter().find_map(octets)
    }

    /// A packet that comes to a router that is up.
    fn arrival(
        &self,
        state: &State,
        router: Number,
        ingress: u32,
        source: [u8; 4],
        destination: [u8; 4],
    ) -> Option<Arrival> {
        let interface = self.fabric.places[router].interfaces.get(&ingress)?;
        let macs = (self.fabric.mac_of(source), interface.mac);
        Self::is_up(state, router).then(|| Arrival {
            router,
            ingress,
            frame: packet::frame(source, destination, macs),
        })
    }

    /// Every packet, whichever way it takes, arrives where it should: I1 to I4.
    fn check_packets(&self, state: &State) -> Option<Violation> {
        let mut key: Vec<u64> = Vec::new();
        for router in &state.routers {
            key.push(router.tables.digest());
            key.push(u64::from(router.booting));
        }
        for it in self.whereabouts(state) {
            key.push(hash_of(&(it.vm, it.allowed, it.runs, it.early)));
        }
        let key = hash_of(&key);
        if let Some(known) = self.memo(|memo| memo.get(&key).cloned()) {
            return known;
        }
        let found = self
            .packets(state)
            .into_iter()
            .find_map(|(arrival, aim)| self.walk(state, &arrival, &aim, 0, &mut Vec::new()));
        self.memo(|memo| memo.insert(key, found.clone()));
        found
    }

    fn walk(
        &self,
        state: &State,
        arrival: &Arrival,
        aim: &Aim,
        hops: u8,
        path: &mut Vec<String>,
    ) -> Option<Violation> {
        path.push(self.place_of(arrival));
        let found = match self.hop(state, arrival, aim, hops) {
            Hop::Arrived => None,
            Hop::Wrong(mut violation) => {
                violation.text =
                    format!("{}; the packet's way: {}", violation.text, path.join(" → "));
                Some(violation)
            }
            Hop::Onward(frame) => {
                let next = self
                    .fabric
                    .next(arrival.router, packet::destination(&frame));
                next.into_iter()
                    .filter(|router| Self::is_up(state, *router))
                    .find_map(|router| {
                        self.walk(state, &self.onward(router, &frame), aim, hops + 1, path)
                    })
            }
        };
        path.pop();
        found
    }

    /// A frame that came over the fabric to a router.
    pub fn onward(&self, router: Number, frame: &[u8]) -> Arrival {
        let mut frame = frame.to_vec();
        packet::redirect(
            &mut frame,
            self.fabric.places[router].interfaces[&FABRIC].mac,
        );
        Arrival {
            router,
            ingress: FABRIC,
            frame,
        }
    }

    /// Where a packet is, in words.
    pub fn place_of(&self, arrival: &Arrival) -> String {
        let [source, destination] = [
            packet::source(&arrival.frame),
            packet::destination(&arrival.frame),
        ];
        format!(
            "{} → {} at {}",
            address(source),
            address(destination),
            self.fabric.places[arrival.router].name
        )
    }

    /// Processes a packet where it is.
    pub fn hop(&self, state: &State, arrival: &Arrival, aim: &Aim, hops: u8) -> Hop {
        let name = &self.fabric.places[arrival.router].name;
        let wrong = |invariant, text| Hop::Wrong(Violation::new(invariant, text));
        if hops > MOST_HOPS {
            return wrong(Invariant::NoLoop, format!("a packet loops through {name}"));
        }
        let tables = &state.routers[arrival.router].tables;
        let (ifindex, frame) = match packet::forward(&self.fabric, tables, arrival) {
            Forwarded::Onward(frame) => return Hop::Onward(frame),
            // Nobody has promised anything to a VM that runs before that is decided.
            Forwarded::Ends(_) | Forwarded::Guarded if aim.is_early() => return Hop::Arrived,
            Forwarded::Guarded => {
                return wrong(
                    Invariant::NoBlackhole,
                    format!("a packet with a locator would leave {name}; the guard drops it"),
                );
            }
            Forwarded::Ends(counter) => {
                return wrong(
                    Invariant::NoBlackhole,
                    format!("a packet is lost at {name} ({})", counter.name()),
                );
            }
            Forwarded::Leaves { ifindex, frame } => (ifindex, frame),
        };
        let [source, destination] = [packet::source(&frame), packet::destination(&frame)];
        for field in [source, destination] {
            if self.fabric.is_locator(field) {
                return wrong(
                    Invariant::NoLeak,
                    format!("a packet leaves {name} with locator {}", address(field)),
                );
            }
        }
        let segment = self.fabric.segment(arrival.router, ifindex);
        let place = segment.map_or("the outside", SegmentName::as_str);
        let arrived = match aim {
            Aim::Vm { vm, allowed, .. } => {
                if packet::destination_mac(&frame) != self.fabric.vms[*vm].mac.0 {
                    return wrong(
                        Invariant::NoMisdelivery,
                        format!(
                            "a packet to {} reaches another than its VM in {place}",
                            address(destination)
                        ),
                    );
                }
                self.identity(*vm) == Some(destination)
                    && segment.is_some_and(|it| allowed.contains(it))
            }
            Aim::Peer { vm, peer, .. } => {
                self.identity(*vm) == Some(source) && destination == *peer
            }
        };
        if arrived {
            return Hop::Arrived;
        }
        wrong(
            Invariant::NoBlackhole,
            format!(
                "a packet from {} to {} leaves {name} for {place}, where it does not belong",
                address(source),
                address(destination)
            ),
        )
    }

    /// I8: when nothing is under way any more, every router has what it should, and nothing else.
    fn check_rest(&self, state: &State) -> Option<Violation> {
        if !self.is_at_rest(state) {
            return None;
        }
        let wrong = |text: String| Some(Violation::new(Invariant::Convergent, text));
        for record in &state.store.migrations {
            if !record.phase.is_final() {
                return wrong(format!("migration {} stays {}", record.id, record.phase));
            }
        }
        for (number, router) in state.routers.iter().enumerate() {
            let name = &self.fabric.places[number].name;
            if let Some((id, _)) = router.tables.held().next() {
                return wrong(format!("{name} holds migration {id} for ever"));
            }
            let table = planner::table(&self.fabric.topology, &state.store.vms, name);
            if router.booting || router.tables.table() != table {
                return wrong(format!("{name} has another table than it should"));
            }
            if !router.tables.addresses().eq(table.keys().copied()) {
                return wrong(format!("{name} keeps entries that nothing needs"));
            }
        }
        None
    }
}

/// What becomes of a packet on a router.
pub enum Hop {
    /// It is where it should be.
    Arrived,
    /// It goes on.
    Onward(Vec<u8>),
    /// It breaks an invariant.
    Wrong(Violation),
}

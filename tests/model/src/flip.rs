//! One router's tables while packets are in it: the stores of two transactions that follow each other
//! through the same slot, between any two reads of natmig's own packet logic.
//!
//! The writer's stores are those of `router/tables/protocol.rs`, in its order: claim, pending
//! versions, references, grace; commit; grace; current versions, grace, references, grace, free. The
//! packet logic is run up to its next read, which is answered from memory as it is then; to go on, it
//! is run again with the answers that it had. An entry's reference is read at one moment and, if a slot
//! is asked, its versions at a later one.

mod host;
mod writer;

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use natmig_common::{Interface, Role};
use natmig_ebpf::{Scratch, process};
use stateright::{Checker as _, HasDiscoveries, Model, Property};

use self::{
    host::Host,
    writer::{DESTINATION, Memory, SLOT, SOURCE, Store, program},
};
use crate::packet;

/// Interfaces.
const FABRIC: u32 = 1;
const ACCESS: u32 = 11;

/// A bug in the writer's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The slot is used again without a grace period since it was referred to.
    SlotReusedEarly,
    /// The slot is used again with the same generation, while entries still refer to it.
    GenerationKept,
    /// The commit is folded without a grace period.
    FoldWithoutGrace,
    /// Each entry has a slot of its own.
    TwoStores,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::SlotReusedEarly,
        Self::GenerationKept,
        Self::FoldWithoutGrace,
        Self::TwoStores,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlotReusedEarly => "slot reused early",
            Self::GenerationKept => "slot reused with the same generation",
            Self::FoldWithoutGrace => "fold without a grace period since the commit",
            Self::TwoStores => "two stores to commit one transaction",
        }
    }
}

/// An answer to one of the packet logic's reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    /// An entry, at the moment when its reference is read, or later when its versions are.
    Entry(u8, u64),
    /// A slot's word.
    Word(u64),
}

/// A packet under way: how many of the writer's stores were done when it began, and what its reads
/// were answered, each with the number of stores done by then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    begun: usize,
    reads: Vec<Read>,
}

/// A read: the answer, and after how many stores it was made. Two that have the same answer are equal.
#[derive(Clone, Copy, Debug)]
struct Read {
    stores: usize,
    answer: Answer,
}

impl PartialEq for Read {
    fn eq(&self, other: &Self) -> bool {
        self.answer == other.answer
    }
}

impl Eq for Read {}

impl std::hash::Hash for Read {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.answer.hash(state);
    }
}

/// The writer's progress and the packets under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    stores: usize,
    packets: Vec<Option<Packet>>,
    left: u8,
    seen: Option<(u8, u8)>,
    broken: Option<String>,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The writer's next store, or the end of a grace period.
    Store,
    /// A packet comes to a CPU.
    Begin(usize),
    /// A CPU's packet makes its next read, or ends.
    Read(usize),
}

/// Packets on some CPUs beside a writer.
pub struct FlipModel {
    cpus: usize,
    packets: u8,
    program: Vec<Store>,
    /// Memory after so many stores.
    memories: Vec<Memory>,
    /// For each transaction, after how many stores it counts.
    commits: Vec<usize>,
    interfaces: BTreeMap<u32, Interface>,
}

impl FlipModel {
    /// Packets, on so many CPUs at once, beside the writer of two transactions.
    pub fn new(cpus: usize, packets: u8, plant: Option<Plant>) -> Self {
        let program = program(plant);
        let commits = (1..).zip(&program).filter_map(|(at, store)| match store {
            Store::Word(slot, word) if word >> 63 == 1 && *slot == SLOT => Some(at),
            Store::Word(..)
            | Store::Pending(..)
            | Store::Current(_)
            | Store::Reference(..)
            | Store::Grace => None,
        });
        let interface = |role: Role, ifindex: u32| Interface {
            role: role as u8,
            slot: 1,
            mac: [2, 0, 0, 0, 0, ifindex.to_le_bytes()[0]],
            mtu: 1500,
            ..Interface::default()
        };
        Self {
            cpus,
            packets,
            commits: commits.collect(),
            memories: Memory::after_each(&program),
            program,
            interfaces: [
                (FABRIC, interface(Role::Fabric, FABRIC)),
                (ACCESS, interface(Role::Access, ACCESS)),
            ]
            .into(),
        }
    }

    /// Transactions that count after so many stores.
    fn committed(&self, stores: usize) -> u8 {
        let count = self.commits.iter().filter(|at| **at <= stores).count();
        u8::try_from(count).unwrap_or(u8::MAX)
    }

    /// Runs the packet logic with the answers that there are; what it saw, or `None` if it wants to
    /// read more, together with what it reads next.
    fn run(&self, packet: &Packet, stores: usize) -> Result<(u8, u8), Answer> {
        let mut frame = packet::frame(SOURCE, DESTINATION, ([2; 6], self.interfaces[&FABRIC].mac));
        frame.resize(60, 0);
        let host = Host {
            model: self,
            packet,
            memory: self.memories[stores],
            used: Cell::new(0),
            frame: UnsafeCell::new(frame),
            entries: RefCell::default(),
        };
        let ended = catch_unwind(AssertUnwindSafe(|| {
            process(&host, &mut Scratch::EMPTY.clone(), FABRIC)
        }));
        match ended {
            Ok(_) => {
                let frame = host.frame.into_inner();
                Ok((packet::destination(&frame)[3], packet::source(&frame)[3]))
            }
            Err(stopped) => match stopped.downcast::<Answer>() {
                Ok(answer) => Err(*answer),
                Err(panic) => resume_unwind(panic),
            },
        }
    }

    fn finish(&self, state: &mut State, packet: &Packet, seen: (u8, u8)) {
        state.seen = Some(seen);
        let valid = self.committed(packet.begun)..=self.committed(state.stores);
        let (destination, source) = seen;
        if destination != source {
            state.broken = Some(format!(
                "a packet is delivered as transaction {destination} says, from where transaction {source} says"
            ));
        } else if !valid.contains(&destination) {
            state.broken = Some(format!(
                "a packet saw transaction {destination}, and transactions {} to {} were committed meanwhile",
                valid.start(),
                valid.end()
            ));
        }
    }

    /// Whether a grace period is over: no packet is under way that began before it.
    fn is_over(state: &State) -> bool {
        let mut packets = state.packets.iter().flatten();
        packets.all(|packet| packet.begun >= state.stores)
    }

    fn describe(&self, state: &State, step: Step) -> String {
        match step {
            Step::Store => match self.program[state.stores] {
                Store::Word(_, word) if word >> 63 == 1 => {
                    "the agent commits: it stores the slot's word".to_owned()
                }
                Store::Word(_, word) => {
                    format!("the agent claims the slot: generation {}", word >> 32)
                }
                Store::Pending(entry, version) => {
                    format!(
                        "the agent writes entry {entry}'s pending version, transaction {version}'s"
                    )
                }
                Store::Current(entry) => {
                    format!("the agent brings entry {entry}'s current version up")
                }
                Store::Reference(entry, 0) => format!("the agent clears entry {entry}'s reference"),
                Store::Reference(entry, _) => format!("the agent writes entry {entry}'s reference"),
                Store::Grace => "a grace period ends".to_owned(),
            },
            Step::Begin(cpu) => format!("a packet begins on CPU {cpu}"),
            Step::Read(cpu) => {
                let packet = state.packets[cpu].as_ref();
                let next = packet.map(|packet| self.run(packet, state.stores));
                match next {
                    Some(Err(Answer::Entry(entry, _))) => format!("CPU {cpu} reads entry {entry}"),
                    Some(Err(Answer::Word(word))) => {
                        format!("CPU {cpu} reads the slot's word: {word:#x}")
                    }
                    Some(Ok(seen)) => format!("CPU {cpu}'s packet leaves: it saw {seen:?}"),
                    None => String::new(),
                }
            }
        }
    }
}

impl Model for FlipModel {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            stores: 0,
            packets: vec![None; self.cpus],
            left: self.packets,
            seen: None,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_some() {
            return;
        }
        match self.program.get(state.stores) {
            Some(Store::Grace) if !Self::is_over(state) => {}
            Some(_) => steps.push(Step::Store),
            None => {}
        }
        for (cpu, packet) in state.packets.iter().enumerate() {
            if packet.is_some() {
                steps.push(Step::Read(cpu));
            } else if state.left > 0 {
                steps.push(Step::Begin(cpu));
            }
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        next.seen = None;
        match step {
            Step::Store => next.stores += 1,
            Step::Begin(cpu) => {
                next.left -= 1;
                next.packets[cpu] = Some(Packet {
                    begun: state.stores,
                    reads: Vec::new(),
                });
            }
            Step::Read(cpu) => {
                let mut packet = next.packets[cpu].take()?;
                match self.run(&packet, state.stores) {
                    Ok(seen) => self.finish(&mut next, &packet, seen),
                    Err(answer) => {
                        packet.reads.push(Read {
                            stores: state.stores,
                            answer,
                        });
                        next.packets[cpu] = Some(packet);
                    }
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always("I5 atomic", |_, state: &State| {
            state.broken.is_none()
        })];
        // The model does something: packets see the state before, and each transaction.
        properties.push(Property::sometimes(
            "packets see no transaction",
            |_, state: &State| state.seen == Some((0, 0)),
        ));
        properties.push(Property::sometimes(
            "packets see the first",
            |_, state: &State| state.seen == Some((1, 1)),
        ));
        properties.push(Property::sometimes(
            "packets see the second",
            |_, state: &State| state.seen == Some((2, 2)),
        ));
        properties
    }
}

/// What the checker found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Properties that must show somewhere, and did not.
    pub missing: Vec<&'static str>,
    /// A shortest way to what is broken, as numbered steps.
    pub counterexample: Option<String>,
}

/// Explores all of the model: packets, on so many CPUs at once.
pub fn explore(cpus: usize, packets: u8, plant: Option<Plant>) -> Found {
    let checker = FlipModel::new(cpus, packets, plant)
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let model = FlipModel::new(cpus, packets, plant);
    let counterexample = checker.discovery("I5 atomic").map(|path| {
        let steps = (1..).zip(path.into_vec());
        let lines = steps.map(|(number, (state, step))| match step {
            Some(step) => format!("{number:>3}. {}\n", model.describe(&state, step)),
            None => format!("  => I5 atomic: {}\n", state.broken.unwrap_or_default()),
        });
        lines.collect()
    });
    let properties = model.properties();
    let missing = properties.iter().map(|property| property.name);
    Found {
        states: checker.unique_state_count(),
        missing: missing
            .filter(|name| *name != "I5 atomic" && checker.discovery(name).is_none())
            .collect(),
        counterexample,
    }
}

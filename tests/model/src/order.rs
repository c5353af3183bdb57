//! The memory order of `entered`, `left` and a slot's word: packets on one CPU beside the agent on
//! another, on machines with store buffers (x86-TSO: a store waits in its CPU's buffer, from which the
//! CPU itself reads, until it is drained; a fence and an exchange drain all).
//!
//! The program's order is that of `natmig-ebpf/src/activity.rs`, the agent's that of
//! `router/grace.rs` and `router/tables/protocol.rs`: commit, grace, acknowledge, fold.

use std::collections::VecDeque;

use stateright::{Checker as _, HasDiscoveries, Model, Property};

/// What both CPUs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    Entered,
    Left,
    /// The slot's word: 1 once committed.
    Slot,
    /// The current versions of two entries: 0 before, 1 after the transaction.
    First,
    Second,
}

const WORDS: usize = 5;

const OLD_STATE: &str = "acknowledged, and a packet is processed under the old state";

/// A bug in the order of memory accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// `entered` is stored, not exchanged.
    PlainEntered,
    /// The agent reads `entered` without a fence after its store.
    NoFence,
    /// The agent does not wait for `left`.
    NoGrace,
    /// The packet is marked as finished before its last read.
    LeftEarly,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::PlainEntered,
        Self::NoFence,
        Self::NoGrace,
        Self::LeftEarly,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PlainEntered => "plain stores for `entered`",
            Self::NoFence => "no fence between the commit and reading `entered`",
            Self::NoGrace => "no grace period before the acknowledgement",
            Self::LeftEarly => "`left` is stored before the last read",
        }
    }
}

/// A CPU: its place in its program, and its stores that others do not see yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Cpu {
    at: u8,
    buffer: VecDeque<(u8, u64)>,
}

/// Two CPUs and their memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    memory: [u64; WORDS],
    packet: Cpu,
    agent: Cpu,
    /// Packets that the CPU has still to process, the one under way included.
    packets: u8,
    /// What the packet has read: the slot's word, and the two versions that count.
    slot: Option<u64>,
    versions: [Option<u64>; 2],
    /// What the agent read of `entered`.
    entered: u64,
    acknowledged: bool,
    broken: Option<&'static str>,
}

/// A CPU goes on, or its oldest store becomes visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The packet's CPU executes its next instruction.
    Packet,
    /// The agent's CPU does.
    Agent,
    /// The oldest store of the packet's CPU becomes visible.
    DrainPacket,
    /// The oldest store of the agent's CPU becomes visible.
    DrainAgent,
}

/// Packets beside an agent that commits and folds a transaction.
#[derive(Clone, Copy, Debug)]
pub struct OrderModel {
    /// Packets, one after the other.
    pub packets: u8,
    /// The bug, if there is one.
    pub plant: Option<Plant>,
}

impl Cpu {
    fn read(&self, memory: &[u64; WORDS], word: Word) -> u64 {
        let own = self.buffer.iter().rev().find(|(at, _)| *at == word as u8);
        own.map_or(memory[word as usize], |(_, value)| *value)
    }

    fn store(&mut self, word: Word, value: u64) {
        self.buffer.push_back((word as u8, value));
    }

    fn drain(&mut self, memory: &mut [u64; WORDS]) -> Option<()> {
        let (word, value) = self.buffer.pop_front()?;
        memory[usize::from(word)] = value;
        Some(())
    }

    fn fence(&mut self, memory: &mut [u64; WORDS]) {
        while self.drain(memory).is_some() {}
    }
}

impl OrderModel {
    /// The instructions of a packet.
    fn packet(self, state: &mut State) -> Option<()> {
        if state.packets == 0 {
            return None;
        }
        let State { memory, packet, .. } = state;
        let number = packet.read(memory, Word::Left) + 1;
        match packet.at {
            0 => {
                packet.store(Word::Entered, number);
                if self.plant != Some(Plant::PlainEntered) {
                    packet.fence(memory);
                }
            }
            1 => state.slot = Some(packet.read(memory, Word::Slot)),
            2 => Self::look(state, 0),
            3 if self.plant == Some(Plant::LeftEarly) => packet.store(Word::Left, number),
            4 if self.plant != Some(Plant::LeftEarly) => {
                packet.store(Word::Left, packet.read(memory, Word::Entered));
            }
            3 | 4 => Self::look(state, 1),
            _ => {
                if state.versions[0] != state.versions[1] {
                    state.broken = Some("a packet saw half of the transaction");
                }
                state.packets -= 1;
                state.slot = None;
                state.versions = [None; 2];
                state.packet.at = 0;
                return Some(());
            }
        }
        state.packet.at += 1;
        Some(())
    }

    /// Reads the version that counts: the pending one, which is 1, if the slot's word says so.
    fn look(state: &mut State, entry: usize) {
        let current = [Word::First, Word::Second][entry];
        let version = match state.slot {
            Some(1) => 1,
            Some(_) | None => state.packet.read(&state.memory, current),
        };
        if state.acknowledged && version == 0 {
            state.broken = Some(OLD_STATE);
        }
        state.versions[entry] = Some(version);
    }

    /// The instructions of the agent.
    fn agent(self, state: &mut State) -> Option<()> {
        let State { memory, agent, .. } = state;
        match agent.at {
            0 => agent.store(Word::Slot, 1),
            1 if self.plant == Some(Plant::NoFence) => {}
            1 => agent.fence(memory),
            2 => state.entered = agent.read(memory, Word::Entered),
            3 => {
                let waits = self.plant != Some(Plant::NoGrace);
                if waits && agent.read(memory, Word::Left) < state.entered {
                    return None;
                }
                if (2..=4).contains(&state.packet.at) && state.slot == Some(0) {
                    state.broken = Some(OLD_STATE);
                }
                state.acknowledged = true;
            }
            4 => agent.store(Word::First, 1),
            5 => agent.store(Word::Second, 1),
            _ => return None,
        }
        state.agent.at += 1;
        Some(())
    }

    fn describe(self, state: &State, step: Step) -> String {
        let text = match step {
            Step::Packet => match state.packet.at {
                0 if self.plant == Some(Plant::PlainEntered) => "packet: stores entered",
                0 => "packet: exchanges entered",
                1 => "packet: reads the slot's word",
                2 => "packet: reads the first version",
                3 if self.plant == Some(Plant::LeftEarly) => "packet: stores left",
                4 if self.plant != Some(Plant::LeftEarly) => "packet: stores left",
                3 | 4 => "packet: reads the second version",
                _ => "packet: ends",
            },
            Step::Agent => match state.agent.at {
                0 => "agent: commits: stores the slot's word",
                1 if self.plant == Some(Plant::NoFence) => "agent: does not fence",
                1 => "agent: fences",
                2 => "agent: reads entered",
                3 => "agent: sees left caught up, and acknowledges the commit",
                4 => "agent: folds the first entry",
                _ => "agent: folds the second entry",
            },
            Step::DrainPacket => "packet's CPU: its oldest store becomes visible",
            Step::DrainAgent => "agent's CPU: its oldest store becomes visible",
        };
        text.to_owned()
    }
}

impl Model for OrderModel {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            packets: self.packets,
            ..State::default()
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_none() {
            steps.extend([
                Step::Packet,
                Step::Agent,
                Step::DrainPacket,
                Step::DrainAgent,
            ]);
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Packet => self.packet(&mut next)?,
            Step::Agent => self.agent(&mut next)?,
            Step::DrainPacket => next.packet.drain(&mut next.memory)?,
            Step::DrainAgent => next.agent.drain(&mut next.memory)?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I5 atomic", |_, state: &State| state.broken.is_none()),
            // The model does something: a packet sees the commit, and the agent folds.
            Property::sometimes("a packet sees the commit", |_, state: &State| {
                state.versions == [Some(1); 2]
            }),
            Property::sometimes("the agent folds", |_, state: &State| {
                state.memory[Word::Second as usize] == 1
            }),
        ]
    }
}

/// What the checker found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// A shortest way to what is broken, as numbered steps.
    pub counterexample: Option<String>,
}

/// Explores all of the model.
pub fn explore(model: OrderModel) -> Found {
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let counterexample = checker.discovery("I5 atomic").map(|path| {
        let steps = (1..).zip(path.into_vec());
        let lines = steps.map(|(number, (state, step))| match step {
            Some(step) => format!("{number:>3}. {}\n", model.describe(&state, step)),
            None => format!("  => I5 atomic: {}\n", state.broken.unwrap_or_default()),
        });
        lines.collect()
    });
    Found {
        states: checker.unique_state_count(),
        counterexample,
    }
}

//! What a state of the model consists of.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use natmig::{
    coordinator::{Announced, Command, Coordinator, Reply, Report, Stored, Timestamp},
    names::SegmentName,
    rule::TransactionId,
};

use crate::{check::Violation, fabric::Number, packet::Arrival, shared::Shared, tables::Tables};

/// A controller's number.
pub type ControllerNumber = usize;

/// The fabric, its control plane and what is under way between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What is durable.
    pub store: Shared<Stored>,
    /// The leader's term, which guards the store.
    pub term: u64,
    /// The controller that leads.
    pub leader: ControllerNumber,
    /// The controllers.
    pub controllers: Vec<Controller>,
    /// The routers, by number.
    pub routers: Vec<Router>,
    /// The time.
    pub now: Timestamp,
    /// What may still go wrong.
    pub left: Budget,
    /// The operators' next request.
    pub next_request: usize,
    /// Outcomes that were reported: whether it was success.
    pub told: BTreeMap<TransactionId, bool>,
    /// A packet under way.
    pub flight: Option<Flight>,
    /// The invariant that is broken.
    pub violation: Option<Violation>,
}

/// How often things may happen that need not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Broken connections, or killed agents: the pinned tables stay.
    pub breaks: u8,
    /// Rebooted routers.
    pub reboots: u8,
    /// Killed controllers.
    pub crashes: u8,
    /// Changes of leadership while the old leader lives on.
    pub elections: u8,
    /// Deadlines that pass while something is under way.
    pub deadlines: u8,
    /// Agents that dial a controller that does not lead any longer.
    pub strays: u8,
    /// Packets.
    pub packets: u8,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    /// Its machine; `None` while it does not run.
    pub machine: Option<Shared<Coordinator>>,
    /// Its term.
    pub term: u64,
    /// When it asked to be woken.
    pub wake: Option<Timestamp>,
}

/// A router and its agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Router {
    /// Its pinned tables.
    pub tables: Shared<Tables>,
    /// The highest term that it has seen, on its disk.
    pub term: u64,
    /// It booted and has no table yet, so it attracts no traffic.
    pub booting: bool,
    /// Its connection.
    pub link: Option<Shared<Link>>,
    /// What is left of its last connection.
    pub old: Option<Shared<Link>>,
    /// Connections that it had.
    pub connections: u64,
}

/// A connection between an agent and a controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// The controller.
    pub controller: ControllerNumber,
    /// The term of the controller's commands.
    pub term: u64,
    /// The controller's number for it.
    pub id: u64,
    /// What the router reported, until the controller's machine hears of it.
    pub report: Option<Report>,
    /// Commands under way.
    pub commands: VecDeque<Command>,
    /// What is under way to the controller.
    pub replies: VecDeque<Message>,
    /// The controller's end is gone.
    pub dead: bool,
}

/// What an agent sends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// It keeps the controller's term.
    Welcomed,
    /// It carried out a command, or could not.
    Reply(Reply),
    /// It heard a VM.
    Announced(Announced),
}

/// A packet under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flight {
    /// Where it is.
    pub arrival: Arrival,
    /// To whom it is.
    pub aim: Aim,
    /// Routers that it has passed.
    pub hops: u8,
}

/// Where a packet must end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Aim {
    /// At the VM, in one of these segments.
    Vm {
        /// The VM, by its number in the fabric.
        vm: usize,
        /// Where the VM may be.
        allowed: BTreeSet<SegmentName>,
        /// Whether its sender speaks early.
        early: bool,
    },
    /// At a peer that must see the VM's identity.
    Peer {
        /// The VM that sent it.
        vm: usize,
        /// The peer.
        peer: [u8; 4],
        /// Whether the VM speaks before it is decided that it is there: then it may be lost.
        early: bool,
    },
}

impl Aim {
    /// Whether the sender is a VM of which it is not decided that it is where it speaks: what it sends
    /// may be lost.
    pub const fn is_early(&self) -> bool {
        match self {
            Self::Vm { early, .. } | Self::Peer { early, .. } => *early,
        }
    }

    /// From here on it may be lost.
    pub const fn set_early(&mut self) {
        match self {
            Self::Vm { early, .. } | Self::Peer { early, .. } => *early = true,
        }
    }
}

/// Something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The leader starts, from its store.
    Start,
    /// Another controller is elected; the old leader does not notice.
    Elect,
    /// A controller is killed.
    Crash(ControllerNumber),
    /// The operators' next request.
    Request(Interruption),
    /// An agent dials a controller, reports, and keeps its term.
    Connect(Number, ControllerNumber),
    /// A VM speaks at the place to which a migration brings it.
    Speak(usize, Number),
    /// An agent executes the next command.
    Command(Number, Killed),
    /// A command of an earlier leader arrives late.
    StaleCommand(Number),
    /// A controller takes a router's next message.
    Reply(Number, Interruption),
    /// A message of the previous connection arrives late.
    StaleReply(Number),
    /// A controller learns that the previous connection is gone.
    Notice(Number),
    /// A deadline passes for a controller.
    Tick(ControllerNumber, Interruption),
    /// A connection breaks, or the agent is killed.
    Break(Number),
    /// A router reboots.
    Reboot(Number),
    /// A packet is sent, by its number among those that may be.
    Send(u8),
    /// The packet is processed where it is, and goes on to this router if it goes on.
    Hop(Number),
}

/// After how many of a call's actions the controller is killed, if it is.
pub type Interruption = Option<u8>;

/// After how many of a command's changes the agent is killed, if it is.
pub type Killed = Option<u8>;

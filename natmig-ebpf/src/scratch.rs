//! The state of one packet, in memory that outlives the call.
//!
//! It is not on the stack: the verifier follows every constant that is stored there, and would
//! examine what comes after once for each way that leads to it. Of memory in a map it knows nothing.

use crate::{environment::Hop, lookup::Lookups, packet::Packet, plan::Plan, translate::Rewrite};

/// The state of one packet. What it holds of an earlier packet is never read.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    pub(crate) packet: Packet,
    pub(crate) plan: Plan,
    pub(crate) hop: Hop,
    pub(crate) rewrite: Rewrite,
    pub(crate) lookups: Lookups,
}

impl Scratch {
    /// Nothing is known of any packet.
    pub const EMPTY: Self = Self {
        packet: Packet::EMPTY,
        plan: Plan::EMPTY,
        hop: Hop::NONE,
        rewrite: Rewrite::EMPTY,
        lookups: Lookups::EMPTY,
    };
}

//! The state of one packet, in memory that outlives the call.
//!
//! It is not on the stack: the verifier follows every constant that is stored there, and would
//! examine what comes after once for each way that leads to it. Of memory in a map it knows nothing.

use natmig_common::{Ipv4, Ipv6};

use crate::{
    environment::Hop,
    family::Ip,
    link::Link,
    lookup::{Lookups, Visible},
    packet::Packet,
    plan::Plan,
    translate::Rewrite,
};

/// The state of one frame. What it holds of an earlier frame is never read.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    /// The link layer.
    pub link: Link,
    /// The packet, if it is of IPv4.
    pub ipv4: State<Ipv4>,
    /// The packet, if it is of IPv6.
    pub ipv6: State<Ipv6>,
    /// [`natmig_common::Family::NUMBER`] of the family whose packet was parsed; 0 if none was.
    pub family: u8,
    /// The device to which a frame is redirected.
    pub device: u32,
}

/// The state of one packet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct State<I: Ip> {
    /// The packet as it came in.
    pub packet: Packet<I>,
    /// What becomes of its addresses.
    pub plan: Plan<I>,
    /// Its next hop.
    pub hop: Hop,
    /// What its addresses became.
    pub rewrite: Rewrite<I>,
    /// What the tables say of its destination.
    pub(crate) destination: Visible<I>,
    /// What the tables say of its source.
    pub(crate) source: Visible<I>,
    /// What the tables say of some other address.
    pub(crate) other: Visible<I>,
    pub(crate) lookups: Lookups,
}

impl<I: Ip> State<I> {
    const EMPTY: Self = Self {
        packet: Packet::EMPTY,
        plan: Plan::EMPTY,
        hop: Hop::NONE,
        rewrite: Rewrite::EMPTY,
        destination: Visible::NOTHING,
        source: Visible::NOTHING,
        other: Visible::NOTHING,
        lookups: Lookups::EMPTY,
    };

    /// Begins with a packet.
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        self.packet.begin();
        self.plan.begin();
        self.lookups.begin();
    }
}

impl Scratch {
    /// Nothing is known of any frame.
    pub const EMPTY: Self = Self {
        link: Link::EMPTY,
        ipv4: State::EMPTY,
        ipv6: State::EMPTY,
        family: 0,
        device: 0,
    };
}

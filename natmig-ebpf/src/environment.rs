//! What the packet logic asks of its surroundings: the frame, the router's tables, the kernel's
//! routing table, counters.

use natmig_common::{Counter, Entry, Interface};

use crate::{Address, Frame, HardwareAddress};

/// What the packet logic asks of its surroundings.
pub trait Environment {
    /// The frame's linear part; to be asked again after [`Environment::reshape`].
    fn frame(&self) -> Frame<'_>;

    /// Length of the whole frame in bytes, fragments of a multi-buffer frame included.
    fn frame_length(&self) -> u32;

    /// Moves the frame's first byte `grow` bytes to the front and cuts the frame to `length` bytes,
    /// counted from the new first byte. False if the frame has no room for that.
    fn reshape(&self, grow: u16, length: u16) -> bool;

    /// The interface with this index, `None` if the table has no room for it.
    fn interface(&self, ifindex: u32) -> Option<&Interface>;

    /// The entry to which the index leads from `address`, and where it is. The entry may be of
    /// another address.
    fn entry(&self, address: Address) -> Option<(u32, &Entry)>;

    /// The word of a transaction slot; 0 if there is no such slot.
    fn transaction_word(&self, slot: u32) -> u64;

    /// Whether the address is in a locator pool of the fabric.
    fn in_pool(&self, address: Address) -> bool;

    /// The MAC address that answers for away VMs.
    fn gateway_mac(&self) -> HardwareAddress;

    /// Asks the kernel's routing and neighbour tables.
    fn route(&self, query: &RouteQuery, hop: &mut Hop);

    /// Counts a packet of `bytes` for the interface whose counters are at `slot`.
    fn count(&self, slot: u16, counter: Counter, bytes: u32);

    /// Counts a packet of `bytes` for the entry at `index`: to its address, or from it.
    fn count_binding(&self, index: u32, to: bool, bytes: u32);
}

/// A question to the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery {
    /// The packet's ingress interface.
    pub ingress: u32,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// IP total length in bytes; 0 to leave the MTU unchecked.
    pub length: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Type of service.
    pub tos: u8,
}

/// What a [`Hop`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopKind {
    /// There is no route that the fast path can use.
    None,
    /// `ifindex` and the MAC addresses say where the frame goes.
    Forward,
    /// Not forwarded: the router's own address, or no route at all.
    Local,
    /// The route leads out of `ifindex`, but the next hop's MAC address is unknown.
    NoNeighbor,
    /// The packet is longer than `mtu`.
    TooBig,
}

/// The next hop of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// What the other fields hold.
    pub kind: HopKind,
    /// The egress interface.
    pub ifindex: u32,
    /// MAC address of the egress interface.
    pub source_mac: HardwareAddress,
    /// MAC address of the next hop.
    pub destination_mac: HardwareAddress,
    /// Bytes of an IP packet that the route takes.
    pub mtu: u16,
}

impl Hop {
    /// No next hop.
    pub const NONE: Self = Self {
        kind: HopKind::None,
        ifindex: 0,
        source_mac: HardwareAddress::NONE,
        destination_mac: HardwareAddress::NONE,
        mtu: 0,
    };
}

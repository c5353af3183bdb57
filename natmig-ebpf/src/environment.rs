//! What the packet logic asks of its surroundings: the frame, the router's tables, the kernel's
//! routing table, counters.

use natmig_common::{
    Aligned, BlockBucket, Counter, Entry, Interface, NextHop, PoolMask, PrefixBucket, PrefixIpv4,
    Settled,
};

use crate::{Frame, HardwareAddress, Ip};

/// What the packet logic asks of its surroundings.
pub trait Environment {
    /// The frame's linear part; to be asked again after [`Environment::reshape`] and
    /// [`Environment::shift`].
    fn frame(&self) -> Frame<'_>;

    /// Length of the whole frame in bytes, fragments of a multi-buffer frame included.
    fn frame_length(&self) -> u32;

    /// Moves the frame's first byte `grow` bytes to the front and cuts the frame to `length` bytes,
    /// counted from the new first byte. False if the frame has no room for that.
    fn reshape(&self, grow: u16, length: u16) -> bool;

    /// Moves the frame's first byte `grow` bytes to the front, or to the back if that is negative.
    /// False if the frame has no room for that.
    fn shift(&self, grow: i32) -> bool;

    /// The interface with this index, `None` if the table has no room for it.
    fn interface(&self, ifindex: u32) -> Option<&Interface>;

    /// The interface that is the VLAN with this identifier on the device.
    fn vlan(&self, device: u32, identifier: u16) -> Option<u32>;

    /// Element of `PREFIXES_IPV4`.
    fn prefix_ipv4(&self, number: u32) -> Option<&PrefixIpv4>;

    /// Element of `POOL_MASKS`.
    fn pool_mask(&self, number: u32) -> Option<&PoolMask>;

    /// Element of `PREFIXES_IPV6`.
    fn prefixes_ipv6(&self, bucket: u32) -> Option<&PrefixBucket>;

    /// Element of `BLOCKS_IPV6`.
    fn blocks_ipv6(&self, bucket: u32) -> Option<&BlockBucket>;

    /// The entry to which the index leads from `address`.
    fn index<I: Ip>(&self, address: I::Address) -> Option<u32>;

    /// The entry. It may be of another address than the one from which it was found.
    fn entry<I: Ip>(&self, index: u32) -> Option<&Entry<I>>;

    /// Element of `ALIGNED_*`.
    fn aligned<I: Ip>(&self, number: u32) -> Option<&Aligned>;

    /// What may be known of the entry without looking at it.
    fn settled<I: Ip>(&self, index: u32) -> Option<&Settled<I>>;

    /// The word of a transaction slot; 0 if there is no such slot.
    fn transaction_word(&self, slot: u32) -> u64;

    /// Element of `ROUTES`.
    fn route(&self, number: u32) -> u64;

    /// Element of `NEXT_HOPS`.
    fn next_hop(&self, number: u32) -> Option<&NextHop>;

    /// Whether the heart beats: whether routes of our own are believed.
    fn believes_routes(&self) -> bool;

    /// Whether packets that no binding touches are forwarded as well.
    fn forwards_all(&self) -> bool;

    /// The MAC address that answers for away VMs.
    fn gateway_mac(&self) -> HardwareAddress;

    /// Asks the kernel's routing and neighbour tables.
    fn fib<I: Ip>(&self, query: &RouteQuery<I>, hop: &mut Hop);

    /// Takes note of a frame that the VM with this MAC address sent on the interface `ingress`, if a
    /// migration waits for that.
    fn hear(&self, mac: HardwareAddress, ingress: u32) -> Hearing;

    /// Whether a migration waits to hear the VM with this MAC address.
    fn awaits(&self, mac: HardwareAddress) -> bool;

    /// Counts a packet of `bytes` for the interface whose counters are at `slot`.
    fn count(&self, slot: u16, counter: Counter, bytes: u32);

    /// As [`Environment::count`], for two counters.
    #[inline(always)]
    fn count_both(&self, slot: u16, one: Counter, other: Counter, bytes: u32) {
        self.count(slot, one, bytes);
        self.count(slot, other, bytes);
    }

    /// Counts a packet of `bytes` for the entry at `index`: to its address, or from it. False if it
    /// could not be counted.
    #[must_use]
    fn count_binding<I: Ip>(&self, index: u32, to: bool, bytes: u32) -> bool;

    /// As [`Environment::count_binding`], some time later, together with other packets. False if an
    /// earlier packet could not be counted.
    #[must_use]
    fn count_binding_later<I: Ip>(&self, index: u32, to: bool, bytes: u32) -> bool;
}

/// What a frame means to the migrations that wait to hear their VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// None waits for its sender.
    Unawaited,
    /// One waits for its sender, on another interface.
    Elsewhere,
    /// Its sender was heard before.
    Again,
    /// Its sender is heard for the first time.
    First,
    /// As `First`, but nobody could be told.
    Unreported,
}

/// A question to the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery<I: Ip> {
    /// The packet's ingress interface.
    pub ingress: u32,
    /// Source address.
    pub source: I::Address,
    /// Destination address.
    pub destination: I::Address,
    /// Length of the IP packet in bytes; 0 to leave the MTU unchecked.
    pub length: u16,
    /// IP protocol.
    pub protocol: u8,
    /// IPv4: type of service. IPv6: traffic class and flow label, as in the packet.
    pub class: u32,
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
#[repr(C)]
pub struct Hop {
    /// What the other fields hold.
    pub kind: HopKind,
    /// The egress interface's role; 0 if natmig does not know the interface.
    pub role: u8,
    /// VLAN identifier of the egress interface; 0 if it is no VLAN.
    pub vlan: u16,
    /// The egress interface.
    pub ifindex: u32,
    /// The device that the frame is redirected to: the egress interface, or what carries it.
    pub device: u32,
    /// Bytes of an IP packet that the route takes.
    pub mtu: u16,
    /// MAC address of the egress interface.
    pub source_mac: HardwareAddress,
    /// MAC address of the next hop.
    pub destination_mac: HardwareAddress,
}

impl Hop {
    /// No next hop.
    pub const NONE: Self = Self {
        kind: HopKind::None,
        role: 0,
        vlan: 0,
        ifindex: 0,
        device: 0,
        mtu: 0,
        source_mac: HardwareAddress::NONE,
        destination_mac: HardwareAddress::NONE,
    };

    /// The egress is this interface.
    #[inline(always)]
    pub(crate) fn leave_on(&mut self, ifindex: u32, interface: &Interface) {
        self.ifindex = ifindex;
        self.role = interface.role;
        self.vlan = interface.vlan;
        self.device = if interface.parent == 0 {
            ifindex
        } else {
            interface.parent
        };
    }
}

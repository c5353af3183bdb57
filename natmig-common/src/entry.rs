//! Entries: what the router does with packets from and to one bound address.

use bytemuck::{Pod, Zeroable};

use crate::{Family, Ipv4, Ipv6, Reference};

/// A MAC address.
pub type Mac = [u8; 6];

/// The router is a home edge of the identity: it anchors, and answers ARP for it.
pub const FLAG_HOME_EDGE: u8 = 1;

/// What a [`Version`] says about its address. The first three are of identities, the others of locators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Action {
    /// No binding: the address is like any other.
    Absent = 0,
    /// An identity whose VM is elsewhere. `counterpart` is its locator; with [`FLAG_HOME_EDGE`],
    /// `mac` is the VM's.
    Away = 1,
    /// An identity whose VM is here, on `ifindex` with `mac`. `counterpart` is its locator, or zero
    /// for a VM that has returned home, whose source is never translated.
    Local = 2,
    /// A locator whose VM is here, on `ifindex` with `mac`. `counterpart` is the identity.
    Deliver = 3,
    /// A locator whose VM moved on from here. `counterpart` is the identity, `forward` the address
    /// under which the VM is reached: its locator, or its identity if it went home.
    Forward = 4,
    /// A locator of another place. `counterpart` is the identity.
    Known = 5,
}

impl Action {
    /// The action with this number, or `None` for a number that is none.
    #[inline]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Absent),
            1 => Some(Self::Away),
            2 => Some(Self::Local),
            3 => Some(Self::Deliver),
            4 => Some(Self::Forward),
            5 => Some(Self::Known),
            _ => None,
        }
    }
}

/// One state of an entry of the family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Version<F: Family> {
    /// [`Action`].
    pub action: u8,
    /// `FLAG_*` bits.
    pub flags: u8,
    /// The VM's MAC address, where the action needs it.
    pub mac: Mac,
    /// The VM's access interface, where the action needs it.
    pub ifindex: u32,
    /// Unused, zero.
    pub _reserved: u32,
    /// The other address of the binding, network order.
    pub counterpart: F::Octets,
    /// Where packets to a locator go on to, network order; see [`Action::Forward`].
    pub forward: F::Octets,
}

/// Element of the `ENTRIES_*` map of the family: one cache line for IPv4, two for IPv6, of which
/// the first has all that a settled entry needs but for [`Version::forward`].
///
/// `reference` names the transaction that the pending version belongs to, 0 if nothing is pending.
/// The pending version counts from the moment when that transaction is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Entry<F: Family> {
    /// The address itself, network order. The program compares it with the packet's, because an
    /// index element may be freed and reused while a CPU reads it.
    pub address: F::Octets,
    /// [`Family::NUMBER`], or 0 in an entry that is free.
    pub family: u8,
    /// Unused, zero.
    pub _pad: F::Padding,
    /// [`Reference`] to the transaction of the pending version.
    pub reference: u64,
    /// The version that counts when nothing is pending, or the pending one is not committed.
    pub current: Version<F>,
    /// The version that counts once its transaction is committed.
    pub pending: Version<F>,
}

impl<F: Family> Entry<F> {
    /// The transaction of the pending version, if there is one.
    #[inline]
    pub const fn reference(&self) -> Option<Reference> {
        Reference::from_raw(self.reference)
    }
}

// SAFETY: all fields are, of either family; the sizes asserted below leave no room for padding.
unsafe impl<F: Family> Zeroable for Version<F> {}
// SAFETY: as above, and any bytes are a value.
unsafe impl<F: Family> Pod for Version<F> {}
// SAFETY: as above.
unsafe impl<F: Family> Zeroable for Entry<F> {}
// SAFETY: as above.
unsafe impl<F: Family> Pod for Entry<F> {}

/// Element of the `BINDING_COUNTERS_*` map of the family, see [`binding_counter`]: packets and bytes in
/// one word, so that one addition counts both. The highest bit of each half is
/// a guard: who sees one set takes the word (exchanging it for 0) and adds it to the entry's element
/// of `BINDING_TOTALS`, long before either half overflows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct PackedTraffic(pub u64);

impl PackedTraffic {
    /// Bits of the bytes, guard included; the packets have the rest.
    const BYTE_BITS: u32 = 38;
    /// The guards: 2^37 bytes (137 GB) and 2^25 packets.
    const GUARDS: u64 = 1 << 63 | 1 << (Self::BYTE_BITS - 1);

    /// So many packets, of so many bytes in all.
    #[inline]
    pub const fn new(packets: u32, bytes: u32) -> Self {
        Self((packets as u64) << Self::BYTE_BITS | bytes as u64)
    }

    /// One packet of this many bytes.
    #[inline]
    pub const fn packet(bytes: u32) -> Self {
        Self::new(1, bytes)
    }

    /// Whether the word is to be taken.
    #[inline]
    pub const fn is_full(self) -> bool {
        self.guards() != 0
    }

    /// The guards that are set: none, unless the word is to be taken.
    #[inline]
    pub const fn guards(self) -> u64 {
        self.0 & Self::GUARDS
    }

    /// The packets.
    #[inline]
    pub const fn packets(self) -> u64 {
        self.0 >> Self::BYTE_BITS
    }

    /// Their bytes, link-layer headers included.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.0 & ((1 << Self::BYTE_BITS) - 1)
    }
}

/// Which element of `BINDING_COUNTERS_*` counts traffic to (or from) the address of an entry in a bank.
/// A CPU adds to bank `cpu % banks`, atomically. A bank has `capacity` elements, one per entry, for
/// traffic to addresses, then as many for traffic from them: traffic of one kind stays close together.
#[inline]
pub const fn binding_counter(bank: u32, capacity: u32, entry: u32, to: bool) -> u32 {
    let plane = bank.wrapping_mul(2).wrapping_add(!to as u32);
    plane.wrapping_mul(capacity).wrapping_add(entry)
}

/// Element of the `BINDING_TOTALS` hash, key [`BindingKey`]: what was taken out of the entry's
/// [`PackedTraffic`]. Only busy addresses have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BindingTotal {
    /// Packets whose destination was the entry's address.
    pub packets_to: u64,
    /// Their bytes, link-layer headers included.
    pub bytes_to: u64,
    /// Packets whose source was the entry's address.
    pub packets_from: u64,
    /// Their bytes, link-layer headers included.
    pub bytes_from: u64,
}

/// Key of the `BINDING_TOTALS` hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BindingKey {
    /// Index of the entry.
    pub entry: u32,
    /// [`Family::NUMBER`].
    pub family: u32,
}

const _: () = {
    assert!(size_of::<Version<Ipv4>>() == 24);
    assert!(size_of::<Version<Ipv6>>() == 48);
    assert!(size_of::<Entry<Ipv4>>() == 64 && align_of::<Entry<Ipv4>>() == 64);
    assert!(size_of::<Entry<Ipv6>>() == 128 && align_of::<Entry<Ipv6>>() == 64);
    assert!(core::mem::offset_of!(Entry<Ipv4>, reference) == 8);
    assert!(core::mem::offset_of!(Entry<Ipv4>, current) == 16);
    assert!(core::mem::offset_of!(Entry<Ipv4>, pending) == 40);
    assert!(core::mem::offset_of!(Entry<Ipv6>, reference) == 24);
    assert!(core::mem::offset_of!(Entry<Ipv6>, current) == 32);
    assert!(core::mem::offset_of!(Entry<Ipv6>, pending) == 80);
    // The first line has the settled version but for its `forward`.
    assert!(32 + core::mem::offset_of!(Version<Ipv6>, forward) == 64);
    assert!(size_of::<PackedTraffic>() == 8);
    assert!(size_of::<BindingTotal>() == 32);
};

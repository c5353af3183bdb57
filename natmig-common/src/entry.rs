//! Entries: what the router does with packets from and to one bound address.

use crate::Reference;

/// A MAC address.
pub type Mac = [u8; 6];

/// `Entry::family` of an IPv4 address.
pub const FAMILY_IPV4: u8 = 4;

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

/// One state of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Version {
    /// [`Action`].
    pub action: u8,
    /// `FLAG_*` bits.
    pub flags: u8,
    /// The VM's MAC address, where the action needs it.
    pub mac: Mac,
    /// The other address of the binding, network order.
    pub counterpart: [u8; 4],
    /// Where packets to a locator go on to, network order; see [`Action::Forward`].
    pub forward: [u8; 4],
    /// The VM's access interface, where the action needs it.
    pub ifindex: u32,
    /// Unused, zero.
    pub _reserved: u32,
}

/// One cache line of the `ENTRIES` map.
///
/// `reference` names the transaction that the pending version belongs to, 0 if nothing is pending.
/// The pending version counts from the moment when that transaction is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Entry {
    /// The address itself, network order. The program compares it with the packet's, because an
    /// index element may be freed and reused while a CPU reads it.
    pub address: [u8; 4],
    /// [`FAMILY_IPV4`], or 0 in an entry that is free.
    pub family: u8,
    /// Unused, zero.
    pub _pad: [u8; 3],
    /// [`Reference`] to the transaction of the pending version.
    pub reference: u64,
    /// The version that counts when nothing is pending, or the pending one is not committed.
    pub current: Version,
    /// The version that counts once its transaction is committed.
    pub pending: Version,
}

impl Entry {
    /// The transaction of the pending version, if there is one.
    #[inline]
    pub const fn reference(&self) -> Option<Reference> {
        Reference::from_raw(self.reference)
    }
}

/// Traffic of one bound address: an element of the per-CPU `BINDING_COUNTERS` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BindingTraffic {
    /// Packets whose destination was the entry's address.
    pub packets_to: u64,
    /// Their bytes, link-layer headers included.
    pub bytes_to: u64,
    /// Packets whose source was the entry's address.
    pub packets_from: u64,
    /// Their bytes, link-layer headers included.
    pub bytes_from: u64,
}

const _: () = {
    assert!(size_of::<Version>() == 24);
    assert!(size_of::<Entry>() == 64 && align_of::<Entry>() == 64);
    assert!(core::mem::offset_of!(Entry, reference) == 8);
    assert!(core::mem::offset_of!(Entry, current) == 16);
    assert!(core::mem::offset_of!(Entry, pending) == 40);
    assert!(size_of::<BindingTraffic>() == 32);
};

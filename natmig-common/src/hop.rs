//! Routes and next hops of our own, kept by the agent from the kernel's tables, and the heartbeat
//! without which they are not believed.

use crate::Mac;

/// Elements of the `ROUTES` map. Element 0 stays [`Route::NONE`]: it means "ask the kernel".
pub const ROUTE_COUNT: u32 = 16384;
/// Elements of the `NEXT_HOPS` map.
pub const NEXT_HOP_COUNT: u32 = 65536;

/// Element of the `ROUTES` map: `count` next hops from element `first` of `NEXT_HOPS` on, as one
/// word that is read and written at once. A change writes other elements of `NEXT_HOPS`, flips the
/// word, and reuses the old ones a grace period later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// First element of `NEXT_HOPS`.
    pub first: u32,
    /// Number of elements; never 0. A flow takes element `first + hash % count`.
    pub count: u16,
}

impl Route {
    /// The word of a route that is not known: the kernel is asked.
    pub const NONE: u64 = 0;

    /// The route's word.
    pub const fn word(self) -> u64 {
        ((self.first as u64) << 16) | self.count as u64
    }

    /// The route that a word says, `None` if the kernel is to be asked.
    #[inline]
    pub const fn from_word(word: u64) -> Option<Self> {
        let count = (word & 0xffff) as u16;
        if count == 0 {
            return None;
        }
        Some(Self {
            first: ((word >> 16) & 0xffff_ffff) as u32,
            count,
        })
    }
}

/// Element of the `NEXT_HOPS` map; never changed while a route leads to it, but for `valid`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(32))]
pub struct NextHop {
    /// The egress interface, as `INTERFACES` has it.
    pub ifindex: u32,
    /// The device to which the frame is redirected: the interface, or the parent of a VLAN.
    pub device: u32,
    /// Bytes of an IP packet that the route takes.
    pub mtu: u16,
    /// VLAN identifier of the egress tag; 0 for none.
    pub vlan: u16,
    /// [`crate::Role`] of the egress interface.
    pub role: u8,
    /// 1 if the next hop can be used; else the kernel is asked.
    pub valid: u8,
    /// MAC address of the next hop.
    pub destination_mac: Mac,
    /// MAC address of the egress interface.
    pub source_mac: Mac,
    /// Unused, zero.
    pub _reserved: [u8; 6],
}

/// The single element of the `HEARTBEAT` map: routes are believed while `now - beat < patience`,
/// in jiffies of the kernel, which only a BPF program can read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Heartbeat {
    /// `bpf_jiffies64()` when the agent last proved that it is alive and that its routes are right.
    pub beat: u64,
    /// Jiffies for which that is believed; 0 for never.
    pub patience: u64,
    /// Unused, zero.
    pub _reserved: [u64; 6],
}

const _: () = {
    assert!(size_of::<NextHop>() == 32);
    assert!(size_of::<Heartbeat>() == 64);
};

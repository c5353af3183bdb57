//! VMs that a router waits to hear, because a migration that it has prepared brings them here.

use bytemuck::{Pod, Zeroable};

use crate::Mac;

/// Elements of the `AWAITED` hash: VMs that a router can wait for at once.
pub const AWAITED_COUNT: u32 = 16_384;
/// Bytes of the `ANNOUNCED` ring buffer.
pub const ANNOUNCED_RING_BYTES: u32 = 1 << 16;

/// Key of the `AWAITED` hash: the VM's MAC address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct AwaitedKey {
    /// The VM's MAC address.
    pub mac: Mac,
    /// Unused, zero.
    pub _pad: [u8; 2],
}

impl AwaitedKey {
    /// The key of the VM with this MAC address.
    #[inline]
    pub const fn new(mac: Mac) -> Self {
        Self { mac, _pad: [0; 2] }
    }
}

/// Element of the `AWAITED` hash. It stays until the transaction is decided on this router, so that
/// what was heard outlives whoever was not there to be told.
///
/// The program writes `heard_at`; a grace period passes before an element is reused for another VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Awaited {
    /// The migration's number.
    pub transaction: u64,
    /// When the VM was heard first: nanoseconds of `CLOCK_MONOTONIC`; 0 if it was not.
    pub heard_at: u64,
    /// The access interface on which it is to be heard.
    pub ifindex: u32,
    /// Unused, zero.
    pub _reserved: u32,
}

/// Record of the `ANNOUNCED` ring buffer: a VM was heard, for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Announced {
    /// The migration's number.
    pub transaction: u64,
    /// When: nanoseconds of `CLOCK_MONOTONIC`.
    pub heard_at: u64,
    /// Who.
    pub key: AwaitedKey,
}

const _: () = {
    assert!(size_of::<AwaitedKey>() == 8);
    assert!(size_of::<Awaited>() == 24);
    assert!(size_of::<Announced>() == 24);
    assert!(ANNOUNCED_RING_BYTES.is_power_of_two());
};

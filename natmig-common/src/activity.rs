//! Per-CPU activity: how userspace learns that no packet is any longer processed under an old state.

/// One CPU's element of the `ACTIVITY` map, a cache line of its own.
///
/// The program stores a fresh number into `entered` with an atomic exchange, a full barrier, before
/// it reads any table, and the same number into `left` when it has finished. Userspace changes a
/// table, issues a full fence, reads `entered` and waits until `left` has reached it: a packet that
/// the CPU began before the change has then ended, and a later one sees the change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Activity {
    /// Number of the packet that was last begun.
    pub entered: u64,
    /// Number of the packet that was last finished.
    pub left: u64,
    /// 0 while nothing is traced. Otherwise packets are traced until this time, in nanoseconds of
    /// `CLOCK_MONOTONIC`; the tracer moves it on for as long as it lives, and the program sets it to
    /// 0 when it has passed. Here, because the program has this line at hand for every packet.
    pub traced_until: u64,
    /// 1 while the CPU adds to counters what it has noted of traffic, between packets: see
    /// [`crate::Unbanked`].
    pub banking: u64,
    /// Unused, zero.
    pub _reserved: [u64; 4],
}

const _: () = assert!(size_of::<Activity>() == 64);

//! What the benchmarks' eBPF programs and the program that runs them agree on: the addresses of the
//! traffic, the shape of its frames, and the layouts of maps.
//!
//! Traffic is a sequence of numbers below some count. The addresses of a packet, and its ports, are
//! functions of its numbers, so whoever sees a frame behind the router can tell what went in and what
//! must have come out.

#![cfg_attr(target_arch = "bpf", no_std)]
#![expect(
    clippy::inline_always,
    reason = "the verifier and the clock see every call"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "words of addresses and parts of numbers"
)]

use bytemuck::{Pod, Zeroable};

/// Bindings in the largest tables.
pub const BINDINGS: u32 = 1_000_000;
/// Bytes of an IPv4 frame, without its check sequence: 64 on the wire, with UDP.
pub const IPV4_FRAME: usize = 60;
/// Bytes of an IPv6 frame: Ethernet, IPv6 and UDP headers.
pub const IPV6_FRAME: usize = 62;
/// Router interfaces of one lane: out is `OUT - IN` above in.
pub const IN: u32 = 256;
/// See [`IN`].
pub const OUT: u32 = 512;
/// Lanes that a run may have: interfaces of one kind differ in their lowest bits, by lane.
pub const LANES: u32 = 64;

/// `Side::kind`: addresses that nothing binds, scattered over a quarter of all.
pub const SCATTERED: u32 = 0;
/// `Side::kind`: addresses of a table.
pub const TABLE: u32 = 1;

/// How a packet's number becomes an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Side {
    /// [`SCATTERED`] or [`TABLE`].
    pub kind: u32,
    /// 1 if the packet's second number counts, 0 for its first.
    pub second: u32,
    /// IPv4: the address of number 0. IPv6: the third 16 bits of all addresses.
    pub base: u32,
    /// Odd; what a number is multiplied with, modulo `mask + 1`: 1 for dense addresses.
    pub multiplier: u32,
    /// A power of two, less 1.
    pub mask: u32,
    /// IPv6: logarithm of the number of addresses in a /64.
    pub shift: u32,
}

impl Side {
    /// Scatters numbers over all values of 32 bits (Knuth's multiplicative hashing).
    #[inline(always)]
    const fn scatter(number: u32) -> u32 {
        number.wrapping_mul(0x9e37_79b1)
    }

    /// The IPv4 address of a number, as a number.
    #[inline(always)]
    pub const fn ipv4(&self, number: u32) -> u32 {
        if self.kind == SCATTERED {
            return 0x8000_0000 | (Self::scatter(number) >> 2);
        }
        self.base
            .wrapping_add(number.wrapping_mul(self.multiplier) & self.mask)
    }

    /// The words of the IPv6 address of a number, as numbers: the second half of its /64, and the
    /// last two. The first are those of [`IPV6_PREFIX`] and `base`, the others 0.
    #[inline(always)]
    pub const fn ipv6(&self, number: u32) -> [u16; 3] {
        let value = if self.kind == SCATTERED {
            return [(Self::scatter(number) >> 16) as u16, 0, 1];
        } else {
            number.wrapping_mul(self.multiplier) & self.mask
        };
        let low = value & ((1u32 << (self.shift & 31)).wrapping_sub(1));
        [
            (value >> (self.shift & 31)) as u16,
            (low >> 16) as u16,
            low as u16,
        ]
    }
}

/// First words of all IPv6 addresses: the prefix for documentation (RFC 3849).
pub const IPV6_PREFIX: [u16; 2] = [0x2001, 0x0db8];

/// What a generator sends. One per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Generator {
    /// State of the random numbers.
    pub state: u64,
    /// The first number of a packet is `stride` times a random number below `count`.
    pub count: u32,
    /// See `count`: spreads the numbers over the table.
    pub stride: u32,
    /// The second number is a random number below this.
    pub second_count: u32,
    /// The interface to send from.
    pub ifindex: u32,
    /// Destinations.
    pub destination: Side,
    /// Sources.
    pub source: Side,
    /// Destination MAC address, as words in memory order.
    pub destination_mac: [u16; 3],
    /// Source MAC address, as words in memory order; the second number is added to the last as a
    /// big-endian number.
    pub source_mac: [u16; 3],
    /// Unused, zero.
    pub _pad: [u8; 4],
}

/// Source port of a packet with these numbers: bits of both, and never 0.
#[inline(always)]
pub const fn source_port(first: u32, second: u32) -> u16 {
    0x8000 | ((second & 0x3ff) << 4) as u16 | ((first >> 16) & 0xf) as u16
}

/// Destination port of a packet with this first number.
#[inline(always)]
pub const fn destination_port(first: u32) -> u16 {
    first as u16
}

/// The numbers of a packet with these ports.
pub const fn numbers(source_port: u16, destination_port: u16) -> (u32, u32) {
    let first = ((source_port as u32 & 0xf) << 16) | destination_port as u32;
    (first, (source_port as u32 >> 4) & 0x3ff)
}

/// A frame as a sink saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Captured {
    /// Its lane.
    pub lane: u32,
    /// Its length.
    pub length: u32,
    /// Its first bytes.
    pub bytes: [u8; 64],
}

/// One's complement sum of 16-bit words, folded.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

const _: () = {
    assert!(size_of::<Side>() == 24);
    assert!(size_of::<Generator>() == 88);
    assert!(size_of::<Captured>() == 72);
};

//! Addresses as the program compares and copies them: machine words, the packet's byte order in
//! memory.

/// An IP address of either family. The octets lie in memory as in a packet, whatever the machine's
/// byte order.
pub trait Address: Copy + Eq + core::fmt::Debug {
    /// The octets in the order in which they are written.
    type Octets: Copy;

    /// The unspecified address, which stands for "none".
    const NONE: Self;

    /// From octets in the order in which they are written.
    fn new(octets: Self::Octets) -> Self;

    /// The octets in the order in which they are written.
    fn octets(self) -> Self::Octets;

    /// Whether this is the unspecified address.
    #[inline(always)]
    fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Whether packets to this address are never translated nor forwarded by natmig.
    fn is_special(self) -> bool;

    /// Sum of the address's 32-bit words in memory order: what it adds to a one's complement sum.
    fn sum(self) -> u64;

    /// Sum of the complements of the address's 32-bit words.
    fn complement_sum(self) -> u64;
}

/// An IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressIpv4(u32);

impl AddressIpv4 {
    /// As a number in memory order.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// From a number in memory order.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// As a number: the first octet is the highest.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        u32::from_be(self.0)
    }

    /// Whether both addresses are in the same subnet; never, if the netmask is empty.
    #[inline(always)]
    pub const fn shares_prefix(self, other: Self, netmask: Self) -> bool {
        netmask.0 != 0 && (self.0 ^ other.0) & netmask.0 == 0
    }
}

impl Address for AddressIpv4 {
    type Octets = [u8; 4];

    const NONE: Self = Self(0);

    #[inline(always)]
    fn new(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    #[inline(always)]
    fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// This network (0/8), loopback (127/8), link-local (169.254/16), multicast, reserved and
    /// broadcast (224/3).
    #[inline(always)]
    fn is_special(self) -> bool {
        let number = self.number();
        let first = number >> 24;
        first == 0 || first == 127 || first >= 224 || number >> 16 == 0xa9fe
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        u64::from(self.0)
    }

    #[inline(always)]
    fn complement_sum(self) -> u64 {
        u64::from(!self.0)
    }
}

/// An IPv6 address: its halves, each in memory order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AddressIpv6 {
    first: u64,
    second: u64,
}

impl AddressIpv6 {
    /// From its halves in memory order.
    #[inline(always)]
    pub const fn from_raw(first: u64, second: u64) -> Self {
        Self { first, second }
    }

    /// Its halves in memory order.
    #[inline(always)]
    pub const fn raw(self) -> [u64; 2] {
        [self.first, self.second]
    }

    /// The first 64 bits as a number.
    #[inline(always)]
    pub const fn high(self) -> u64 {
        u64::from_be(self.first)
    }

    /// The last 64 bits as a number.
    #[inline(always)]
    pub const fn low(self) -> u64 {
        u64::from_be(self.second)
    }

    /// Whether the address is multicast (`ff00::/8`).
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        self.high() >> 56 == 0xff
    }

    /// Whether the address is link-local (`fe80::/10`).
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        self.high() >> 54 == 0xfe80 >> 6
    }

    /// Whether both addresses are in the same prefix of this length; never, if the length is 0.
    #[inline(always)]
    pub const fn shares_prefix(self, other: Self, length: u8) -> bool {
        let high = self.high() ^ other.high();
        let low = self.low() ^ other.low();
        match length {
            0 => false,
            1..=64 => high.unbounded_shr(64_u32.wrapping_sub(widen(length))) == 0,
            _ => high == 0 && low.unbounded_shr(128_u32.wrapping_sub(widen(length))) == 0,
        }
    }
}

/// A length of at most 128.
#[inline(always)]
const fn widen(length: u8) -> u32 {
    u32::from_le_bytes([length, 0, 0, 0])
}

/// Sum of the 32-bit words of `value`.
#[inline(always)]
const fn halves(value: u64) -> u64 {
    (value & 0xffff_ffff).wrapping_add(value >> 32)
}

impl Address for AddressIpv6 {
    type Octets = [u8; 16];

    const NONE: Self = Self {
        first: 0,
        second: 0,
    };

    #[inline(always)]
    fn new(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, second @ ..] = octets;
        Self {
            first: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            second: u64::from_ne_bytes(second),
        }
    }

    #[inline(always)]
    fn octets(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.first.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.second.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Unspecified, loopback, IPv4-mapped and IPv4-compatible (all in `::/64`), link-local, multicast.
    #[inline(always)]
    fn is_special(self) -> bool {
        self.first == 0 || self.is_link_local() || self.is_multicast()
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        halves(self.first).wrapping_add(halves(self.second))
    }

    #[inline(always)]
    fn complement_sum(self) -> u64 {
        halves(!self.first).wrapping_add(halves(!self.second))
    }
}

/// A MAC address in the low 48 bits in memory order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareAddress(u64);

impl HardwareAddress {
    /// 00:00:00:00:00:00, which stands for "none".
    pub const NONE: Self = Self(0);

    /// From bytes in the order in which they are sent.
    #[inline(always)]
    pub const fn new(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// From the first four and the last two bytes as numbers in memory order.
    #[inline(always)]
    pub(crate) fn from_parts(first: u32, second: u16) -> Self {
        let (first, second) = (u64::from(first), u64::from(second));
        if cfg!(target_endian = "little") {
            Self(first | second << 32)
        } else {
            Self(first << 32 | second << 16)
        }
    }

    /// The first four and the last two bytes as numbers in memory order.
    #[inline(always)]
    pub(crate) fn parts(self) -> (u32, u16) {
        let [a, b, c, d, e, f, _, _] = self.0.to_ne_bytes();
        (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]))
    }

    /// The bytes in the order in which they are sent.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_ne_bytes();
        [a, b, c, d, e, f]
    }

    /// Whether the address is a multicast or broadcast address.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        let [first, ..] = self.0.to_ne_bytes();
        first & 1 != 0
    }
}

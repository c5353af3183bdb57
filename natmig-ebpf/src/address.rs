//! Addresses as the program compares and copies them: one machine word each, the packet's byte
//! order in memory.

/// An IPv4 address. The octets lie in memory as in a packet, whatever the machine's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(u32);

impl Address {
    /// 0.0.0.0, which stands for "none".
    pub const NONE: Self = Self(0);

    /// From octets in the order in which they are written.
    #[inline(always)]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// The octets in the order in which they are written.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// As a number in memory order, for sums in which byte order does not matter.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Whether the address is 0.0.0.0.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether both addresses are in the same subnet; never, if the netmask is empty.
    #[inline(always)]
    pub const fn shares_prefix(self, other: Self, netmask: Self) -> bool {
        netmask.0 != 0 && (self.0 ^ other.0) & netmask.0 == 0
    }

    /// Whether packets to this address are never translated nor forwarded by natmig: this network
    /// (0/8), loopback (127/8), link-local (169.254/16), multicast, reserved and broadcast (224/3).
    #[inline(always)]
    pub const fn is_special(self) -> bool {
        let [first, second, _, _] = self.octets();
        first == 0 || first == 127 || first >= 224 || (first == 169 && second == 254)
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

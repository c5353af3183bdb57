//! The two address families, as types: everything that differs between IPv4 and IPv6 in a layout.

use bytemuck::Pod;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Ipv4 {}
    impl Sealed for super::Ipv6 {}
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4 {}

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {}

/// An address family. There are two, [`Ipv4`] and [`Ipv6`].
pub trait Family: sealed::Sealed + Copy + core::fmt::Debug + PartialEq + Eq + 'static {
    /// An address in network order.
    type Octets: Pod + Default + core::fmt::Debug + PartialEq + Eq;
    /// What fills an [`crate::Entry`] up to a multiple of 8 bytes behind its address.
    type Padding: Pod + Default + core::fmt::Debug + PartialEq + Eq;
    /// What fills a [`crate::Settled`] up to a multiple of 8 bytes, as arrays have elements.
    type SettledPadding: Pod + Default + core::fmt::Debug + PartialEq + Eq;
    /// `Entry::family` of an entry in use.
    const NUMBER: u8;
    /// The unspecified address, which stands for "none".
    const UNSPECIFIED: Self::Octets;

    /// The address that is so many behind this one, among those with the same first half (IPv6).
    fn plus(octets: Self::Octets, number: u32) -> Self::Octets;

    /// The address that is so many before this one, among those with the same first half (IPv6).
    fn minus(octets: Self::Octets, number: u32) -> Self::Octets;
}

impl Family for Ipv4 {
    type Octets = [u8; 4];
    type Padding = [u8; 3];
    type SettledPadding = [u8; 4];
    const NUMBER: u8 = 4;
    const UNSPECIFIED: [u8; 4] = [0; 4];

    #[inline]
    fn plus(octets: [u8; 4], number: u32) -> [u8; 4] {
        u32::from_be_bytes(octets)
            .wrapping_add(number)
            .to_be_bytes()
    }

    #[inline]
    fn minus(octets: [u8; 4], number: u32) -> [u8; 4] {
        u32::from_be_bytes(octets)
            .wrapping_sub(number)
            .to_be_bytes()
    }
}

impl Family for Ipv6 {
    type Octets = [u8; 16];
    type Padding = [u8; 7];
    type SettledPadding = [u8; 0];
    const NUMBER: u8 = 6;
    const UNSPECIFIED: [u8; 16] = [0; 16];

    #[inline]
    fn plus(octets: [u8; 16], number: u32) -> [u8; 16] {
        let [high, low] = bytemuck::cast::<[u8; 16], [u64; 2]>(octets);
        let low = u64::from_be(low).wrapping_add(u64::from(number));
        bytemuck::cast([high, low.to_be()])
    }

    #[inline]
    fn minus(octets: [u8; 16], number: u32) -> [u8; 16] {
        let [high, low] = bytemuck::cast::<[u8; 16], [u64; 2]>(octets);
        let low = u64::from_be(low).wrapping_sub(u64::from(number));
        bytemuck::cast([high, low.to_be()])
    }
}

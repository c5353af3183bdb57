//! The address families as the tables' writer and reader need them: an address is a number, of which
//! the last octet is its place in a direct block and the rest the block's prefix.

use std::{
    fmt::Debug,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use natmig_common::{Entry, Family, Ipv4, Ipv6};

use super::{
    maps::{FamilyMaps, Maps},
    tables::{Entries, Prefixes, PrefixesIpv4, PrefixesIpv6, Tables, Transaction},
};

/// What the tables need to know of a family. Sealed, because [`Family`] is.
pub(super) trait Net: Family {
    /// An address as a number.
    type Number: Copy + Ord + Hash + Debug + Send + Sync;
    /// The tables of prefixes.
    type Prefixes: Prefixes<Self>;

    /// The number of an address in network order.
    fn number(octets: Self::Octets) -> Self::Number;
    /// The address in network order.
    fn octets(number: Self::Number) -> Self::Octets;
    /// The address without its last octet: the prefix of its block.
    fn narrow(number: Self::Number) -> Self::Number;
    /// The address's last octet.
    fn last(number: Self::Number) -> u8;
    /// The address of a prefix with this last octet.
    fn member(narrow: Self::Number, last: u8) -> Self::Number;
    /// The address.
    fn address(number: Self::Number) -> IpAddr;
    /// The number of an address, if it is of this family.
    fn of(address: IpAddr) -> Option<Self::Number>;

    /// The family's maps.
    fn maps(maps: &Maps) -> &FamilyMaps<Self>;
    /// The family's entries.
    fn entries(tables: &Tables) -> &Entries<Self>;
    /// The maps, and the family's entries to be changed.
    fn split(tables: &mut Tables) -> (&Maps, &mut Entries<Self>);
    /// Entries of a transaction.
    fn numbers(transaction: &Transaction) -> &Vec<u32>;
    /// Entries of a transaction, to be changed.
    fn numbers_mut(transaction: &mut Transaction) -> &mut Vec<u32>;
}

impl Net for Ipv4 {
    type Number = u32;
    type Prefixes = PrefixesIpv4;

    fn number(octets: [u8; 4]) -> u32 {
        u32::from_be_bytes(octets)
    }

    fn octets(number: u32) -> [u8; 4] {
        number.to_be_bytes()
    }

    fn narrow(number: u32) -> u32 {
        number & !0xff
    }

    fn last(number: u32) -> u8 {
        number.to_be_bytes()[3]
    }

    fn member(narrow: u32, last: u8) -> u32 {
        narrow | u32::from(last)
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    fn of(address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.ipv4
    }

    fn entries(tables: &Tables) -> &Entries<Self> {
        &tables.ipv4
    }

    fn split(tables: &mut Tables) -> (&Maps, &mut Entries<Self>) {
        (&tables.maps, &mut tables.ipv4)
    }

    fn numbers(transaction: &Transaction) -> &Vec<u32> {
        &transaction.ipv4
    }

    fn numbers_mut(transaction: &mut Transaction) -> &mut Vec<u32> {
        &mut transaction.ipv4
    }
}

impl Net for Ipv6 {
    type Number = u128;
    type Prefixes = PrefixesIpv6;

    fn number(octets: [u8; 16]) -> u128 {
        u128::from_be_bytes(octets)
    }

    fn octets(number: u128) -> [u8; 16] {
        number.to_be_bytes()
    }

    fn narrow(number: u128) -> u128 {
        number & !0xff
    }

    fn last(number: u128) -> u8 {
        number.to_be_bytes()[15]
    }

    fn member(narrow: u128, last: u8) -> u128 {
        narrow | u128::from(last)
    }

    fn address(number: u128) -> IpAddr {
        Ipv6Addr::from(number).into()
    }

    fn of(address: IpAddr) -> Option<u128> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }

    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.ipv6
    }

    fn entries(tables: &Tables) -> &Entries<Self> {
        &tables.ipv6
    }

    fn split(tables: &mut Tables) -> (&Maps, &mut Entries<Self>) {
        (&tables.maps, &mut tables.ipv6)
    }

    fn numbers(transaction: &Transaction) -> &Vec<u32> {
        &transaction.ipv6
    }

    fn numbers_mut(transaction: &mut Transaction) -> &mut Vec<u32> {
        &mut transaction.ipv6
    }
}

/// Number of an entry's word that says whether it is in use.
pub(super) const fn use_offset<F: Net>() -> usize {
    std::mem::offset_of!(Entry<F>, family) & !7
}

/// Whether that word says that the entry is in use.
pub(super) fn in_use<F: Net>(word: u64) -> bool {
    word.to_ne_bytes()[std::mem::offset_of!(Entry<F>, family) & 7] != 0
}

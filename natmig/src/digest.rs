//! Digests of tables: how controller and router find out, without sending a table, whether theirs
//! agree, and where they do not.
//!
//! A table is divided into [`PARTS`] parts by a hash of the address, and each part has a digest of
//! its own, so that a router whose table differs in a few entries is sent a few parts.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::rule::{Attachment, Rule};

/// Parts of a table. Their digests are 8 KiB; of a million bindings a part has two thousand addresses.
pub const PARTS: u16 = 1024;

/// The part of the table that an address belongs to.
pub fn part(address: IpAddr) -> u16 {
    let number = match address {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => {
            let number = u128::from(address);
            let half =
                |number: u128| u64::try_from(number & u128::from(u64::MAX)).unwrap_or_default();
            // Both halves count: fabrics tell their subnets apart by the first, hosts by the second.
            half(number >> 64) ^ half(number).rotate_left(32)
        }
    };
    // The finalizer of MurmurHash3 (Austin Appleby, public domain): neighbours fall far apart.
    let mixed = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let part = (mixed ^ (mixed >> 33)) % u64::from(PARTS);
    u16::try_from(part).unwrap_or_default()
}

/// Parts of a table, by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Parts {
    /// The whole table.
    All,
    /// These, each below [`PARTS`].
    Some(BTreeSet<u16>),
}

impl Parts {
    /// No part.
    pub const NONE: Self = Self::Some(BTreeSet::new());

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Some(parts) if parts.is_empty())
    }

    /// Whether the address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Some(parts) => parts.contains(&part(address)),
        }
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.pad("all parts"),
            Self::Some(parts) => write!(f, "{} of {PARTS} parts", parts.len()),
        }
    }
}

/// Digests of a table's parts, equal on controller and router where their tables agree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableDigest {
    /// One for each part, in their order; 0 for a part without rules.
    parts: Vec<u64>,
}

impl Default for TableDigest {
    /// The digest of an empty table.
    fn default() -> Self {
        Self {
            parts: vec![0; PARTS.into()],
        }
    }
}

impl TableDigest {
    /// Of a table, whose rules come in ascending order of address, IPv4 first. [`Rule::Absent`] is
    /// left out, and so is what no table holds (the gateway that is announced to a visitor).
    pub fn of<'a>(rules: impl IntoIterator<Item = (IpAddr, &'a Rule)>) -> Self {
        let mut hashes: Vec<Option<Sha256>> = vec![None; PARTS.into()];
        for (address, rule) in rules {
            if !matches!(rule, Rule::Absent) {
                let hash = hashes[usize::from(part(address))].get_or_insert_with(Sha256::new);
                update_address(hash, Some(address));
                update_rule(hash, rule);
            }
        }
        let first = |hash: Sha256| {
            let mut first = [0; 8];
            first.copy_from_slice(&hash.finalize()[..8]);
            u64::from_be_bytes(first)
        };
        Self {
            parts: hashes
                .into_iter()
                .map(|hash| hash.map_or(0, first))
                .collect(),
        }
    }

    /// From digests of parts, in their order; `None` if there are not [`PARTS`] of them.
    pub fn from_parts(parts: Vec<u64>) -> Option<Self> {
        (parts.len() == usize::from(PARTS)).then_some(Self { parts })
    }

    /// The parts' digests, in their order.
    pub fn parts(&self) -> &[u64] {
        &self.parts
    }

    /// The parts in which the tables differ.
    pub fn differing(&self, other: &Self) -> BTreeSet<u16> {
        (0..PARTS)
            .filter(|part| {
                let part = usize::from(*part);
                self.parts[part] != other.parts[part]
            })
            .collect()
    }
}

/// Adds a rule; only addresses and segments have variable lengths, and both say where they end.
fn update_rule(hash: &mut Sha256, rule: &Rule) {
    match rule {
        Rule::Absent => hash.update([0]),
        Rule::Away { locator, home } => {
            hash.update([1]);
            update_address(hash, Some(*locator));
            hash.update([u8::from(home.is_some())]);
            if let Some(at) = home {
                update_attachment(hash, at);
            }
        }
        Rule::Local {
            locator,
            at,
            gateway: _,
        } => {
            hash.update([2]);
            update_address(hash, *locator);
            update_attachment(hash, at);
        }
        Rule::Deliver { identity, at } => {
            hash.update([3]);
            update_address(hash, Some(*identity));
            update_attachment(hash, at);
        }
        Rule::Forward { identity, to } => {
            hash.update([4]);
            update_address(hash, Some(*identity));
            update_address(hash, Some(*to));
        }
        Rule::Known { identity } => {
            hash.update([5]);
            update_address(hash, Some(*identity));
        }
    }
}

/// Adds an address, its family first: 4, 6, or 0 if there is none.
fn update_address(hash: &mut Sha256, address: Option<IpAddr>) {
    match address {
        None => hash.update([0]),
        Some(IpAddr::V4(address)) => {
            hash.update([4]);
            hash.update(address.octets());
        }
        Some(IpAddr::V6(address)) => {
            hash.update([6]);
            hash.update(address.octets());
        }
    }
}

/// Adds an attachment; no name of a segment has a zero byte.
fn update_attachment(hash: &mut Sha256, at: &Attachment) {
    hash.update(at.mac.0);
    hash.update(at.segment.as_str().as_bytes());
    hash.update([0]);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        net::{Ipv4Addr, Ipv6Addr},
    };

    use super::*;

    fn known(identity: IpAddr) -> Rule {
        Rule::Known { identity }
    }

    fn digest(rules: &BTreeMap<IpAddr, Rule>) -> TableDigest {
        TableDigest::of(rules.iter().map(|(address, rule)| (*address, rule)))
    }

    fn table(count: u32) -> BTreeMap<IpAddr, Rule> {
        (0..count)
            .map(|number| {
                let address = Ipv4Addr::from(0x0a01_0000 + number).into();
                (address, known(Ipv4Addr::from(0x0a02_0000 + number).into()))
            })
            .collect()
    }

    #[test]
    fn families_are_told_apart() {
        // The same bytes, of one family and of the other.
        let one = [(
            IpAddr::from(Ipv4Addr::new(0, 0, 0, 1)),
            known(Ipv4Addr::new(10, 0, 0, 1).into()),
        )];
        let other = [(
            IpAddr::from(Ipv6Addr::from(1)),
            known(Ipv6Addr::from(0x0a00_0001).into()),
        )];
        assert_ne!(digest(&one.into()), digest(&other.into()));
    }

    #[test]
    fn a_difference_is_found_where_it_is() {
        let ours = table(5000);
        let mut theirs = ours.clone();
        let changed: IpAddr = Ipv4Addr::from(0x0a01_0000 + 77).into();
        let missing: IpAddr = Ipv4Addr::from(0x0a01_0000 + 4711).into();
        theirs.insert(changed, known(Ipv4Addr::new(10, 9, 9, 9).into()));
        theirs.remove(&missing);
        let differing = digest(&ours).differing(&digest(&theirs));
        assert_eq!(differing, [part(changed), part(missing)].into());
        assert_eq!(digest(&ours).differing(&digest(&ours.clone())), [].into());
    }

    #[test]
    fn absent_rules_do_not_count() {
        let mut with = table(3);
        with.insert(Ipv4Addr::new(10, 7, 7, 7).into(), Rule::Absent);
        assert_eq!(digest(&with), digest(&table(3)));
        assert_eq!(digest(&BTreeMap::new()), TableDigest::default());
    }

    #[test]
    fn neighbours_spread_over_all_parts() {
        let mut ipv4 = vec![0_u32; PARTS.into()];
        let mut ipv6 = ipv4.clone();
        let network = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0xf, 0, 0, 0));
        for number in 0..u32::from(PARTS) * 64 {
            ipv4[usize::from(part(Ipv4Addr::from(0x0a01_0000 + number).into()))] += 1;
            let address = Ipv6Addr::from(network + u128::from(number));
            ipv6[usize::from(part(address.into()))] += 1;
        }
        for counts in [ipv4, ipv6] {
            assert!(counts.iter().all(|count| (16..=160).contains(count)));
        }
    }

    #[test]
    fn digests_of_another_number_of_parts_are_refused() {
        assert_eq!(TableDigest::from_parts(vec![0; 3]), None);
        let digest = digest(&table(100));
        assert_eq!(
            TableDigest::from_parts(digest.parts().to_vec()),
            Some(digest)
        );
    }
}

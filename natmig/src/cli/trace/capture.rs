//! Traced packets as a pcapng file: each packet as it came in, on its interface, and as it went on,
//! on the interface by which it left. Both have the same packet id, a comment that says what became
//! of it, a direction, and the XDP verdict.

use std::{borrow::Cow, io::Write};

use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{
                InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
            },
            opt_common::{CommonOption, UnknownOption},
        },
    },
};

use super::event::EventView;

/// `epb_packetid` and `epb_verdict`, draft-ietf-opsawg-pcapng, section 4.3.
const PACKET_ID: u16 = 5;
const VERDICT: u16 = 7;
/// The kind of a verdict that is an `enum xdp_action`.
const VERDICT_XDP: u8 = 2;
/// Resolution of all times: 10^-9 seconds.
const NANOSECONDS: u8 = 9;
/// Bytes that a packet has at most. Readers want all interfaces of a file to agree.
const SNAP: u32 = 65535;

/// Direction of a packet in `epb_flags`.
#[derive(Clone, Copy)]
enum Direction {
    Inbound = 1,
    Outbound = 2,
}

/// A pcapng file while it is written.
pub(super) struct Capture<W: Write> {
    writer: PcapNgWriter<W>,
    /// Interfaces, by their number in the file.
    interfaces: Vec<String>,
    packets: u64,
}

impl<W: Write> Capture<W> {
    /// Begins a file.
    pub(super) fn new(writer: W) -> anyhow::Result<Self> {
        Ok(Self {
            writer: PcapNgWriter::new(writer)?,
            interfaces: Vec::new(),
            packets: 0,
        })
    }

    /// Writes a packet as it came in and, unless it was dropped or the kernel got it as it was, as
    /// it went on.
    pub(super) fn write(&mut self, event: &EventView) -> anyhow::Result<()> {
        self.packets += 1;
        let what = format!(
            "natmig: {} {} ({}), {}",
            event.verdict,
            event.reasons(),
            event.number,
            event.way()
        );
        let raw = &event.raw;
        self.packet(
            event,
            &event.interface_in,
            Direction::Inbound,
            format!("{what}: before"),
            (raw.bytes_before(), raw.length_before),
        )?;
        let (interface, direction) = match &event.interface_out {
            Some(interface) => (interface, Direction::Outbound),
            None => (&event.interface_in, Direction::Inbound),
        };
        let is_unchanged = event.interface_out.is_none()
            && raw.bytes_before() == raw.bytes_after()
            && raw.length_before == raw.length_after;
        if raw.kept_after != 0 && !is_unchanged {
            self.packet(
                event,
                interface,
                direction,
                format!("{what}: after"),
                (raw.bytes_after(), raw.length_after),
            )?;
        }
        Ok(())
    }

    fn packet(
        &mut self,
        event: &EventView,
        interface: &str,
        direction: Direction,
        comment: String,
        (data, length): (&[u8], u32),
    ) -> anyhow::Result<()> {
        let interface_id = self.interface(interface)?;
        let mut verdict = vec![VERDICT_XDP];
        verdict.extend(u64::from(event.raw.action).to_ne_bytes());
        let other = |code, value: &[u8]| {
            EnhancedPacketOption::Common(CommonOption::Unknown(UnknownOption {
                code,
                value: Cow::Owned(value.to_vec()),
            }))
        };
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id,
            timestamp: event.time(),
            original_len: length,
            data: Cow::Borrowed(data),
            options: vec![
                EnhancedPacketOption::Common(CommonOption::Comment(Cow::Owned(comment))),
                EnhancedPacketOption::Flags(direction as u32),
                other(PACKET_ID, &self.packets.to_ne_bytes()),
                other(VERDICT, &verdict),
            ],
        })?;
        Ok(())
    }

    /// The interface's number in the file, described there before its first packet.
    fn interface(&mut self, name: &str) -> anyhow::Result<u32> {
        if let Some(number) = self.interfaces.iter().position(|known| known == name) {
            return Ok(u32::try_from(number)?);
        }
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: SNAP,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::new(
                    false,
                    NANOSECONDS,
                )?),
            ],
        })?;
        self.interfaces.push(name.to_owned());
        Ok(u32::try_from(self.interfaces.len() - 1)?)
    }

    /// Hands everything on to the file.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.writer.get_mut().flush()?)
    }
}

#[cfg(test)]
mod tests {
    use natmig_common::TraceEvent;
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;
    use crate::cli::trace::event::tests::{event, frame, view};

    /// Interface, data, direction.
    type Packet = (u32, Vec<u8>, u32);

    /// Interfaces and packets of a file.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a trace has no other blocks, and the test says which it found"
    )]
    fn read(file: &[u8]) -> (Vec<String>, Vec<Packet>) {
        let mut interfaces = Vec::new();
        let mut packets = Vec::new();
        let mut reader = PcapNgReader::new(file).unwrap();
        while let Some(block) = reader.next_block() {
            let (block, _) = block.unwrap();
            match block {
                Block::InterfaceDescription(interface) => {
                    interfaces.extend(interface.options.iter().filter_map(|option| {
                        if let InterfaceDescriptionOption::IfName(name) = option {
                            Some(name.to_string())
                        } else {
                            None
                        }
                    }));
                }
                Block::EnhancedPacket(packet) => {
                    let flags = packet.options.iter().find_map(|option| {
                        if let EnhancedPacketOption::Flags(flags) = option {
                            Some(*flags)
                        } else {
                            None
                        }
                    });
                    assert_eq!(packet.timestamp, std::time::Duration::new(3723, 4_000));
                    packets.push((packet.interface_id, packet.data.to_vec(), flags.unwrap()));
                }
                other => panic!("{other:?}"),
            }
        }
        (interfaces, packets)
    }

    #[test]
    fn packets_are_there_before_and_after() {
        let dropped = TraceEvent {
            egress: 0,
            counter: 14,
            kept_after: 0,
            ..event()
        };
        let untouched = TraceEvent {
            egress: 0,
            counter: 0,
            packet_after: event().packet_before,
            ..event()
        };
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file).unwrap();
        for event in [event(), dropped, untouched] {
            capture.write(&view(&event)).unwrap();
        }
        capture.flush().unwrap();
        let before = frame([10, 9, 0, 1], [10, 1, 1, 10]);
        let after = frame([10, 9, 0, 1], [10, 1, 3, 130]);
        let (interfaces, packets) = read(&file);
        assert_eq!(interfaces, ["eth1", "eth2"]);
        let inbound = (0, before, 1);
        assert_eq!(
            packets,
            [inbound.clone(), (1, after, 2), inbound.clone(), inbound]
        );
    }
}

//! Packets: frames that natmig's packet logic, the one in the kernel, forwards from router to router.

use std::cell::{Cell, UnsafeCell};

use natmig::rule::MacAddress;
use natmig_common::{
    Aligned, BlockBucket, Counter, Entry, Family as _, Interface, Ipv4, Mac, NextHop, PoolMask,
    PrefixBucket, PrefixIpv4, Settled,
};
use natmig_ebpf::{
    Address as _, Environment, Frame, HardwareAddress, Hearing, Hop, HopKind, Ip, Outcome,
    RouteQuery, Scratch, process,
};

use crate::{
    fabric::{EXTERNAL, FABRIC, Fabric, GATEWAY_MAC, Number, Way},
    tables::Tables,
};

/// Where a frame is about to be processed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arrival {
    /// The router.
    pub router: Number,
    /// The interface on which it comes in.
    pub ingress: u32,
    /// The frame.
    pub frame: Vec<u8>,
}

/// What becomes of a frame on one router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// It goes on to another router.
    Onward(Vec<u8>),
    /// It leaves the fabric on this interface.
    Leaves {
        /// The interface.
        ifindex: u32,
        /// The frame.
        frame: Vec<u8>,
    },
    /// It ends here.
    Ends(Counter),
    /// The kernel's guard keeps it inside the fabric.
    Guarded,
}

/// The frame of a UDP datagram without checksum.
pub fn frame(source: [u8; 4], destination: [u8; 4], macs: (Mac, Mac)) -> Vec<u8> {
    let (source_mac, destination_mac) = macs;
    let mut ip = [
        0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&destination);
    let sum: u32 = ip
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = Vec::with_capacity(42);
    frame.extend(destination_mac);
    frame.extend(source_mac);
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend([0x10, 0, 0x20, 0, 0, 8, 0, 0]);
    frame
}

/// The source of a frame's packet.
pub fn source(frame: &[u8]) -> [u8; 4] {
    [frame[26], frame[27], frame[28], frame[29]]
}

/// The destination of a frame's packet.
pub fn destination(frame: &[u8]) -> [u8; 4] {
    [frame[30], frame[31], frame[32], frame[33]]
}

/// The MAC address to which a frame goes.
pub fn destination_mac(frame: &[u8]) -> Mac {
    [frame[0], frame[1], frame[2], frame[3], frame[4], frame[5]]
}

/// Sends a frame to another MAC address.
pub fn redirect(frame: &mut [u8], mac: Mac) {
    frame[..6].copy_from_slice(&mac);
}

/// Whether the packet logic hears a VM that sends a frame to a router that awaits it.
pub fn is_heard(fabric: &Fabric, tables: &Tables, arrival: &Arrival) -> bool {
    let host = Host::new(fabric, tables, arrival);
    // What becomes of the frame is another question.
    let _outcome = process(&host, &mut Scratch::EMPTY.clone(), arrival.ingress);
    host.heard.get()
}

/// Runs the packet logic on a router, and the kernel's forwarding behind it.
pub fn forward(fabric: &Fabric, tables: &Tables, arrival: &Arrival) -> Forwarded {
    let host = Host::new(fabric, tables, arrival);
    let mut scratch = Scratch::EMPTY;
    let outcome = process(&host, &mut scratch, arrival.ingress);
    let mut frame = host.frame.into_inner();
    let egress = match outcome {
        Outcome::Redirect(_) => scratch.device,
        Outcome::Drop(counter)
        | Outcome::Reply(counter)
        | Outcome::Pass(counter @ Counter::PassForeignMac) => return Forwarded::Ends(counter),
        Outcome::Pass(_) => {
            let ifindex = match fabric.way(arrival.router, destination(&frame)) {
                Way::Access(ifindex) => ifindex,
                Way::Fabric => FABRIC,
                Way::External => EXTERNAL,
            };
            // The guard is nftables rules of the agent's: see natmig's `router/guard.rs`.
            let locators = [source(&frame), destination(&frame)];
            if ifindex != FABRIC && locators.iter().any(|it| fabric.is_locator(*it)) {
                return Forwarded::Guarded;
            }
            let mac = fabric.mac_of(destination(&frame));
            redirect(&mut frame, mac);
            ifindex
        }
    };
    if egress == FABRIC {
        Forwarded::Onward(frame)
    } else {
        Forwarded::Leaves {
            ifindex: egress,
            frame,
        }
    }
}

/// One packet's run on one router.
struct Host<'a> {
    fabric: &'a Fabric,
    tables: &'a Tables,
    router: Number,
    frame: UnsafeCell<Vec<u8>>,
    heard: Cell<bool>,
}

impl<'a> Host<'a> {
    fn new(fabric: &'a Fabric, tables: &'a Tables, arrival: &Arrival) -> Self {
        Self {
            fabric,
            tables,
            router: arrival.router,
            frame: UnsafeCell::new(arrival.frame.clone()),
            heard: Cell::new(false),
        }
    }
}

impl Environment for Host<'_> {
    fn frame(&self) -> Frame<'_> {
        // SAFETY: the bytes are the host's alone, and frames are not kept across `reshape`.
        let range = unsafe { (*self.frame.get()).as_mut_ptr_range() };
        // SAFETY: as above.
        unsafe { Frame::new(range.start, range.end) }
    }

    fn frame_length(&self) -> u32 {
        // SAFETY: nobody writes the vector itself meanwhile.
        let length = unsafe { (&*self.frame.get()).len() };
        u32::try_from(length).unwrap_or(u32::MAX)
    }

    fn reshape(&self, _grow: u16, _length: u16) -> bool {
        false
    }

    fn shift(&self, _grow: i32) -> bool {
        false
    }

    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.fabric.places[self.router].interfaces.get(&ifindex)
    }

    fn vlan(&self, _device: u32, _identifier: u16) -> Option<u32> {
        None
    }

    fn prefix_ipv4(&self, number: u32) -> Option<&PrefixIpv4> {
        Some(self.fabric.prefixes.get(&number).unwrap_or(&NO_PREFIX))
    }

    fn pool_mask(&self, number: u32) -> Option<&PoolMask> {
        self.fabric.masks.get(usize::try_from(number).ok()?)
    }

    fn prefixes_ipv6(&self, _bucket: u32) -> Option<&PrefixBucket> {
        None
    }

    fn blocks_ipv6(&self, _bucket: u32) -> Option<&BlockBucket> {
        None
    }

    fn index<I: Ip>(&self, address: I::Address) -> Option<u32> {
        let octets = address.octets();
        let octets: [u8; 4] = bytemuck::bytes_of(&octets).try_into().ok()?;
        let mut entries = self.tables.image().iter();
        let place = entries.position(|entry| entry.address == octets)?;
        u32::try_from(place).ok()
    }

    fn entry<I: Ip>(&self, index: u32) -> Option<&Entry<I>> {
        if I::NUMBER != Ipv4::NUMBER {
            return None;
        }
        let entry = self.tables.image().get(usize::try_from(index).ok()?)?;
        Some(bytemuck::cast_ref(entry))
    }

    fn aligned<I: Ip>(&self, _number: u32) -> Option<&Aligned> {
        None
    }

    fn settled<I: Ip>(&self, _index: u32) -> Option<&Settled<I>> {
        None
    }

    fn transaction_word(&self, slot: u32) -> u64 {
        self.tables.word(slot)
    }

    fn route(&self, _number: u32) -> u64 {
        0
    }

    fn next_hop(&self, _number: u32) -> Option<&NextHop> {
        None
    }

    fn believes_routes(&self) -> bool {
        false
    }

    fn forwards_all(&self) -> bool {
        false
    }

    fn gateway_mac(&self) -> HardwareAddress {
        HardwareAddress::new(GATEWAY_MAC)
    }

    fn fib<I: Ip>(&self, query: &RouteQuery<I>, hop: &mut Hop) {
        *hop = Hop::NONE;
        let octets = query.destination.octets();
        let Ok(octets) = <[u8; 4]>::try_from(bytemuck::bytes_of(&octets)) else {
            return;
        };
        let ifindex = match self.fabric.way(self.router, octets) {
            Way::Access(ifindex) => ifindex,
            Way::Fabric => FABRIC,
            Way::External => EXTERNAL,
        };
        let Some(interface) = self.interface(ifindex) else {
            return;
        };
        hop.kind = HopKind::Forward;
        hop.ifindex = ifindex;
        hop.source_mac = HardwareAddress::new(interface.mac);
        hop.destination_mac = HardwareAddress::new(self.fabric.mac_of(octets));
    }

    fn hear(&self, mac: HardwareAddress, ingress: u32) -> Hearing {
        match self.tables.awaits(MacAddress(mac.bytes())) {
            None => Hearing::Unawaited,
            Some((ifindex, _)) if ifindex != ingress => Hearing::Elsewhere,
            Some((_, true)) => Hearing::Again,
            Some((_, false)) => {
                self.heard.set(true);
                Hearing::First
            }
        }
    }

    fn awaits(&self, mac: HardwareAddress) -> bool {
        self.tables.awaits(MacAddress(mac.bytes())).is_some()
    }

    fn count(&self, _slot: u16, _counter: Counter, _bytes: u32) {}

    fn count_binding<I: Ip>(&self, _index: u32, _to: bool, _bytes: u32) -> bool {
        true
    }

    fn count_binding_later<I: Ip>(&self, _index: u32, _to: bool, _bytes: u32) -> bool {
        true
    }
}

const NO_PREFIX: PrefixIpv4 = PrefixIpv4 {
    block: PrefixIpv4::NONE,
    pool: 0,
    route: 0,
};

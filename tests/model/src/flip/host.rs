//! The packet logic's surroundings: memory that changes between two reads.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    panic::resume_unwind,
};

use natmig_common::{
    Aligned, BlockBucket, Counter, Entry, Family as _, Interface, Ipv4, NextHop, PoolMask,
    PrefixBucket, PrefixIpv4, Settled,
};
use natmig_ebpf::{
    Address as _, Environment, Frame, HardwareAddress, Hearing, Hop, HopKind, Ip, RouteQuery,
};

use super::{
    Answer, FlipModel, Packet,
    writer::{ADDRESSES, Memory},
};
use crate::shared::hash_of;

/// An entry that was handed out, and its number.
type Handed = (usize, Box<UnsafeCell<Entry<Ipv4>>>);

/// One run of the packet logic.
pub(super) struct Host<'a> {
    pub(super) model: &'a FlipModel,
    pub(super) packet: &'a Packet,
    pub(super) memory: Memory,
    /// Answers that were given.
    pub(super) used: Cell<usize>,
    pub(super) frame: UnsafeCell<Vec<u8>>,
    /// Entries that were handed out, as they were then.
    pub(super) entries: RefCell<Vec<Handed>>,
}

impl Host<'_> {
    /// The answer to the next read: as it was, or, if that has not been made, the run stops.
    fn answer(&self, now: impl Fn(&Memory) -> Answer) -> (Answer, Memory) {
        let used = self.used.get();
        self.used.set(used + 1);
        match self.packet.reads.get(used) {
            Some(read) => (read.answer, self.model.memories[read.stores]),
            None => resume_unwind(Box::new(now(&self.memory))),
        }
    }

    fn entry_at(&self, number: usize) -> Entry<Ipv4> {
        let answer = |memory: &Memory| {
            let bytes = bytemuck::bytes_of(&memory.entries[number]);
            Answer::Entry(u8::try_from(number).unwrap_or(0), hash_of(bytes))
        };
        self.answer(answer).1.entries[number]
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
        60
    }

    fn reshape(&self, _grow: u16, _length: u16) -> bool {
        false
    }

    fn shift(&self, _grow: i32) -> bool {
        false
    }

    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.model.interfaces.get(&ifindex)
    }

    fn vlan(&self, _device: u32, _identifier: u16) -> Option<u32> {
        None
    }

    fn prefix_ipv4(&self, _number: u32) -> Option<&PrefixIpv4> {
        Some(&PREFIX)
    }

    fn pool_mask(&self, _number: u32) -> Option<&PoolMask> {
        None
    }

    fn prefixes_ipv6(&self, _bucket: u32) -> Option<&PrefixBucket> {
        None
    }

    fn blocks_ipv6(&self, _bucket: u32) -> Option<&BlockBucket> {
        None
    }

    fn index<I: Ip>(&self, address: I::Address) -> Option<u32> {
        let octets = address.octets();
        let place = ADDRESSES
            .iter()
            .position(|it| it.as_slice() == bytemuck::bytes_of(&octets))?;
        u32::try_from(place).ok()
    }

    fn entry<I: Ip>(&self, index: u32) -> Option<&Entry<I>> {
        if I::NUMBER != Ipv4::NUMBER {
            return None;
        }
        let number = usize::try_from(index).ok()?;
        let entry = Box::new(UnsafeCell::new(self.entry_at(number)));
        let place: *const Entry<Ipv4> = entry.get();
        self.entries.borrow_mut().push((number, entry));
        // SAFETY: the box lives as long as the host. What is in it changes while the reference is in
        // use, as in a map that userspace writes, and like that it is only read volatilely.
        let entry = unsafe { &*place };
        Some(bytemuck::cast_ref(entry))
    }

    fn aligned<I: Ip>(&self, _number: u32) -> Option<&Aligned> {
        None
    }

    fn settled<I: Ip>(&self, _index: u32) -> Option<&Settled<I>> {
        None
    }

    fn transaction_word(&self, slot: u32) -> u64 {
        let (answer, _) = self.answer(|memory| Answer::Word(memory.word(slot)));
        // The entry whose reference led here: its versions are read after the word.
        let last = self
            .entries
            .borrow()
            .last()
            .map(|(number, entry)| (*number, entry.get()));
        if let Some((number, place)) = last {
            let entry = self.entry_at(number);
            // SAFETY: as in `entry`.
            unsafe { place.write_volatile(entry) };
        }
        match answer {
            Answer::Word(word) => word,
            Answer::Entry(..) => 0,
        }
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
        HardwareAddress::NONE
    }

    fn fib<I: Ip>(&self, _query: &RouteQuery<I>, hop: &mut Hop) {
        *hop = Hop::NONE;
        hop.kind = HopKind::NoNeighbor;
    }

    fn hear(&self, _mac: HardwareAddress, _ingress: u32) -> Hearing {
        Hearing::Unawaited
    }

    fn awaits(&self, _mac: HardwareAddress) -> bool {
        false
    }

    fn count(&self, _slot: u16, _counter: Counter, _bytes: u32) {}

    fn count_binding<I: Ip>(&self, _index: u32, _to: bool, _bytes: u32) -> bool {
        true
    }

    fn count_binding_later<I: Ip>(&self, _index: u32, _to: bool, _bytes: u32) -> bool {
        true
    }
}

/// All prefixes have addresses in the index.
const PREFIX: PrefixIpv4 = PrefixIpv4 {
    block: PrefixIpv4::HASH,
    pool: 0,
    route: 0,
};

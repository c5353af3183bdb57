//! Finding an address's entry and the version of it that counts for this packet.

use natmig_common::{Action, FLAG_HOME_EDGE, Reference, Version};

use crate::{
    address::{Address, HardwareAddress},
    environment::Environment,
    packet::Packet,
    shared,
};

/// What the transaction slots said to this packet. A slot is read at most once per packet, so that
/// the packet sees all of a transaction or none of it.
///
/// An answer is the slot's word, whose low half is zero, with the slot's number plus one in it; 0 is
/// none. A packet has no more look-ups than there are places.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookups {
    answers: [u64; 5],
}

/// The half of an answer that holds the slot's number.
const KEY: u64 = 0xffff_ffff;

impl Lookups {
    /// No slot has been asked.
    pub(crate) const EMPTY: Self = Self { answers: [0; 5] };

    /// Begins with a packet.
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        for answer in &mut self.answers {
            *answer = 0;
        }
    }

    /// The word of the slot that `reference` names; 0 if nothing is pending.
    #[inline(always)]
    fn word<E: Environment>(&mut self, environment: &E, reference: u64) -> u64 {
        let Some(reference) = Reference::from_raw(reference) else {
            return 0;
        };
        let key = u64::from(reference.slot()).wrapping_add(1);
        for answer in &self.answers {
            if answer & KEY == key {
                return answer & !KEY;
            }
        }
        let word = environment.transaction_word(reference.slot()) & !KEY;
        let [first, second, third, fourth, _] = self.answers;
        self.answers = [word | key, first, second, third, fourth];
        word
    }
}

/// What a router's table says of an address to one packet.
#[derive(Clone, Copy, Debug)]
pub struct Visible {
    /// Where the entry is; [`Visible::NO_ENTRY`] if there is none.
    pub index: u32,
    /// [`Action`] of the version that counts.
    action: u8,
    flags: u8,
    /// 1 if a LOCAL version, pending ones included, is of the VM that sent the frame.
    sender: u8,
    /// The VM's access interface.
    pub ifindex: u32,
    /// The VM's MAC address.
    pub mac: HardwareAddress,
    /// The other address of the binding.
    pub counterpart: Address,
    /// Where packets to the locator go on to.
    pub forward: Address,
    /// Locator of the VM that sent the frame; none if it has returned home.
    pub sender_locator: Address,
}

impl Visible {
    /// `index` where there is no entry.
    pub const NO_ENTRY: u32 = u32::MAX;

    /// Nothing is known of the address.
    pub const NOTHING: Self = Self {
        index: Self::NO_ENTRY,
        action: 0,
        flags: 0,
        sender: 0,
        ifindex: 0,
        mac: HardwareAddress::NONE,
        counterpart: Address::NONE,
        forward: Address::NONE,
        sender_locator: Address::NONE,
    };

    /// The action that counts.
    #[inline(always)]
    pub fn action(&self) -> Action {
        Action::from_raw(self.action).unwrap_or(Action::Absent)
    }

    /// Whether the address is a locator that is bound.
    #[inline(always)]
    pub fn is_locator(&self) -> bool {
        match self.action() {
            Action::Deliver | Action::Forward | Action::Known => true,
            Action::Absent | Action::Away | Action::Local => false,
        }
    }

    /// Whether the address is an identity whose VM is away from home, and this router a home edge.
    #[inline(always)]
    pub fn is_away_from_here(&self) -> bool {
        self.action() == Action::Away && self.flags & FLAG_HOME_EDGE != 0
    }

    /// Whether the address is an identity whose VM is here, from now or from the commit on, and the
    /// frame is one that it sends: with its MAC address, on its access interface.
    #[inline(always)]
    pub fn is_sender(&self) -> bool {
        self.sender != 0
    }
}

/// Looks `address` up.
#[inline(never)]
pub(crate) fn lookup<E: Environment>(
    environment: &E,
    lookups: &mut Lookups,
    packet: &Packet,
    address: Address,
    visible: &mut Visible,
) {
    *visible = Visible::NOTHING;
    let Some((index, entry)) = environment.entry(address) else {
        return;
    };
    if shared::entry_address(entry) != address {
        return;
    }
    let reference = shared::entry_reference(entry);
    let word = lookups.word(environment, reference);
    let version = shared::version_that_counts(entry, reference, word);
    visible.index = index;
    visible.action = version.action;
    visible.flags = version.flags;
    visible.ifindex = version.ifindex;
    visible.mac = HardwareAddress::new(version.mac);
    visible.counterpart = Address::new(version.counterpart);
    visible.forward = Address::new(version.forward);
    if sends(&version, packet) {
        visible.sender = 1;
        visible.sender_locator = visible.counterpart;
    } else if reference != 0 {
        let pending = shared::pending_version(entry);
        if sends(&pending, packet) {
            visible.sender = 1;
            visible.sender_locator = Address::new(pending.counterpart);
        }
    }
}

/// Whether `version` is of a VM here that sends such a frame.
#[inline(always)]
fn sends(version: &Version, packet: &Packet) -> bool {
    Action::from_raw(version.action) == Some(Action::Local)
        && version.ifindex == packet.ingress
        && HardwareAddress::new(version.mac) == packet.source_mac
}

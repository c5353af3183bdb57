//! Finding an address's entry and the version of it that counts for this packet.

use natmig_common::{Action, FLAG_HOME_EDGE, Reference};

use crate::{
    address::{Address as _, HardwareAddress},
    barrier::{consume, join, opaque},
    environment::Environment,
    family::Ip,
    find::{Found, find, settled},
    link::Link,
    shared::{self, Selected},
};

/// What the transaction slots said to this packet. A slot is read at most once per packet, so that
/// the packet sees all of a transaction or none of it.
///
/// An answer is the slot's word, whose low half is zero, with the slot's number plus one in it; 0 is
/// none. A packet has no more look-ups than there are places.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookups {
    /// Not 0 once a slot was asked for this packet: only then `answers` are the packet's.
    asked: u64,
    answers: [u64; 5],
}

/// The half of an answer that holds the slot's number.
const KEY: u64 = 0xffff_ffff;

impl Lookups {
    /// No slot has been asked.
    pub(crate) const EMPTY: Self = Self {
        asked: 0,
        answers: [0; 5],
    };

    /// Begins with a packet.
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        self.asked = 0;
    }

    /// The word of the slot that `reference` names; 0 if nothing is pending.
    #[inline(always)]
    fn word<E: Environment>(&mut self, environment: &E, reference: u64) -> u64 {
        let Some(reference) = Reference::from_raw(reference) else {
            return 0;
        };
        let key = u64::from(reference.slot()).wrapping_add(1);
        if self.asked == 0 {
            self.asked = 1;
            for answer in &mut self.answers {
                // SAFETY: the reference is valid; volatile, because the compiler would make a call of it.
                unsafe { core::ptr::write_volatile(answer, 0) };
            }
        }
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
#[repr(C)]
pub struct Visible<I: Ip> {
    /// Where its entry would be, and what is known of its prefix.
    pub found: Found,
    /// Where the entry is; [`Found::NO_ENTRY`] if there is none.
    pub index: u32,
    /// [`Action`] of the version that counts.
    action: Action,
    flags: u8,
    /// Whether a LOCAL version, pending ones included, is of the VM that sent the frame.
    sender: bool,
    /// Whether it is a pending version alone that is of the VM that sent the frame.
    arrives: bool,
    /// The VM's access interface.
    pub ifindex: u32,
    /// The VM's MAC address.
    pub mac: HardwareAddress,
    /// The other address of the binding.
    pub counterpart: I::Address,
    /// Where packets to the locator go on to.
    pub forward: I::Address,
    /// Locator of the VM that sent the frame; none if it has returned home.
    pub sender_locator: I::Address,
}

impl<I: Ip> Visible<I> {
    /// Nothing is known of the address.
    pub const NOTHING: Self = Self {
        found: Found::NOTHING,
        index: Found::NO_ENTRY,
        action: Action::Absent,
        flags: 0,
        sender: false,
        arrives: false,
        ifindex: 0,
        mac: HardwareAddress::NONE,
        counterpart: I::Address::NONE,
        forward: I::Address::NONE,
        sender_locator: I::Address::NONE,
    };

    /// Begins with an address: sets what says that there is nothing of something.
    #[inline(always)]
    fn forget(&mut self) {
        self.index = Found::NO_ENTRY;
        self.action = Action::Absent;
        self.flags = 0;
        self.sender = false;
        self.arrives = false;
    }

    /// The action that counts.
    #[inline(always)]
    pub fn action(&self) -> Action {
        self.action
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
        self.sender
    }

    /// As [`Visible::is_sender`], of a VM that is here from the commit on.
    #[inline(always)]
    pub fn is_arriving(&self) -> bool {
        self.arrives
    }
}

/// Looks `address` up.
#[inline(always)]
pub(crate) fn lookup<E: Environment, I: Ip>(
    environment: &E,
    lookups: &mut Lookups,
    link: &Link,
    address: &I::Address,
    visible: &mut Visible<I>,
) {
    consume(lookup_apart(environment, lookups, link, address, visible));
}

/// [`lookup`], as a function of its own. It returns a number, because one that returns nothing may
/// leave a pointer to its caller's stack in the register of results, which the verifier refuses.
#[inline(never)]
fn lookup_apart<E: Environment, I: Ip>(
    environment: &E,
    lookups: &mut Lookups,
    link: &Link,
    address: &I::Address,
    visible: &mut Visible<I>,
) -> usize {
    visible.found = find::<E, I>(environment, *address);
    join(visible);
    look_at(environment, lookups, link, *address, visible);
    opaque(0)
}

/// Looks at the entry that was found, if it is the one of `address`.
#[inline(always)]
pub(crate) fn look_at<E: Environment, I: Ip>(
    environment: &E,
    lookups: &mut Lookups,
    link: &Link,
    address: I::Address,
    visible: &mut Visible<I>,
) {
    let index = visible.found.index;
    visible.forget();
    if index == Found::NO_ENTRY {
        return;
    }
    if visible.found.direct {
        let counterpart = settled::<E, I>(environment, index);
        if !counterpart.is_none() {
            visible.index = index;
            visible.action = if visible.found.prefix.in_pool {
                Action::Known
            } else {
                Action::Away
            };
            visible.counterpart = counterpart;
            return;
        }
    }
    let Some(entry) = environment.entry::<I>(index) else {
        return;
    };
    if shared::entry_family(entry) != I::NUMBER || shared::entry_address(entry) != address {
        return;
    }
    let reference = shared::entry_reference(entry);
    let word = lookups.word(environment, reference);
    let version = shared::version_that_counts(entry, reference, word);
    let (action, flags, mac) = version.head();
    let ifindex = version.ifindex();
    visible.index = index;
    visible.action = action.unwrap_or(Action::Absent);
    visible.flags = flags;
    visible.ifindex = ifindex;
    visible.mac = mac;
    visible.counterpart = version.counterpart();
    if action == Some(Action::Forward) {
        visible.forward = version.forward();
    }
    if sends(&version, link) {
        visible.sender = true;
        visible.sender_locator = visible.counterpart;
    } else if reference != 0 {
        let pending = shared::pending_version(entry);
        if sends(&pending, link) {
            visible.sender = true;
            visible.sender_locator = pending.counterpart();
            visible.arrives = true;
        }
    }
}

/// Whether `version` is of a VM here that sends such a frame.
#[inline(always)]
fn sends<I: Ip>(version: &Selected<'_, I>, link: &Link) -> bool {
    let (action, _, mac) = version.head();
    action == Some(Action::Local) && version.ifindex() == link.ingress && mac == link.source_mac
}

//! Hearing VMs at the place to which a migration brings them.
//!
//! What identifies a VM is its MAC address on its access interface, as everywhere else; *what* it
//! sends does not matter. Whoever sends something else in its name, or in the name of nobody that a
//! migration waits for, is counted and changes nothing.
//!
//! Nothing in here is on the way of a packet that natmig forwards, but for the packets of a VM whose
//! own migration is not decided.

use natmig_common::{Action, Counter, Ipv4, Ipv6, Role};

use crate::{
    address::Address as _,
    barrier::{consume, opaque},
    environment::{Environment, Hearing},
    family::Ip,
    link::Link,
    lookup::{Visible, lookup},
    scratch::State,
    shared,
};

/// Length of an ARP or RARP message for Ethernet and IPv4, and what it begins with: hardware type,
/// protocol type, lengths.
const MESSAGE: usize = 28;
const HARDWARE: u16 = 1;
const PROTOCOL: u16 = 0x0800;
const LENGTHS: u16 = 0x0604;

/// Flag of a neighbour advertisement that answers somebody.
const SOLICITED: u8 = 0x40;

/// What a frame means, as a function of its own returns it: a number of which the verifier knows
/// nothing, so that it examines what follows once.
type Answer = usize;

/// Nobody waits for the sender; or somebody does, on another interface; or this is it.
const UNAWAITED: Answer = 0;
const ELSEWHERE: Answer = 1;
const AWAITED: Answer = 2;

/// Hears whoever sent the frame, whatever it is.
#[inline(always)]
pub(crate) fn hear_any<E: Environment>(environment: &E, link: &Link) {
    consume(hear(environment, link));
}

/// As [`hear_any`]; what the frame means.
#[inline(never)]
fn hear<E: Environment>(environment: &E, link: &Link) -> Answer {
    if !link.is_from(Role::Access) {
        return opaque(UNAWAITED);
    }
    let answer = match environment.hear(link.source_mac, link.ingress) {
        Hearing::Unawaited => UNAWAITED,
        Hearing::Elsewhere => ELSEWHERE,
        Hearing::Again => AWAITED,
        Hearing::First => {
            count(environment, link, Counter::VmHeard);
            AWAITED
        }
        Hearing::Unreported => {
            count(environment, link, Counter::VmHeard);
            count(environment, link, Counter::AnnouncementUnreported);
            AWAITED
        }
    };
    opaque(answer)
}

/// Hears a RARP message (RFC 903): QEMU sends requests for the guest's own address when it resumes.
#[inline(always)]
pub(crate) fn hear_reverse_arp<E: Environment>(environment: &E, link: &Link) {
    consume(hear_reverse_arp_apart(environment, link));
}

/// [`hear_reverse_arp`], as a function of its own; it returns a number for the reason that a look-up does.
#[inline(never)]
fn hear_reverse_arp_apart<E: Environment>(environment: &E, link: &Link) -> usize {
    hear_reverse_arp_judged(environment, link);
    opaque(0)
}

#[inline(always)]
fn hear_reverse_arp_judged<E: Environment>(environment: &E, link: &Link) {
    let answer = hear(environment, link);
    let Some(message) = environment.frame().window::<MESSAGE>(link.network) else {
        return;
    };
    let is_announced = environment.awaits(message.mac::<8>());
    judge(environment, link, answer, is_announced);
}

/// Hears an ARP message; whose sender and target are the same is an announcement (RFC 5227, 3).
#[inline(always)]
pub(crate) fn hear_arp<E: Environment>(environment: &E, link: &Link, state: &mut State<Ipv4>) {
    consume(hear_arp_apart(environment, link, state));
}

/// [`hear_arp`], as a function of its own; it returns a number for the reason that a look-up does.
#[inline(never)]
fn hear_arp_apart<E: Environment>(environment: &E, link: &Link, state: &mut State<Ipv4>) -> usize {
    hear_arp_judged(environment, link, state);
    opaque(0)
}

#[inline(always)]
fn hear_arp_judged<E: Environment>(environment: &E, link: &Link, state: &mut State<Ipv4>) {
    let answer = hear(environment, link);
    let Some(message) = environment.frame().window::<MESSAGE>(link.network) else {
        return;
    };
    let sender = message.address_ipv4::<14>();
    if message.number::<0>() != HARDWARE
        || message.number::<2>() != PROTOCOL
        || message.number::<4>() != LENGTHS
        || sender != message.address_ipv4::<24>()
        || sender.is_none()
        || !link.is_from(Role::Access)
    {
        return;
    }
    let mut is_announced = environment.awaits(message.mac::<8>());
    if !is_announced {
        let State {
            lookups,
            source: announced,
            ..
        } = state;
        lookup(environment, lookups, link, &sender, announced);
        is_announced = awaits_vm_of(environment, announced);
    }
    judge(environment, link, answer, is_announced);
}

/// Hears a message of neighbour discovery; an advertisement that answers nobody is an announcement.
#[inline(always)]
pub(crate) fn hear_neighbor<E: Environment>(
    environment: &E,
    link: &Link,
    state: &mut State<Ipv6>,
    is_advertisement: bool,
) {
    consume(hear_neighbor_apart(
        environment,
        link,
        state,
        is_advertisement,
    ));
}

/// [`hear_neighbor`], as a function of its own.
#[inline(never)]
fn hear_neighbor_apart<E: Environment>(
    environment: &E,
    link: &Link,
    state: &mut State<Ipv6>,
    is_advertisement: bool,
) -> usize {
    hear_neighbor_judged(environment, link, state, is_advertisement);
    opaque(0)
}

#[inline(always)]
fn hear_neighbor_judged<E: Environment>(
    environment: &E,
    link: &Link,
    state: &mut State<Ipv6>,
    is_advertisement: bool,
) {
    let answer = hear(environment, link);
    let State {
        packet,
        lookups,
        other: announced,
        ..
    } = state;
    let Some(message) = environment.frame().window::<24>(packet.transport) else {
        return;
    };
    if !is_advertisement || message.byte::<4>() & SOLICITED != 0 || !link.is_from(Role::Access) {
        return;
    }
    let target = message.address_ipv6::<8>();
    lookup(environment, lookups, link, &target, announced);
    let is_announced = awaits_vm_of(environment, announced);
    judge(environment, link, answer, is_announced);
}

/// Whether a migration waits for the VM that the address will be here.
#[inline(always)]
fn awaits_vm_of<E: Environment, I: Ip>(environment: &E, visible: &Visible<I>) -> bool {
    let Some(entry) = environment.entry::<I>(visible.index) else {
        return false;
    };
    if shared::entry_reference(entry) == 0 {
        return false;
    }
    let (action, _, mac) = shared::pending_version(entry).head();
    action == Some(Action::Local) && environment.awaits(mac)
}

/// Counts an announcement that says nothing: of an awaited VM (`is_announced`) or not.
#[inline(always)]
fn judge<E: Environment>(environment: &E, link: &Link, answer: Answer, is_announced: bool) {
    if answer == AWAITED || !link.is_from(Role::Access) {
        return;
    }
    if answer == ELSEWHERE || is_announced {
        count(environment, link, Counter::AnnouncementForged);
    } else {
        count(environment, link, Counter::AnnouncementUnexpected);
    }
}

/// Counts for the interface that the frame came in on.
#[inline(always)]
fn count<E: Environment>(environment: &E, link: &Link, counter: Counter) {
    if let Some(interface) = environment.interface(link.ingress) {
        environment.count(interface.slot, counter, environment.frame_length());
    }
}

//! Answering ARP (RFC 826) for VMs that are away, and for the old neighbours of visitors.
//!
//! Never answered: announcements (sender = target) and probes (sender 0, RFC 5227), a VM's question
//! for its own address, and what another VM on the segment answers itself.

use natmig_common::{Action, Counter, Interface, Ipv4, Role};

use crate::{
    address::{Address as _, AddressIpv4, HardwareAddress},
    environment::Environment,
    link::Link,
    lookup::lookup,
    outcome::Outcome,
    scratch::State,
};

/// Hardware type Ethernet, protocol type IPv4, lengths 6 and 4.
const HARDWARE: u16 = 1;
const PROTOCOL: u16 = 0x0800;
const LENGTHS: u16 = 0x0604;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What becomes of a message that natmig does not answer.
const PASS: Outcome = Outcome::Pass(Counter::PassArp);

/// Answers the ARP message at `link.network`, if it is one that natmig answers.
#[inline(never)]
pub(crate) fn answer<E: Environment>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<Ipv4>,
) -> Outcome {
    if !link.is_from(Role::Access) || !interface.owns_gateway() {
        return PASS;
    }
    let frame = environment.frame();
    let Some(message) = frame.window::<28>(link.network) else {
        return Outcome::Pass(Counter::PassMalformed);
    };
    if message.number::<0>() != HARDWARE
        || message.number::<2>() != PROTOCOL
        || message.number::<4>() != LENGTHS
        || message.number::<6>() != REQUEST
    {
        return PASS;
    }
    let sender_mac = message.mac::<8>();
    let sender = message.address_ipv4::<14>();
    let target = message.address_ipv4::<24>();
    if sender == target || sender.is_none() || target.is_none() || link.source_mac.is_group() {
        return PASS;
    }
    if !is_answered(
        environment,
        interface,
        link,
        state,
        sender_mac,
        sender,
        target,
    ) {
        return PASS;
    }
    let Some(ethernet) = frame.window::<14>(0) else {
        return PASS;
    };
    let gateway = environment.gateway_mac();
    ethernet.set_mac::<0>(link.source_mac);
    ethernet.set_mac::<6>(gateway);
    message.set_number::<6>(REPLY);
    message.set_mac::<8>(gateway);
    message.set_address_ipv4::<14>(target);
    message.set_mac::<18>(sender_mac);
    message.set_address_ipv4::<24>(sender);
    Outcome::Reply(Counter::ArpAnswered)
}

/// Whether natmig answers `sender`'s question for `target`.
#[inline(always)]
fn is_answered<E: Environment>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<Ipv4>,
    sender_mac: HardwareAddress,
    sender: AddressIpv4,
    target: AddressIpv4,
) -> bool {
    let State {
        lookups,
        destination: asked,
        source: asking,
        ..
    } = state;
    lookup(environment, lookups, link, &target, asked);
    let is_local = asked.action() == Action::Local;
    let is_on_segment = is_local && asked.ifindex == link.ingress;
    if is_on_segment {
        return false;
    }
    let prefix = AddressIpv4::new(interface.prefix);
    let netmask = AddressIpv4::new(interface.netmask);
    let in_segment = target.shares_prefix(prefix, netmask);
    // Its home may be this segment and its place another segment of this router.
    let is_away = asked.is_away_from_here() || (is_local && in_segment);
    if is_away && sender_mac != asked.mac {
        return true;
    }
    lookup(environment, lookups, link, &sender, asking);
    asking.is_sender() && !asking.sender_locator.is_none() && !in_segment
}

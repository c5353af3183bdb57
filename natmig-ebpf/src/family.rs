//! What differs between IPv4 and IPv6 in a packet: one trait, implemented in `ipv4.rs` and
//! `ipv6.rs`. Everything else is written once, for either.

use natmig_common::{Aligned, Counter, Family, Interface, Settled};

use crate::{
    address::Address,
    checksum::Change,
    environment::Environment,
    find::{Found, Prefix},
    frame::Frame,
    link::Link,
    outcome::Outcome,
    packet::Packet,
    scratch::{Scratch, State},
    translate::Rewrite,
};

/// An address family, as the packet logic sees it; sealed, because [`Family`] is.
pub trait Ip: Family {
    /// An address of the family.
    type Address: Address<Octets = Self::Octets>;

    /// The link layer, and the family's state of a packet.
    fn split(scratch: &mut Scratch) -> (&mut Link, &mut State<Self>);

    /// Reads the header at `link.network` and what is above it. The counter of a packet that stays
    /// untouched, if the packet is not one that natmig may touch.
    fn parse<E: Environment>(
        environment: &E,
        link: &mut Link,
        packet: &mut Packet<Self>,
    ) -> Option<Counter>;

    /// The outcome of a packet that is no traffic, but speaks of addresses on the link.
    fn discover<E: Environment>(
        environment: &E,
        interface: &Interface,
        link: &Link,
        state: &mut State<Self>,
    ) -> Option<Outcome>;

    /// Whether the packet's addresses are ones that natmig leaves alone.
    fn is_confined(packet: &Packet<Self>) -> bool;

    /// What is known of the address's prefix.
    fn prefix<E: Environment>(environment: &E, address: Self::Address) -> Prefix;

    /// Element of `ROUTES` that the address's prefix takes; 0 to ask the kernel.
    fn route<E: Environment>(environment: &E, address: Self::Address) -> u16;

    /// Where the address's entry is, and what its prefix says.
    fn find<E: Environment>(environment: &E, address: Self::Address) -> Found;

    /// The counterpart of an entry, if it lies where the base of the element says that has the entry at
    /// `place`.
    fn aligned(aligned: &Aligned, place: u32) -> Option<Self::Address>;

    /// The counterpart of a settled entry; none, if the entry is to be looked at.
    fn settled(settled: &Settled<Self>) -> Self::Address;

    /// As [`Ip::find`], of an address for which the index need not be asked.
    fn find_directly<E: Environment>(environment: &E, address: Self::Address) -> Option<Found>;

    /// The packet behind an Ethernet header without tags, if it is one of those for which
    /// [`crate::shortcut()`] is made: what [`Ip::parse`] would make of it.
    fn glance(frame: &Frame<'_>) -> Option<Packet<Self>>;

    /// Writes addresses and hop limit (TTL) into the packet's header; `addresses` is what the
    /// addresses do to a checksum.
    fn write(
        frame: &Frame<'_>,
        link: &Link,
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        addresses: Change,
    );

    /// Writes addresses, a decremented hop limit (TTL) and the checksums into a packet that
    /// [`Ip::glance`] read; `addresses` is what the addresses do to a checksum, folded.
    fn write_plain(
        frame: &Frame<'_>,
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        addresses: Change,
    );

    /// Writes addresses into the quoted packet's header; `addresses` is what they do to a checksum.
    /// What all of the header's changes do to one, or `None` if there is no such header.
    fn write_quoted(
        frame: &Frame<'_>,
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        addresses: Change,
    ) -> Option<Change>;

    /// Turns the frame into an answer to its sender, which sent more than `mtu` bytes. The counter of
    /// the answer, or [`Counter::DropNoRoom`] if the frame has no room for it; `None`, the frame as it
    /// was, if none can be given.
    fn answer_too_big<E: Environment>(
        environment: &E,
        interface: &Interface,
        link: &Link,
        packet: &Packet<Self>,
        mtu: u16,
    ) -> Option<Counter>;
}

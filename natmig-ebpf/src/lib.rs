//! natmig's packet logic, pure: no maps, no helpers, no clock. `main.rs` wires it to XDP.
//!
//! [`process()`] is the whole of it: a frame and the router's tables (an [`Environment`]) in, an
//! [`Outcome`] out, the frame rewritten in place. The stages are `link` and the family's `parse`
//! (bytes to [`Packet`], once), `find` and `lookup` (entries and the versions of them that count),
//! `plan` (what becomes of the addresses), `egress` (the next hop), `translate` (the rewriting). They
//! are written once for both address families; `ipv4` and `ipv6` have what differs on the wire.
//!
//! **Architecture invariant:** nothing here knows a map, a helper or a kernel; raw pointers are in
//! `frame.rs` (packet bytes) and `shared.rs` (memory that userspace writes) and nowhere else.
//!
//! Stages that the kernel's verifier should see once, not once per way that leads to them, are
//! functions of their own (`#[inline(never)]`) that exchange their state through memory.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unstable_features, reason = "inline assembly for BPF"),
    feature(asm_experimental_arch)
)]
#![expect(
    clippy::inline_always,
    reason = "small functions on the packet's way; the verifier examines calls one by one"
)]
#![expect(clippy::many_single_char_names, reason = "the bytes of an address")]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

mod address;
mod announce;
mod barrier;
pub mod checksum;
mod egress;
mod environment;
mod family;
mod find;
pub mod frame;
mod ipv4;
mod ipv6;
mod link;
mod lookup;
mod outcome;
mod packet;
mod plan;
mod process;
mod scratch;
mod shared;
mod shortcut;
mod too_big;
pub mod trace;
mod translate;
mod transport;

pub use address::{Address, AddressIpv4, AddressIpv6, HardwareAddress};
pub use environment::{Environment, Hearing, Hop, HopKind, RouteQuery};
pub use family::Ip;
pub use find::{Found, Prefix};
pub use frame::Frame;
pub use link::Link;
pub use lookup::{Lookups, Visible};
pub use outcome::Outcome;
pub use packet::Packet;
pub use plan::Plan;
pub use process::process;
pub use scratch::{Scratch, State};
pub use shared::slot_word;
pub use shortcut::{Shortcut, shortcut};
pub use translate::Rewrite;

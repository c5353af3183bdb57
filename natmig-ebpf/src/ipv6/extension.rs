//! Extension headers (RFC 8200, section 4): the bounded walk over them to the L4 header.
//!
//! Where the walk ends depends on the packet's bytes alone, neither on tags nor on how a driver lays
//! a frame out: what one router of the fabric leaves alone in a packet, every other one does.
//!
//! That is why it is safe to translate a packet that is not understood by its addresses alone
//! ([`End::Opaque`]): its addresses are again what its sender wrote when it leaves the fabric, and
//! so every checksum over them is right again. So it is with an authentication header (RFC 4302),
//! which protects the addresses: the receiver checks it on the addresses that the sender used. And
//! so it is where the L4 checksum was made with other addresses than the header's: in front of a
//! routing header that has segments left (RFC 8200, section 8.1: the final destination counts), and
//! behind a home address option (RFC 6275, section 6.3).

use crate::{barrier::forget, environment::Environment};

/// Numbers of extension headers.
pub(crate) const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The option that holds a mobile node's home address.
const HOME_ADDRESS: u8 = 0xc9;

/// A fragment header's offset field, without the flags behind it.
const FRAGMENT_OFFSET: u16 = 0xfff8;

/// Headers that are walked over at most; more of them are opaque.
const HEADERS: u32 = 8;
/// Options of a header that are looked at at most.
const OPTIONS: u32 = 32;
/// Bytes behind the fixed header in which headers are walked over.
const REACH: u16 = 400;

/// The header at which the walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Cursor {
    /// Where it is, from the frame's first byte.
    pub(crate) at: u16,
    /// Bytes from there to the packet's end.
    pub(crate) left: u16,
    /// Where in it an option is.
    option: u16,
    /// Its length, if it holds options.
    length: u16,
    /// Its number.
    pub(crate) protocol: u8,
    /// 1 if hop-by-hop options were found on the way.
    pub(crate) hop_by_hop: u8,
}

impl Cursor {
    /// At nothing.
    pub(crate) const EMPTY: Self = Self {
        at: 0,
        left: 0,
        option: 0,
        length: 0,
        protocol: 0,
        hop_by_hop: 0,
    };

    /// Puts the cursor to the header of this number at `at`, from where there are `left` bytes to the
    /// packet's end.
    #[inline(always)]
    pub(crate) fn put(&mut self, protocol: u8, at: u16, left: u16) {
        self.at = at;
        self.left = left;
        self.protocol = protocol;
        self.hop_by_hop = 0;
    }
}

/// Where a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At the L4 header.
    Transport,
    /// In a fragment that is not the first.
    Fragment,
    /// At something that natmig does not understand, or behind which the checksum covers other
    /// addresses.
    Opaque,
    /// At the packet's end, in the midst of a header.
    Truncated,
    /// In a part of the frame that the program cannot see.
    Hidden,
}

/// Whether the number is that of an extension header over which the walk goes.
#[inline(always)]
pub(crate) const fn is_one(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
    )
}

/// Walks on from `cursor`.
#[inline(never)]
pub(crate) fn walk<E: Environment>(environment: &E, cursor: &mut Cursor) -> End {
    let limit = cursor.at.wrapping_add(REACH);
    for _ in 0..HEADERS {
        forget(cursor);
        let protocol = cursor.protocol;
        if cursor.at > limit {
            return End::Opaque;
        }
        if !is_one(protocol) {
            return End::Transport;
        }
        if cursor.left < 8 {
            return End::Truncated;
        }
        let frame = environment.frame();
        let Some(header) = frame.window::<8>(cursor.at) else {
            return End::Hidden;
        };
        let mut length = 8;
        if protocol == FRAGMENT {
            if header.number::<2>() & FRAGMENT_OFFSET != 0 {
                cursor.protocol = header.byte::<0>();
                return End::Fragment;
            }
        } else {
            length = u16::from(header.byte::<1>())
                .wrapping_add(1)
                .wrapping_mul(8);
            if length > cursor.left {
                return End::Truncated;
            }
            if protocol == ROUTING && header.byte::<3>() != 0 {
                return End::Opaque;
            }
            if protocol == HOP_BY_HOP {
                cursor.hop_by_hop = 1;
            }
            if protocol == DESTINATION_OPTIONS {
                cursor.option = 2;
                cursor.length = length;
                match home_address(environment, cursor) {
                    Options::Plain => {}
                    Options::HomeAddress => return End::Opaque,
                    Options::Hidden => return End::Hidden,
                }
            }
        }
        cursor.protocol = header.byte::<0>();
        cursor.at = cursor.at.wrapping_add(length);
        cursor.left = cursor.left.wrapping_sub(length);
    }
    if is_one(cursor.protocol) || cursor.at > limit {
        End::Opaque
    } else {
        End::Transport
    }
}

/// What a destination options header holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Options {
    /// Nothing that matters here.
    Plain,
    /// A home address, or more options than are looked at.
    HomeAddress,
    /// Something that the program cannot see.
    Hidden,
}

/// Looks for a home address among the options of the cursor's header.
#[inline(never)]
fn home_address<E: Environment>(environment: &E, cursor: &mut Cursor) -> Options {
    for _ in 0..OPTIONS {
        forget(cursor);
        if cursor.option.wrapping_add(1) >= cursor.length {
            return Options::Plain;
        }
        let frame = environment.frame();
        let Some(option) = frame.window::<2>(cursor.at.wrapping_add(cursor.option)) else {
            return Options::Hidden;
        };
        let step = match option.byte::<0>() {
            HOME_ADDRESS => return Options::HomeAddress,
            // A single byte of padding.
            0 => 1,
            _ => u16::from(option.byte::<1>()).wrapping_add(2),
        };
        cursor.option = cursor.option.wrapping_add(step);
    }
    if cursor.option.wrapping_add(1) >= cursor.length {
        Options::Plain
    } else {
        Options::HomeAddress
    }
}

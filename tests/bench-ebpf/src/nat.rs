//! The least that a stateless NAT can be: one hash look-up per address, and the checksums.

use natmig_bench_ebpf::fold;

use crate::{maps, packet::Frame};

/// What replacing `old` by `new` adds to a one's complement sum (RFC 1624).
#[inline(always)]
fn change(old: u32, new: u32) -> u64 {
    u64::from(!old) + u64::from(new)
}

#[inline(always)]
fn update(frame: Frame, at: usize, change: u64) -> u16 {
    let checksum = !fold(u64::from(!frame.word(at)) + change);
    frame.set_word(at, checksum);
    checksum
}

/// Updates the checksum of UDP, which 0 stands for "none" in.
#[inline(always)]
fn update_udp(frame: Frame, at: usize, change: u64) {
    if frame.word(at) != 0 && update(frame, at, change) == 0 {
        frame.set_word(at, 0xffff);
    }
}

/// Translates destination and source of the IPv4 packet; whether the destination was bound.
#[inline(always)]
pub(crate) fn translate_ipv4(frame: Frame) -> bool {
    let mut hit = false;
    let destination = frame.long(30);
    // SAFETY: elements are never freed while the programs run.
    if let Some(locator) = unsafe { maps::HASH_IPV4.get(destination) } {
        let change = change(destination, *locator);
        update(frame, 24, change);
        update_udp(frame, 40, change);
        frame.set_long(30, *locator);
        hit = true;
    }
    let source = frame.long(26);
    // SAFETY: as above.
    if let Some(locator) = unsafe { maps::HASH_IPV4.get(source) } {
        let change = change(source, *locator);
        update(frame, 24, change);
        update_udp(frame, 40, change);
        frame.set_long(26, *locator);
    }
    hit
}

/// As [`translate_ipv4`], for IPv6.
#[inline(always)]
pub(crate) fn translate_ipv6(frame: Frame) -> bool {
    let mut hit = false;
    for at in [38, 22] {
        let key = [
            frame.long(at),
            frame.long(at + 4),
            frame.long(at + 8),
            frame.long(at + 12),
        ];
        // SAFETY: elements are never freed while the programs run.
        if let Some(locator) = unsafe { maps::HASH_IPV6.get(key) } {
            let sum = change(key[0], locator[0])
                + change(key[1], locator[1])
                + change(key[2], locator[2])
                + change(key[3], locator[3]);
            update_udp(frame, 60, sum);
            frame.set_long(at, locator[0]);
            frame.set_long(at + 4, locator[1]);
            frame.set_long(at + 8, locator[2]);
            frame.set_long(at + 12, locator[3]);
            hit |= at == 38;
        }
    }
    hit
}

//! What both families' answers to a packet that is too big have in common: the packet becomes the
//! answer's quote, as much of it as the answer may hold.

use natmig_common::Counter;

use crate::{
    environment::Environment,
    frame::{Frame, Window},
    link::Link,
};

/// Bytes of a packet of `length` that are quoted where `most` may be, and `least` must; `None` if
/// the frame's linear part has fewer. A multiple of 4, so that words can be summed up.
#[inline(always)]
pub(crate) fn quotable<E: Environment>(
    environment: &E,
    link: &Link,
    length: u32,
    least: u16,
    most: u16,
) -> Option<u16> {
    let seen = environment
        .frame()
        .length()
        .wrapping_sub(u32::from(link.network));
    let quoted = length.min(seen).min(u32::from(most)) & !3;
    let quoted = u16::try_from(quoted).ok()?;
    if quoted < least { None } else { Some(quoted) }
}

/// Makes room for `headers` bytes between the Ethernet header, which becomes the answer's, and
/// `quoted` bytes of the packet. The error is what the answer comes to: `None`, the frame as it was,
/// if there is no room.
#[inline(always)]
pub(crate) fn make_room<E: Environment>(
    environment: &E,
    link: &Link,
    headers: u16,
    quoted: u16,
) -> Result<(), Option<Counter>> {
    let Some(tags) = environment
        .frame()
        .window::<22>(0)
        .map(|start| tags(&start))
    else {
        return Err(None);
    };
    let length = link.network.wrapping_add(headers).wrapping_add(quoted);
    if !environment.reshape(headers, length) {
        return Err(None);
    }
    let frame = environment.frame();
    let Some(ethernet) = frame.window::<22>(0) else {
        return Err(Some(Counter::DropNoRoom));
    };
    ethernet.set_mac::<0>(link.source_mac);
    ethernet.set_mac::<6>(link.destination_mac);
    let [first, second, third, fourth, fifth] = tags;
    ethernet.set_word::<12>(first);
    ethernet.set_word::<14>(second);
    ethernet.set_word::<16>(third);
    ethernet.set_word::<18>(fourth);
    ethernet.set_word::<20>(fifth);
    Ok(())
}

/// The bytes of the Ethernet header from its `EtherType` on, as far as they may be tags.
#[inline(always)]
fn tags(ethernet: &Window<'_, 22>) -> [u16; 5] {
    [
        ethernet.word::<12>(),
        ethernet.word::<14>(),
        ethernet.word::<16>(),
        ethernet.word::<18>(),
        ethernet.word::<20>(),
    ]
}

/// Sum of the `length` bytes at `at`, of which there are `MOST` at most.
#[inline(always)]
pub(crate) fn sum<const MOST: u16>(frame: &Frame<'_>, at: u16, length: u16) -> Option<u64> {
    let mut sum: u64 = 0;
    let mut offset = 0;
    while offset < MOST {
        if offset >= length {
            break;
        }
        let word = frame.window::<4>(at.wrapping_add(offset))?;
        sum = sum.wrapping_add(u64::from(word.double_word::<0>()));
        offset = offset.wrapping_add(4);
    }
    Some(sum)
}

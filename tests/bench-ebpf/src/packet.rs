//! Frames: writing those of the generators, and reading headers.
//!
//! Headers lie at even addresses, so everything here is a matter of 16-bit words in memory order.
//! One's complement sums do not depend on byte order (RFC 1071, section 2).

use natmig_bench_ebpf::{
    Generator, IPV4_FRAME, IPV6_FRAME, IPV6_PREFIX, destination_port, fold, source_port,
};

/// Where the network header begins.
const NETWORK: usize = 14;

/// A frame of which at least the headers of Ethernet, IP and UDP are there.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    start: *mut u8,
}

impl Frame {
    /// The frame in `start..end`, if it has `length` bytes.
    #[inline(always)]
    pub(crate) fn new(start: usize, end: usize, length: usize) -> Option<Self> {
        if start + length > end {
            return None;
        }
        Some(Self {
            start: start as *mut u8,
        })
    }

    /// The word at an even offset.
    #[inline(always)]
    pub(crate) fn word(self, at: usize) -> u16 {
        // SAFETY: the verifier refuses a program that reads beyond what `new` found.
        unsafe { self.start.add(at).cast::<u16>().read() }
    }

    /// Sets the word at an even offset.
    #[inline(always)]
    pub(crate) fn set_word(self, at: usize, value: u16) {
        // SAFETY: as in `word`; the frame is this program's alone.
        unsafe { self.start.add(at).cast::<u16>().write(value) }
    }

    /// The byte at an offset.
    #[inline(always)]
    pub(crate) fn byte(self, at: usize) -> u8 {
        // SAFETY: as in `word`.
        unsafe { self.start.add(at).read() }
    }

    /// Sets the byte at an offset.
    #[inline(always)]
    pub(crate) fn set_byte(self, at: usize, value: u8) {
        // SAFETY: as in `set_word`.
        unsafe { self.start.add(at).write(value) }
    }

    /// Two words, in memory order.
    #[inline(always)]
    pub(crate) fn long(self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    /// Sets two words, in memory order.
    #[inline(always)]
    pub(crate) fn set_long(self, at: usize, value: u32) {
        self.set_word(at, value as u16);
        self.set_word(at + 2, (value >> 16) as u16);
    }

    /// Sets both MAC addresses, given as words in memory order.
    #[inline(always)]
    pub(crate) fn set_macs(self, destination: [u16; 3], source: [u16; 3]) {
        self.set_word(0, destination[0]);
        self.set_word(2, destination[1]);
        self.set_word(4, destination[2]);
        self.set_word(6, source[0]);
        self.set_word(8, source[1]);
        self.set_word(10, source[2]);
    }
}

/// The numbers of the packet that was written.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) first: u32,
    pub(crate) second: u32,
}

/// Draws the numbers of the next packet (a linear congruential generator, Knuth's MMIX).
#[inline(always)]
fn draw(generator: &mut Generator) -> Numbers {
    let state = generator
        .state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    generator.state = state;
    // Upper bits times a count, of which the upper half is a number below the count.
    let below = |bits: u64, count: u32| ((bits * u64::from(count)) >> 32) as u32;
    Numbers {
        first: below(state >> 32, generator.count) * generator.stride,
        second: below((state >> 16) & 0xffff_ffff, generator.second_count),
    }
}

/// Types of Ethernet frames.
const IPV4: u16 = word([8, 0]);
const IPV6: u16 = word([0x86, 0xdd]);

const fn word(bytes: [u8; 2]) -> u16 {
    u16::from_ne_bytes(bytes)
}

/// Sum of the words of the IPv4 header but for its addresses, and its checksum, which is 0.
const IPV4_SUM: u64 = word([0x45, 0]) as u64
    + word([0, 46]) as u64
    + word([0, 1]) as u64
    + word([0x40, 0]) as u64
    + word([64, 17]) as u64;

#[inline(always)]
fn write_link(frame: Frame, generator: &Generator, second: u32) {
    let [a, b, c] = generator.destination_mac;
    frame.set_word(0, a);
    frame.set_word(2, b);
    frame.set_word(4, c);
    let [a, b, c] = generator.source_mac;
    frame.set_word(6, a);
    frame.set_word(8, b);
    frame.set_word(10, u16::from_be(c).wrapping_add(second as u16).to_be());
}

/// Makes the frame the next packet of the generator. What no router changes is there already.
#[inline(always)]
pub(crate) fn write_ipv4(start: usize, end: usize, generator: &mut Generator) -> Option<Numbers> {
    let frame = Frame::new(start, end, IPV4_FRAME)?;
    let numbers = draw(generator);
    let Numbers { first, second } = numbers;
    let of = |side: &natmig_bench_ebpf::Side| {
        side.ipv4(if side.second == 0 { first } else { second })
            .to_be()
    };
    let destination = of(&generator.destination);
    let source = of(&generator.source);
    write_link(frame, generator, second);
    let addresses = u64::from(destination) + u64::from(source);
    frame.set_word(22, word([64, 17]));
    frame.set_word(24, !fold(IPV4_SUM + addresses));
    frame.set_long(26, source);
    frame.set_long(30, destination);
    let ports = [
        source_port(first, second).to_be(),
        destination_port(first).to_be(),
    ];
    frame.set_word(34, ports[0]);
    frame.set_word(36, ports[1]);
    // Pseudo-header (protocol, length) and header (ports, length); the payload is 0.
    let sum = addresses
        + u64::from(ports[0])
        + u64::from(ports[1])
        + u64::from(word([0, 17]))
        + 2 * u64::from(word([0, 26]));
    let checksum = !fold(sum);
    frame.set_word(40, if checksum == 0 { 0xffff } else { checksum });
    Some(numbers)
}

/// As [`write_ipv4`], for IPv6.
#[inline(always)]
pub(crate) fn write_ipv6(start: usize, end: usize, generator: &mut Generator) -> Option<Numbers> {
    let frame = Frame::new(start, end, IPV6_FRAME)?;
    let numbers = draw(generator);
    let Numbers { first, second } = numbers;
    write_link(frame, generator, second);
    frame.set_byte(21, 64);
    let mut sum = 0;
    let mut put = |at: usize, side: &natmig_bench_ebpf::Side| {
        let words = side.ipv6(if side.second == 0 { first } else { second });
        let prefix = [IPV6_PREFIX[0].to_be(), IPV6_PREFIX[1].to_be()];
        let words = [
            (side.base as u16).to_be(),
            words[0].to_be(),
            words[1].to_be(),
            words[2].to_be(),
        ];
        frame.set_word(at, prefix[0]);
        frame.set_word(at + 2, prefix[1]);
        frame.set_word(at + 4, words[0]);
        frame.set_word(at + 6, words[1]);
        frame.set_word(at + 8, 0);
        frame.set_word(at + 10, 0);
        frame.set_word(at + 12, words[2]);
        frame.set_word(at + 14, words[3]);
        sum += u64::from(prefix[0])
            + u64::from(prefix[1])
            + u64::from(words[0])
            + u64::from(words[1])
            + u64::from(words[2])
            + u64::from(words[3]);
    };
    put(NETWORK + 8, &generator.source);
    put(NETWORK + 24, &generator.destination);
    let ports = [
        source_port(first, second).to_be(),
        destination_port(first).to_be(),
    ];
    frame.set_word(54, ports[0]);
    frame.set_word(56, ports[1]);
    let sum = sum
        + u64::from(ports[0])
        + u64::from(ports[1])
        + u64::from(word([0, 17]))
        + 2 * u64::from(word([0, 8]));
    let checksum = !fold(sum);
    frame.set_word(60, if checksum == 0 { 0xffff } else { checksum });
    Some(numbers)
}

/// Decrements the TTL of the IPv4 packet (RFC 1141).
#[inline(always)]
pub(crate) fn decrement_ttl(frame: Frame) {
    frame.set_byte(22, frame.byte(22) - 1);
    let sum = u32::from(frame.word(24)) + u32::from(word([1, 0]));
    // 0xffff would stand for the same sum as 0, which is what the header's checksum is then.
    frame.set_word(24, (sum + u32::from(sum >= 0xffff)) as u16);
}

/// Whether this is a whole UDP packet over IPv4 without options.
#[inline(always)]
pub(crate) fn is_ipv4(frame: Frame) -> bool {
    frame.word(12) == IPV4
        && frame.byte(14) == 0x45
        && frame.byte(23) == 17
        && frame.word(20) & word([0x3f, 0xff]) == 0
}

/// Whether this is a UDP packet over IPv6 without extension headers.
#[inline(always)]
pub(crate) fn is_ipv6(frame: Frame) -> bool {
    frame.word(12) == IPV6 && frame.byte(20) == 17
}

/// Whether the packet is UDP, over IPv4 or IPv6.
#[inline(always)]
pub(crate) fn is_udp(frame: Frame) -> bool {
    match frame.word(12) {
        IPV4 => frame.byte(23) == 17,
        IPV6 => frame.byte(20) == 17,
        _ => false,
    }
}

//! The bytes of a frame: the one place with raw pointers into a packet.
//!
//! A [`Window`] is a checked run of bytes at some offset; its accessors take their offset as a
//! constant that is checked at compile time, so they need no check at run time and never panic.

use core::marker::PhantomData;

use crate::{
    address::{Address, HardwareAddress},
    barrier::{opaque, opaque_pointer},
};

/// Offsets beyond this are refused: every header that natmig touches begins before it. The bound
/// also lets the verifier follow pointers with a variable offset.
const OFFSET_LIMIT: usize = 511;

/// The linear part of a frame, from its first byte.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    start: *mut u8,
    end: *mut u8,
    lifetime: PhantomData<&'a mut [u8]>,
}

impl<'a> Frame<'a> {
    /// The frame in `start..end`.
    ///
    /// # Safety
    ///
    /// For the lifetime `'a` the bytes must be readable and writable, and nobody else may access
    /// them while they are.
    #[inline(always)]
    pub unsafe fn new(start: *mut u8, end: *mut u8) -> Self {
        Self {
            start,
            end,
            lifetime: PhantomData,
        }
    }

    /// The frame that is in `bytes`.
    pub fn from_bytes(bytes: &'a mut [u8]) -> Self {
        let range = bytes.as_mut_ptr_range();
        Self {
            start: range.start,
            end: range.end,
            lifetime: PhantomData,
        }
    }

    /// Whether the frame's linear part has at least `length` bytes.
    #[inline(always)]
    pub fn has(&self, length: u32) -> bool {
        let available = self.end.addr().wrapping_sub(self.start.addr());
        usize::try_from(length).is_ok_and(|length| length <= available)
    }

    /// `N` bytes at `offset`, if the frame has them.
    #[inline(always)]
    pub fn window<const N: usize>(&self, offset: u16) -> Option<Window<'a, N>> {
        let offset = opaque(usize::from(offset));
        if offset > OFFSET_LIMIT {
            return None;
        }
        // The verifier accepts an access only through the very register that was compared with the
        // end of the packet, so the compiler must not compute the pointer twice.
        let pointer = opaque_pointer(self.start.wrapping_add(offset));
        if pointer.wrapping_add(N) > self.end {
            return None;
        }
        Some(Window {
            pointer,
            lifetime: PhantomData,
        })
    }
}

/// `N` bytes of a frame, known to be there.
#[derive(Clone, Copy)]
pub struct Window<'a, const N: usize> {
    pointer: *mut u8,
    lifetime: PhantomData<&'a mut [u8]>,
}

impl<const N: usize> Window<'_, N> {
    /// Where the two bytes at `at` are. On BPF, headers lie at even addresses, and architectures
    /// where that matters make the verifier check it.
    #[inline(always)]
    fn word_pointer(&self, at: usize) -> *mut u16 {
        self.pointer.wrapping_add(at).cast()
    }

    /// The byte at `AT`.
    #[inline(always)]
    pub fn byte<const AT: usize>(&self) -> u8 {
        const { assert!(AT < N) };
        // SAFETY: `Frame::window` found `N` bytes here, and `AT` is below `N`.
        unsafe { self.pointer.wrapping_add(AT).read() }
    }

    /// Sets the byte at `AT`.
    #[inline(always)]
    pub fn set_byte<const AT: usize>(&self, value: u8) {
        const { assert!(AT < N) };
        // SAFETY: as in `byte`; `Frame` holds the bytes exclusively.
        unsafe { self.pointer.wrapping_add(AT).write(value) };
    }

    /// The two bytes at `AT` in memory order.
    #[inline(always)]
    pub fn word<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= N) };
        let pointer = self.word_pointer(AT);
        // SAFETY: `Frame::window` found `N` bytes here, and both are among them.
        unsafe {
            if cfg!(target_arch = "bpf") {
                pointer.read()
            } else {
                pointer.read_unaligned()
            }
        }
    }

    /// Sets the two bytes at `AT`, given in memory order.
    #[inline(always)]
    pub fn set_word<const AT: usize>(&self, value: u16) {
        const { assert!(AT + 2 <= N) };
        let pointer = self.word_pointer(AT);
        // SAFETY: as in `word`; `Frame` holds the bytes exclusively.
        unsafe {
            if cfg!(target_arch = "bpf") {
                pointer.write(value);
            } else {
                pointer.write_unaligned(value);
            }
        }
    }

    /// The number at `AT`, `AT + 1`, big-endian in the packet.
    #[inline(always)]
    pub fn number<const AT: usize>(&self) -> u16 {
        u16::from_be(self.word::<AT>())
    }

    /// Sets the number at `AT`, `AT + 1`.
    #[inline(always)]
    pub fn set_number<const AT: usize>(&self, value: u16) {
        self.set_word::<AT>(value.to_be());
    }

    /// The IPv4 address at `AT`, whose second half is at `HALF`, which is `AT + 2`.
    #[inline(always)]
    pub fn address<const AT: usize, const HALF: usize>(&self) -> Address {
        const { assert!(AT + 2 == HALF) };
        let [a, b] = self.word::<AT>().to_ne_bytes();
        let [c, d] = self.word::<HALF>().to_ne_bytes();
        Address::new([a, b, c, d])
    }

    /// Sets the IPv4 address at `AT`, whose second half is at `HALF`, which is `AT + 2`.
    #[inline(always)]
    pub fn set_address<const AT: usize, const HALF: usize>(&self, address: Address) {
        const { assert!(AT + 2 == HALF) };
        let [a, b, c, d] = address.octets();
        self.set_word::<AT>(u16::from_ne_bytes([a, b]));
        self.set_word::<HALF>(u16::from_ne_bytes([c, d]));
    }

    /// The MAC address at `A`, with its further words at `B` and `C`.
    #[inline(always)]
    pub fn mac<const A: usize, const B: usize, const C: usize>(&self) -> HardwareAddress {
        const { assert!(A + 2 == B && B + 2 == C) };
        let [a, b] = self.word::<A>().to_ne_bytes();
        let [c, d] = self.word::<B>().to_ne_bytes();
        let [e, f] = self.word::<C>().to_ne_bytes();
        HardwareAddress::new([a, b, c, d, e, f])
    }

    /// Sets the MAC address at `A`, with its further words at `B` and `C`.
    #[inline(always)]
    pub fn set_mac<const A: usize, const B: usize, const C: usize>(&self, mac: HardwareAddress) {
        const { assert!(A + 2 == B && B + 2 == C) };
        let [a, b, c, d, e, f] = mac.bytes();
        self.set_word::<A>(u16::from_ne_bytes([a, b]));
        self.set_word::<B>(u16::from_ne_bytes([c, d]));
        self.set_word::<C>(u16::from_ne_bytes([e, f]));
    }

    /// Sum of the window's words in memory order, for a checksum over all of it.
    #[inline(always)]
    pub fn sum(&self) -> u64 {
        const { assert!(N.is_multiple_of(2)) };
        let mut sum: u64 = 0;
        let mut at = 0;
        while at < N {
            let pointer = self.word_pointer(at);
            // SAFETY: `at` is even and below `N`, which is even: as in `word`.
            let word = unsafe {
                if cfg!(target_arch = "bpf") {
                    pointer.read()
                } else {
                    pointer.read_unaligned()
                }
            };
            sum = sum.wrapping_add(u64::from(word));
            at = at.wrapping_add(2);
        }
        sum
    }
}

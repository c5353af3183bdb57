//! The bytes of a frame: the one place with raw pointers into a packet.
//!
//! A [`Window`] is a checked run of bytes at some offset; its accessors take their offset as a
//! constant that is checked at compile time, so they need no check at run time and never panic.

use core::marker::PhantomData;

use crate::{
    address::{AddressIpv4, AddressIpv6, HardwareAddress},
    barrier::{opaque, opaque_pointer},
};

/// Offsets beyond this are refused: everything that natmig touches begins before it. The bound also
/// lets the verifier follow pointers with a variable offset.
const OFFSET_LIMIT: usize = 2047;

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

    /// Length of the frame's linear part in bytes.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        let length = self.end.addr().wrapping_sub(self.start.addr());
        // Masked, so that no case is left to be told apart.
        u32::try_from(length & 0xffff_ffff).unwrap_or(u32::MAX)
    }

    /// `N` bytes at `AT`, if the frame has them.
    #[inline(always)]
    pub fn fixed<const AT: usize, const N: usize>(&self) -> Option<Window<'a, N>> {
        const { assert!(AT <= OFFSET_LIMIT) };
        let pointer = self.start.wrapping_add(AT);
        if pointer.wrapping_add(N) > self.end {
            return None;
        }
        Some(Window {
            pointer,
            lifetime: PhantomData,
        })
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
    /// The value at `at`. The machines for which the kernel lets programs read packets at any
    /// address (x86-64, arm64, s390x, POWER, most RISC-V and `LoongArch`) do so in one instruction.
    ///
    /// # Safety
    ///
    /// The window must have the value's bytes, and any bytes must be a value.
    #[inline(always)]
    unsafe fn load<T: Copy>(&self, at: usize) -> T {
        let pointer: *const T = self.pointer.wrapping_add(at).cast_const().cast();
        // SAFETY: the caller vouches for the bytes; the BPF target has no aligned accesses that differ
        // from others, and elsewhere none is assumed.
        unsafe {
            if cfg!(target_arch = "bpf") {
                pointer.read()
            } else {
                pointer.read_unaligned()
            }
        }
    }

    /// Sets the value at `at`.
    ///
    /// # Safety
    ///
    /// The window must have the value's bytes.
    #[inline(always)]
    unsafe fn store<T: Copy>(&self, at: usize, value: T) {
        let pointer: *mut T = self.pointer.wrapping_add(at).cast();
        // SAFETY: as in `load`; `Frame` holds the bytes exclusively.
        unsafe {
            if cfg!(target_arch = "bpf") {
                pointer.write(value);
            } else {
                pointer.write_unaligned(value);
            }
        }
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
        // SAFETY: `Frame::window` found `N` bytes here, and both are among them.
        unsafe { self.load(AT) }
    }

    /// Sets the two bytes at `AT`, given in memory order.
    #[inline(always)]
    pub fn set_word<const AT: usize>(&self, value: u16) {
        const { assert!(AT + 2 <= N) };
        // SAFETY: as in `word`.
        unsafe { self.store(AT, value) };
    }

    /// The four bytes at `AT` in memory order.
    #[inline(always)]
    pub fn double_word<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= N) };
        // SAFETY: as in `word`.
        unsafe { self.load(AT) }
    }

    /// Sets the four bytes at `AT`, given in memory order.
    #[inline(always)]
    pub fn set_double_word<const AT: usize>(&self, value: u32) {
        const { assert!(AT + 4 <= N) };
        // SAFETY: as in `word`.
        unsafe { self.store(AT, value) };
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

    /// The IPv4 address at `AT`.
    #[inline(always)]
    pub fn address_ipv4<const AT: usize>(&self) -> AddressIpv4 {
        AddressIpv4::from_raw(self.double_word::<AT>())
    }

    /// Sets the IPv4 address at `AT`.
    #[inline(always)]
    pub fn set_address_ipv4<const AT: usize>(&self, address: AddressIpv4) {
        self.set_double_word::<AT>(address.raw());
    }

    /// The IPv6 address at `AT`.
    #[inline(always)]
    pub fn address_ipv6<const AT: usize>(&self) -> AddressIpv6 {
        const { assert!(AT + 16 <= N) };
        // SAFETY: as in `word`.
        unsafe { AddressIpv6::from_raw(self.load(AT), self.load(const { AT + 8 })) }
    }

    /// Sets the IPv6 address at `AT`.
    #[inline(always)]
    pub fn set_address_ipv6<const AT: usize>(&self, address: AddressIpv6) {
        const { assert!(AT + 16 <= N) };
        let [first, second] = address.raw();
        // SAFETY: as in `word`.
        unsafe {
            self.store(AT, first);
            self.store(const { AT + 8 }, second);
        }
    }

    /// The MAC address at `AT`.
    #[inline(always)]
    pub fn mac<const AT: usize>(&self) -> HardwareAddress {
        const { assert!(AT + 6 <= N) };
        // SAFETY: as in `word`.
        let (first, second): (u32, u16) = unsafe { (self.load(AT), self.load(const { AT + 4 })) };
        HardwareAddress::from_parts(first, second)
    }

    /// Sets the MAC address at `AT`.
    #[inline(always)]
    pub fn set_mac<const AT: usize>(&self, mac: HardwareAddress) {
        const { assert!(AT + 6 <= N) };
        let (first, second) = mac.parts();
        // SAFETY: as in `word`.
        unsafe {
            self.store(AT, first);
            self.store(const { AT + 4 }, second);
        }
    }

    /// Sets the MAC addresses at `AT` and behind it, which are the first eight and the last four bytes in
    /// memory order.
    #[inline(always)]
    pub fn set_macs<const AT: usize>(&self, (first, last): (u64, u32)) {
        const { assert!(AT + 12 <= N) };
        // SAFETY: as in `word`.
        unsafe {
            self.store(AT, first);
            self.store(const { AT + 8 }, last);
        }
    }

    /// Sum of the window's words in memory order, for a checksum over all of it.
    #[inline(always)]
    pub fn sum(&self) -> u64 {
        const { assert!(N.is_multiple_of(2)) };
        let mut sum: u64 = 0;
        let mut at = 0;
        while at < N {
            // SAFETY: `at` is even and below `N`, which is even: as in `word`.
            let word: u16 = unsafe { self.load(at) };
            sum = sum.wrapping_add(u64::from(word));
            at = at.wrapping_add(2);
        }
        sum
    }
}

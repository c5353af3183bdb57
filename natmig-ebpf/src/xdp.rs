//! The packet logic's environment in the kernel: context, maps and helpers.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lengths of frames, numbers that fit by what they are, and helpers' answers"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key is looked up where it is, without a copy on the stack"
)]

use core::{
    arch::asm,
    mem::MaybeUninit,
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup, xdp_md,
    },
    helpers::{
        bpf_fib_lookup, bpf_jiffies64, bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
        bpf_xdp_get_buff_len,
    },
};
use natmig_common::{
    Aligned, Announced, AwaitedKey, BlockBucket, Counter, Entry, Family as _, Interface,
    InterfaceTraffic, Ipv4, NextHop, PREFIX_COUNT, PoolMask, PrefixBucket, PrefixIpv4, Settled,
    Traffic, VlanKey,
};
use natmig_ebpf::{
    Address as _, Environment, Frame, HardwareAddress, Hearing, Hop, HopKind, Ip, RouteQuery,
    slot_word,
};

use crate::{binding, maps, settings};

/// The kernel's numbers of the address families.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The environment of one packet.
pub(crate) struct Xdp {
    context: *mut xdp_md,
    cpu: u32,
    /// Looked up once, because a packet needs it several times.
    prefixes_ipv4: *const [PrefixIpv4; PREFIX_COUNT as usize],
}

/// Room for a question to the kernel's routing table, aligned to words.
#[repr(C, align(8))]
struct Question(MaybeUninit<FibLookup>);

/// The element of a map's table. The compiler must not know more of `number` than the verifier sees.
#[inline(always)]
fn element<'a, T, const N: usize>(table: *const [T; N], number: u32) -> Option<&'a T> {
    let mut number = u64::from(number);
    // SAFETY: the assembly copies a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    if number >= N as u64 {
        return None;
    }
    let element = table.cast::<T>().wrapping_add(number as usize);
    // SAFETY: the table is valid memory for as long as the program runs, and the element in it.
    unsafe {
        // Else the compiler has the program ask once more, by the pointer, whether there is one.
        core::hint::assert_unchecked(!element.is_null());
        Some(&*element)
    }
}

impl Xdp {
    #[inline(always)]
    pub(crate) fn new(context: *mut xdp_md, cpu: u32) -> Option<Self> {
        Some(Self {
            context,
            cpu,
            prefixes_ipv4: maps::PREFIXES_IPV4.get_ptr(0)?,
        })
    }

    /// The program's context.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut xdp_md {
        self.context
    }
}

/// Counts a packet of `bytes` in an interface's element for this CPU.
///
/// The compiler must know which counter it is: the verifier does not know how many there are.
#[inline(always)]
pub(crate) fn count(traffic: *mut InterfaceTraffic, counter: Counter, bytes: u32) {
    add(traffic, u32::from(counter.raw()) as usize, bytes);
}

/// As [`count`], of any counter.
#[inline(always)]
fn count_any(traffic: *mut InterfaceTraffic, counter: Counter, bytes: u32) {
    let mut number = u64::from(counter.raw());
    // SAFETY: the assembly copies a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    add(
        traffic,
        number as usize & (Counter::COUNT as usize - 1),
        bytes,
    );
}

#[inline(always)]
fn add(traffic: *mut InterfaceTraffic, number: usize, bytes: u32) {
    // SAFETY: the element is valid, this CPU's own, and has so many counters.
    unsafe {
        let traffic = traffic.cast::<Traffic>().wrapping_add(number);
        (*traffic).packets += 1;
        (*traffic).bytes += u64::from(bytes);
    }
}

impl Environment for Xdp {
    #[inline(always)]
    fn frame(&self) -> Frame<'_> {
        // SAFETY: the context's pointers delimit the packet, which only this program accesses while
        // it runs; the verifier sees to it that none is used after the packet was reshaped.
        unsafe {
            // In assembly: the compiler takes both for 32-bit numbers and would truncate pointers.
            let start: *mut u8;
            let end: *mut u8;
            asm!(
                "{start} = *(u32 *)({context} + 0)",
                "{end} = *(u32 *)({context} + 4)",
                context = in(reg) self.context,
                start = out(reg) start,
                end = out(reg) end,
                options(nostack, preserves_flags),
            );
            Frame::new(start, end)
        }
    }

    #[inline(always)]
    fn frame_length(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_xdp_get_buff_len(self.context) as u32 }
    }

    #[inline(always)]
    fn reshape(&self, grow: u16, length: u16) -> bool {
        let head = i32::from(grow);
        // SAFETY: the context is the program's own, and no frame is used after this.
        unsafe {
            if bpf_xdp_adjust_head(self.context, -head) != 0 {
                return false;
            }
            let cut = i32::from(length) - self.frame_length() as i32;
            if bpf_xdp_adjust_tail(self.context, cut) == 0 {
                return true;
            }
            // The frame is whole again: growing touched none of its bytes.
            bpf_xdp_adjust_head(self.context, head);
            false
        }
    }

    #[inline(always)]
    fn shift(&self, grow: i32) -> bool {
        // SAFETY: the context is the program's own, and no frame is used after this.
        unsafe { bpf_xdp_adjust_head(self.context, -grow) == 0 }
    }

    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        maps::INTERFACES.get(ifindex)
    }

    #[inline(always)]
    fn vlan(&self, device: u32, identifier: u16) -> Option<u32> {
        let key = VlanKey {
            parent: device,
            vlan: u32::from(identifier),
        };
        let ifindex = maps::VLANS.get_ptr(key)?;
        // SAFETY: the element is valid memory for as long as the program runs.
        Some(unsafe { read_volatile(ifindex) })
    }

    #[inline(always)]
    fn prefix_ipv4(&self, number: u32) -> Option<&PrefixIpv4> {
        element(self.prefixes_ipv4, number)
    }

    #[inline(always)]
    fn pool_mask(&self, number: u32) -> Option<&PoolMask> {
        maps::POOL_MASKS.get(number)
    }

    #[inline(always)]
    fn prefixes_ipv6(&self, bucket: u32) -> Option<&PrefixBucket> {
        element(maps::PREFIXES_IPV6.get_ptr(0)?, bucket)
    }

    #[inline(always)]
    fn blocks_ipv6(&self, bucket: u32) -> Option<&BlockBucket> {
        element(maps::BLOCKS_IPV6.get_ptr(0)?, bucket)
    }

    #[inline(always)]
    fn index<I: Ip>(&self, address: I::Address) -> Option<u32> {
        let octets = address.octets();
        let key = (&raw const octets).cast::<u8>();
        // SAFETY: the key is the family's, and the elements are valid memory for as long as the
        // program runs; volatile, because one may be reused for another address meanwhile.
        unsafe {
            let index = if I::NUMBER == Ipv4::NUMBER {
                maps::INDEX_IPV4.get_ptr(&*key.cast::<[u8; 4]>())?
            } else {
                maps::INDEX_IPV6.get_ptr(&*key.cast::<[u8; 16]>())?
            };
            Some(read_volatile(index))
        }
    }

    #[inline(always)]
    fn entry<I: Ip>(&self, index: u32) -> Option<&Entry<I>> {
        let entry: *const Entry<I> = if I::NUMBER == Ipv4::NUMBER {
            maps::ENTRIES_IPV4.get_ptr(index)?.cast()
        } else {
            maps::ENTRIES_IPV6.get_ptr(index)?.cast()
        };
        // SAFETY: the element is valid, and of the family.
        Some(unsafe { &*entry })
    }

    #[inline(always)]
    fn settled<I: Ip>(&self, index: u32) -> Option<&Settled<I>> {
        let settled: *const Settled<I> = if I::NUMBER == Ipv4::NUMBER {
            maps::SETTLED_IPV4.get_ptr(index)?.cast()
        } else {
            maps::SETTLED_IPV6.get_ptr(index)?.cast()
        };
        // SAFETY: the element is valid, and of the family.
        Some(unsafe { &*settled })
    }

    #[inline(always)]
    fn aligned<I: Ip>(&self, number: u32) -> Option<&Aligned> {
        if I::NUMBER == Ipv4::NUMBER {
            maps::ALIGNED_IPV4.get(number)
        } else {
            maps::ALIGNED_IPV6.get(number)
        }
    }

    #[inline(always)]
    fn transaction_word(&self, slot: u32) -> u64 {
        maps::TRANSACTIONS.get(slot).map_or(0, slot_word)
    }

    #[inline(always)]
    fn route(&self, number: u32) -> u64 {
        maps::ROUTES
            .get_ptr(0)
            .and_then(|routes| element(routes, number))
            // SAFETY: the element is valid; volatile, because userspace writes it.
            .map_or(0, |word| unsafe { read_volatile(word) })
    }

    #[inline(always)]
    fn next_hop(&self, number: u32) -> Option<&NextHop> {
        element(maps::NEXT_HOPS.get_ptr(0)?, number)
    }

    #[inline(always)]
    fn believes_routes(&self) -> bool {
        let Some(heartbeat) = maps::HEARTBEAT.get_ptr(0) else {
            return false;
        };
        // SAFETY: the element is valid; volatile, because userspace and another program write it. The
        // helper has no preconditions.
        unsafe {
            let beat = read_volatile(addr_of!((*heartbeat).beat));
            let patience = read_volatile(addr_of!((*heartbeat).patience));
            bpf_jiffies64().wrapping_sub(beat) < patience
        }
    }

    #[inline(always)]
    fn forwards_all(&self) -> bool {
        settings::forward_all() != 0
    }

    #[inline(always)]
    fn gateway_mac(&self) -> HardwareAddress {
        maps::META.get(0).map_or(HardwareAddress::NONE, |meta| {
            HardwareAddress::new(meta.gateway_mac)
        })
    }

    #[inline(never)]
    fn fib<I: Ip>(&self, query: &RouteQuery<I>, hop: &mut Hop) {
        // In place and word by word: the compiler would make a call of anything shorter, to a function
        // that clears byte by byte and takes almost as long as the kernel takes to answer.
        let mut room = Question(MaybeUninit::uninit());
        let words = (&raw mut room).cast::<u64>();
        for word in 0..size_of::<Question>() / 8 {
            // SAFETY: the structure consists of so many words, and is aligned to them.
            unsafe { write_volatile(words.wrapping_add(word), 0) };
        }
        // SAFETY: all zero is a valid value of the kernel's structure.
        let question = unsafe { room.0.assume_init_mut() };
        question.l4_protocol = query.protocol;
        question.__bindgen_anon_1.tot_len = query.length;
        let source = query.source.octets();
        let destination = query.destination.octets();
        if I::NUMBER == Ipv4::NUMBER {
            question.family = AF_INET;
            question.__bindgen_anon_2.tos = query.class as u8;
        } else {
            question.family = AF_INET6;
            question.__bindgen_anon_2.flowinfo = query.class;
        }
        // SAFETY: both unions have room for an address of either family, which they begin with.
        unsafe {
            (&raw mut question.__bindgen_anon_3)
                .cast::<I::Octets>()
                .write(source);
            (&raw mut question.__bindgen_anon_4)
                .cast::<I::Octets>()
                .write(destination);
        }
        question.ifindex = query.ingress;
        // SAFETY: context and structure are valid, and the size is the structure's.
        let answer = unsafe {
            bpf_fib_lookup(
                self.context.cast(),
                core::ptr::from_mut(question),
                size_of::<FibLookup>() as i32,
                0,
            )
        };
        hop.ifindex = question.ifindex;
        hop.kind = match answer as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {
                hop.source_mac = HardwareAddress::new(question.smac);
                hop.destination_mac = HardwareAddress::new(question.dmac);
                HopKind::Forward
            }
            BPF_FIB_LKUP_RET_NOT_FWDED => HopKind::Local,
            BPF_FIB_LKUP_RET_NO_NEIGH => HopKind::NoNeighbor,
            BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                // SAFETY: the kernel has written this member of the union.
                hop.mtu = unsafe { question.__bindgen_anon_1.mtu_result };
                HopKind::TooBig
            }
            _ => HopKind::None,
        };
    }

    #[inline(always)]
    fn hear(&self, mac: HardwareAddress, ingress: u32) -> Hearing {
        let key = AwaitedKey::new(mac.bytes());
        let Some(awaited) = maps::AWAITED.get_ptr_mut(key) else {
            return Hearing::Unawaited;
        };
        // SAFETY: the element is valid memory for as long as the program runs, and not another VM's
        // before the program has left; volatile, because other CPUs write it too. The helper has no
        // preconditions.
        unsafe {
            if read_volatile(addr_of!((*awaited).ifindex)) != ingress {
                return Hearing::Elsewhere;
            }
            if read_volatile(addr_of!((*awaited).heard_at)) != 0 {
                return Hearing::Again;
            }
            let now = bpf_ktime_get_ns();
            write_volatile(addr_of_mut!((*awaited).heard_at), now);
            let announced = Announced {
                transaction: read_volatile(addr_of!((*awaited).transaction)),
                heard_at: now,
                key,
            };
            if maps::ANNOUNCED.output::<Announced>(&announced, 0).is_ok() {
                Hearing::First
            } else {
                Hearing::Unreported
            }
        }
    }

    #[inline(always)]
    fn awaits(&self, mac: HardwareAddress) -> bool {
        maps::AWAITED
            .get_ptr(AwaitedKey::new(mac.bytes()))
            .is_some()
    }

    #[inline(always)]
    fn count(&self, slot: u16, counter: Counter, bytes: u32) {
        if let Some(traffic) = maps::COUNTERS.get_ptr_mut(slot.into()) {
            count_any(traffic, counter, bytes);
        }
    }

    #[inline(always)]
    fn count_both(&self, slot: u16, one: Counter, other: Counter, bytes: u32) {
        if let Some(traffic) = maps::COUNTERS.get_ptr_mut(slot.into()) {
            count(traffic, one, bytes);
            count(traffic, other, bytes);
        }
    }

    #[inline(always)]
    fn count_binding<I: Ip>(&self, index: u32, to: bool, bytes: u32) -> bool {
        binding::count::<I>(self.cpu, index, to, bytes)
    }

    #[inline(always)]
    fn count_binding_later<I: Ip>(&self, index: u32, to: bool, bytes: u32) -> bool {
        binding::count_later::<I>(self.cpu, index, to, bytes)
    }
}

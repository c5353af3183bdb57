//! The packet logic's environment in the kernel: context, maps and helpers.

use core::{arch::asm, mem::zeroed};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup, xdp_md,
    },
    helpers::{bpf_fib_lookup, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    maps::lpm_trie::Key,
};
use natmig_common::{Counter, Entry, Interface};
use natmig_ebpf::{
    Address, Environment, Frame, HardwareAddress, Hop, HopKind, RouteQuery, slot_word,
};

use crate::{maps, settings};

/// Address family of IPv4.
const AF_INET: u8 = 2;

/// The environment of one packet.
pub(crate) struct Xdp {
    context: *mut xdp_md,
}

impl Xdp {
    #[inline(always)]
    pub(crate) fn new(context: *mut xdp_md) -> Self {
        Self { context }
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
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        maps::INTERFACES.get(ifindex)
    }

    #[inline(always)]
    fn entry(&self, address: Address) -> Option<(u32, &Entry)> {
        let index = maps::INDEX_IPV4.get_ptr(address.octets())?;
        // SAFETY: the element is valid memory for as long as the program runs; volatile, because it
        // may be reused for another address meanwhile.
        let index = unsafe { core::ptr::read_volatile(index) };
        Some((index, maps::ENTRIES.get(index)?))
    }

    #[inline(always)]
    fn transaction_word(&self, slot: u32) -> u64 {
        maps::TRANSACTIONS.get(slot).map_or(0, slot_word)
    }

    #[inline(always)]
    fn in_pool(&self, address: Address) -> bool {
        maps::POOLS_IPV4
            .get(Key::new(32, address.octets()))
            .is_some()
    }

    #[inline(always)]
    fn gateway_mac(&self) -> HardwareAddress {
        maps::META.get(0).map_or(HardwareAddress::NONE, |meta| {
            HardwareAddress::new(meta.gateway_mac)
        })
    }

    #[inline(never)]
    fn route(&self, query: &RouteQuery, hop: &mut Hop) {
        // SAFETY: all zero is a valid value of the kernel's structure.
        let mut question: FibLookup = unsafe { zeroed() };
        question.family = AF_INET;
        question.l4_protocol = query.protocol;
        question.__bindgen_anon_1.tot_len = query.length;
        question.__bindgen_anon_2.tos = query.tos;
        question.__bindgen_anon_3.ipv4_src = query.source.raw();
        question.__bindgen_anon_4.ipv4_dst = query.destination.raw();
        question.ifindex = query.ingress;
        // SAFETY: context and structure are valid, and the size is the structure's.
        let answer = unsafe {
            bpf_fib_lookup(
                self.context.cast(),
                &raw mut question,
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
    fn count(&self, slot: u16, counter: Counter, bytes: u32) {
        let index = u32::from(slot) * Counter::COUNT + u32::from(counter.raw());
        if let Some(traffic) = maps::COUNTERS.get_ptr_mut(index) {
            // SAFETY: the element is this CPU's own.
            unsafe {
                (*traffic).packets += 1;
                (*traffic).bytes += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn count_binding(&self, index: u32, to: bool, bytes: u32) {
        if !settings::counts_bindings() {
            return;
        }
        if let Some(traffic) = maps::BINDING_COUNTERS.get_ptr_mut(index) {
            // SAFETY: the element is this CPU's own.
            unsafe {
                if to {
                    (*traffic).packets_to += 1;
                    (*traffic).bytes_to += u64::from(bytes);
                } else {
                    (*traffic).packets_from += 1;
                    (*traffic).bytes_from += u64::from(bytes);
                }
            }
        }
    }
}

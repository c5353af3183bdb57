//! Marking a packet's beginning and end for the grace periods of userspace.

use core::{
    arch::asm,
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
};

use natmig_common::Activity;

use crate::{atomic::exchange, maps::ACTIVITY, settings};

/// The packet that this CPU is processing.
pub(crate) struct Active {
    activity: *mut Activity,
    number: u64,
}

impl Active {
    /// The packet's number, which no other packet of the CPU has.
    #[inline(always)]
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// 0 while nothing is traced; else the time until when it is.
    #[inline(always)]
    pub(crate) fn traced_until(&self) -> u64 {
        // SAFETY: the element is valid; volatile, because userspace writes it.
        unsafe { read_volatile(addr_of!((*self.activity).traced_until)) }
    }

    /// Switches tracing off on this CPU.
    #[inline(always)]
    pub(crate) fn end_trace(&self) {
        // SAFETY: the element is valid; volatile, because userspace reads it.
        unsafe { write_volatile(addr_of_mut!((*self.activity).traced_until), 0) };
    }
}

/// Marks the beginning of a packet on `cpu`, before any table is read. `None` on a CPU for which the loader
/// made no room, which does not exist.
#[inline(always)]
pub(crate) fn enter(cpu: u32) -> Option<Active> {
    let activity = ACTIVITY.get_ptr_mut(cpu)?;
    // SAFETY: the element is valid, and only this CPU writes it, one packet at a time.
    unsafe {
        let number = read_volatile(addr_of!((*activity).left)).wrapping_add(1);
        // An exchange, not a store: it is a full barrier, so no table is read before userspace can
        // see that the packet has begun.
        exchange(addr_of_mut!((*activity).entered), number);
        Some(Active { activity, number })
    }
}

/// Does something between packets of `cpu`, on which this runs; `None`, and nothing is done, while the CPU
/// processes a packet, or does such a thing already: then this has interrupted it.
#[inline(always)]
pub(crate) fn between_packets<T>(cpu: u32, does: impl FnOnce() -> T) -> Option<T> {
    let activity = ACTIVITY.get_ptr_mut(cpu)?;
    // SAFETY: the element is valid, and only this CPU writes these fields; volatile, because what it
    // interrupts, and what interrupts it, uses them too. The one ends before the other goes on.
    unsafe {
        let banking = addr_of_mut!((*activity).banking);
        let entered = read_volatile(addr_of!((*activity).entered));
        if entered != read_volatile(addr_of!((*activity).left)) || read_volatile(banking) != 0 {
            return None;
        }
        write_volatile(banking, 1);
        let done = does();
        write_volatile(banking, 0);
        Some(done)
    }
}

/// Marks the packet's end.
#[inline(always)]
pub(crate) fn leave(active: &Active) {
    // SAFETY: as in `enter`.
    unsafe {
        let left = addr_of_mut!((*active.activity).left);
        if settings::weak_order() != 0 {
            exchange(left, active.number);
        } else {
            // No access to a table may move behind the store: the compiler is told by assembly that
            // may touch any memory, and the machine keeps the order.
            let mut number = active.number;
            asm!("{0} = {0}", inout(reg) number, options(nostack, preserves_flags));
            write_volatile(left, number);
        }
    }
}

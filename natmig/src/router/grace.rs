//! Grace periods: when is no packet any longer processed under the old state?
//!
//! Two kinds. The fast one reads the programs' activity counters: after a full fence, each CPU's
//! `entered` is read, and the CPU has left the old state when its `left` has reached that number.
//! An idle CPU's numbers are equal, so it is not waited for. The other is an RCU grace period of
//! the kernel; it takes milliseconds and precedes every reuse of memory. What is to be reused some
//! time [lets one pass](Passing) and does not wait for it.

use std::{
    io, mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{Ordering, fence},
    },
    thread,
    time::{Duration, Instant},
};

use natmig_common::Activity;

use super::{RouterError, bpf, bpf::Shared};

/// How long the fast grace period watches a CPU before it takes the slow, certain way. A packet
/// takes microseconds; this long only lasts a CPU that was taken away from its virtual machine.
const PATIENCE: Duration = Duration::from_millis(100);

/// `MEMBARRIER_CMD_GLOBAL`, include/uapi/linux/membarrier.h.
const MEMBARRIER_GLOBAL: libc::c_int = 1;

/// Waits until every packet that began before the call has ended.
pub(super) fn fast(activity: &Shared<Activity>) -> Result<Duration, RouterError> {
    let start = Instant::now();
    // The counterpart of the programs' atomic exchange of `entered`: either the exchange comes
    // first and is seen here, or the packet sees what was stored before this fence.
    fence(Ordering::SeqCst);
    for cpu in 0..activity.len() {
        let entered = activity.load(cpu, mem::offset_of!(Activity, entered));
        let mut spins = 0_u32;
        while activity.load(cpu, mem::offset_of!(Activity, left)) < entered {
            spins += 1;
            if spins < 1000 {
                std::hint::spin_loop();
            } else if start.elapsed() < PATIENCE {
                // The CPU that is waited for may be this one.
                std::thread::yield_now();
            } else {
                // Programs run inside RCU read sections, so this proves the same.
                rcu()?;
                return Ok(start.elapsed());
            }
        }
    }
    Ok(start.elapsed())
}

/// Waits for an RCU grace period: after it, nothing in the kernel holds what was unlinked before.
pub(super) fn rcu() -> Result<(), RouterError> {
    rcu_after(membarrier())
}

/// RCU grace periods for which nobody waits: a thread lets them pass, one at a time.
///
/// The thread ends when this is dropped, or when the kernel refuses: then none passes any longer,
/// and who needs one waits for [`rcu`], which says why.
#[derive(Debug, Default)]
pub(super) struct Passing {
    shared: Arc<(Mutex<Passed>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

/// How many grace periods were begun, and of how many it is known that they are over.
#[derive(Debug, Default)]
struct Passed {
    begun: u64,
    over: u64,
    ends: bool,
}

/// A grace period, by the order in which they are begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Period(u64);

impl Passing {
    /// Begins one, which is over some milliseconds later.
    pub(super) fn begin(&mut self) -> Period {
        if self.thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let named = thread::Builder::new().name("grace".to_owned());
            match named.spawn(move || let_pass(&shared)) {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => tracing::warn!(%error, "no thread: grace periods are waited for"),
            }
        }
        let (passed, changed) = &*self.shared;
        let mut passed = lock(passed);
        passed.begun += 1;
        changed.notify_all();
        Period(passed.begun)
    }

    /// Whether a grace period is over.
    pub(super) fn is_over(&self, period: Period) -> bool {
        period.0 <= lock(&self.shared.0).over
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        lock(&self.shared.0).ends = true;
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread of the grace periods panicked");
        }
    }
}

fn lock(passed: &Mutex<Passed>) -> MutexGuard<'_, Passed> {
    // Numbers that only grow are right whoever panicked.
    passed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets what has been begun pass until it is told to end.
fn let_pass((passed, changed): &(Mutex<Passed>, Condvar)) {
    let mut now = lock(passed);
    loop {
        while now.begun == now.over && !now.ends {
            now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        if now.ends {
            return;
        }
        let begun = now.begun;
        drop(now);
        if let Err(error) = rcu() {
            tracing::warn!(%error, "grace periods are waited for from now on");
            return;
        }
        now = lock(passed);
        now.over = begun;
    }
}

fn membarrier() -> io::Result<()> {
    // SAFETY: membarrier takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The grace period is over if `membarrier` could wait for it; else another way is taken.
fn rcu_after(membarrier: io::Result<()>) -> Result<(), RouterError> {
    let Err(error) = membarrier else {
        return Ok(());
    };
    match error.raw_os_error() {
        // Not there with `nohz_full`, or compiled out.
        Some(libc::EINVAL | libc::ENOSYS) => bpf::replace_inner_map().map_err(RouterError::system(
            "wait for a grace period with a map of maps",
        )),
        _ => Err(RouterError::system(
            "wait for a grace period with membarrier",
        )(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the kernel lets this process make maps; says it loudly if not.
    fn able() -> bool {
        let able = nix::unistd::geteuid().is_root();
        assert!(
            able || std::env::var_os("NATMIG_REQUIRE_ROOT").is_none_or(|value| value != "1"),
            "NATMIG_REQUIRE_ROOT=1, and this test needs root"
        );
        if !able {
            eprintln!("SKIPPED: this test needs root");
        }
        able
    }

    #[test]
    fn a_kernel_without_membarrier_waits_with_a_map_of_maps() {
        if !able() {
            return;
        }
        for error in [libc::EINVAL, libc::ENOSYS] {
            rcu_after(Err(io::Error::from_raw_os_error(error))).unwrap();
        }
        let refused = rcu_after(Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(refused.unwrap_err().to_string().contains("membarrier"));
    }

    #[test]
    fn grace_periods_pass_in_order_and_unwaited_for() {
        let mut passing = Passing::default();
        let first = passing.begin();
        let second = passing.begin();
        assert!(first < second);
        let deadline = Instant::now() + Duration::from_mins(1);
        while !passing.is_over(second) {
            assert!(Instant::now() < deadline, "a grace period without end");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(passing.is_over(first));
        let third = passing.begin();
        assert!(third > second);
    }

    #[test]
    fn a_cpu_that_does_not_move_on_is_waited_for_with_rcu() {
        if !able() {
            return;
        }
        let map = bpf::create_shared_array::<Activity>(2).unwrap();
        let activity: Shared<Activity> = map.map_memory(true).unwrap();
        // The packet began and never ended: only the kernel can say that nobody runs it.
        activity.store(1, mem::offset_of!(Activity, entered), 7);
        activity.store(1, mem::offset_of!(Activity, left), 6);
        assert!(fast(&activity).unwrap() >= PATIENCE);
        activity.store(1, mem::offset_of!(Activity, left), 7);
        fast(&activity).unwrap();
    }
}

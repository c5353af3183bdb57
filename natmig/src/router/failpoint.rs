//! Places at which tests let the process be killed, to see that a successor takes up what is left.
//!
//! A process reaches them unharmed unless it armed one itself: no configuration and no environment
//! variable does.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

static ARMED: OnceLock<(String, u32)> = OnceLock::new();
static REACHED: AtomicU32 = AtomicU32::new(0);

/// Has this process killed when it reaches the failpoint `NAME`, or `NAME#N` for the Nth time. Only
/// the first call counts.
pub fn arm(failpoint: &str) {
    ARMED.get_or_init(|| match failpoint.split_once('#') {
        Some((name, count)) => (name.to_owned(), count.parse().unwrap_or(1)),
        None => (failpoint.to_owned(), 1),
    });
}

/// Kills the process with SIGKILL if it armed this failpoint.
pub(super) fn reach(name: &str) {
    if let Some((armed, count)) = ARMED.get()
        && armed == name
        && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *count
    {
        // SAFETY: kill of the own process takes no pointers; it does not return.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

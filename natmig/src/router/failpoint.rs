//! Places at which tests let the process be killed, to see that a successor takes up what is left.
//!
//! `NATMIG_FAILPOINT=NAME` or `NAME#N` kills the process when it reaches NAME for the Nth time. Only
//! builds with debug assertions have them.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
static REACHED: AtomicU32 = AtomicU32::new(0);

/// Kills the process with SIGKILL if a test asked for it here.
pub(super) fn reach(name: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("NATMIG_FAILPOINT").ok()?;
        Some(match text.split_once('#') {
            Some((name, count)) => (name.to_owned(), count.parse().unwrap_or(1)),
            None => (text, 1),
        })
    });
    if let Some((wanted, count)) = wanted
        && wanted == name
        && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *count
    {
        // SAFETY: kill of the own process takes no pointers; it does not return.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

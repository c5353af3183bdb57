//! One clock for everything that is compared: nanoseconds since the epoch.

use std::time::SystemTime;

/// Nanoseconds since the epoch.
pub fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

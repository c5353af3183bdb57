//! What natmig promises, scenario by scenario, in the lab with real daemons and real traffic.
//!
//! They need root and the `natmig` program (`NATMIG_BIN`). Without these they are skipped loudly, and
//! fail if `NATMIG_REQUIRE_ROOT=1`.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod announcements;
mod chaos;
mod common;
mod crashes;
mod equal_paths;
mod families;
mod group;
mod guest;
mod kernel;
mod links;
mod network;
mod next_hops;
mod pair;
mod pmtud;
mod privileges;
mod recovery;

//! What every store does, what the file store does with files that are not its own, and what the store
//! on etcd does when leaders and members die.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "a test")]

mod conformance;
mod etcd;
mod file;
mod guarded;
mod places;
#[path = "../support/proxy.rs"]
mod proxy;
mod records;
#[path = "../support/etcd.rs"]
pub mod server;

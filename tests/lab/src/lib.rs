//! A datacenter in network namespaces, real daemons and real traffic in it, and captures that see
//! every frame at every endpoint: what natmig promises is measured here.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "times and positions in pictures and reports"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod account;
pub mod api;
pub mod capture;
pub mod chaos;
pub mod client;
pub mod clock;
pub mod daemon;
pub mod demo;
pub mod device;
pub mod echo;
pub mod guest;
pub mod lab;
pub mod migration;
pub mod namespace;
pub mod network;
pub mod pki;
pub mod report;
pub mod routing;
pub mod run;
pub mod topology;
pub mod traffic;

pub use lab::Lab;
pub use topology::Topology;

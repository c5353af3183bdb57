//! natmig's benchmarks: what a step costs, how fast whole routers forward, and what changing tables
//! costs, natmig beside other ways to do the same, in one run.
//!
//! `traffic` says what is sent and what must come out, `site` builds a generator, a router and a sink
//! in namespaces, `live` sends and counts, `verify` looks at every byte first, `micro` times single
//! steps, `change` times changes of tables, `report` and `plot` show the results.
//!
//! Absolute figures move with whatever else the machine does, so variants are measured in turn, many
//! times over, and compared within a round.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod bench;
pub mod change;
pub mod core;
pub mod filter;
pub mod instance;
pub mod live;
pub mod machine;
pub mod micro;
pub mod plan;
pub mod plot;
pub mod programs;
pub mod progress;
pub mod report;
pub mod site;
pub mod statistics;
pub mod traffic;
pub mod update;
pub mod verify;

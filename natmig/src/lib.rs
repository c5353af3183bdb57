//! natmig's userspace: planner and transaction machine (pure), router tables and loader, agent,
//! controller, command line.

pub mod addresses;
pub mod agent;
pub mod audit;
mod causes;
pub mod cli;
pub mod config;
pub mod controller;
pub mod coordinator;
pub mod digest;
pub mod doctor;
pub mod hypervisor;
pub mod metrics;
#[cfg(test)]
mod model;
pub mod names;
pub mod pki;
pub mod planner;
pub mod proto;
pub mod router;
pub mod rule;
pub mod store;
pub mod tls;
pub mod topology;

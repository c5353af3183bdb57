//! natmig's userspace: planner and transaction machine (pure), router tables and loader, agent,
//! controller, command line.

pub mod cli;
pub mod coordinator;
#[cfg(test)]
mod model;
pub mod names;
pub mod planner;
pub mod rule;
pub mod topology;

//! natmig's userspace: planner and transaction machine (pure), router tables and loader, agent,
//! controller, command line.

pub mod cli;
pub mod names;
pub mod rule;

//! Model checking: every interleaving of messages, failures, flips and packets on small fabrics.
//!
//! [`model::FabricModel`] runs natmig's own planner and transaction machine, and sends frames through
//! natmig's own packet logic, over tables written as a router writes them. `stateright` walks all
//! states that its steps lead to; [`check`] says what must hold in each.
//!
//! [`scenario`] has what is explored, [`plant`] the bugs that the checker must find when they are
//! planted, [`story`] the words in which a counterexample is told.

pub mod agent;
pub mod check;
pub mod fabric;
pub mod flip;
pub mod model;
pub mod order;
pub mod packet;
pub mod plant;
pub mod run;
pub mod scenario;
pub mod shared;
pub mod state;
pub mod story;
pub mod tables;

//! What every router is told: a pure function of topology and bindings.
//!
//! [`table()`] is a router's whole table for a state of the VMs. A [`Plan`] is a difference of two
//! such tables, and the order in which the routers may commit it.

mod allocate;
mod error;
mod plan;
mod stages;
mod state;
mod table;
#[cfg(test)]
mod tests;

pub use self::{
    allocate::destinations,
    error::PlanError,
    plan::{Move, Plan},
    stages::Stages,
    state::{Binding, Vm, VmState},
    table::{rules, table},
};

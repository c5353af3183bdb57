//! What kernel, drivers, offloads and settings mean for natmig on this machine, and how to mend them.
//!
//! A thin gatherer ([`gather()`]) reads the machine into [`Facts`]; [`examine`] turns them into
//! [`Finding`]s and is pure, so that every check is tested without the machine it is about.

mod drivers;
pub mod facts;
mod finding;
mod forwarding;
mod gather;
mod instance;
mod interface;
mod machine;
mod offload;
mod sysctl;
#[cfg(test)]
mod tests;

pub use self::{
    facts::Facts,
    finding::{Finding, Report, Severity, Subject},
    gather::{GatherError, Request, gather},
};

/// Judges facts: every check gives a finding, a good one too, by subject.
pub fn examine(facts: &Facts) -> Report {
    let mut findings = Vec::new();
    machine::kernel(&facts.machine, &mut findings);
    machine::bpf(&facts.machine, &mut findings);
    machine::clock(&facts.machine, &mut findings);
    forwarding::router(facts, &mut findings);
    instance::examine(facts, &mut findings);
    for interface in &facts.interfaces {
        interface::examine(facts, interface, &mut findings);
    }
    Report {
        instance: facts.instance.name.clone(),
        findings,
    }
}

//! A VM and where it is.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    addresses::Addresses,
    names::{SegmentName, VmName},
    rule::MacAddress,
};

/// A VM as the inventory knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vm {
    /// Its name.
    pub name: VmName,
    /// The addresses that it keeps for life, at least one.
    #[serde(alias = "identity")]
    pub identities: Addresses,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its home segment, whose prefixes contain the identities.
    pub home: SegmentName,
}

/// A VM's place outside its home: a segment and, for each identity, a locator of its family from the
/// segment's pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Binding {
    /// Where the VM is.
    pub segment: SegmentName,
    /// Its locators there.
    #[serde(alias = "locator")]
    pub locators: Addresses,
}

/// A VM and its bindings between two transactions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmState {
    /// The VM.
    pub vm: Vm,
    /// Where it is; `None` at home.
    pub current: Option<Binding>,
    /// Where it was, as long as the old locators are forwarded.
    pub draining: Vec<Binding>,
    /// At home again, with old locators not yet retired.
    pub returned: bool,
}

impl VmState {
    /// A VM at home that never moved.
    pub fn at_home(vm: Vm) -> Self {
        Self {
            vm,
            current: None,
            draining: Vec::new(),
            returned: false,
        }
    }

    /// The segment in which it is.
    pub fn segment(&self) -> &SegmentName {
        self.current
            .as_ref()
            .map_or(&self.vm.home, |binding| &binding.segment)
    }

    /// Whether no router needs to know the VM: it is at home, and nothing drains.
    pub fn is_unbound(&self) -> bool {
        self.current.is_none() && self.draining.is_empty() && !self.returned
    }

    /// The VM at a new place: home if `to` is `None`. The binding that it leaves drains.
    pub fn moved(&self, to: Option<Binding>) -> Self {
        let mut draining = self.draining.clone();
        draining.extend(self.current.clone());
        Self {
            vm: self.vm.clone(),
            returned: to.is_none(),
            current: to,
            draining,
        }
    }

    /// The VM without one of its draining bindings: the one with these locators.
    pub fn retired(&self, locators: Addresses) -> Self {
        let mut state = self.clone();
        state
            .draining
            .retain(|binding| binding.locators != locators);
        state.returned &= !state.draining.is_empty();
        state
    }

    /// All its locators, current and draining.
    pub fn locators(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.current
            .iter()
            .chain(&self.draining)
            .flat_map(|binding| binding.locators.iter())
    }
}

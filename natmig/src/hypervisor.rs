//! What hypervisors say of their guests: QEMU's monitor and libvirt's domain description, and what a
//! guest's migration needs when they say it. No controller here: `cli::hypervisor` asks it.

pub mod domain;
pub mod guest;
pub mod qmp;

use std::fmt;

use serde::Serialize;

/// Which way a guest goes, as seen from one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It comes here.
    Arriving,
    /// It leaves.
    Leaving,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Arriving => "arriving",
            Self::Leaving => "leaving",
        })
    }
}

//! A model of routers for tests: tables with transactions, and the walk of a packet through them.
//!
//! [`ModelRouter`] is what `router` promises, without a kernel. [`walk`] is the translation table of
//! the data plane on rules, with ideal routing.

mod fabric;
mod router;
mod walk;

pub(crate) use self::{
    fabric::{fabric, topology, vm},
    router::ModelRouter,
    walk::{Place, Start, Walk, starts},
};

use std::collections::BTreeMap;

use crate::names::RouterName;

/// All routers of a fabric.
pub(crate) type Routers = BTreeMap<RouterName, ModelRouter>;

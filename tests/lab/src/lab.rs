//! A running lab: the network, and natmig's daemons in it.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context as _, Result, bail};

use crate::{network::Network, run::{self, Run}, topology::Topology};

/// A running lab. Everything is gone when it is dropped.
#[derive(Debug)]
pub struct Lab {
    /// The network.
    pub network: Network,
    run: Run,
}

impl Lab {
    /// Builds the network only: plain kernel forwarding.
    pub fn plain(topology: Topology) -> Result<Self> {
        let run = Run::claim()?;
        let network = Network::build(topology, &run.prefix())?;
        Ok(Self { network, run })
    }

    /// Its run directory.
    pub fn directory(&self) -> &Path {
        self.run.directory()
    }
}

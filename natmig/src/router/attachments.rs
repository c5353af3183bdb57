//! The interfaces that the program runs on, as they come, go and change.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd},
};

use natmig_common::{Interface, Role, names};

use super::{
    Attached, AttachedInterface, Instance, Router, RouterError, Segments, interfaces, loader,
};
use crate::config::RouterConfig;

impl Router {
    /// Takes up a change of links or addresses, after netlink told of one: reads the interfaces'
    /// addresses, MTUs and gateways again, runs the program on interfaces that were made anew, and
    /// sets host routes that the kernel dropped. An interface that is gone is left out until it is
    /// back.
    pub fn refresh_interfaces(&mut self) -> Result<(), RouterError> {
        let had = self.gateways();
        let socket = &mut self.kernel.socket;
        let (found, missing) = interfaces::find_present(socket, &self.config)?;
        self.kernel.set_port_mtu(interfaces::port_mtu(&found))?;
        let port = self.kernel.port;
        self.interfaces =
            interfaces::fill(&mut self.kernel.socket, &self.tables.maps, &found, port)?;
        let attached = if self.waits {
            Ok(())
        } else {
            self.attach_missing()
        };
        self.detach_others()?;
        let taken_over = &self.gateways() - &had;
        if !taken_over.is_empty() {
            self.announce_taken_over(&taken_over);
        }
        self.adopt_interfaces()?;
        self.install_guard(&self.pools())?;
        if missing.is_empty() {
            self.follow_segments()?;
        } else {
            tracing::warn!(?missing, "interfaces of natmig do not exist");
        }
        if let Some(next_hops) = &self.next_hops {
            next_hops.set_interfaces(elements(&self.interfaces));
        }
        self.reconcile()?;
        attached
    }

    /// Takes up that promiscuous mode of links was switched, and nothing else of them: by this router, or
    /// by an operator, whose it stays.
    pub fn refresh_promiscuity(&mut self) -> Result<(), RouterError> {
        let links = self.kernel.socket.links();
        for link in links.map_err(RouterError::system("list interfaces"))? {
            if let Some(attached) = self.interfaces.get_mut(&link.ifindex) {
                attached.link.flags = link.flags;
            }
        }
        self.follow_promiscuity()
    }

    /// Runs the program on the interfaces of a router that waited for its table; whether it did.
    pub fn attach(&mut self) -> Result<bool, RouterError> {
        if !std::mem::take(&mut self.waits) {
            return Ok(false);
        }
        self.attach_missing().inspect_err(|_| self.waits = true)?;
        Ok(true)
    }

    /// Runs the program on interfaces on which it does not run; the first error, after the others.
    pub(super) fn attach_missing(&self) -> Result<(), RouterError> {
        let mut result = Ok(());
        for attached in self.interfaces.values() {
            if !attached.runs_program() || loader::is_attached(&self.instance, &attached.link)? {
                continue;
            }
            let program = loader::open_program(&self.instance, names::PROGRAM)?;
            match attach(&self.instance, program.as_fd(), attached, self.generic) {
                Ok(interface) => {
                    tracing::info!(?interface, "attached");
                }
                Err(error) if result.is_ok() => result = Err(error),
                Err(error) => tracing::warn!(%error, "an interface is not attached"),
            }
        }
        result
    }

    /// Detaches from interfaces that are not natmig's.
    pub(super) fn detach_others(&self) -> Result<(), RouterError> {
        let indices: Vec<u32> = self
            .interfaces
            .iter()
            .filter(|(_, attached)| attached.runs_program())
            .map(|(ifindex, _)| *ifindex)
            .collect();
        loader::detach_others(&self.instance, &indices)
    }

    /// Lets entries follow access interfaces that have another index.
    pub(super) fn follow_segments(&mut self) -> Result<(), RouterError> {
        let segments = segments(&self.config, &self.interfaces);
        if segments == self.segments {
            return Ok(());
        }
        let rules = self.table();
        self.segments = segments;
        let report = self.replace(&rules)?;
        tracing::info!(?report, "entries follow interfaces that were made anew");
        Ok(())
    }

    pub(super) fn adopt_interfaces(&mut self) -> Result<(), RouterError> {
        self.kernel
            .adopt(&self.interfaces, self.config.gateway_mac.0)
    }
}

/// Runs the program on an interface.
pub(super) fn attach(
    instance: &Instance,
    program: BorrowedFd<'_>,
    attached: &Attached,
    generic: bool,
) -> Result<AttachedInterface, RouterError> {
    let role = Role::from_raw(attached.interface.role);
    let generic = generic && role != Some(Role::Kernel);
    let role = role.map_or("trunk", Role::name);
    loader::attach(instance, program, &attached.link, role, generic)
}

pub(super) fn segments(config: &RouterConfig, attached: &BTreeMap<u32, Attached>) -> Segments {
    let mut segments = Segments::default();
    for (ifindex, attached) in attached {
        let interface = config
            .interfaces
            .iter()
            .find(|interface| interface.name == attached.name);
        if let Some(segment) = interface.and_then(|interface| interface.segment.clone()) {
            segments.insert(segment, *ifindex);
        }
    }
    segments
}

/// The interfaces as the program knows them.
pub(super) fn elements(interfaces: &BTreeMap<u32, Attached>) -> BTreeMap<u32, Interface> {
    interfaces
        .iter()
        .map(|(ifindex, attached)| (*ifindex, attached.interface))
        .collect()
}

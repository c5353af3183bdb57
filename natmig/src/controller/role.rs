//! Who leads: this controller, or another one, to which it sends whoever asks.

use tokio::sync::watch;
use tonic::{Status, metadata::MetadataValue};

use super::core::Handle;
use crate::{proto::LEADER_METADATA, store::Leader};

/// What this controller is at present.
#[derive(Clone, Debug)]
pub(super) enum Role {
    /// The leader.
    Leading(Handle),
    /// Not the leader; who is, if that is known.
    StandingBy(Option<Leader>),
}

/// This controller's role, for those who serve.
#[derive(Clone, Debug)]
pub(super) struct Roles {
    name: String,
    role: watch::Receiver<Role>,
}

impl Roles {
    pub(super) fn new(name: String, role: watch::Receiver<Role>) -> Self {
        Self { name, role }
    }

    /// This controller's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn present(&self) -> Role {
        self.role.borrow().clone()
    }

    /// The core, if this controller leads; else a status that names the leader.
    pub(super) fn leading(&self) -> Result<Handle, Status> {
        match self.present() {
            Role::Leading(core) => Ok(core),
            Role::StandingBy(leader) => Err(elsewhere(leader.as_ref())),
        }
    }
}

fn elsewhere(leader: Option<&Leader>) -> Status {
    let mut status = Status::unavailable(match leader {
        Some(leader) => format!(
            "this controller stands by; {} leads: ask {}",
            leader.name, leader.address
        ),
        None => {
            "this controller stands by and does not know of a leader; ask again, or another one"
                .to_owned()
        }
    });
    let address = leader.map(|leader| leader.address.as_str());
    // An address that cannot be in metadata is only named in the message.
    if let Ok(value) = MetadataValue::try_from(address.unwrap_or_default()) {
        status.metadata_mut().insert(LEADER_METADATA, value);
    }
    status
}

//! Who is at the other end of a connection, and what that one may do.
//!
//! This is the only place that decides about rights: [`Access::needed`] has a line for every call
//! of the protocol (the compiler asks for one when a call is added), [`Peer::may`] one for every
//! kind of peer.

use std::{fmt, net::SocketAddr, time::SystemTime};

use tonic::{Status, codegen::http::Extensions};

use crate::{audit::Caller, names::RouterName, pki::Role, proto::Rpc};

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Somebody with a certificate of the authority.
    Certified {
        role: Role,
        /// SHA-256 of the certificate, in hexadecimal.
        fingerprint: String,
        address: SocketAddr,
        /// When the certificate does.
        expires: SystemTime,
    },
    /// A process of this machine, over the Unix socket.
    Local {
        uid: u32,
        pid: Option<i32>,
        standing: Standing,
    },
    /// Anybody who reaches an address that is served without TLS.
    Anonymous { address: SocketAddr },
}

/// What a user of this machine is to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Root, or the controller's own user.
    Owner,
    /// A member of the socket's group, which may operate.
    Operator,
    /// A member of the socket's group, which may look.
    ReadOnly,
    /// Nobody.
    Stranger,
}

/// What a call does, as far as rights are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Speaks for a router.
    Agent,
    /// Looks, and changes nothing.
    Look,
    /// Changes something.
    Operate,
}

/// Who makes a call.
pub(super) fn of(extensions: &Extensions) -> Result<&Peer, Status> {
    extensions
        .get()
        .ok_or_else(|| Status::internal("the connection does not say whose it is"))
}

impl Access {
    /// What a call needs.
    pub(super) fn needed(rpc: Rpc) -> Self {
        match rpc {
            Rpc::Session => Self::Agent,
            Rpc::GetTopology
            | Rpc::ListVms
            | Rpc::ListMigrations
            | Rpc::GetMigration
            | Rpc::WatchMigrations
            | Rpc::ListRouters
            | Rpc::GetRouterTable
            | Rpc::GetController
            | Rpc::ListAudit => Self::Look,
            Rpc::ApplyTopology
            | Rpc::AddVms
            | Rpc::RemoveVms
            | Rpc::StartMigration
            | Rpc::ActivateMigration
            | Rpc::AbortMigration
            | Rpc::DrainRouter
            | Rpc::UndrainRouter
            | Rpc::RemoveRouter => Self::Operate,
        }
    }

    /// Who has it.
    fn holders(self) -> &'static str {
        match self {
            Self::Agent => "the role agent",
            Self::Look => "the role operator or read-only",
            Self::Operate => "the role operator",
        }
    }
}

impl Peer {
    /// Whether it may make calls of this kind.
    pub(super) fn may(&self, access: Access) -> bool {
        match self {
            Self::Anonymous { .. } => true,
            Self::Certified { role, .. } => match role {
                Role::Agent(_) => access == Access::Agent,
                // Standbys ask the leader how things are; what they change, they change in the
                // store that they share.
                Role::Controller(_) | Role::ReadOnly(_) => access == Access::Look,
                Role::Operator(_) => matches!(access, Access::Look | Access::Operate),
            },
            Self::Local { standing, .. } => match standing {
                Standing::Owner => true,
                Standing::Operator => matches!(access, Access::Look | Access::Operate),
                Standing::ReadOnly => access == Access::Look,
                Standing::Stranger => false,
            },
        }
    }

    /// Whether it may speak for a router.
    pub(super) fn speaks_for(&self, router: &RouterName) -> bool {
        match self {
            Self::Certified { role, .. } => {
                matches!(role, Role::Agent(own) if own == router)
            }
            Self::Local { .. } | Self::Anonymous { .. } => self.may(Access::Agent),
        }
    }

    /// When it must show a certificate anew.
    pub(super) fn expires(&self) -> Option<SystemTime> {
        match self {
            Self::Certified { expires, .. } => Some(*expires),
            Self::Local { .. } | Self::Anonymous { .. } => None,
        }
    }

    /// As the audit log names it.
    pub(super) fn caller(&self) -> Caller {
        let name = self.to_string();
        let nobody = Caller {
            name,
            address: None,
            certificate: None,
            uid: None,
            pid: None,
        };
        match self {
            Self::Certified {
                fingerprint,
                address,
                ..
            } => Caller {
                address: Some(*address),
                certificate: Some(fingerprint.clone()),
                ..nobody
            },
            Self::Local { uid, pid, .. } => Caller {
                uid: Some(*uid),
                pid: *pid,
                ..nobody
            },
            Self::Anonymous { address } => Caller {
                address: Some(*address),
                ..nobody
            },
        }
    }

    /// Why a call is refused: who asks, and what is needed.
    pub(super) fn refusal(&self, rpc: Rpc) -> String {
        let holders = Access::needed(rpc).holders();
        let remedy = match self {
            Self::Local { .. } => {
                "be root or a member of the controller's `socket_group`, or come over TLS with a \
                 certificate of such a role"
            }
            Self::Certified { .. } | Self::Anonymous { .. } => {
                "use a certificate that was issued for it, see `natmig pki issue`"
            }
        };
        format!(
            "{self} may not call {}: it needs {holders}; {remedy}",
            rpc.name()
        )
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certified { role, .. } => role.fmt(f),
            Self::Local { uid, .. } => write!(f, "local user {uid}"),
            Self::Anonymous { .. } => f.write_str("anonymous"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certified(kind: &str) -> Peer {
        Peer::Certified {
            role: Role::new(kind, "edge1").unwrap(),
            fingerprint: String::new(),
            address: ([127, 0, 0, 1], 1).into(),
            expires: SystemTime::now(),
        }
    }

    fn local(standing: Standing) -> Peer {
        Peer::Local {
            uid: 1000,
            pid: None,
            standing,
        }
    }

    #[test]
    fn everybody_may_what_the_table_says() {
        // Agent, look, operate.
        for (peer, rights) in [
            (certified("agent"), [true, false, false]),
            (certified("controller"), [false, true, false]),
            (certified("operator"), [false, true, true]),
            (certified("read-only"), [false, true, false]),
            (local(Standing::Owner), [true, true, true]),
            (local(Standing::Operator), [false, true, true]),
            (local(Standing::ReadOnly), [false, true, false]),
            (local(Standing::Stranger), [false, false, false]),
        ] {
            let has = [Access::Agent, Access::Look, Access::Operate].map(|access| peer.may(access));
            assert_eq!(has, rights, "{peer}");
        }
    }

    #[test]
    fn agent_speaks_for_its_own_router_only() {
        let (own, other) = (RouterName::new("edge1"), RouterName::new("edge2"));
        assert!(certified("agent").speaks_for(&own));
        assert!(!certified("agent").speaks_for(&other));
        for kind in ["controller", "operator", "read-only"] {
            assert!(!certified(kind).speaks_for(&own), "{kind}");
        }
        assert!(local(Standing::Owner).speaks_for(&other));
        assert!(!local(Standing::Operator).speaks_for(&own));
    }
}

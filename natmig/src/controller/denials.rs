//! Calls that their caller may not make, on their way to log and audit log. The audit log is the
//! leader's: a controller that stands by only logs them.
//!
//! Whoever asks again and again is noted once a while: it must not flush what others did out of the
//! audit log, nor keep the store busy.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    peer::Peer,
    role::{Role, Roles},
};
use crate::{
    audit::{Asked, AuditOutcome},
    proto::Rpc,
};

/// The same caller's same call is noted once in this time.
const PAUSE: Duration = Duration::from_mins(1);

/// Callers and calls that are remembered for that.
const REMEMBERED: usize = 1024;

/// Notes denied calls.
#[derive(Clone, Debug)]
pub(super) struct Denials {
    roles: Roles,
    lately: Arc<Mutex<HashMap<(String, Rpc), Instant>>>,
}

impl Denials {
    pub(super) fn new(roles: Roles) -> Self {
        Self {
            roles,
            lately: Arc::default(),
        }
    }

    /// A call was denied, for a reason.
    pub(super) fn note(&self, peer: &Peer, rpc: Rpc, what: String, why: &str) {
        if !self.is_due(peer, rpc, Instant::now()) {
            return;
        }
        tracing::warn!(?peer, "refused: {why}");
        let asked = Asked {
            who: peer.caller(),
            call: rpc.name().to_owned(),
            what,
        };
        match self.roles.present() {
            Role::Leading(core) => core.note(asked, AuditOutcome::Denied(why.to_owned())),
            Role::StandingBy(_) => {}
        }
    }

    fn is_due(&self, peer: &Peer, rpc: Rpc, now: Instant) -> bool {
        // The map is whole at every instant at which a panic could poison the lock.
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.retain(|_, at| now.duration_since(*at) < PAUSE);
        let key = (peer.to_string(), rpc);
        if lately.contains_key(&key) || lately.len() >= REMEMBERED {
            return false;
        }
        lately.insert(key, now);
        true
    }
}

//! Leading in turn: stands by, leads while the lease lasts, stands by again.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::sync::watch;

use super::{
    ControllerError,
    core::{self, Handle, Input, Running, StartError},
    figures::Figures,
    role::Role,
};
use crate::{
    coordinator::Config,
    store::{Candidate, Lease, StoreError},
};

/// Why a core is asked to end, or has ended.
enum End {
    Shutdown,
    Lease,
    Own(Result<(), StoreError>),
}

/// The only controller on its store: serves until `shutdown` is ready or the store fails.
pub(super) async fn alone(
    core: Handle,
    mut running: Running,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ControllerError> {
    let own = tokio::select! {
        () = shutdown => None,
        outcome = &mut running.outcome => Some(outcome),
    };
    let outcome = match own {
        Some(outcome) => outcome.map_err(|_| ControllerError::Core)?,
        None => ask_to_end(&core, &mut running).await?,
    };
    join(running).await?;
    Ok(outcome?)
}

/// One of several: leads whenever it can, until `shutdown` is ready or the store is unusable.
pub(super) async fn in_turn(
    candidate: Candidate,
    role: watch::Sender<Role>,
    times: Config,
    figures: Arc<Figures>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ControllerError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut former: Option<Lease> = None;
    loop {
        let store = tokio::select! {
            () = &mut shutdown => return Ok(()),
            store = candidate.lead(former.as_ref()) => store.map_err(StoreError::from)?,
            () = tell_leader(&candidate, &role) => return Ok(()),
        };
        let lease = store.lease();
        let figures = Arc::clone(&figures);
        let start = move || core::start(Box::new(store), times, figures);
        let outcome = lead(start, &lease, &role, shutdown.as_mut()).await;
        role.send_replace(Role::StandingBy(None));
        lease.revoke().await;
        former = Some(lease);
        match outcome {
            Ok(true) => return Ok(()),
            Ok(false) => tracing::warn!("leadership has ended; standing by"),
            Err(
                ControllerError::Store(error) | ControllerError::Start(StartError::Store(error)),
            ) if error.is_lost_leadership() => {
                tracing::warn!(%error, "leadership has ended; standing by");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Leads once. Returns whether the controller was asked to end.
async fn lead(
    start: impl FnOnce() -> Result<(Handle, Running), StartError> + Send + 'static,
    lease: &Lease,
    role: &watch::Sender<Role>,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<bool, ControllerError> {
    let (core, mut running) = tokio::task::spawn_blocking(start)
        .await
        .map_err(|_| ControllerError::Core)??;
    role.send_replace(Role::Leading(core.clone()));
    let end = tokio::select! {
        () = shutdown => End::Shutdown,
        () = lease.ended() => End::Lease,
        outcome = &mut running.outcome => End::Own(outcome.map_err(|_| ControllerError::Core)?),
    };
    // Nobody is taken on any longer.
    role.send_replace(Role::StandingBy(None));
    let (asked, outcome) = match end {
        End::Shutdown => (true, ask_to_end(&core, &mut running).await?),
        End::Lease => (false, ask_to_end(&core, &mut running).await?),
        End::Own(outcome) => (false, outcome),
    };
    join(running).await?;
    match outcome {
        // What was under way when the controller was asked to end is the next leader's.
        Err(error) if asked && error.is_lost_leadership() => Ok(true),
        outcome => Ok(outcome.map(|()| asked)?),
    }
}

/// Keeps the role up to date while standing by.
async fn tell_leader(candidate: &Candidate, role: &watch::Sender<Role>) {
    let mut leader = candidate.leader();
    loop {
        let known = leader.borrow_and_update().clone();
        role.send_replace(Role::StandingBy(known));
        if leader.changed().await.is_err() {
            return;
        }
    }
}

async fn ask_to_end(
    core: &Handle,
    running: &mut Running,
) -> Result<Result<(), StoreError>, ControllerError> {
    if core.tell(Input::Shutdown).await.is_err() {
        tracing::debug!("the core has ended already");
    }
    (&mut running.outcome)
        .await
        .map_err(|_| ControllerError::Core)
}

async fn join(running: Running) -> Result<(), ControllerError> {
    tokio::task::spawn_blocking(move || running.thread.join())
        .await
        .map_err(|_| ControllerError::Core)?
        .map_err(|_| ControllerError::Core)
}

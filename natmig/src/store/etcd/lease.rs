//! The lease of a leadership: renewed on its own, however long the leader is busy.
//!
//! Invariants: [`Lease::lasts`] says no before etcd can have ended the lease, and never yes again after
//! it said no. Time counts from when a renewal was asked for, by a clock that goes on while the process
//! is stopped.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};

use super::{EtcdError, client::Client};

/// Part of the lease that the leader leaves unused, for clocks that go at different speeds.
const MARGIN: u32 = 10;

/// A lease that is being renewed. Clones are of the same lease.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: i64,
    client: Client,
    /// Until when the leader may act.
    until: watch::Receiver<Instant>,
    renewal: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Lease {
    /// Asks for a lease, and renews it from here on.
    pub(super) async fn grant(client: &Client, length: Duration) -> Result<Self, EtcdError> {
        let asked = Instant::now();
        let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
        let granted = client.grant(seconds).await?;
        let (told, until) = watch::channel(end(asked, granted.ttl));
        let renewal = tokio::spawn(renew(client.clone(), granted.id, length / 4, told));
        Ok(Self(Arc::new(Inner {
            id: granted.id,
            client: client.clone(),
            until,
            renewal,
        })))
    }

    pub(super) fn id(&self) -> i64 {
        self.0.id
    }

    /// Whether the lease is sure to last at this moment.
    pub fn lasts(&self) -> bool {
        Instant::now() < *self.0.until.borrow()
    }

    /// Returns when the lease does not last any longer.
    pub async fn ended(&self) {
        let mut until = self.0.until.clone();
        loop {
            let end = *until.borrow_and_update();
            if Instant::now() >= end {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(end.into()) => {}
                changed = until.changed() => {
                    if changed.is_err() {
                        // Nobody renews it.
                        tokio::time::sleep_until(end.into()).await;
                        return;
                    }
                }
            }
        }
    }

    /// Gives the lease back: what was written with it vanishes at once.
    pub async fn revoke(&self) {
        self.0.renewal.abort();
        if let Err(error) = self.0.client.revoke(self.0.id).await {
            tracing::debug!(%error, "the lease is left to end by itself");
        }
    }
}

/// Until when a lease may be relied on that was asked for at a time.
fn end(asked: Instant, seconds: i64) -> Instant {
    let length = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    asked + length.saturating_sub(length / MARGIN)
}

async fn renew(client: Client, id: i64, interval: Duration, until: watch::Sender<Instant>) {
    let mut said = false;
    loop {
        tokio::time::sleep(if said { interval / 4 } else { interval }).await;
        let asked = Instant::now();
        match client.keep_alive(id).await {
            Ok(seconds) if seconds > 0 => {
                if said {
                    tracing::info!("etcd answers again: the lease is renewed");
                    said = false;
                }
                let renewed = until.send_if_modified(|until| {
                    let lasts = Instant::now() < *until;
                    if lasts {
                        *until = end(asked, seconds);
                    }
                    lasts
                });
                if !renewed {
                    // Whoever asked meanwhile was told that it does not last.
                    tracing::warn!("the lease was not renewed in time");
                    return;
                }
            }
            Ok(_) => {
                tracing::warn!("the lease has ended");
                until.send_replace(asked);
                return;
            }
            Err(error) => {
                if !said {
                    tracing::warn!(%error, "cannot renew the lease; trying again");
                    said = true;
                }
            }
        }
    }
}

//! What the agent needs of a router's tables; tests put a double in their place.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    digest::{Parts, TableDigest},
    router::{
        Announcement, CommitReport, Heard, Held, Router, RouterError, TellHeard,
        next_hops::PrefixRoute,
    },
    rule::{Changes, Rule, TransactionId},
};

/// Has [`Tables::set_routes`] called before it returns; `false` if that can no longer be.
pub type SetRoutes = Box<dyn FnMut(Vec<PrefixRoute>) -> bool + Send>;

/// A router's tables; every method may block. They are described at [`Router`].
///
/// What has a default is what tables without a router beneath them do without, in tests and models:
/// interfaces, routes, announcements of VMs and to neighbours, pools that packets are checked against,
/// and a copy of the term. [`Router`] leaves nothing to defaults.
#[allow(
    missing_docs,
    reason = "described at `Router`, whose methods these are"
)]
pub trait Tables: Send + 'static {
    fn prepare(&mut self, id: TransactionId, changes: &Changes) -> Result<(), RouterError>;
    fn await_announcements(
        &mut self,
        _id: TransactionId,
        _changes: &Changes,
    ) -> Result<(), RouterError> {
        Ok(())
    }
    fn heard(&self) -> Result<Vec<Heard>, RouterError> {
        Ok(Vec::new())
    }
    fn listen(&mut self, _tell: TellHeard) -> Result<(), RouterError> {
        Ok(())
    }
    fn commit(&mut self, id: TransactionId) -> Result<CommitReport, RouterError>;
    /// Called after a command was answered.
    fn settle(&mut self) -> Result<(), RouterError> {
        Ok(())
    }
    fn abort(&mut self, id: TransactionId) -> Result<(), RouterError>;
    fn fold(&mut self, id: TransactionId) -> Result<(), RouterError>;
    fn retire(&mut self, addresses: &[IpAddr]) -> Result<(), RouterError>;
    fn replace(&mut self, parts: &Parts, rules: &BTreeMap<IpAddr, Rule>)
    -> Result<(), RouterError>;
    fn attach(&mut self) -> Result<bool, RouterError> {
        Ok(false)
    }
    fn held(&self) -> Vec<Held>;
    fn digest(&self) -> TableDigest;
    fn set_pools(&mut self, _pools: &[IpNet]) -> Result<(), RouterError> {
        Ok(())
    }
    /// A copy of the highest term, beside the one of [`super::execute::TermKeeper`]; 0 if there is none.
    fn term(&self) -> u64 {
        0
    }
    fn set_term(&mut self, _term: u64) -> Result<(), RouterError> {
        Ok(())
    }
    fn take_announcements(&mut self) -> Vec<Announcement> {
        Vec::new()
    }
    fn refresh_interfaces(&mut self) -> Result<(), RouterError> {
        Ok(())
    }
    fn refresh_promiscuity(&mut self) -> Result<(), RouterError> {
        Ok(())
    }
    fn keep_next_hops(&mut self, _set_routes: SetRoutes) -> Result<(), RouterError> {
        Ok(())
    }
    fn set_routes(&mut self, _routes: &[PrefixRoute]) {}
    fn announce(_announcements: &[Announcement]) -> Result<(), RouterError> {
        Ok(())
    }
}

impl Tables for Router {
    fn prepare(&mut self, id: TransactionId, changes: &Changes) -> Result<(), RouterError> {
        self.prepare(id, changes)
    }

    fn await_announcements(
        &mut self,
        id: TransactionId,
        changes: &Changes,
    ) -> Result<(), RouterError> {
        self.await_announcements(id, changes)
    }

    fn heard(&self) -> Result<Vec<Heard>, RouterError> {
        self.heard()
    }

    fn listen(&mut self, tell: TellHeard) -> Result<(), RouterError> {
        self.listen(tell)
    }

    fn commit(&mut self, id: TransactionId) -> Result<CommitReport, RouterError> {
        self.commit(id)
    }

    fn settle(&mut self) -> Result<(), RouterError> {
        self.settle()
    }

    fn abort(&mut self, id: TransactionId) -> Result<(), RouterError> {
        self.abort(id)
    }

    fn fold(&mut self, id: TransactionId) -> Result<(), RouterError> {
        self.fold(id)
    }

    fn retire(&mut self, addresses: &[IpAddr]) -> Result<(), RouterError> {
        self.retire(addresses)
    }

    fn replace(
        &mut self,
        parts: &Parts,
        rules: &BTreeMap<IpAddr, Rule>,
    ) -> Result<(), RouterError> {
        let report = self.replace_parts(parts, rules)?;
        tracing::info!(?report, "table replaced");
        Ok(())
    }

    fn attach(&mut self) -> Result<bool, RouterError> {
        self.attach()
    }

    fn held(&self) -> Vec<Held> {
        self.held()
    }

    fn digest(&self) -> TableDigest {
        self.digest()
    }

    fn set_pools(&mut self, pools: &[IpNet]) -> Result<(), RouterError> {
        self.set_pools(pools)
    }

    fn term(&self) -> u64 {
        self.term()
    }

    fn set_term(&mut self, term: u64) -> Result<(), RouterError> {
        self.set_term(term)
    }

    fn take_announcements(&mut self) -> Vec<Announcement> {
        self.take_announcements()
    }

    fn refresh_interfaces(&mut self) -> Result<(), RouterError> {
        self.refresh_interfaces()
    }

    fn refresh_promiscuity(&mut self) -> Result<(), RouterError> {
        self.refresh_promiscuity()
    }

    fn keep_next_hops(&mut self, set_routes: SetRoutes) -> Result<(), RouterError> {
        self.keep_next_hops(set_routes)
    }

    fn set_routes(&mut self, routes: &[PrefixRoute]) {
        self.set_routes(routes);
    }

    fn announce(announcements: &[Announcement]) -> Result<(), RouterError> {
        crate::router::announce::send(announcements)
    }
}

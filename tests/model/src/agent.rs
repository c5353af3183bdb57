//! An agent: natmig's own, on a router's tables of the model. It may be killed between two changes that
//! a command makes.

use std::{collections::BTreeMap, net::IpAddr};

use natmig::{
    agent::{self, TermError, execute::TermKeeper},
    coordinator::Timestamp,
    digest::{Parts, TableDigest},
    router::{CommitReport, Heard, Held, RouterError},
    rule::{Changes, Rule, TransactionId},
};

use crate::tables::Tables;

/// The router's disk, which keeps the term.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// The highest term that the router has seen.
    pub term: u64,
}

impl TermKeeper for Disk {
    fn term(&self) -> u64 {
        self.term
    }

    fn raise(&mut self, term: u64) -> Result<(), TermError> {
        self.term = self.term.max(term);
        Ok(())
    }
}

/// What an agent works on.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The router's tables.
    pub tables: Tables,
    /// The router waits for its table.
    pub booting: bool,
    /// Changes that it makes before it is killed, if it is.
    pub killed_after: Option<u8>,
    /// The time.
    pub now: Timestamp,
    /// Whether it listens only after it has prepared, which is a bug.
    pub listens_late: bool,
    /// What it listens for then.
    pub late: Option<(TransactionId, Changes)>,
}

impl Agent {
    /// Whether it has been killed; then nothing it does has any effect.
    pub fn is_killed(&self) -> bool {
        self.killed_after == Some(0)
    }

    /// Begins a change, unless it has been killed. Then what it says is never heard.
    fn change(&mut self) -> Result<&mut Tables, RouterError> {
        if let Some(left) = &mut self.killed_after {
            *left = left
                .checked_sub(1)
                .ok_or(RouterError::UnknownTransaction(TransactionId(0)))?;
        }
        Ok(&mut self.tables)
    }
}

impl agent::Tables for Agent {
    fn prepare(&mut self, id: TransactionId, changes: &Changes) -> Result<(), RouterError> {
        self.change()?.prepare(id, changes)?;
        if let Some((id, changes)) = self.late.take() {
            self.change()?.await_announcements(id, &changes);
        }
        Ok(())
    }

    fn await_announcements(
        &mut self,
        id: TransactionId,
        changes: &Changes,
    ) -> Result<(), RouterError> {
        if self.listens_late {
            self.late = Some((id, changes.clone()));
        } else {
            self.change()?.await_announcements(id, changes);
        }
        Ok(())
    }

    fn heard(&self) -> Result<Vec<Heard>, RouterError> {
        Ok(self.tables.heard())
    }

    fn commit(&mut self, id: TransactionId) -> Result<CommitReport, RouterError> {
        let now = self.now.0;
        self.change()?.commit(id, now)
    }

    fn settle(&mut self) -> Result<(), RouterError> {
        self.tables.stop_awaiting_decided();
        Ok(())
    }

    fn abort(&mut self, id: TransactionId) -> Result<(), RouterError> {
        self.change()?.abort(id)
    }

    fn fold(&mut self, id: TransactionId) -> Result<(), RouterError> {
        self.change()?.fold(id)
    }

    fn retire(&mut self, addresses: &[IpAddr]) -> Result<(), RouterError> {
        self.change()?.retire(addresses);
        Ok(())
    }

    fn replace(
        &mut self,
        parts: &Parts,
        rules: &BTreeMap<IpAddr, Rule>,
    ) -> Result<(), RouterError> {
        self.change()?.replace(parts, rules);
        Ok(())
    }

    fn attach(&mut self) -> Result<bool, RouterError> {
        self.change()?;
        Ok(std::mem::take(&mut self.booting))
    }

    fn held(&self) -> Vec<Held> {
        self.tables.transactions()
    }

    fn digest(&self) -> TableDigest {
        TableDigest::of(
            self.tables
                .table()
                .iter()
                .map(|(address, rule)| (*address, rule)),
        )
    }
}

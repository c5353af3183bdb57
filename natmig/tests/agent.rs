//! What an agent does with a command, on a router's tables at which it may be killed.

use std::{collections::BTreeMap, net::IpAddr};

use natmig::{
    agent::{
        Tables, TermError,
        execute::{TermKeeper, carry_out, report},
    },
    coordinator::{Command as Machine, HeldState},
    digest::{Parts, TableDigest},
    names::SegmentName,
    proto::{Command, Order, Outcome},
    router::{CommitReport, Held, RouterError},
    rule::{Attachment, Change, Changes, MacAddress, Rule, TransactionId},
};
use natmig_common::SlotState;

const ID: TransactionId = TransactionId(7);

/// A router's tables, whose agent is killed after some changes: no later one has any effect.
#[derive(Debug, Default)]
struct Mortal {
    changes: u32,
    prepared: bool,
    awaited: bool,
}

impl Mortal {
    fn change(&mut self) -> Result<(), RouterError> {
        self.changes = self.changes.checked_sub(1).ok_or(RouterError::NoSlot)?;
        Ok(())
    }
}

impl Tables for Mortal {
    fn prepare(&mut self, _id: TransactionId, _changes: &Changes) -> Result<(), RouterError> {
        self.change()?;
        self.prepared = true;
        Ok(())
    }

    fn await_announcements(
        &mut self,
        _id: TransactionId,
        _changes: &Changes,
    ) -> Result<(), RouterError> {
        self.change()?;
        self.awaited = true;
        Ok(())
    }

    fn commit(&mut self, id: TransactionId) -> Result<CommitReport, RouterError> {
        Err(RouterError::UnknownTransaction(id))
    }

    fn abort(&mut self, _id: TransactionId) -> Result<(), RouterError> {
        Ok(())
    }

    fn fold(&mut self, _id: TransactionId) -> Result<(), RouterError> {
        Ok(())
    }

    fn retire(&mut self, _addresses: &[IpAddr]) -> Result<(), RouterError> {
        Ok(())
    }

    fn replace(
        &mut self,
        _parts: &Parts,
        _rules: &BTreeMap<IpAddr, Rule>,
    ) -> Result<(), RouterError> {
        Ok(())
    }

    fn held(&self) -> Vec<Held> {
        let held = Held {
            id: ID,
            state: SlotState::Prepared,
            committed_at: 0,
        };
        self.prepared.then_some(held).into_iter().collect()
    }

    fn digest(&self) -> TableDigest {
        TableDigest::default()
    }
}

/// A disk.
struct Kept(u64);

impl TermKeeper for Kept {
    fn term(&self) -> u64 {
        self.0
    }

    fn raise(&mut self, term: u64) -> Result<(), TermError> {
        self.0 = term;
        Ok(())
    }
}

fn prepare(term: u64) -> Command {
    let at = Attachment {
        segment: SegmentName::new("rack2"),
        mac: MacAddress([2, 0, 0, 0, 1, 1]),
    };
    let change = Change {
        address: [10, 1, 1, 10].into(),
        rule: Rule::Local {
            locator: Some([10, 1, 2, 250].into()),
            at,
            gateway: None,
        },
    };
    Command {
        term,
        sequence: 1,
        order: Order::Command(Machine::Prepare {
            id: ID,
            changes: Changes {
                early: Vec::new(),
                pending: vec![change],
            },
            await_announcements: true,
        }),
    }
}

#[test]
fn a_killed_agent_leaves_no_transaction_that_it_does_not_listen_for() {
    for changes in 0..=2 {
        let mut tables = Mortal {
            changes,
            ..Mortal::default()
        };
        let outcome = carry_out(&mut tables, &mut Kept(1), prepare(1), || {});
        assert_eq!(outcome == Outcome::Done, changes == 2);
        let held = report(&tables, &Kept(1)).held;
        if held.iter().any(|held| held.state == HeldState::Prepared) {
            // The controller does not tell it to prepare again.
            assert!(tables.awaited, "killed after {changes} changes");
        }
        assert_eq!(held.len(), usize::from(changes == 2));
    }
}

#[test]
fn a_lower_term_changes_nothing_and_a_higher_one_is_kept() {
    let mut tables = Mortal {
        changes: 2,
        ..Mortal::default()
    };
    let mut kept = Kept(5);
    let outcome = carry_out(&mut tables, &mut kept, prepare(4), || {});
    assert_eq!(outcome, Outcome::Fenced { term: 5 });
    assert!(!tables.awaited && !tables.prepared);
    let outcome = carry_out(&mut tables, &mut kept, prepare(6), || {});
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(report(&tables, &kept).term, 6);
}

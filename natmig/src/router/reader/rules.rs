//! What the pinned maps say, in the planner's words; and whether every entry is found by the way
//! that packets take.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use natmig_common::{Action, Ipv4, Ipv6, SlotState};
use serde::Serialize;

use super::Reader;
use crate::{
    router::{
        RouterError,
        family::Net,
        version::{Decoded, Segments},
    },
    rule::{Rule, TransactionId},
};

/// A router's tables, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The table as it was before the transactions that are held.
    pub rules: BTreeMap<IpAddr, Rule>,
    /// The transactions that are held.
    pub held: BTreeSet<TransactionId>,
    /// Entries that the program does not use as they are meant.
    pub faults: Vec<Fault>,
}

/// An entry that the program does not use as it is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The entry's address.
    pub address: IpAddr,
    /// Its place in the table.
    pub index: u32,
    /// What is wrong with it.
    pub problem: String,
}

impl Reader {
    /// Reads the tables, and looks every address up as packets are looked up. A writer may be at the
    /// tables meanwhile: what is seen only once means nothing.
    pub fn snapshot(&self) -> Result<Snapshot, RouterError> {
        let mut snapshot = Snapshot {
            held: self
                .transactions()
                .into_iter()
                .map(|held| TransactionId(held.transaction))
                .collect(),
            ..Snapshot::default()
        };
        let segments = self.segments();
        self.add_entries::<Ipv4>(&segments, &mut snapshot)?;
        self.add_entries::<Ipv6>(&segments, &mut snapshot)?;
        Ok(snapshot)
    }

    fn segments(&self) -> Segments {
        let mut segments = Segments::default();
        let configured = self.config.iter().flat_map(|config| &config.interfaces);
        for interface in configured {
            let link = self.links.iter().find(|(_, name)| **name == interface.name);
            if let (Some(segment), Some((ifindex, _))) = (&interface.segment, link) {
                segments.insert(segment.clone(), *ifindex);
            }
        }
        segments
    }

    fn add_entries<F: Net>(
        &self,
        segments: &Segments,
        snapshot: &mut Snapshot,
    ) -> Result<(), RouterError> {
        for index in 0..F::maps(&self.maps).capacity() {
            let Some(entry) = self.in_use::<F>(index) else {
                continue;
            };
            let number = F::number(entry.address);
            let address = F::address(number);
            let mut fault = |problem: String| {
                snapshot.faults.push(Fault {
                    address,
                    index,
                    problem,
                });
            };
            match self.lead::<F>(number)? {
                Some(found) if found == index => {}
                Some(found) => fault(format!("packets are led to entry {found} instead")),
                None => fault("packets are not led to it".to_owned()),
            }
            let current = Decoded::of(&entry.current);
            let mut early = false;
            if let Some(reference) = entry.reference() {
                let slot = self.maps.transactions.get(reference.slot() as usize);
                if slot.generation() != reference.generation()
                    || slot.state == SlotState::Free as u32
                {
                    fault("its pending version belongs to no transaction".to_owned());
                }
                // An early change is the transaction's that it came with.
                early = Decoded::of(&entry.pending) == current;
            }
            if !early && current.action != Action::Absent {
                snapshot.rules.insert(address, segments.rule(&current));
            }
        }
        Ok(())
    }
}

//! A router's table on the wire, in pieces.

use std::collections::BTreeMap;

use super::{Malformed, control::phase, prefix, v1};
use crate::{
    coordinator::RouterTable,
    rule::{Change, Rule, TransactionId},
};

/// Rules in one message: a few hundred kilobytes.
const PIECE: usize = 8192;

type Rules = BTreeMap<std::net::IpAddr, Rule>;

/// The table as messages, the first of which has all but rules.
pub fn table_pieces(table: RouterTable) -> impl Iterator<Item = v1::GetRouterTableResponse> {
    let first = v1::GetRouterTableResponse {
        phases: table
            .phases
            .iter()
            .map(|(id, phase)| v1::TransactionPhase {
                transaction: id.0,
                phase: v1::Phase::from(*phase).into(),
            })
            .collect(),
        pools: table.pools.iter().map(Into::into).collect(),
        ..v1::GetRouterTableResponse::default()
    };
    let rules = changes(table.rules).map(|rules| v1::GetRouterTableResponse {
        rules,
        ..v1::GetRouterTableResponse::default()
    });
    let early = changes(table.early).map(|early| v1::GetRouterTableResponse {
        early,
        ..v1::GetRouterTableResponse::default()
    });
    std::iter::once(first).chain(rules).chain(early)
}

fn changes(rules: Rules) -> impl Iterator<Item = Vec<v1::Change>> {
    let mut rules = rules.into_iter();
    std::iter::from_fn(move || {
        let piece: Vec<v1::Change> = rules
            .by_ref()
            .take(PIECE)
            .map(|(address, rule)| (&Change { address, rule }).into())
            .collect();
        (!piece.is_empty()).then_some(piece)
    })
}

/// Adds a message to what has come of the table.
pub fn add_table_piece(
    table: &mut RouterTable,
    piece: v1::GetRouterTableResponse,
) -> Result<(), Malformed> {
    for (rules, changes) in [
        (&mut table.rules, piece.rules),
        (&mut table.early, piece.early),
    ] {
        for change in changes {
            let Change { address, rule } = change.try_into()?;
            rules.insert(address, rule);
        }
    }
    for transaction in piece.phases {
        let id = TransactionId(transaction.transaction);
        table.phases.insert(id, phase(transaction.phase)?);
    }
    for pool in &piece.pools {
        table.pools.push(prefix("pools", pool)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::coordinator::Phase;

    #[test]
    fn table_survives_the_wire() {
        let known = |number: u32| {
            let identity = Ipv4Addr::from(0x0a02_0000 + number).into();
            (
                Ipv4Addr::from(0x0a01_0000 + number).into(),
                Rule::Known { identity },
            )
        };
        let table = RouterTable {
            rules: (0..20_000).map(known).collect(),
            early: (20_000..20_003).map(known).collect(),
            phases: [(TransactionId(7), Phase::Committing)].into(),
            pools: vec!["10.1.1.128/25".parse().unwrap()],
        };
        let mut found = RouterTable::default();
        let mut pieces = 0;
        for piece in table_pieces(table.clone()) {
            pieces += 1;
            add_table_piece(&mut found, piece).unwrap();
        }
        assert_eq!(found, table);
        assert_eq!(pieces, 1 + 3 + 1);
        let empty = table_pieces(RouterTable::default());
        assert_eq!(empty.count(), 1);
    }
}

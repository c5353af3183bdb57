//! Messages on the wire: what is sent arrives, and what a peer makes up is refused.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use natmig::{
    coordinator::{self, Held, HeldState, Timestamp},
    digest::{PARTS, Parts, TableDigest, part},
    names::{RouterName, SegmentName},
    proto::{Command, Hello, Order, Outcome, PROTOCOL, Reply, RouterInterface, v1},
    rule::{Attachment, Change, Changes, MacAddress, Rule, TransactionId},
};
use natmig_common::Role;
use proptest::prelude::*;
use prost::Message;

fn ipv4() -> BoxedStrategy<IpAddr> {
    any::<[u8; 4]>()
        .prop_map(Ipv4Addr::from)
        .prop_filter("an address of a host", |address| {
            !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast()
        })
        .prop_map(IpAddr::V4)
        .boxed()
}

fn ipv6() -> BoxedStrategy<IpAddr> {
    any::<[u8; 16]>()
        .prop_map(Ipv6Addr::from)
        .prop_filter("an address of a host", |address| {
            let special = address.is_unspecified() || address.is_multicast();
            !special && address.to_ipv4_mapped().is_none()
        })
        .prop_map(IpAddr::V6)
        .boxed()
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![ipv4(), ipv6()]
}

fn attachment() -> impl Strategy<Value = Attachment> {
    (any::<[u8; 5]>(), "[a-z][a-z0-9-]{0,20}").prop_map(|([a, b, c, d, e], segment)| Attachment {
        segment: SegmentName::new(segment),
        mac: MacAddress([2, a, b, c, d, e]),
    })
}

/// Rules whose addresses are of one family.
fn rule(address: fn() -> BoxedStrategy<IpAddr>) -> impl Strategy<Value = Rule> {
    let optional = || prop::option::of(address());
    prop_oneof![
        Just(Rule::Absent),
        (address(), prop::option::of(attachment()))
            .prop_map(|(locator, home)| Rule::Away { locator, home }),
        (optional(), attachment(), optional()).prop_map(|(locator, at, gateway)| Rule::Local {
            locator,
            at,
            gateway
        }),
        (address(), attachment()).prop_map(|(identity, at)| Rule::Deliver { identity, at }),
        (address(), address()).prop_map(|(identity, to)| Rule::Forward { identity, to }),
        address().prop_map(|identity| Rule::Known { identity }),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![(ipv4(), rule(ipv4)), (ipv6(), rule(ipv6))];
    prop::collection::vec(change, 0..8).prop_map(|rules| {
        let rules: BTreeMap<_, _> = rules.into_iter().collect();
        rules
            .into_iter()
            .map(|(address, rule)| Change { address, rule })
            .collect()
    })
}

fn command() -> impl Strategy<Value = Command> {
    use coordinator::Command as Machine;
    let id = || any::<u64>().prop_map(TransactionId);
    let machine = prop_oneof![
        prop::collection::vec((address(), 0..=32_u8), 0..4).prop_map(|pools| {
            Machine::SetPools {
                pools: pools
                    .into_iter()
                    .map(|(network, length)| ipnet::IpNet::new(network, length).unwrap().trunc())
                    .collect(),
            }
        }),
        (id(), changes(), changes(), any::<bool>()).prop_map(
            |(id, early, pending, await_announcements)| Machine::Prepare {
                id,
                changes: Changes { early, pending },
                await_announcements,
            }
        ),
        id().prop_map(|id| Machine::Commit { id }),
        id().prop_map(|id| Machine::Abort { id }),
        id().prop_map(|id| Machine::Fold { id }),
        (id(), prop::collection::vec(address(), 0..4))
            .prop_map(|(id, addresses)| Machine::Retire { id, addresses }),
        Just(Machine::Attach),
        (any::<u64>(), changes(), any::<bool>()).prop_map(|(version, mut rules, whole)| {
            let parts = if whole {
                Parts::All
            } else {
                // Some parts, of which the table need not have any address.
                Parts::Some((0..=PARTS / 2).collect())
            };
            rules.retain(|change| parts.contains(change.address));
            Machine::Replace {
                version,
                parts,
                rules,
            }
        }),
    ];
    let order = prop_oneof![Just(Order::Welcome), machine.prop_map(Order::Command)];
    (any::<u64>(), any::<u64>(), order).prop_map(|(term, sequence, order)| Command {
        term,
        sequence,
        order,
    })
}

fn reply() -> impl Strategy<Value = Reply> {
    let outcome = prop_oneof![
        Just(Outcome::Done),
        (any::<u64>(), any::<u64>()).prop_map(|(at, grace)| Outcome::Committed {
            at,
            grace: Duration::from_nanos(grace),
        }),
        Just(Outcome::UnknownTransaction),
        any::<u64>().prop_map(|term| Outcome::Fenced { term }),
        ".{0,40}".prop_map(Outcome::Refused),
    ];
    (any::<u64>(), outcome).prop_map(|(sequence, outcome)| Reply { sequence, outcome })
}

fn hello() -> impl Strategy<Value = Hello> {
    let held = prop_oneof![
        Just(HeldState::Prepared),
        any::<u64>().prop_map(|at| HeldState::Committed { at: Timestamp(at) }),
    ];
    let held = (any::<u64>(), held).prop_map(|(id, state)| Held {
        id: TransactionId(id),
        state,
    });
    let interface = prop_oneof![
        "[a-z]{1,8}".prop_map(|name| RouterInterface {
            name: "eth0".to_owned(),
            role: Role::Access,
            segment: Some(SegmentName::new(name)),
        }),
        Just(RouterInterface {
            name: "eth1".to_owned(),
            role: Role::External,
            segment: None,
        }),
    ];
    (
        any::<u64>(),
        prop::collection::vec(any::<u64>(), usize::from(PARTS)),
        prop::collection::vec(held, 0..4),
        prop::collection::vec(interface, 0..4),
    )
        .prop_map(|(term, digests, held, interfaces)| Hello {
            router: RouterName::new("edge1"),
            term,
            digest: TableDigest::from_parts(digests).unwrap(),
            held,
            interfaces,
            version: "1".to_owned(),
        })
}

proptest! {
    #[test]
    fn commands_arrive_as_they_were_sent(command in command()) {
        let bytes = v1::Command::from(&command).encode_to_vec();
        let wire = v1::Command::decode(&bytes[..]).unwrap();
        prop_assert_eq!(Command::try_from(wire).unwrap(), command);
    }

    #[test]
    fn replies_arrive_as_they_were_sent(reply in reply()) {
        let bytes = v1::Reply::from(&reply).encode_to_vec();
        let wire = v1::Reply::decode(&bytes[..]).unwrap();
        prop_assert_eq!(Reply::try_from(wire).unwrap(), reply);
    }

    #[test]
    fn hellos_arrive_as_they_were_sent(hello in hello()) {
        let bytes = v1::Hello::from(&hello).encode_to_vec();
        let wire = v1::Hello::decode(&bytes[..]).unwrap();
        prop_assert_eq!(Hello::try_from(wire).unwrap(), hello);
    }

    /// Damage is refused or makes another valid message; it never panics.
    #[test]
    fn damaged_commands_never_panic(command in command(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = v1::Command::from(&command).encode_to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(wire) = v1::Command::decode(&bytes[..]) {
            Command::try_from(wire).ok();
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(wire) = v1::Command::decode(&bytes[..]) {
            Command::try_from(wire).ok();
        }
        if let Ok(wire) = v1::Reply::decode(&bytes[..]) {
            Reply::try_from(wire).ok();
        }
        if let Ok(wire) = v1::Hello::decode(&bytes[..]) {
            Hello::try_from(wire).ok();
        }
        if let Ok(wire) = v1::Migration::decode(&bytes[..]) {
            coordinator::MigrationView::try_from(wire).ok();
        }
    }
}

#[test]
fn garbage_is_refused_by_name() {
    let change = |address: &[u8], action| v1::Change {
        address: address.to_vec(),
        rule: Some(v1::Rule { action }),
    };
    let known = |identity: &[u8]| {
        Some(v1::rule::Action::Known(v1::rule::Known {
            identity: identity.to_vec(),
        }))
    };
    for (change, field) in [
        (change(&[10, 0, 0], known(&[10, 0, 0, 1])), "change.address"),
        (change(&[], known(&[10, 0, 0, 1])), "change.address"),
        (
            change(&[0, 0, 0, 0], known(&[10, 0, 0, 1])),
            "change.address",
        ),
        (
            change(&[10, 0, 0, 1], known(&[224, 0, 0, 1])),
            "known.identity",
        ),
        (change(&[10, 0, 0, 1], known(&[1; 16])), "change.rule"),
        (change(&[1; 16], known(&[10, 0, 0, 1])), "change.rule"),
        (change(&[0xff; 16], known(&[1; 16])), "change.address"),
        (change(&[10, 0, 0, 1], None), "rule.action"),
        (
            change(
                &[10, 0, 0, 1],
                Some(v1::rule::Action::Deliver(v1::rule::Deliver {
                    identity: vec![10, 0, 0, 2],
                    at: Some(v1::Attachment {
                        segment: "rack1".to_owned(),
                        mac: vec![1, 0, 0, 0, 0, 0],
                    }),
                })),
            ),
            "attachment.mac",
        ),
        (
            change(
                &[10, 0, 0, 1],
                Some(v1::rule::Action::Local(v1::rule::Local {
                    locator: Vec::new(),
                    at: None,
                    gateway: Vec::new(),
                })),
            ),
            "local.at",
        ),
    ] {
        let error = Change::try_from(change).unwrap_err();
        assert_eq!(error.field, field);
    }
    let hello = v1::Hello {
        protocol: 1,
        router: "edge1".to_owned(),
        ..v1::Hello::default()
    };
    assert!(
        Hello::try_from(hello)
            .unwrap_err()
            .to_string()
            .contains("install the same natmig")
    );
    for router in ["", "two words", &"x".repeat(256), "a\0b"] {
        let hello = v1::Hello {
            protocol: PROTOCOL,
            router: router.to_owned(),
            ..v1::Hello::default()
        };
        assert_eq!(Hello::try_from(hello).unwrap_err().field, "hello.router");
    }
    let unsorted = v1::Command {
        term: 1,
        sequence: 1,
        command: Some(v1::command::Command::Replace(v1::Replace {
            rules: vec![
                change(&[10, 0, 0, 2], known(&[10, 0, 0, 9])),
                change(&[10, 0, 0, 2], known(&[10, 0, 0, 9])),
            ],
            version: 1,
            parts: Vec::new(),
        })),
    };
    assert_eq!(
        Command::try_from(unsorted).unwrap_err().field,
        "replace.rules"
    );
}

/// A table comes in the parts that it says, and its digests are those of all parts.
#[test]
fn parts_that_do_not_fit_are_refused() {
    let change = v1::Change {
        address: vec![10, 0, 0, 2],
        rule: Some(v1::Rule {
            action: Some(v1::rule::Action::Known(v1::rule::Known {
                identity: vec![10, 0, 0, 9],
            })),
        }),
    };
    let elsewhere = IpAddr::from([10, 0, 0, 2]);
    for (parts, field) in [
        (vec![u32::from(PARTS)], "replace.parts"),
        (
            vec![u32::from((part(elsewhere) + 1) % PARTS)],
            "replace.rules",
        ),
    ] {
        let of_other_parts = v1::Command {
            term: 1,
            sequence: 1,
            command: Some(v1::command::Command::Replace(v1::Replace {
                rules: vec![change.clone()],
                version: 1,
                parts,
            })),
        };
        assert_eq!(Command::try_from(of_other_parts).unwrap_err().field, field);
    }
    let digests = v1::Hello {
        protocol: PROTOCOL,
        router: "edge1".to_owned(),
        digests: vec![0; 3],
        ..v1::Hello::default()
    };
    assert_eq!(Hello::try_from(digests).unwrap_err().field, "hello.digests");
}

/// A reply fits its command or none.
#[test]
fn outcome_that_a_command_cannot_have_is_no_reply() {
    use coordinator::CommandRef;
    let commit = CommandRef::Commit(TransactionId(1));
    assert_eq!(Outcome::Done.reply_to(commit), None);
    let committed = Outcome::Committed {
        at: 1,
        grace: Duration::ZERO,
    };
    assert_eq!(committed.reply_to(CommandRef::Fold(TransactionId(1))), None);
}

/// The largest full table, of both families, fits into a message twice.
#[test]
fn table_of_two_million_addresses_fits() {
    let at = Attachment {
        segment: SegmentName::new("a-segment-with-a-rather-long-name"),
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
    };
    let length = |addresses: [IpAddr; 3]| {
        let [address, locator, gateway] = addresses;
        let rule = Rule::Local {
            locator: Some(locator),
            at: at.clone(),
            gateway: Some(gateway),
        };
        v1::Change::from(&Change { address, rule }).encoded_len() + 4
    };
    let ipv4 = length([1, 2, 3].map(|last| [10, 0, 0, last].into()));
    let ipv6 = length([1, 2, 3].map(|last| [last; 16].into()));
    assert!(
        2 * (ipv4 + ipv6) * 2_097_152 < natmig::proto::MESSAGE_LIMIT,
        "{ipv4} and {ipv6} bytes each"
    );
}

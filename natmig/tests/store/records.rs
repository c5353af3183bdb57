//! Records to store.

use std::net::{IpAddr, Ipv6Addr};

use natmig::{
    addresses::Addresses,
    audit::{Asked, AuditOutcome, AuditRecord, Caller, KEPT},
    coordinator::{
        Activation, Heard, MigrationRecord, Phase, Quarantined, StoreOp, Stored, Timestamp,
        Unreachable,
    },
    names::{RouterName, SegmentName, VmName},
    planner::{Binding, Move, Vm, VmState},
    rule::{MacAddress, TransactionId},
    topology::Topology,
};
use proptest::prelude::*;

pub fn addresses(rack: u8, number: u8) -> Addresses {
    let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, rack.into(), 0, 0, 0, 0, number.into());
    let addresses: [IpAddr; 2] = [[10, 1, rack, number].into(), ipv6.into()];
    Addresses::collect(addresses).unwrap()
}

pub fn identities(number: u8) -> Addresses {
    addresses(1, number)
}

pub fn locators(number: u8) -> Addresses {
    addresses(2, number)
}

pub fn vm(number: u8) -> VmState {
    VmState::at_home(Vm {
        name: VmName::new(format!("vm{number}")),
        identities: identities(number),
        mac: MacAddress([2, 0, 0, 0, 0, number]),
        home: SegmentName::new("rack1"),
    })
}

pub fn migration(number: u8) -> MigrationRecord {
    let before = vm(number);
    let after = before.moved(Some(Binding {
        segment: SegmentName::new("rack2"),
        locators: locators(number),
    }));
    MigrationRecord {
        id: TransactionId(number.into()),
        moves: vec![Move { before, after }],
        activation: Activation::Manual,
        activated: false,
        unreachable: Unreachable::Wait,
        phase: Phase::Prepared,
        times: vec![
            (Phase::Preparing, Timestamp(1)),
            (Phase::Prepared, Timestamp(u64::MAX)),
        ],
        drain_until: Some(Timestamp(5)),
        error: Some("none".to_owned()),
        routers: [(
            RouterName::new("edge1"),
            natmig::coordinator::Progress::Prepared,
        )]
        .into(),
        uncleared: [RouterName::new("edge1")].into(),
        heard: [(
            VmName::new(format!("vm{number}")),
            Heard {
                router: RouterName::new("edge2"),
                at: Timestamp(3),
            },
        )]
        .into(),
    }
}

pub fn topology() -> Topology {
    Topology::parse(
        "test.toml",
        "drain = \"1s\"\n[[router]]\nname = \"edge1\"\ntier = \"edge\"\n[[segment]]\nname = \"rack1\"\n\
         prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\npool = \"10.1.1.128/25\"\n\
         routers = [\"edge1\"]\n",
    )
    .unwrap()
}

pub fn audit_record(id: u64) -> AuditRecord {
    AuditRecord {
        id,
        at: Timestamp(id),
        asked: Asked {
            who: Caller {
                name: "operator alice".to_owned(),
                address: Some("192.0.2.1:1".parse().unwrap()),
                certificate: Some("00".to_owned()),
                uid: None,
                pid: None,
            },
            call: "DrainRouter".to_owned(),
            what: "edge1".to_owned(),
        },
        outcome: AuditOutcome::Refused("no".to_owned()),
    }
}

/// Numbers of audit records of which some have others forgotten.
fn audit_number() -> impl Strategy<Value = u64> {
    (0..3_u64, 0..3_u64).prop_map(|(lap, number)| lap * KEPT + number)
}

pub fn any_op() -> impl Strategy<Value = StoreOp> {
    let number = 0..6_u8;
    prop_oneof![
        Just(StoreOp::PutTopology(topology())),
        number.clone().prop_map(|number| StoreOp::PutVm(vm(number))),
        number
            .clone()
            .prop_map(|number| StoreOp::DeleteVm(vm(number).vm.name)),
        number
            .clone()
            .prop_map(|number| StoreOp::PutMigration(Box::new(migration(number)))),
        number
            .clone()
            .prop_map(|number| StoreOp::DeleteMigration(TransactionId(number.into()))),
        (number.clone(), 0..2_usize, any::<u64>()).prop_map(|(number, family, until)| {
            StoreOp::PutQuarantined(Quarantined {
                locator: locators(number).iter().nth(family).unwrap(),
                until: Timestamp(until),
            })
        }),
        (number.clone(), 0..2_usize).prop_map(|(number, family)| {
            StoreOp::DeleteQuarantined(locators(number).iter().nth(family).unwrap())
        }),
        number
            .clone()
            .prop_map(|n| StoreOp::PutDrained(RouterName::new(format!("edge{n}")))),
        number.prop_map(|n| StoreOp::DeleteDrained(RouterName::new(format!("edge{n}")))),
        any::<u64>().prop_map(StoreOp::PutNextId),
        audit_number().prop_map(|id| StoreOp::PutAudit(Box::new(audit_record(id)))),
        audit_number().prop_map(StoreOp::DeleteAudit),
    ]
}

/// Order within a table is no part of what is stored.
pub fn sorted(mut stored: Stored) -> Stored {
    stored
        .vms
        .sort_by(|one, other| one.vm.name.cmp(&other.vm.name));
    stored.migrations.sort_by_key(|record| record.id);
    stored.quarantined.sort_by_key(|record| record.locator);
    stored.audit.sort_by_key(|record| record.id);
    stored
}

/// Many VMs, each in a move.
pub fn moves(count: u16) -> Vec<Move> {
    let moves = (0..count).map(|number| {
        let [high, low] = number.to_be_bytes();
        let before = VmState::at_home(Vm {
            name: VmName::new(format!("large{number}")),
            identities: Addresses::from(IpAddr::from([10, 1, high, low])),
            mac: MacAddress([2, 0, 0, 1, high, low]),
            home: SegmentName::new("rack1"),
        });
        let after = before.moved(Some(Binding {
            segment: SegmentName::new("rack2"),
            locators: Addresses::from(IpAddr::from([10, 2, high, low])),
        }));
        Move { before, after }
    });
    moves.collect()
}

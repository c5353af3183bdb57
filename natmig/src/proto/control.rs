//! Operators' requests, and what they are shown, on the wire.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Malformed, address, address_bytes, addresses, addresses_bytes, enumeration, mac, name,
    optional_text, required, v1,
};
use crate::{
    addresses::IpFamily,
    coordinator::{
        Activation, Heard, MigrateRequest, MigrationView, MoveView, Phase, PhaseTime, PlaceView,
        Progress, Refusal, RefusalKind, RouterProgressView, RouterView, Timestamp, Unreachable,
        VmView,
    },
    names::SegmentName,
    planner::Vm,
    rule::TransactionId,
    topology::{Segment, Subnet, Tier, Topology},
};

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal.kind() {
            RefusalKind::Invalid => Self::invalid_argument(message),
            RefusalKind::NotFound => Self::not_found(message),
            RefusalKind::Refused => Self::failed_precondition(message),
            RefusalKind::Exhausted => Self::resource_exhausted(message),
        }
    }
}

/// Two enumerations that say the same, one of them on the wire.
macro_rules! same {
    ($wire:ident, $own:ty, $field:literal, { $($variant:ident),+ $(,)? }) => {
        impl From<$own> for v1::$wire {
            fn from(own: $own) -> Self {
                match own {
                    $(<$own>::$variant => Self::$variant,)+
                }
            }
        }

        impl TryFrom<v1::$wire> for $own {
            type Error = Malformed;

            fn try_from(wire: v1::$wire) -> Result<Self, Malformed> {
                match wire {
                    v1::$wire::Unspecified => Err(Malformed::new($field, "is missing")),
                    $(v1::$wire::$variant => Ok(Self::$variant),)+
                }
            }
        }
    };
}

same!(Tier, Tier, "tier", { Edge, Aggregation, Core });
same!(Activation, Activation, "activation", { Immediate, Manual, OnAnnounce });
same!(UnreachablePolicy, Unreachable, "unreachable", { Wait, Abort });
same!(Phase, Phase, "phase", {
    Preparing, Prepared, Committing, Committed, Folding, Draining, Retiring, Done, Aborting,
    Aborted,
});

pub(super) fn phase(number: i32) -> Result<Phase, Malformed> {
    enumeration::<v1::Phase>("phase", number)?.try_into()
}

impl From<&Vm> for v1::Vm {
    fn from(vm: &Vm) -> Self {
        Self {
            name: vm.name.to_string(),
            identities: addresses_bytes(vm.identities),
            mac: vm.mac.0.to_vec(),
            home: vm.home.to_string(),
        }
    }
}

impl TryFrom<v1::Vm> for Vm {
    type Error = Malformed;

    fn try_from(vm: v1::Vm) -> Result<Self, Malformed> {
        Ok(Self {
            name: name("vm.name", &vm.name)?,
            identities: addresses("vm.identities", &vm.identities)?,
            mac: mac("vm.mac", &vm.mac)?,
            home: name("vm.home", &vm.home)?,
        })
    }
}

impl From<&PlaceView> for v1::Place {
    fn from(place: &PlaceView) -> Self {
        Self {
            segment: place.segment.to_string(),
            locators: addresses_bytes(place.locators),
        }
    }
}

impl TryFrom<v1::Place> for PlaceView {
    type Error = Malformed;

    fn try_from(place: v1::Place) -> Result<Self, Malformed> {
        Ok(Self {
            segment: name("place.segment", &place.segment)?,
            locators: addresses("place.locators", &place.locators)?,
        })
    }
}

impl From<&VmView> for v1::VmStatus {
    fn from(vm: &VmView) -> Self {
        Self {
            vm: Some(v1::Vm {
                name: vm.name.to_string(),
                identities: addresses_bytes(vm.identities),
                mac: vm.mac.0.to_vec(),
                home: vm.home.to_string(),
            }),
            place: Some(v1::Place {
                segment: vm.segment.to_string(),
                locators: addresses_bytes(vm.locators),
            }),
            draining: vm.draining.iter().copied().map(address_bytes).collect(),
            migration: vm.migration.map_or(0, |id| id.0),
        }
    }
}

impl TryFrom<v1::VmStatus> for VmView {
    type Error = Malformed;

    fn try_from(status: v1::VmStatus) -> Result<Self, Malformed> {
        let vm: Vm = required("vm", status.vm)?.try_into()?;
        let place: PlaceView = required("place", status.place)?.try_into()?;
        Ok(Self {
            name: vm.name,
            identities: vm.identities,
            mac: vm.mac,
            home: vm.home,
            segment: place.segment,
            locators: place.locators,
            draining: status
                .draining
                .iter()
                .map(|bytes| address("draining", bytes))
                .collect::<Result<_, _>>()?,
            migration: (status.migration != 0).then_some(TransactionId(status.migration)),
        })
    }
}

impl From<&MigrateRequest> for v1::StartMigrationRequest {
    fn from(request: &MigrateRequest) -> Self {
        Self {
            moves: request
                .moves
                .iter()
                .map(|(vm, to)| v1::Move {
                    vm: vm.to_string(),
                    to: to.to_string(),
                })
                .collect(),
            activation: v1::Activation::from(request.activation).into(),
            unreachable: v1::UnreachablePolicy::from(request.unreachable).into(),
        }
    }
}

impl TryFrom<v1::StartMigrationRequest> for MigrateRequest {
    type Error = Malformed;

    fn try_from(request: v1::StartMigrationRequest) -> Result<Self, Malformed> {
        // 0 is "unspecified" in every enumeration.
        let activation = match request.activation {
            0 => Activation::default(),
            number => enumeration::<v1::Activation>("activation", number)?.try_into()?,
        };
        let unreachable = match request.unreachable {
            0 => Unreachable::default(),
            number => enumeration::<v1::UnreachablePolicy>("unreachable", number)?.try_into()?,
        };
        Ok(Self {
            moves: request
                .moves
                .iter()
                .map(|step| Ok((name("move.vm", &step.vm)?, name("move.to", &step.to)?)))
                .collect::<Result<_, Malformed>>()?,
            activation,
            unreachable,
        })
    }
}

impl From<&MigrationView> for v1::Migration {
    fn from(view: &MigrationView) -> Self {
        Self {
            id: view.id.0,
            phase: v1::Phase::from(view.phase).into(),
            vms: view
                .vms
                .iter()
                .map(|vm| v1::MigratingVm {
                    name: vm.vm.to_string(),
                    identities: addresses_bytes(vm.identities),
                    from: Some((&vm.from).into()),
                    to: Some((&vm.to).into()),
                    heard: vm.heard.as_ref().map(|heard| v1::Heard {
                        router: heard.router.to_string(),
                        at: heard.at.0,
                    }),
                })
                .collect(),
            activation: v1::Activation::from(view.activation).into(),
            unreachable: v1::UnreachablePolicy::from(view.unreachable).into(),
            times: view
                .times
                .iter()
                .map(|time| v1::PhaseTime {
                    phase: v1::Phase::from(time.phase).into(),
                    at: time.at.0,
                })
                .collect(),
            routers: view.routers.iter().map(Into::into).collect(),
            waiting_for: view.waiting_for.iter().map(ToString::to_string).collect(),
            prepare_ns: view.prepare_ns,
            commit_ns: view.commit_ns,
            commit_spread_ns: view.commit_spread_ns,
            error: view.error.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Migration> for MigrationView {
    type Error = Malformed;

    fn try_from(wire: v1::Migration) -> Result<Self, Malformed> {
        Ok(Self {
            id: TransactionId(wire.id),
            phase: phase(wire.phase)?,
            vms: wire
                .vms
                .into_iter()
                .map(|vm| {
                    Ok(MoveView {
                        vm: name("migrating_vm.name", &vm.name)?,
                        identities: addresses("migrating_vm.identities", &vm.identities)?,
                        from: required("migrating_vm.from", vm.from)?.try_into()?,
                        to: required("migrating_vm.to", vm.to)?.try_into()?,
                        heard: vm
                            .heard
                            .map(|heard| {
                                Ok::<_, Malformed>(Heard {
                                    router: name("heard.router", &heard.router)?,
                                    at: Timestamp(heard.at),
                                })
                            })
                            .transpose()?,
                    })
                })
                .collect::<Result<_, Malformed>>()?,
            activation: enumeration::<v1::Activation>("activation", wire.activation)?.try_into()?,
            unreachable: enumeration::<v1::UnreachablePolicy>("unreachable", wire.unreachable)?
                .try_into()?,
            times: wire
                .times
                .iter()
                .map(|time| {
                    Ok(PhaseTime {
                        phase: phase(time.phase)?,
                        at: Timestamp(time.at),
                    })
                })
                .collect::<Result<_, Malformed>>()?,
            routers: wire
                .routers
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            waiting_for: wire
                .waiting_for
                .iter()
                .map(|router| name("waiting_for", router))
                .collect::<Result<_, _>>()?,
            prepare_ns: wire.prepare_ns,
            commit_ns: wire.commit_ns,
            commit_spread_ns: wire.commit_spread_ns,
            error: optional_text(wire.error),
        })
    }
}

impl From<&RouterProgressView> for v1::MigrationRouter {
    fn from(view: &RouterProgressView) -> Self {
        let progress = match view.progress {
            Progress::Waiting => v1::Progress::Waiting,
            Progress::Prepared => v1::Progress::Prepared,
            Progress::Committed { .. } => v1::Progress::Committed,
            Progress::Folded { .. } => v1::Progress::Folded,
            Progress::Retired { .. } => v1::Progress::Retired,
            Progress::Aborted => v1::Progress::Aborted,
        };
        Self {
            name: view.router.to_string(),
            stage: u32::try_from(view.stage).unwrap_or(u32::MAX),
            progress: progress.into(),
            committed_at: view.progress.committed_at().map(|at| at.0),
            grace_ns: view.progress.grace_ns(),
            needed: view.needed,
            passed_over: view.passed_over,
            error: view.error.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::MigrationRouter> for RouterProgressView {
    type Error = Malformed;

    fn try_from(wire: v1::MigrationRouter) -> Result<Self, Malformed> {
        let at = wire.committed_at.map(Timestamp);
        let grace_ns = wire.grace_ns;
        let progress = match enumeration("progress", wire.progress)? {
            v1::Progress::Unspecified => return Err(Malformed::new("progress", "is missing")),
            v1::Progress::Waiting => Progress::Waiting,
            v1::Progress::Prepared => Progress::Prepared,
            v1::Progress::Committed => Progress::Committed {
                at: required("committed_at", at)?,
                grace_ns,
            },
            v1::Progress::Folded => Progress::Folded { at, grace_ns },
            v1::Progress::Retired => Progress::Retired { at, grace_ns },
            v1::Progress::Aborted => Progress::Aborted,
        };
        Ok(Self {
            router: name("migration_router.name", &wire.name)?,
            stage: usize::try_from(wire.stage)
                .map_err(|error| Malformed::new("stage", error.to_string()))?,
            progress,
            needed: wire.needed,
            passed_over: wire.passed_over,
            error: optional_text(wire.error),
        })
    }
}

impl From<&RouterView> for v1::RouterStatus {
    fn from(view: &RouterView) -> Self {
        Self {
            name: view.name.to_string(),
            tier: v1::Tier::from(view.tier).into(),
            segments: view.segments.iter().map(ToString::to_string).collect(),
            connected: view.connected,
            since: view.since.map(|since| since.0),
            in_sync: view.in_sync,
            drained: view.drained,
            holds_back: view.holds_back.iter().map(|id| id.0).collect(),
            problem: view.problem.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::RouterStatus> for RouterView {
    type Error = Malformed;

    fn try_from(wire: v1::RouterStatus) -> Result<Self, Malformed> {
        Ok(Self {
            name: name("router.name", &wire.name)?,
            tier: enumeration::<v1::Tier>("router.tier", wire.tier)?.try_into()?,
            segments: names("router.segments", &wire.segments)?,
            connected: wire.connected,
            since: wire.since.map(Timestamp),
            in_sync: wire.in_sync,
            drained: wire.drained,
            holds_back: wire.holds_back.into_iter().map(TransactionId).collect(),
            problem: optional_text(wire.problem),
        })
    }
}

fn names<T: for<'a> From<&'a str> + Ord>(
    field: &'static str,
    texts: &[String],
) -> Result<BTreeSet<T>, Malformed> {
    texts.iter().map(|text| name(field, text)).collect()
}

impl From<&Topology> for v1::Topology {
    fn from(topology: &Topology) -> Self {
        let milliseconds =
            |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            routers: topology
                .routers
                .iter()
                .map(|(name, tier)| v1::TopologyRouter {
                    name: name.to_string(),
                    tier: v1::Tier::from(*tier).into(),
                })
                .collect(),
            segments: topology
                .segments
                .iter()
                .map(|(name, segment)| wire_segment(name, segment))
                .collect(),
            drain_ms: milliseconds(topology.drain),
            quarantine_ms: milliseconds(topology.quarantine),
        }
    }
}

fn wire_segment(name: &SegmentName, segment: &Segment) -> v1::Segment {
    let mut wire = v1::Segment {
        name: name.to_string(),
        routers: segment.routers.iter().map(ToString::to_string).collect(),
        ..v1::Segment::default()
    };
    for subnet in &segment.subnets {
        let prefix = Some((&subnet.prefix).into());
        let gateway = address_bytes(subnet.gateway);
        let pool = Some((&subnet.pool).into());
        match subnet.family() {
            IpFamily::Ipv4 => (wire.prefix, wire.gateway, wire.pool) = (prefix, gateway, pool),
            IpFamily::Ipv6 => {
                (wire.prefix_ipv6, wire.gateway_ipv6, wire.pool_ipv6) = (prefix, gateway, pool);
            }
        }
    }
    wire
}

fn segment(wire: &v1::Segment) -> Result<Segment, Malformed> {
    let families = [
        (&wire.prefix, &wire.gateway, &wire.pool),
        (&wire.prefix_ipv6, &wire.gateway_ipv6, &wire.pool_ipv6),
    ];
    let mut subnets = Vec::new();
    for (family, (prefix, gateway, pool)) in IpFamily::ALL.into_iter().zip(families) {
        let Some(prefix) = prefix else { continue };
        let subnet = Subnet {
            prefix: super::prefix("segment.prefix", prefix)?,
            gateway: address("segment.gateway", gateway)?,
            pool: super::prefix(
                "segment.pool",
                pool.as_ref()
                    .ok_or_else(|| Malformed::new("segment.pool", "is missing"))?,
            )?,
        };
        let addresses = [subnet.prefix.addr(), subnet.gateway, subnet.pool.addr()];
        if addresses.iter().any(|it| IpFamily::of(*it) != family) {
            return Err(Malformed::new(
                "segment",
                format!("has another address among its {family} addresses"),
            ));
        }
        subnets.push(subnet);
    }
    Ok(Segment {
        subnets,
        routers: names("segment.routers", &wire.routers)?,
    })
}

/// For showing it: that a topology is valid is the controller's concern.
impl TryFrom<v1::Topology> for Topology {
    type Error = Malformed;

    fn try_from(wire: v1::Topology) -> Result<Self, Malformed> {
        Ok(Self {
            drain: Duration::from_millis(wire.drain_ms),
            quarantine: Duration::from_millis(wire.quarantine_ms),
            routers: wire
                .routers
                .iter()
                .map(|router| {
                    Ok((
                        name("router.name", &router.name)?,
                        enumeration::<v1::Tier>("router.tier", router.tier)?.try_into()?,
                    ))
                })
                .collect::<Result<_, Malformed>>()?,
            segments: wire
                .segments
                .into_iter()
                .map(|wire| Ok((name("segment.name", &wire.name)?, segment(&wire)?)))
                .collect::<Result<_, Malformed>>()?,
        })
    }
}

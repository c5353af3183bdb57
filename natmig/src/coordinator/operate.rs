//! Does what operators ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Action, Activation, Answer, Coordinator, MigrateRequest, MigrationRecord, Phase, Refusal,
    Request, StoreOp, Timestamp,
    state::{Actions, Migration, Router},
};
use crate::{
    addresses::IpFamily,
    names::{RouterName, SegmentName, VmName},
    planner::{self, Binding, Stages, Vm, VmState},
    rule::TransactionId,
    topology::{Segment, Topology},
};

impl Coordinator {
    pub(super) fn operate(
        &mut self,
        now: Timestamp,
        request: Request,
        out: &mut Actions,
    ) -> Result<Answer, Refusal> {
        match &request {
            Request::AddVms(_) | Request::RemoveVms(_) | Request::Migrate(_) => {}
            Request::Activate(id) | Request::Abort(id) => {
                self.due.insert(*id);
            }
            Request::ApplyTopology(_)
            | Request::DrainRouter(_)
            | Request::UndrainRouter(_)
            | Request::RemoveRouter(_) => self.all_are_due(),
        }
        match request {
            Request::ApplyTopology(topology) => self.apply_topology(now, topology, out)?,
            Request::AddVms(vms) => self.add_vms(&vms, out)?,
            Request::RemoveVms(names) => self.remove_vms(&names, out)?,
            Request::Migrate(request) => {
                return self.migrate(now, request, out).map(Answer::Started);
            }
            Request::Activate(id) => self.activate(id, out)?,
            Request::Abort(id) => self.abort_on_request(now, id, out)?,
            Request::DrainRouter(router) => self.drain_router(&router, out)?,
            Request::UndrainRouter(router) => self.undrain_router(now, &router, out)?,
            Request::RemoveRouter(router) => self.remove_router(now, &router, out)?,
        }
        Ok(Answer::Done)
    }

    fn apply_topology(
        &mut self,
        now: Timestamp,
        topology: Topology,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        if self.topology.as_ref() == Some(&topology) {
            return Ok(());
        }
        if let Some((id, phase)) = self
            .active
            .iter()
            .filter_map(|id| {
                self.migrations
                    .get(id)
                    .map(|migration| (id, migration.phase()))
            })
            .find(|(_, phase)| !phase.is_final())
        {
            return Err(Refusal::TopologyInUse(format!(
                "migration {id} is {phase}; wait until it is done"
            )));
        }
        for state in self.vms.values() {
            let name = &state.vm.name;
            check_home(&topology, &state.vm)
                .map_err(|problem| Refusal::TopologyInUse(format!("VM {name}: {problem}")))?;
            for binding in state.current.iter().chain(&state.draining) {
                if let Some(locator) = outside(&topology, binding) {
                    return Err(Refusal::TopologyInUse(format!(
                        "VM {name} has locator {locator} in segment {}, whose pool does not contain \
                         it; move the VM first",
                        binding.segment
                    )));
                }
            }
        }
        let gone: Vec<_> = self
            .routers
            .keys()
            .filter(|router| !topology.routers.contains_key(*router))
            .cloned()
            .collect();
        let mut ops = vec![StoreOp::PutTopology(topology.clone())];
        for router in gone {
            self.forget_router(now, &router, &mut ops, out);
        }
        for name in topology.routers.keys() {
            self.routers.entry(name.clone()).or_default();
        }
        self.topology = Some(topology);
        out.push(Action::Store(ops));
        self.settle_all(out);
        Ok(())
    }

    fn forget_router(
        &mut self,
        now: Timestamp,
        router: &RouterName,
        ops: &mut Vec<StoreOp>,
        out: &mut Actions,
    ) {
        self.reconnect(now, router, out);
        self.routers.remove(router);
        ops.push(StoreOp::DeleteDrained(router.clone()));
        for id in &self.active {
            if let Some(migration) = self.migrations.get_mut(id) {
                migration.stages.remove(router);
                migration.participants.remove(router);
                migration.record.routers.remove(router);
                migration.changed = true;
            }
        }
    }

    fn add_vms(&mut self, vms: &[Vm], out: &mut Actions) -> Result<(), Refusal> {
        let topology = self.topology.as_ref().ok_or(Refusal::NoTopology)?;
        let mut new: BTreeMap<&VmName, &Vm> = BTreeMap::new();
        let mut identities = BTreeMap::new();
        let mut macs = BTreeMap::new();
        for vm in vms {
            let invalid = |problem: String| Refusal::InvalidVm {
                vm: vm.name.clone(),
                problem,
            };
            if let Some(state) = self.vms.get(&vm.name) {
                if state.vm == *vm {
                    continue;
                }
                return Err(invalid(
                    "a VM of this name has another address, MAC address or home; remove it first"
                        .to_owned(),
                ));
            }
            if vm.name.as_str().is_empty() {
                return Err(invalid("its name is empty; name it".to_owned()));
            }
            check_home(topology, vm).map_err(invalid)?;
            if new.insert(&vm.name, vm).is_some() {
                return Err(invalid("it is named twice; name it once".to_owned()));
            }
            for address in vm.identities.iter() {
                let by = self
                    .identities
                    .get(&address)
                    .or_else(|| identities.get(&address).copied());
                if let Some(by) = by {
                    let by = by.clone();
                    return Err(Refusal::AddressInUse { address, by });
                }
                identities.insert(address, &vm.name);
            }
            let by = self
                .macs
                .get(&vm.mac)
                .or_else(|| macs.get(&vm.mac).copied());
            if let Some(by) = by {
                return Err(invalid(format!(
                    "VM {by} has the MAC address {} too; each VM needs its own",
                    vm.mac
                )));
            }
            macs.insert(vm.mac, &vm.name);
        }
        let states: Vec<_> = new
            .into_values()
            .map(|vm| VmState::at_home(vm.clone()))
            .collect();
        if !states.is_empty() {
            out.push(Action::Store(
                states.iter().cloned().map(StoreOp::PutVm).collect(),
            ));
        }
        for state in states {
            self.insert_vm(state);
        }
        Ok(())
    }

    fn remove_vms(&mut self, names: &[VmName], out: &mut Actions) -> Result<(), Refusal> {
        let names: BTreeSet<_> = names.iter().collect();
        for name in &names {
            let state = self
                .vms
                .get(*name)
                .ok_or_else(|| Refusal::UnknownVm((*name).clone()))?;
            self.check_idle(name)?;
            if !state.is_unbound() {
                let problem = match &state.current {
                    Some(binding) => format!(
                        "it is in segment {}, away from home; migrate it to {} first",
                        binding.segment, state.vm.home
                    ),
                    None => "its old locators are still forwarded; try again later".to_owned(),
                };
                return Err(Refusal::VmInUse {
                    vm: (*name).clone(),
                    problem,
                });
            }
            if let Some((id, _)) = self.migrations.iter().find(|(_, migration)| {
                !migration.phase().is_final()
                    && migration
                        .record
                        .moves
                        .iter()
                        .any(|step| step.after.vm.name == **name)
            }) {
                return Err(Refusal::VmInUse {
                    vm: (*name).clone(),
                    problem: format!("migration {id} still retires its locators; try again later"),
                });
            }
        }
        let mut ops = Vec::new();
        for name in names {
            if let Some(state) = self.vms.remove(name) {
                for identity in state.vm.identities.iter() {
                    self.identities.remove(&identity);
                }
                self.macs.remove(&state.vm.mac);
            }
            ops.push(StoreOp::DeleteVm(name.clone()));
        }
        if !ops.is_empty() {
            out.push(Action::Store(ops));
        }
        Ok(())
    }

    fn check_idle(&self, name: &VmName) -> Result<(), Refusal> {
        let Some(id) = self.busy.get(name) else {
            return Ok(());
        };
        Err(Refusal::Busy {
            vm: name.clone(),
            migration: *id,
            phase: self
                .migrations
                .get(id)
                .map_or(Phase::Preparing, Migration::phase),
        })
    }

    fn migrate(
        &mut self,
        now: Timestamp,
        request: MigrateRequest,
        out: &mut Actions,
    ) -> Result<TransactionId, Refusal> {
        let topology = self.topology.as_ref().ok_or(Refusal::NoTopology)?;
        if self.under_way() >= self.config.under_way {
            return Err(Refusal::TooMany {
                limit: self.config.under_way,
            });
        }
        let mut wanted: Vec<(VmState, SegmentName)> = Vec::with_capacity(request.moves.len());
        for (name, segment) in request.moves {
            self.check_idle(&name)?;
            let state = self
                .vms
                .get(&name)
                .ok_or_else(|| Refusal::UnknownVm(name.clone()))?;
            wanted.push((state.clone(), segment));
        }
        let moves = planner::destinations(topology, &wanted, &self.used)?;
        let stages = Stages::new(topology, &moves)?;
        let id = TransactionId(self.next_id);
        self.next_id += 1;
        for step in &moves {
            self.used.extend(step.new_locators().iter());
            self.busy.insert(step.after.vm.name.clone(), id);
        }
        let record = MigrationRecord {
            id,
            moves,
            activation: request.activation,
            activated: request.activation == Activation::Immediate,
            heard: BTreeMap::new(),
            unreachable: request.unreachable,
            phase: Phase::Preparing,
            times: Vec::new(),
            drain_until: None,
            error: None,
            routers: BTreeMap::new(),
            uncleared: BTreeSet::new(),
        };
        let mut migration = Migration {
            unheard: super::unheard(&record),
            record,
            stages,
            participants: BTreeMap::new(),
            deadline: None,
            stage: 0,
            changed: true,
            told: None,
            alarm: None,
        };
        migration.enter(Phase::Preparing, now);
        self.set_deadline(&mut migration, now);
        out.push(Action::Store(vec![
            StoreOp::PutNextId(self.next_id),
            migration.stored(),
        ]));
        self.migrations.insert(id, migration);
        self.active.insert(id);
        self.due.insert(id);
        Ok(id)
    }

    /// Migrations that hold a slot on routers, or wait for one.
    pub(super) fn under_way(&self) -> usize {
        let active = self.active.iter().filter_map(|id| self.migrations.get(id));
        active.filter(|migration| migration.is_busy()).count()
    }

    fn activate(&mut self, id: TransactionId, out: &mut Actions) -> Result<(), Refusal> {
        let migration = self
            .migrations
            .get_mut(&id)
            .ok_or(Refusal::UnknownMigration(id))?;
        let phase = migration.phase();
        if matches!(phase, Phase::Aborting | Phase::Aborted) {
            return Err(Refusal::WrongPhase {
                id,
                phase,
                problem: "it cannot be activated; migrate again",
            });
        }
        if !migration.record.activated {
            migration.record.activated = true;
            migration.changed = true;
            if phase == Phase::Preparing {
                // Otherwise the decision that follows holds it.
                out.push(Action::Store(vec![migration.stored()]));
            }
        }
        Ok(())
    }

    fn abort_on_request(
        &mut self,
        now: Timestamp,
        id: TransactionId,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        let phase = self
            .migrations
            .get(&id)
            .ok_or(Refusal::UnknownMigration(id))?
            .phase();
        match phase {
            Phase::Preparing | Phase::Prepared => {
                self.abort(now, id, "aborted by an operator".to_owned(), out);
                Ok(())
            }
            Phase::Aborting | Phase::Aborted => Ok(()),
            Phase::Committing
            | Phase::Committed
            | Phase::Folding
            | Phase::Draining
            | Phase::Retiring
            | Phase::Done => Err(Refusal::WrongPhase {
                id,
                phase,
                problem: "it is decided and cannot be aborted; migrate the VM back",
            }),
        }
    }

    fn router(&mut self, name: &RouterName) -> Result<&mut Router, Refusal> {
        self.routers
            .get_mut(name)
            .ok_or_else(|| Refusal::UnknownRouter(name.clone()))
    }

    fn drain_router(&mut self, name: &RouterName, out: &mut Actions) -> Result<(), Refusal> {
        let router = self.router(name)?;
        if router.drained {
            return Ok(());
        }
        router.drained = true;
        if let Some(connection) = &mut router.connection {
            connection.sync = super::state::Sync::Idle;
        }
        out.push(Action::Store(vec![StoreOp::PutDrained(name.clone())]));
        for id in &self.active {
            if let Some(migration) = self.migrations.get_mut(id) {
                migration.changed = true;
            }
        }
        Ok(())
    }

    fn undrain_router(
        &mut self,
        now: Timestamp,
        name: &RouterName,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        let router = self.router(name)?;
        if !router.drained {
            return Ok(());
        }
        router.drained = false;
        out.push(Action::Store(vec![StoreOp::DeleteDrained(name.clone())]));
        self.reconnect(now, name, out);
        for id in &self.active {
            if let Some(migration) = self.migrations.get_mut(id) {
                migration.changed = true;
            }
        }
        Ok(())
    }

    fn remove_router(
        &mut self,
        now: Timestamp,
        name: &RouterName,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        let in_use = |problem: String| Refusal::RouterInUse {
            router: name.clone(),
            problem,
        };
        if !self.router(name)?.drained {
            return Err(in_use(format!(
                "it is not drained; take traffic off it and run `natmig router drain {name}`"
            )));
        }
        let mut topology = self.topology.clone().ok_or(Refusal::NoTopology)?;
        for (segment, place) in &mut topology.segments {
            place.routers.remove(name);
            if place.routers.is_empty() {
                return Err(in_use(format!(
                    "it is the only edge router of segment {segment}"
                )));
            }
        }
        topology.routers.remove(name);
        let mut ops = vec![StoreOp::PutTopology(topology.clone())];
        self.forget_router(now, name, &mut ops, out);
        self.topology = Some(topology);
        out.push(Action::Store(ops));
        Ok(())
    }
}

/// A locator of a binding that is in no pool of its segment.
fn outside(topology: &Topology, binding: &Binding) -> Option<IpAddr> {
    let segment = topology.segments.get(&binding.segment);
    binding.locators.iter().find(|locator| {
        segment
            .and_then(|segment| segment.subnet(IpFamily::of(*locator)))
            .is_none_or(|subnet| !subnet.pool.contains(locator))
    })
}

/// Whether a VM's identities belong to its home.
fn check_home(topology: &Topology, vm: &Vm) -> Result<(), String> {
    let home = topology.segments.get(&vm.home).ok_or_else(|| {
        format!(
            "there is no segment {} in the topology; see `natmig topology show`",
            vm.home
        )
    })?;
    if vm.identities.is_empty() {
        return Err("it has no address; give it an IPv4 or an IPv6 address, or both".to_owned());
    }
    for identity in vm.identities.iter() {
        check_identity(vm, home, identity)?;
    }
    Ok(())
}

fn check_identity(vm: &Vm, home: &Segment, identity: IpAddr) -> Result<(), String> {
    let family = IpFamily::of(identity);
    let Some(subnet) = home.subnet(family) else {
        return Err(format!(
            "{identity} is an {family} address, but its home segment {} has no {family} prefix; add \
             its {family} prefix, gateway and pool to the topology, or correct the address",
            vm.home
        ));
    };
    if !subnet.has_host(identity) {
        return Err(format!(
            "{identity} is no host's address in {}, the prefix of its home segment {}; correct one \
             of them",
            subnet.prefix, vm.home
        ));
    }
    if identity == subnet.gateway {
        return Err(format!(
            "{identity} is the gateway of its home segment {}; give it an address of its own",
            vm.home
        ));
    }
    if subnet.pool.contains(&identity) {
        return Err(format!(
            "{identity} is in the locator pool {} of segment {}; identities and locators must be \
             disjoint",
            subnet.pool, vm.home
        ));
    }
    Ok(())
}

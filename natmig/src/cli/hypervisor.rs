//! Commands that hypervisors run, or that listen to them: what they ask the controller for.
//!
//! Only migrations of one VM alone are steered from here. A group's migration takes effect for all
//! of its VMs at once, so whoever announced it must say when.

pub(super) mod libvirt_hook;
pub(super) mod qmp_watch;

use super::client::{self, Client, Failure};
use crate::{
    coordinator::{Activation, MigrateRequest, MigrationView, Phase, Unreachable, VmView},
    hypervisor::Way,
    names::{SegmentName, VmName},
    proto::v1,
    rule::{MacAddress, TransactionId},
};

/// What an announcement led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    /// A migration was started.
    Started(TransactionId),
    /// Somebody has announced it already.
    Found(TransactionId),
    /// The VM is in that segment anyway.
    NotNeeded,
}

/// The VM that a guest is: by a MAC address, else by its name.
pub(super) async fn find_vm(
    client: &mut Client,
    macs: &[MacAddress],
    name: Option<&str>,
) -> Result<Option<VmName>, Failure> {
    let answer = client.list_vms(v1::ListVmsRequest::default()).await?;
    let vms = answer
        .into_inner()
        .vms
        .into_iter()
        .map(TryInto::try_into)
        .collect::<Result<Vec<VmView>, _>>()?;
    let by_mac = vms.iter().find(|vm| macs.contains(&vm.mac));
    let by_name = || vms.iter().find(|vm| Some(vm.name.as_str()) == name);
    Ok(by_mac.or_else(by_name).map(|vm| vm.name.clone()))
}

/// Announces that a VM is about to move to a segment, unless that is known already.
pub(super) async fn announce(
    client: &mut Client,
    vm: &VmName,
    to: &SegmentName,
    activation: Activation,
) -> Result<Announced, Failure> {
    let state = vm_state(client, vm).await?;
    if let Some(id) = state.migration {
        let view = migration(client, id).await?;
        let same = view
            .vms
            .iter()
            .any(|it| it.vm == *vm && it.to.segment == *to);
        return if same {
            Ok(Announced::Found(id))
        } else {
            Err(Failure::Refused(format!(
                "VM {vm} is in migration {id}, which does not go to {to}; wait for it, or see \
                 `natmig migration show {id}`"
            )))
        };
    }
    if state.segment == *to {
        return Ok(Announced::NotNeeded);
    }
    let request = MigrateRequest {
        moves: vec![(vm.clone(), to.clone())],
        activation,
        unreachable: Unreachable::Abort,
    };
    let answer = client
        .start_migration(v1::StartMigrationRequest::from(&request))
        .await?;
    let view = client::migration(answer.into_inner().migration)?;
    Ok(Announced::Started(view.id))
}

/// The VM's migration, if it may still be activated or aborted, goes the right way, and is its
/// alone.
pub(super) async fn undecided(
    client: &mut Client,
    vm: &VmName,
    way: Way,
    here: &SegmentName,
) -> Result<Option<TransactionId>, Failure> {
    let Some(id) = vm_state(client, vm).await?.migration else {
        return Ok(None);
    };
    let view = migration(client, id).await?;
    let steered = matches!(view.phase, Phase::Preparing | Phase::Prepared)
        && view.vms.iter().any(|it| {
            let place = match way {
                Way::Arriving => &it.to,
                Way::Leaving => &it.from,
            };
            it.vm == *vm && place.segment == *here
        });
    if steered && view.vms.len() > 1 {
        return Err(Failure::Refused(format!(
            "migration {id} moves {} VMs as one; {vm} alone does not say when: activate or abort \
             it with `natmig migration`",
            view.vms.len()
        )));
    }
    Ok(steered.then_some(id))
}

/// Lets the VM's migration take effect; its number, if there was one to activate.
pub(super) async fn activate(
    client: &mut Client,
    vm: &VmName,
    way: Way,
    here: &SegmentName,
) -> Result<Option<TransactionId>, Failure> {
    let Some(id) = undecided(client, vm, way, here).await? else {
        return Ok(None);
    };
    client
        .activate_migration(v1::ActivateMigrationRequest { id: id.0 })
        .await?;
    Ok(Some(id))
}

/// Gives the VM's migration up; its number, if there was one to abort.
pub(super) async fn abort(
    client: &mut Client,
    vm: &VmName,
    way: Way,
    here: &SegmentName,
) -> Result<Option<TransactionId>, Failure> {
    let Some(id) = undecided(client, vm, way, here).await? else {
        return Ok(None);
    };
    client
        .abort_migration(v1::AbortMigrationRequest { id: id.0 })
        .await?;
    Ok(Some(id))
}

async fn vm_state(client: &mut Client, vm: &VmName) -> Result<VmView, Failure> {
    let names = vec![vm.to_string()];
    let answer = client.list_vms(v1::ListVmsRequest { names }).await?;
    let mut vms = answer.into_inner().vms.into_iter();
    let vm = vms
        .next()
        .ok_or_else(|| Failure::Refused(format!("there is no VM {vm}")))?;
    Ok(vm.try_into()?)
}

async fn migration(client: &mut Client, id: TransactionId) -> Result<MigrationView, Failure> {
    let request = v1::GetMigrationRequest { id: id.0 };
    let answer = client.get_migration(request).await?;
    Ok(client::migration(answer.into_inner().migration)?)
}

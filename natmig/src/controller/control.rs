//! The operators' side of the controller.

use std::{borrow::Cow, pin::Pin, sync::Arc};

use futures::Stream;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    core::Handle,
    peer,
    role::{Role, Roles},
};
use crate::{
    audit::{Asked, AuditOutcome},
    coordinator::{self, Answer, MigrationView, Refusal, Timestamp},
    names::{RouterName, VmName},
    proto::{
        self, Malformed, Rpc,
        v1::{self, control_service_server::ControlService},
    },
    rule::TransactionId,
    topology::Topology,
};

/// States that may wait for a watcher's connection.
const WATCHED: usize = 16;

/// Serves operators.
#[derive(Clone, Debug)]
pub(super) struct Control {
    roles: Roles,
}

impl Control {
    pub(super) fn new(roles: Roles) -> Self {
        Self { roles }
    }

    /// The core, while this controller leads.
    fn core(&self) -> Result<Handle, Status> {
        self.roles.leading()
    }

    /// Asks the machine to do something, on behalf of a caller.
    async fn operate(
        &self,
        asked: Asked,
        request: Result<coordinator::Request, Status>,
    ) -> Result<Answer, Status> {
        match request {
            Ok(request) => self.core()?.request(asked, request).await,
            Err(status) => {
                let outcome = AuditOutcome::Refused(status.message().to_owned());
                self.core()?.note(asked, outcome);
                Err(status)
            }
        }
    }

    async fn migration(&self, id: TransactionId) -> Result<v1::Migration, Status> {
        let view = self
            .core()?
            .query(move |coordinator| coordinator.migration(id))
            .await?
            .ok_or(Refusal::UnknownMigration(id))?;
        Ok((&view).into())
    }
}

/// Names that an audit record lists one by one.
const LISTED: usize = 20;

/// What is asked for, as the audit log says it.
fn asked<T>(request: &Request<T>, rpc: Rpc, what: String) -> Result<Asked, Status> {
    Ok(Asked {
        who: peer::of(request.extensions())?.caller(),
        call: rpc.name().to_owned(),
        what,
    })
}

/// Some names, and how many more there are.
fn list<'a>(names: impl ExactSizeIterator<Item = Cow<'a, str>>) -> String {
    let more = names.len().saturating_sub(LISTED);
    let text = names.take(LISTED).collect::<Vec<_>>().join(" ");
    if more > 0 {
        format!("{text} and {more} more")
    } else {
        text
    }
}

#[tonic::async_trait]
impl ControlService for Control {
    async fn get_controller(
        &self,
        _request: Request<v1::GetControllerRequest>,
    ) -> Result<Response<v1::GetControllerResponse>, Status> {
        let (leads, term, leader) = match self.roles.present() {
            Role::Leading(core) => (true, core.term, None),
            Role::StandingBy(Some(leader)) => (false, leader.term, Some(leader)),
            Role::StandingBy(None) => (false, 0, None),
        };
        let leader = leader.unwrap_or_default();
        Ok(Response::new(v1::GetControllerResponse {
            name: self.roles.name().to_owned(),
            leads,
            term,
            leader: leader.name,
            leader_address: leader.address,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn apply_topology(
        &self,
        request: Request<v1::ApplyTopologyRequest>,
    ) -> Result<Response<v1::ApplyTopologyResponse>, Status> {
        let asked = asked(&request, Rpc::ApplyTopology, request.get_ref().file.clone())?;
        let request = request.into_inner();
        let topology = Topology::parse(&request.file, &request.text)
            .map(coordinator::Request::ApplyTopology)
            .map_err(|error| Status::invalid_argument(error.to_string()));
        self.operate(asked, topology).await?;
        Ok(Response::new(v1::ApplyTopologyResponse {}))
    }

    async fn get_topology(
        &self,
        _request: Request<v1::GetTopologyRequest>,
    ) -> Result<Response<v1::GetTopologyResponse>, Status> {
        let topology = self
            .core()?
            .query(|coordinator| coordinator.topology().cloned())
            .await?;
        Ok(Response::new(v1::GetTopologyResponse {
            topology: topology.as_ref().map(Into::into),
        }))
    }

    async fn add_vms(
        &self,
        request: Request<v1::AddVmsRequest>,
    ) -> Result<Response<v1::AddVmsResponse>, Status> {
        let names = request.get_ref().vms.iter();
        let names = list(names.map(|vm| Cow::from(&vm.name)));
        let asked = asked(&request, Rpc::AddVms, names)?;
        let vms = request
            .into_inner()
            .vms
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, Malformed>>()
            .map(coordinator::Request::AddVms);
        self.operate(asked, vms.map_err(Into::into)).await?;
        Ok(Response::new(v1::AddVmsResponse {}))
    }

    async fn list_vms(
        &self,
        request: Request<v1::ListVmsRequest>,
    ) -> Result<Response<v1::ListVmsResponse>, Status> {
        let names = request.into_inner().names;
        let vms = self
            .core()?
            .query(move |coordinator| {
                if names.is_empty() {
                    return Ok(coordinator.vms());
                }
                names
                    .iter()
                    .map(|name| {
                        let name = VmName::new(name);
                        coordinator.vm(&name).ok_or(Refusal::UnknownVm(name))
                    })
                    .collect()
            })
            .await??;
        Ok(Response::new(v1::ListVmsResponse {
            vms: vms.iter().map(Into::into).collect(),
        }))
    }

    async fn remove_vms(
        &self,
        request: Request<v1::RemoveVmsRequest>,
    ) -> Result<Response<v1::RemoveVmsResponse>, Status> {
        let names = list(request.get_ref().names.iter().map(Cow::from));
        let asked = asked(&request, Rpc::RemoveVms, names)?;
        let names = request.into_inner().names;
        let names = names.iter().map(VmName::new).collect();
        self.operate(asked, Ok(coordinator::Request::RemoveVms(names)))
            .await?;
        Ok(Response::new(v1::RemoveVmsResponse {}))
    }

    async fn start_migration(
        &self,
        request: Request<v1::StartMigrationRequest>,
    ) -> Result<Response<v1::StartMigrationResponse>, Status> {
        let moves = request.get_ref().moves.iter();
        let moves = list(moves.map(|step| format!("{}={}", step.vm, step.to).into()));
        let asked = asked(&request, Rpc::StartMigration, moves)?;
        let request = coordinator::MigrateRequest::try_from(request.into_inner())
            .map(coordinator::Request::Migrate);
        match self.operate(asked, request.map_err(Into::into)).await? {
            Answer::Started(id) => Ok(Response::new(v1::StartMigrationResponse {
                migration: Some(self.migration(id).await?),
            })),
            Answer::Done => Err(Status::internal("the migration got no number")),
        }
    }

    async fn list_migrations(
        &self,
        _request: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsResponse>, Status> {
        let views = self
            .core()?
            .query(coordinator::Coordinator::migrations)
            .await?;
        Ok(Response::new(v1::ListMigrationsResponse {
            migrations: views.iter().map(Into::into).collect(),
        }))
    }

    async fn get_migration(
        &self,
        request: Request<v1::GetMigrationRequest>,
    ) -> Result<Response<v1::GetMigrationResponse>, Status> {
        let id = TransactionId(request.into_inner().id);
        Ok(Response::new(v1::GetMigrationResponse {
            migration: Some(self.migration(id).await?),
        }))
    }

    async fn activate_migration(
        &self,
        request: Request<v1::ActivateMigrationRequest>,
    ) -> Result<Response<v1::ActivateMigrationResponse>, Status> {
        let what = format!("migration {}", request.get_ref().id);
        let asked = asked(&request, Rpc::ActivateMigration, what)?;
        let id = TransactionId(request.into_inner().id);
        self.operate(asked, Ok(coordinator::Request::Activate(id)))
            .await?;
        Ok(Response::new(v1::ActivateMigrationResponse {
            migration: Some(self.migration(id).await?),
        }))
    }

    async fn abort_migration(
        &self,
        request: Request<v1::AbortMigrationRequest>,
    ) -> Result<Response<v1::AbortMigrationResponse>, Status> {
        let what = format!("migration {}", request.get_ref().id);
        let asked = asked(&request, Rpc::AbortMigration, what)?;
        let id = TransactionId(request.into_inner().id);
        self.operate(asked, Ok(coordinator::Request::Abort(id)))
            .await?;
        Ok(Response::new(v1::AbortMigrationResponse {
            migration: Some(self.migration(id).await?),
        }))
    }

    type WatchMigrationsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchMigrationsResponse, Status>> + Send>>;

    async fn watch_migrations(
        &self,
        request: Request<v1::WatchMigrationsRequest>,
    ) -> Result<Response<Self::WatchMigrationsStream>, Status> {
        let id = match request.into_inner().id {
            0 => None,
            id => Some(TransactionId(id)),
        };
        if let Some(id) = id {
            self.migration(id).await?;
        }
        let (states, outgoing) = mpsc::channel(WATCHED);
        tokio::spawn(watch(self.core()?, id, states));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn list_routers(
        &self,
        _request: Request<v1::ListRoutersRequest>,
    ) -> Result<Response<v1::ListRoutersResponse>, Status> {
        let routers = self
            .core()?
            .query(coordinator::Coordinator::routers)
            .await?;
        Ok(Response::new(v1::ListRoutersResponse {
            routers: routers.iter().map(Into::into).collect(),
        }))
    }

    async fn drain_router(
        &self,
        request: Request<v1::DrainRouterRequest>,
    ) -> Result<Response<v1::DrainRouterResponse>, Status> {
        let asked = asked(&request, Rpc::DrainRouter, request.get_ref().name.clone())?;
        let router = RouterName::new(request.into_inner().name);
        self.operate(asked, Ok(coordinator::Request::DrainRouter(router)))
            .await?;
        Ok(Response::new(v1::DrainRouterResponse {}))
    }

    async fn undrain_router(
        &self,
        request: Request<v1::UndrainRouterRequest>,
    ) -> Result<Response<v1::UndrainRouterResponse>, Status> {
        let asked = asked(&request, Rpc::UndrainRouter, request.get_ref().name.clone())?;
        let router = RouterName::new(request.into_inner().name);
        self.operate(asked, Ok(coordinator::Request::UndrainRouter(router)))
            .await?;
        Ok(Response::new(v1::UndrainRouterResponse {}))
    }

    async fn remove_router(
        &self,
        request: Request<v1::RemoveRouterRequest>,
    ) -> Result<Response<v1::RemoveRouterResponse>, Status> {
        let asked = asked(&request, Rpc::RemoveRouter, request.get_ref().name.clone())?;
        let router = RouterName::new(request.into_inner().name);
        self.operate(asked, Ok(coordinator::Request::RemoveRouter(router)))
            .await?;
        Ok(Response::new(v1::RemoveRouterResponse {}))
    }

    type GetRouterTableStream =
        Pin<Box<dyn Stream<Item = Result<v1::GetRouterTableResponse, Status>> + Send>>;

    async fn get_router_table(
        &self,
        request: Request<v1::GetRouterTableRequest>,
    ) -> Result<Response<Self::GetRouterTableStream>, Status> {
        let request = request.into_inner();
        let router = RouterName::new(request.name);
        let held = request.held.into_iter().map(TransactionId).collect();
        let table = self
            .core()?
            .query(move |coordinator| coordinator.router_table(&router, &held))
            .await??;
        let pieces = proto::table_pieces(table).map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let request = request.into_inner();
        let limit = match request.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let records = self.core()?.audit(Timestamp(request.since), limit).await?;
        Ok(Response::new(v1::ListAuditResponse {
            records: records.iter().map(Into::into).collect(),
        }))
    }
}

type Watched = mpsc::Sender<Result<v1::WatchMigrationsResponse, Status>>;

/// Sends present states, then changes, until the watcher goes away or its migration is over.
async fn watch(core: Handle, id: Option<TransactionId>, states: Watched) {
    let outcome = tokio::select! {
        outcome = follow(&core, id, &states) => outcome,
        () = states.closed() => Ok(()),
    };
    if let Err(status) = outcome {
        // An error means that the watcher is gone.
        states.send(Err(status)).await.ok();
    }
}

async fn follow(core: &Handle, id: Option<TransactionId>, states: &Watched) -> Result<(), Status> {
    // Subscribed before the present state is looked at, so that no change is missed between.
    let mut updates = core.watch()?;
    let wanted = |view: &MigrationView| id.is_none_or(|id| view.id == id);
    loop {
        let present = core
            .query(move |coordinator| match id {
                Some(id) => coordinator.migration(id).into_iter().collect(),
                None => coordinator
                    .migrations()
                    .into_iter()
                    .filter(|view| !view.phase.is_final())
                    .collect::<Vec<_>>(),
            })
            .await?;
        for view in present {
            if send(states, &view).await && id.is_some() {
                return Ok(());
            }
        }
        loop {
            let update: Arc<MigrationView> = match updates.recv().await {
                Ok(update) => update,
                // Too slow for single changes: whole states follow.
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => {
                    return Err(Status::unavailable("the controller is shutting down"));
                }
            };
            if wanted(&update) && send(states, &update).await && id.is_some() {
                return Ok(());
            }
        }
    }
}

/// Sends a state, and says whether it is the last of its migration.
async fn send(states: &Watched, view: &MigrationView) -> bool {
    let state = v1::WatchMigrationsResponse {
        migration: Some(view.into()),
    };
    states.send(Ok(state)).await.is_err() || view.phase.is_final()
}

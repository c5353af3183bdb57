//! The controllers' gRPC API, as an orchestrator uses it: one connection for many calls, which costs
//! no process each. Of several controllers the one that answered last is asked, until it does not.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use natmig::{
    coordinator::{MigrateRequest, MigrationView, RouterView, VmView},
    planner::Vm,
    proto::{self, v1, v1::control_service_client::ControlServiceClient},
    rule::TransactionId,
    topology::Topology,
};
use tokio::runtime::Runtime;
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// A controller on this machine answers at once; a stopped one does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections to the controllers. Calls block.
#[derive(Debug)]
pub struct Api {
    runtime: Runtime,
    clients: Vec<ControlServiceClient<Channel>>,
    /// The one that is asked.
    present: AtomicUsize,
}

/// Changes of migrations as the controller tells them.
#[derive(Debug)]
pub struct Watch<'a> {
    runtime: &'a Runtime,
    updates: Streaming<v1::WatchMigrationsResponse>,
}

/// Whether a controller that leads has said so, and will say so again.
pub fn is_answer(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::FailedPrecondition | Code::ResourceExhausted | Code::InvalidArgument | Code::NotFound
    )
}

fn migration(wire: Option<v1::Migration>) -> Result<MigrationView, Status> {
    wire.ok_or_else(|| Status::internal("the answer holds no migration"))?
        .try_into()
        .map_err(Status::from)
}

impl Api {
    /// Connects through the controllers' Unix sockets, when it is needed. A call that takes longer
    /// than `timeout` ends with an error.
    pub fn connect(sockets: &[PathBuf], timeout: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let context = runtime.enter();
        let connect = |socket: &PathBuf| {
            let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(timeout)
                .initial_stream_window_size(proto::WINDOW)
                .initial_connection_window_size(proto::WINDOW);
            Ok(ControlServiceClient::new(endpoint.connect_lazy())
                .max_decoding_message_size(proto::MESSAGE_LIMIT)
                .max_encoding_message_size(proto::MESSAGE_LIMIT))
        };
        let clients: Vec<_> = sockets.iter().map(connect).collect::<Result<_>>()?;
        ensure!(!clients.is_empty(), "there is no controller in this lab");
        drop(context);
        Ok(Self {
            runtime,
            clients,
            present: AtomicUsize::new(0),
        })
    }

    /// Calls a controller once. After a failure that another one may not have, that one is asked
    /// next: whether to ask again is the caller's to say.
    fn call<T, F>(&self, call: impl FnOnce(ControlServiceClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let present = self.present.load(Ordering::Relaxed);
        let client = &self.clients[present % self.clients.len()];
        let answer = self.runtime.block_on(call(client.clone()));
        if let Err(status) = &answer
            && !is_answer(status)
        {
            // Unless somebody else did so meanwhile.
            let next = present.wrapping_add(1);
            let order = Ordering::Relaxed;
            self.present
                .compare_exchange(present, next, order, order)
                .ok();
        }
        answer.map(Response::into_inner)
    }

    /// Adds VMs to the inventory.
    pub fn add_vms<'a>(&self, vms: impl IntoIterator<Item = &'a Vm>) -> Result<(), Status> {
        let request = v1::AddVmsRequest {
            vms: vms.into_iter().map(Into::into).collect(),
        };
        self.call(async move |mut client| client.add_vms(request).await)
            .map(drop)
    }

    /// The topology that is in force.
    pub fn topology(&self) -> Result<Topology, Status> {
        let request = v1::GetTopologyRequest {};
        let answer = self.call(async move |mut client| client.get_topology(request).await)?;
        let topology = answer.topology;
        topology
            .ok_or_else(|| Status::not_found("no topology was applied"))?
            .try_into()
            .map_err(Status::from)
    }

    /// The whole inventory.
    pub fn vms(&self) -> Result<Vec<VmView>, Status> {
        let request = v1::ListVmsRequest { names: Vec::new() };
        let answer = self.call(async move |mut client| client.list_vms(request).await)?;
        let vms = answer.vms.into_iter().map(VmView::try_from);
        vms.collect::<Result<_, _>>().map_err(Status::from)
    }

    /// All routers.
    pub fn routers(&self) -> Result<Vec<RouterView>, Status> {
        let request = v1::ListRoutersRequest {};
        let answer = self.call(async move |mut client| client.list_routers(request).await)?;
        let routers = answer.routers.into_iter().map(RouterView::try_from);
        routers.collect::<Result<_, _>>().map_err(Status::from)
    }

    /// Announces a migration; durable when this returns.
    pub fn start(&self, request: &MigrateRequest) -> Result<MigrationView, Status> {
        let request = v1::StartMigrationRequest::from(request);
        let answer = self.call(async move |mut client| client.start_migration(request).await)?;
        migration(answer.migration)
    }

    /// Announces many migrations, without waiting for one before the next; all are durable when this
    /// returns.
    pub fn start_all(&self, requests: &[MigrateRequest]) -> Result<BTreeSet<TransactionId>> {
        let present = self.present.load(Ordering::Relaxed);
        let client = &self.clients[present % self.clients.len()];
        let starts = requests.iter().map(|request| {
            let request = v1::StartMigrationRequest::from(request);
            let mut client = client.clone();
            async move { client.start_migration(request).await }
        });
        let answers = self.runtime.block_on(futures::future::join_all(starts));
        let ids = answers.into_iter().map(|answer| {
            let answer = answer?.into_inner();
            Ok(migration(answer.migration)?.id)
        });
        ids.collect()
    }

    /// Triggers the commit of a migration with manual activation.
    pub fn activate(&self, id: TransactionId) -> Result<MigrationView, Status> {
        let request = v1::ActivateMigrationRequest { id: id.0 };
        let answer = self.call(async move |mut client| client.activate_migration(request).await)?;
        migration(answer.migration)
    }

    /// Aborts a migration that is not decided.
    pub fn abort(&self, id: TransactionId) -> Result<MigrationView, Status> {
        let request = v1::AbortMigrationRequest { id: id.0 };
        let answer = self.call(async move |mut client| client.abort_migration(request).await)?;
        migration(answer.migration)
    }

    /// A migration as it is.
    pub fn migration(&self, id: TransactionId) -> Result<MigrationView, Status> {
        let request = v1::GetMigrationRequest { id: id.0 };
        let answer = self.call(async move |mut client| client.get_migration(request).await)?;
        migration(answer.migration)
    }

    /// Every migration that the controller remembers.
    pub fn migrations(&self) -> Result<Vec<MigrationView>, Status> {
        let request = v1::ListMigrationsRequest {};
        let answer = self.call(async move |mut client| client.list_migrations(request).await)?;
        let migrations = answer.migrations.into_iter().map(MigrationView::try_from);
        migrations.collect::<Result<_, _>>().map_err(Status::from)
    }

    /// Every change of every migration from here on.
    pub fn watch(&self) -> Result<Watch<'_>, Status> {
        let request = v1::WatchMigrationsRequest { id: 0 };
        let updates = self.call(async move |mut client| client.watch_migrations(request).await)?;
        Ok(Watch {
            runtime: &self.runtime,
            updates,
        })
    }
}

impl Watch<'_> {
    /// The next change; an error if none comes within `timeout`.
    pub fn next(&mut self, timeout: Duration) -> Result<MigrationView> {
        let next = async { tokio::time::timeout(timeout, self.updates.message()).await };
        let update = self
            .runtime
            .block_on(next)
            .with_context(|| format!("no change of any migration within {timeout:?}"))??
            .context("the controller ended the stream of changes")?;
        Ok(migration(update.migration)?)
    }
}

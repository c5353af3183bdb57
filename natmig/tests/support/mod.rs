//! A fabric of agents with tables in memory, and a controller, in one process.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "shared by several test programs, each of which uses a part"
)]

pub mod controllers;
pub mod etcd;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use natmig::{
    agent::{self, Identity, Tables},
    controller::{self, Controller, ControllerConfig, ControllerError},
    coordinator::{Config, MigrationView, Phase, StoreOp, Stored},
    digest::{Parts, TableDigest},
    names::RouterName,
    proto::v1::{self, control_service_client::ControlServiceClient},
    router::{CommitReport, Heard, Held, RouterError, TellHeard},
    rule::{Changes, MacAddress, Rule, TransactionId},
    store::{FileStore, Leadership, Store, StoreError},
    tls::Credentials,
};
use natmig_common::SlotState;
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

pub type Client = ControlServiceClient<Channel>;

/// Times that keep tests short.
pub fn times() -> Config {
    Config {
        prepare_deadline: Duration::from_millis(700),
        commit_deadline: Duration::from_millis(300),
        retry: Duration::from_millis(50),
        ..Config::default()
    }
}

pub const TOPOLOGY: &str = r#"
drain = "50ms"
quarantine = "0ms"
[[router]]
name = "edge1"
tier = "edge"
[[router]]
name = "edge2"
tier = "edge"
[[router]]
name = "edge3"
tier = "edge"
[[router]]
name = "core1"
tier = "core"
[[segment]]
name = "rack1"
prefix = "10.1.1.0/24"
gateway = "10.1.1.1"
pool = "10.1.1.128/25"
prefix_ipv6 = "2001:db8:1::/64"
gateway_ipv6 = "fe80::1"
pool_ipv6 = "2001:db8:1:0:f::/80"
routers = ["edge1"]
[[segment]]
name = "rack2"
prefix = "10.1.2.0/24"
gateway = "10.1.2.1"
pool = "10.1.2.128/25"
prefix_ipv6 = "2001:db8:2::/64"
gateway_ipv6 = "fe80::1"
pool_ipv6 = "2001:db8:2:0:f::/80"
routers = ["edge2"]
[[segment]]
name = "rack3"
prefix = "10.1.3.0/24"
gateway = "10.1.3.1"
pool = "10.1.3.252/30"
prefix_ipv6 = "2001:db8:3::/64"
gateway_ipv6 = "fe80::1"
pool_ipv6 = "2001:db8:3:0:f::/80"
routers = ["edge3"]
"#;

pub const ROUTERS: [&str; 4] = ["edge1", "edge2", "edge3", "core1"];

/// What a router keeps while its agent restarts.
#[derive(Debug, Default)]
pub struct Memory {
    pub table: BTreeMap<IpAddr, Rule>,
    pub held: BTreeMap<TransactionId, (Changes, Option<u64>)>,
    pub pools: Vec<IpNet>,
    pub term: u64,
    /// Commands carried out, by kind.
    pub log: Vec<String>,
    /// Reports made: one for each session with a controller.
    pub reports: u32,
    /// While set, every command blocks.
    pub stuck: bool,
    /// While set, commands of this kind block.
    pub stuck_at: Option<&'static str>,
    /// The command that blocks.
    pub waiting: Option<String>,
    /// Refuses to prepare.
    pub refuses: bool,
    /// VMs that are awaited, and when they were heard.
    pub awaited: BTreeMap<(TransactionId, MacAddress), Option<u64>>,
    /// Who is told of VMs that are heard: the running agent.
    pub ear: Ear,
}

/// Tells the running agent of VMs that are heard.
#[derive(Default)]
pub struct Ear(Option<TellHeard>);

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ear").field(&self.0.is_some()).finish()
    }
}

impl Memory {
    /// Whoever waits for the VM hears it, at `at`.
    fn hear(&mut self, mac: MacAddress, at: u64) {
        let awaited = self.awaited.iter_mut();
        for (_, heard) in awaited.filter(|((_, other), _)| *other == mac) {
            heard.get_or_insert(at);
        }
    }

    fn heard(&self) -> Vec<Heard> {
        let heard = |(&(id, mac), at): (&(TransactionId, MacAddress), &Option<u64>)| {
            at.map(|at| Heard { id, mac, at })
        };
        self.awaited.iter().filter_map(heard).collect()
    }
}

/// A VM speaks on a router; the router's agent hears of it, if there is one.
pub fn speak(memory: &Mutex<Memory>, mac: MacAddress, at: u64) {
    let (heard, ear) = {
        let mut memory = memory.lock().unwrap();
        memory.hear(mac, at);
        (memory.heard(), memory.ear.0.take())
    };
    // Without the lock: the agent's queue may be full of what needs it. Agents are told by a thread of
    // the router's, which may wait.
    if let Some(mut tell) = ear
        && tokio::task::block_in_place(|| tell(heard))
    {
        memory.lock().unwrap().ear = Ear(Some(tell));
    }
}

/// A double of a router's tables.
#[derive(Clone, Debug, Default)]
pub struct MemoryTables(pub Arc<Mutex<Memory>>);

impl MemoryTables {
    fn enter(&self, what: &str) -> std::sync::MutexGuard<'_, Memory> {
        loop {
            let mut memory = self.0.lock().unwrap();
            if !memory.stuck && memory.stuck_at != Some(what) {
                memory.waiting = None;
                memory.log.push(what.to_owned());
                return memory;
            }
            memory.waiting = Some(what.to_owned());
            drop(memory);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Tables for MemoryTables {
    fn prepare(&mut self, id: TransactionId, changes: &Changes) -> Result<(), RouterError> {
        let mut memory = self.enter("prepare");
        if memory.refuses {
            return Err(RouterError::NoSlot);
        }
        match memory.held.get(&id) {
            Some((held, _)) if held == changes => Ok(()),
            Some(_) => Err(RouterError::DifferentChanges(id)),
            None => {
                for (holder, (held, _)) in &memory.held {
                    for change in held.pending.iter().chain(&held.early) {
                        if changes.pending.iter().any(|c| c.address == change.address) {
                            return Err(RouterError::Busy {
                                address: change.address,
                                holder: *holder,
                            });
                        }
                    }
                }
                memory.held.insert(id, (changes.clone(), None));
                Ok(())
            }
        }
    }

    fn await_announcements(
        &mut self,
        id: TransactionId,
        changes: &Changes,
    ) -> Result<(), RouterError> {
        let mut memory = self.enter("await_announcements");
        for change in &changes.pending {
            if let Rule::Local { at, .. } = &change.rule {
                memory.awaited.entry((id, at.mac)).or_default();
            }
        }
        Ok(())
    }

    fn heard(&self) -> Result<Vec<Heard>, RouterError> {
        Ok(self.0.lock().unwrap().heard())
    }

    fn listen(&mut self, tell: TellHeard) -> Result<(), RouterError> {
        self.0.lock().unwrap().ear = Ear(Some(tell));
        Ok(())
    }

    fn commit(&mut self, id: TransactionId) -> Result<CommitReport, RouterError> {
        let mut memory = self.enter("commit");
        memory.awaited.retain(|(other, _), _| *other != id);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let (_, committed) = memory
            .held
            .get_mut(&id)
            .ok_or(RouterError::UnknownTransaction(id))?;
        let at = *committed.get_or_insert(u64::try_from(now.as_nanos()).unwrap());
        Ok(CommitReport {
            committed_at: at,
            grace: Duration::from_micros(3),
        })
    }

    fn abort(&mut self, id: TransactionId) -> Result<(), RouterError> {
        let mut memory = self.enter("abort");
        memory.awaited.retain(|(other, _), _| *other != id);
        if let Some((_, Some(_))) = memory.held.get(&id) {
            return Err(RouterError::AlreadyCommitted(id));
        }
        memory.held.remove(&id);
        Ok(())
    }

    fn fold(&mut self, id: TransactionId) -> Result<(), RouterError> {
        let mut memory = self.enter("fold");
        match memory.held.remove(&id) {
            None => {}
            Some((changes, Some(_))) => {
                for change in changes.early.into_iter().chain(changes.pending) {
                    if change.rule == Rule::Absent {
                        memory.table.remove(&change.address);
                    } else {
                        memory.table.insert(change.address, change.rule);
                    }
                }
            }
            Some(prepared) => {
                memory.held.insert(id, prepared);
                return Err(RouterError::NotCommitted(id));
            }
        }
        Ok(())
    }

    fn retire(&mut self, addresses: &[IpAddr]) -> Result<(), RouterError> {
        let mut memory = self.enter("retire");
        for address in addresses {
            memory.table.remove(address);
        }
        Ok(())
    }

    fn replace(
        &mut self,
        parts: &Parts,
        rules: &BTreeMap<IpAddr, Rule>,
    ) -> Result<(), RouterError> {
        let mut memory = self.enter("replace");
        memory.table.retain(|address, _| !parts.contains(*address));
        memory.table.extend(rules.clone());
        Ok(())
    }

    fn held(&self) -> Vec<Held> {
        let memory = self.0.lock().unwrap();
        memory
            .held
            .iter()
            .map(|(id, (_, committed))| Held {
                id: *id,
                state: if committed.is_some() {
                    SlotState::Committed
                } else {
                    SlotState::Prepared
                },
                committed_at: committed.unwrap_or_default(),
            })
            .collect()
    }

    fn digest(&self) -> TableDigest {
        let mut memory = self.0.lock().unwrap();
        memory.reports += 1;
        TableDigest::of(memory.table.iter().map(|(address, rule)| (*address, rule)))
    }

    fn set_pools(&mut self, pools: &[IpNet]) -> Result<(), RouterError> {
        self.enter("set_pools").pools = pools.to_vec();
        Ok(())
    }

    fn term(&self) -> u64 {
        self.0.lock().unwrap().term
    }

    fn set_term(&mut self, term: u64) -> Result<(), RouterError> {
        self.0.lock().unwrap().term = term;
        Ok(())
    }
}

/// A store that dies at its n-th change: before or after it is durable.
pub struct CrashingStore {
    pub inner: FileStore,
    pub remaining: usize,
    pub durable: bool,
}

impl Store for CrashingStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        self.inner.load()
    }

    fn apply(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        if self.remaining == 0 {
            if self.durable {
                self.inner.apply(ops)?;
            }
            return Err(StoreError::Database {
                path: PathBuf::from("test"),
                problem: "killed".to_owned(),
            });
        }
        self.remaining -= 1;
        self.inner.apply(ops)
    }

    fn begin_term(&mut self, at_least: u64) -> Result<u64, StoreError> {
        self.inner.begin_term(at_least)
    }

    fn confirm(&mut self) -> Result<(), StoreError> {
        self.inner.confirm()
    }

    fn leadership(&self) -> Leadership {
        self.inner.leadership()
    }
}

/// A controller in this process.
pub struct RunningController {
    pub stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<Result<(), ControllerError>>,
}

impl RunningController {
    pub fn of(controller: Controller) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self {
            stop: Some(stop),
            task: tokio::spawn(controller.run(async {
                stopped.await.ok();
            })),
        }
    }

    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

/// An agent in this process.
pub struct RunningAgent {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl RunningAgent {
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

pub struct Fabric {
    pub directory: TempDir,
    pub memories: BTreeMap<RouterName, Arc<Mutex<Memory>>>,
    pub agents: BTreeMap<RouterName, RunningAgent>,
}

impl Fabric {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            memories: ROUTERS
                .iter()
                .map(|name| (RouterName::new(*name), Arc::default()))
                .collect(),
            agents: BTreeMap::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self) -> ControllerConfig {
        ControllerConfig {
            socket: self.path("controller.sock"),
            store: Some(self.path("controller.redb")),
            ..ControllerConfig::default()
        }
    }

    pub fn memory(&self, router: &str) -> Arc<Mutex<Memory>> {
        self.memories[&RouterName::new(router)].clone()
    }

    pub fn store(&self) -> FileStore {
        FileStore::open(&self.path("controller.redb")).unwrap()
    }

    pub async fn controller(&self) -> RunningController {
        let store = self.store();
        self.controller_with(Box::new(store)).await
    }

    pub async fn controller_with(&self, store: Box<dyn Store>) -> RunningController {
        self.controller_that_keeps(store, times()).await
    }

    pub async fn controller_that_keeps(
        &self,
        store: Box<dyn Store>,
        times: Config,
    ) -> RunningController {
        let controller = controller::start_with(&self.config(), store, times)
            .await
            .unwrap();
        RunningController::of(controller)
    }

    pub fn start_agent(&mut self, router: &str) {
        let endpoint = format!("unix://{}", self.config().socket.display());
        self.start_agent_at(router, &endpoint);
    }

    pub fn start_agent_at(&mut self, router: &str, endpoint: &str) {
        self.start_agent_of(router, vec![endpoint.to_owned()]);
    }

    /// An agent that dials several controllers.
    pub fn start_agent_of(&mut self, router: &str, endpoints: Vec<String>) {
        self.start_agent_with(router, endpoints, None);
    }

    /// An agent that has a certificate to show.
    pub fn start_agent_with(
        &mut self,
        router: &str,
        endpoints: Vec<String>,
        credentials: Option<Arc<Credentials>>,
    ) {
        let tables = MemoryTables(self.memory(router));
        let identity = Identity {
            router: RouterName::new(router),
            interfaces: Vec::new(),
            endpoints,
            retry: Duration::from_millis(50),
            term_file: self.path(&format!("{router}.term")),
            ready: || {},
            credentials,
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            agent::run(tables, identity, async {
                stopped.await.ok();
            })
            .await
            .unwrap();
        });
        self.agents
            .insert(RouterName::new(router), RunningAgent { stop, task });
    }

    pub fn start_agents(&mut self) {
        for router in ROUTERS {
            self.start_agent(router);
        }
    }

    pub async fn stop_agent(&mut self, router: &str) {
        self.agents
            .remove(&RouterName::new(router))
            .unwrap()
            .stop()
            .await;
    }

    pub async fn client(&self) -> Client {
        connect(&self.config().socket).await
    }

    /// Controller, agents, topology, and three VMs at home in rack1.
    pub async fn ready() -> (Self, RunningController, Client) {
        let mut fabric = Self::new();
        let controller = fabric.controller().await;
        fabric.start_agents();
        let mut client = fabric.client().await;
        set_up(&mut client).await;
        all_in_sync(&mut client).await;
        (fabric, controller, client)
    }

    pub async fn finish(self, controller: RunningController) {
        for agent in self.agents.into_values() {
            agent.stop().await;
        }
        controller.stop().await;
    }

    /// Every router's table is what the VMs' places ask for, and nothing is held.
    pub fn tables_agree(&self, vms: &[v1::VmStatus]) -> Result<(), String> {
        for (router, memory) in &self.memories {
            let memory = memory.lock().unwrap();
            if !memory.held.is_empty() {
                return Err(format!("{router} holds {:?}", memory.held));
            }
            let mut expected = std::collections::BTreeSet::new();
            for vm in vms {
                let place = vm.place.as_ref().unwrap();
                if !place.locators.is_empty() {
                    let identities = &vm.vm.as_ref().unwrap().identities;
                    let addresses = place.locators.iter().chain(identities);
                    expected.extend(addresses.map(|bytes| address(bytes)));
                }
            }
            let bound: std::collections::BTreeSet<_> = memory.table.keys().copied().collect();
            if bound != expected {
                return Err(format!("{router} binds {bound:?}, not {expected:?}"));
            }
        }
        Ok(())
    }
}

pub fn address(bytes: &[u8]) -> IpAddr {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .unwrap()
}

pub async fn connect(socket: &Path) -> Client {
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    ControlServiceClient::new(channel)
        .max_decoding_message_size(natmig::proto::MESSAGE_LIMIT)
        .max_encoding_message_size(natmig::proto::MESSAGE_LIMIT)
}

/// An address in the first rack.
fn ipv6(last: u8) -> Vec<u8> {
    let mut address = vec![0x20, 0x01, 0x0d, 0xb8, 0, 1];
    address.resize(15, 0);
    address.push(last);
    address
}

pub fn vm(name: &str, last: u8) -> v1::Vm {
    v1::Vm {
        name: name.to_owned(),
        identities: vec![vec![10, 1, 1, last], ipv6(last)],
        mac: vec![2, 0, 0, 0, 0, last],
        home: "rack1".to_owned(),
    }
}

pub async fn set_up(client: &mut Client) {
    client
        .apply_topology(v1::ApplyTopologyRequest {
            text: TOPOLOGY.to_owned(),
            file: "test.toml".to_owned(),
        })
        .await
        .unwrap();
    client
        .add_vms(v1::AddVmsRequest {
            vms: vec![vm("vm1", 10), vm("vm2", 11), vm("vm3", 12)],
        })
        .await
        .unwrap();
}

/// Waits, by asking again, until a condition holds.
pub async fn until<T, F: AsyncFnMut() -> Result<T, String>>(what: &str, mut condition: F) -> T {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(why) => assert!(Instant::now() < deadline, "{what}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn all_in_sync(client: &mut Client) {
    until("all routers in sync", async || {
        let routers = client
            .list_routers(v1::ListRoutersRequest {})
            .await
            .map_err(|error| error.to_string())?
            .into_inner()
            .routers;
        let ready = routers.len() == ROUTERS.len()
            && routers
                .iter()
                .all(|router| router.connected && router.in_sync);
        if ready {
            Ok(())
        } else {
            Err(format!("{routers:?}"))
        }
    })
    .await;
}

pub fn start_request(vms: &[&str], to: &str) -> v1::StartMigrationRequest {
    v1::StartMigrationRequest {
        moves: vms
            .iter()
            .map(|vm| v1::Move {
                vm: (*vm).to_owned(),
                to: to.to_owned(),
            })
            .collect(),
        activation: 0,
        unreachable: 0,
    }
}

pub async fn start(client: &mut Client, request: v1::StartMigrationRequest) -> u64 {
    let answer = client.start_migration(request).await.unwrap();
    answer.into_inner().migration.unwrap().id
}

/// Follows a migration until it is where it should be.
pub async fn reach(client: &mut Client, id: u64, goal: impl Fn(Phase) -> bool) -> MigrationView {
    let mut updates = client
        .watch_migrations(v1::WatchMigrationsRequest { id })
        .await
        .unwrap()
        .into_inner();
    tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let update = updates
                .message()
                .await
                .unwrap()
                .expect("the goal is reached");
            let view: MigrationView = update.migration.unwrap().try_into().unwrap();
            if goal(view.phase) {
                return view;
            }
        }
    })
    .await
    .expect("in time")
}

pub async fn vms(client: &mut Client) -> Vec<v1::VmStatus> {
    client
        .list_vms(v1::ListVmsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .vms
}

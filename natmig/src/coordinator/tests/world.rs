//! A controller, its store, its routers and the connections between them, without any clock or
//! thread: a test says what happens next. Every step is checked.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use crate::{
    coordinator::{
        Action, Activation, Announced, Answer, Command, Config, ConnectionId, Coordinator, Event,
        MigrateRequest, MigrationRecord, MigrationView, Phase, Refusal, Reply, Request, StoreOp,
        Stored, Timestamp, Unreachable,
    },
    model::{Place, Routers, Start, Walk, fabric, starts},
    names::{RouterName, SegmentName, VmName},
    planner::{self, Move, Vm, VmState},
    rule::{Attachment, Rule, TransactionId},
    topology::Topology,
};

/// A connection between controller and agent.
struct Link {
    id: ConnectionId,
    commands: VecDeque<Command>,
    replies: VecDeque<Reply>,
}

pub(super) struct World {
    pub(super) topology: Topology,
    pub(super) now: Timestamp,
    pub(super) store: Stored,
    pub(super) coordinator: Coordinator,
    pub(super) routers: Routers,
    links: BTreeMap<RouterName, Link>,
    next_connection: u64,
    wake: Option<Timestamp>,
    /// The controller crashes before the action after this many.
    pub(super) crash_after: Option<usize>,
    pub(super) updates: Vec<MigrationView>,
    /// Commands sent, for tests that look at their order.
    pub(super) sent: Vec<(RouterName, Command)>,
    config: Config,
    /// Packets walked.
    pub(super) walks: u64,
    /// Whether packets are walked after every step.
    pub(super) checked: bool,
}

impl World {
    pub(super) fn new(topology: Topology, vms: &[Vm]) -> Self {
        let mut world = Self::bare(topology.clone());
        world.request(Request::ApplyTopology(topology)).unwrap();
        world.request(Request::AddVms(vms.to_vec())).unwrap();
        world
    }

    pub(super) fn bare(topology: Topology) -> Self {
        let config = Config {
            history: 4,
            ..Config::default()
        };
        let now = Timestamp(1_000_000_000);
        let (coordinator, actions) = Coordinator::restore(config, Stored::default(), now);
        let mut world = Self {
            routers: fabric(&topology),
            topology,
            now,
            store: Stored::default(),
            coordinator,
            links: BTreeMap::new(),
            next_connection: 1,
            wake: None,
            crash_after: None,
            updates: Vec::new(),
            sent: Vec::new(),
            config,
            walks: 0,
            checked: true,
        };
        world.execute(actions);
        world
    }

    /// A world whose routers are connected.
    pub(super) fn connected(topology: Topology, vms: &[Vm]) -> Self {
        let mut world = Self::new(topology, vms);
        world.connect_all();
        world.deliver_all();
        world
    }

    /// The controller starts again, and takes no more migrations than this.
    pub(super) fn limit(&mut self, under_way: usize) {
        self.config.under_way = under_way;
        self.crash();
        self.connect_all();
        self.deliver_all();
    }

    pub(super) fn connect_all(&mut self) {
        for name in self.router_names() {
            if !self.links.contains_key(&name) {
                self.connect(&name);
            }
        }
    }

    pub(super) fn router_names(&self) -> Vec<RouterName> {
        self.topology.routers.keys().cloned().collect()
    }

    pub(super) fn is_connected(&self, name: &RouterName) -> bool {
        self.links.contains_key(name)
    }

    /// An agent connects; an older connection of it is gone, which the controller may not know.
    pub(super) fn connect(&mut self, name: &RouterName) {
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        self.links.insert(
            name.clone(),
            Link {
                id,
                commands: VecDeque::new(),
                replies: VecDeque::new(),
            },
        );
        let report = self.routers[name].report();
        self.event(Event::RouterConnected {
            router: name.clone(),
            connection: id,
            report,
        });
        self.tell_heard(name);
    }

    /// A VM speaks in a segment. Whoever awaits it there hears it, and says so if it is connected.
    pub(super) fn speak(&mut self, vm: &str, segment: &str) {
        let mac = self.coordinator.vm(&VmName::new(vm)).unwrap().mac;
        for router in self.router_names() {
            let segment = SegmentName::new(segment);
            if self.topology.serves(&router, &segment) {
                let now = self.now;
                self.routers
                    .get_mut(&router)
                    .unwrap()
                    .hear(mac, &segment, now);
                self.tell_heard(&router);
            }
        }
    }

    /// A router says whom it heard.
    fn tell_heard(&mut self, router: &RouterName) {
        for announced in self.routers[router].heard() {
            self.announced(router, announced);
        }
    }

    /// A router says that it heard a VM, whether it is true or not.
    pub(super) fn announced(&mut self, router: &RouterName, announced: Announced) {
        if let Some(connection) = self.links.get(router).map(|link| link.id) {
            self.event(Event::Announced {
                router: router.clone(),
                connection,
                announced,
            });
        }
    }

    /// The connection breaks; what is under way is lost.
    pub(super) fn disconnect(&mut self, name: &RouterName) {
        if let Some(link) = self.links.remove(name) {
            self.event(Event::RouterDisconnected {
                router: name.clone(),
                connection: link.id,
            });
        }
    }

    /// The router boots, empty.
    pub(super) fn reboot(&mut self, name: &RouterName) {
        self.routers.get_mut(name).unwrap().reboot();
        self.disconnect(name);
    }

    /// The agent executes its next command; its answer is under way.
    pub(super) fn deliver_command(&mut self, name: &RouterName) -> bool {
        let Some(link) = self.links.get_mut(name) else {
            return false;
        };
        let Some(command) = link.commands.pop_front() else {
            return false;
        };
        let reply = self
            .routers
            .get_mut(name)
            .unwrap()
            .execute(self.now, command);
        link.replies.push_back(reply);
        self.now = self.now.after(Duration::from_micros(7));
        self.check();
        true
    }

    /// The controller takes the agent's next answer.
    pub(super) fn deliver_reply(&mut self, name: &RouterName) -> bool {
        let Some(link) = self.links.get_mut(name) else {
            return false;
        };
        let Some(reply) = link.replies.pop_front() else {
            return false;
        };
        let connection = link.id;
        self.event(Event::Reply {
            router: name.clone(),
            connection,
            reply,
        });
        true
    }

    /// An answer that the controller gets although nobody expects it.
    pub(super) fn stray_reply(&mut self, name: &RouterName, connection: u64, reply: Reply) {
        self.event(Event::Reply {
            router: name.clone(),
            connection: ConnectionId(connection),
            reply,
        });
    }

    pub(super) fn connection_of(&self, name: &RouterName) -> u64 {
        self.links[name].id.0
    }

    /// Delivers everything that is under way, and what follows from it, without time passing.
    pub(super) fn deliver_all(&mut self) {
        loop {
            let mut delivered = false;
            for name in self.router_names() {
                delivered |= self.deliver_command(&name);
                delivered |= self.deliver_reply(&name);
            }
            if !delivered {
                return;
            }
        }
    }

    pub(super) fn pass(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
        if self.wake.is_some_and(|wake| wake <= self.now) {
            self.wake = None;
            self.event(Event::Tick);
        }
    }

    /// Lets time pass up to the next deadline; false if there is none.
    pub(super) fn pass_to_deadline(&mut self) -> bool {
        let Some(wake) = self.wake else {
            return false;
        };
        let left = wake.since(self.now);
        self.pass(Duration::from_nanos(left));
        true
    }

    /// Goes on until nothing happens any more.
    pub(super) fn run(&mut self) {
        for _ in 0..1000 {
            self.connect_all();
            self.deliver_all();
            if !self.pass_to_deadline()
                && self.router_names().iter().all(|it| self.is_connected(it))
            {
                return;
            }
        }
        panic!("the machine does not come to rest");
    }

    /// The controller is killed and starts again from its store.
    pub(super) fn crash(&mut self) {
        self.crash_after = None;
        self.links.clear();
        self.wake = None;
        let json = serde_json::to_string(&self.store).unwrap();
        let stored: Stored = serde_json::from_str(&json).unwrap();
        assert_eq!(stored, self.store);
        let (coordinator, actions) = Coordinator::restore(self.config, stored, self.now);
        self.coordinator = coordinator;
        self.execute(actions);
        self.check();
    }

    fn event(&mut self, event: Event) {
        let actions = self.coordinator.handle(self.now, event);
        self.execute(actions);
        self.check();
    }

    pub(super) fn request(&mut self, request: Request) -> Result<Answer, Refusal> {
        let (answer, actions) = self.coordinator.request(self.now, request)?;
        self.execute(actions);
        self.check();
        Ok(answer)
    }

    pub(super) fn migrate(&mut self, moves: &[(&str, &str)]) -> Result<TransactionId, Refusal> {
        self.migrate_with(moves, Activation::Immediate, Unreachable::Abort)
    }

    pub(super) fn migrate_with(
        &mut self,
        moves: &[(&str, &str)],
        activation: Activation,
        unreachable: Unreachable,
    ) -> Result<TransactionId, Refusal> {
        let moves = moves
            .iter()
            .map(|(vm, segment)| (VmName::new(*vm), SegmentName::new(*segment)))
            .collect();
        let answer = self.request(Request::Migrate(MigrateRequest {
            moves,
            activation,
            unreachable,
        }))?;
        match answer {
            Answer::Started(id) => Ok(id),
            Answer::Done => panic!("no migration was started"),
        }
    }

    pub(super) fn phase(&self, id: TransactionId) -> Phase {
        self.coordinator.migration(id).unwrap().phase
    }

    pub(super) fn place(&self, vm: &str) -> String {
        let view = self.coordinator.vm(&VmName::new(vm)).unwrap();
        view.segment.as_str().to_owned()
    }

    fn execute(&mut self, actions: Vec<Action>) {
        for (index, action) in actions.into_iter().enumerate() {
            if self.crash_after.is_some_and(|after| index >= after) {
                self.crash();
                return;
            }
            match action {
                Action::Store(ops) => {
                    for op in &ops {
                        self.check_stored(op);
                    }
                    for op in ops {
                        self.store.apply(op);
                    }
                }
                Action::Send {
                    router,
                    connection,
                    command,
                } => {
                    self.check_sent(&command);
                    self.sent.push((router.clone(), command.clone()));
                    if let Some(link) = self.links.get_mut(&router)
                        && link.id == connection
                    {
                        link.commands.push_back(command);
                    }
                }
                Action::Disconnect {
                    router, connection, ..
                } => {
                    if self
                        .links
                        .get(&router)
                        .is_some_and(|link| link.id == connection)
                    {
                        self.links.remove(&router);
                    }
                }
                Action::Update(view) => {
                    if view.phase.is_success() {
                        let stored = self.record(view.id).unwrap().phase;
                        assert!(
                            stored >= Phase::Committing && stored <= Phase::Done,
                            "success is reported before the decision is durable"
                        );
                    }
                    self.updates.push(*view);
                }
                Action::Wake(at) => self.wake = Some(at),
            }
        }
    }

    pub(super) fn record(&self, id: TransactionId) -> Option<&MigrationRecord> {
        self.store.migrations.iter().find(|record| record.id == id)
    }

    /// The decision needs every router that forwards to hold the transaction, the fold needs all to
    /// have committed.
    fn check_stored(&self, op: &StoreOp) {
        let StoreOp::PutMigration(record) = op else {
            return;
        };
        let id = record.id;
        let stored = self.record(id).map(|record| record.phase);
        if let Some(stored) = stored {
            let decided = (Phase::Committing..=Phase::Done).contains(&stored);
            let aborted = matches!(stored, Phase::Aborting | Phase::Aborted);
            assert!(!decided || (stored..=Phase::Done).contains(&record.phase));
            assert!(!aborted || record.phase >= stored);
        }
        for (name, router) in &self.routers {
            if self.store.drained.contains(name) || !self.topology.routers.contains_key(name) {
                continue;
            }
            // What it lost since, the controller learns when it connects.
            if router.booting {
                continue;
            }
            if record.phase == Phase::Committing {
                assert!(router.holds(id), "decided, and {name} is not prepared");
            }
            if record.phase == Phase::Folding && stored < Some(Phase::Folding) {
                for step in &record.moves {
                    let after: BTreeMap<_, _> = planner::rules(&self.topology, &step.after, name)
                        .into_iter()
                        .collect();
                    let identities = step.after.vm.identities.iter();
                    let addresses = step.after.locators().chain(identities);
                    for address in addresses {
                        assert_eq!(
                            router.rule(address),
                            after.get(&address).unwrap_or(&Rule::Absent),
                            "folding, and {name} has not committed"
                        );
                    }
                }
            }
        }
    }

    fn check_sent(&self, command: &Command) {
        match command {
            Command::Commit { id } => {
                let phase = self.record(*id).unwrap().phase;
                assert!((Phase::Committing..=Phase::Folding).contains(&phase));
            }
            Command::Fold { id } => {
                let phase = self.record(*id).map(|record| record.phase);
                assert!(phase.is_none_or(|phase| (Phase::Folding..=Phase::Done).contains(&phase)));
            }
            Command::Abort { id } => {
                let phase = self.record(*id).map(|record| record.phase);
                assert!(
                    !matches!(phase, Some(Phase::Preparing | Phase::Prepared)),
                    "abort is sent before it is decided"
                );
            }
            Command::SetPools { .. }
            | Command::Attach
            | Command::Prepare { .. }
            | Command::Retire { .. }
            | Command::Replace { .. } => {}
        }
    }

    /// Walks packets to every VM from everywhere.
    pub(super) fn check(&mut self) {
        if !self.checked {
            return;
        }
        let views = self.coordinator.routers();
        for view in views {
            let router = self.routers.get_mut(&view.name).unwrap();
            if view.drained {
                router.detached = true;
            } else if view.in_sync {
                router.detached = false;
            }
        }
        let states: Vec<VmState> = self.store.vms.clone();
        for state in &states {
            let step = self.store.migrations.iter().find_map(|record| {
                let step = record
                    .moves
                    .iter()
                    .find(|step| step.after.vm.name == state.vm.name)?;
                Some((record.phase, step))
                    .filter(|(phase, _)| *phase <= Phase::Folding || *phase == Phase::Aborting)
            });
            let (allowed, bound): (BTreeSet<&SegmentName>, &VmState) = match step {
                Some((Phase::Preparing | Phase::Prepared | Phase::Aborting, step)) => {
                    ([step.before.segment()].into(), &step.before)
                }
                Some((_, step)) if self.is_anchored(step) => {
                    ([step.after.segment()].into(), &step.after)
                }
                Some((_, step)) => (
                    [step.before.segment(), step.after.segment()].into(),
                    &step.after,
                ),
                None => ([state.segment()].into(), state),
            };
            let walk = Walk {
                topology: &self.topology,
                routers: &self.routers,
                vm: &state.vm,
            };
            let mut walks: Vec<(RouterName, Start, IpAddr)> =
                starts(&self.topology, &self.routers, &state.vm);
            for binding in bound.current.iter().chain(&bound.draining) {
                for locator in binding.locators.iter() {
                    self.check_locator(locator, &state.vm);
                    for edge in self.topology.edges(&binding.segment) {
                        if self.routers[&edge].forwards() {
                            walks.push((edge, Start::Fabric, locator));
                        }
                    }
                }
            }
            for (name, router) in &self.routers {
                let mut places = state.vm.identities.iter().map(|it| place(router.rule(it)));
                if let (Some(one), Some(other)) = (places.next(), places.next()) {
                    assert_eq!(one, other, "families of {} differ at {name}", state.vm.name);
                }
            }
            let count = walks.len();
            for (router, start, address) in walks {
                for place in walk.places(&router, start, address) {
                    let fine = match &place {
                        Place::Segment(segment) => allowed.contains(segment),
                        Place::NoRouter => true,
                        Place::Lost(..) | Place::Loop(..) => false,
                    };
                    assert!(
                        fine,
                        "a packet to {} as {address} from {start:?} at {router} reaches {place:?}, \
                         allowed: {allowed:?}; {step:?}",
                        state.vm.name
                    );
                }
            }
            self.walks += u64::try_from(count).unwrap();
        }
    }

    /// Every router knows whose locator it is.
    fn check_locator(&self, locator: IpAddr, vm: &Vm) {
        for (name, router) in &self.routers {
            if router.forwards() {
                check_source(name, router.rule(locator), vm);
                for rule in router.all_rules(locator) {
                    if *rule != Rule::Absent {
                        check_source(name, rule, vm);
                    }
                }
            }
        }
    }

    /// Whether the VM's home edges and previous edges have committed.
    fn is_anchored(&self, step: &Move) -> bool {
        let mut anchors = self.topology.edges(&step.after.vm.home);
        anchors.extend(self.topology.edges(step.before.segment()));
        anchors.into_iter().all(|name| {
            let router = &self.routers[&name];
            let after: BTreeMap<_, _> = planner::rules(&self.topology, &step.after, &name)
                .into_iter()
                .collect();
            let mut identities = step.after.vm.identities.iter();
            let has_committed = identities.all(|identity| {
                router.rule(identity) == after.get(&identity).unwrap_or(&Rule::Absent)
            });
            !router.forwards() || has_committed
        })
    }

    /// Nothing is under way, and every router's table is that of the final state, with nothing left
    /// over.
    pub(super) fn check_final(&self) {
        for migration in self.coordinator.migrations() {
            assert!(
                migration.phase.is_final(),
                "migration {} is {}, waits for {:?}",
                migration.id,
                migration.phase,
                migration.waiting_for
            );
        }
        assert!(self.store.quarantined.is_empty());
        for (name, router) in &self.routers {
            if !self.topology.routers.contains_key(name) {
                continue;
            }
            let table = planner::table(&self.topology, &self.store.vms, name);
            assert_eq!(router.table(), table, "the table of {name}");
            assert_eq!(router.held_count(), 0, "transactions of {name}");
            let addresses: Vec<_> = table.keys().copied().collect();
            assert_eq!(router.addresses(), addresses, "the entries of {name}");
        }
        for state in &self.store.vms {
            assert!(state.draining.is_empty() && !state.returned);
        }
    }
}

fn check_source(router: &RouterName, rule: &Rule, vm: &Vm) {
    match rule {
        Rule::Deliver { identity, .. }
        | Rule::Forward { identity, .. }
        | Rule::Known { identity } => assert!(
            vm.identities.contains(*identity),
            "{router} takes a locator of {} for another VM's",
            vm.name
        ),
        Rule::Absent | Rule::Away { .. } | Rule::Local { .. } => {
            panic!("{router} does not know a locator of {}: {rule:?}", vm.name)
        }
    }
}

/// What a rule of an identity says of its place, whatever the family.
fn place(rule: &Rule) -> (std::mem::Discriminant<Rule>, Option<&Attachment>) {
    let at = match rule {
        Rule::Local { at, .. } => Some(at),
        Rule::Away { home, .. } => home.as_ref(),
        Rule::Absent | Rule::Deliver { .. } | Rule::Forward { .. } | Rule::Known { .. } => None,
    };
    (std::mem::discriminant(rule), at)
}

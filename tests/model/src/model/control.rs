//! What controllers and agents do, and what becomes of the connections between them.

use std::collections::VecDeque;

use natmig::{
    agent::{self, execute},
    coordinator::{
        Action, Announced, Command, ConnectionId, Coordinator, Event, Phase, Reply, Report,
        Request, Timestamp,
    },
    names::RouterName,
    proto::{self, Order, Outcome},
};

use super::FabricModel;
use crate::{
    agent::{Agent, Disk},
    fabric::Number,
    plant::Plant,
    shared::Shared,
    state::{Controller, ControllerNumber, Interruption, Killed, Link, Message, State},
    story::Story,
    tables::Tables,
};

impl FabricModel {
    pub(super) fn name(&self, router: Number) -> RouterName {
        self.fabric.places[router].name.clone()
    }

    /// The controller takes up the store.
    pub(super) fn start(
        &self,
        state: &mut State,
        controller: ControllerNumber,
        story: &mut Story,
    ) -> Option<()> {
        let stored = (*state.store).clone();
        let (machine, actions) = Coordinator::restore(self.config, stored, state.now);
        state.controllers[controller] = Controller {
            machine: Some(Shared::new(machine)),
            term: state.term,
            wake: None,
        };
        self.run(state, controller, actions, None, story)
    }

    /// The controller is gone; what it sent is still under way.
    pub(super) fn stop(state: &mut State, controller: ControllerNumber) {
        state.controllers[controller].machine = None;
        state.controllers[controller].wake = None;
        Self::end_links(state, controller);
    }

    pub(super) fn end_links(state: &mut State, controller: ControllerNumber) {
        for router in &mut state.routers {
            for link in router.link.iter_mut().chain(&mut router.old) {
                if link.controller == controller {
                    link.change(|link| {
                        link.dead = true;
                        link.replies.clear();
                    });
                }
            }
        }
        for router in 0..state.routers.len() {
            Self::forget_empty(state, router);
        }
    }

    /// The agent's end of a connection is gone.
    pub(super) fn leave(&self, state: &mut State, router: Number) {
        let keeps = self.scenario.late_commands;
        let router_state = &mut state.routers[router];
        if let Some(mut link) = router_state.link.take() {
            link.change(|link| {
                if !keeps {
                    link.commands.clear();
                }
            });
            router_state.old = Some(link);
        }
        Self::forget_empty(state, router);
    }

    /// Forgets an old connection of which nothing is left that anyone could notice.
    pub(super) fn forget_empty(state: &mut State, router: Number) {
        let old = &mut state.routers[router].old;
        if old
            .as_ref()
            .is_some_and(|old| old.dead && old.commands.is_empty() && old.replies.is_empty())
        {
            *old = None;
        }
    }

    /// An agent dials a controller, says what its router holds, and keeps the controller's term before
    /// anything else. `None` if it refuses the term.
    pub(super) fn connect(
        &self,
        state: &mut State,
        number: Number,
        controller: ControllerNumber,
        story: &mut Story,
    ) -> Option<()> {
        state.controllers[controller].machine.as_ref()?;
        let term = state.controllers[controller].term;
        if state.routers[number].link.is_some() {
            self.leave(state, number);
        }
        // The controller closes an older session of the router first.
        let old = state.routers[number].old.as_ref();
        if old.is_some_and(|old| old.controller == controller && !old.dead) {
            self.notice(state, number, story)?;
        }
        let mut report = self.report(state, number);
        if self.plant == Some(Plant::PendingForgotten) {
            report.held.clear();
        }
        match self.carry_out(state, number, term, Order::Welcome, None) {
            Some(Outcome::Done) => {}
            Some(_) | None => return None,
        }
        let router = &mut state.routers[number];
        router.connections += 1;
        let mut replies = VecDeque::from([Message::Welcomed]);
        if self.plant != Some(Plant::AnnouncedOnce) {
            replies.extend(announced(&router.tables).map(Message::Announced));
        }
        router.link = Some(Shared::new(Link {
            controller,
            term,
            id: router.connections,
            report: Some(report),
            commands: VecDeque::new(),
            replies,
            dead: false,
        }));
        Some(())
    }

    /// What the agent says that its router holds.
    fn report(&self, state: &State, number: Number) -> Report {
        let agent = self.agent(state, number, None);
        let disk = Disk {
            term: state.routers[number].term,
        };
        let execute::TableReport { digest, held, .. } = execute::report(&agent, &disk);
        Report {
            held,
            digest,
            segments: agent.tables.segments(),
        }
    }

    fn agent(&self, state: &State, number: Number, killed_after: Killed) -> Agent {
        let router = &state.routers[number];
        Agent {
            tables: (*router.tables).clone(),
            booting: router.booting,
            killed_after,
            now: state.now,
            listens_late: self.plant == Some(Plant::AwaitedLate),
            late: None,
        }
    }

    /// An agent carries out an order; `None` if it is killed meanwhile.
    fn carry_out(
        &self,
        state: &mut State,
        number: Number,
        term: u64,
        order: Order,
        killed_after: Killed,
    ) -> Option<Outcome> {
        let mut agent = self.agent(state, number, killed_after);
        let router = &mut state.routers[number];
        let accepts = self.plant == Some(Plant::StaleTermAccepted);
        let mut disk = Disk {
            term: if accepts { 0 } else { router.term },
        };
        let command = proto::Command {
            term,
            sequence: 0,
            order,
        };
        let outcome = execute::carry_out(&mut agent, &mut disk, command, || {});
        let killed = agent.is_killed();
        // A successor does as soon as it starts what the agent does after its answer.
        let settled = agent::Tables::settle(&mut agent);
        debug_assert!(settled.is_ok());
        agent.tables.draw();
        router.term = router.term.max(disk.term);
        router.booting = agent.booting;
        if *router.tables != agent.tables {
            router.tables = Shared::new(agent.tables);
        }
        (!killed).then_some(outcome)
    }

    /// An agent carries out a command. `None` if it refuses it for its term, or is killed.
    pub(super) fn execute(
        &self,
        state: &mut State,
        number: Number,
        term: u64,
        command: &Command,
        killed_after: Killed,
        story: &mut Story,
    ) -> Option<Reply> {
        let order = Order::Command(command.clone());
        let Some(outcome) = self.carry_out(state, number, term, order, killed_after) else {
            story.killed(command);
            return None;
        };
        if let Outcome::Fenced { term: seen } = outcome {
            story.say(|| format!("it refuses term {term}, because it has seen {seen}"));
            return None;
        }
        let reply = outcome.reply_to(command.reference())?;
        story.command(command, &reply);
        Some(reply)
    }

    /// A controller learns that the previous connection of a router is gone.
    pub(super) fn notice(
        &self,
        state: &mut State,
        router: Number,
        story: &mut Story,
    ) -> Option<()> {
        let keeps = self.scenario.late_replies;
        let old = state.routers[router].old.as_mut()?;
        let (controller, id) = (old.controller, old.id);
        old.change(|old| {
            old.dead = true;
            if !keeps {
                old.replies.clear();
            }
        });
        Self::forget_empty(state, router);
        let event = Event::RouterDisconnected {
            router: self.name(router),
            connection: ConnectionId(id),
        };
        self.event(state, controller, event, None, story)
    }

    /// A controller takes a message of a router's connection.
    pub(super) fn message(
        &self,
        state: &mut State,
        (controller, router, id): (ControllerNumber, Number, u64),
        message: Message,
        interruption: Interruption,
        story: &mut Story,
    ) -> Option<()> {
        match message {
            Message::Reply(reply) => {
                self.reply(state, (controller, router, id), &reply, interruption, story)
            }
            Message::Announced(announced) => {
                story.say(|| format!("a VM was heard: {}", announced.mac));
                let event = Event::Announced {
                    router: self.name(router),
                    connection: ConnectionId(id),
                    announced,
                };
                self.event(state, controller, event, interruption, story)
            }
            Message::Welcomed => {
                // The store says first whether the leadership lasts.
                if state.controllers[controller].term != state.term {
                    story.say(|| {
                        "the store says that another controller leads; it stops".to_owned()
                    });
                    Self::stop(state, controller);
                    return interruption.is_none().then_some(());
                }
                let link = state.routers[router].link.as_mut();
                let link = link.filter(|link| link.controller == controller && link.id == id);
                let report = link?.change(|link| link.report.take())?;
                let event = Event::RouterConnected {
                    router: self.name(router),
                    connection: ConnectionId(id),
                    report,
                };
                self.event(state, controller, event, interruption, story)
            }
        }
    }

    fn reply(
        &self,
        state: &mut State,
        (controller, router, id): (ControllerNumber, Number, u64),
        reply: &Reply,
        interruption: Interruption,
        story: &mut Story,
    ) -> Option<()> {
        story.reply(reply);
        let stands_for_all = self.stands_for_all(reply);
        let event = |router: Number, id: u64| Event::Reply {
            router: self.name(router),
            connection: ConnectionId(id),
            reply: reply.clone(),
        };
        self.event(state, controller, event(router, id), interruption, story)?;
        if stands_for_all {
            for other in 0..state.routers.len() {
                let link = state.routers[other].link.as_ref();
                if let Some(id) = link
                    .filter(|it| it.controller == controller)
                    .map(|it| it.id)
                    && other != router
                {
                    self.event(state, controller, event(other, id), None, story);
                }
            }
        }
        Some(())
    }

    pub(super) fn request(
        &self,
        state: &mut State,
        request: Request,
        interruption: Interruption,
        story: &mut Story,
    ) -> Option<()> {
        let now = state.now;
        let controller = state.leader;
        let machine = state.controllers[controller].machine.as_mut()?;
        match machine.change(|machine| machine.request(now, request)) {
            Ok((_, actions)) => self.run(state, controller, actions, interruption, story),
            Err(refusal) => {
                story.say(|| format!("it is refused: {refusal}"));
                interruption.is_none().then_some(())
            }
        }
    }

    pub(super) fn event(
        &self,
        state: &mut State,
        controller: ControllerNumber,
        event: Event,
        interruption: Interruption,
        story: &mut Story,
    ) -> Option<()> {
        let now = state.now;
        let machine = state.controllers[controller].machine.as_mut()?;
        let actions = machine.change(|machine| machine.handle(now, event));
        self.run(state, controller, actions, interruption, story)
    }

    /// Executes a call's actions.
    fn run(
        &self,
        state: &mut State,
        controller: ControllerNumber,
        mut actions: Vec<Action>,
        interruption: Interruption,
        story: &mut Story,
    ) -> Option<()> {
        self.corrupt_actions(&mut actions);
        let mut forged = Vec::new();
        if let Some(after) = interruption {
            state.left.crashes = state.left.crashes.checked_sub(1)?;
            let after = usize::from(after);
            let matters =
                |action: &Action| matches!(action, Action::Store(_) | Action::Send { .. });
            if !actions.get(after..)?.iter().any(matters) {
                return None;
            }
            actions.truncate(after);
        }
        for action in actions {
            match action {
                Action::Store(ops) => {
                    let leads = state.controllers[controller].term == state.term;
                    if !leads && self.plant != Some(Plant::StoreUnguarded) {
                        story.say(|| {
                            "the store refuses it: another controller leads; it stops".to_owned()
                        });
                        Self::stop(state, controller);
                        return Some(());
                    }
                    story.store(&ops);
                    if state.violation.is_none() {
                        state.violation = self.check_store(state, &ops);
                    }
                    state
                        .store
                        .change(|store| ops.into_iter().for_each(|op| store.apply(op)));
                }
                Action::Send {
                    router,
                    connection,
                    mut command,
                } => {
                    let number = self.fabric.number(&router)?;
                    let (sent, reply) = self.corrupt_command(state, number, &mut command);
                    story.send(&router, &command);
                    let link = state.routers[number].link.as_mut();
                    // The fabric's pools never change, and nothing else depends on them.
                    let matters = sent && !matches!(command, Command::SetPools { .. });
                    if let Some(link) =
                        link.filter(|link| link.controller == controller && link.id == connection.0)
                        && matters
                    {
                        link.change(|link| link.commands.push_back(command));
                    }
                    forged.extend(reply.map(|reply| (number, connection.0, reply)));
                }
                Action::Disconnect {
                    router, connection, ..
                } => {
                    let number = self.fabric.number(&router)?;
                    let router = &mut state.routers[number];
                    for link in [&mut router.link, &mut router.old] {
                        if let Some(link) = link
                            && link.controller == controller
                            && link.id == connection.0
                        {
                            link.change(|link| link.dead = true);
                        }
                    }
                    Self::forget_empty(state, number);
                }
                Action::Update(view) => {
                    if view.phase.is_success() {
                        state.told.insert(view.id, true);
                    } else if view.phase == Phase::Aborted {
                        state.told.insert(view.id, false);
                    }
                }
                Action::Wake(at) => state.controllers[controller].wake = Some(at),
            }
        }
        if interruption.is_some() {
            story.say(|| "and is killed".to_owned());
            Self::stop(state, controller);
            return Some(());
        }
        for (router, id, reply) in forged {
            self.reply(state, (controller, router, id), &reply, None, story);
        }
        Some(())
    }
}

/// The VMs that a router tells a controller of.
pub(super) fn announced(tables: &Tables) -> impl Iterator<Item = Announced> {
    tables.heard().into_iter().map(|heard| Announced {
        id: heard.id,
        mac: heard.mac,
        at: Timestamp(heard.at),
    })
}

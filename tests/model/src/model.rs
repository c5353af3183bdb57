//! The model: which steps are possible in a state, and what each leads to.

mod control;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use natmig::coordinator::{
    Command, Config, Coordinator, Event, Phase, Reply, Request, Stored, Timestamp,
};
use stateright::{Model, Property};

use crate::{
    check::{Hop, Invariant, Violation, Whereabouts},
    fabric::{Fabric, Number},
    packet::{self, Arrival},
    plant::Plant,
    scenario::Scenario,
    shared::Shared,
    state::{Aim, Budget, Controller, Flight, Message, Router, State, Step},
    story::Story,
    tables::Tables,
};

/// A controller is killed after at most this many actions of a call.
const INTERRUPTIONS: u8 = 3;

/// A scenario, and a bug in it.
pub struct FabricModel {
    /// The fabric.
    pub fabric: Fabric,
    /// What is to happen on it.
    pub scenario: Scenario,
    /// The bug, if there is one.
    pub plant: Option<Plant>,
    /// When exploring ends.
    pub until: Option<Until>,
    config: Config,
    known: Mutex<Known>,
}

/// A time from which on states lead nowhere, as long as the checker explores.
#[derive(Clone, Debug)]
pub struct Until {
    /// The time.
    pub at: Instant,
    /// The checker does not explore any longer: it tells what it found.
    pub explored: Arc<AtomicBool>,
}

impl Until {
    fn is_over(&self) -> bool {
        Instant::now() > self.at && !self.explored.load(Ordering::Relaxed)
    }
}

/// What is known of packets, by the routers' tables.
type Known = HashMap<u64, Option<Violation>>;

impl FabricModel {
    /// A scenario with a bug, or without one.
    pub fn new(scenario: Scenario, plant: Option<Plant>) -> Self {
        Self {
            fabric: scenario.fabric(),
            scenario,
            plant,
            until: None,
            config: Config::default(),
            known: Mutex::default(),
        }
    }

    /// Looks at what is known of packets.
    pub(crate) fn memo<R>(&self, look: impl FnOnce(&mut Known) -> R) -> R {
        look(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state from which everything starts; a bug has not shown before.
    fn initial(&self) -> State {
        let (machine, _) = Coordinator::restore(self.config, Stored::default(), START);
        let leader = Controller {
            machine: Some(Shared::new(machine)),
            term: 1,
            wake: None,
        };
        let standby = Controller {
            machine: None,
            term: 0,
            wake: None,
        };
        let router = |number: Number| Router {
            tables: Shared::new(Tables::new(self.fabric.places[number].segments.clone())),
            term: 0,
            booting: true,
            link: None,
            old: None,
            connections: 0,
        };
        let mut state = State {
            store: Shared::new(Stored::default()),
            term: 1,
            leader: 0,
            controllers: vec![leader, standby],
            routers: (0..self.fabric.places.len()).map(router).collect(),
            now: START,
            left: Budget::default(),
            next_request: 0,
            told: BTreeMap::new(),
            flight: None,
            violation: None,
        };
        let set_up = [
            Request::ApplyTopology(self.fabric.topology.clone()),
            Request::AddVms(self.fabric.vms.clone()),
        ];
        for request in set_up.into_iter().chain(self.scenario.before.clone()) {
            self.request(&mut state, request, None, &mut Story::untold());
            self.settle(&mut state);
        }
        state.told.clear();
        state.left = self.scenario.budget;
        state
    }

    /// Goes on until nothing is under way any more.
    fn settle(&self, state: &mut State) {
        for _ in 0..10_000 {
            let step = (0..state.routers.len()).find_map(|router| Self::next_of(state, router));
            let tick = state.controllers[state.leader]
                .wake
                .map(|_| Step::Tick(state.leader, None));
            let Some(step) = step.or(tick) else {
                return;
            };
            if let Some(next) = self.take(state, step, &mut Story::untold()) {
                *state = next;
            }
        }
    }

    /// What a router and its connection do next if nothing goes wrong.
    fn next_of(state: &State, number: Number) -> Option<Step> {
        let router = &state.routers[number];
        match &router.link {
            None => Some(Step::Connect(number, state.leader)),
            Some(link) if !link.commands.is_empty() => Some(Step::Command(number, None)),
            Some(link) if !link.replies.is_empty() => Some(Step::Reply(number, None)),
            Some(link) if link.dead => Some(Step::Connect(number, state.leader)),
            Some(_) => None,
        }
    }

    /// Whether nothing is under way between controllers and routers.
    fn is_quiet(state: &State) -> bool {
        state.controllers[state.leader].machine.is_some()
            && (0..state.routers.len()).all(|router| {
                Self::next_of(state, router).is_none()
                    && state.routers[router].old.is_none()
                    && state.routers[router]
                        .link
                        .as_ref()
                        .is_some_and(|link| link.term == state.term)
            })
    }

    /// Whether nothing is going to happen unless something goes wrong.
    pub(crate) fn is_at_rest(&self, state: &State) -> bool {
        Self::is_quiet(state)
            && state.controllers[state.leader].wake.is_none()
            && !state.routers.iter().any(|router| self.is_unheard(router))
            && state.next_request == self.scenario.requests.len()
    }

    /// Whether a router waits for a VM to speak.
    fn is_unheard(&self, router: &Router) -> bool {
        let mut vms = self.fabric.vms.iter();
        vms.any(|vm| matches!(router.tables.awaits(vm.mac), Some((_, false))))
    }

    /// Whether a deadline may pass. Packets do not live as long as old locators do.
    fn may_tick(state: &State) -> bool {
        let draining = state
            .store
            .migrations
            .iter()
            .any(|it| it.phase == Phase::Draining)
            || !state.store.quarantined.is_empty();
        (Self::is_quiet(state) || state.left.deadlines > 0) && !(draining && state.flight.is_some())
    }

    /// A step's outcome; `None` if it is not possible or changes nothing.
    pub(crate) fn take(&self, state: &State, step: Step, story: &mut Story) -> Option<State> {
        let mut next = state.clone();
        story.begin(self, state, step);
        self.perform(&mut next, step, story)?;
        if next.violation.is_none() {
            next.violation = self.check(&next);
        }
        let whereabouts = next.flight.is_some().then(|| self.whereabouts(&next));
        if let Some(flight) = &mut next.flight
            && self.is_left_behind(flight, whereabouts.as_deref().unwrap_or_default())
        {
            flight.aim.set_early();
        }
        if let Some(flight) = &mut next.flight
            && let Aim::Vm { vm, allowed, .. } = &mut flight.aim
        {
            let all = whereabouts.into_iter().flatten();
            allowed.extend(all.filter(|it| it.vm == *vm).flat_map(|it| it.allowed));
        }
        Some(next)
    }

    /// Whether a packet is still on the access link of the place that its sender has left.
    fn is_left_behind(&self, flight: &Flight, all: &[Whereabouts]) -> bool {
        let Arrival {
            router,
            ingress,
            frame,
        } = &flight.arrival;
        let source = packet::source(frame);
        let sender = all.iter().find(|it| self.identity(it.vm) == Some(source));
        let segment = self.fabric.segment(*router, *ingress);
        segment.is_some() && sender.is_some_and(|sender| Some(&sender.runs) != segment)
    }

    #[expect(clippy::too_many_lines, reason = "one arm per step")]
    fn perform(&self, state: &mut State, step: Step, story: &mut Story) -> Option<()> {
        match step {
            Step::Start => {
                state.term += 1;
                self.start(state, state.leader, story)
            }
            Step::Elect => {
                state.left.elections = state.left.elections.checked_sub(1)?;
                state.leader = 1 - state.leader;
                state.term += 1;
                Self::end_links(state, state.leader);
                self.start(state, state.leader, story)
            }
            Step::Crash(controller) => {
                state.left.crashes = state.left.crashes.checked_sub(1)?;
                Self::stop(state, controller);
                Some(())
            }
            Step::Request(interruption) => {
                let request = self.scenario.requests.get(state.next_request)?.clone();
                state.next_request += 1;
                self.request(state, request, interruption, story)
            }
            Step::Connect(router, controller) => {
                if controller != state.leader {
                    state.left.strays = state.left.strays.checked_sub(1)?;
                }
                self.connect(state, router, controller, story)
            }
            Step::Speak(vm, router) => self.speak(state, vm, router),
            Step::Command(router, killed) => {
                if killed.is_some() {
                    state.left.breaks = state.left.breaks.checked_sub(1)?;
                }
                let link = state.routers[router].link.as_mut()?;
                let (command, term) = link.change(|link| (link.commands.pop_front(), link.term));
                let reply = self.execute(state, router, term, &command?, killed, story);
                let link = state.routers[router].link.as_mut()?;
                match reply {
                    // The controller ignores it.
                    Some(Reply::Attached) => {}
                    Some(reply) if !link.dead => {
                        link.change(|link| link.replies.push_back(Message::Reply(reply)));
                    }
                    Some(_) => {}
                    None => self.leave(state, router),
                }
                Some(())
            }
            Step::StaleCommand(router) => {
                let old = state.routers[router].old.as_mut()?;
                let (command, term) = old.change(|old| (old.commands.pop_front(), old.term));
                let before = state.routers[router].tables.digest();
                self.execute(state, router, term, &command?, None, story);
                let known = state.routers[router].term;
                if term < known && before != state.routers[router].tables.digest() {
                    let name = self.name(router);
                    state.violation = Some(Violation::new(
                        Invariant::Fenced,
                        format!(
                            "{name} has seen term {known}, and a command of term {term} changes it"
                        ),
                    ));
                }
                Self::forget_empty(state, router);
                Some(())
            }
            Step::Reply(router, interruption) => {
                let link = state.routers[router].link.as_mut()?;
                let (controller, id) = (link.controller, link.id);
                let message = link.change(|link| link.replies.pop_front())?;
                self.message(
                    state,
                    (controller, router, id),
                    message,
                    interruption,
                    story,
                )
            }
            Step::StaleReply(router) => {
                let present = state.routers[router].link.as_ref().map(|link| link.id);
                let old = state.routers[router].old.as_mut()?;
                let (controller, id) = (old.controller, old.id);
                let message = old.change(|old| old.replies.pop_front())?;
                let id = match (self.plant, present) {
                    (Some(Plant::StaleReplyAccepted), Some(present)) => present,
                    (_, _) => id,
                };
                Self::forget_empty(state, router);
                if message == Message::Welcomed {
                    return Some(());
                }
                self.message(state, (controller, router, id), message, None, story)
            }
            Step::Notice(router) => self.notice(state, router, story),
            Step::Tick(controller, interruption) => {
                if !Self::is_quiet(state) {
                    state.left.deadlines = state.left.deadlines.checked_sub(1)?;
                }
                let wake = state.controllers[controller].wake.take()?;
                state.now = state.now.max(wake);
                self.event(state, controller, Event::Tick, interruption, story)
            }
            Step::Break(router) => {
                if state.routers[router].link.as_ref()?.term == state.term {
                    state.left.breaks = state.left.breaks.checked_sub(1)?;
                }
                self.leave(state, router);
                Some(())
            }
            Step::Reboot(router) => {
                state.left.reboots = state.left.reboots.checked_sub(1)?;
                self.leave(state, router);
                let segments = self.fabric.places[router].segments.clone();
                state.routers[router].tables = Shared::new(Tables::new(segments));
                state.routers[router].booting = true;
                if state
                    .flight
                    .as_ref()
                    .is_some_and(|flight| flight.arrival.router == router)
                {
                    state.flight = None;
                }
                Some(())
            }
            Step::Send(number) => {
                state.left.packets = state.left.packets.checked_sub(1)?;
                let packets = self.packets(state);
                let (arrival, aim) = packets.into_iter().nth(usize::from(number))?;
                story.say(|| format!("a packet is sent: {}", self.place_of(&arrival)));
                state.flight = Some(Flight {
                    arrival,
                    aim,
                    hops: 0,
                });
                Some(())
            }
            Step::Hop(next) => self.fly(state, next, story),
        }
    }

    /// A VM speaks at a router that awaits it: the packet logic hears it.
    fn speak(&self, state: &mut State, vm: usize, number: Number) -> Option<()> {
        let now = state.now.0;
        let mac = self.fabric.vms[vm].mac;
        let (ifindex, _) = state.routers[number].tables.awaits(mac)?;
        let segment = self.fabric.segment(number, ifindex)?;
        let peer = self.fabric.host(segment)?;
        let gateway = self.fabric.places[number].interfaces[&ifindex].mac;
        let arrival = Arrival {
            router: number,
            ingress: ifindex,
            frame: packet::frame(self.identity(vm)?, peer, (mac.0, gateway)),
        };
        let router = &mut state.routers[number];
        if !packet::is_heard(&self.fabric, &router.tables, &arrival) {
            return None;
        }
        router.tables.change(|tables| tables.hear(mac, now));
        let heard = control::announced(&router.tables).find(|heard| heard.mac == mac)?;
        if let Some(link) = router.link.as_mut().filter(|link| !link.dead) {
            link.change(|link| link.replies.push_back(Message::Announced(heard)));
        }
        Some(())
    }

    fn fly(&self, state: &mut State, next: Number, story: &mut Story) -> Option<()> {
        let flight = state.flight.take()?;
        match self.hop(state, &flight.arrival, &flight.aim, flight.hops) {
            Hop::Arrived => story.say(|| "it arrives".to_owned()),
            Hop::Wrong(violation) => state.violation = Some(violation),
            Hop::Onward(frame) if Self::is_up(state, next) => {
                let arrival = self.onward(next, &frame);
                story.say(|| format!("it goes on: {}", self.place_of(&arrival)));
                state.flight = Some(Flight {
                    arrival,
                    aim: flight.aim,
                    hops: flight.hops + 1,
                });
            }
            Hop::Onward(_) => {}
        }
        Some(())
    }
}

/// Whether an agent may be killed in the middle of a command.
fn has_two_parts(command: Option<&Command>) -> bool {
    matches!(
        command,
        Some(Command::Prepare {
            await_announcements: true,
            ..
        })
    )
}

const START: Timestamp = Timestamp(1_000_000_000);

impl Model for FabricModel {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![Self::new(self.scenario.clone(), None).initial()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.violation.is_some() || self.until.as_ref().is_some_and(Until::is_over) {
            return;
        }
        let left = state.left;
        // Each call of a controller may end in the middle.
        let interruptions = || {
            let killed = (1..=INTERRUPTIONS).filter(|_| left.crashes > 0).map(Some);
            std::iter::once(None).chain(killed)
        };
        if state.controllers[state.leader].machine.is_none() {
            steps.push(Step::Start);
        }
        if left.elections > 0 {
            steps.push(Step::Elect);
        }
        if state.next_request < self.scenario.requests.len() {
            steps.extend(interruptions().map(Step::Request));
        }
        for (number, controller) in state.controllers.iter().enumerate() {
            if controller.machine.is_none() {
                continue;
            }
            if left.crashes > 0 {
                steps.push(Step::Crash(number));
            }
            if controller.wake.is_some() && Self::may_tick(state) {
                steps.extend(interruptions().map(|it| Step::Tick(number, it)));
            }
        }
        for (number, router) in state.routers.iter().enumerate() {
            let connects = || {
                let lives = |it: &usize| {
                    let dialled = *it == state.leader || left.strays > 0;
                    dialled && state.controllers[*it].machine.is_some()
                };
                let live = (0..state.controllers.len()).filter(lives);
                live.map(|controller| Step::Connect(number, controller))
            };
            match &router.link {
                None => steps.extend(connects()),
                Some(link) => {
                    if link.dead {
                        steps.extend(connects());
                    } else if left.breaks > 0 || link.term < state.term {
                        steps.push(Step::Break(number));
                    }
                    if self.may_take(state, number, link.commands.front()) {
                        steps.push(Step::Command(number, None));
                        if left.breaks > 0 && has_two_parts(link.commands.front()) {
                            steps.push(Step::Command(number, Some(1)));
                        }
                    }
                    if !link.replies.is_empty() {
                        steps.extend(interruptions().map(|it| Step::Reply(number, it)));
                    }
                }
            }
            if let Some(old) = &router.old {
                if !old.replies.is_empty() {
                    steps.push(Step::StaleReply(number));
                }
                if !old.dead {
                    steps.push(Step::Notice(number));
                }
                if !old.commands.is_empty() && router.term > old.term {
                    steps.push(Step::StaleCommand(number));
                }
            }
            if left.reboots > 0 {
                steps.push(Step::Reboot(number));
            }
            for (vm, known) in self.fabric.vms.iter().enumerate() {
                if let Some((_, false)) = router.tables.awaits(known.mac) {
                    steps.push(Step::Speak(vm, number));
                }
            }
        }
        if let Some(flight) = &state.flight {
            match self.hop(state, &flight.arrival, &flight.aim, flight.hops) {
                Hop::Onward(frame) => {
                    let next = self
                        .fabric
                        .next(flight.arrival.router, packet::destination(&frame));
                    steps.extend(next.into_iter().map(Step::Hop));
                }
                Hop::Arrived | Hop::Wrong(_) => steps.push(Step::Hop(flight.arrival.router)),
            }
        } else if left.packets > 0 {
            let count = self.packets(state).len();
            steps.extend(
                (0..count)
                    .filter_map(|it| u8::try_from(it).ok())
                    .map(Step::Send),
            );
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        self.take(state, step, &mut Story::untold())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! never {
            ($invariant:expr) => {
                Property::<Self>::always($invariant.name(), |_, state: &State| {
                    state
                        .violation
                        .as_ref()
                        .is_none_or(|it| it.invariant != $invariant)
                })
            };
        }
        vec![
            never!(Invariant::NoLeak),
            never!(Invariant::NoBlackhole),
            never!(Invariant::NoMisdelivery),
            never!(Invariant::NoLoop),
            never!(Invariant::Atomic),
            never!(Invariant::Durable),
            never!(Invariant::Fenced),
            never!(Invariant::Convergent),
        ]
    }
}

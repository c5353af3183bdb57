//! Tells a sequence of steps in operators' words.

use natmig::{
    coordinator::{Command, Failure, Reply, Request, StoreOp},
    names::RouterName,
};

use crate::{
    model::FabricModel,
    state::{State, Step},
};

/// What happens in a step, if somebody wants to know.
pub struct Story {
    lines: Option<Vec<String>>,
}

impl Story {
    /// Nobody wants to know.
    pub fn untold() -> Self {
        Self { lines: None }
    }

    /// To be told.
    pub fn told() -> Self {
        Self {
            lines: Some(Vec::new()),
        }
    }

    /// What was said: first what happens, then what follows.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }

    /// Says something.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    /// A step begins.
    pub fn begin(&mut self, model: &FabricModel, state: &State, step: Step) {
        self.say(|| {
            let name = |router: usize| model.fabric.places[router].name.to_string();
            let leader = state.leader + 1;
            match step {
                Step::Start => format!("controller {leader} starts"),
                Step::Elect => format!("controller {} is elected", 2 - state.leader),
                Step::Crash(it) => format!("controller {} is killed", it + 1),
                Step::Request(_) => {
                    let request = model.scenario.requests.get(state.next_request);
                    let request = request.map(describe_request).unwrap_or_default();
                    format!("controller {leader} is asked to {request}")
                }
                Step::Connect(it, controller) => {
                    format!("{} connects to controller {}", name(it), controller + 1)
                }
                Step::Speak(vm, it) => {
                    let vm = &model.fabric.vms[vm].name;
                    format!("{} hears {vm}, which runs at its new place", name(it))
                }
                Step::Command(it, _) => format!("{}'s agent takes its next command", name(it)),
                Step::StaleCommand(it) => {
                    format!("{} gets a late command of an earlier leader", name(it))
                }
                Step::Reply(it, _) => {
                    let link = state.routers[it].link.as_ref();
                    let controller = link.map_or(leader, |link| link.controller + 1);
                    format!("controller {controller} hears from {}", name(it))
                }
                Step::StaleReply(it) => {
                    let old = state.routers[it].old.as_ref();
                    let controller = old.map_or(leader, |old| old.controller + 1);
                    format!(
                        "controller {controller} hears from {}, on its previous connection",
                        name(it)
                    )
                }
                Step::Notice(it) => {
                    format!("the end of {}'s previous connection is noticed", name(it))
                }
                Step::Tick(it, _) => format!("a deadline of controller {} passes", it + 1),
                Step::Break(it) => format!("{}'s connection breaks", name(it)),
                Step::Reboot(it) => format!("{} reboots", name(it)),
                Step::Send(_) => "a host sends".to_owned(),
                Step::Hop(_) => {
                    let flight = state.flight.as_ref();
                    let place = flight
                        .map(|it| model.place_of(&it.arrival))
                        .unwrap_or_default();
                    format!("the packet {place} is processed")
                }
            }
        });
    }

    /// A command was executed.
    pub fn command(&mut self, command: &Command, reply: &Reply) {
        self.say(|| {
            format!(
                "it is told: {}; it answers: {}",
                describe(command),
                describe_reply(reply)
            )
        });
    }

    /// The agent is killed while it carries out a command.
    pub fn killed(&mut self, command: &Command) {
        self.say(|| format!("it is told: {}; and is killed meanwhile", describe(command)));
    }

    /// A reply arrives.
    pub fn reply(&mut self, reply: &Reply) {
        self.say(|| format!("the answer: {}", describe_reply(reply)));
    }

    /// A command is sent.
    pub fn send(&mut self, router: &RouterName, command: &Command) {
        self.say(|| format!("sends {router}: {}", describe(command)));
    }

    /// Something is stored.
    pub fn store(&mut self, ops: &[StoreOp]) {
        for op in ops {
            if let StoreOp::PutMigration(record) = op {
                self.say(|| format!("stores: migration {} is {}", record.id, record.phase));
            } else if let StoreOp::PutVm(state) = op {
                self.say(|| format!("stores: {} is in {}", state.vm.name, state.segment()));
            } else if let StoreOp::DeleteQuarantined(locator) = op {
                self.say(|| format!("stores: {locator} may be given out again"));
            }
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "no scenario asks for anything else"
)]
fn describe_request(request: &Request) -> String {
    match request {
        Request::Migrate(request) => {
            let moves = request.moves.iter();
            let moves: Vec<_> = moves.map(|(vm, to)| format!("{vm} to {to}")).collect();
            format!("migrate {}", moves.join(", "))
        }
        Request::Abort(id) => format!("abort migration {id}"),
        Request::Activate(id) => format!("activate migration {id}"),
        other => format!("{other:?}"),
    }
}

fn describe(command: &Command) -> String {
    match command {
        Command::SetPools { .. } => "the locator pools".to_owned(),
        Command::Attach => "attach".to_owned(),
        Command::Prepare { id, .. } => format!("prepare migration {id}"),
        Command::Commit { id } => format!("commit migration {id}"),
        Command::Abort { id } => format!("abort migration {id}"),
        Command::Fold { id } => format!("fold migration {id}"),
        Command::Retire { id, addresses } => {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            format!("retire {} of migration {id}", addresses.join(", "))
        }
        Command::Replace { parts, rules, .. } => {
            format!("{} addresses for {parts} of its table", rules.len())
        }
    }
}

fn describe_reply(reply: &Reply) -> String {
    match reply {
        Reply::Prepared(id) => format!("migration {id} is prepared"),
        Reply::Committed { id, .. } => format!("migration {id} is committed"),
        Reply::Aborted(id) => format!("migration {id} is aborted"),
        Reply::Folded(id) => format!("migration {id} is folded"),
        Reply::Retired(id) => format!("migration {id} is retired"),
        Reply::Replaced(_) => "the table is replaced".to_owned(),
        Reply::PoolsSet | Reply::Attached => "done".to_owned(),
        Reply::Failed { failure, .. } => match failure {
            Failure::UnknownTransaction => "no such migration is held".to_owned(),
            Failure::Other(reason) => format!("refused: {reason}"),
        },
    }
}

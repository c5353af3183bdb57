//! What a guest's migration needs of natmig, from what the guest's QEMU process says.
//!
//! One process, one guest, one host in one segment. A process that waits for a guest
//! (`-incoming`) is the destination of a migration; one that runs a guest becomes the source of one
//! when QEMU begins to copy memory. What is needed is a level, not an edge: it stands until it is
//! fulfilled or something else is needed, so that a controller that is away for a while misses
//! nothing.
//!
//! Invariant: whatever QEMU says, and however often, an arriving guest is activated only after it
//! runs here, and a migration is aborted only while its guest cannot run at the destination.

use serde::Serialize;

use super::{
    Way,
    qmp::{Event, MigrationStatus, RunState, Status},
};

/// What the process is to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Waits for the guest.
    Destination,
    /// Has the guest, which stays.
    Host,
    /// Has the guest, which is about to leave.
    Source,
    /// Had the guest; it runs elsewhere.
    Former,
    /// Waited for a guest that did not come.
    Empty,
}

/// What the migration of the guest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It is to be announced, so that the routers prepare.
    Announce(Way),
    /// It is to take effect: the guest is there.
    Activate(Way),
    /// It is to be given up, for this reason.
    Abort(Way, &'static str),
}

/// A guest and its QEMU process.
#[derive(Debug, Default)]
pub struct Guest {
    side: Option<Side>,
    need: Option<Need>,
}

impl Guest {
    /// What the process is, if one was seen.
    pub fn side(&self) -> Option<Side> {
        self.side
    }

    /// What stands to be done.
    pub fn need(&self) -> Option<Need> {
        self.need
    }

    /// What stood to be done is done.
    pub fn fulfilled(&mut self) {
        self.need = None;
    }

    fn becomes(&mut self, side: Side, need: Option<Need>) {
        self.side = Some(side);
        if need.is_some() {
            self.need = need;
        }
    }

    /// Takes note of the state in which a process is met, for the first time or again.
    pub fn meet(&mut self, status: Status) {
        use MigrationStatus::{Completed, Ended, Going, PostCopy};
        let before = self.side;
        // Only the source counts what it sent.
        let arrived = !status.counted
            && matches!(
                status.migration,
                Some(MigrationStatus::Completed | MigrationStatus::PostCopy)
            );
        match (status.run, status.migration) {
            (RunState::InMigrate, Some(Ended)) => self.becomes(
                Side::Empty,
                (before == Some(Side::Destination))
                    .then_some(Need::Abort(Way::Arriving, "QEMU's migration failed")),
            ),
            (RunState::InMigrate, _) => self.becomes(
                Side::Destination,
                (before != Some(Side::Destination)).then_some(Need::Announce(Way::Arriving)),
            ),
            // The memory is here, but the guest waits for `cont`.
            (RunState::Paused, _) if arrived && before != Some(Side::Host) => self.becomes(
                Side::Destination,
                (before != Some(Side::Destination)).then_some(Need::Announce(Way::Arriving)),
            ),
            (RunState::Running, _) if arrived => {
                self.becomes(Side::Host, Some(Need::Activate(Way::Arriving)));
            }
            (RunState::PostMigrate, _) => {
                let need = Need::Activate(Way::Leaving);
                self.becomes(Side::Former, (before != Some(Side::Former)).then_some(need));
            }
            (_, Some(Going | PostCopy)) => self.becomes(
                Side::Source,
                (before != Some(Side::Source)).then_some(Need::Announce(Way::Leaving)),
            ),
            (_, Some(Ended)) if before == Some(Side::Source) => self.becomes(
                Side::Host,
                Some(Need::Abort(Way::Leaving, "QEMU's migration failed")),
            ),
            (_, None | Some(Completed | Ended)) => {
                let need = (before == Some(Side::Destination)).then_some(Need::Abort(
                    Way::Arriving,
                    "QEMU ended before its guest ran",
                ));
                self.becomes(Side::Host, need);
            }
        }
    }

    /// Takes note of an event.
    pub fn hear(&mut self, event: Event) {
        use MigrationStatus::{Completed, Ended, Going};
        match (self.side, event) {
            (Some(Side::Destination), Event::Resume) => {
                self.becomes(Side::Host, Some(Need::Activate(Way::Arriving)));
            }
            (Some(Side::Destination), Event::Migration(Ended)) => self.becomes(
                Side::Empty,
                Some(Need::Abort(
                    Way::Arriving,
                    "QEMU's migration failed or was cancelled",
                )),
            ),
            // QEMU was told to stay, and to wait again.
            (Some(Side::Empty), Event::Migration(Going)) => {
                self.becomes(Side::Destination, Some(Need::Announce(Way::Arriving)));
            }
            (Some(Side::Host | Side::Former), Event::Migration(Going)) => {
                self.becomes(Side::Source, Some(Need::Announce(Way::Leaving)));
            }
            (Some(Side::Source), Event::Migration(Completed)) => {
                self.becomes(Side::Former, Some(Need::Activate(Way::Leaving)));
            }
            (Some(Side::Source), Event::Migration(Ended)) => self.becomes(
                Side::Host,
                Some(Need::Abort(
                    Way::Leaving,
                    "QEMU's migration failed or was cancelled",
                )),
            ),
            // Somebody took the guest back after it was sent.
            (Some(Side::Former), Event::Resume) => self.becomes(
                Side::Host,
                Some(Need::Abort(Way::Leaving, "the guest goes on at its source")),
            ),
            _ => {}
        }
    }

    /// The process has ended.
    pub fn ended(&mut self) {
        if self.side == Some(Side::Destination) {
            self.need = Some(Need::Abort(
                Way::Arriving,
                "QEMU ended before its guest ran",
            ));
        }
        // A source that ends without a word may have sent its guest, or not: the destination knows.
        if matches!(self.need, Some(Need::Announce(_))) {
            self.need = None;
        }
        self.side = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use MigrationStatus::{Completed, Ended, Going, PostCopy};

    fn status(run: RunState, migration: Option<MigrationStatus>) -> Status {
        Status {
            run,
            migration,
            counted: false,
        }
    }

    /// What is needed after each step, fulfilled at once.
    fn needs(guest: &mut Guest, events: &[Event]) -> Vec<Option<Need>> {
        let mut needs = Vec::new();
        for event in events {
            guest.hear(*event);
            needs.push(guest.need());
            guest.fulfilled();
        }
        needs
    }

    #[test]
    fn destination_announces_and_activates_once() {
        let mut guest = Guest::default();
        guest.meet(status(RunState::InMigrate, Some(Going)));
        assert_eq!(guest.need(), Some(Need::Announce(Way::Arriving)));
        guest.fulfilled();
        let said = [
            Event::Migration(Going),
            Event::Resume,
            Event::Migration(Completed),
            Event::Stop,
            Event::Resume,
        ];
        let activate = Some(Need::Activate(Way::Arriving));
        assert_eq!(needs(&mut guest, &said), [None, activate, None, None, None]);
        assert_eq!(guest.side(), Some(Side::Host));
    }

    #[test]
    fn source_announces_and_activates_or_aborts() {
        for (last, need, side) in [
            (Completed, Need::Activate(Way::Leaving), Side::Former),
            (
                Ended,
                Need::Abort(Way::Leaving, "QEMU's migration failed or was cancelled"),
                Side::Host,
            ),
        ] {
            let mut guest = Guest::default();
            guest.meet(status(RunState::Running, None));
            let said = [
                Event::Migration(Going),
                Event::Migration(Going),
                Event::Stop,
                Event::Migration(last),
            ];
            let announce = Some(Need::Announce(Way::Leaving));
            assert_eq!(needs(&mut guest, &said), [announce, None, None, Some(need)]);
            assert_eq!(guest.side(), Some(side));
        }
    }

    #[test]
    fn what_happened_unheard_is_made_up_for() {
        let arrived = status(RunState::Running, Some(Completed));
        for before in [None, Some(RunState::InMigrate)] {
            let mut guest = Guest::default();
            if let Some(run) = before {
                guest.meet(status(run, Some(Going)));
            }
            guest.meet(arrived);
            assert_eq!(guest.need(), Some(Need::Activate(Way::Arriving)));
        }
        let mut guest = Guest::default();
        guest.meet(status(RunState::Running, Some(Going)));
        guest.fulfilled();
        guest.meet(status(RunState::PostMigrate, Some(Completed)));
        assert_eq!(guest.need(), Some(Need::Activate(Way::Leaving)));
    }

    #[test]
    fn an_earlier_failure_means_nothing_to_whom_did_not_see_it() {
        let mut guest = Guest::default();
        guest.meet(status(RunState::Running, Some(Ended)));
        assert_eq!(guest.need(), None);
    }

    #[test]
    fn a_sender_that_took_its_guest_back_is_no_destination() {
        let mut guest = Guest::default();
        guest.meet(Status {
            counted: true,
            ..status(RunState::Running, Some(Completed))
        });
        assert_eq!((guest.side(), guest.need()), (Some(Side::Host), None));
    }

    #[test]
    fn destination_that_ends_early_aborts_and_a_source_leaves_it_open() {
        let mut guest = Guest::default();
        guest.meet(status(RunState::InMigrate, Some(Going)));
        guest.ended();
        assert!(matches!(guest.need(), Some(Need::Abort(Way::Arriving, _))));
        let mut guest = Guest::default();
        guest.meet(status(RunState::Running, Some(Going)));
        guest.ended();
        assert_eq!(guest.need(), None);
    }

    #[test]
    fn destination_that_stays_after_a_failure_waits_again() {
        let mut guest = Guest::default();
        guest.meet(status(RunState::InMigrate, Some(Going)));
        let said = [
            Event::Migration(Ended),
            Event::Migration(Going),
            Event::Resume,
        ];
        assert_eq!(
            needs(&mut guest, &said),
            [
                Some(Need::Abort(
                    Way::Arriving,
                    "QEMU's migration failed or was cancelled"
                )),
                Some(Need::Announce(Way::Arriving)),
                Some(Need::Activate(Way::Arriving)),
            ]
        );
    }

    #[test]
    fn paused_arrival_waits_for_the_guest_to_run() {
        let mut guest = Guest::default();
        guest.meet(status(RunState::Paused, Some(Completed)));
        assert_eq!(guest.need(), Some(Need::Announce(Way::Arriving)));
        guest.hear(Event::Resume);
        assert_eq!(guest.need(), Some(Need::Activate(Way::Arriving)));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Meet(RunState, Option<MigrationStatus>, bool),
        Hear(Event),
        End,
    }

    fn step() -> impl Strategy<Value = Step> {
        let migration = prop_oneof![Just(Going), Just(PostCopy), Just(Completed), Just(Ended)];
        let run = prop_oneof![
            Just(RunState::InMigrate),
            Just(RunState::Running),
            Just(RunState::Paused),
            Just(RunState::PostMigrate)
        ];
        let event = prop_oneof![
            Just(Event::Resume),
            Just(Event::Stop),
            migration.clone().prop_map(Event::Migration)
        ];
        prop_oneof![
            (run, proptest::option::of(migration), any::<bool>())
                .prop_map(|(run, status, counted)| Step::Meet(run, status, counted)),
            event.prop_map(Step::Hear),
            Just(Step::End),
        ]
    }

    proptest! {
        #[test]
        fn arrivals_are_activated_only_when_the_guest_runs(
            steps in proptest::collection::vec(step(), 1..30)
        ) {
            let mut guest = Guest::default();
            for step in steps {
                let before = guest.need();
                let side = guest.side();
                match step {
                    Step::Meet(run, migration, counted) => guest.meet(Status { run, migration, counted }),
                    Step::Hear(event) => guest.hear(event),
                    Step::End => guest.ended(),
                }
                if guest.need() == before {
                    continue;
                }
                let runs = matches!(step, Step::Hear(Event::Resume) | Step::Meet(RunState::Running, ..));
                match guest.need() {
                    Some(Need::Activate(Way::Arriving)) => prop_assert!(runs),
                    // Once it runs here, nothing that QEMU says can undo that.
                    Some(Need::Abort(Way::Arriving, _)) => {
                        prop_assert_eq!(side, Some(Side::Destination));
                    }
                    Some(_) | None => {}
                }
            }
        }
    }
}

//! The thread that keeps the tables of next hops: it reads the kernel's tables, follows their events,
//! and lets the heart beat while it has caught up with them.
//!
//! Invariant: whenever the program believes the routes, they are what the kernel said a moment ago.
//! What takes time (reading everything again, or having prefixes changed, which the writer of the
//! tables does) begins with a withdrawal, after which the program asks the kernel.

use std::{
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::mpsc::{Receiver, TryRecvError},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    super::{
        RouterError,
        netlink::{Change, Socket},
    },
    Message, PrefixRoute,
    fib::RouteId,
    follower::Follower,
    grains::Grain,
    heartbeat::{self, Heartbeat},
    mirror::Update,
    monitor::MonitorError,
    sets::Way,
    table::Table,
};

/// Pause after the kernel's tables could not be read.
const RETRY: Duration = Duration::from_millis(500);

/// Pause before routes that are not certain are looked at again.
const UNCERTAIN: Duration = Duration::from_millis(20);

/// What does not work.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Router(#[from] RouterError),
}

/// Has the routes of prefixes changed; `false` if nobody does that any longer.
pub(super) type Setter = Box<dyn FnMut(Vec<PrefixRoute>) -> bool + Send>;

/// The state of the thread.
pub(super) struct Keeper {
    pub(super) follower: Follower,
    /// For neighbours to keep.
    pub(super) socket: Socket,
    pub(super) table: Table,
    pub(super) heartbeat: Heartbeat,
    pub(super) set_routes: Setter,
    pub(super) messages: Receiver<Message>,
    pub(super) wake: UnixStream,
    pub(super) next_beat: Instant,
    pub(super) stopping: bool,
}

impl Keeper {
    /// Keeps the tables until it is told to stop; then the program asks the kernel.
    pub(super) fn run(mut self) {
        while !self.stopping {
            if let Err(error) = self.turn() {
                tracing::warn!(%error, "next hops are asked of the kernel until its tables have been read again");
                self.table.withdraw();
                self.follower.doubt();
                self.wait(RETRY, false);
            }
        }
        self.table.withdraw();
    }

    /// Does what there is to do, then waits for more.
    fn turn(&mut self) -> Result<(), KeeperError> {
        self.take_messages();
        if self.follower.knows_nothing() {
            self.table.withdraw();
        }
        if !self.follower.take_events()? {
            self.follow()?;
            return Ok(());
        }
        self.follower.read_again()?;
        self.follow()?;
        if Instant::now() >= self.next_beat {
            self.check_prefixes();
        }
        if !self.follower.is_certain() {
            self.table.withdraw();
            self.wait(UNCERTAIN, true);
            return Ok(());
        }
        if self.wait(Duration::ZERO, true) {
            // Something happened meanwhile.
            return Ok(());
        }
        if Instant::now() >= self.next_beat {
            self.beat()?;
        }
        let rest = self.next_beat.saturating_duration_since(Instant::now());
        self.wait(rest, true);
        Ok(())
    }

    fn beat(&mut self) -> Result<(), KeeperError> {
        self.heartbeat.beat(&self.table)?;
        self.next_beat = Instant::now() + heartbeat::INTERVAL;
        let freed = self.table.reclaim()?;
        self.follower.mirror.freed(&freed);
        Ok(())
    }

    /// Sleeps until something happens; whether it did.
    fn wait(&self, longest: Duration, events: bool) -> bool {
        let mut descriptors = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        if events {
            descriptors.push(PollFd::new(self.follower.as_fd(), PollFlags::POLLIN));
        }
        // Rounded up: a sleep of less than a millisecond is none.
        let longest =
            longest.saturating_add(Duration::from_micros(999) * u32::from(!longest.is_zero()));
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, timeout) {
            Ok(ready) => ready > 0,
            Err(nix::errno::Errno::EINTR) => true,
            Err(error) => {
                tracing::error!(%error, "cannot wait for events of rtnetlink");
                std::thread::sleep(RETRY);
                true
            }
        }
    }

    fn take_messages(&mut self) {
        let mut bytes = [0; 64];
        while matches!(std::io::Read::read(&mut self.wake, &mut bytes), Ok(count) if count > 0) {}
        loop {
            match self.messages.try_recv() {
                Ok(Message::Interfaces(interfaces)) => {
                    self.follower.set_interfaces(interfaces);
                }
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    /// Lets the tables follow what was read.
    fn follow(&mut self) -> Result<(), KeeperError> {
        let begun = Instant::now();
        let Update {
            routes,
            mut grains,
            unused,
            keep,
            let_go,
        } = self.follower.mirror.update();
        if routes.is_empty() && grains.is_empty() && unused.is_empty() {
            self.keep_neighbors(&keep, &let_go);
            return Ok(());
        }
        let counts = (routes.len(), grains.len());
        if !grains.is_empty() {
            self.table.withdraw();
        }
        for (id, hops) in routes {
            self.table.set_route(id, &hops)?;
        }
        self.table.leave_out_unseen(&mut grains);
        if !grains.is_empty() {
            self.change_prefixes(grains);
        }
        for id in unused {
            self.table.give_up(id);
        }
        self.keep_neighbors(&keep, &let_go);
        if counts.1 != 0 {
            self.next_beat = Instant::now();
        }
        tracing::debug!(routes = counts.0, prefixes = counts.1, took = ?begun.elapsed(), "next hops follow");
        Ok(())
    }

    /// Finds prefixes that came since, and sets their routes.
    fn check_prefixes(&mut self) {
        let (chunks, slots) = self.table.tracked();
        self.follower.mirror.track(&chunks, &slots);
        let differences = self.table.differences(self.follower.mirror.grains());
        if !differences.is_empty() {
            tracing::debug!(prefixes = differences.len(), "prefixes get their routes");
            self.table.withdraw();
            self.change_prefixes(differences);
        }
    }

    fn change_prefixes(&mut self, grains: Vec<(Grain, RouteId)>) {
        let changes = grains
            .into_iter()
            .map(|(grain, route)| PrefixRoute {
                prefix: grain.prefix(),
                route,
            })
            .collect();
        self.stopping |= !(self.set_routes)(changes);
    }

    fn keep_neighbors(&mut self, keep: &[Way], let_go: &[Way]) {
        let keep = keep.iter().map(|(ifindex, address)| Change::KeepNeighbor {
            address: *address,
            ifindex: *ifindex,
        });
        let let_go = let_go
            .iter()
            .map(|(ifindex, address)| Change::LetGoNeighbor {
                address: *address,
                ifindex: *ifindex,
            });
        let changes: Vec<Change> = keep.chain(let_go).collect();
        if !changes.is_empty()
            && let Err(error) = self.socket.apply(&changes)
        {
            tracing::debug!(%error, "a gateway is not kept resolved");
        }
    }
}

//! VMs that are to be heard here before the transaction that brings them is decided: the `AWAITED`
//! table, and the reader of the ring buffer in which the program says whom it heard.
//!
//! The table is the truth: it is pinned, the program writes into it, and whoever starts or connects
//! looks there. The ring buffer makes it prompt; what it loses is found within [`LOOK_MS`].
//!
//! Invariant: an element is of a transaction that is prepared or is prepared next, or it is about to be
//! removed; and no packet that saw an element removed is still processed when another one is put in.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::maps::{MapData, RingBuf};
use natmig_common::{Announced, Awaited, AwaitedKey, SlotState, names};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};

use super::{Router, RouterError, bpf::MapHandle, grace, instance::Instance};
use crate::rule::{Changes, MacAddress, Rule, TransactionId};

/// How often the table is looked at, should the ring buffer have been full: milliseconds.
const LOOK_MS: u16 = 1000;

/// Pause after waiting for the program failed.
const RETRY: Duration = Duration::from_secs(1);

/// A VM was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    /// The transaction that brings it here.
    pub id: TransactionId,
    /// Its MAC address.
    pub mac: MacAddress,
    /// When: nanoseconds since the Unix epoch.
    pub at: u64,
}

/// Is told of VMs that were heard, some of them more than once; `false` if that is not wanted any
/// longer.
pub type TellHeard = Box<dyn FnMut(Vec<Heard>) -> bool + Send>;

/// What a router knows of its listening.
#[derive(Debug)]
pub(super) struct Hearing {
    /// There may be VMs that are awaited.
    awaiting: bool,
    /// Tells of VMs that are heard, once it has been started.
    listener: Option<Listener>,
}

impl Default for Hearing {
    fn default() -> Self {
        Self {
            awaiting: true,
            listener: None,
        }
    }
}

impl Router {
    /// Begins to listen for the VMs that a transaction brings here. What was heard of them before is
    /// kept.
    ///
    /// The caller prepares the transaction next, not before: an agent that is killed in between leaves
    /// elements that its successor removes, not a transaction that nobody listens for.
    pub fn await_announcements(
        &mut self,
        id: TransactionId,
        changes: &Changes,
    ) -> Result<(), RouterError> {
        let mut wanted = BTreeMap::new();
        for change in &changes.pending {
            if let Rule::Local { at, .. } = &change.rule {
                let awaited = Awaited {
                    transaction: id.0,
                    ifindex: self.segments.ifindex(&at.segment)?,
                    ..Awaited::default()
                };
                wanted.insert(AwaitedKey::new(at.mac.0), awaited);
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let doing = || RouterError::system("set the VMs that are awaited");
        let map = &self.tables.maps.awaited;
        for (key, present) in map.read_all::<AwaitedKey, Awaited>().map_err(doing())? {
            let same = |wanted: &Awaited| {
                (wanted.transaction, wanted.ifindex) == (present.transaction, present.ifindex)
            };
            if wanted.get(&key).is_some_and(same) {
                wanted.remove(&key);
            }
        }
        // Before it is removed, so that an agent that is killed in between finds it.
        self.hearing.awaiting = true;
        // A packet may hold an element that was removed and is used again.
        grace::fast(&self.tables.maps.activity)?;
        let (keys, elements): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        map.update_batch(&keys, &elements).map_err(doing())
    }

    /// Stops listening for VMs whose transactions are decided here, or gone.
    pub(super) fn stop_awaiting_decided(&mut self) -> Result<(), RouterError> {
        if !self.hearing.awaiting {
            return Ok(());
        }
        let doing = || RouterError::system("remove VMs that are no longer awaited");
        let map = &self.tables.maps.awaited;
        let all = map.read_all::<AwaitedKey, Awaited>().map_err(doing())?;
        let count = all.len();
        let prepared: Vec<u64> = self
            .tables
            .held()
            .filter(|(_, state, _)| *state == SlotState::Prepared)
            .map(|(id, ..)| id.0)
            .collect();
        let decided: Vec<AwaitedKey> = all
            .into_iter()
            .filter(|(_, awaited)| !prepared.contains(&awaited.transaction))
            .map(|(key, _)| key)
            .collect();
        map.delete_batch(&decided).map_err(doing())?;
        self.hearing.awaiting = decided.len() < count;
        Ok(())
    }

    /// The awaited VMs that were heard.
    pub fn heard(&self) -> Result<Vec<Heard>, RouterError> {
        read(&self.tables.maps.awaited)
    }

    /// Tells of every VM that is heard, from another thread, until the router is dropped.
    pub fn listen(&mut self, tell: TellHeard) -> Result<(), RouterError> {
        self.hearing.listener = None;
        self.hearing.listener = Some(Listener::start(&self.instance, tell)?);
        Ok(())
    }
}

/// The elements that say that a VM was heard.
fn read(map: &MapHandle) -> Result<Vec<Heard>, RouterError> {
    let all = map
        .read_all::<AwaitedKey, Awaited>()
        .map_err(RouterError::system("read the VMs that are awaited"))?;
    let epoch = monotonic_epoch()?;
    let heard = all
        .into_iter()
        .filter(|(_, awaited)| awaited.heard_at != 0)
        .map(|(key, awaited)| Heard {
            id: TransactionId(awaited.transaction),
            mac: MacAddress(key.mac),
            at: epoch.saturating_add(awaited.heard_at),
        });
    Ok(heard.collect())
}

/// What `CLOCK_MONOTONIC`, by which the program tells the time, has to be added to for nanoseconds
/// since the Unix epoch.
fn monotonic_epoch() -> Result<u64, RouterError> {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_err(|error| RouterError::system("read the clock")(error.into()))?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let epoch = now.saturating_sub(monotonic).as_nanos();
    Ok(u64::try_from(epoch).unwrap_or(u64::MAX))
}

/// The running reader. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(instance: &Instance, tell: TellHeard) -> Result<Self, RouterError> {
        let doing = || RouterError::system("start to listen for announcements");
        let map = MapHandle::open(
            &instance.maps().join(names::AWAITED),
            size_of::<AwaitedKey>(),
            size_of::<Awaited>(),
            false,
        )
        .map_err(doing())?;
        let ring = MapData::from_pin(instance.maps().join(names::ANNOUNCED))
            .and_then(|map| RingBuf::try_from(aya::maps::Map::RingBuf(map)))
            .map_err(|error| doing()(io::Error::other(error)))?;
        let (stop, stopped) = UnixStream::pair().map_err(doing())?;
        let ear = Ear {
            map,
            ring,
            stopped,
            tell,
        };
        let thread = thread::Builder::new()
            .name("announcements".to_owned())
            .spawn(move || ear.run())
            .map_err(doing())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write_all(&[0]) {
            tracing::debug!(%error, "nobody listens for announcements any longer");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that listens for announcements panicked");
        }
    }
}

/// The state of the thread.
struct Ear {
    map: MapHandle,
    ring: RingBuf<MapData>,
    stopped: UnixStream,
    tell: TellHeard,
}

/// Why waiting ended.
enum Woken {
    Announced,
    TimedOut,
    Stopped,
}

impl Ear {
    fn run(mut self) {
        let mut woken = Ok(Woken::TimedOut);
        loop {
            let heard = match woken {
                Ok(Woken::Stopped) => return,
                Ok(Woken::Announced) => self.take(),
                Ok(Woken::TimedOut) => read(&self.map),
                Err(error) => Err(error),
            };
            match heard {
                Ok(heard) if heard.is_empty() => {}
                Ok(heard) => {
                    if !(self.tell)(heard) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "announcements may be heard late");
                    thread::sleep(RETRY);
                }
            }
            woken = self.wait();
        }
    }

    /// Takes what the ring buffer holds.
    fn take(&mut self) -> Result<Vec<Heard>, RouterError> {
        let epoch = monotonic_epoch()?;
        let mut heard = Vec::new();
        while let Some(record) = self.ring.next() {
            if let Ok(announced) = bytemuck::try_pod_read_unaligned::<Announced>(&record) {
                heard.push(Heard {
                    id: TransactionId(announced.transaction),
                    mac: MacAddress(announced.key.mac),
                    at: epoch.saturating_add(announced.heard_at),
                });
            }
        }
        Ok(heard)
    }

    fn wait(&self) -> Result<Woken, RouterError> {
        let mut descriptors = [
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ring.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut descriptors, PollTimeout::from(LOOK_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(Woken::TimedOut),
            Ok(_) => {
                let [stopped, _] = &descriptors;
                Ok(if stopped.any().unwrap_or(true) {
                    Woken::Stopped
                } else {
                    Woken::Announced
                })
            }
            Err(error) => Err(RouterError::system("wait for announcements")(error.into())),
        }
    }
}

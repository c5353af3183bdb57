//! A trace of an instance's packets: switched on, read, and switched off again.
//!
//! One tracer at a time, by a lock beside the instance's own, since the ring buffer has one reader.
//! A tracer that is killed leaves tracing on for no longer than `LEASE`: the program switches it
//! off by itself when the time in the activity elements has passed.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    mem,
    os::fd::AsFd as _,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::maps::{MapData, RingBuf};
use natmig_common::{Activity, TraceEvent, TraceFilter, names};
use nix::{
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout},
    time::{ClockId, clock_gettime},
};

use super::{
    RouterError,
    bpf::{MapHandle, Shared},
    grace,
    instance::Instance,
    maps::Maps,
    not_loaded,
};

/// How long tracing stays on without its tracer.
const LEASE: Duration = Duration::from_secs(3);
/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(1);

/// Events of the trace under way, or of the last one, that were lost because the buffer was full.
pub fn lost_events(instance: &str) -> Result<u64, RouterError> {
    let doing = || RouterError::system("read how many events the trace lost");
    let pin = Instance::new(instance).maps().join(names::TRACE);
    let filter: Option<TraceFilter> = MapHandle::open(&pin, 4, size_of::<TraceFilter>(), true)
        .and_then(|map| map.lookup(&0_u32))
        .map_err(doing())?;
    Ok(filter.map_or(0, |filter| filter.lost))
}

/// The reader of an instance's trace. Tracing ends when it is dropped.
pub struct Tracer {
    control: Control,
    ring: RingBuf<MapData>,
    /// A pin that is there for as long as the instance is.
    pin: PathBuf,
    renewed: Duration,
    /// What `CLOCK_MONOTONIC` has to be added to for the time since the Unix epoch.
    epoch: Duration,
    _lock: Flock<fs::File>,
}

/// The words that the program looks at.
#[derive(Debug)]
struct Control {
    filter: Shared<TraceFilter>,
    activity: Shared<Activity>,
}

/// Why waiting for events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Waited {
    /// There may be events.
    Ready,
    /// The time is over.
    TimedOut,
    /// The instance was unloaded: no further events will come.
    Unloaded,
}

impl Tracer {
    /// Switches tracing on, with this filter.
    pub fn start(instance: &str, filter: &TraceFilter) -> Result<Self, RouterError> {
        let instance = Instance::new(instance);
        if Maps::probe(&instance.maps())?.is_none() {
            return Err(not_loaded(&instance));
        }
        let lock = lock(&instance)?;
        let pin = instance.maps().join(names::TRACE);
        let doing = || RouterError::system("open the maps of the trace");
        let filter_map =
            MapHandle::open(&pin, 4, size_of::<TraceFilter>(), false).map_err(doing())?;
        let activity_map = MapHandle::open(
            &instance.maps().join(names::ACTIVITY),
            4,
            size_of::<Activity>(),
            false,
        )
        .map_err(doing())?;
        let control = Control {
            filter: filter_map.map_memory(true).map_err(doing())?,
            activity: activity_map.map_memory(true).map_err(doing())?,
        };
        let ring = MapData::from_pin(instance.maps().join(names::EVENTS))
            .and_then(|map| RingBuf::try_from(aya::maps::Map::RingBuf(map)))
            .map_err(|error| doing()(io::Error::other(error)))?;
        // What a tracer left that was killed: its filter must not change under a packet, and its
        // events are not of this trace.
        control.stop()?;
        control.filter.write(
            0,
            0,
            bytemuck::bytes_of(&TraceFilter { lost: 0, ..*filter }),
        );
        let mut tracer = Self {
            control,
            ring,
            pin,
            renewed: Duration::ZERO,
            epoch: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .saturating_sub(monotonic()?),
            _lock: lock,
        };
        while tracer.ring.next().is_some() {}
        tracer.renew()?;
        Ok(tracer)
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<TraceEvent> {
        loop {
            let item = self.ring.next()?;
            if let Ok(event) = bytemuck::try_pod_read_unaligned(&item) {
                return Some(event);
            }
        }
    }

    /// Waits until there may be events, at most for `timeout`. Has to be called again and again,
    /// also when there are enough events, because it renews the tracer's lease.
    pub fn wait(&mut self, timeout: Duration) -> Result<Waited, RouterError> {
        let doing = || RouterError::system("wait for events");
        if monotonic()?.saturating_sub(self.renewed) >= RENEWAL {
            if !self.pin.exists() {
                return Ok(Waited::Unloaded);
            }
            self.renew()?;
        }
        let timeout = PollTimeout::try_from(timeout.min(RENEWAL)).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(Waited::TimedOut),
            Ok(_) => Ok(Waited::Ready),
            Err(error) => Err(doing()(error.into())),
        }
    }

    /// Switches tracing off; events that are in the buffer can still be read.
    pub fn stop(&self) -> Result<(), RouterError> {
        self.control.stop()
    }

    /// Events that were lost because the buffer was full.
    pub fn lost(&self) -> u64 {
        let offset = mem::offset_of!(TraceFilter, lost);
        self.control.filter.load(0, offset)
    }

    /// When an event was, since the Unix epoch.
    pub fn time(&self, event: &TraceEvent) -> Duration {
        self.epoch + Duration::from_nanos(event.time)
    }

    fn renew(&mut self) -> Result<(), RouterError> {
        self.renewed = monotonic()?;
        let until = self.renewed + LEASE;
        self.control
            .set(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX));
        Ok(())
    }
}

impl Control {
    fn set(&self, until: u64) {
        for cpu in 0..self.activity.len() {
            self.activity
                .store(cpu, mem::offset_of!(Activity, traced_until), until);
        }
    }

    /// Switches tracing off and waits until no packet is traced any longer.
    fn stop(&self) -> Result<(), RouterError> {
        self.set(0);
        grace::fast(&self.activity).map(drop)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn monotonic() -> Result<Duration, RouterError> {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_err(|error| RouterError::system("read the clock")(error.into()))
}

/// Becomes the instance's tracer.
fn lock(instance: &Instance) -> Result<Flock<fs::File>, RouterError> {
    let path = instance.trace_lock_file();
    let doing = || RouterError::system(format!("lock {}", path.display()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(doing())?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0).map_err(doing())?;
            file.rewind().map_err(doing())?;
            writeln!(*file, "{}", std::process::id()).map_err(doing())?;
            Ok(file)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(doing())?;
            Err(RouterError::Traced {
                instance: instance.name.clone(),
                holder: holder.trim().to_owned(),
            })
        }
        Err((_, error)) => Err(doing()(error.into())),
    }
}

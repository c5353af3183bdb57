//! The heartbeat: without it the program does not believe routes.
//!
//! A BPF program stamps it with the kernel's jiffies, which userspace can read nowhere else; how
//! many of them are a second follows from two stamps.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use natmig_common::{Heartbeat as Element, names};

use super::{
    super::{
        RouterError,
        bpf::{self, MapHandle},
        instance::Instance,
    },
    table::Table,
};

/// Time between two beats.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);

/// How long the routes are believed after a beat.
const PATIENCE: Duration = Duration::from_secs(1);

/// Two stamps are at least so far apart when jiffies are counted between them.
const BASELINE: Duration = Duration::from_millis(200);

/// Ticks per second that a kernel may have; anything else is a miscount.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = 20.0..=2000.0;

/// What an instance's heartbeat shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// An agent keeps next hops.
    Beating,
    /// An agent kept them, and did not say that it ended.
    Silent,
    /// No agent vouches for next hops.
    None,
}

/// Listens to an instance's heartbeat, for a few beats at most.
pub(in crate::router) fn listen(instance: &Instance) -> Result<Pulse, RouterError> {
    let doing = || RouterError::system("read the heartbeat");
    let pin = instance.maps().join(names::HEARTBEAT);
    let map = MapHandle::open(&pin, 4, size_of::<Element>(), true).map_err(doing())?;
    let read = || -> Result<Element, RouterError> {
        Ok(map.lookup(&0_u32).map_err(doing())?.unwrap_or_default())
    };
    let first = read()?;
    if first.patience == 0 {
        return Ok(Pulse::None);
    }
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if read()?.beat != first.beat {
            return Ok(Pulse::Beating);
        }
        thread::sleep(INTERVAL / 5);
    }
    Ok(Pulse::Silent)
}

/// Stamps the heartbeat.
#[derive(Debug)]
pub(super) struct Heartbeat {
    program: OwnedFd,
    first: Option<(Instant, u64)>,
    /// Jiffies for which routes are believed; 0 until they have been counted.
    patience: u64,
}

impl Heartbeat {
    pub(super) const fn new(program: OwnedFd) -> Self {
        Self {
            program,
            first: None,
            patience: 0,
        }
    }

    /// Says that the routes are right at this moment.
    pub(super) fn beat(&mut self, table: &Table) -> Result<(), RouterError> {
        bpf::run_program(self.program.as_fd())
            .map_err(RouterError::system("run the heartbeat program"))?;
        self.count(Instant::now(), table.beat());
        table.set_patience(self.patience);
        Ok(())
    }

    /// Whether jiffies have been counted, so that a beat has an effect.
    #[cfg(test)]
    const fn is_ready(&self) -> bool {
        self.patience != 0
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "numbers of jiffies between two moments of this process are small"
    )]
    fn count(&mut self, now: Instant, beat: u64) {
        let (begun, first) = *self.first.get_or_insert((now, beat));
        let elapsed = now.duration_since(begun);
        if elapsed < BASELINE {
            return;
        }
        let per_second = beat.saturating_sub(first) as f64 / elapsed.as_secs_f64();
        if PLAUSIBLE.contains(&per_second) {
            // Rounded: nobody's patience changes with every beat.
            self.patience = (per_second * PATIENCE.as_secs_f64()).round() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat() -> Heartbeat {
        Heartbeat::new(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn patience_is_a_second_of_jiffies() {
        for per_second in [100_u64, 250, 300, 1000] {
            let mut heartbeat = heartbeat();
            let begun = Instant::now();
            heartbeat.count(begun, 7_000_000);
            assert!(!heartbeat.is_ready());
            heartbeat.count(begun + INTERVAL * 4, 7_000_000 + per_second);
            assert_eq!(heartbeat.patience, per_second);
        }
    }

    #[test]
    fn a_miscount_does_no_harm() {
        let mut heartbeat = heartbeat();
        let begun = Instant::now();
        heartbeat.count(begun, 1000);
        heartbeat.count(begun + INTERVAL, 1000);
        assert!(!heartbeat.is_ready());
        heartbeat.count(begun + INTERVAL * 2, 1_000_000);
        assert!(!heartbeat.is_ready());
        heartbeat.count(begun + INTERVAL * 4, 1250);
        assert_eq!(heartbeat.patience, 250);
    }
}

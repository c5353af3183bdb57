//! The thread that sends announcements: at the commit and repeated after it, on the schedule that
//! neighbours need, without holding up the tables.
//!
//! An announcement that a later one contradicts is not repeated: a VM that comes home within
//! seconds must not be announced as away once more.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::tables::Tables;
use crate::router::{Announcement, announce::SCHEDULE};

/// Commits whose announcements may wait to be taken over.
const QUEUE: usize = 64;

/// Longest sleep without anything to send.
const IDLE: Duration = Duration::from_hours(1);

/// Sends announcements; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Announcer {
    queue: Option<SyncSender<Vec<Announcement>>>,
    thread: Option<JoinHandle<()>>,
}

impl Announcer {
    pub(super) fn start<T: Tables>() -> std::io::Result<Self> {
        let (queue, announcements) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("announcer".to_owned())
            .spawn(move || run::<T>(&announcements))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Sends these from now on, on schedule.
    pub(super) fn announce(&self, announcements: Vec<Announcement>) {
        if announcements.is_empty() {
            return;
        }
        if let Some(queue) = &self.queue
            && queue.send(announcements).is_err()
        {
            tracing::error!("the announcer has ended: neighbours are not told of the move");
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the announcer panicked");
        }
    }
}

/// Who is told what: a later announcement with the same key replaces an earlier one.
type Key = (u32, IpAddr, [u8; 6]);

fn key(announcement: &Announcement) -> Key {
    let mut destination = [0; 6];
    destination.copy_from_slice(&announcement.frame[..6]);
    (announcement.ifindex, announcement.address, destination)
}

/// An announcement and how often it was sent.
#[derive(Debug)]
struct Pending {
    announcement: Announcement,
    since: Instant,
    sent: usize,
}

impl Pending {
    fn due(&self) -> Option<Instant> {
        SCHEDULE.get(self.sent).map(|delay| self.since + *delay)
    }
}

fn run<T: Tables>(announcements: &Receiver<Vec<Announcement>>) {
    let mut pending: HashMap<Key, Pending> = HashMap::new();
    loop {
        let now = Instant::now();
        let mut due = Vec::new();
        for pending in pending.values_mut() {
            if pending.due().is_some_and(|at| at <= now) {
                pending.sent += 1;
                due.push(pending.announcement.clone());
            }
        }
        pending.retain(|_, pending| pending.due().is_some());
        if !due.is_empty()
            && let Err(error) = T::announce(&due)
        {
            tracing::warn!(%error, "an announcement could not be sent");
        }
        let wait = pending
            .values()
            .filter_map(Pending::due)
            .min()
            .map_or(IDLE, |at| at.saturating_duration_since(Instant::now()));
        match announcements.recv_timeout(wait) {
            Ok(fresh) => {
                let since = Instant::now();
                for announcement in fresh {
                    pending.insert(
                        key(&announcement),
                        Pending {
                            announcement,
                            since,
                            sent: 0,
                        },
                    );
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

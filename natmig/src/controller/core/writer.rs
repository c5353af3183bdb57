//! The thread that has the store: the core goes on while a disk or etcd takes its time.

use std::{
    io,
    sync::{Arc, mpsc as jobs},
    thread::{self, JoinHandle},
    time::Instant,
};

use tokio::sync::mpsc;

use super::super::figures::{Figures, Operation};
use crate::{
    coordinator::StoreOp,
    store::{Leadership, Store, StoreError},
};

/// What the thread is asked to do.
enum Job {
    Apply(Vec<StoreOp>),
    Confirm,
}

/// What became of it.
struct Done {
    /// The changes that are durable, if there is no error.
    ops: Vec<StoreOp>,
    outcome: Result<(), StoreError>,
}

/// The store, which is asked one thing at a time.
pub(super) struct Writer {
    jobs: Option<jobs::Sender<Job>>,
    done: mpsc::Receiver<Done>,
    thread: Option<JoinHandle<()>>,
    leadership: Leadership,
    busy: bool,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(mut store: Box<dyn Store>, figures: Arc<Figures>) -> io::Result<Self> {
        let (jobs, queue) = jobs::channel();
        let (answers, done) = mpsc::channel(1);
        let leadership = store.leadership();
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    let done = perform(&mut *store, &figures, job);
                    if answers.blocking_send(done).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            jobs: Some(jobs),
            done,
            thread: Some(thread),
            leadership,
            busy: false,
        })
    }

    /// Whether this leadership is sure to last at this moment, whatever the store is doing.
    pub(super) fn may_act(&self) -> bool {
        self.leadership.lasts()
    }

    /// Whether something was begun that is not done.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Begins to make changes durable. The store must not be busy.
    pub(super) fn begin(&mut self, ops: Vec<StoreOp>) {
        self.ask(Job::Apply(ops));
    }

    /// Waits until what was begun is done. What is durable now; if the caller gives up waiting, nothing
    /// is lost.
    pub(super) async fn done(&mut self) -> Result<Vec<StoreOp>, StoreError> {
        let Some(Done { ops, outcome }) = self.done.recv().await else {
            // The thread ends by itself in no other way.
            if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
                std::panic::resume_unwind(panic);
            }
            return Err(StoreError::NotLeading);
        };
        self.busy = false;
        outcome.map(|()| ops)
    }

    /// Makes sure that this leadership lasts. The store must not be busy.
    pub(super) async fn confirm(&mut self) -> Result<(), StoreError> {
        self.ask(Job::Confirm);
        self.done().await.map(drop)
    }

    fn ask(&mut self, job: Job) {
        self.busy = true;
        // If the thread has ended, whoever waits for the answer learns it.
        if let Some(jobs) = &self.jobs {
            jobs.send(job).ok();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        self.done.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the store panicked");
        }
    }
}

fn perform(store: &mut dyn Store, figures: &Figures, job: Job) -> Done {
    match job {
        Job::Apply(ops) => {
            let begun = Instant::now();
            let outcome = figures.ask(Operation::Apply, || store.apply(&ops));
            tracing::debug!(changes = ops.len(), took = ?begun.elapsed(), "stored");
            Done { ops, outcome }
        }
        Job::Confirm => Done {
            ops: Vec::new(),
            outcome: figures.ask(Operation::Confirm, || store.confirm()),
        },
    }
}

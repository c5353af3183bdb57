//! What the run is doing, on standard error, and an end to a run that no longer gets anywhere.
//!
//! On a terminal a bar shows it, elsewhere a line at each tenth of a step that takes long.

use std::{
    cell::Cell,
    io::IsTerminal as _,
    process,
    sync::{LazyLock, Mutex},
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, raise};

/// No single thing that is reported takes nearly as long as this, on any machine.
const LONGEST: Duration = Duration::from_mins(5);
/// How long an interrupted run may take to clear everything away.
const CLEARING: Duration = Duration::from_secs(30);

/// When anything was reported last, and what.
static LAST: LazyLock<Mutex<(Instant, String)>> =
    LazyLock::new(|| Mutex::new((Instant::now(), String::new())));

fn report(text: &str) {
    if let Ok(mut last) = LAST.lock() {
        *last = (Instant::now(), text.to_owned());
    }
}

/// Says what happens, on standard error.
pub fn say(text: &str) {
    report(text);
    eprintln!("natmig-bench: {text}");
}

/// Interrupts this process when nothing was reported for too long, and ends it if that does not help.
/// The next run clears away what this one leaves.
pub fn watch() {
    const LOOK: Duration = Duration::from_secs(1);
    thread::spawn(|| {
        let (mut seen, mut waited) = (Instant::now(), Duration::ZERO);
        while let Ok((reported, what)) = LAST.lock().map(|last| last.clone()) {
            // Looks are counted, since the clock goes on while a virtual machine stands still.
            waited = if reported == seen {
                waited + LOOK
            } else {
                Duration::ZERO
            };
            seen = reported;
            if waited > LONGEST {
                eprintln!("natmig-bench: no progress for {waited:?}, after: {what}");
                if raise(Signal::SIGTERM).is_ok() {
                    thread::sleep(CLEARING);
                }
                process::exit(1);
            }
            thread::sleep(LOOK);
        }
    });
}

/// How far a long step has come.
pub struct Progress {
    what: &'static str,
    steps: usize,
    done: Cell<usize>,
    start: Instant,
    /// None where standard error is no terminal.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of a step with that many parts.
    pub fn new(what: &'static str, steps: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps as u64);
            let style = "{prefix:20} {wide_bar} {percent:>3} % {eta:>4} {msg:45}";
            match ProgressStyle::with_template(style) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
            .with_prefix(what)
        });
        if bar.is_none() && steps != 0 {
            say(what);
        }
        Self {
            what,
            steps,
            done: Cell::new(0),
            start: Instant::now(),
            bar,
        }
    }

    /// Says which part comes next.
    pub fn begin(&self, part: &str) {
        report(&format!("{}: {part}", self.what));
        if let Some(bar) = &self.bar {
            bar.set_message(part.to_owned());
        }
    }

    /// A part is done.
    pub fn advance(&self) {
        let done = self.done.get() + 1;
        self.done.set(done);
        let tenths = |done: usize| done * 10 / self.steps.max(1);
        if let Some(bar) = &self.bar {
            bar.inc(1);
        } else if tenths(done) > tenths(done - 1) {
            let elapsed = self.start.elapsed().as_secs();
            say(&format!(
                "{}: {done} of {}, {elapsed} s",
                self.what, self.steps
            ));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

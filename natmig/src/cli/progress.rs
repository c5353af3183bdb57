//! Following a migration: live on a terminal, line by line elsewhere.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tonic::Code;

use super::client::{self, Client, ClientArgs, Failure};
use crate::{
    coordinator::{Activation, MigrationView, Phase, Progress},
    names::RouterName,
    proto::v1,
    rule::TransactionId,
};

/// How long to wait before a lost controller is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// All routers hold it; only the trigger is missing.
    Prepared,
    /// It is committed: from here on it is never undone.
    Success,
}

impl Goal {
    /// What a migration can be waited for when it is started.
    pub(super) fn of_start(activation: Activation) -> Self {
        match activation {
            Activation::Immediate => Self::Success,
            Activation::Manual | Activation::OnAnnounce => Self::Prepared,
        }
    }

    fn is_reached(self, phase: Phase) -> bool {
        phase.is_success()
            || self == Self::Prepared && matches!(phase, Phase::Prepared | Phase::Committing)
    }
}

/// Waits until the goal is reached, the migration is aborted, or the time is over. A controller
/// that goes away meanwhile is asked again: the migration outlives it.
pub(super) async fn wait(
    args: &ClientArgs,
    client: Client,
    id: TransactionId,
    goal: Goal,
    timeout: Duration,
) -> Result<MigrationView, Failure> {
    let mut display = Display::new(id, !args.json);
    let outcome = tokio::time::timeout(timeout, follow(args, client, id, goal, &mut display)).await;
    display.finish();
    let Ok(view) = outcome else {
        return Err(Failure::Timeout(format!(
            "migration {id} is not {} after {} s{}; it goes on: see `natmig migration show {id}`, \
             or stop it with `natmig migration abort {id}`",
            match goal {
                Goal::Prepared => "prepared",
                Goal::Success => "committed",
            },
            timeout.as_secs_f64(),
            display.last.as_ref().map_or_else(String::new, |view| {
                format!(" but {}{}", view.phase, waiting(view))
            }),
        )));
    };
    let view = view?;
    if matches!(view.phase, Phase::Aborted | Phase::Aborting) {
        if args.json {
            client::print_json(&view)?;
        }
        return Err(Failure::Aborted(format!(
            "migration {id} was aborted: {}",
            view.error.as_deref().unwrap_or("on request")
        )));
    }
    Ok(view)
}

async fn follow(
    args: &ClientArgs,
    mut client: Client,
    id: TransactionId,
    goal: Goal,
    display: &mut Display,
) -> Result<MigrationView, Failure> {
    loop {
        let request = v1::WatchMigrationsRequest { id: id.0 };
        let lost = match client.watch_migrations(request).await {
            Err(status) => status,
            Ok(updates) => {
                let mut updates = updates.into_inner();
                loop {
                    match updates.message().await {
                        Ok(Some(update)) => {
                            let view = client::migration(update.migration)?;
                            display.show(&view);
                            if goal.is_reached(view.phase) || view.phase == Phase::Aborted {
                                return Ok(view);
                            }
                            display.last = Some(view);
                        }
                        Ok(None) => break tonic::Status::unavailable("it ended the answer"),
                        Err(status) => break status,
                    }
                }
            }
        };
        if !matches!(
            lost.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        ) {
            return Err(lost.into());
        }
        display.note("the controller went away; the migration outlives it, asking again");
        client = loop {
            tokio::time::sleep(RETRY).await;
            match args.connect().await {
                Ok(client) => break client,
                Err(error) => display.note(&format!("{error}")),
            }
        };
    }
}

fn waiting(view: &MigrationView) -> String {
    let names: Vec<_> = view.waiting_for.iter().map(RouterName::as_str).collect();
    match &names[..] {
        [] => String::new(),
        [first, second, third, _, ..] => {
            format!(
                ", waiting for {first}, {second}, {third} and {} more",
                names.len() - 3
            )
        }
        names => format!(", waiting for {}", names.join(", ")),
    }
}

/// How many of the needed routers have done what the present phase is about.
fn count(view: &MigrationView) -> (usize, usize) {
    let needed = view.routers.iter().filter(|router| router.needed);
    let done = needed.clone().filter(|router| match view.phase {
        Phase::Preparing => router.progress != Progress::Waiting,
        Phase::Prepared | Phase::Done => true,
        Phase::Committing | Phase::Committed => router.progress.committed_at().is_some(),
        Phase::Folding | Phase::Draining => matches!(
            router.progress,
            Progress::Folded { .. } | Progress::Retired { .. }
        ),
        Phase::Retiring => matches!(router.progress, Progress::Retired { .. }),
        Phase::Aborting | Phase::Aborted => router.progress == Progress::Aborted,
    });
    (done.count(), needed.count())
}

/// What a person sees meanwhile, on standard error.
struct Display {
    bar: Option<ProgressBar>,
    lines: bool,
    started: Instant,
    said: String,
    last: Option<MigrationView>,
}

impl Display {
    fn new(id: TransactionId, visible: bool) -> Self {
        let bar = (visible && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template(
                "{spinner} {prefix} {elapsed} [{bar:20}] {pos}/{len} routers {msg}",
            ) {
                bar.set_style(style);
            }
            bar.set_prefix(format!("migration {id}"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            lines: visible && bar.is_none(),
            bar,
            started: Instant::now(),
            said: String::new(),
            last: None,
        }
    }

    fn show(&mut self, view: &MigrationView) {
        let (done, needed) = count(view);
        if let Some(bar) = &self.bar {
            bar.set_length(u64::try_from(needed).unwrap_or(u64::MAX));
            bar.set_position(u64::try_from(done).unwrap_or(u64::MAX));
            bar.set_message(format!("{}{}", view.phase, waiting(view)));
        } else {
            self.note(&format!("{}: {done}/{needed} routers", view.phase));
        }
    }

    fn note(&mut self, text: &str) {
        if self.said == text {
            return;
        }
        text.clone_into(&mut self.said);
        if let Some(bar) = &self.bar {
            bar.set_message(self.said.clone());
        } else if self.lines {
            eprintln!("{:9.3} s  {text}", self.started.elapsed().as_secs_f64());
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

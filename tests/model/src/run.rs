//! Runs the checker, and tells what it found.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use stateright::{Checker as _, HasDiscoveries, Model as _};

use crate::{
    check::Violation,
    model::{FabricModel, Until},
    plant::Plant,
    scenario::Scenario,
    story::Story,
};

/// What the checker is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Threads; 1 if 0.
    pub threads: usize,
    /// Steps from the beginning, at most; all of them if 0.
    pub depth: usize,
    /// How long to look, at most.
    pub time: Option<Duration>,
}

/// What the checker found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Steps from the beginning to the last of them.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// Whether all states were visited.
    pub complete: bool,
    /// A shortest way to a broken invariant.
    pub counterexample: Option<Counterexample>,
}

/// A way to a broken invariant.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// What is broken.
    pub violation: Violation,
    /// What happened: for each step what, and what followed.
    pub steps: Vec<Vec<String>>,
}

impl Counterexample {
    /// As numbered steps.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (number, lines) in (1..).zip(&self.steps) {
            for (place, line) in lines.iter().enumerate() {
                // Writing to a string cannot fail.
                let written = if place == 0 {
                    writeln!(text, "{number:>3}. {line}")
                } else {
                    writeln!(text, "       {line}")
                };
                debug_assert!(written.is_ok());
            }
        }
        text.push_str("  => ");
        text.push_str(&self.violation.to_string());
        text.push('\n');
        text
    }
}

/// Explores a scenario, with a bug or without one, breadth first.
pub fn explore(scenario: Scenario, plant: Option<Plant>, limits: Limits) -> Found {
    let begun = Instant::now();
    let mut model = FabricModel::new(scenario.clone(), plant);
    let explored = Arc::new(AtomicBool::new(false));
    model.until = limits.time.map(|time| Until {
        at: begun + time,
        explored: Arc::clone(&explored),
    });
    let mut checker = model
        .checker()
        .threads(limits.threads.max(1))
        .finish_when(HasDiscoveries::Any);
    let depth = if limits.depth > 0 {
        limits.depth
    } else {
        scenario.depth
    };
    if depth > 0 {
        checker = checker.target_max_depth(depth);
    }
    let checker = checker.spawn_bfs().join();
    explored.store(true, Ordering::Relaxed);
    let time = begun.elapsed();
    let counterexample = checker.discoveries().into_values().next().and_then(|path| {
        let model = FabricModel::new(scenario, plant);
        let mut steps = Vec::new();
        let path = path.into_vec();
        let violation = path.last().and_then(|(state, _)| state.violation.clone())?;
        for (state, step) in path {
            let Some(step) = step else { break };
            let mut story = Story::told();
            model.take(&state, step, &mut story);
            steps.push(story.into_lines());
        }
        Some(Counterexample { violation, steps })
    });
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        time,
        complete: checker.is_done()
            && counterexample.is_none()
            && limits.time.is_none_or(|limit| time < limit)
            && (depth == 0 || checker.max_depth() < depth),
        counterexample,
    }
}

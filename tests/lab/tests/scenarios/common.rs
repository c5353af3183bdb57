//! What all scenarios share.

use std::{
    io::Write as _,
    path::PathBuf,
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use natmig_lab::{
    Lab, Topology,
    capture::Captures,
    lab::find_natmig,
    report::{Observations, Step},
    topology::THREE_TIER,
    traffic::{self, Kind, Pair, Rates, Traffic},
};

/// One lab at a time: the machine is small, and times are measured.
static ALONE: Mutex<()> = Mutex::new(());

/// What a scenario needs.
pub(crate) struct Needs {
    /// The program; `None` if the scenario does without.
    pub(crate) natmig: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// Waits for the machine; `None`, said loudly, if the scenario cannot run here.
pub(crate) fn root() -> Option<MutexGuard<'static, ()>> {
    if nix::unistd::geteuid().is_root() {
        return Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    }
    skip("needs root");
    None
}

/// Like [`root`], with the program.
pub(crate) fn natmig() -> Option<Needs> {
    let alone = root()?;
    match find_natmig(std::env::var_os("NATMIG_BIN").map(PathBuf::from)) {
        Ok(natmig) => Some(Needs {
            natmig,
            _alone: alone,
        }),
        Err(error) => {
            skip(&format!("{error:#}"));
            None
        }
    }
}

/// Says loudly that a scenario is skipped; an error where everything must run.
pub(crate) fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    assert!(
        std::env::var_os("NATMIG_REQUIRE_ROOT").is_none_or(|value| value != "1"),
        "{test} cannot run: {why}"
    );
    // The test harness would keep what eprintln writes for itself.
    let line = format!("SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// The default topology.
pub(crate) fn three_tier() -> Topology {
    Topology::parse(THREE_TIER).unwrap()
}

/// Runs a program in a node; its output if it succeeded.
pub(crate) fn run(lab: &Lab, node: &str, program: &str, arguments: &[&str]) -> Result<String> {
    let output = lab
        .network
        .node(node)?
        .command(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program} {} in {node}: {}\n{text}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Pings and demands every answer.
pub(crate) fn ping(lab: &Lab, node: &str, address: &str) -> Result<()> {
    let text = run(
        lab,
        node,
        "ping",
        &["-n", "-c", "3", "-i", "0.1", "-W", "2", address],
    )?;
    ensure!(
        text.contains(" 0% packet loss") && !text.contains("DUP!"),
        "{node} → {address}:\n{text}"
    );
    Ok(())
}

/// Traffic and captures while something happens.
pub(crate) struct Watched {
    captures: Captures,
    traffic: Traffic,
}

/// Starts datagrams, pings and TCP transfers between these pairs.
pub(crate) fn watch(lab: &Lab, pairs: &[(&str, &str)]) -> Result<Watched> {
    let pairs: Vec<Pair> = pairs
        .iter()
        .map(|(vm, peer)| Pair {
            vm: (*vm).to_owned(),
            peer: (*peer).to_owned(),
            relation: String::new(),
        })
        .collect();
    let flows = traffic::flows(&lab.network, &pairs, &[Kind::Udp, Kind::Ping, Kind::Tcp])?;
    let captures = Captures::start(&lab.network, &flows)?;
    let rates = Rates {
        udp: 50,
        ..Rates::default()
    };
    let traffic = Traffic::start(&lab.network, flows, rates)?;
    Ok(Watched { captures, traffic })
}

impl Watched {
    /// Lets so many more datagrams go out.
    pub(crate) fn more(&self, packets: u64) -> Result<()> {
        let until = self.traffic.sent() + packets;
        natmig_lab::run::wait_for("more traffic", Duration::from_secs(30), || {
            self.traffic.check()?;
            Ok((self.traffic.sent() >= until).then_some(()))
        })
    }

    /// Ends the traffic; what was observed, with these migrations.
    pub(crate) fn finish(self, lab: &Lab, steps: Vec<Step>) -> Result<Observations> {
        let records = self.traffic.finish(Duration::from_secs(3))?;
        let findings = self.captures.finish()?;
        Ok(Observations {
            topology: lab.network.topology().clone(),
            records,
            findings,
            steps,
            listings: Vec::new(),
        })
    }
}

/// Demands that nothing was promised in vain.
pub(crate) fn all_kept(run: &Observations) -> Result<()> {
    let violations = run.violations();
    let leaks: Vec<String> = run
        .findings
        .leaks
        .iter()
        .take(5)
        .map(ToString::to_string)
        .collect();
    ensure!(
        violations.is_empty(),
        "{}\n{}\n{}",
        violations.join("\n"),
        leaks.join("\n"),
        natmig_lab::report::flows(run)
    );
    Ok(())
}

/// Runs a scenario in a lab with natmig; shows the daemons' logs if it fails.
pub(crate) fn scenario(topology: Topology, play: impl FnOnce(&mut Lab) -> Result<()>) {
    let Some(needs) = natmig() else { return };
    let mut lab = Lab::start(topology, &needs.natmig).unwrap();
    if let Err(error) = play(&mut lab) {
        lab.print_logs();
        drop(lab);
        panic!("{error:#}");
    }
}

/// A migration of which only the windows are known.
pub(crate) fn step_of(windows: Vec<natmig_lab::account::Window>) -> Step {
    Step {
        id: 0,
        title: String::new(),
        moves: Vec::new(),
        asked: 0,
        prepared: 0,
        decided: 0,
        windows,
        commits: std::collections::BTreeMap::new(),
        folded: None,
        retired: None,
    }
}

/// How long guests pause in scenarios.
pub(crate) const PAUSE: Duration = Duration::from_millis(30);

/// Migrates and waits until the VMs may move again.
pub(crate) fn migrate(lab: &mut Lab, moves: &[(&str, &str)]) -> Result<Step> {
    let step = lab.migrate("scenario", moves, PAUSE)?;
    lab.client()?.wait(
        step.id,
        "folded",
        Duration::from_secs(20),
        natmig_lab::client::Migration::is_folded,
    )?;
    Ok(step)
}

//! A real guest, migrated by QEMU's own `migrate`: to where its new edge hears QEMU announce it, and
//! back home with nobody but QEMU's monitors to tell natmig.
//!
//! Its downtime as QEMU states it is printed beside what its peers saw: the difference is natmig's.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use natmig_lab::{
    Lab,
    account::Window,
    capture::Captures,
    client::Migration,
    daemon::Daemon,
    guest::{
        Boot, Guest, Machine, Monitor,
        probe::{Connection, Datagrams},
    },
    run::wait_for,
};
use serde_json::{Value, json};

use crate::common::{natmig, skip, three_tier};

/// Emulated machines, on a busy one.
const PATIENCE: Duration = Duration::from_mins(3);

/// The switch at home leads frames for the guest's MAC address to the tap that it has left until that
/// is gone. So neighbours reach it there once they have learned the gateway's MAC address, which the
/// home edge announces as soon as it has committed; they are other processes on the same processors.
const LEARNING: Duration = Duration::from_millis(20);

/// `EtherType` of the frame by which QEMU announces a guest: Reverse ARP.
const RARP: [u8; 2] = [0x80, 0x35];

/// `natmig qmp-watch` beside a machine.
struct Watcher(Daemon);

impl Watcher {
    fn start(lab: &Lab, natmig: &Path, machine: &Machine, name: &str) -> Result<Self> {
        let controller = format!("unix://{}/controller.sock", lab.directory().display());
        let socket = machine.watched();
        let segment = machine.tap.0.as_str();
        let arguments = [
            "qmp-watch",
            "--json",
            "--socket",
            socket.to_str().context("UTF-8")?,
            "--segment",
            segment,
            "--controller",
            &controller,
        ];
        let name = format!("watch-{name}");
        lab.start_program(&name, segment, natmig, &arguments)
            .map(Self)
    }

    /// Everything of this kind that it reported.
    fn reports(&self, event: &str) -> Vec<Value> {
        let said = std::fs::read_to_string(self.0.log()).unwrap_or_default();
        said.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|report| report["event"] == event)
            .collect()
    }

    /// Waits until it reported so many of this kind; the last of them.
    fn wait(&mut self, event: &str, count: usize) -> Result<Value> {
        wait_for(&format!("{event} by {}", self.0.name()), PATIENCE, || {
            self.0.check()?;
            Ok(self.reports(event).get(count - 1).cloned())
        })
    }
}

/// What one migration cost.
struct Cost {
    route: String,
    /// As QEMU says.
    downtime: u64,
    /// When its new edge heard it, if that decided.
    heard: Option<u64>,
    window: Window,
}

/// Announces a migration that takes effect when the guest is heard. Nobody but the guest's new edge
/// will say when.
fn announce(lab: &Lab, guest: &Guest, destination: &Machine) -> Result<u64> {
    lab.prepare_on(
        "on-announce",
        &[(guest.name.as_str(), destination.tap.0.as_str())],
    )
}

/// The migration that a watcher at its destination announces, once every router is prepared.
fn announced(lab: &Lab, watchers: (&mut Watcher, &mut Watcher)) -> Result<u64> {
    let (leaving, arriving) = watchers;
    let announced = arriving.wait("announced", 1)?;
    let id = announced["migration"].as_u64().context("no number")?;
    let client = lab.client()?;
    client.wait(id, "prepared", PATIENCE, |it| it.phase == "prepared")?;
    leaving.wait("connected", 1)?;
    Ok(id)
}

/// Migrates the guest from one machine to another, as an administrator does with QEMU alone, and
/// waits until natmig's migration has followed.
fn send(
    lab: &Lab,
    source: &mut Machine,
    destination: &mut Machine,
    id: u64,
    home: &str,
) -> Result<Cost> {
    let mut from = source.monitor()?;
    let mut to = destination.monitor()?;
    from.ask("migrate", &json!({ "uri": destination.incoming() }))?;
    let downtime = wait_for("QEMU's migration", PATIENCE, || {
        let status = from.migration()?;
        ensure!(
            status["status"] != "failed",
            "QEMU's migration failed: {status}"
        );
        Ok((status["status"] == "completed")
            .then(|| status["downtime"].as_u64())
            .flatten())
    })?;
    let stopped = last(&mut from, false)?;
    let resumed = last(&mut to, true)?;
    let migration = lab
        .client()?
        .wait(id, "folded", PATIENCE, Migration::is_folded)?;
    let commits = migration.commits();
    // The guest's home edge and the one that it left; they are named as their racks.
    let anchors = [home, &source.tap.0]
        .iter()
        .filter_map(|rack| commits.get(&rack.replace("rack", "edge")))
        .max()
        .copied()
        .context("no anchor has committed")?;
    let heard = migration.vms.first().and_then(|vm| vm.heard.as_ref());
    if let Some(heard) = heard {
        let edge = destination.tap.0.replace("rack", "edge");
        ensure!(heard.router == edge, "{} heard it", heard.router);
    }
    Ok(Cost {
        route: format!("{} → {}", source.tap.0, destination.tap.0),
        downtime,
        heard: heard.map(|heard| heard.at),
        window: Window {
            vm: String::new(),
            unplug: stopped,
            replug: resumed,
            anchors,
        },
    })
}

/// When the guest last began to run, or ceased to.
fn last(monitor: &mut Monitor, runs: bool) -> Result<u64> {
    wait_for("QEMU's event", PATIENCE, || {
        monitor.ask("query-status", &json!({}))?;
        let happened = monitor.happened().iter().rev();
        Ok(happened.filter(|it| it.runs == runs).map(|it| it.at).next())
    })
}

/// A migration that is cancelled half-way: natmig takes back what was prepared.
fn cancel(lab: &Lab, natmig: &Path, first: &mut Machine, mut unlucky: Machine) -> Result<()> {
    let mut leaving = Watcher::start(lab, natmig, first, "leaving")?;
    let mut arriving = Watcher::start(lab, natmig, &unlucky, "unlucky")?;
    let announced = arriving.wait("announced", 1)?;
    let id = announced["migration"].as_u64().context("no number")?;
    let mut monitor = first.monitor()?;
    monitor.ask(
        "migrate-set-parameters",
        &json!({ "max-bandwidth": 100_000 }),
    )?;
    monitor.ask("migrate", &json!({ "uri": unlucky.incoming() }))?;
    leaving.wait("announced", 1)?;
    monitor.ask("migrate_cancel", &json!({}))?;
    unlucky.wait_ended()?;
    let aborted = |it: &Migration| it.phase == "aborted";
    lab.client()?.wait(id, "aborted", PATIENCE, aborted)?;
    monitor.ask(
        "migrate-set-parameters",
        &json!({ "max-bandwidth": 1 << 30 }),
    )?;
    Ok(())
}

/// Traffic between the guest and peers that are near and far.
struct Traffic {
    /// Streams, and what their windows are longer by.
    datagrams: Vec<(Datagrams, Duration)>,
    connections: Vec<Connection>,
}

impl Traffic {
    fn start(lab: &Lab, guest: &Guest) -> Result<Self> {
        let [ipv4, ipv6] = guest.addresses();
        let mut traffic = Self {
            datagrams: Vec::new(),
            connections: Vec::new(),
        };
        for (peer, address) in [
            ("outside", ipv4),
            ("outside", ipv6),
            ("host1", ipv4),
            ("host3", ipv6),
        ] {
            let label = format!("{peer} to {address}");
            let node = lab.network.node(peer)?;
            let peers = &lab.network.topology().hosts;
            let is_neighbour = peers
                .iter()
                .any(|host| host.name == peer && host.segment == guest.home.name);
            let learning = if is_neighbour {
                LEARNING
            } else {
                Duration::ZERO
            };
            let datagrams = Datagrams::start(node, &label, address)?;
            traffic.datagrams.push((datagrams, learning));
            traffic
                .connections
                .push(Connection::start(node, &label, address)?);
        }
        Ok(traffic)
    }

    fn more(&self) -> Result<()> {
        for (flow, _) in &self.datagrams {
            flow.more(100)?;
        }
        let mut connections = self.connections.iter();
        connections.try_for_each(|flow| flow.more(10_000))
    }

    /// Ends it, demands that everything arrived that had to, and says what peers saw.
    fn finish(self, costs: &[Cost]) -> Result<()> {
        let windows: Vec<Window> = costs.iter().map(|cost| cost.window.clone()).collect();
        let mut outages = vec![0; costs.len()];
        for (flow, learning) in self.datagrams {
            let record = flow.finish()?;
            record.check(&windows, learning)?;
            for (outage, window) in outages.iter_mut().zip(&windows) {
                *outage = record.outage(window).max(*outage);
            }
            println!("  {record}");
        }
        for (cost, outage) in costs.iter().zip(outages) {
            let window = &cost.window;
            println!(
                "  {}: QEMU's downtime {} ms, stop to resume {}, resume to the anchors' commit {}, \
                 longest silence of a datagram stream {}",
                cost.route,
                cost.downtime,
                milliseconds(window.replug.saturating_sub(window.unplug)),
                milliseconds(window.natmig_gap()),
                milliseconds(outage),
            );
            if let Some(heard) = cost.heard {
                // QEMU announces the guest before its processors run, so this may be negative.
                let resumed = Duration::from_nanos(window.replug).as_secs_f64();
                let heard = Duration::from_nanos(heard).as_secs_f64();
                println!("    heard {:+.1} ms from resume", (heard - resumed) * 1e3);
            }
        }
        for connection in self.connections {
            let record = connection.finish()?;
            println!(
                "  TCP: {} bytes returned as sent, longest stall {:?}",
                record.bytes, record.stall
            );
        }
        Ok(())
    }
}

fn play(lab: &Lab, natmig: &Path, boot: &Boot) -> Result<()> {
    let topology = lab.network.topology();
    let guest = Guest {
        name: "guest1".into(),
        home: topology.segment("rack1").context("no rack1")?.clone(),
        address: "10.1.1.20".parse()?,
        address_ipv6: "2001:db8:1::20".parse()?,
    };
    let [ipv4, ipv6] = guest.addresses().map(|address| address.to_string());
    let add = ["vm", "add", &guest.name, "--mac", &guest.mac(), "--segment"];
    let place = ["rack1", "--ip", &ipv4, "--ip", &ipv6];
    lab.client()?.ask(&[&add[..], &place[..]].concat())?;
    let machine = |name, segment| Machine::start(lab, name, segment, &guest, boot, true);
    let mut first = Machine::boot(lab, "first", "rack1", &guest, boot)?;
    cancel(lab, natmig, &mut first, machine("unlucky", "rack2")?)?;

    let mut second = machine("second", "rack3")?;
    let mut third = machine("third", "rack1")?;
    let taps = [&first, &second, &third].map(|machine| machine.tap.clone());
    let captures = Captures::start_with(&lab.network, &[], &taps)?;
    let traffic = Traffic::start(lab, &guest)?;
    traffic.more()?;
    let id = announce(lab, &guest, &second)?;
    let away = send(lab, &mut first, &mut second, id, "rack1")?;
    ensure!(away.heard.is_some(), "it was not heard");
    traffic.more()?;
    first.kill()?;

    let mut watchers = (
        Watcher::start(lab, natmig, &second, "second")?,
        Watcher::start(lab, natmig, &third, "third")?,
    );
    let id = announced(lab, (&mut watchers.0, &mut watchers.1))?;
    let home = send(lab, &mut second, &mut third, id, "rack1")?;
    ensure!(home.heard.is_none(), "a watcher says when, not an edge");
    traffic.more()?;
    third.check()?;
    let activated: usize = [&watchers.0, &watchers.1]
        .iter()
        .map(|watcher| watcher.reports("activated").len())
        .sum();
    // Both ends may be in time; whoever comes second changes nothing.
    ensure!(
        (1..=2).contains(&activated),
        "{activated} activations of one migration"
    );
    traffic.finish(&[away, home])?;
    let findings = captures.finish()?;
    ensure!(
        findings.missed == 0,
        "captures missed {} frames",
        findings.missed
    );
    if let Some(leak) = findings.leaks.first() {
        anyhow::bail!("{} leaks, the first: {leak}", findings.leaked);
    }
    println!("  captures: {} frames, no locator", findings.frames);
    let first = findings.first.get(&second.tap).context("it was mute")?;
    ensure!(
        first.get(12..14) == Some(&RARP),
        "the first frame from its new place is no RARP: {first:02x?}"
    );
    Ok(())
}

fn milliseconds(nanoseconds: u64) -> String {
    format!(
        "{:.1} ms",
        Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3
    )
}

#[test]
fn qemu_migrates_a_real_guest() {
    if cfg!(not(target_arch = "x86_64")) {
        println!("SKIPPED: real guests run on x86-64 machines only");
        return;
    }
    let Some(needs) = natmig() else { return };
    let natmig = &needs.natmig;
    let boot = match Boot::find() {
        Ok(boot) => boot,
        Err(error) => return skip(&format!("{error:#}")),
    };
    let lab = Lab::start(three_tier(), natmig).unwrap();
    if let Err(error) = play(&lab, natmig, &boot) {
        lab.print_logs();
        let logs = lab.directory().join("logs");
        for name in ["first1", "second", "third", "unlucky", "leaving"] {
            for log in [format!("{name}.log"), format!("watch-{name}.log")] {
                let text = std::fs::read_to_string(logs.join(&log)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(20)..].join("\n");
                eprintln!("--- {log}\n{tail}");
            }
        }
        drop(lab);
        panic!("{error:#}");
    }
}

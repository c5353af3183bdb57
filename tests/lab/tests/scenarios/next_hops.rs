//! Next hops of natmig's own, while the kernel's routes, neighbours and links change under traffic, and
//! with a dead agent.

use std::{
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use natmig_lab::{Lab, run::wait_for};

use crate::common::{migrate, run, scenario, three_tier};

/// Within this, traffic must flow again whatever happened: generous, the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long a scenario watches what an event does to traffic.
const WATCHED: Duration = Duration::from_secs(5);

/// Pings a hundred times a second until it is stopped.
struct Pings(Child);

impl Pings {
    fn start(lab: &Lab, from: &str, to: &str) -> Result<Self> {
        let child = lab
            .network
            .node(from)?
            .command("ping")
            .args(["-n", "-D", "-i", "0.01", "-W", "1", to])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run ping")?;
        Ok(Self(child))
    }

    /// The longest time without an answer, and how long ago the last one was.
    fn stop(self) -> Result<(Duration, Duration)> {
        let end = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        // It writes what it has to say when it is interrupted, not when it is killed.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let times: Vec<f64> = text
            .lines()
            .filter(|line| line.contains("bytes from"))
            .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok())
            .collect();
        let last = *times.last().context("no ping was answered")?;
        let gap = times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .fold(0.0, f64::max);
        let since = (end.as_secs_f64() - last).max(0.0);
        Ok((Duration::from_secs_f64(gap), Duration::from_secs_f64(since)))
    }
}

/// A counter of what came in on a router's access interface. What leaves there is another matter: for
/// destinations on a connected prefix, the kernel is always asked.
fn counter(lab: &Lab, router: &str, name: &str) -> Result<u64> {
    let instance = lab.instance(router);
    let text = lab.client()?.ask_in(
        lab.network.node(router)?,
        &["stats", "--json", "--instance", &instance],
    )?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let interfaces = value["interfaces"].as_array().into_iter().flatten();
    Ok(interfaces
        .filter(|interface| interface["role"] == "access")
        .flat_map(|interface| interface["counters"].as_array().into_iter().flatten())
        .filter(|counter| counter["name"] == name)
        .filter_map(|counter| counter["packets"].as_u64())
        .sum())
}

/// Waits until packets no longer ask the kernel, while pings run.
fn own_next_hops(lab: &Lab, router: &str, from: &str, to: &str) -> Result<()> {
    let pings = Pings::start(lab, from, to)?;
    // As on a machine of its own: a late heartbeat, too, has the kernel asked.
    let waited = wait_for("next hops of natmig's own", DEADLINE, || {
        let (asked, sent) = (
            counter(lab, router, "fib_asked")?,
            counter(lab, router, "translated")?,
        );
        thread::sleep(Duration::from_millis(300));
        let (more_asked, more_sent) = (
            counter(lab, router, "fib_asked")?,
            counter(lab, router, "translated")?,
        );
        Ok((more_sent > sent + 5 && more_asked == asked).then_some(()))
    });
    pings.stop()?;
    waited
}

/// What an event does to traffic from `host1` to the VM: prints the gap and how many packets asked the
/// kernel; demands that traffic flows again.
fn event(
    lab: &mut Lab,
    to: &str,
    what: &str,
    happen: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<u64> {
    let asked = counter(lab, "edge1", "fib_asked")?;
    let pings = Pings::start(lab, "host1", to)?;
    thread::sleep(Duration::from_millis(500));
    happen(lab)?;
    let begun = Instant::now();
    thread::sleep(WATCHED);
    let (gap, since) = pings.stop()?;
    let asked = counter(lab, "edge1", "fib_asked")? - asked;
    eprintln!(
        "{what}: longest gap {gap:?} in {:?}, {asked} packets asked the kernel",
        begun.elapsed()
    );
    ensure!(
        since < WATCHED / 2 && gap < WATCHED,
        "{what}: traffic does not flow again: {gap:?} without an answer, the last {since:?} ago"
    );
    Ok(asked)
}

/// The ways of edge1 to rack3's prefix: gateway and interface.
fn ways(lab: &Lab, family: &str, prefix: &str) -> Result<Vec<(String, String)>> {
    let text = run(lab, "edge1", "ip", &[family, "-j", "route", "show", prefix])?;
    let routes: serde_json::Value = serde_json::from_str(&text)?;
    let route = &routes[0];
    let hops = route["nexthops"].as_array().cloned();
    let hops = hops.unwrap_or_else(|| vec![route.clone()]);
    hops.iter()
        .map(|hop| {
            let text = |name: &str| hop[name].as_str().map(str::to_owned);
            text("gateway").zip(text("dev")).context("an odd route")
        })
        .collect()
}

fn ip(lab: &Lab, arguments: &str) -> Result<()> {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    run(lab, "edge1", "ip", &arguments).map(drop)
}

/// Gives the ends of aggregation routers' links to edge1 other MAC addresses. They tell of it, as a router
/// does that takes over from another.
fn change_macs(lab: &Lab, macs: &[(&str, &str)]) -> Result<()> {
    for (agg, mac) in macs {
        let node = lab.network.node(agg)?;
        node.sysctl(&[
            ("net.ipv4.conf.edge1.arp_notify", "1"),
            ("net.ipv6.conf.edge1.ndisc_notify", "1"),
        ])?;
        node.ask_ip(&["link", "set", "edge1", "address", mac])?;
    }
    Ok(())
}

#[test]
fn traffic_follows_routes_neighbours_and_links() {
    scenario(three_tier(), |lab| {
        migrate(lab, &[("vm1", "rack3")])?;
        follow(lab, "-4", "10.1.1.10", "10.1.3.0/24")
    });
}

#[test]
fn traffic_of_ipv6_follows_routes_neighbours_and_links() {
    scenario(three_tier(), |lab| {
        migrate(lab, &[("vm1", "rack3")])?;
        follow(lab, "-6", "2001:db8:1::10", "2001:db8:3::/64")
    });
}

fn follow(lab: &mut Lab, family: &str, vm: &str, prefix: &str) -> Result<()> {
    own_next_hops(lab, "edge1", "host1", vm)?;
    let ways = ways(lab, family, prefix)?;
    ensure!(ways.len() == 2, "edge1 has {} ways to rack3", ways.len());
    let one = |way: &(String, String)| format!("via {} dev {}", way.0, way.1);
    let both = format!("nexthop {} nexthop {}", one(&ways[0]), one(&ways[1]));
    for way in &ways {
        event(lab, vm, "route to one way", |lab| {
            ip(
                lab,
                &format!("{family} route replace {prefix} {}", one(way)),
            )
        })?;
    }
    event(lab, vm, "route to both ways", |lab| {
        ip(lab, &format!("{family} route replace {prefix} {both}"))
    })?;
    for (gateway, device) in &ways {
        event(lab, vm, "neighbour flushed", |lab| {
            ip(lab, &format!("{family} neigh del {gateway} dev {device}"))
        })?;
    }
    // What is sent to the old ones, the neighbours' kernels drop.
    let macs = [("agg1", "02:00:00:00:00:a1"), ("agg2", "02:00:00:00:00:a2")];
    event(lab, vm, "neighbours' MAC addresses changed", |lab| {
        change_macs(lab, &macs)
    })?;
    own_next_hops(lab, "edge1", "host1", vm)?;
    for agg in ["agg1", "agg2"] {
        event(lab, vm, "link cut", |lab| {
            lab.network.cut_link(agg, "edge1")
        })?;
        lab.network.restore_link(agg, "edge1")?;
        own_next_hops(lab, "edge1", "host1", vm)?;
    }
    // With a dead agent, the routes are believed for a moment, then the kernel is asked.
    let asked = event(lab, vm, "agent killed, then a link cut", |lab| {
        lab.kill("edge1")?;
        lab.network.cut_link("agg1", "edge1")
    })?;
    ensure!(asked > 0, "a dead agent's routes are believed");
    lab.network.restore_link("agg1", "edge1")?;
    let asked = event(lab, vm, "agent dead, another link cut", |lab| {
        lab.network.cut_link("agg2", "edge1")
    })?;
    ensure!(asked > 0, "a dead agent's routes are believed");
    lab.network.restore_link("agg2", "edge1")?;
    lab.restart("edge1")?;
    lab.wait_connected()?;
    own_next_hops(lab, "edge1", "host1", vm)
}

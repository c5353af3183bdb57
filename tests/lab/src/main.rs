//! The lab's command line.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser as _;
use natmig_lab::{
    Lab, Topology,
    capture::Captures,
    namespace::Namespace,
    run,
    topology::THREE_TIER,
    traffic::{self, Kind, Pair, Rates, Traffic},
};

fn main() -> Result<()> {
    run::catch_interrupts()?;
    let start = std::time::Instant::now();
    let mut lab = Lab::plain(Topology::parse(THREE_TIER)?)?;
    eprintln!("up in {:?}", start.elapsed());
    let pair = |vm: &str, peer: &str| Pair { vm: vm.into(), peer: peer.into(), relation: "x".into() };
    let pairs = [pair("vm1", "outside"), pair("vm1", "host1"), pair("vm1", "host2"), pair("vm1","host3"), pair("vm1", "web1"), pair("web1", "outside"), pair("web1", "host1"), pair("web1", "web2"), pair("web1", "host3"), pair("web1","host4")];
    let flows = traffic::flows(&lab.network, &pairs, &[Kind::Udp, Kind::Ping, Kind::Tcp, Kind::Http])?;
    let captures = Captures::start(&lab.network, &flows)?;
    let traffic = Traffic::start(&lab.network, flows, Rates::default())?;
    eprintln!("traffic after {:?}", start.elapsed());
    let began = std::time::Instant::now();
    let mut moved = false;
    while began.elapsed() < Duration::from_secs(8) {
        run::check_interrupted()?;
        std::thread::sleep(Duration::from_millis(100));
        if !moved && began.elapsed() > Duration::from_secs(3) {
            let a = lab.network.unplug("vm1")?;
            let b = lab.network.plug("vm1", "rack1")?;
            eprintln!("replug took {} us", (b - a) / 1000);
            moved = true;
        }
    }
    for record in traffic.finish(Duration::from_secs(3))? {
        println!("{} {} {}: {} sent, {} missing, dup {} mis {} gap {:?} delay {} bytes {} conns {} stall {} {:?}", record.flow.kind, record.flow.from, record.flow.to, record.datagrams.sent.len(), record.datagrams.received.iter().filter(|r| **r == 0).count(), record.datagrams.duplicated, record.datagrams.misdelivered, record.datagrams.longest_gap().0/1000, record.datagrams.longest_delay()/1000, record.bytes, record.connections, record.stall/1000, record.broken);
    }
    let f = captures.finish()?;
    println!("frames {} missed {} leaked {} mis {}", f.frames, f.missed, f.leaked, f.misdelivered.len());
    Ok(())
}

use natmig_lab::*;
use std::{path::PathBuf, time::Duration};
fn sh(lab: &Lab, node: &str, cmd: &str) {
    let o = lab
        .network
        .node(node)
        .unwrap()
        .command("sh")
        .args(["-c", cmd])
        .output()
        .unwrap();
    println!(
        "[{node}] {cmd}\n{}{}",
        String::from_utf8_lossy(&o.stdout),
        String::from_utf8_lossy(&o.stderr)
    );
}
fn main() -> anyhow::Result<()> {
    let bin = PathBuf::from(std::env::var("NATMIG_BIN")?);
    let mut topo = Topology::parse(topology::THREE_TIER)?;
    for l in topo.fabric.iter_mut() {
        if l.between == ["agg1", "edge2"] || l.between == ["agg2", "edge2"] {
            l.mtu = 1400;
        }
    }
    let mut lab = Lab::start(topo, &bin)?;
    lab.migrate("x", &[("vm1", "rack2")], Duration::from_millis(20))?;
    let ns = lab.network.node("rack2")?.clone();
    let t = std::thread::spawn(move || {
        let o = ns
            .command("timeout")
            .args(["3", "tcpdump", "-Uvvveni", "any", "icmp or arp"])
            .output()
            .unwrap();
        println!(
            "tcpdump rack {}{}",
            String::from_utf8_lossy(&o.stdout),
            String::from_utf8_lossy(&o.stderr)
        );
    });
    sh(
        &lab,
        "vm1",
        "sleep 0.5; (sleep 0.3; ping -n -c 2 -i 0.3 -W 1 -M do -s 1472 10.1.3.50) & timeout 2 tcpdump -eni eth0 2>/dev/null; true",
    );
    t.join().unwrap();
    sh(&lab, "rack2", "ip -s link; bridge fdb show br rack");
    for e in ["edge2"] {
        let i = lab.instance(e);
        sh(
            &lab,
            e,
            &format!("ip link show rack2; {} stats --instance {i}", bin.display()),
        );
    }
    Ok(())
}

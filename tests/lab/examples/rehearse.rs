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
    let mut lab = Lab::start(Topology::parse(topology::THREE_TIER)?, &bin)?;
    sh(&lab, "vm1", "ping -c 2 -i 0.2 -W 1 10.1.3.50; ip neigh");
    for rack in ["rack2", "rack1"] {
        let s = lab.migrate("x", &[("vm1", rack)], Duration::from_millis(20))?;
        lab.client()?
            .wait(s.id, "x", Duration::from_secs(10), |m| m.is_folded())?;
        sh(&lab, "vm1", "ping -c 2 -i 0.2 -W 1 10.1.3.50; ip neigh");
        lab.client()?
            .wait(s.id, "x", Duration::from_secs(10), |m| m.is_over())?;
        println!("over");
        let edge = if rack == "rack2" { "edge2" } else { "edge1" };
        let i = lab.instance(edge);
        sh(
            &lab,
            "vm1",
            "ip neigh replace 10.1.1.1 lladdr 02:6e:6d:00:00:01 dev eth0 nud permanent",
        );
        sh(
            &lab,
            "vm1",
            "(ping -c 8 -i 0.2 -W 1 10.1.3.50 > /dev/null) & timeout 1 tcpdump -eni eth0 2>/dev/null",
        );
        let node = lab.network.node(edge)?.clone();
        let r = rack.to_string();
        let t = std::thread::spawn(move || {
            let o = node
                .command("timeout")
                .args(["2", "tcpdump", "-Ueni", &r])
                .output()
                .unwrap();
            println!("tcpdump edge {}", String::from_utf8_lossy(&o.stdout));
        });
        sh(&lab, "vm1", "ping -c 8 -i 0.2 -W 1 10.1.3.50; ip neigh");
        t.join().unwrap();
        sh(
            &lab,
            edge,
            &format!(
                "{} stats --instance {i}; {} map dump --instance {i}; ip -d link show {rack}; bridge link; nstat -az | grep -E 'IpInAddr|IpForw|IpInRec|ReversePath'",
                bin.display(),
                bin.display()
            ),
        );
        sh(&lab, rack, "bridge fdb show br rack | grep -v permanent");
    }
    Ok(())
}

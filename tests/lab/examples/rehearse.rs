use std::{time::Duration, path::PathBuf};
use natmig_lab::*;
fn sh(lab: &Lab, node: &str, cmd: &str) { let o = lab.network.node(node).unwrap().command("sh").args(["-c", cmd]).output().unwrap(); println!("[{node}] {cmd}\n{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr)); }
fn main() -> anyhow::Result<()> {
    let bin = PathBuf::from(std::env::var("NATMIG_BIN")?);
    let mut lab = Lab::start(Topology::parse(topology::THREE_TIER)?, &bin)?;
    sh(&lab, "vm1", "ping -c 2 -i 0.2 -W 1 10.1.3.50; ip neigh");
    for rack in ["rack2", "rack1"] {
        let s = lab.migrate("x", &[("vm1", rack)], Duration::from_millis(20))?;
        lab.client()?.wait(s.id, "x", Duration::from_secs(10), |m| m.is_folded())?;
        sh(&lab, "vm1", "ping -c 2 -i 0.2 -W 1 10.1.3.50; ip neigh");
        lab.client()?.wait(s.id, "x", Duration::from_secs(10), |m| m.is_over())?;
        println!("over");
        sh(&lab, "vm1", "ip neigh; ping -c 2 -i 0.2 -W 1 10.1.3.50; ping -c 1 -W 1 10.1.1.1; ip neigh");
    }
    let i = lab.instance("edge1");
    sh(&lab, "edge1", &format!("{} stats --instance {i}; {} map dump --instance {i}; ip -d link show rack1; ip route; cat /proc/net/softnet_stat; nft list ruleset", bin.display(), bin.display()));
    sh(&lab, "edge1", "tcpdump -eni rack1 -c 6 & ip netns exec x true; sleep 0.3; true");
    sh(&lab, "vm1", "ping -c 3 -i 0.2 -W 1 10.1.3.50 & tcpdump -eni eth0 -c 6; true");
    sh(&lab, "edge1", "timeout 2 tcpdump -eni rack1 -c 6 ; nstat -az | grep -iE 'IpIn|Drop|Filter|OtherHost' ");
    sh(&lab, "edge1", &format!("{} stats --instance {i}", bin.display()));
    Ok(())
}

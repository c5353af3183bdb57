use natmig_lab::{capture::Captures, report::*, traffic::*, *};
use std::{collections::BTreeMap, path::Path, time::Duration};
fn main() -> anyhow::Result<()> {
    let mut lab = Lab::plain(Topology::parse(topology::THREE_TIER)?)?;
    let pair = |vm: &str, peer: &str, r: &str| Pair {
        vm: vm.into(),
        peer: peer.into(),
        relation: r.into(),
    };
    let pairs = [
        pair("vm1", "outside", "outside"),
        pair("vm1", "host1", "same segment"),
        pair("vm1", "host2", "where it moves to"),
        pair("vm1", "host3", "another segment"),
        pair("vm1", "web1", "another VM"),
        pair("web1", "outside", "outside"),
        pair("web1", "host1", "same segment"),
        pair("web1", "web2", "same group"),
        pair("web1", "host3", "where it moves to"),
        pair("web1", "host4", "another segment"),
    ];
    let flows = traffic::flows(
        &lab.network,
        &pairs,
        &[Kind::Udp, Kind::Ping, Kind::Tcp, Kind::Http],
    )?;
    let captures = Captures::start(&lab.network, &flows)?;
    let traffic = Traffic::start(&lab.network, flows, Rates::default())?;
    let mut steps = vec![];
    for (i, (vms, to)) in [(vec!["vm1"], "rack2"), (vec!["web1", "web2"], "rack3")]
        .into_iter()
        .enumerate()
    {
        std::thread::sleep(Duration::from_secs(3));
        let asked = clock::now();
        let moves: Vec<_> = vms
            .iter()
            .map(|vm| Move {
                vm: vm.to_string(),
                from: lab.network.place(vm).unwrap().into(),
                to: to.into(),
            })
            .collect();
        let mut windows = vec![];
        for vm in &vms {
            let unplug = lab.network.unplug(vm)?;
            windows.push(account::Window {
                vm: vm.to_string(),
                unplug,
                replug: 0,
                anchors: 0,
            });
        }
        std::thread::sleep(Duration::from_millis(50));
        for (w, vm) in windows.iter_mut().zip(&vms) {
            let home = lab.network.topology().vm(vm).unwrap().segment.clone();
            w.replug = lab.network.plug(vm, &home)?;
            w.anchors = w.replug + 12_000_000;
        }
        let d = clock::now();
        let commits: BTreeMap<_, _> = lab
            .network
            .topology()
            .routers
            .iter()
            .enumerate()
            .map(|(i, r)| (r.name.clone(), d + 8_000_000 + i as u64 * 700_000))
            .collect();
        steps.push(Step {
            id: i as u64 + 1,
            title: "a rehearsal".into(),
            moves,
            asked,
            prepared: asked + 20_000_000,
            decided: d,
            windows,
            commits,
            folded: Some(d + 40_000_000),
            retired: None,
        });
    }
    std::thread::sleep(Duration::from_secs(2));
    let records = traffic.finish(Duration::from_secs(3))?;
    let findings = captures.finish()?;
    let o = Observations {
        topology: lab.network.topology().clone(),
        records,
        findings,
        steps,
        listings: vec![],
    };
    println!("{}\n{}", report::migrations(&o), report::flows(&o));
    println!("{:?}", o.violations());
    println!("{}", serde_json::to_string(&o.summary())?);
    println!(
        "{}",
        report::write(&o, Path::new("/tmp/w/lab-report"))?.display()
    );
    Ok(())
}

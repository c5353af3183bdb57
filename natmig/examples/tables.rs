//! Times a router's tables, in a network namespace of its own: prints JSON with what it takes to
//! load a file of bindings as one transaction (`load_s`; `load_1m_s` for a million), memory per
//! binding, and how long one binding's change takes from prepare to commit while another CPU looks
//! addresses up.
//!
//! `tables [BINDINGS [UPDATES]]`; needs root, two CPUs and a build with the eBPF program.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use natmig::{
    config::RouterConfig,
    router::{Router, StartOptions, Started, reader::Reader},
    rule::{Change, Changes, Rule, TransactionId},
};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use pinned::Pinned;

#[path = "../tests/support/pinned.rs"]
mod pinned;

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let program = words.next().context("an empty command")?;
    ensure!(
        Command::new(program).args(words).status()?.success(),
        "{command}"
    );
    Ok(())
}

/// Identity and locator of a binding: dense, beginning at the start of a prefix.
fn pair(number: u32) -> (Ipv4Addr, Ipv4Addr) {
    (
        Ipv4Addr::from(0x0b00_0000 + number),
        Ipv4Addr::from(0x6440_0000 + number),
    )
}

/// A UDP packet to an identity; its checksum is of no interest.
fn frame(mac: [u8; 6], to: Ipv4Addr) -> Vec<u8> {
    let mut frame = mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 1, 9]);
    frame.extend(to.octets());
    frame.extend([0x10, 0, 0x20, 0, 0, 8, 0, 0]);
    frame
}

fn start(instance: &str, bindings: u32) -> Result<Router> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    for name in ["acc0", "fab0"] {
        run(&format!(
            "ip link add {name} type veth peer name {name}-peer"
        ))?;
        run(&format!("ip link set {name} up"))?;
        run(&format!("ip link set {name}-peer up"))?;
    }
    run("ip address add 10.1.1.1/24 dev acc0")?;
    let capacity = (bindings * 2).next_power_of_two().max(4096);
    let config = format!(
        "router = \"edge1\"\ninstance = \"{instance}\"\nmax_addresses = {capacity}\n\
         max_addresses_ipv6 = 4096\nlocator_pools = [\"100.64.0.0/10\"]\n\
         [[interface]]\nname = \"acc0\"\nrole = \"access\"\nsegment = \"rack1\"\n\
         prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\n\
         [[interface]]\nname = \"fab0\"\nrole = \"fabric\"\n"
    );
    let config = RouterConfig::parse(Path::new("tables.toml"), &config)?;
    let Started { router, .. } = Router::start(&config, &StartOptions::default())?;
    Ok(router)
}

/// Looks the addresses of all bindings up until it is told to stop.
fn load(instance: &str, bindings: u32, stop: &AtomicBool) -> Result<()> {
    pin(1)?;
    let interfaces = Reader::open(instance)?.interfaces()?;
    let access = interfaces
        .iter()
        .find(|interface| interface.role == "access");
    let ifindex = access.context("no access interface")?.ifindex;
    let text = std::fs::read_to_string("/sys/class/net/acc0/address").unwrap_or_default();
    let mac: natmig::rule::MacAddress = text
        .trim()
        .parse()
        .unwrap_or(natmig::rule::MacAddress([2; 6]));
    let pins = Path::new("/sys/fs/bpf/natmig").join(instance);
    let program = Pinned::open(&pins.join("programs/natmig"))?;
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        program.run(&frame(mac.0, pair(number % bindings).0), ifindex, 100)?;
    }
    Ok(())
}

/// Microseconds from prepare to commit of one binding's change, ascending.
fn update(router: &mut Router, bindings: u32, updates: u32) -> Result<Vec<f64>> {
    pin(0)?;
    let mut times = Vec::new();
    for number in 0..updates {
        let (identity, locator) = pair(number.wrapping_mul(7919) % bindings);
        let (_, other) = pair(bindings + number);
        let away = |locator: IpAddr| Rule::Away {
            locator,
            home: None,
        };
        let to = if number % 2 == 0 { other } else { locator };
        let changes = Changes {
            early: Vec::new(),
            pending: vec![Change {
                address: identity.into(),
                rule: away(to.into()),
            }],
        };
        let id = TransactionId(u64::from(number) + 1);
        let begun = Instant::now();
        router.prepare(id, &changes)?;
        router.commit(id)?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        router.fold(id)?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]
fn bench(instance: &str, bindings: u32, updates: u32) -> Result<serde_json::Value> {
    let mut router = start(instance, bindings)?;
    let mut text = String::new();
    for (identity, locator) in (0..bindings).map(pair) {
        writeln!(text, "{identity} {locator} away")?;
    }
    let file = std::env::temp_dir().join(format!("{instance}.bindings"));
    std::fs::write(&file, text)?;
    let begun = Instant::now();
    let applied = router.apply_file(&file, false, &mut |_, _, _| {});
    let load_s = begun.elapsed().as_secs_f64();
    std::fs::remove_file(&file)?;
    let parse_s = applied?.parsed.as_secs_f64();
    let bytes = router.map_bytes()?;
    let (capacity, _) = router.capacity();
    let per_binding = (bytes.ipv4 + bytes.shared) as f64 / f64::from(capacity) * 2.0;
    let stop = Arc::new(AtomicBool::new(false));
    let reader = thread::spawn({
        let (instance, stop) = (instance.to_owned(), Arc::clone(&stop));
        move || load(&instance, bindings, &stop)
    });
    let times = update(&mut router, bindings, updates);
    stop.store(true, Ordering::Relaxed);
    if let Ok(result) = reader.join() {
        result.context("the load")?;
    }
    let times = times?;
    let quantile = |part: f64| times.get((times.len() as f64 * part) as usize).copied();
    Ok(serde_json::json!({
        "bindings": bindings,
        "load_s": load_s,
        "parse_s": parse_s,
        "load_1m_s": load_s * 1e6 / f64::from(bindings),
        "bytes_per_binding": per_binding,
        "update_p50_us": quantile(0.5),
        "update_p99_us": quantile(0.99),
    }))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |otherwise: u32| -> Result<u32> {
        Ok(arguments
            .next()
            .map_or(Ok(otherwise), |text| text.parse())?)
    };
    let (bindings, updates) = (number(1_000_000)?, number(1000)?);
    ensure!(
        natmig::router::has_program(),
        "build it with NATMIG_EBPF_OBJECT"
    );
    let instance = format!("tables-{}", std::process::id());
    let result = thread::spawn({
        let instance = instance.clone();
        move || {
            let result = bench(&instance, bindings, updates);
            if let Err(error) = natmig::router::unload(&instance) {
                eprintln!("{instance} is left behind: {error}");
            }
            result
        }
    });
    let Ok(result) = result.join() else {
        anyhow::bail!("the benchmark panicked");
    };
    for extension in ["lock", "json"] {
        std::fs::remove_file(format!("/run/natmig/{instance}.{extension}")).ok();
    }
    println!("{}", serde_json::to_string_pretty(&result?)?);
    Ok(())
}

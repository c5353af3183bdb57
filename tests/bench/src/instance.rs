//! natmig on a site's router, run as an operator runs it: loaded with a configuration file, filled
//! from files of bindings, and then kept by an agent.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use natmig_common::{Counter, names};
use natmig_lab::{
    daemon::Daemon,
    run::{Run, wait_for},
};
use serde::{Deserialize, Serialize};

use crate::{
    plan::Tables,
    site::{MACS, Site, file},
    traffic::{Area, Family, VISITORS},
};

/// How long the agent may take to read its tables and attach; with a million sparse addresses of either
/// family and other work on the machine it is many seconds.
const PATIENCE: Duration = Duration::from_mins(2);
/// Where natmig's objects are pinned.
const PINS: &str = "/sys/fs/bpf/natmig";

/// An instance of natmig.
#[derive(Debug)]
pub struct Instance {
    /// Its name.
    pub name: String,
    program: PathBuf,
    config: PathBuf,
    agent: Option<Daemon>,
}

/// What `natmig map apply` says of itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Applied {
    /// Seconds from the command's start, within itself, until the transaction was committed.
    pub seconds: f64,
    /// Largest memory of the process.
    #[serde(default)]
    pub process_peak_bytes: u64,
    /// Seconds of the whole command, as its caller saw it.
    #[serde(default)]
    pub whole_seconds: f64,
}

impl Instance {
    /// Loads natmig on the router.
    pub fn load(run: &Run, natmig: &Path, site: &Site, key: &str, tables: &Tables) -> Result<Self> {
        let name = run.instance(key);
        let config = file(run, &format!("{key}.toml"));
        fs::write(&config, configuration(&name, *tables))?;
        let instance = Self {
            name,
            program: natmig.to_owned(),
            config,
            agent: None,
        };
        instance.natmig(site, &["load", "--config", &instance.config()])?;
        Ok(instance)
    }

    fn config(&self) -> String {
        self.config.display().to_string()
    }

    /// Runs a command of natmig to its end and returns what it printed.
    pub fn natmig(&self, site: &Site, arguments: &[&str]) -> Result<String> {
        let output = site
            .router()?
            .command(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .env("NO_COLOR", "1")
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        ensure!(
            output.status.success(),
            "natmig {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Applies a file of bindings as one transaction; with `merge`, those of the table stay.
    pub fn apply(&self, site: &Site, bindings: &Path, merge: bool) -> Result<Applied> {
        let path = bindings.display().to_string();
        let mut arguments = vec!["map", "apply", "--json", "--instance", &self.name, &path];
        if merge {
            arguments.push("--merge");
        }
        let start = Instant::now();
        let said = self.natmig(site, &arguments)?;
        let mut applied: Applied = serde_json::from_str(&said)
            .with_context(|| format!("`natmig map apply --json` said: {said}"))?;
        applied.whole_seconds = start.elapsed().as_secs_f64();
        Ok(applied)
    }

    /// Starts the agent, whose controller is nowhere: it keeps routes and next hops.
    pub fn start_agent(&mut self, run: &Run, site: &Site) -> Result<()> {
        let state = file(run, "state").display().to_string();
        let agent = Daemon::start(
            run,
            &self.name,
            site.router()?,
            &self.program,
            &["agent", "--config", &self.config(), "--state", &state],
        )?;
        let log = agent.log().to_owned();
        let agent = self.agent.insert(agent);
        wait_for("the agent to take over", PATIENCE, || {
            agent.check()?;
            let said = fs::read_to_string(&log).unwrap_or_default();
            Ok(said.contains("attached").then_some(()))
        })
    }

    /// Ends the agent without warning.
    pub fn kill_agent(&mut self) -> Result<()> {
        match self.agent.take() {
            Some(mut agent) => agent.kill(),
            None => Ok(()),
        }
    }

    /// Has natmig trace one packet in a thousand, until the tracer is stopped.
    pub fn trace(&self, site: &Site) -> Result<TraceProcess> {
        let mut child = site
            .router()?
            .command(&self.program)
            .args([
                "trace",
                "--sample",
                "1000",
                "--json",
                "--instance",
                &self.name,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut events = child.stdout.take().context("no output")?;
        let reader = std::thread::spawn(move || io::copy(&mut events, &mut io::sink()));
        Ok(TraceProcess { child, reader })
    }

    /// An error if the agent has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        self.agent.as_mut().map_or(Ok(()), Daemon::check)
    }

    /// Where the program is pinned.
    pub fn pinned_program(&self) -> PathBuf {
        Path::new(PINS)
            .join(&self.name)
            .join("programs")
            .join(names::PROGRAM)
    }

    fn maps(&self) -> PathBuf {
        Path::new(PINS).join(&self.name).join("maps")
    }

    /// Packets that a counter has counted, on all interfaces and CPUs.
    pub fn counted(&self, counter: Counter) -> Result<u64> {
        let map = MapData::from_pin(self.maps().join(names::COUNTERS))?;
        let length = map.info()?.max_entries();
        let counters: PerCpuArray<_, [[u64; 2]; Counter::COUNT as usize]> =
            Map::PerCpuArray(map).try_into()?;
        let mut sum = 0;
        for slot in 0..length {
            let values = counters.get(&slot, 0)?;
            let values = values.iter().map(|all| all[usize::from(counter.raw())]);
            sum += values.map(|[packets, _]| packets).sum::<u64>();
        }
        Ok(sum)
    }

    /// Bytes of kernel memory, by map.
    pub fn memory(&self) -> Result<Vec<(String, u64)>> {
        use std::os::fd::{AsFd as _, AsRawFd as _};
        let directory = self.maps();
        let mut sizes = Vec::new();
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            let map = MapData::from_pin(entry.path())?;
            let info = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
            let bytes = fs::read_to_string(info)?
                .lines()
                .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
                .context("the kernel does not say what a map takes")?;
            sizes.push((entry.file_name().to_string_lossy().into_owned(), bytes));
        }
        sizes.sort();
        Ok(sizes)
    }
}

/// A tracer that runs.
#[derive(Debug)]
pub struct TraceProcess {
    child: Child,
    reader: JoinHandle<io::Result<u64>>,
}

impl TraceProcess {
    /// Ends it; an error if it has seen nothing.
    pub fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.child.wait()?;
        let bytes = self.reader.join().unwrap_or(Ok(0))?;
        ensure!(bytes > 0, "the tracer saw no packet");
        Ok(())
    }
}

/// The router's configuration file.
fn configuration(instance: &str, tables: Tables) -> String {
    let mut pools = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        pools.extend(Area::Locators(tables.density).pools(family, tables.bindings));
        if tables.visitors {
            pools.extend(Area::VisitorLocators.pools(family, VISITORS));
        }
    }
    let forward = if tables.forward_all { "all" } else { "bound" };
    let inner = if tables.visitors {
        "role = \"access\"\nsegment = \"rack\"\nprefix = \"192.0.2.0/30\"\ngateway = \"192.0.2.1\"\n\
         prefix_ipv6 = \"fd00:0:0:1::/64\"\ngateway_ipv6 = \"fd00:0:0:1::1\"\n"
    } else {
        "role = \"external\"\n"
    };
    format!(
        "router = \"bench\"\ninstance = \"{instance}\"\nforward = \"{forward}\"\n\
         binding_counters = {}\nlocator_pools = {pools:?}\n\
         [[interface]]\nname = \"in\"\n{inner}\
         [[interface]]\nname = \"out\"\nrole = \"fabric\"\n\
         [controller]\nendpoints = [\"unix:///nonexistent/natmig.sock\"]\nretry_ms = 60000\n",
        tables.binding_counters
    )
}

/// Writes a file of the bindings of a family.
pub fn write_bindings(path: &Path, family: Family, tables: &Tables) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    let (identities, locators) = (
        Area::Identities(tables.density),
        Area::Locators(tables.density),
    );
    let mut line = String::new();
    for number in 0..tables.bindings {
        line.clear();
        match family {
            Family::Ipv4 => writeln!(
                line,
                "{} {} away",
                identities.ipv4(number),
                locators.ipv4(number)
            )?,
            Family::Ipv6 => writeln!(
                line,
                "{} {} away",
                identities.ipv6(number),
                locators.ipv6(number)
            )?,
        }
        out.write_all(line.as_bytes())?;
    }
    if tables.visitors {
        for number in 0..VISITORS {
            let mac = visitor_mac(number)
                .map(|byte| format!("{byte:02x}"))
                .join(":");
            match family {
                Family::Ipv4 => writeln!(
                    out,
                    "{} {} here rack {mac}",
                    Area::Visitors.ipv4(number),
                    Area::VisitorLocators.ipv4(number)
                )?,
                Family::Ipv6 => writeln!(
                    out,
                    "{} {} here rack {mac}",
                    Area::Visitors.ipv6(number),
                    Area::VisitorLocators.ipv6(number)
                )?,
            }
        }
    }
    out.flush().context("file of bindings")
}

/// The MAC address of a visitor: the generator's, with the number added.
fn visitor_mac(number: u32) -> [u8; 6] {
    let mut mac = MACS[0];
    let low = u16::from_be_bytes([mac[4], mac[5]]).wrapping_add(number as u16);
    mac[4..].copy_from_slice(&low.to_be_bytes());
    mac
}

/// A file name for the bindings of a table; tables with the same bindings share it.
pub fn bindings_name(family: Family, tables: &Tables) -> String {
    format!(
        "{family:?}-{}-{:?}{}.txt",
        tables.bindings,
        tables.density,
        if tables.visitors { "-visitors" } else { "" }
    )
}

/// Bytes that the maps of one family take, of those of both families, and of `shared` ones.
pub fn bytes_of(family: Family, memory: &[(String, u64)]) -> Result<u64> {
    let (own, other) = match family {
        Family::Ipv4 => ("_IPV4", "_IPV6"),
        Family::Ipv6 => ("_IPV6", "_IPV4"),
    };
    let bytes = memory
        .iter()
        .filter(|(name, _)| name.ends_with(own) || !name.ends_with(other))
        .map(|(_, bytes)| bytes)
        .sum();
    if bytes == 0 {
        bail!("no maps are pinned");
    }
    Ok(bytes)
}

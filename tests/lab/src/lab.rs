//! A running lab: the network, natmig's daemons in it, and migrations as an orchestrator does them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};

use crate::{
    account::Window,
    client::Client,
    clock,
    daemon::Daemon,
    network::Network,
    pki::Pki,
    report::{Move, Step},
    run::{self, Run},
    topology::Topology,
};

const BPFFS: &str = "/sys/fs/bpf";
const PORT: u16 = 7400;
/// A program that was started has done its work by then, on a busy machine too.
const PATIENCE: Duration = Duration::from_mins(2);

/// natmig's daemons.
#[derive(Debug)]
struct Daemons {
    controller: Daemon,
    agents: BTreeMap<String, Daemon>,
    client: Client,
}

/// A running lab. Everything is gone when it is dropped.
#[derive(Debug)]
pub struct Lab {
    daemons: Option<Daemons>,
    /// The network.
    pub network: Network,
    run: Run,
}

impl Lab {
    /// Builds the network only: plain kernel forwarding.
    pub fn plain(topology: Topology) -> Result<Self> {
        let run = Run::claim()?;
        let network = Network::build(topology, &run.prefix())?;
        Ok(Self {
            daemons: None,
            network,
            run,
        })
    }

    /// Builds the network and starts natmig in it: the controller, an agent on every router. Returns
    /// when all routers are connected and all VMs known.
    pub fn start(topology: Topology, natmig: &Path) -> Result<Self> {
        let mut lab = Self::plain(topology)?;
        let started = lab.start_daemons(natmig);
        started.inspect_err(|_| lab.print_logs())?;
        Ok(lab)
    }

    fn start_daemons(&mut self, natmig: &Path) -> Result<()> {
        mount_bpffs()?;
        let directory = self.run.directory().to_owned();
        let socket = directory.join("controller.sock");
        let (management, address) = self.network.management()?;
        let endpoint = format!("{address}:{PORT}");
        let pki = Pki::create(natmig, &directory)?;
        let config = directory.join("controller.toml");
        let (socket_path, store) = (socket.display(), directory.join("controller.redb"));
        fs::write(
            &config,
            format!(
                "listen = \"{endpoint}\"\nsocket = \"{socket_path}\"\nstore = \"{}\"\n[tls]\n{}",
                store.display(),
                pki.controller("controller", address.into())?
            ),
        )?;
        let controller = Daemon::start(
            &self.run,
            "controller",
            management,
            natmig,
            &["controller", "--config", path(&config)?],
        )?;
        let client = Client::new(natmig, &socket);
        let daemons = self.daemons.insert(Daemons {
            controller,
            agents: BTreeMap::new(),
            client,
        });
        run::wait_for("the controller", PATIENCE, || {
            daemons.controller.check()?;
            Ok(socket.exists().then_some(()))
        })?;
        let topology = self.network.topology();
        let file = directory.join("topology.toml");
        fs::write(&file, natmig_topology(topology)?)?;
        daemons.client.ask(&["topology", "apply", path(&file)?])?;
        for vm in &topology.vms {
            let mac = Topology::mac(vm.address);
            let identities: Vec<String> = vm.identities().map(|it| it.to_string()).collect();
            let mut arguments = vec![
                "vm",
                "add",
                &vm.name,
                "--mac",
                &mac,
                "--segment",
                &vm.segment,
            ];
            for identity in &identities {
                arguments.extend(["--ip", identity]);
            }
            daemons.client.ask(&arguments)?;
        }
        for router in &topology.routers {
            let config = directory.join(format!("{}.toml", router.name));
            fs::write(
                &config,
                router_config(
                    topology,
                    &router.name,
                    &self.run.instance(&router.name),
                    &endpoint,
                    &pki.agent(&router.name)?,
                )?,
            )?;
            let state = directory.join("state");
            fs::create_dir_all(&state)?;
            let arguments = [
                "agent",
                "--config",
                path(&config)?,
                "--state",
                path(&state)?,
            ];
            let agent = Daemon::start(
                &self.run,
                &format!("agent-{}", router.name),
                self.network.node(&router.name)?,
                natmig,
                &arguments,
            )?;
            daemons.agents.insert(router.name.clone(), agent);
        }
        self.wait_connected()
    }

    /// Waits until every router's agent is connected.
    pub fn wait_connected(&mut self) -> Result<()> {
        let routers = self.network.topology().routers.len();
        let daemons = self
            .daemons
            .as_mut()
            .context("natmig does not run in this lab")?;
        let mut silent = None;
        let waited = run::wait_for("all routers' connections", PATIENCE, || {
            daemons.controller.check()?;
            daemons.agents.values_mut().try_for_each(Daemon::check)?;
            // A controller that has just been started does not answer yet.
            match daemons.client.connected() {
                Ok(connected) => Ok((connected.len() == routers).then_some(())),
                Err(error) => {
                    silent = Some(error);
                    Ok(None)
                }
            }
        });
        match silent {
            Some(silent) => waited.with_context(|| format!("lately: {silent:#}")),
            None => waited,
        }
    }

    /// Its run directory.
    pub fn directory(&self) -> &Path {
        self.run.directory()
    }

    /// natmig's instance on a router.
    pub fn instance(&self, router: &str) -> String {
        self.run.instance(router)
    }

    /// natmig's command line.
    pub fn client(&self) -> Result<&Client> {
        Ok(&self
            .daemons
            .as_ref()
            .context("natmig does not run in this lab")?
            .client)
    }

    fn daemon(&mut self, name: &str) -> Result<(&mut Daemon, &Run)> {
        let daemons = self
            .daemons
            .as_mut()
            .context("natmig does not run in this lab")?;
        let daemon = match name {
            "controller" => &mut daemons.controller,
            router => daemons
                .agents
                .get_mut(router)
                .with_context(|| format!("no agent on {router}"))?,
        };
        Ok((daemon, &self.run))
    }

    /// Kills `controller`, or a router's agent, with SIGKILL.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.daemon(name)?.0.kill()
    }

    /// Starts a killed daemon again.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let (daemon, run) = self.daemon(name)?;
        daemon.restart(run)
    }

    /// Stops a daemon in the middle of whatever it does, without ending it.
    pub fn pause(&mut self, name: &str) -> Result<()> {
        self.daemon(name)?.0.signal(Signal::SIGSTOP)
    }

    /// Lets a paused daemon go on.
    pub fn resume(&mut self, name: &str) -> Result<()> {
        self.daemon(name)?.0.signal(Signal::SIGCONT)
    }

    /// A daemon's process.
    pub fn pid(&mut self, name: &str) -> Result<u32> {
        let daemon = self.daemon(name)?.0;
        daemon
            .pid()
            .with_context(|| format!("{} does not run", daemon.name()))
    }

    /// A daemon's log.
    pub fn log(&mut self, name: &str) -> Result<PathBuf> {
        Ok(self.daemon(name)?.0.log().to_owned())
    }

    /// Takes from a router what a reboot takes, while its agent is dead: programs and maps.
    pub fn forget(&self, router: &str) -> Result<()> {
        let instance = self.instance(router);
        let node = self.network.node(router)?;
        self.client()?
            .ask_in(node, &["unload", "--instance", &instance])?;
        Ok(())
    }

    /// Whether natmig's program runs on some interface of a router.
    pub fn is_attached(&self, router: &str) -> Result<bool> {
        let links = Path::new(BPFFS)
            .join("natmig")
            .join(self.instance(router))
            .join("links");
        Ok(links.exists() && fs::read_dir(links)?.next().is_some())
    }

    /// An error if a daemon ended by itself.
    pub fn check(&mut self) -> Result<()> {
        let Some(daemons) = &mut self.daemons else {
            return Ok(());
        };
        daemons.controller.check()?;
        daemons.agents.values_mut().try_for_each(Daemon::check)
    }

    /// Starts another program in a node, which ends with its value; what it says goes to
    /// `logs/NAME.log` of the run directory.
    pub fn start_program(
        &self,
        name: &str,
        node: &str,
        program: &Path,
        arguments: &[&str],
    ) -> Result<Daemon> {
        Daemon::start(
            &self.run,
            name,
            self.network.node(node)?,
            program,
            arguments,
        )
    }

    /// Copies the daemons' logs to a directory that outlives the lab.
    pub fn save_logs(&self, to: &Path) -> Result<()> {
        let logs = self.run.directory().join("logs");
        if !logs.exists() {
            return Ok(());
        }
        fs::create_dir_all(to)?;
        for log in fs::read_dir(logs)? {
            let log = log?;
            fs::copy(log.path(), to.join(log.file_name()))?;
        }
        Ok(())
    }

    /// Prints the ends of the daemons' logs, for a run that failed.
    pub fn print_logs(&self) {
        let Some(daemons) = &self.daemons else { return };
        for daemon in std::iter::once(&daemons.controller).chain(daemons.agents.values()) {
            let text = fs::read_to_string(daemon.log()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", daemon.name());
            for line in &lines[lines.len().saturating_sub(12)..] {
                eprintln!("{line}");
            }
        }
    }

    /// What `natmig map WHAT` prints on a router.
    pub fn map(&self, router: &str, what: &str) -> Result<String> {
        self.client()?.ask_in(
            self.network.node(router)?,
            &["map", what, "--instance", &self.instance(router)],
        )
    }

    /// Asks for a migration and waits until every router is prepared.
    pub fn prepare(&self, moves: &[(&str, &str)]) -> Result<u64> {
        self.prepare_on("manual", moves)
    }

    /// As [`Self::prepare`], of a migration that is activated in this way (`--activate`).
    pub fn prepare_on(&self, activation: &str, moves: &[(&str, &str)]) -> Result<u64> {
        let client = self.client()?;
        let id = client.migrate_on(activation, moves)?;
        client.wait(id, "prepared", PATIENCE, |migration| {
            migration.phase == "prepared"
        })?;
        Ok(id)
    }

    /// Unplugs VMs and plugs them in elsewhere, `pause` later: what a hypervisor does at the end of a
    /// live migration. Returns the times of each VM, without an anchor.
    pub fn relocate(&mut self, moves: &[(&str, &str)], pause: Duration) -> Result<Vec<Window>> {
        let mut windows = Vec::new();
        for (vm, _) in moves {
            let unplug = self.network.unplug(vm)?;
            windows.push(Window {
                vm: (*vm).to_owned(),
                unplug,
                replug: 0,
                anchors: 0,
            });
        }
        // The guest's own pause, which the lab imitates.
        std::thread::sleep(pause);
        for ((vm, segment), window) in moves.iter().zip(&mut windows) {
            window.replug = self.network.plug(vm, segment)?;
        }
        Ok(windows)
    }

    /// A whole migration as an orchestrator does it: prepare, move the guests, commit.
    pub fn migrate(
        &mut self,
        title: &str,
        moves: &[(&str, &str)],
        pause: Duration,
    ) -> Result<Step> {
        let mut step = self.begin(title, moves)?;
        step.windows = self.relocate(moves, pause)?;
        self.finish(&mut step)?;
        Ok(step)
    }

    /// First part of [`Self::migrate`]: all routers are prepared.
    pub fn begin(&self, title: &str, moves: &[(&str, &str)]) -> Result<Step> {
        self.begin_on("manual", title, moves)
    }

    /// As [`Self::begin`], of a migration that is activated in this way (`--activate`).
    pub fn begin_on(&self, activation: &str, title: &str, moves: &[(&str, &str)]) -> Result<Step> {
        let places: Result<Vec<Move>> = moves
            .iter()
            .map(|(vm, to)| {
                let from = self
                    .network
                    .place(vm)
                    .with_context(|| format!("{vm} is not plugged in"))?
                    .to_owned();
                Ok(Move {
                    vm: (*vm).to_owned(),
                    from,
                    to: (*to).to_owned(),
                })
            })
            .collect();
        let moves_made = places?;
        let asked = clock::now();
        let id = self.prepare_on(activation, moves)?;
        Ok(Step {
            id,
            title: title.to_owned(),
            moves: moves_made,
            asked,
            prepared: clock::now(),
            decided: 0,
            windows: Vec::new(),
            commits: BTreeMap::new(),
            folded: None,
            retired: None,
        })
    }

    /// Last part of [`Self::migrate`]: commits and reads what every router did.
    pub fn finish(&mut self, step: &mut Step) -> Result<()> {
        step.decided = clock::now();
        self.client()?.ask(&[
            "migration",
            "activate",
            &step.id.to_string(),
            "--wait",
            "--json",
        ])?;
        self.observe(step)
    }

    /// Reads what is known of a migration by now.
    pub fn observe(&self, step: &mut Step) -> Result<()> {
        let migration = self.client()?.migration(step.id)?;
        step.commits = migration.commits();
        step.prepared = migration.began("prepared").unwrap_or(step.prepared);
        step.decided = migration.began("committing").unwrap_or(step.decided);
        step.folded = migration.began("draining").or(step.folded);
        step.retired = migration.began("done").or(step.retired);
        let topology = self.network.topology();
        for window in &mut step.windows {
            let home = topology.vm(&window.vm).map(|vm| vm.segment.as_str());
            let previous = step
                .moves
                .iter()
                .find(|m| m.vm == window.vm)
                .map(|m| m.from.as_str());
            let anchors = [home, previous]
                .into_iter()
                .flatten()
                .filter_map(|name| topology.segment(name));
            let commits: Option<Vec<u64>> = anchors
                .flat_map(|segment| &segment.routers)
                .map(|router| step.commits.get(router.as_str()).copied())
                .collect();
            if let Some(last) = commits.and_then(|commits| commits.into_iter().max()) {
                window.anchors = last;
            }
        }
        Ok(())
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{}: not UTF-8", path.display()))
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let mounted = mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(BPFFS));
    if !mounted {
        fs::create_dir_all(BPFFS)?;
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount the BPF file system on {BPFFS}"))?;
    }
    Ok(())
}

/// natmig's own topology file.
fn natmig_topology(topology: &Topology) -> Result<String> {
    let mut text = format!(
        "drain = {:?}\nquarantine = {:?}\n",
        topology.drain, topology.quarantine
    );
    for router in &topology.routers {
        writeln!(
            text,
            "[[router]]\nname = {:?}\ntier = {:?}",
            router.name,
            router.tier.as_str()
        )?;
    }
    for segment in &topology.segments {
        writeln!(
            text,
            "[[segment]]\nname = {:?}\nprefix = \"{}\"\ngateway = \"{}\"\npool = \"{}\"\nrouters = {:?}",
            segment.name, segment.prefix, segment.gateway, segment.pool, segment.routers
        )?;
        if let (Some(prefix), Some(gateway), Some(pool)) =
            (segment.prefix_ipv6, segment.gateway_ipv6, segment.pool_ipv6)
        {
            writeln!(
                text,
                "prefix_ipv6 = \"{prefix}\"\ngateway_ipv6 = \"{gateway}\"\npool_ipv6 = \"{pool}\""
            )?;
        }
    }
    Ok(text)
}

/// Configuration of a router's agent.
fn router_config(
    topology: &Topology,
    router: &str,
    instance: &str,
    endpoint: &str,
    certificate: &str,
) -> Result<String> {
    let mut text = format!("router = {router:?}\ninstance = {instance:?}\nmax_addresses = 16384\n");
    for segment in topology
        .segments
        .iter()
        .filter(|segment| segment.routers.iter().any(|name| name == router))
    {
        writeln!(
            text,
            "[[interface]]\nname = {:?}\nrole = \"access\"\nsegment = {:?}\nprefix = \"{}\"\ngateway = \"{}\"",
            segment.name, segment.name, segment.prefix, segment.gateway
        )?;
        if let (Some(prefix), Some(gateway)) = (segment.prefix_ipv6, segment.gateway_ipv6) {
            writeln!(
                text,
                "prefix_ipv6 = \"{prefix}\"\ngateway_ipv6 = \"{gateway}\""
            )?;
        }
    }
    for link in topology.routed_links() {
        for end in link.ends.iter().filter(|end| end.node == router) {
            let role = if link.external { "external" } else { "fabric" };
            writeln!(
                text,
                "[[interface]]\nname = {:?}\nrole = {role:?}",
                end.interface
            )?;
        }
    }
    writeln!(
        text,
        "[controller]\nendpoints = [\"https://{endpoint}\"]\n{certificate}"
    )?;
    Ok(text)
}

/// The `natmig` program: as asked for, or beside this one.
pub fn find_natmig(asked: Option<PathBuf>) -> Result<PathBuf> {
    let program = if let Some(program) = asked {
        program
    } else {
        let beside = std::env::current_exe()?.with_file_name("natmig");
        // Tests are one directory further down.
        let above = beside.ancestors().nth(2).map(|above| above.join("natmig"));
        above
            .filter(|above| !beside.is_file() && above.is_file())
            .unwrap_or(beside)
    };
    ensure!(
        program.is_file(),
        "{} is not there: build natmig (cargo xtask build), or name it with --natmig or NATMIG_BIN",
        program.display()
    );
    Ok(fs::canonicalize(program)?)
}

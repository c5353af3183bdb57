//! A running lab: the network, natmig's daemons in it, and migrations as an orchestrator does them.

mod setup;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use natmig::router::reader::Reader;
use nix::sys::signal::Signal;
use serde::{Deserialize, de::IgnoredAny};

pub use self::setup::{Setup, Store};

use crate::{
    account::Window,
    api::Api,
    client::Client,
    clock,
    daemon::Daemon,
    network::Network,
    pki::Pki,
    report::{Move, Step},
    run::{self, Run},
    topology::Topology,
};

/// A program that was started has done its work by then, on a busy machine too.
const PATIENCE: Duration = Duration::from_mins(2);

/// natmig's daemons.
#[derive(Debug)]
struct Daemons {
    /// By name: members of etcd, if natmig's state is there, controllers and agents.
    running: BTreeMap<String, Daemon>,
    /// Where each controller answers this machine.
    sockets: Vec<PathBuf>,
    client: Client,
}

impl Daemons {
    /// An error if one ended by itself.
    fn check(&mut self) -> Result<()> {
        self.running.values_mut().try_for_each(Daemon::check)
    }

    /// Asks a controller that may not lead yet.
    fn insist(&mut self, arguments: &[&str]) -> Result<String> {
        let mut refused = None;
        let waited = run::wait_for("an answer of the controller", PATIENCE, || {
            self.check()?;
            Ok(self
                .client
                .ask(arguments)
                .map_err(|error| refused = Some(error))
                .ok())
        });
        match refused {
            Some(refused) => waited.with_context(|| format!("lately: {refused:#}")),
            None => waited,
        }
    }
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
        Self::start_with(topology, natmig, &Setup::default())
    }

    /// Like [`Self::start`], with natmig set up as asked for.
    pub fn start_with(topology: Topology, natmig: &Path, setup: &Setup) -> Result<Self> {
        let mut lab = Self::plain(topology)?;
        let started = lab.start_daemons(natmig, setup);
        started.inspect_err(|_| lab.print_logs())?;
        Ok(lab)
    }

    fn start_daemons(&mut self, natmig: &Path, setup: &Setup) -> Result<()> {
        setup::mount_bpffs()?;
        let directory = self.run.directory().to_owned();
        let (management, address) = self.network.management()?;
        let pki = Pki::create(natmig, &directory)?;
        let first = setup::socket(&directory, 0);
        let daemons = self.daemons.insert(Daemons {
            running: BTreeMap::new(),
            sockets: Vec::new(),
            client: Client::new(natmig, &first),
        });
        for (name, arguments) in setup.members(&directory, address) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let program = Path::new("etcd");
            let member = Daemon::start(&self.run, &name, management, program, &arguments)
                .context("the lab needs etcd (Debian: etcd-server)")?;
            daemons.running.insert(name, member);
        }
        // The first one leads, and has the inventory before the others come.
        let mut controllers = setup.controllers(&directory, address, &pki)?.into_iter();
        let start = |daemons: &mut Daemons, name: String, text: String, socket: PathBuf| {
            let config = directory.join(format!("{name}.toml"));
            fs::write(&config, text)?;
            let arguments = ["controller", "--config", path(&config)?];
            let controller = Daemon::start(&self.run, &name, management, natmig, &arguments)?;
            daemons.running.insert(name.clone(), controller);
            daemons.sockets.push(socket.clone());
            run::wait_for(&name, PATIENCE, || {
                daemons.check()?;
                Ok(socket.exists().then_some(()))
            })
        };
        if let Some((name, text, socket)) = controllers.next() {
            start(daemons, name, text, socket)?;
        }
        let topology = self.network.topology();
        let file = directory.join("topology.toml");
        fs::write(&file, setup::natmig_topology(topology)?)?;
        daemons.insist(&["topology", "apply", path(&file)?])?;
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
        for (name, text, socket) in controllers {
            start(daemons, name, text, socket)?;
        }
        let state = directory.join("state");
        fs::create_dir_all(&state)?;
        for router in &topology.routers {
            let config = directory.join(format!("{}.toml", router.name));
            let instance = self.run.instance(&router.name);
            let text = setup.agent(topology, &router.name, &instance, address, &pki)?;
            fs::write(&config, text)?;
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
            daemons.running.insert(router.name.clone(), agent);
        }
        self.wait_connected()
    }

    /// Waits until every router's agent is connected, and its programs are attached: a router that
    /// boots attaches them only when its table is whole, and until then veth drops what its neighbours
    /// redirect to it.
    pub fn wait_connected(&mut self) -> Result<()> {
        let routers = self.network.topology().routers.len();
        let daemons = self
            .daemons
            .as_mut()
            .context("natmig does not run in this lab")?;
        let mut silent = None;
        let waited = run::wait_for("all routers' connections", PATIENCE, || {
            daemons.check()?;
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
        }?;
        self.wait_attached()
    }

    fn wait_attached(&mut self) -> Result<()> {
        for router in self.network.topology().routers.clone() {
            let what = format!("programs on all interfaces of {}", router.name);
            run::wait_for(&what, PATIENCE, || {
                self.check()?;
                Ok(self.is_attached(&router.name)?.then_some(()))
            })?;
        }
        Ok(())
    }

    /// Waits until the programs of all routers follow what has happened to routes, neighbours and links
    /// until now: each agent vouches for its next hops again, and not with a beat that was due before.
    pub fn wait_followed(&mut self) -> Result<()> {
        let routers = self.network.topology().routers.iter();
        let readers: Result<Vec<Reader>, _> = routers
            .map(|router| Reader::open(&self.instance(&router.name)))
            .collect();
        let readers = readers?;
        for _ in 0..2 {
            let before: Vec<u64> = readers.iter().map(Reader::last_beat).collect();
            run::wait_for("the routers' own next hops", PATIENCE, || {
                self.check()?;
                let mut beats = readers.iter().map(Reader::last_beat).zip(&before);
                Ok(beats.all(|(now, before)| now != *before).then_some(()))
            })?;
        }
        Ok(())
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

    /// A connection to the controller, whose calls take no longer than `timeout`.
    pub fn api(&self, timeout: Duration) -> Result<Api> {
        let daemons = self.daemons.as_ref();
        let daemons = daemons.context("natmig does not run in this lab")?;
        Api::connect(&daemons.sockets, timeout)
    }

    fn daemon(&mut self, name: &str) -> Result<(&mut Daemon, &Run)> {
        let daemons = self
            .daemons
            .as_mut()
            .context("natmig does not run in this lab")?;
        let daemon = daemons.running.get_mut(name);
        let daemon = daemon.with_context(|| format!("no daemon {name} in the lab"))?;
        Ok((daemon, &self.run))
    }

    /// Kills a controller (`controller`, `controller2`, ...), a router's agent (by the router's name) or
    /// a member of etcd (`etcd1`, ...), with SIGKILL.
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

    /// Starts what is not running and lets everything go on that was stopped.
    pub fn revive(&mut self) -> Result<()> {
        let Some(daemons) = &mut self.daemons else {
            return Ok(());
        };
        for daemon in daemons.running.values_mut() {
            if daemon.is_started() {
                daemon.signal(Signal::SIGCONT)?;
            } else {
                daemon.restart(&self.run)?;
            }
        }
        Ok(())
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

    /// The interfaces of a router that natmig is for, its own port among them, and whether its program
    /// runs there.
    pub fn interfaces(&self, router: &str) -> Result<BTreeMap<String, bool>> {
        #[derive(Deserialize)]
        struct Link {
            ifname: String,
            linkinfo: Option<Kind>,
            /// The program that runs on it.
            xdp: Option<IgnoredAny>,
        }
        #[derive(Deserialize)]
        struct Kind {
            info_kind: Option<String>,
        }
        let text = self
            .network
            .node(router)?
            .ask_ip(&["-d", "-j", "link", "show"])?;
        let links: Vec<Link> = serde_json::from_str(&text)?;
        let is_for_natmig = |link: &Link| {
            let kind = link.linkinfo.as_ref();
            let kind = kind.and_then(|kind| kind.info_kind.as_deref());
            // The end of the port that is the kernel's has no program.
            kind == Some("veth") && link.ifname != "mgmt0" && !link.ifname.starts_with("nm0-")
        };
        Ok(links
            .into_iter()
            .filter(is_for_natmig)
            .map(|link| (link.ifname, link.xdp.is_some()))
            .collect())
    }

    /// Whether natmig's program runs on all interfaces of a router.
    pub fn is_attached(&self, router: &str) -> Result<bool> {
        Ok(self.interfaces(router)?.into_values().all(|runs| runs))
    }

    /// An error if a daemon ended by itself.
    pub fn check(&mut self) -> Result<()> {
        self.daemons.as_mut().map_or(Ok(()), Daemons::check)
    }

    /// Names of controllers, and of the members of etcd if natmig's state is there.
    pub fn control_plane(&self) -> Vec<&str> {
        let daemons = self.daemons.iter().flat_map(|it| it.running.keys());
        let routers = self.network.topology();
        daemons
            .map(String::as_str)
            .filter(|name| routers.router(name).is_none())
            .collect()
    }

    /// Process of a daemon that runs.
    pub fn process(&self, name: &str) -> Option<u32> {
        self.daemons.as_ref()?.running.get(name)?.process()
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
        for daemon in daemons.running.values() {
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

//! How natmig is set up in a lab: what its daemons are told, in files and as arguments.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use crate::{pki::Pki, topology::Topology};

/// Where the BPF file system is.
const BPFFS: &str = "/sys/fs/bpf";

/// Port of the first controller; the others have the next ones.
const PORT: u16 = 7400;

/// Client port of etcd's first member; its peers' port is the next one, and so on.
const ETCD_PORT: u16 = 2379;

/// Leadership's lease: the shortest that there is, so that leaders that died are replaced soon.
const LEASE: &str = "2s";

/// How natmig is set up in a lab.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where controllers keep their state.
    pub store: Store,
    /// Addresses of IPv4 that routers' tables have room for.
    pub max_addresses: u32,
}

/// Where controllers keep their state.
#[derive(Clone, Debug)]
pub enum Store {
    /// One controller, in a file; without one named, in one that goes with the lab.
    File(Option<PathBuf>),
    /// Several controllers, on etcd.
    Etcd {
        /// Members of etcd.
        members: usize,
        /// Controllers.
        controllers: usize,
        /// Where the members have their data; without it, where it goes with the lab.
        directory: Option<PathBuf>,
    },
}

impl Store {
    /// Three controllers on three members of etcd, which go with the lab.
    pub const THREE: Self = Self::Etcd {
        members: 3,
        controllers: 3,
        directory: None,
    };
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            store: Store::File(None),
            max_addresses: 16384,
        }
    }
}

/// Where a controller answers this machine.
pub(super) fn socket(directory: &Path, controller: usize) -> PathBuf {
    directory.join(format!("{}.sock", controller_name(controller)))
}

fn controller_name(number: usize) -> String {
    match number {
        0 => "controller".to_owned(),
        others => format!("controller{}", others + 1),
    }
}

fn port(first: u16, number: usize) -> u16 {
    u16::try_from(number).map_or(u16::MAX, |number| first.saturating_add(number))
}

impl Setup {
    /// Members of etcd, with the arguments of each.
    pub(super) fn members(&self, lab: &Path, address: Ipv4Addr) -> Vec<(String, Vec<String>)> {
        let Store::Etcd {
            members, directory, ..
        } = &self.store
        else {
            return Vec::new();
        };
        let directory = directory.as_deref().unwrap_or(lab);
        let name = |number: usize| format!("etcd{}", number + 1);
        let peer = |number: usize| format!("http://{address}:{}", port(ETCD_PORT + 1, 2 * number));
        let cluster: Vec<String> = (0..*members)
            .map(|number| format!("{}={}", name(number), peer(number)))
            .collect();
        let cluster = cluster.join(",");
        let member = |number: usize| {
            let client = format!("http://{address}:{}", port(ETCD_PORT, 2 * number));
            let data = directory.join(name(number));
            let arguments = [
                ("--name", name(number)),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer(number)),
                ("--initial-advertise-peer-urls", peer(number)),
                ("--initial-cluster", cluster.clone()),
                ("--initial-cluster-state", "new".to_owned()),
                ("--log-level", "warn".to_owned()),
            ];
            let arguments = arguments
                .into_iter()
                .flat_map(|(key, value)| [key.to_owned(), value]);
            (name(number), arguments.collect())
        };
        (0..*members).map(member).collect()
    }

    fn controller_count(&self) -> usize {
        match self.store {
            Store::File(_) => 1,
            Store::Etcd { controllers, .. } => controllers,
        }
    }

    /// Controllers: name, configuration, and where each answers this machine.
    pub(super) fn controllers(
        &self,
        directory: &Path,
        address: Ipv4Addr,
        pki: &Pki,
    ) -> Result<Vec<(String, String, PathBuf)>> {
        let store = match &self.store {
            Store::File(file) => {
                let own = directory.join("controller.redb");
                format!("store = \"{}\"\n", file.as_ref().unwrap_or(&own).display())
            }
            Store::Etcd { members, .. } => {
                let endpoints: Vec<String> = (0..*members)
                    .map(|number| format!("http://{address}:{}", port(ETCD_PORT, 2 * number)))
                    .collect();
                format!(
                    "[etcd]\nendpoints = {endpoints:?}\nprefix = \"/natmig/lab\"\nlease = {LEASE:?}\n"
                )
            }
        };
        let controller = |number: usize| {
            let name = controller_name(number);
            let socket = socket(directory, number);
            let text = format!(
                "name = {name:?}\nlisten = \"{address}:{}\"\nsocket = \"{}\"\n{store}[tls]\n{}",
                port(PORT, number),
                socket.display(),
                pki.controller(&name, address.into())?
            );
            Ok((name, text, socket))
        };
        (0..self.controller_count()).map(controller).collect()
    }

    /// Configuration of a router's agent.
    pub(super) fn agent(
        &self,
        topology: &Topology,
        router: &str,
        instance: &str,
        address: Ipv4Addr,
        pki: &Pki,
    ) -> Result<String> {
        let endpoints: Vec<String> = (0..self.controller_count())
            .map(|number| format!("https://{address}:{}", port(PORT, number)))
            .collect();
        let mut text = router_config(topology, router, instance, self.max_addresses)?;
        writeln!(
            text,
            "[controller]\nendpoints = {endpoints:?}\n{}",
            pki.agent(router)?
        )?;
        Ok(text)
    }
}

pub(super) fn mount_bpffs() -> Result<()> {
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
pub(super) fn natmig_topology(topology: &Topology) -> Result<String> {
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

fn router_config(
    topology: &Topology,
    router: &str,
    instance: &str,
    max_addresses: u32,
) -> Result<String> {
    let mut text =
        format!("router = {router:?}\ninstance = {instance:?}\nmax_addresses = {max_addresses}\n");
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
    Ok(text)
}

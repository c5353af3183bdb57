//! A router's configuration file, for `natmig load` and `natmig agent` alike.
//!
//! Every error names file, line, column and what to do; nothing is taken from a file that has one.

mod interface;
mod read;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use natmig_common::Role;
use serde::{Deserialize, Serialize};

pub(crate) use self::read::check_pool;
use crate::{
    names::{RouterName, SegmentName},
    rule::MacAddress,
    tls::CredentialFiles,
};

/// MAC address that answers for away VMs unless the configuration says otherwise.
pub const DEFAULT_GATEWAY_MAC: MacAddress = MacAddress([0x02, 0x6e, 0x6d, 0x00, 0x00, 0x01]);
/// Addresses (identities and locators) of each family that a router has room for unless the
/// configuration says otherwise.
pub const DEFAULT_MAX_ADDRESSES: u32 = 2_097_152;
/// Name of the instance unless the configuration says otherwise.
pub const DEFAULT_INSTANCE: &str = "default";

/// What is wrong with a configuration file, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; 0 if the file as a whole is meant.
    pub line: usize,
    /// Column, from 1; 0 if the file as a whole is meant.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line != 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}; {}", self.problem, self.remedy)
    }
}

/// A router's configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterConfig {
    /// The router's name in the topology.
    pub router: RouterName,
    /// The instance, which names pins, lock and port.
    pub instance: String,
    /// IPv4 addresses that the tables have room for.
    pub max_addresses: u32,
    /// IPv6 addresses that the tables have room for.
    #[serde(default = "default_max_addresses")]
    pub max_addresses_ipv6: u32,
    /// Whether traffic is counted per binding.
    pub binding_counters: bool,
    /// Copies of the counters by binding, a power of two: CPUs that share one slow each other down,
    /// and each takes memory. `None`: see [`RouterConfig::binding_banks`].
    #[serde(default)]
    pub binding_counter_banks: Option<u32>,
    /// What goes on the fast path.
    #[serde(default)]
    pub forward: Forward,
    /// MAC address that answers for away VMs and for visitors' old neighbours.
    pub gateway_mac: MacAddress,
    /// Locator pools of the fabric, of both families, for a router without a controller.
    pub locator_pools: Vec<IpNet>,
    /// The interfaces that natmig runs on.
    pub interfaces: Vec<InterfaceConfig>,
    /// Where the agent serves metrics; `None` for nowhere.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// The controller, for the agent.
    pub controller: Option<ControllerConfig>,
}

fn default_max_addresses() -> u32 {
    DEFAULT_MAX_ADDRESSES
}

/// Which traffic goes on the fast path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forward {
    /// Packets from or to a bound address; the kernel forwards the others.
    #[default]
    Bound,
    /// Every packet.
    All,
}

/// An interface that natmig runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceConfig {
    /// Its name in the kernel.
    pub name: String,
    /// Its role; never [`Role::Kernel`].
    #[serde(with = "role_name")]
    pub role: Role,
    /// The segment behind an access interface.
    pub segment: Option<SegmentName>,
    /// The segment's IPv4 prefix.
    pub prefix: Option<Ipv4Net>,
    /// The segment's IPv4 gateway address.
    pub gateway: Option<Ipv4Addr>,
    /// The segment's IPv6 prefix.
    #[serde(default)]
    pub prefix_ipv6: Option<Ipv6Net>,
    /// The segment's IPv6 gateway address, of the prefix or link-local.
    #[serde(default)]
    pub gateway_ipv6: Option<Ipv6Addr>,
    /// The VLAN, if the interface is one.
    #[serde(default)]
    pub vlan: Option<VlanConfig>,
    /// Whether visitors' sources stay identities inside the fabric (`source = "identity"`).
    pub keeps_source: bool,
}

/// Where a VLAN interface lies. The kernel has an interface for it, whose packets arrive on the parent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VlanConfig {
    /// Name of the interface whose frames carry the tag.
    pub parent: String,
    /// The VLAN identifier (802.1Q): 1 to 4094.
    pub id: u16,
}

/// A role as text.
mod role_name {
    use natmig_common::Role;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub(super) fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(role.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Role, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_role(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is no role")))
    }
}

fn parse_role(text: &str) -> Option<Role> {
    [Role::Access, Role::Fabric, Role::External]
        .into_iter()
        .find(|role| role.name() == text)
}

/// How the agent reaches its controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerConfig {
    /// URLs of the controllers; the agent dials all of them.
    pub endpoints: Vec<String>,
    /// How long the agent waits between two attempts.
    pub retry: Duration,
    /// Certificates, for URLs that begin with https://.
    #[serde(default)]
    pub tls: Option<CredentialFiles>,
}

impl RouterConfig {
    /// Reads and checks a configuration file.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            file: file.to_owned(),
            line: 0,
            column: 0,
            problem: format!("cannot be read: {error}"),
            remedy: "check the path and its permissions".to_owned(),
        })?;
        Self::parse(file, &text)
    }

    /// Checks the text of a configuration file; `file` is named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        read::parse(file, text)
    }

    /// The access interface that serves a segment.
    pub fn access(&self, segment: &SegmentName) -> Option<&InterfaceConfig> {
        self.interfaces
            .iter()
            .find(|interface| interface.segment.as_ref() == Some(segment))
    }

    /// Banks of counters by binding on a machine with so many CPUs; 0 if nothing is counted. One
    /// unless the configuration says otherwise, and never more than CPUs: only CPUs that process
    /// packets of the same VM at the same time slow each other down, and each bank takes 32 bytes
    /// per binding.
    pub fn binding_banks(&self, cpus: u32) -> u32 {
        if !self.binding_counters {
            return 0;
        }
        let most = cpus.checked_next_power_of_two().unwrap_or(1);
        self.binding_counter_banks.unwrap_or(1).clamp(1, most)
    }
}

/// Checks the name of an instance: it names directories of a BPF file system and a lock file.
pub fn check_instance(instance: &str) -> Result<(), String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if instance.is_empty() || instance.len() > 32 || !instance.chars().all(valid) {
        return Err(format!("`{instance}` cannot name an instance"));
    }
    Ok(())
}

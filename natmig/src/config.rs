//! A router's configuration file, for `natmig load` and `natmig agent` alike.
//!
//! Every error names file, line, column and what to do; nothing is taken from a file that has one.

use std::{
    collections::BTreeSet,
    fmt,
    net::Ipv4Addr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::Ipv4Net;
use natmig_common::Role;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::{
    names::{RouterName, SegmentName},
    rule::MacAddress,
};

/// MAC address that answers for away VMs unless the configuration says otherwise.
pub const DEFAULT_GATEWAY_MAC: MacAddress = MacAddress([0x02, 0x6e, 0x6d, 0x00, 0x00, 0x01]);
/// Addresses (identities and locators) that a router has room for unless the configuration says otherwise.
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
    /// Addresses that the tables have room for.
    pub max_addresses: u32,
    /// Whether traffic is counted per binding.
    pub binding_counters: bool,
    /// MAC address that answers for away VMs and for visitors' old neighbours.
    pub gateway_mac: MacAddress,
    /// Locator pools of the fabric, for a router without a controller.
    pub locator_pools: Vec<Ipv4Net>,
    /// The interfaces that natmig runs on.
    pub interfaces: Vec<InterfaceConfig>,
    /// The controller, for the agent.
    pub controller: Option<ControllerConfig>,
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
    /// The segment's prefix.
    pub prefix: Option<Ipv4Net>,
    /// The segment's gateway address.
    pub gateway: Option<Ipv4Addr>,
    /// Whether visitors' sources stay identities inside the fabric (`source = "identity"`).
    pub keeps_source: bool,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    router: Spanned<String>,
    instance: Option<Spanned<String>>,
    max_addresses: Option<Spanned<u32>>,
    binding_counters: Option<bool>,
    gateway_mac: Option<Spanned<String>>,
    #[serde(default)]
    locator_pools: Vec<Spanned<String>>,
    #[serde(default)]
    interface: Vec<Spanned<InterfaceText>>,
    controller: Option<ControllerText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceText {
    name: Spanned<String>,
    role: Spanned<String>,
    segment: Option<Spanned<String>>,
    prefix: Option<Spanned<String>>,
    gateway: Option<Spanned<String>>,
    source: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ControllerText {
    endpoints: Spanned<Vec<Spanned<String>>>,
    retry_ms: Option<Spanned<u64>>,
}

/// The file while it is read: turns byte ranges into positions.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(
        &self,
        span: Range<usize>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ConfigError {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or("").chars().count() + 1,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// Parses the text of a value.
    fn parse<T: std::str::FromStr>(
        &self,
        value: &Spanned<String>,
        what: &str,
        remedy: &str,
    ) -> Result<T, ConfigError> {
        value.get_ref().parse().map_err(|_| {
            self.error(
                value.span(),
                format!("`{}` is not {what}", value.get_ref()),
                remedy,
            )
        })
    }
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
        let source = Source { file, text };
        let raw: FileText = toml::from_str(text).map_err(|error| {
            let problem = error.message().lines().collect::<Vec<_>>().join(", ");
            let remedy = if problem.contains("unknown field") {
                "remove the key or correct its spelling"
            } else if problem.contains("missing field") {
                "add the key"
            } else if problem.contains("duplicate") {
                "keep one of the two"
            } else if problem.contains("invalid type") || problem.contains("invalid value") {
                "write a value of the type that is expected"
            } else {
                "write it as TOML 1.0 asks"
            };
            source.error(error.span().unwrap_or(0..0), problem, remedy)
        })?;

        if raw.router.get_ref().is_empty() {
            return Err(source.error(
                raw.router.span(),
                "`router` is empty",
                "write the router's name in the topology",
            ));
        }
        let instance = match &raw.instance {
            Some(instance) => {
                check_instance(instance.get_ref()).map_err(|problem| {
                    source.error(
                        instance.span(),
                        problem,
                        "use 1 to 32 letters, digits, - or _",
                    )
                })?;
                instance.get_ref().clone()
            }
            None => DEFAULT_INSTANCE.to_owned(),
        };
        let max_addresses = match &raw.max_addresses {
            Some(value) if !(16..=1 << 26).contains(value.get_ref()) => {
                return Err(source.error(
                    value.span(),
                    format!("`max_addresses` is {}", value.get_ref()),
                    "write a number from 16 to 67108864: two addresses per binding",
                ));
            }
            Some(value) => *value.get_ref(),
            None => DEFAULT_MAX_ADDRESSES,
        };
        let gateway_mac = match &raw.gateway_mac {
            Some(mac) => source.parse(
                mac,
                "a unicast MAC address",
                "write six hexadecimal bytes, such as 02:6e:6d:00:00:01",
            )?,
            None => DEFAULT_GATEWAY_MAC,
        };
        let mut locator_pools: Vec<Ipv4Net> = Vec::new();
        for pool in &raw.locator_pools {
            let parsed = parse_prefix(&source, pool)?;
            if let Some(other) = locator_pools.iter().find(|other| overlap(**other, parsed)) {
                return Err(source.error(
                    pool.span(),
                    format!("pool {parsed} overlaps pool {other}"),
                    "keep one of the two, or make them disjoint",
                ));
            }
            locator_pools.push(parsed);
        }
        let interfaces = parse_interfaces(&source, &raw.interface)?;
        let controller = raw
            .controller
            .map(|text| parse_controller(&source, &text))
            .transpose()?;
        Ok(Self {
            router: RouterName::new(raw.router.into_inner()),
            instance,
            max_addresses,
            binding_counters: raw.binding_counters.unwrap_or(true),
            gateway_mac,
            locator_pools,
            interfaces,
            controller,
        })
    }

    /// The access interface that serves a segment.
    pub fn access(&self, segment: &SegmentName) -> Option<&InterfaceConfig> {
        self.interfaces
            .iter()
            .find(|interface| interface.segment.as_ref() == Some(segment))
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

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn parse_prefix(source: &Source<'_>, text: &Spanned<String>) -> Result<Ipv4Net, ConfigError> {
    let prefix: Ipv4Net = source.parse(
        text,
        "an IPv4 prefix",
        "write an address and a length, such as 10.1.1.0/24",
    )?;
    if prefix.addr() != prefix.network() {
        return Err(source.error(
            text.span(),
            format!("`{prefix}` has bits set behind its prefix length"),
            format!("write {}", prefix.trunc()),
        ));
    }
    Ok(prefix)
}

fn parse_interfaces(
    source: &Source<'_>,
    texts: &[Spanned<InterfaceText>],
) -> Result<Vec<InterfaceConfig>, ConfigError> {
    if texts.is_empty() {
        return Err(source.error(
            0..0,
            "no [[interface]] is named",
            "add one [[interface]] with `name` and `role` for each interface of the router",
        ));
    }
    let mut interfaces = Vec::new();
    let mut names = BTreeSet::new();
    let mut segments = BTreeSet::new();
    for text in texts {
        let interface = parse_interface(source, text)?;
        let text = text.get_ref();
        if !names.insert(interface.name.clone()) {
            return Err(source.error(
                text.name.span(),
                format!("interface {} is named twice", interface.name),
                "remove one of the two",
            ));
        }
        if let (Some(segment), Some(span)) = (&interface.segment, &text.segment)
            && !segments.insert(segment.clone())
        {
            return Err(source.error(
                span.span(),
                format!("segment {segment} is behind two interfaces"),
                "a router serves a segment with one interface: remove one of the two",
            ));
        }
        interfaces.push(interface);
    }
    Ok(interfaces)
}

fn parse_interface(
    source: &Source<'_>,
    text: &Spanned<InterfaceText>,
) -> Result<InterfaceConfig, ConfigError> {
    let whole = text.span();
    let text = text.get_ref();
    let name = text.name.get_ref();
    if name.is_empty() || name.len() > 15 || name.contains(['/', ' ', '\0']) {
        return Err(source.error(
            text.name.span(),
            format!("`{name}` cannot name an interface"),
            "write a name of 1 to 15 characters as `ip link` shows it",
        ));
    }
    let Some(role) = parse_role(text.role.get_ref()) else {
        return Err(source.error(
            text.role.span(),
            format!("`{}` is no role", text.role.get_ref()),
            "write access, fabric or external",
        ));
    };
    let prefix = text
        .prefix
        .as_ref()
        .map(|prefix| parse_prefix(source, prefix))
        .transpose()?;
    let gateway: Option<Ipv4Addr> = text
        .gateway
        .as_ref()
        .map(|gateway| {
            source.parse(
                gateway,
                "an IPv4 address",
                "write an address such as 10.1.1.1",
            )
        })
        .transpose()?;
    let segment = text
        .segment
        .as_ref()
        .map(|segment| SegmentName::new(segment.get_ref().as_str()));
    if role == Role::Access {
        if segment.is_none() || prefix.is_none() {
            return Err(source.error(
                whole,
                format!("access interface {name} lacks `segment` or `prefix`"),
                "add `segment`, `prefix` and, if this router may own it, `gateway`",
            ));
        }
    } else if let Some(span) = text
        .segment
        .as_ref()
        .or(text.prefix.as_ref())
        .or(text.gateway.as_ref())
    {
        return Err(source.error(
            span.span(),
            format!(
                "only access interfaces have a segment, and {name} is {}",
                role.name()
            ),
            "remove `segment`, `prefix` and `gateway`, or write role = \"access\"",
        ));
    }
    if let (Some(prefix), Some(gateway), Some(span)) = (&prefix, &gateway, &text.gateway)
        && !prefix.contains(gateway)
    {
        return Err(source.error(
            span.span(),
            format!("gateway {gateway} is outside {prefix}"),
            "write the segment's own gateway address",
        ));
    }
    let keeps_source = match text
        .source
        .as_ref()
        .map(|source| (source.get_ref().as_str(), source))
    {
        None | Some(("locator", _)) => false,
        Some(("identity", _)) => true,
        Some((other, span)) => {
            return Err(source.error(
                span.span(),
                format!("`{other}` is no kind of source"),
                "write \"locator\" or \"identity\"",
            ));
        }
    };
    Ok(InterfaceConfig {
        name: name.clone(),
        role,
        segment,
        prefix,
        gateway,
        keeps_source,
    })
}

fn parse_controller(
    source: &Source<'_>,
    text: &ControllerText,
) -> Result<ControllerConfig, ConfigError> {
    if text.endpoints.get_ref().is_empty() {
        return Err(source.error(
            text.endpoints.span(),
            "`endpoints` is empty",
            "write at least one URL, such as \"http://198.18.0.1:7400\"",
        ));
    }
    for endpoint in text.endpoints.get_ref() {
        let url = endpoint.get_ref();
        if !["http://", "https://", "unix://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            return Err(source.error(
                endpoint.span(),
                format!("`{url}` is not a controller's URL"),
                "write http://, https:// or unix:// and the address",
            ));
        }
    }
    let retry = match &text.retry_ms {
        Some(value) if !(10..=600_000).contains(value.get_ref()) => {
            return Err(source.error(
                value.span(),
                format!("`retry_ms` is {}", value.get_ref()),
                "write milliseconds from 10 to 600000",
            ));
        }
        Some(value) => Duration::from_millis(*value.get_ref()),
        None => Duration::from_millis(500),
    };
    Ok(ControllerConfig {
        endpoints: text
            .endpoints
            .get_ref()
            .iter()
            .map(|endpoint| endpoint.get_ref().clone())
            .collect(),
        retry,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
router = "edge1"
locator_pools = ["10.1.1.128/25"]
[[interface]]
name = "acc0"
role = "access"
segment = "rack1"
prefix = "10.1.1.0/24"
gateway = "10.1.1.1"
[[interface]]
name = "fab0"
role = "fabric"
[controller]
endpoints = ["http://198.18.0.1:7400"]
"#;

    fn parse(text: &str) -> Result<RouterConfig, ConfigError> {
        RouterConfig::parse(Path::new("router.toml"), text)
    }

    #[test]
    fn defaults_are_filled_in() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.instance, DEFAULT_INSTANCE);
        assert_eq!(config.max_addresses, DEFAULT_MAX_ADDRESSES);
        assert_eq!(config.gateway_mac, DEFAULT_GATEWAY_MAC);
        assert!(config.binding_counters);
        assert_eq!(config.interfaces.len(), 2);
        assert_eq!(config.access(&"rack1".into()).unwrap().name, "acc0");
    }

    #[test]
    fn configuration_survives_serialisation() {
        let config = parse(GOOD).unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<RouterConfig>(&text).unwrap(), config);
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of cases")]
    fn malformed_files_are_named_with_line_and_remedy() {
        // What is replaced, by what, the line of the error, what it says, the remedy.
        let cases = [
            ("router = \"edge1\"", "router = edge1", 2, "", "TOML"),
            (
                "router = \"edge1\"",
                "router = 7",
                2,
                "invalid type",
                "of the type",
            ),
            (
                "router = \"edge1\"",
                "router = \"\"",
                2,
                "`router` is empty",
                "name in the topology",
            ),
            (
                "router = \"edge1\"",
                "ruter = \"edge1\"",
                2,
                "unknown field `ruter`",
                "spelling",
            ),
            (
                "name = \"acc0\"\n",
                "",
                4,
                "missing field `name`",
                "add the key",
            ),
            (
                "10.1.1.128/25",
                "10.1.1.129/25",
                3,
                "bits set",
                "write 10.1.1.128/25",
            ),
            (
                "10.1.1.128/25",
                "10.1.1.128/33",
                3,
                "not an IPv4 prefix",
                "such as",
            ),
            (
                "\"10.1.1.128/25\"",
                "\"10.1.1.128/25\", \"10.1.1.192/26\"",
                3,
                "overlaps",
                "disjoint",
            ),
            (
                "\"access\"",
                "\"acces\"",
                6,
                "no role",
                "access, fabric or external",
            ),
            ("\"fab0\"", "\"acc0\"", 11, "named twice", "remove one"),
            (
                "\"fab0\"",
                "\"a-much-too-long-name\"",
                11,
                "cannot name an interface",
                "1 to 15",
            ),
            (
                "10.1.1.1\"",
                "10.1.2.1\"",
                9,
                "outside 10.1.1.0/24",
                "own gateway",
            ),
            (
                "segment = \"rack1\"\n",
                "",
                4,
                "lacks `segment`",
                "add `segment`",
            ),
            (
                "role = \"fabric\"",
                "role = \"fabric\"\nsegment = \"rack2\"",
                13,
                "only access interfaces",
                "remove",
            ),
            (
                "http://198.18",
                "198.18",
                14,
                "not a controller's URL",
                "http://",
            ),
            (
                "role = \"fabric\"",
                "role = \"fabric\"\nsource = \"both\"",
                13,
                "no kind of source",
                "locator",
            ),
        ];
        for (from, to, line, problem, remedy) in cases {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from} is in the text");
            let error = parse(&text).unwrap_err();
            assert_eq!(error.line, line, "{to}: {error}");
            assert_ne!(error.column, 0, "{to}: {error}");
            assert!(error.problem.contains(problem), "{to}: {error}");
            assert!(error.remedy.contains(remedy), "{to}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = RouterConfig::read(Path::new("/nonexistent/router.toml")).unwrap_err();
        assert!(
            error.to_string().starts_with("/nonexistent/router.toml: "),
            "{error}"
        );
    }
}

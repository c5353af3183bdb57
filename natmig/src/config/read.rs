//! Reads a router's configuration file: every error names line, column and remedy.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use ipnet::{IpNet, Ipv6Net};
use serde::Deserialize;
use toml::Spanned;

use super::{
    ConfigError, ControllerConfig, DEFAULT_GATEWAY_MAC, DEFAULT_INSTANCE, DEFAULT_MAX_ADDRESSES,
    Forward, RouterConfig, check_instance,
    interface::{InterfaceText, parse_interfaces},
};
use crate::{names::RouterName, tls::CredentialFiles};

/// Most banks of counters by binding that a router may have.
const MAX_BINDING_COUNTER_BANKS: u32 = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    router: Spanned<String>,
    instance: Option<Spanned<String>>,
    max_addresses: Option<Spanned<u32>>,
    max_addresses_ipv6: Option<Spanned<u32>>,
    binding_counters: Option<bool>,
    binding_counter_banks: Option<Spanned<u32>>,
    forward: Option<Spanned<String>>,
    gateway_mac: Option<Spanned<String>>,
    #[serde(default)]
    locator_pools: Vec<Spanned<String>>,
    #[serde(default)]
    interface: Vec<Spanned<InterfaceText>>,
    metrics: Option<Spanned<String>>,
    controller: Option<ControllerText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ControllerText {
    endpoints: Spanned<Vec<Spanned<String>>>,
    retry_ms: Option<Spanned<u64>>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// The file while it is read: turns byte ranges into positions.
pub(super) struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    pub(super) fn error(
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
    pub(super) fn parse<T: FromStr>(
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

pub(super) fn parse(file: &Path, text: &str) -> Result<RouterConfig, ConfigError> {
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
    let max_addresses = parse_room(&source, "max_addresses", raw.max_addresses.as_ref())?
        .unwrap_or(DEFAULT_MAX_ADDRESSES);
    let max_addresses_ipv6 = parse_room(
        &source,
        "max_addresses_ipv6",
        raw.max_addresses_ipv6.as_ref(),
    )?
    .unwrap_or(max_addresses);
    let binding_counter_banks = parse_banks(&source, raw.binding_counter_banks.as_ref())?;
    let forward = parse_forward(&source, raw.forward.as_ref())?;
    let gateway_mac = match &raw.gateway_mac {
        Some(mac) => source.parse(
            mac,
            "a unicast MAC address",
            "write six hexadecimal bytes, such as 02:6e:6d:00:00:01",
        )?,
        None => DEFAULT_GATEWAY_MAC,
    };
    let locator_pools = parse_pools(&source, &raw.locator_pools)?;
    let interfaces = parse_interfaces(&source, &raw.interface)?;
    let metrics = raw
        .metrics
        .map(|text| {
            source.parse(
                &text,
                "an address and a port",
                "write the address that metrics are served on, such as 127.0.0.1:9441",
            )
        })
        .transpose()?;
    let controller = raw
        .controller
        .map(|text| parse_controller(&source, &text))
        .transpose()?;
    Ok(RouterConfig {
        router: RouterName::new(raw.router.into_inner()),
        instance,
        max_addresses,
        max_addresses_ipv6,
        binding_counters: raw.binding_counters.unwrap_or(true),
        binding_counter_banks,
        forward,
        gateway_mac,
        locator_pools,
        interfaces,
        metrics,
        controller,
    })
}

/// Room for addresses of one family.
fn parse_room(
    source: &Source<'_>,
    key: &str,
    value: Option<&Spanned<u32>>,
) -> Result<Option<u32>, ConfigError> {
    match value {
        Some(value) if !(16..=1 << 26).contains(value.get_ref()) => Err(source.error(
            value.span(),
            format!("`{key}` is {}", value.get_ref()),
            "write a number from 16 to 67108864: two addresses per binding",
        )),
        Some(value) => Ok(Some(*value.get_ref())),
        None => Ok(None),
    }
}

fn parse_banks(
    source: &Source<'_>,
    value: Option<&Spanned<u32>>,
) -> Result<Option<u32>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    let banks = *value.get_ref();
    if !banks.is_power_of_two() || banks > MAX_BINDING_COUNTER_BANKS {
        return Err(source.error(
            value.span(),
            format!("`binding_counter_banks` is {banks}"),
            "write a power of two from 1 to 64, or binding_counters = false to count nothing",
        ));
    }
    Ok(Some(banks))
}

fn parse_forward(
    source: &Source<'_>,
    value: Option<&Spanned<String>>,
) -> Result<Forward, ConfigError> {
    let Some(value) = value else {
        return Ok(Forward::default());
    };
    match value.get_ref().as_str() {
        "bound" => Ok(Forward::Bound),
        "all" => Ok(Forward::All),
        other => Err(source.error(
            value.span(),
            format!("`{other}` is not what may be forwarded"),
            "write \"bound\", for the traffic of bound addresses only, or \"all\"",
        )),
    }
}

/// Locator pools, as the tables can hold them; an error says what is wrong and what to do.
pub(crate) fn check_pool(pool: IpNet, others: &[IpNet]) -> Result<(), (String, &'static str)> {
    let overlaps = |other: &&IpNet| pool.contains(*other) || other.contains(&pool);
    if let Some(other) = others.iter().find(overlaps) {
        return Err((
            format!("pool {pool} overlaps pool {other}"),
            "keep one of the two, or make them disjoint",
        ));
    }
    let IpNet::V6(pool) = pool else {
        return Ok(());
    };
    if pool.prefix_len() < 64 {
        return Err((
            format!("IPv6 pool {pool} is shorter than a /64"),
            "use a pool of length 64 to 128: a locator pool lies in one /64",
        ));
    }
    let high = |pool: &Ipv6Net| pool.network().segments()[..4].to_vec();
    let neighbour = others
        .iter()
        .find(|other| matches!(other, IpNet::V6(other) if high(other) == high(&pool)));
    if let Some(other) = neighbour {
        return Err((
            format!("IPv6 pool {pool} is in the same /64 as pool {other}"),
            "keep one pool in each /64",
        ));
    }
    Ok(())
}

fn parse_pools(source: &Source<'_>, texts: &[Spanned<String>]) -> Result<Vec<IpNet>, ConfigError> {
    let mut pools: Vec<IpNet> = Vec::new();
    for text in texts {
        let pool: IpNet = parse_prefix(source, text, "a prefix", "10.1.1.128/25")?;
        check_pool(pool, &pools)
            .map_err(|(problem, remedy)| source.error(text.span(), problem, remedy))?;
        pools.push(pool);
    }
    Ok(pools)
}

/// A prefix of either family or of one, without bits behind its length.
pub(super) fn parse_prefix<T: FromStr + Copy + Into<IpNet>>(
    source: &Source<'_>,
    text: &Spanned<String>,
    what: &str,
    example: &str,
) -> Result<T, ConfigError> {
    let parsed: T = source.parse(
        text,
        what,
        &format!("write an address and a length, such as {example}"),
    )?;
    let prefix: IpNet = parsed.into();
    if prefix.addr() != prefix.network() {
        return Err(source.error(
            text.span(),
            format!("`{prefix}` has bits set behind its prefix length"),
            format!("write {}", prefix.trunc()),
        ));
    }
    Ok(parsed)
}

fn parse_controller(
    source: &Source<'_>,
    text: &ControllerText,
) -> Result<ControllerConfig, ConfigError> {
    if text.endpoints.get_ref().is_empty() {
        return Err(source.error(
            text.endpoints.span(),
            "`endpoints` is empty",
            "write at least one URL, such as \"https://198.18.0.1:7400\"",
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
    let tls = match (&text.ca, &text.certificate, &text.key) {
        (None, None, None) => None,
        (Some(ca), Some(certificate), Some(key)) => Some(CredentialFiles {
            ca: ca.clone(),
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        _ => {
            return Err(source.error(
                text.endpoints.span(),
                "`ca`, `certificate` and `key` belong together, and one is missing",
                "name all three files, or none",
            ));
        }
    };
    let encrypted = |url: &&Spanned<String>| url.get_ref().starts_with("https://");
    if tls.is_none()
        && let Some(endpoint) = text.endpoints.get_ref().iter().find(encrypted)
    {
        return Err(source.error(
            endpoint.span(),
            format!("`{}` needs a certificate", endpoint.get_ref()),
            "add ca, certificate and key to [controller]; `natmig pki issue agent` makes them",
        ));
    }
    Ok(ControllerConfig {
        endpoints: text
            .endpoints
            .get_ref()
            .iter()
            .map(|endpoint| endpoint.get_ref().clone())
            .collect(),
        retry,
        tls,
    })
}

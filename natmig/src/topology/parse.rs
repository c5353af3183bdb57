//! Reads a topology file: every error names file, line, column and remedy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::Range,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{
    DEFAULT_DRAIN, DEFAULT_QUARANTINE, Segment, Subnet, Tier, Topology,
    check::{self, Key},
};
use crate::{
    addresses::IpFamily,
    names::{RouterName, SegmentName},
};

/// What is wrong with a topology file, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct TopologyError {
    /// The file, as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            problem,
            remedy,
        } = self;
        write!(f, "{file}:{line}:{column}: {problem}; {remedy}")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    drain: Option<Spanned<String>>,
    quarantine: Option<Spanned<String>>,
    #[serde(default)]
    router: Vec<RouterText>,
    #[serde(default)]
    segment: Vec<SegmentText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouterText {
    name: Spanned<String>,
    tier: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentText {
    name: Spanned<String>,
    prefix: Option<Spanned<String>>,
    gateway: Option<Spanned<String>>,
    pool: Option<Spanned<String>>,
    prefix_ipv6: Option<Spanned<String>>,
    gateway_ipv6: Option<Spanned<String>>,
    pool_ipv6: Option<Spanned<String>>,
    routers: Spanned<Vec<Spanned<String>>>,
}

/// The file while it is read: turns byte ranges into positions.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn error(
        &self,
        span: &Range<usize>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> TopologyError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        TopologyError {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or("").chars().count() + 1,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    fn value<T: FromStr>(
        &self,
        value: &Spanned<String>,
        what: &str,
        remedy: &str,
    ) -> Result<T, TopologyError> {
        value.get_ref().parse().map_err(|_| {
            let problem = format!("`{}` is not {what}", value.get_ref());
            self.error(&value.span(), problem, remedy)
        })
    }

    fn prefix(&self, value: &Spanned<String>, family: IpFamily) -> Result<IpNet, TopologyError> {
        let (what, remedy) = match family {
            IpFamily::Ipv4 => (
                "an IPv4 prefix",
                "write an address and a length, such as 10.1.1.0/24",
            ),
            IpFamily::Ipv6 => (
                "an IPv6 prefix",
                "write an address and a length, such as 2001:db8:1::/64",
            ),
        };
        let prefix: IpNet = self.value(value, what, remedy)?;
        if IpFamily::of(prefix.addr()) != family {
            let problem = format!("`{prefix}` is not {what}");
            return Err(self.error(&value.span(), problem, remedy));
        }
        if prefix.addr() != prefix.network() {
            return Err(self.error(
                &value.span(),
                format!("`{prefix}` has bits set behind its prefix length"),
                format!("write {}", prefix.trunc()),
            ));
        }
        Ok(prefix)
    }

    fn address(&self, value: &Spanned<String>, family: IpFamily) -> Result<IpAddr, TopologyError> {
        let (what, remedy) = match family {
            IpFamily::Ipv4 => ("an IPv4 address", "write an address such as 10.1.1.1"),
            IpFamily::Ipv6 => (
                "an IPv6 address",
                "write an address such as 2001:db8:1::1 or fe80::1",
            ),
        };
        let address: IpAddr = self.value(value, what, remedy)?;
        if IpFamily::of(address) != family {
            let problem = format!("`{address}` is not {what}");
            return Err(self.error(&value.span(), problem, remedy));
        }
        Ok(address)
    }

    /// A name that may appear in logs, on command lines and in tables.
    fn name<'t>(&self, value: &'t Spanned<String>) -> Result<&'t str, TopologyError> {
        let name = value.get_ref();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
            return Err(self.error(
                &value.span(),
                format!("`{name}` cannot be a name"),
                "use 1 to 64 letters, digits, `-`, `_` and `.`",
            ));
        }
        Ok(name)
    }

    fn duration(
        &self,
        value: Option<&Spanned<String>>,
        default: Duration,
    ) -> Result<Duration, TopologyError> {
        let Some(value) = value else {
            return Ok(default);
        };
        parse_duration(value.get_ref()).ok_or_else(|| {
            self.error(
                &value.span(),
                format!("`{}` is not a duration", value.get_ref()),
                "write a number and a unit: 500ms, 5s, 2m or 1h",
            )
        })
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

pub(super) fn parse(file: &str, text: &str) -> Result<Topology, TopologyError> {
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
        source.error(&error.span().unwrap_or(0..0), problem, remedy)
    })?;
    let mut topology = Topology {
        drain: source.duration(raw.drain.as_ref(), DEFAULT_DRAIN)?,
        quarantine: source.duration(raw.quarantine.as_ref(), DEFAULT_QUARANTINE)?,
        routers: BTreeMap::new(),
        segments: BTreeMap::new(),
    };
    for router in &raw.router {
        let name = RouterName::new(source.name(&router.name)?);
        let tier = match router.tier.get_ref().as_str() {
            "edge" => Tier::Edge,
            "aggregation" => Tier::Aggregation,
            "core" => Tier::Core,
            other => {
                return Err(source.error(
                    &router.tier.span(),
                    format!("`{other}` is no tier"),
                    "write edge, aggregation or core",
                ));
            }
        };
        if topology.routers.insert(name.clone(), tier).is_some() {
            return Err(source.error(
                &router.name.span(),
                format!("router {name} is named twice"),
                "give each router a name of its own",
            ));
        }
    }
    if topology.routers.is_empty() {
        return Err(source.error(
            &(0..0),
            "there is no [[router]]",
            "add one for each router with an agent",
        ));
    }
    for segment in &raw.segment {
        add_segment(&source, &mut topology, segment)?;
    }
    if topology.segments.is_empty() {
        return Err(source.error(
            &(0..0),
            "there is no [[segment]]",
            "add one for each subnet that VMs live in",
        ));
    }
    Ok(topology)
}

fn add_segment(
    source: &Source<'_>,
    topology: &mut Topology,
    text: &SegmentText,
) -> Result<(), TopologyError> {
    let name = SegmentName::new(source.name(&text.name)?);
    if topology.segments.contains_key(&name) {
        return Err(source.error(
            &text.name.span(),
            format!("segment {name} is named twice"),
            "give each segment a name of its own",
        ));
    }
    let mut subnets = Vec::new();
    for family in IpFamily::ALL {
        subnets.extend(subnet(source, &name, text, family)?);
    }
    if subnets.is_empty() {
        return Err(source.error(
            &text.name.span(),
            format!("segment {name} has no prefix"),
            "add `prefix`, `gateway` and `pool`, or the same of IPv6: `prefix_ipv6`, `gateway_ipv6` \
             and `pool_ipv6`",
        ));
    }
    let mut routers = BTreeSet::new();
    for router in text.routers.get_ref() {
        if !routers.insert(RouterName::new(router.get_ref().as_str())) {
            return Err(source.error(
                &router.span(),
                format!("router {} serves segment {name} twice", router.get_ref()),
                "name it once",
            ));
        }
    }
    let segment = Segment { subnets, routers };
    check::segment(topology, &name, &segment).map_err(|problem| {
        let value = match problem.key {
            Key::Prefix(family) => text.subnet(family)[0],
            Key::Gateway(family) => text.subnet(family)[1],
            Key::Pool(family) => text.subnet(family)[2],
            Key::Routers => None,
        };
        let span = value.map_or_else(|| text.routers.span(), Spanned::span);
        source.error(&span, problem.what, problem.remedy)
    })?;
    topology.segments.insert(name, segment);
    Ok(())
}

impl SegmentText {
    /// Prefix, gateway and pool of a family.
    fn subnet(&self, family: IpFamily) -> [Option<&Spanned<String>>; 3] {
        match family {
            IpFamily::Ipv4 => [&self.prefix, &self.gateway, &self.pool],
            IpFamily::Ipv6 => [&self.prefix_ipv6, &self.gateway_ipv6, &self.pool_ipv6],
        }
        .map(Option::as_ref)
    }
}

/// A segment's addresses of a family: all three keys, or none.
fn subnet(
    source: &Source<'_>,
    name: &SegmentName,
    text: &SegmentText,
    family: IpFamily,
) -> Result<Option<Subnet>, TopologyError> {
    let (prefix, gateway, pool) = match text.subnet(family) {
        [None, None, None] => return Ok(None),
        [Some(prefix), Some(gateway), Some(pool)] => (prefix, gateway, pool),
        some => {
            let keys = match family {
                IpFamily::Ipv4 => ["prefix", "gateway", "pool"],
                IpFamily::Ipv6 => ["prefix_ipv6", "gateway_ipv6", "pool_ipv6"],
            };
            let missing: Vec<_> = keys
                .iter()
                .zip(&some)
                .filter(|(_, value)| value.is_none())
                .map(|(key, _)| format!("`{key}`"))
                .collect();
            let there = some.into_iter().flatten().next();
            return Err(source.error(
                &there.map_or_else(|| text.name.span(), Spanned::span),
                format!("segment {name} lacks {}", missing.join(" and ")),
                format!("add what is missing for {family}, or remove all of it"),
            ));
        }
    };
    Ok(Some(Subnet {
        prefix: source.prefix(prefix, family)?,
        gateway: source.address(gateway, family)?,
        pool: source.prefix(pool, family)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
drain = "2s"
[[router]]
name = "edge1"
tier = "edge"
[[router]]
name = "core1"
tier = "core"
[[segment]]
name = "rack1"
prefix = "10.1.1.0/24"
gateway = "10.1.1.1"
pool = "10.1.1.128/25"
routers = ["edge1"]
"#;

    #[test]
    fn a_good_file_is_read() {
        let topology = Topology::parse("t.toml", GOOD).unwrap();
        assert_eq!(topology.drain, Duration::from_secs(2));
        assert_eq!(topology.quarantine, DEFAULT_QUARANTINE);
        assert_eq!(topology.routers.len(), 2);
        assert!(topology.serves(&"edge1".into(), &"rack1".into()));
        assert!(!topology.serves(&"core1".into(), &"rack1".into()));
        let json = serde_json::to_string(&topology).unwrap();
        assert_eq!(serde_json::from_str::<Topology>(&json).unwrap(), topology);
    }

    #[test]
    fn errors_name_file_place_and_remedy() {
        let cases = [
            (
                "prefix = \"10.1.1.0/24\"",
                "prefix = \"10.1.1.7/24\"",
                "t.toml:11:10: `10.1.1.7/24` has bits set behind its prefix length; write 10.1.1.0/24",
            ),
            (
                "prefix = \"10.1.1.0/24\"",
                "prefix = \"rack\"",
                "t.toml:11:10: `rack` is not an IPv4 prefix; write an address and a length, such as 10.1.1.0/24",
            ),
            (
                "gateway = \"10.1.1.1\"",
                "gateway = \"10.1.2.1\"",
                "t.toml:12:11: gateway 10.1.2.1 of segment rack1 is no host's address in 10.1.1.0/24; write the address that its hosts use as gateway",
            ),
            (
                "gateway = \"10.1.1.1\"",
                "gateway = \"10.1.1.129\"",
                "t.toml:13:8: pool 10.1.1.128/25 of segment rack1 contains its gateway 10.1.1.129; choose another part of the prefix as pool",
            ),
            (
                "pool = \"10.1.1.128/25\"",
                "pool = \"10.1.2.128/25\"",
                "t.toml:13:8: pool 10.1.2.128/25 of segment rack1 is not a part of its prefix 10.1.1.0/24; reserve a part of the prefix, which no host uses, for locators",
            ),
            (
                "[\"edge1\"]",
                "[\"edge9\"]",
                "t.toml:14:11: there is no router edge9, which is said to serve segment rack1; correct the name, or add a [[router]] for it",
            ),
            (
                "[\"edge1\"]",
                "[\"core1\"]",
                "t.toml:14:11: router core1 serves segment rack1, but its tier is core; name an edge router, or correct the router's tier",
            ),
            (
                "[\"edge1\"]",
                "[]",
                "t.toml:14:11: segment rack1 is served by 0 routers; name its one or two edge routers",
            ),
            (
                "[\"edge1\"]",
                "[\"edge1\", \"edge1\"]",
                "t.toml:14:21: router edge1 serves segment rack1 twice; name it once",
            ),
            (
                "name = \"core1\"",
                "name = \"edge1\"",
                "t.toml:7:8: router edge1 is named twice; give each router a name of its own",
            ),
            (
                "tier = \"core\"",
                "tier = \"spine\"",
                "t.toml:8:8: `spine` is no tier; write edge, aggregation or core",
            ),
            (
                "drain = \"2s\"",
                "drain = \"2\"",
                "t.toml:2:9: `2` is not a duration; write a number and a unit: 500ms, 5s, 2m or 1h",
            ),
            (
                "drain = \"2s\"",
                "drain = \"2s",
                "t.toml:2:12: invalid basic string, expected `\"`; write it as TOML 1.0 asks",
            ),
            (
                "drain = \"2s\"",
                "dran = \"2s\"",
                "t.toml:2:1: unknown field `dran`, expected one of `drain`, `quarantine`, `router`, `segment`; remove the key or correct its spelling",
            ),
        ];
        for (good, bad, expected) in cases {
            assert!(GOOD.contains(good));
            let error = Topology::parse("t.toml", &GOOD.replacen(good, bad, 1)).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    /// A segment of both families and one of IPv6 alone.
    const DUAL: &str = r#"
[[router]]
name = "edge1"
tier = "edge"
[[segment]]
name = "rack1"
prefix = "10.1.1.0/24"
gateway = "10.1.1.1"
pool = "10.1.1.128/25"
prefix_ipv6 = "2001:db8:1::/64"
gateway_ipv6 = "fe80::1"
pool_ipv6 = "2001:db8:1:0:f::/80"
routers = ["edge1"]
[[segment]]
name = "rack2"
prefix_ipv6 = "2001:db8:2::/56"
gateway_ipv6 = "2001:db8:2::1"
pool_ipv6 = "2001:db8:2:1::/64"
routers = ["edge1"]
"#;

    #[test]
    fn segments_have_one_family_or_both() {
        let topology = Topology::parse("t.toml", DUAL).unwrap();
        let families = |name: &str| {
            IpFamily::ALL.map(|family| topology.segments[&name.into()].subnet(family).is_some())
        };
        assert_eq!(families("rack1"), [true, true]);
        assert_eq!(families("rack2"), [false, true]);
        assert_eq!(topology.pools().len(), 3);
        let inside = "2001:db8:2:7::9".parse().unwrap();
        assert_eq!(topology.segment_of(inside), Some(&"rack2".into()));
        let json = serde_json::to_string(&topology).unwrap();
        assert_eq!(serde_json::from_str::<Topology>(&json).unwrap(), topology);
    }

    #[test]
    fn segments_without_ipv6_are_read_as_they_were_stored() {
        let json = r#"{"prefix":"10.1.1.0/24","gateway":"10.1.1.1","pool":"10.1.1.128/25","routers":["edge1"]}"#;
        let segment: Segment = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&segment).unwrap(), json);
        let half = json.replace("\"gateway\":\"10.1.1.1\",", "");
        assert!(serde_json::from_str::<Segment>(&half).is_err());
    }

    #[test]
    fn mistakes_of_ipv6_are_named() {
        let cases = [
            (
                "pool_ipv6 = \"2001:db8:1:0:f::/80\"\n",
                "",
                "t.toml:10:15: segment rack1 lacks `pool_ipv6`; add what is missing for IPv6, or remove all of it",
            ),
            (
                "\"2001:db8:1::/64\"",
                "\"10.1.3.0/24\"",
                "t.toml:10:15: `10.1.3.0/24` is not an IPv6 prefix; write an address and a length, such as 2001:db8:1::/64",
            ),
            (
                "fe80::1",
                "2001:db8:3::1",
                "t.toml:11:16: gateway 2001:db8:3::1 of segment rack1 is no host's address in 2001:db8:1::/64; write the address that its hosts use as gateway, which may be link-local",
            ),
            (
                "\"2001:db8:2:1::/64\"",
                "\"2001:db8:2:2::/63\"",
                "t.toml:18:13: IPv6 pool 2001:db8:2:2::/63 is shorter than a /64 (segment rack2); use a pool of length 64 to 128: a locator pool lies in one /64",
            ),
            (
                "prefix_ipv6 = \"2001:db8:2::/56\"\ngateway_ipv6 = \"2001:db8:2::1\"\npool_ipv6 = \"2001:db8:2:1::/64\"",
                "prefix_ipv6 = \"2001:db8:1:0:1::/80\"\ngateway_ipv6 = \"2001:db8:1:0:1::1\"\npool_ipv6 = \"2001:db8:1:0:1:f::/96\"",
                "t.toml:16:15: prefix 2001:db8:1:0:1::/80 of segment rack2 overlaps 2001:db8:1::/64 of segment rack1; give each segment a prefix of its own",
            ),
            (
                "2001:db8:2::/56",
                "fe80::/64",
                "t.toml:16:15: prefix fe80::/64 of segment rack2 is not routed; use a global prefix, or a unique local one (fd00::/8)",
            ),
        ];
        for (good, bad, expected) in cases {
            assert!(DUAL.contains(good), "{good}");
            let error = Topology::parse("t.toml", &DUAL.replacen(good, bad, 1)).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn pools_in_the_same_64_are_refused() {
        let text = DUAL
            .replace("2001:db8:1::/64", "2001:db8:1::/80")
            .replace("2001:db8:1:0:f::/80", "2001:db8:1::f:0:0/96")
            .replace("2001:db8:2::/56", "2001:db8:1:0:1::/80")
            .replace("2001:db8:2::1", "2001:db8:1:0:1::1")
            .replace("2001:db8:2:1::/64", "2001:db8:1:0:1:f::/96");
        let error = Topology::parse("t.toml", &text).unwrap_err();
        assert!(error.problem.contains("in the same /64 as pool"), "{error}");
        assert_eq!((error.line, error.column), (18, 13));
    }

    #[test]
    fn a_segment_without_addresses_is_refused() {
        let text = GOOD.replace(
            "prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\npool = \"10.1.1.128/25\"\n",
            "",
        );
        let error = Topology::parse("t.toml", &text).unwrap_err();
        assert!(error.problem.contains("has no prefix"), "{error}");
        assert!(error.remedy.contains("prefix_ipv6"), "{error}");
    }

    #[test]
    fn overlapping_prefixes_are_refused() {
        let text = format!(
            "{GOOD}[[segment]]\nname = \"rack2\"\nprefix = \"10.1.0.0/16\"\ngateway = \"10.1.0.1\"\n\
             pool = \"10.1.2.0/24\"\nrouters = [\"edge1\"]\n"
        );
        let error = Topology::parse("t.toml", &text).unwrap_err();
        assert_eq!((error.line, error.column), (17, 10));
        assert!(
            error
                .problem
                .contains("overlaps 10.1.1.0/24 of segment rack1")
        );
    }

    #[test]
    fn an_empty_file_is_refused() {
        let error = Topology::parse("t.toml", "").unwrap_err();
        assert_eq!((error.line, error.column), (1, 1));
        assert!(!error.remedy.is_empty());
    }
}

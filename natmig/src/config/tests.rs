//! Files that are right, and everything that may be wrong in one.

use std::path::Path;

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
    assert_eq!(config.max_addresses_ipv6, DEFAULT_MAX_ADDRESSES);
    let banks = [1, 2, 128].map(|cpus| config.binding_banks(cpus));
    assert_eq!(banks, [1, 1, 1]);
    assert_eq!(config.forward, Forward::Bound);
    assert_eq!(config.metrics, None);
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
        (
            "router = \"edge1\"",
            "router = \"edge1\"\nmetrics = \"9441\"",
            3,
            "`9441` is not an address and a port",
            "127.0.0.1:9441",
        ),
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
            "not a prefix",
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

/// A configuration of both families.
const DUAL: &str = r#"
router = "edge1"
max_addresses = 4096
max_addresses_ipv6 = 1024
binding_counter_banks = 4
forward = "all"
locator_pools = ["10.1.1.128/25", "2001:db8:1:0:f::/80"]
[[interface]]
name = "eth0.10"
role = "access"
segment = "rack1"
prefix = "10.1.1.0/24"
prefix_ipv6 = "2001:db8:1::/64"
gateway_ipv6 = "fe80::1"
parent = "eth0"
vlan = 10
[[interface]]
name = "eth0.20"
role = "fabric"
parent = "eth0"
vlan = 20
"#;

#[test]
fn both_families_and_vlans_are_read() {
    let config = parse(DUAL).unwrap();
    assert_eq!(
        [config.max_addresses, config.max_addresses_ipv6],
        [4096, 1024]
    );
    assert_eq!([1, 2, 8].map(|cpus| config.binding_banks(cpus)), [1, 2, 4]);
    assert_eq!(config.forward, Forward::All);
    assert_eq!(config.locator_pools.len(), 2);
    let access = config.access(&"rack1".into()).unwrap();
    assert_eq!(access.prefix_ipv6.unwrap().to_string(), "2001:db8:1::/64");
    assert_eq!(access.gateway_ipv6.unwrap().to_string(), "fe80::1");
    let vlan = access.vlan.as_ref().unwrap();
    assert_eq!((vlan.parent.as_str(), vlan.id), ("eth0", 10));
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<RouterConfig>(&text).unwrap(), config);
}

#[test]
fn an_access_interface_may_have_ipv6_only() {
    let text = DUAL.replace("prefix = \"10.1.1.0/24\"\n", "");
    let config = parse(&text).unwrap();
    assert_eq!(config.access(&"rack1".into()).unwrap().prefix, None);
}

#[test]
fn mistakes_of_ipv6_and_vlans_are_named() {
    let cases = [
        (
            "\"2001:db8:1:0:f::/80\"",
            "\"2001:db8::/48\"",
            7,
            "shorter than a /64",
            "in one /64",
        ),
        (
            "\"2001:db8:1:0:f::/80\"",
            "\"2001:db8:1:0:f::/80\", \"2001:db8:1:0:e::/80\"",
            7,
            "same /64 as pool 2001:db8:1:0:f::/80",
            "one pool in each /64",
        ),
        (
            "2001:db8:1:0:f::/80",
            "2001:db8:1:0:f::1/80",
            7,
            "bits set",
            "write 2001:db8:1:0:f::/80",
        ),
        ("= 1024", "= 1", 4, "`max_addresses_ipv6` is 1", "16 to"),
        ("= 4\n", "= 3\n", 5, "banks` is 3", "power of two"),
        ("\"all\"", "\"none\"", 6, "`none` is not", "bound"),
        (
            "2001:db8:1::/64",
            "10.1.1.0/24",
            13,
            "not an IPv6 prefix",
            "2001:db8",
        ),
        (
            "fe80::1",
            "2001:db8:2::1",
            14,
            "outside 2001:db8:1::/64",
            "own gateway",
        ),
        (
            "prefix_ipv6 = \"2001:db8:1::/64\"\n",
            "",
            13,
            "no prefix of its family",
            "remove the gateway",
        ),
        (
            "vlan = 10\n",
            "",
            15,
            "`parent` without `vlan`",
            "add the VLAN",
        ),
        (
            "parent = \"eth0\"\nvlan = 10",
            "vlan = 10",
            15,
            "`vlan` without `parent`",
            "parent =",
        ),
        (
            "vlan = 10\n",
            "vlan = 4095\n",
            16,
            "no VLAN identifier",
            "1 to 4094",
        ),
        ("vlan = 20", "vlan = 10", 21, "named twice", "remove one"),
        (
            "parent = \"eth0\"\nvlan = 20",
            "parent = \"eth0.20\"\nvlan = 20",
            20,
            "own parent",
            "as `parent`",
        ),
        (
            "parent = \"eth0\"\nvlan = 20",
            "parent = \"eth0.10\"\nvlan = 20",
            20,
            "a VLAN itself",
            "physical",
        ),
    ];
    for (from, to, line, problem, remedy) in cases {
        let text = DUAL.replacen(from, to, 1);
        assert_ne!(text, DUAL, "{from} is in the text");
        let error = parse(&text).unwrap_err();
        assert_eq!(error.line, line, "{to}: {error}");
        assert_ne!(error.column, 0, "{to}: {error}");
        assert!(error.problem.contains(problem), "{to}: {error}");
        assert!(error.remedy.contains(remedy), "{to}: {error}");
    }
}

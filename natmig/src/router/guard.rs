//! The guard: an nftables table that keeps locators inside the fabric whatever the programs do.
//!
//! What the kernel itself sends or forwards out of an access or external interface with an address
//! of a locator pool is dropped and counted, ICMP errors that quote one too. So are the kernel's
//! redirects: a host must not learn to send to a VM by itself, and IPv6 has no setting against them. It
//! is in place before the first program is attached, and is replaced in one nftables transaction.
//!
//! A second table mends what a veth gets wrong: it notes that a frame is for another host before the
//! program gets it, and does not look again when the program has made it the router's own.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
};

use ipnet::IpNet;

use super::{RouterError, instance::Instance};

/// What the guard dropped.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GuardCounter {
    /// Which rule: `source`, `destination`, `quoted_source` or `quoted_destination`; of IPv6 with
    /// `_ipv6` behind it.
    pub name: String,
    /// Packets dropped.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What must not leave, of one family: locators in these fields of a packet, and redirects.
struct Leaving {
    /// The nftables family.
    family: &'static str,
    /// The nftables expression of a redirect (RFC 792; RFC 4861, section 4.5).
    redirect: &'static str,
    /// Name of the counter and the nftables expression.
    fields: [(&'static str, &'static str); 4],
}

/// Quoted addresses are behind the 8 bytes of the ICMP header, 12 and 16 bytes into the quoted IPv4
/// header (RFC 792).
const IPV4: Leaving = Leaving {
    family: "ip",
    redirect: "icmp type redirect",
    fields: [
        ("source", "@nh,96,32"),
        ("destination", "@nh,128,32"),
        ("quoted_source", "icmp type { 3, 4, 5, 11, 12 } @th,160,32"),
        (
            "quoted_destination",
            "icmp type { 3, 4, 5, 11, 12 } @th,192,32",
        ),
    ],
};

/// Quoted addresses are behind the 8 bytes of the `ICMPv6` header, 8 and 24 bytes into the quoted
/// IPv6 header (RFC 4443).
const IPV6: Leaving = Leaving {
    family: "ip6",
    redirect: "icmpv6 type nd-redirect",
    fields: [
        ("source_ipv6", "@nh,64,128"),
        ("destination_ipv6", "@nh,192,128"),
        (
            "quoted_source_ipv6",
            "icmpv6 type { 1, 2, 3, 4 } @th,128,128",
        ),
        (
            "quoted_destination_ipv6",
            "icmpv6 type { 1, 2, 3, 4 } @th,256,128",
        ),
    ],
};

/// Families in which the guard has a table.
const FAMILIES: [&str; 3] = ["ip", "ip6", "netdev"];

/// The guard's rules, as `nft -f` reads them.
fn rules(instance: &Instance, boundary: &[(String, [u8; 6])], pools: &[IpNet]) -> String {
    let table = instance.guard_table();
    let mut text = String::new();
    for what in [IPV4, IPV6] {
        leaving(&mut text, &table, &what, boundary, pools);
    }
    writeln!(
        text,
        "table netdev {table} {{}}\ndelete table netdev {table}\ntable netdev {table} {{"
    )
    .unwrap_or_default();
    for (number, (name, mac)) in boundary.iter().enumerate() {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        writeln!(
            text,
            "  chain arriving_{number} {{\n    type filter hook ingress device \"{name}\" priority -500; policy accept;\n    meta pkttype other ether daddr {mac} meta pkttype set host\n  }}"
        )
        .unwrap_or_default();
    }
    text.push_str("}\n");
    text
}

/// The rules for what leaves, of one family.
fn leaving(
    text: &mut String,
    table: &str,
    what: &Leaving,
    boundary: &[(String, [u8; 6])],
    pools: &[IpNet],
) {
    let Leaving {
        family,
        redirect,
        fields,
    } = what;
    writeln!(
        text,
        "table {family} {table} {{}}\ndelete table {family} {table}\ntable {family} {table} {{"
    )
    .unwrap_or_default();
    for (name, _) in fields {
        writeln!(text, "  counter {name} {{ }}").unwrap_or_default();
    }
    text.push_str(
        "  chain leaving {\n    type filter hook postrouting priority 300; policy accept;\n",
    );
    if !boundary.is_empty() {
        let names = boundary
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(", ");
        writeln!(text, "    oifname {{ {names} }} {redirect} counter drop").unwrap_or_default();
        for pool in pools {
            let (pool_family, mask, value) = match pool {
                IpNet::V4(pool) => (
                    IPV4.family,
                    format!("0x{:08x}", u32::from(pool.netmask())),
                    format!("0x{:08x}", u32::from(pool.network())),
                ),
                IpNet::V6(pool) => (
                    IPV6.family,
                    format!("0x{:032x}", u128::from(pool.netmask())),
                    format!("0x{:032x}", u128::from(pool.network())),
                ),
            };
            if pool_family != *family {
                continue;
            }
            for (name, field) in fields {
                writeln!(
                    text,
                    "    oifname {{ {names} }} {field} & {mask} == {value} counter name {name} drop"
                )
                .unwrap_or_default();
            }
        }
    }
    text.push_str("  }\n}\n");
}

/// Installs the guard, or replaces it.
pub(super) fn install(
    instance: &Instance,
    boundary: &[(String, [u8; 6])],
    pools: &[IpNet],
) -> Result<(), RouterError> {
    nft(&["-f", "-"], &rules(instance, boundary, pools)).map(drop)
}

/// Removes the guard, if there is one.
pub(super) fn remove(instance: &Instance) -> Result<(), RouterError> {
    let table = instance.guard_table();
    let removed: Vec<_> = FAMILIES
        .iter()
        .map(|family| format!("table {family} {table} {{}}\ndelete table {family} {table}\n"))
        .collect();
    nft(&["-f", "-"], &removed.concat()).map(drop)
}

/// The families of [`FAMILIES`] in which the guard's table is not there.
pub(super) fn missing(instance: &Instance) -> Result<Vec<&'static str>, RouterError> {
    let text = nft(&["-j", "list", "tables"], "")?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| RouterError::Nft(error.to_string()))?;
    let name = instance.guard_table();
    let is_there = |family: &str| {
        value["nftables"].as_array().is_some_and(|objects| {
            objects
                .iter()
                .map(|object| &object["table"])
                .any(|table| table["family"] == family && table["name"] == name.as_str())
        })
    };
    Ok(FAMILIES
        .into_iter()
        .filter(|family| !is_there(family))
        .collect())
}

/// Reads the guard's counters.
pub(super) fn counters(instance: &Instance) -> Result<Vec<GuardCounter>, RouterError> {
    let table = instance.guard_table();
    let mut objects = Vec::new();
    for Leaving { family, .. } in [IPV4, IPV6] {
        let text = nft(&["-j", "list", "counters", "table", family, &table], "")?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| RouterError::Nft(error.to_string()))?;
        objects.extend(value["nftables"].as_array().cloned().unwrap_or_default());
    }
    Ok(objects
        .iter()
        .map(|object| &object["counter"])
        .filter_map(|counter| {
            Some(GuardCounter {
                name: counter["name"].as_str()?.to_owned(),
                packets: counter["packets"].as_u64()?,
                bytes: counter["bytes"].as_u64()?,
            })
        })
        .collect())
}

fn nft(arguments: &[&str], input: &str) -> Result<String, RouterError> {
    let run = || -> io::Result<std::process::Output> {
        let mut child = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(RouterError::NoNft)?;
    if !output.status.success() {
        return Err(RouterError::Nft(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_masks_each_pool_in_each_field() {
        let pools = ["10.1.1.128/25", "2001:db8:1:0:f::/80"].map(|pool| pool.parse().unwrap());
        let text = rules(
            &Instance::new("default"),
            &[("acc0".to_owned(), [2, 0, 0, 0, 0, 1])],
            &pools,
        );
        for rule in [
            "oifname { \"acc0\" } @nh,96,32 & 0xffffff80 == 0x0a010180 counter name source drop",
            "oifname { \"acc0\" } icmp type redirect counter drop",
            "oifname { \"acc0\" } icmpv6 type nd-redirect counter drop",
            "oifname { \"acc0\" } @nh,64,128 & 0xffffffffffffffffffff000000000000 == \
             0x20010db800010000000f000000000000 counter name source_ipv6 drop",
        ] {
            assert!(text.contains(rule), "{rule}");
        }
        let fields = IPV4.fields.len() + IPV6.fields.len();
        let redirects = 2;
        assert_eq!(text.matches(" drop").count(), fields + redirects);
    }
}

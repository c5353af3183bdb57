//! The guard: an nftables table that keeps locators inside the fabric whatever the programs do.
//!
//! What the kernel itself sends or forwards out of an access or external interface with an address
//! of a locator pool is dropped and counted, ICMP errors that quote one too. It is in place before
//! the first program is attached, and is replaced in one nftables transaction.
//!
//! A second table mends what a veth gets wrong: it notes that a frame is for another host before the
//! program gets it, and does not look again when the program has made it the router's own.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
};

use ipnet::Ipv4Net;

use super::{RouterError, instance::Instance};

/// What the guard dropped.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GuardCounter {
    /// Which rule: `source`, `destination`, `quoted_source` or `quoted_destination`.
    pub name: String,
    /// Packets dropped.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Fields of a packet in which a locator must not leave the fabric: name of the counter and the
/// nftables expression. Quoted addresses are behind the 8 bytes of the ICMP header, 12 and 16 bytes
/// into the quoted IP header (RFC 792).
const FIELDS: [(&str, &str); 4] = [
    ("source", "@nh,96,32"),
    ("destination", "@nh,128,32"),
    ("quoted_source", "icmp type { 3, 4, 5, 11, 12 } @th,160,32"),
    (
        "quoted_destination",
        "icmp type { 3, 4, 5, 11, 12 } @th,192,32",
    ),
];

/// Families in which the guard has a table.
const FAMILIES: [&str; 2] = ["ip", "netdev"];

/// The guard's rules, as `nft -f` reads them.
fn rules(instance: &Instance, boundary: &[(String, [u8; 6])], pools: &[Ipv4Net]) -> String {
    let table = instance.guard_table();
    let mut text = leaving(&table, boundary, pools);
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

/// The rules for what leaves.
fn leaving(table: &str, boundary: &[(String, [u8; 6])], pools: &[Ipv4Net]) -> String {
    let mut text = format!("table ip {table} {{}}\ndelete table ip {table}\ntable ip {table} {{\n");
    for (name, _) in FIELDS {
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
        for pool in pools {
            let (mask, value) = (u32::from(pool.netmask()), u32::from(pool.network()));
            for (name, field) in FIELDS {
                writeln!(
                    text,
                    "    oifname {{ {names} }} {field} & 0x{mask:08x} == 0x{value:08x} counter name {name} drop"
                )
                .unwrap_or_default();
            }
        }
    }
    text.push_str("  }\n}\n");
    text
}

/// Installs the guard, or replaces it.
pub(super) fn install(
    instance: &Instance,
    boundary: &[(String, [u8; 6])],
    pools: &[Ipv4Net],
) -> Result<(), RouterError> {
    nft(&["-f", "-"], &rules(instance, boundary, pools)).map(drop)
}

/// Removes the guard, if there is one.
pub(super) fn remove(instance: &Instance) -> Result<(), RouterError> {
    let table = instance.guard_table();
    nft(
        &["-f", "-"],
        &format!(
            "table ip {table} {{}}\ndelete table ip {table}\ntable netdev {table} {{}}\ndelete table netdev {table}\n"
        ),
    )
    .map(drop)
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
    let text = nft(&["-j", "list", "counters", "table", "ip", &table], "")?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| RouterError::Nft(error.to_string()))?;
    let objects = value["nftables"].as_array().cloned().unwrap_or_default();
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
        let pools = ["10.1.1.128/25".parse().unwrap()];
        let text = rules(
            &Instance::new("default"),
            &[("acc0".to_owned(), [2, 0, 0, 0, 0, 1])],
            &pools,
        );
        assert!(text.contains(
            "oifname { \"acc0\" } @nh,96,32 & 0xffffff80 == 0x0a010180 counter name source drop"
        ));
        assert_eq!(text.matches(" drop").count(), FIELDS.len());
    }
}

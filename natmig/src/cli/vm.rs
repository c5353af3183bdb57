//! `natmig vm`.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use serde::Deserialize;
use toml::Spanned;

use super::client::{self, ClientArgs};
use crate::{
    addresses::Addresses,
    coordinator::VmView,
    names::{SegmentName, VmName},
    planner::Vm,
    proto::v1,
    rule::MacAddress,
};

/// The inventory of VMs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig vm add web1 --ip 10.1.1.10 --mac 02:00:00:00:00:10 --segment rack1\n  \
    natmig vm add web2 --ip 10.1.1.11 --ip 2001:db8:1::11 --mac 02:00:00:00:00:11 --segment rack1\n  \
    natmig vm add --file vms.toml\n  \
    natmig vm list\n\n\
    A file of VMs:\n  \
    [[vm]]\n  \
    name = \"web1\"\n  \
    ip = [\"10.1.1.10\", \"2001:db8:1::10\"] # or one address: ip = \"10.1.1.10\"\n  \
    mac = \"02:00:00:00:00:10\"\n  \
    segment = \"rack1\"")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Add VMs: one, or all of a file, or none
    Add(AddArgs),
    /// List all VMs and where they are
    List,
    /// Show single VMs
    Show {
        /// The VMs
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove VMs that are at home
    Remove {
        /// The VMs
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// The VM's name
    #[arg(required_unless_present = "file", conflicts_with = "file",
          requires_all = ["ip", "mac", "segment"])]
    name: Option<String>,

    /// An address that it keeps for life, IPv4 or IPv6; once for each of its families
    #[arg(long, alias = "identity", value_name = "ADDRESS", requires = "name")]
    ip: Vec<IpAddr>,

    /// Its MAC address
    #[arg(long, requires = "name")]
    mac: Option<MacAddress>,

    /// Its home segment
    #[arg(long, value_name = "HOME", requires = "name")]
    segment: Option<String>,

    /// Add the VMs of this file (TOML)
    #[arg(long)]
    file: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.client.json;
    match args.command {
        Command::Add(add) => {
            let vms = add.vms()?;
            args.client.run(async move |mut client| {
                let request = v1::AddVmsRequest {
                    vms: vms.iter().map(Into::into).collect(),
                };
                client.add_vms(request).await?;
                if json {
                    client::print_json(&vms)?;
                } else if let [vm] = &vms[..] {
                    println!("added: {} ({}, home {})", vm.name, vm.identities, vm.home);
                } else {
                    println!("added: {} VMs", vms.len());
                }
                Ok(())
            })
        }
        Command::List => show(&args.client, Vec::new()),
        Command::Show { names } => show(&args.client, names),
        Command::Remove { names } => args.client.run(async move |mut client| {
            let request = v1::RemoveVmsRequest {
                names: names.clone(),
            };
            client.remove_vms(request).await?;
            client::print_done(json, "removed", &names.join(" "))?;
            Ok(())
        }),
    }
}

fn show(client: &ClientArgs, names: Vec<String>) -> anyhow::Result<ExitCode> {
    let json = client.json;
    client.run(async move |mut client| {
        let answer = client.list_vms(v1::ListVmsRequest { names }).await?;
        let vms = answer
            .into_inner()
            .vms
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<Vec<VmView>, _>>()?;
        Ok(print(&vms, json)?)
    })
}

fn print(vms: &[VmView], json: bool) -> anyhow::Result<()> {
    if json {
        return client::print_json(&vms);
    }
    let mut table = client::table(&[
        "VM",
        "identities",
        "MAC",
        "home",
        "segment",
        "locators",
        "draining",
        "migration",
    ]);
    for vm in vms {
        table.add_row([
            vm.name.to_string(),
            lines(vm.identities.iter()),
            vm.mac.to_string(),
            vm.home.to_string(),
            vm.segment.to_string(),
            if vm.locators.is_empty() {
                "-".to_owned()
            } else {
                lines(vm.locators.iter())
            },
            lines(vm.draining.iter().copied()),
            client::or_dash(vm.migration),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Addresses in a cell of a table, one below the other.
pub(super) fn lines(addresses: impl Iterator<Item = IpAddr>) -> String {
    let texts: Vec<_> = addresses.map(|address| address.to_string()).collect();
    texts.join("\n")
}

impl AddArgs {
    fn vms(self) -> anyhow::Result<Vec<Vm>> {
        if let Some(file) = &self.file {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            return parse(file, &text);
        }
        let identities = Addresses::collect(self.ip)?;
        match (self.name, self.mac, self.segment) {
            (Some(name), Some(mac), Some(segment)) if !identities.is_empty() => Ok(vec![Vm {
                name: VmName::new(name),
                identities,
                mac,
                home: SegmentName::new(segment),
            }]),
            _ => anyhow::bail!("a VM needs a name, --ip, --mac and --segment"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    vm: Vec<VmText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmText {
    name: Spanned<String>,
    #[serde(alias = "identity")]
    ip: Spanned<AddressTexts>,
    mac: Spanned<String>,
    segment: Spanned<String>,
}

/// One address, or a list.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected an address or a list of addresses")]
enum AddressTexts {
    One(String),
    List(Vec<String>),
}

/// Reads a file of VMs; an error names file, line, column and remedy.
fn parse(file: &Path, text: &str) -> anyhow::Result<Vec<Vm>> {
    let at = |start: usize, problem: String| {
        let before = text.get(..start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        anyhow::anyhow!(
            "{}:{}:{}: {problem}",
            file.display(),
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    };
    let parsed: FileText = toml::from_str(text).map_err(|error| {
        at(
            error.span().map_or(0, |span| span.start),
            format!(
                "{}; write [[vm]] with name, ip, mac and segment for each VM",
                error.message()
            ),
        )
    })?;
    if parsed.vm.is_empty() {
        return Err(at(
            0,
            "no VM in the file; write [[vm]] with name, ip, mac and segment for each".to_owned(),
        ));
    }
    let mut vms: Vec<Vm> = Vec::with_capacity(parsed.vm.len());
    let mut names = std::collections::BTreeSet::new();
    for vm in parsed.vm {
        if !names.insert(vm.name.get_ref().clone()) {
            return Err(at(
                vm.name.span().start,
                format!("VM {} is there twice; remove one", vm.name.get_ref()),
            ));
        }
        let place = vm.ip.span().start;
        let texts = match vm.ip.into_inner() {
            AddressTexts::One(text) => vec![text],
            AddressTexts::List(texts) => texts,
        };
        let mut identities = Addresses::default();
        for text in &texts {
            let address: IpAddr = text.parse().map_err(|_| {
                at(
                    place,
                    format!(
                        "{text:?} is no IP address; write it like \"10.1.1.10\" or \"2001:db8:1::10\""
                    ),
                )
            })?;
            identities
                .add(address)
                .map_err(|error| at(place, error.to_string()))?;
        }
        if identities.is_empty() {
            return Err(at(
                place,
                format!("VM {} has no address; add one", vm.name.get_ref()),
            ));
        }
        vms.push(Vm {
            name: VmName::new(vm.name.get_ref()),
            identities,
            mac: vm
                .mac
                .get_ref()
                .parse()
                .map_err(|error| at(vm.mac.span().start, format!("{error}")))?,
            home: SegmentName::new(vm.segment.get_ref()),
        });
    }
    Ok(vms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[vm]]\nname = \"a\"\nip = \"10.1.1.10\"\n\
                        mac = \"02:00:00:00:00:10\"\nsegment = \"rack1\"\n";

    #[test]
    fn file_of_vms_is_read() {
        let vms = parse(Path::new("vms.toml"), GOOD).unwrap();
        assert_eq!(vms[0].identities.to_string(), "10.1.1.10");
        assert_eq!(vms[0].home, SegmentName::new("rack1"));
    }

    #[test]
    fn a_vm_may_have_an_address_of_each_family() {
        let both = GOOD.replace("\"10.1.1.10\"", "[\"2001:db8:1::10\", \"10.1.1.10\"]");
        let vms = parse(Path::new("vms.toml"), &both).unwrap();
        assert_eq!(vms[0].identities.to_string(), "10.1.1.10 2001:db8:1::10");
        let old = GOOD.replace("ip =", "identity =");
        let vms = parse(Path::new("vms.toml"), &old).unwrap();
        assert_eq!(vms[0].identities.to_string(), "10.1.1.10");
    }

    #[test]
    fn malformed_files_name_line_and_remedy() {
        for (text, place, words) in [
            ("", ":1:1: ", "write [[vm]]"),
            ("[[vm]]\nname = \"a\"\n", ":1:1: ", "missing field `ip`"),
            (
                &GOOD.replace("10.1.1.10", "10.1.1.300"),
                ":3:6: ",
                "no IP address",
            ),
            (
                &GOOD.replace("\"10.1.1.10\"", "[\"10.1.1.10\", \"10.1.1.11\"]"),
                ":3:6: ",
                "second IPv4 address",
            ),
            (&GOOD.replace("\"10.1.1.10\"", "[]"), ":3:6: ", "no address"),
            (
                &GOOD.replace("\"10.1.1.10\"", "7"),
                ":3:",
                "an address or a list",
            ),
            (&GOOD.replace("02:00", "03:00"), ":4:7: ", "unicast MAC"),
            (&format!("{GOOD}{GOOD}"), ":7:8: ", "twice"),
            (
                &format!("{GOOD}color = 1\n"),
                ":6:1: ",
                "unknown field `color`",
            ),
            ("[[vm]\n", ":1:", "write [[vm]]"),
        ] {
            let error = parse(Path::new("vms.toml"), text).unwrap_err().to_string();
            assert!(error.starts_with("vms.toml"), "{error}");
            assert!(error.contains(place), "{error}");
            assert!(error.contains(words), "{error}");
        }
    }
}

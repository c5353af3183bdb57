//! `natmig vm`.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use serde::Deserialize;
use toml::Spanned;

use super::client::{self, ClientArgs};
use crate::{
    coordinator::VmView,
    names::{SegmentName, VmName},
    planner::Vm,
    proto::v1,
    rule::MacAddress,
};

/// The inventory of VMs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig vm add web1 --identity 10.1.1.10 --mac 02:00:00:00:00:10 --segment rack1\n  \
    natmig vm add --file vms.toml\n  \
    natmig vm list\n\n\
    A file of VMs:\n  \
    [[vm]]\n  \
    name = \"web1\"\n  \
    identity = \"10.1.1.10\"\n  \
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
          requires_all = ["identity", "mac", "segment"])]
    name: Option<String>,

    /// The address that it keeps for life
    #[arg(long, value_name = "IP", requires = "name")]
    identity: Option<Ipv4Addr>,

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
                    println!("added: {} ({}, home {})", vm.name, vm.identity, vm.home);
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
        "identity",
        "MAC",
        "home",
        "segment",
        "locator",
        "draining",
        "migration",
    ]);
    for vm in vms {
        let draining: Vec<_> = vm.draining.iter().map(ToString::to_string).collect();
        table.add_row([
            vm.name.to_string(),
            vm.identity.to_string(),
            vm.mac.to_string(),
            vm.home.to_string(),
            vm.segment.to_string(),
            client::or_dash(vm.locator),
            draining.join(" "),
            client::or_dash(vm.migration),
        ]);
    }
    println!("{table}");
    Ok(())
}

impl AddArgs {
    fn vms(self) -> anyhow::Result<Vec<Vm>> {
        if let Some(file) = &self.file {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            return parse(file, &text);
        }
        match (self.name, self.identity, self.mac, self.segment) {
            (Some(name), Some(identity), Some(mac), Some(segment)) => Ok(vec![Vm {
                name: VmName::new(name),
                identity,
                mac,
                home: SegmentName::new(segment),
            }]),
            _ => anyhow::bail!("a VM needs a name, --identity, --mac and --segment"),
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
    identity: Spanned<String>,
    mac: Spanned<String>,
    segment: Spanned<String>,
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
                "{}; write [[vm]] with name, identity, mac and segment for each VM",
                error.message()
            ),
        )
    })?;
    if parsed.vm.is_empty() {
        return Err(at(
            0,
            "no VM in the file; write [[vm]] with name, identity, mac and segment for each"
                .to_owned(),
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
        vms.push(Vm {
            name: VmName::new(vm.name.get_ref()),
            identity: vm.identity.get_ref().parse().map_err(|_| {
                at(
                    vm.identity.span().start,
                    format!(
                        "{:?} is no IPv4 address; write it like \"10.1.1.10\"",
                        vm.identity.get_ref()
                    ),
                )
            })?,
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

    const GOOD: &str = "[[vm]]\nname = \"a\"\nidentity = \"10.1.1.10\"\n\
                        mac = \"02:00:00:00:00:10\"\nsegment = \"rack1\"\n";

    #[test]
    fn file_of_vms_is_read() {
        let vms = parse(Path::new("vms.toml"), GOOD).unwrap();
        assert_eq!(vms[0].identity, Ipv4Addr::new(10, 1, 1, 10));
        assert_eq!(vms[0].home, SegmentName::new("rack1"));
    }

    #[test]
    fn malformed_files_name_line_and_remedy() {
        for (text, place, words) in [
            ("", ":1:1: ", "write [[vm]]"),
            (
                "[[vm]]\nname = \"a\"\n",
                ":1:1: ",
                "missing field `identity`",
            ),
            (
                &GOOD.replace("10.1.1.10", "10.1.1.300"),
                ":3:12: ",
                "no IPv4 address",
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

//! `natmig migrate`.

use std::{process::ExitCode, time::Duration};

use super::{
    client::{self, ClientArgs},
    migration, progress,
};
use crate::{
    coordinator::{Activation, MigrateRequest, Unreachable},
    names::{SegmentName, VmName},
    proto::v1,
};

/// Announce a migration of one VM, or of a group that moves as one
///
/// All routers prepare; then all become active in the right order, and no connection breaks. The
/// migration's number is printed at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig migrate web1 --to rack2 --wait\n  \
    natmig migrate web1 web2 db1 --to rack3 --wait          # a group: all or none\n  \
    natmig migrate web1=rack2 db1=rack4 --wait              # a group to several segments\n  \
    natmig migrate web1 --to rack2 --activate manual --wait # returns when all is prepared;\n  \
    natmig migration activate 17 --wait                     # then, when the VM has moved\n  \
    natmig migrate web1 --to rack2 --activate on-announce --wait  # returns when all is prepared;\n  \
    natmig migration wait 17                  # then move the VM: it commits when the VM speaks\n\n\
    Exit codes: 0 done, 1 error, 2 usage, 3 refused (busy, pool exhausted, ...), 4 aborted, 5 timeout")]
pub(crate) struct Args {
    /// The VMs, each alone or as VM=SEGMENT
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,

    /// The segment to which VMs without a segment of their own move
    #[arg(long, value_name = "SEGMENT")]
    to: Option<String>,

    /// When to commit
    #[arg(long, value_enum, default_value_t = ActivateArg::Immediate)]
    activate: ActivateArg,

    /// What to do when a router cannot be reached before the commit
    #[arg(long, value_enum, default_value_t = UnreachableArg::Abort)]
    unreachable: UnreachableArg,

    /// Wait until it is committed; with manual or on-announce until it is prepared, and the VM may move
    #[arg(long)]
    wait: bool,

    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    timeout: Duration,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ActivateArg {
    /// As soon as all routers are prepared
    Immediate,
    /// On `natmig migration activate`
    Manual,
    /// When every VM was heard at its new place (RARP, gratuitous ARP, its first packet), or on
    /// `natmig migration activate`
    OnAnnounce,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum UnreachableArg {
    /// Wait for it
    Wait,
    /// Abort
    Abort,
}

/// A time such as `500ms`, `60s` or `5m`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("write it like 500ms, 60s, 5m or 1h".to_owned()),
    };
    digits
        .parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number * scale).ok())
        .ok_or_else(|| "write it like 500ms, 60s, 5m or 1h".to_owned())
}

fn moves(vms: &[String], to: Option<&str>) -> Result<Vec<(VmName, SegmentName)>, String> {
    vms.iter()
        .map(|vm| match (vm.split_once('='), to) {
            (Some((vm, segment)), _) if !vm.is_empty() && !segment.is_empty() => {
                Ok((VmName::new(vm), SegmentName::new(segment)))
            }
            (Some(_), _) => Err(format!("{vm:?} is not VM=SEGMENT")),
            (None, Some(segment)) => Ok((VmName::new(vm), SegmentName::new(segment))),
            (None, None) => Err(format!(
                "where is {vm} to go? Name the segment with --to, or write {vm}=SEGMENT"
            )),
        })
        .collect()
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let moves = match moves(&args.vms, args.to.as_deref()) {
        Ok(moves) => moves,
        Err(problem) => {
            eprintln!("natmig: {problem}");
            return Ok(ExitCode::from(client::USAGE));
        }
    };
    let request = MigrateRequest {
        moves,
        activation: match args.activate {
            ActivateArg::Immediate => Activation::Immediate,
            ActivateArg::Manual => Activation::Manual,
            ActivateArg::OnAnnounce => Activation::OnAnnounce,
        },
        unreachable: match args.unreachable {
            UnreachableArg::Wait => Unreachable::Wait,
            UnreachableArg::Abort => Unreachable::Abort,
        },
    };
    let options = &args.client;
    let wait = args.wait.then_some(args.timeout);
    options.run(async move |mut client| {
        let answer = client
            .start_migration(v1::StartMigrationRequest::from(&request))
            .await?;
        let view = client::migration(answer.into_inner().migration)?;
        let Some(timeout) = wait else {
            if options.json {
                client::print_json(&view)?;
            } else {
                println!("migration {} started", view.id);
            }
            return Ok(());
        };
        if options.json {
            eprintln!("migration {} started", view.id);
        } else {
            println!("migration {} started", view.id);
        }
        let goal = progress::Goal::of_start(request.activation);
        let view = progress::wait(options, client, view.id, goal, timeout).await?;
        migration::print_outcome(&view, options.json)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vms_go_to_their_own_segment_or_the_common_one() {
        let vms = ["a".to_owned(), "b=rack3".to_owned()];
        let moves = moves(&vms, Some("rack2")).unwrap();
        assert_eq!(moves[0], (VmName::new("a"), SegmentName::new("rack2")));
        assert_eq!(moves[1], (VmName::new("b"), SegmentName::new("rack3")));
    }

    #[test]
    fn malformed_moves_say_what_is_missing() {
        assert!(moves(&["a".to_owned()], None).unwrap_err().contains("--to"));
        assert!(moves(&["a=".to_owned()], None).is_err());
        assert!(moves(&["=b".to_owned()], None).is_err());
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("60"), Ok(Duration::from_mins(1)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        for garbage in ["", "s", "-1s", "5 parsecs", "1e400s"] {
            assert!(duration(garbage).is_err(), "{garbage}");
        }
    }
}

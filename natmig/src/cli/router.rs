//! `natmig router`.

use std::process::ExitCode;

use super::client::{self, ClientArgs};
use crate::{coordinator::RouterView, names::SegmentName, proto::v1};

/// The routers that migrations need
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig router list\n  \
    natmig router drain edge3       # edge3 is down for maintenance: migrations go on without it\n  \
    natmig router undrain edge3")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List all routers and what is known of them
    List,
    /// Attest that a router does not forward, so that no migration needs it
    Drain {
        /// The router
        name: String,
    },
    /// A drained router forwards again, and is needed again
    Undrain {
        /// The router
        name: String,
    },
    /// Forget a drained router
    Remove {
        /// The router
        name: String,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.client.json;
    args.client.run(async move |mut client| {
        let (done, name) = match args.command {
            Command::List => {
                let answer = client.list_routers(v1::ListRoutersRequest {}).await?;
                let routers = answer
                    .into_inner()
                    .routers
                    .into_iter()
                    .map(TryInto::try_into)
                    .collect::<Result<Vec<RouterView>, _>>()?;
                return Ok(list(&routers, json)?);
            }
            Command::Drain { name } => {
                let request = v1::DrainRouterRequest { name: name.clone() };
                client.drain_router(request).await?;
                ("drained", name)
            }
            Command::Undrain { name } => {
                let request = v1::UndrainRouterRequest { name: name.clone() };
                client.undrain_router(request).await?;
                ("needed again", name)
            }
            Command::Remove { name } => {
                let request = v1::RemoveRouterRequest { name: name.clone() };
                client.remove_router(request).await?;
                ("removed", name)
            }
        };
        client::print_done(json, done, &name)?;
        Ok(())
    })
}

fn list(routers: &[RouterView], json: bool) -> anyhow::Result<()> {
    if json {
        return client::print_json(&routers);
    }
    let mut table = client::table(&[
        "router",
        "tier",
        "segments",
        "agent",
        "table",
        "holds back",
        "problem",
    ]);
    for router in routers {
        let segments: Vec<_> = router.segments.iter().map(SegmentName::as_str).collect();
        let agent = match (router.drained, router.connected) {
            (true, true) => "drained, connected",
            (true, false) => "drained",
            (false, true) => "connected",
            (false, false) => "not connected",
        };
        let since = router
            .since
            .map_or_else(String::new, |since| format!(" for {}", client::age(since)));
        let holds_back: Vec<_> = router.holds_back.iter().map(ToString::to_string).collect();
        table.add_row([
            router.name.to_string(),
            router.tier.to_string(),
            segments.join(" "),
            format!("{agent}{since}"),
            if router.in_sync { "in sync" } else { "unknown" }.to_owned(),
            holds_back.join(" "),
            router.problem.clone().unwrap_or_default(),
        ]);
    }
    println!("{table}");
    Ok(())
}

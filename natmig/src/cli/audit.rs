//! `natmig audit`.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    client::{self, ClientArgs, Failure},
    trace::parse_duration,
};
use crate::{
    audit::{AuditOutcome, AuditRecord, Caller},
    coordinator::Timestamp,
    pki::rfc3339,
    proto::v1,
};

/// What operators did: who, what, when, and what came of it
///
/// Kept are the newest 10,000 records: every call that changes something, and every call that was
/// denied; of calls that are denied again and again, one a minute.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig audit list\n  \
    natmig audit list --since 2h\n  \
    natmig audit list --since 2026-11-27T09:00:00Z --json")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List records, oldest first
    List {
        /// From a time on (RFC 3339), or so long ago (90s, 15m, 2h)
        #[arg(long, value_name = "TIME", value_parser = parse_since)]
        since: Option<SystemTime>,
        /// The newest so many
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
}

fn parse_since(text: &str) -> Result<SystemTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at.into());
    }
    let ago = parse_duration(text).map_err(|_| {
        format!("`{text}` is neither a time such as 2026-11-27T09:00:00Z nor one such as 2h")
    })?;
    SystemTime::now()
        .checked_sub(ago)
        .ok_or_else(|| format!("`{text}` ago there was no time"))
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let json = args.client.json;
    let Command::List { since, limit } = &args.command;
    let (since, limit) = (*since, *limit);
    let since = since.map_or(Timestamp(0), |since| {
        Timestamp(0).after(since.duration_since(UNIX_EPOCH).unwrap_or_default())
    });
    args.client.run(async move |mut client| {
        let request = v1::ListAuditRequest {
            since: since.0,
            limit: limit.unwrap_or_default(),
        };
        let records = client
            .list_audit(request)
            .await?
            .into_inner()
            .records
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<Vec<AuditRecord>, _>>()?;
        print(&records, json).map_err(Failure::from)
    })
}

fn print(records: &[AuditRecord], json: bool) -> anyhow::Result<()> {
    if json {
        return client::print_json(&records);
    }
    let mut table = client::table(&["time", "who", "from", "call", "what", "outcome"]);
    for record in records {
        let outcome = match &record.outcome {
            AuditOutcome::Done(None) => "done".to_owned(),
            AuditOutcome::Done(Some(id)) => format!("done: migration {id}"),
            AuditOutcome::Refused(why) => format!("refused: {why}"),
            AuditOutcome::Denied(why) => format!("denied: {why}"),
        };
        table.add_row([
            rfc3339(UNIX_EPOCH + Duration::from_nanos(record.at.0)),
            record.asked.who.name.clone(),
            origin(&record.asked.who),
            record.asked.call.clone(),
            record.asked.what.clone(),
            outcome,
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Where a caller was.
fn origin(who: &Caller) -> String {
    match (who.address, who.pid) {
        (Some(address), _) => address.to_string(),
        (None, Some(pid)) => format!("process {pid}"),
        (None, None) => "-".to_owned(),
    }
}

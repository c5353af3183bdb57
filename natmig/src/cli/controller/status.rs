//! `natmig controller status`.

use std::process::ExitCode;

use serde::Serialize;

use crate::{
    cli::client::{self, ClientArgs},
    proto::v1,
};

/// Show which controller leads
///
/// Asks every controller that is named, and the leader that they name. The exit code is 0 if one of
/// them leads, else 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig controller status\n  \
    natmig controller status --controller https://198.18.0.1:7400,https://198.18.0.2:7400 --json")]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
}

/// What one controller says.
#[derive(Debug, Serialize)]
struct Row {
    /// Where it was asked.
    controller: String,
    /// `leading`, `standing_by` or `unreachable`.
    role: &'static str,
    name: Option<String>,
    /// The leader's term, as far as it knows.
    term: Option<u64>,
    /// The leader, if it is another one.
    leader: Option<String>,
    leader_address: Option<String>,
    version: Option<String>,
    error: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let rows = runtime.block_on(ask_all(&args.client));
    let leads = rows.iter().any(|row| row.role == "leading");
    if args.client.json {
        client::print_json(&rows)?;
    } else {
        let mut table = client::table(&["CONTROLLER", "NAME", "ROLE", "TERM", "LEADER", "VERSION"]);
        for row in &rows {
            table.add_row(vec![
                row.controller.clone(),
                client::or_dash(row.name.as_ref()),
                row.error.as_ref().map_or_else(
                    || row.role.replace('_', " "),
                    |error| format!("{}: {error}", row.role),
                ),
                client::or_dash(row.term),
                client::or_dash(row.leader.as_ref()),
                client::or_dash(row.version.as_ref()),
            ]);
        }
        println!("{table}");
    }
    Ok(ExitCode::from(u8::from(!leads)))
}

async fn ask_all(client: &ClientArgs) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut left: Vec<String> = client.controllers().iter().rev().cloned().collect();
    while let Some(controller) = left.pop() {
        let row = ask(client, controller).await;
        // A leader that only the others name is asked as well; one that is behind another of its
        // addresses appears under both.
        if let Some(leader) = &row.leader_address
            && !left.contains(leader)
            && rows.iter().all(|row| row.controller != *leader)
        {
            left.push(leader.clone());
        }
        rows.push(row);
    }
    rows
}

async fn ask(args: &ClientArgs, controller: String) -> Row {
    let asked = async {
        let mut client = args.connect_to(&controller).await?;
        client::controller_status(&mut client).await
    };
    let (status, error) = match asked.await {
        Ok(status) => (status.unwrap_or_default(), None),
        Err(error) => (
            v1::GetControllerResponse::default(),
            Some(format!("{error:#}")),
        ),
    };
    let text = |text: String| (!text.is_empty()).then_some(text);
    Row {
        controller,
        role: match (&error, status.leads) {
            (Some(_), _) => "unreachable",
            (None, true) => "leading",
            (None, false) => "standing_by",
        },
        name: text(status.name),
        term: (status.term != 0).then_some(status.term),
        leader: text(status.leader),
        leader_address: text(status.leader_address),
        version: text(status.version),
        error,
    }
}

//! Tables for the terminal.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, presets};

use super::{Observations, span};
use crate::traffic::Kind;

fn table(header: &[&str], numbers_from: usize) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()))
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    for column in numbers_from..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Header of the flow table.
pub(super) const FLOW_HEADER: [&str; 12] = [
    "kind",
    "from",
    "to",
    "peer is",
    "sent",
    "arrived",
    "excused",
    "lost",
    "duplicated",
    "misdelivered",
    "leaked",
    "longest gap",
];

/// Rows of the flow table, the sum last.
pub(super) fn flow_rows(run: &Observations) -> Vec<[String; 12]> {
    let accounts = run.accounts();
    let mut rows = Vec::new();
    for (record, account) in run.records.iter().zip(&accounts) {
        let flow = &record.flow;
        let leaked = run
            .findings
            .leaked_by_flow
            .get(flow.id as usize)
            .copied()
            .unwrap_or(0)
            .to_string();
        let head = [
            flow.label(),
            flow.from.clone(),
            flow.to.clone(),
            flow.relation.clone(),
        ];
        let counts = match flow.kind {
            Kind::Udp | Kind::Ping => [
                account.sent.to_string(),
                account.arrived.to_string(),
                account.excused.to_string(),
                account.lost.len().to_string(),
                record.datagrams.duplicated.to_string(),
                run.misdelivered(flow.id).to_string(),
                leaked,
                span(record.datagrams.longest_gap().0),
            ],
            Kind::Tcp | Kind::Http => {
                let broken = u64::from(record.broken.is_some());
                let connections = if record.connections == 1 {
                    "1 conn.".to_owned()
                } else {
                    format!("{} conn.", record.connections)
                };
                let stall = if record.stall > 0 {
                    span(record.stall)
                } else {
                    "–".into()
                };
                let arrived = format!("{} kB", record.bytes / 1000);
                [
                    connections,
                    arrived,
                    "–".into(),
                    format!("{broken} broken"),
                    "–".into(),
                    "–".into(),
                    leaked,
                    stall,
                ]
            }
        };
        let mut row = head.into_iter().chain(counts);
        rows.push(std::array::from_fn(|_| row.next().unwrap_or_default()));
    }
    let summary = run.summary();
    let sum = |number: fn(&crate::account::Account) -> u64| {
        accounts.iter().map(number).sum::<u64>().to_string()
    };
    rows.push([
        "all".into(),
        String::new(),
        String::new(),
        format!("{} flows", summary.flows),
        summary.sent.to_string(),
        sum(|account| account.arrived),
        sum(|account| account.excused),
        summary.lost.to_string(),
        summary.duplicated.to_string(),
        summary.misdelivered.to_string(),
        summary.leaked.to_string(),
        format!("{:.0} ms", summary.max_gap_ms),
    ]);
    rows
}

/// The flow table.
pub fn flows(run: &Observations) -> String {
    let mut table = table(&FLOW_HEADER, 4);
    for row in flow_rows(run) {
        table.add_row(row);
    }
    table.to_string()
}

/// Header of the migration table.
pub(super) const STEP_HEADER: [&str; 12] = [
    "id",
    "migration",
    "",
    "prepared",
    "unplug",
    "replug",
    "decided",
    "anchors",
    "all routers",
    "spread",
    "natmig gap",
    "fold / retire",
];

/// Rows of the migration table: times count from the request, but for spread and gap.
pub(super) fn step_rows(run: &Observations) -> Vec<[String; 12]> {
    let rows = run.steps.iter().map(|step| {
        let after = |time: u64| format!("+{}", span(time.saturating_sub(step.asked)));
        let seen = |time: Option<u64>| time.map_or("–".to_owned(), after);
        [
            step.id.to_string(),
            step.title.clone(),
            step.route(),
            after(step.prepared),
            after(step.unplug()),
            after(step.replug()),
            after(step.decided),
            after(
                step.windows
                    .iter()
                    .map(|window| window.anchors)
                    .max()
                    .unwrap_or(0),
            ),
            after(step.commits.values().max().copied().unwrap_or(0)),
            span(step.spread()),
            span(step.natmig_gap()),
            format!("{} / {}", seen(step.folded), seen(step.retired)),
        ]
    });
    rows.collect()
}

/// The migration table, then each migration's commits by router, from the first one on.
pub fn migrations(run: &Observations) -> String {
    let mut whole = table(&STEP_HEADER, 3);
    for row in step_rows(run) {
        whole.add_row(row);
    }
    let mut routers: Vec<&str> = run
        .topology
        .routers
        .iter()
        .map(|router| router.name.as_str())
        .collect();
    routers.sort_unstable();
    let header: Vec<&str> = ["id"].into_iter().chain(routers.iter().copied()).collect();
    let mut commits = table(&header, 1);
    for step in &run.steps {
        let first = step.commits.values().min().copied().unwrap_or(0);
        let cells = routers.iter().map(|router| {
            step.commits
                .get(*router)
                .map_or("–".to_owned(), |time| format!("+{}", span(time - first)))
        });
        commits.add_row([step.id.to_string()].into_iter().chain(cells));
    }
    format!("{whole}\n\nCommits by router, from the first of each migration on:\n{commits}")
}

//! The report as a page, with its pictures inside and beside it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    Observations, drawing,
    tables::{FLOW_HEADER, STEP_HEADER, flow_rows, step_rows},
    timeline,
};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1140px;padding:0 1rem;color:#212529;background:#fff}\
h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid #dee2e6}h3{margin-top:2rem}\
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}\
th,td{padding:2px 10px;text-align:right;border-bottom:1px solid #e9ecef;white-space:nowrap}\
th{background:#f1f3f5}tr:last-child td.sum{font-weight:600}td.word,th.word{text-align:left}\
.good{color:#2b8a3e}.bad{color:#c92a2a}pre{background:#f8f9fa;padding:1rem;overflow-x:auto;font-size:12px;line-height:1.35}\
figure{margin:1rem 0}svg{max-width:100%;height:auto;border:1px solid #e9ecef}\
.numbers{display:flex;flex-wrap:wrap;gap:1rem}.numbers div{background:#f8f9fa;border-radius:6px;padding:.6rem 1rem}\
.numbers b{display:block;font-size:1.3rem}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn table<const N: usize>(header: [&str; N], rows: &[[String; N]], words: usize) -> String {
    let class = |column: usize| {
        if column < words {
            " class=\"word\""
        } else {
            ""
        }
    };
    let mut page = String::from("<table><tr>");
    for (column, title) in header.iter().enumerate() {
        page.extend(["<th", class(column), ">", &escape(title), "</th>"]);
    }
    page += "</tr>\n";
    for row in rows {
        page += "<tr>";
        for (column, cell) in row.iter().enumerate() {
            page.extend(["<td", class(column), ">", &escape(cell), "</td>"]);
        }
        page += "</tr>\n";
    }
    page + "</table>\n"
}

/// Writes the report into `directory` and returns the page's path.
pub fn write(run: &Observations, directory: &Path) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let summary = run.summary();
    let violations = run.violations();
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>natmig: migrations under traffic</title><style>{STYLE}</style>\n<h1>natmig: {} migrations under traffic</h1>\n",
        summary.migrations
    );
    if violations.is_empty() {
        page += "<p class=\"good\"><strong>Every promise kept:</strong> nothing lost outside the windows, duplicated, misdelivered or leaked; no connection broke.</p>\n";
    } else {
        page += "<p class=\"bad\"><strong>Promises broken:</strong></p><ul class=\"bad\">\n";
        for violation in &violations {
            writeln!(page, "<li>{}</li>", escape(violation))?;
        }
        page += "</ul>\n";
    }
    page += "<div class=\"numbers\">\n";
    if let serde_json::Value::Object(numbers) = serde_json::to_value(&summary)? {
        let order = [
            "flows",
            "sent",
            "lost",
            "duplicated",
            "misdelivered",
            "leaked",
            "max_gap_ms",
            "commit_spread_us",
            "migrations",
            "natmig_gap_ms",
        ];
        for name in order {
            writeln!(
                page,
                "<div><b>{}</b>{name}</div>",
                numbers.get(name).cloned().unwrap_or_default()
            )?;
        }
    }
    write!(
        page,
        "</div>\n<p>{} frames were captured, at every interface of every endpoint, and every header in them was checked for locators.</p>\n",
        run.findings.frames
    )?;
    page += "<h2>What counts as lost</h2><p>A packet that did not arrive is excused if, and only if, one of its ends moved and it was sent within [unplug − longest delay observed in its flow, max(replug, commit of the anchors)]: before the replug nobody can deliver, and until the anchors (the home edges, and the edges that the VM left) have committed nobody must. Everything else that did not arrive is <em>lost</em>. <code>natmig_gap</code> is max(0, commit of the anchors − replug): what natmig adds to the guest's own pause. The longest gap of a flow includes that pause.</p>\n";
    page += "<h2>Migrations</h2>\n";
    page += &table(STEP_HEADER, &step_rows(run), 3);
    page += "<p>Times count from the request. Decided: when the commit was asked for.</p>\n";
    let mut places: BTreeMap<String, String> = run
        .topology
        .vms
        .iter()
        .map(|vm| (vm.name.clone(), vm.segment.clone()))
        .collect();
    for step in &run.steps {
        writeln!(
            page,
            "<h3>{}. {} <small>({})</small></h3>",
            step.id,
            escape(&step.title),
            escape(&step.route())
        )?;
        let pictures = [
            ("topology", drawing::draw(&run.topology, step, &places)),
            ("timeline", timeline::cutover(run, step)?),
        ];
        for (kind, svg) in pictures {
            fs::write(directory.join(format!("{kind}-{}.svg", step.id)), &svg)?;
            writeln!(page, "<figure>{svg}</figure>")?;
        }
        for m in &step.moves {
            places.insert(m.vm.clone(), m.to.clone());
        }
    }
    page += "<p>Under the routers' names: when each committed, after the first one.</p>\n<h2>The whole run</h2>\n";
    let overview = timeline::overview(run)?;
    fs::write(directory.join("overview.svg"), &overview)?;
    writeln!(page, "<figure>{overview}</figure>\n<h2>Flows</h2>")?;
    page += &table(FLOW_HEADER, &flow_rows(run), 4);
    if !run.findings.leaks.is_empty() {
        page += "<h2>Leaks</h2><pre>\n";
        for leak in &run.findings.leaks {
            writeln!(page, "{}", escape(&leak.to_string()))?;
        }
        page += "</pre>\n";
    }
    for listing in &run.listings {
        writeln!(
            page,
            "<h2>{}</h2><pre>{}</pre>",
            escape(&listing.title),
            escape(&listing.text)
        )?;
    }
    page += "</html>\n";
    let path = directory.join("index.html");
    fs::write(&path, page)?;
    Ok(path)
}

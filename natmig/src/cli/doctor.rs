//! `natmig doctor`.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use super::output;
use crate::{
    config::{RouterConfig, check_instance},
    doctor::{self, Report, Request, Severity, Subject},
};

/// Exit status when the worst finding is a warning.
const WARNINGS: u8 = 10;
/// Exit status when there are errors among the findings.
const ERRORS: u8 = 11;

/// Say what kernel, drivers, offloads and settings mean for natmig here, and how to mend them.
///
/// Looks at the machine, at the instance and at its interfaces: those of the configuration file, or
/// without one those that the instance was loaded with. Changes nothing. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Severities:
  ok       as natmig needs it
  note     worth knowing; nothing has to be mended
  warning  natmig works, but slower or less safely than it should, or not in every case
  error    natmig does not work, or translates wrongly

Exit status:
  0   nothing worse than a note
  1   the machine could not be examined
  2   wrong usage
  10  warnings
  11  errors

Examples:
  natmig doctor --config router.toml                  # before loading
  natmig doctor                                       # the loaded instance
  natmig doctor --interface eth1 --interface eth2     # two interfaces, whatever their role
  natmig doctor --json | jq -r '.findings[] | select(.severity == \"error\") | .remedy'")]
pub(crate) struct Args {
    /// The router's configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The instance; the configuration's, or `default`, unless it is given.
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Examine this interface rather than those of the configuration; may be repeated.
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
    /// Leave out what is as it should be.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        config,
        instance,
        interface: interfaces,
        quiet,
        json,
    } = args;
    if let Some(instance) = &instance {
        check_instance(instance).map_err(anyhow::Error::msg)?;
    }
    let config = match config {
        Some(file) => {
            let config = RouterConfig::read(&file)?;
            Some((file, config))
        }
        None => None,
    };
    let facts = doctor::gather(&Request {
        instance,
        config,
        interfaces,
    })?;
    let report = doctor::examine(&facts);
    if json {
        output::json(&serde_json::json!({
            "instance": report.instance,
            "worst": report.worst(),
            "findings": report.findings,
        }))?;
    } else {
        output::line(&render(&report, quiet))?;
    }
    Ok(status(report.worst()))
}

fn status(worst: Severity) -> ExitCode {
    match worst {
        Severity::Ok | Severity::Note => ExitCode::SUCCESS,
        Severity::Warning => WARNINGS.into(),
        Severity::Error => ERRORS.into(),
    }
}

fn heading(subject: &Subject) -> String {
    match subject {
        Subject::Kernel => "KERNEL".to_owned(),
        Subject::Bpf => "BPF".to_owned(),
        Subject::Clock => "CLOCK".to_owned(),
        Subject::Router => "ROUTER".to_owned(),
        Subject::Instance => "INSTANCE".to_owned(),
        Subject::Interface(name) => format!("INTERFACE {name}"),
    }
}

/// The findings by subject: severity, check, what was found; below it what follows and what to do.
fn render(report: &Report, quiet: bool) -> String {
    let shown = || {
        report
            .findings
            .iter()
            .filter(|finding| !quiet || finding.severity != Severity::Ok)
    };
    let width = shown()
        .map(|finding| finding.check.len())
        .max()
        .unwrap_or_default();
    let indent = 2 + 7 + 2 + width + 2;
    let mut text = String::new();
    let mut subject = None;
    for finding in shown() {
        if subject != Some(&finding.subject) {
            if subject.is_some() {
                text.push('\n');
            }
            subject = Some(&finding.subject);
            writeln!(text, "{}", heading(&finding.subject)).unwrap_or_default();
        }
        let severity = finding.severity.name();
        writeln!(
            text,
            "  {severity:<7}  {:<width$}  {}",
            finding.check, finding.found
        )
        .unwrap_or_default();
        if let Some(consequence) = &finding.consequence {
            writeln!(text, "{:indent$}→ {consequence}", "").unwrap_or_default();
        }
        if let Some(remedy) = &finding.remedy {
            writeln!(text, "{:indent$}$ {remedy}", "").unwrap_or_default();
        }
    }
    let summary: Vec<_> = Severity::ALL
        .into_iter()
        .rev()
        .map(|severity| {
            let count = report.count(severity);
            let plural = if count == 1 || severity == Severity::Ok {
                ""
            } else {
                "s"
            };
            format!("{count} {}{plural}", severity.name())
        })
        .collect();
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&summary.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Finding;

    #[test]
    fn findings_are_grouped_by_subject() {
        let finding = |subject, severity, remedy: Option<&str>| Finding {
            subject,
            check: "lro",
            severity,
            found: "found".to_owned(),
            consequence: remedy.map(|_| "slow".to_owned()),
            remedy: remedy.map(str::to_owned),
        };
        let interface = || Subject::Interface("eth1".to_owned());
        let report = Report {
            instance: "default".to_owned(),
            findings: vec![
                finding(Subject::Kernel, Severity::Ok, None),
                finding(interface(), Severity::Warning, Some("mend")),
                finding(interface(), Severity::Ok, None),
            ],
        };
        assert_eq!(
            render(&report, false),
            "KERNEL\n  ok       lro  found\n\nINTERFACE eth1\n  warning  lro  found\n                → slow\n                $ mend\n  ok       lro  found\n\n0 errors, 1 warning, 0 notes, 2 ok"
        );
        assert!(!render(&report, true).contains("  ok "));
    }
}

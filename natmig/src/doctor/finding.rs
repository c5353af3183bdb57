//! What a check says.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As natmig needs it.
    Ok,
    /// Worth knowing; natmig works, and nothing has to be mended.
    Note,
    /// natmig works, but slower or less safely than it should, or not in every case.
    Warning,
    /// natmig does not work, or translates wrongly.
    Error,
}

impl Severity {
    /// All of them, mildest first.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Note, Self::Warning, Self::Error];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "subject", content = "interface", rename_all = "lowercase")]
pub enum Subject {
    /// The kernel.
    Kernel,
    /// BPF in it.
    Bpf,
    /// The clock.
    Clock,
    /// Settings of the router as a whole.
    Router,
    /// The instance: its pins, its guard, its port.
    Instance,
    /// An interface.
    Interface(String),
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    #[serde(flatten)]
    pub subject: Subject,
    /// The check's name, which programs may rely on.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What that means for natmig.
    pub consequence: Option<String>,
    /// The command that mends it.
    pub remedy: Option<String>,
}

/// All findings, by subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The instance they are about.
    pub instance: String,
    /// What the checks found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst severity among the findings.
    pub fn worst(&self) -> Severity {
        self.findings
            .iter()
            .map(|finding| finding.severity)
            .max()
            .unwrap_or(Severity::Ok)
    }

    /// How many findings have a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    }
}

/// Collects the findings about one subject.
pub(super) struct Chapter<'a> {
    subject: Subject,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Chapter<'a> {
    pub(super) fn new(subject: Subject, findings: &'a mut Vec<Finding>) -> Self {
        Self { subject, findings }
    }

    /// As natmig needs it.
    pub(super) fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(Severity::Ok, check, found.into(), None, None);
    }

    /// Worth knowing.
    pub(super) fn note(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        consequence: impl Into<String>,
        remedy: Option<String>,
    ) {
        self.add(
            Severity::Note,
            check,
            found.into(),
            Some(consequence.into()),
            remedy,
        );
    }

    /// Worth mending.
    pub(super) fn warning(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        consequence: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(
            Severity::Warning,
            check,
            found.into(),
            Some(consequence.into()),
            Some(remedy.into()),
        );
    }

    /// To be mended before natmig works.
    pub(super) fn error(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        consequence: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(
            Severity::Error,
            check,
            found.into(),
            Some(consequence.into()),
            Some(remedy.into()),
        );
    }

    fn add(
        &mut self,
        severity: Severity,
        check: &'static str,
        found: String,
        consequence: Option<String>,
        remedy: Option<String>,
    ) {
        self.findings.push(Finding {
            subject: self.subject.clone(),
            check,
            severity,
            found,
            consequence,
            remedy,
        });
    }
}

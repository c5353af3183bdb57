//! The bindings file: one binding per line, a whole table as one transaction.
//!
//! ```text
//! # identity  locator     where the VM is, as seen from this router
//! 10.1.1.10   10.1.2.130  away
//! 10.1.1.11   10.1.2.131  away home rack1 02:00:00:00:00:11
//! 10.1.2.20   10.1.1.130  here rack1 02:00:00:00:00:20
//! ```

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use natmig_common::{Action, FLAG_HOME_EDGE, Version};

use super::{
    ApplyReport, Progress, Router, RouterError, address_map::AddressMap, version::Segments,
};
use crate::{names::SegmentName, rule::MacAddress};

const FORMS: &str = "write `IDENTITY LOCATOR away`, `IDENTITY LOCATOR away home SEGMENT MAC` or `IDENTITY LOCATOR here SEGMENT MAC`";

/// What is wrong with a bindings file, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; 0 if the file as a whole is meant.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line != 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}; {}", self.problem, self.remedy)
    }
}

/// Why a bindings file was not applied; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BindingsError {
    /// The file is wrong.
    #[error("{0}")]
    File(FileError),
    /// The router refused the table.
    #[error(transparent)]
    Router(#[from] RouterError),
}

/// A table that was read from a file: bound addresses and what becomes of them.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) versions: Vec<(Ipv4Addr, Version)>,
    pub(super) bindings: usize,
}

/// What a file of bindings did to the table.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AppliedBindings {
    /// Bindings in the file.
    pub bindings: usize,
    /// What became of their addresses.
    #[serde(flatten)]
    pub report: ApplyReport,
}

impl Router {
    /// Makes a file of bindings the whole table, as one transaction; with `merge`, other bindings
    /// stay. A file with an error anywhere changes nothing.
    pub fn apply_file(
        &mut self,
        file: &Path,
        merge: bool,
        progress: Progress<'_>,
    ) -> Result<AppliedBindings, BindingsError> {
        let whole = |problem: String| {
            BindingsError::File(FileError {
                file: file.to_owned(),
                line: 0,
                problem,
                remedy: "check the path and its permissions".to_owned(),
            })
        };
        let opened = File::open(file).map_err(|error| whole(format!("cannot be read: {error}")))?;
        let size = opened.metadata().map_or(0, |metadata| metadata.len());
        let pools = self.pools()?;
        let parser = Parser {
            file,
            segments: &self.segments,
            pools: &pools,
        };
        let table = parser.read(BufReader::with_capacity(1 << 20, opened), size, progress)?;
        let report = self.apply(table.versions, merge, progress)?;
        Ok(AppliedBindings {
            bindings: table.bindings,
            report,
        })
    }
}

pub(super) struct Parser<'a> {
    file: &'a Path,
    segments: &'a Segments,
    pools: &'a [Ipv4Net],
}

impl Parser<'_> {
    fn error(
        &self,
        line: usize,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> BindingsError {
        BindingsError::File(FileError {
            file: self.file.to_owned(),
            line,
            problem: problem.into(),
            remedy: remedy.into(),
        })
    }

    /// Reads a whole file; `size` is for the progress.
    pub(super) fn read(
        &self,
        mut reader: impl BufRead,
        size: u64,
        progress: Progress<'_>,
    ) -> Result<Table, BindingsError> {
        let mut table = Table {
            versions: Vec::new(),
            bindings: 0,
        };
        let mut lines = AddressMap::default();
        let mut text = String::new();
        let (mut number, mut done) = (0, 0);
        loop {
            text.clear();
            let length = reader.read_line(&mut text).map_err(|error| {
                self.error(
                    number + 1,
                    format!("cannot be read: {error}"),
                    "write it as UTF-8 text",
                )
            })?;
            if length == 0 {
                break;
            }
            number += 1;
            done += length as u64;
            if number % 65_536 == 0 {
                progress("reading", done, size);
            }
            let content = text.split('#').next().unwrap_or_default();
            let words: Vec<&str> = content.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            for (address, version) in self.binding(number, &words)? {
                if let Some(first) = lines.insert(address, number) {
                    return Err(self.error(
                        number,
                        format!("{address} is bound on line {first} already"),
                        "an address has one binding: remove one of the two",
                    ));
                }
                table.versions.push((address, version));
            }
            table.bindings += 1;
        }
        progress("reading", size, size);
        Ok(table)
    }

    fn binding(
        &self,
        line: usize,
        words: &[&str],
    ) -> Result<[(Ipv4Addr, Version); 2], BindingsError> {
        let address = |at: usize, what: &str| -> Result<Ipv4Addr, BindingsError> {
            let text = words.get(at).copied().unwrap_or("");
            text.parse().map_err(|_| {
                self.error(
                    line,
                    format!("`{text}` is not the IPv4 address of {what}"),
                    FORMS,
                )
            })
        };
        let identity = address(0, "an identity")?;
        let locator = address(1, "a locator")?;
        if let Some(pool) = self.pools.iter().find(|pool| pool.contains(&identity)) {
            return Err(self.error(
                line,
                format!("identity {identity} is inside locator pool {pool}"),
                "identities and locators are disjoint: swap the columns, or correct `locator_pools`",
            ));
        }
        if !self.pools.is_empty() && !self.pools.iter().any(|pool| pool.contains(&locator)) {
            return Err(self.error(
                line,
                format!("locator {locator} is in no locator pool"),
                "take a locator from `locator_pools`, or add its pool there and load again",
            ));
        }
        let (near, far) = match words.get(2..).unwrap_or_default() {
            ["away"] => (
                Version {
                    action: Action::Away as u8,
                    ..Version::default()
                },
                Version {
                    action: Action::Known as u8,
                    ..Version::default()
                },
            ),
            ["away", "home", segment, mac] => {
                let at = self.attachment(line, segment, mac)?;
                (
                    Version {
                        action: Action::Away as u8,
                        flags: FLAG_HOME_EDGE,
                        ..at
                    },
                    Version {
                        action: Action::Known as u8,
                        ..Version::default()
                    },
                )
            }
            ["here", segment, mac] => {
                let at = self.attachment(line, segment, mac)?;
                (
                    Version {
                        action: Action::Local as u8,
                        ..at
                    },
                    Version {
                        action: Action::Deliver as u8,
                        ..at
                    },
                )
            }
            rest => {
                return Err(self.error(
                    line,
                    format!("`{}` does not say where the VM is", rest.join(" ")),
                    FORMS,
                ));
            }
        };
        Ok([
            (
                identity,
                Version {
                    counterpart: locator.octets(),
                    ..near
                },
            ),
            (
                locator,
                Version {
                    counterpart: identity.octets(),
                    ..far
                },
            ),
        ])
    }

    fn attachment(&self, line: usize, segment: &str, mac: &str) -> Result<Version, BindingsError> {
        let ifindex = self
            .segments
            .ifindex(&SegmentName::from(segment))
            .map_err(|_| {
                self.error(
                    line,
                    format!("no access interface of this router serves segment `{segment}`"),
                    "correct the name, or add `segment` to an [[interface]] and load again",
                )
            })?;
        let mac: MacAddress = mac.parse().map_err(|error| {
            self.error(
                line,
                format!("`{mac}` is {error}"),
                "correct the VM's MAC address",
            )
        })?;
        Ok(Version {
            mac: mac.0,
            ifindex,
            ..Version::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Table, BindingsError> {
        let mut segments = Segments::default();
        segments.insert("rack1".into(), 7);
        let pools = ["10.1.0.128/25", "10.1.2.128/25"].map(|pool| pool.parse().unwrap());
        let file = Path::new("bindings.txt");
        let parser = Parser {
            file,
            segments: &segments,
            pools: &pools,
        };
        parser.read(text.as_bytes(), 0, &mut |_, _, _| {})
    }

    #[test]
    fn each_form_becomes_two_entries() {
        let table = read(
            "# a comment\n\
             10.1.1.10 10.1.2.130 away # far\n\
             \n\
             10.1.1.11 10.1.2.131 away home rack1 02:00:00:00:00:11\n\
             10.1.2.20 10.1.0.130 here rack1 02:00:00:00:00:20\n",
        )
        .unwrap();
        assert_eq!(table.bindings, 3);
        let actions: Vec<_> = table
            .versions
            .iter()
            .map(|(_, version)| version.action)
            .collect();
        let expected = [
            Action::Away,
            Action::Known,
            Action::Away,
            Action::Known,
            Action::Local,
            Action::Deliver,
        ];
        assert_eq!(actions, expected.map(|action| action as u8));
        assert_eq!(table.versions[2].1.flags, FLAG_HOME_EDGE);
        assert_eq!(table.versions[4].1.ifindex, 7);
    }

    #[test]
    fn malformed_lines_are_named_with_a_remedy() {
        let good = "10.1.1.10 10.1.2.130 away\n";
        let cases = [
            ("10.1.1.11", "locator", "write `IDENTITY"),
            ("10.1.1 10.1.2.131 away", "`10.1.1`", "write `IDENTITY"),
            ("10.1.1.11 10.1.2.131", "where the VM is", "write `IDENTITY"),
            ("10.1.1.11 10.1.2.131 there", "`there`", "write `IDENTITY"),
            (
                "10.1.1.11 10.1.2.131 away home rack1",
                "`away home rack1`",
                "write `IDENTITY",
            ),
            (
                "10.1.1.11 10.1.2.131 here rack9 02:00:00:00:00:20",
                "rack9",
                "correct the name",
            ),
            (
                "10.1.1.11 10.1.2.131 here rack1 01:00:00:00:00:20",
                "01:00",
                "correct the VM's MAC",
            ),
            (
                "10.1.1.11 10.1.2.131 here rack1 02:00:00:00:20",
                "02:00",
                "correct the VM's MAC",
            ),
            ("10.1.1.10 10.1.2.131 away", "line 1", "remove one"),
            ("10.1.1.11 10.1.2.130 away", "line 1", "remove one"),
            (
                "10.1.2.131 10.1.1.11 away",
                "inside locator pool",
                "swap the columns",
            ),
            (
                "10.1.1.11 10.9.2.131 away",
                "in no locator pool",
                "take a locator",
            ),
            (
                "10.1.1.11 10.1.2.131 away away",
                "`away away`",
                "write `IDENTITY",
            ),
        ];
        for (line, problem, remedy) in cases {
            let error = read(&format!("{good}{line}\n")).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("bindings.txt:2: "), "{line}: {text}");
            assert!(text.contains(problem), "{line}: {text}");
            assert!(text.contains(remedy), "{line}: {text}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_named() {
        let segments = Segments::default();
        let file = Path::new("bindings.txt");
        let parser = Parser {
            file,
            segments: &segments,
            pools: &[],
        };
        let error = parser
            .read(&b"# fine\n\xff\xfe\n"[..], 0, &mut |_, _, _| {})
            .unwrap_err();
        assert!(error.to_string().starts_with("bindings.txt:2: "), "{error}");
    }
}

//! The bindings file: one binding per line, a whole table as one transaction.
//!
//! ```text
//! # identity  locator     where the VM is, as seen from this router
//! 10.1.1.10   10.1.2.130  away
//! 10.1.1.11   10.1.2.131  away home rack1 02:00:00:00:00:11
//! 10.1.2.20   10.1.1.130  here rack1 02:00:00:00:00:20
//! ```

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytemuck::Zeroable as _;
use ipnet::IpNet;
use natmig_common::{Action, FLAG_HOME_EDGE, Ipv4, Ipv6, Version};

use super::{
    ApplyReport, Progress, Router, RouterError,
    family::Net,
    tables::{Write, Writes},
    version::Segments,
};
use crate::{digest::Parts, names::SegmentName, rule::MacAddress};

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
    pub(super) writes: Writes,
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
    /// How long it took to read the file's text.
    pub parsed: Duration,
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
        let unreadable = |problem: String| {
            BindingsError::File(FileError {
                file: file.to_owned(),
                line: 0,
                problem,
                remedy: "check the path and its permissions".to_owned(),
            })
        };
        let bytes =
            fs::read(file).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
        let pools = self.pools();
        let parser = Parser {
            file,
            segments: &self.segments,
            pools: Pools::new(&pools),
        };
        let begun = Instant::now();
        let table = parser.read(&bytes, progress)?;
        drop(bytes);
        let parsed = begun.elapsed();
        let whole = if merge { Parts::NONE } else { Parts::All };
        let report = self.apply(table.writes, &whole, progress)?;
        Ok(AppliedBindings {
            bindings: table.bindings,
            report,
            parsed,
        })
    }
}

/// The locator pools, to be searched.
#[derive(Debug)]
pub(super) struct Pools<'a> {
    /// First and last address of each, ascending.
    ranges: Vec<(IpAddr, IpAddr, &'a IpNet)>,
}

impl<'a> Pools<'a> {
    pub(super) fn new(pools: &'a [IpNet]) -> Self {
        let mut ranges: Vec<_> = pools
            .iter()
            .map(|pool| (pool.network(), pool.broadcast(), pool))
            .collect();
        ranges.sort_unstable();
        Self { ranges }
    }

    fn find(&self, address: IpAddr) -> Option<&'a IpNet> {
        let behind = self.ranges.partition_point(|(first, ..)| *first <= address);
        let (_, last, pool) = self.ranges.get(behind.checked_sub(1)?)?;
        (*last >= address).then_some(pool)
    }
}

pub(super) struct Parser<'a> {
    file: &'a Path,
    segments: &'a Segments,
    pools: Pools<'a>,
}

/// Where a VM is, as a line says it.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Elsewhere.
    Away,
    /// Elsewhere, and at home here.
    AwayFromHome { ifindex: u32, mac: [u8; 6] },
    /// Here.
    Here { ifindex: u32, mac: [u8; 6] },
}

/// Most words of a line that means something.
const WORDS: usize = 6;

/// The first words of a line up to a comment, and how many it has.
fn words(line: &str) -> ([&str; WORDS], usize) {
    let mut words = [""; WORDS];
    let mut count = 0;
    let mut start = None;
    let end = line.bytes().position(|byte| byte == b'#');
    let end = end.unwrap_or(line.len());
    for at in 0..=end {
        let blank = at == end || line.as_bytes()[at].is_ascii_whitespace();
        match start {
            None if !blank => start = Some(at),
            Some(from) if blank => {
                if let Some(word) = words.get_mut(count) {
                    *word = &line[from..at];
                }
                count += 1;
                start = None;
            }
            Some(_) | None => {}
        }
    }
    (words, count)
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

    /// Reads a whole file.
    pub(super) fn read(
        &self,
        bytes: &[u8],
        progress: Progress<'_>,
    ) -> Result<Table, BindingsError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let valid = &bytes[..error.valid_up_to()];
            let line = valid.split(|byte| *byte == b'\n').count();
            self.error(line, "is no text", "write it as UTF-8 text")
        })?;
        let mut bindings = 0;
        let mut done = 0;
        let size = bytes.len() as u64;
        // Each column by itself is mostly in order already.
        let (mut identities, mut locators) = (Writes::default(), Writes::default());
        for (number, line) in (1..).zip(text.split('\n')) {
            done += line.len() as u64 + 1;
            if number % 65_536 == 0 {
                progress("reading", done, size);
            }
            let (words, count) = words(line);
            if count == 0 {
                continue;
            }
            let (identity, locator) = self.addresses(number, &words)?;
            let place = self.place(number, line, &words, count)?;
            match (identity, locator) {
                (IpAddr::V4(identity), IpAddr::V4(locator)) => {
                    add::<Ipv4>(
                        &mut identities.ipv4,
                        &mut locators.ipv4,
                        identity.into(),
                        locator.into(),
                        place,
                    );
                }
                (IpAddr::V6(identity), IpAddr::V6(locator)) => {
                    add::<Ipv6>(
                        &mut identities.ipv6,
                        &mut locators.ipv6,
                        identity.into(),
                        locator.into(),
                        place,
                    );
                }
                _ => {
                    return Err(self.error(
                        number,
                        format!("identity {identity} and locator {locator} are of two families"),
                        "bind IPv4 to IPv4 and IPv6 to IPv6",
                    ));
                }
            }
            bindings += 1;
        }
        let mut writes = identities;
        writes.ipv4.append(&mut locators.ipv4);
        writes.ipv6.append(&mut locators.ipv6);
        writes.sort();
        if let Some(address) = writes.twice() {
            return Err(self.twice(text, address));
        }
        progress("reading", size, size);
        Ok(Table { writes, bindings })
    }

    /// Says on which lines an address is.
    fn twice(&self, text: &str, address: IpAddr) -> BindingsError {
        let names = |line: &str| {
            let (words, _) = words(line);
            words[..2]
                .iter()
                .any(|word| word.parse() == Ok::<IpAddr, _>(address))
        };
        let mut lines = (1..)
            .zip(text.split('\n'))
            .filter(|(_, line)| names(line))
            .map(|(number, _)| number);
        let first = lines.next().unwrap_or(0);
        self.error(
            lines.next().unwrap_or(first),
            format!("{address} is bound on line {first} already"),
            "an address has one binding: remove one of the two",
        )
    }

    fn addresses(
        &self,
        line: usize,
        words: &[&str; WORDS],
    ) -> Result<(IpAddr, IpAddr), BindingsError> {
        let address = |text: &str, what: &str| -> Result<IpAddr, BindingsError> {
            text.parse().map_err(|_| {
                self.error(
                    line,
                    format!("`{text}` is not the address of {what}"),
                    FORMS,
                )
            })
        };
        let identity = address(words[0], "an identity")?;
        let locator = address(words[1], "a locator")?;
        if let Some(pool) = self.pools.find(identity) {
            return Err(self.error(
                line,
                format!("identity {identity} is inside locator pool {pool}"),
                "identities and locators are disjoint: swap the columns, or correct `locator_pools`",
            ));
        }
        if !self.pools.ranges.is_empty() && self.pools.find(locator).is_none() {
            return Err(self.error(
                line,
                format!("locator {locator} is in no locator pool"),
                "take a locator from `locator_pools`, or add its pool there and load again",
            ));
        }
        Ok((identity, locator))
    }

    fn place(
        &self,
        line: usize,
        text: &str,
        words: &[&str; WORDS],
        count: usize,
    ) -> Result<Place, BindingsError> {
        match words.get(2..count).unwrap_or_default() {
            ["away"] => Ok(Place::Away),
            ["away", "home", segment, mac] => {
                let (ifindex, mac) = self.attachment(line, segment, mac)?;
                Ok(Place::AwayFromHome { ifindex, mac })
            }
            ["here", segment, mac] => {
                let (ifindex, mac) = self.attachment(line, segment, mac)?;
                Ok(Place::Here { ifindex, mac })
            }
            _ => {
                let content = text.split('#').next().unwrap_or_default();
                let rest: Vec<&str> = content.split_ascii_whitespace().skip(2).collect();
                Err(self.error(
                    line,
                    format!("`{}` does not say where the VM is", rest.join(" ")),
                    FORMS,
                ))
            }
        }
    }

    fn attachment(
        &self,
        line: usize,
        segment: &str,
        mac: &str,
    ) -> Result<(u32, [u8; 6]), BindingsError> {
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
        Ok((ifindex, mac.0))
    }
}

/// Adds the two addresses of a binding.
fn add<F: Net>(
    identities: &mut Vec<Write<F>>,
    locators: &mut Vec<Write<F>>,
    identity: F::Number,
    locator: F::Number,
    place: Place,
) {
    let (near, far, flags, ifindex, mac) = match place {
        Place::Away => (Action::Away, Action::Known, 0, 0, [0; 6]),
        Place::AwayFromHome { ifindex, mac } => {
            (Action::Away, Action::Known, FLAG_HOME_EDGE, ifindex, mac)
        }
        Place::Here { ifindex, mac } => (Action::Local, Action::Deliver, 0, ifindex, mac),
    };
    let at = Version::<F> {
        mac,
        ifindex,
        ..Version::zeroed()
    };
    identities.push(Write {
        address: identity,
        version: Version {
            action: near as u8,
            flags,
            counterpart: F::octets(locator),
            ..at
        },
        early: false,
    });
    let at = if matches!(place, Place::Here { .. }) {
        at
    } else {
        Version::zeroed()
    };
    locators.push(Write {
        address: locator,
        version: Version {
            action: far as u8,
            counterpart: F::octets(identity),
            ..at
        },
        early: false,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Table, BindingsError> {
        let mut segments = Segments::default();
        segments.insert("rack1".into(), 7);
        let pools =
            ["10.1.0.128/25", "10.1.2.128/25", "2001:db8:2::/80"].map(|pool| pool.parse().unwrap());
        let file = Path::new("bindings.txt");
        let parser = Parser {
            file,
            segments: &segments,
            pools: Pools::new(&pools),
        };
        parser.read(text.as_bytes(), &mut |_, _, _| {})
    }

    #[test]
    fn each_form_becomes_two_entries() {
        let table = read(
            "# a comment\n\
             10.1.1.10 10.1.2.130 away # far\n\
             \n\
             10.1.1.11 10.1.2.131 away home rack1 02:00:00:00:00:11\n\
             10.1.2.20 10.1.0.130 here rack1 02:00:00:00:00:20\n\
             2001:db8:1::10 2001:db8:2::80 away\n",
        )
        .unwrap();
        assert_eq!(table.bindings, 4);
        let action = |address: [u8; 4]| {
            let mut writes = table.writes.ipv4.iter();
            let write = writes.find(|write| write.address == u32::from_be_bytes(address));
            write.unwrap().version
        };
        let expected = [
            ([10, 1, 1, 10], Action::Away),
            ([10, 1, 2, 130], Action::Known),
            ([10, 1, 1, 11], Action::Away),
            ([10, 1, 2, 131], Action::Known),
            ([10, 1, 2, 20], Action::Local),
            ([10, 1, 0, 130], Action::Deliver),
        ];
        for (address, expected) in expected {
            assert_eq!(action(address).action, expected as u8);
        }
        assert_eq!(action([10, 1, 1, 11]).flags, FLAG_HOME_EDGE);
        assert_eq!(action([10, 1, 2, 20]).ifindex, 7);
        let identity: std::net::Ipv6Addr = "2001:db8:1::10".parse().unwrap();
        assert_eq!(table.writes.ipv6.len(), 2);
        assert_eq!(table.writes.ipv6[0].address, u128::from(identity));
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
                "10.1.1.11 2001:db8:2::81 away",
                "two families",
                "IPv6 to IPv6",
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
            pools: Pools::new(&[]),
        };
        let error = parser
            .read(b"# fine\n\xff\xfe\n", &mut |_, _, _| {})
            .unwrap_err();
        assert!(error.to_string().starts_with("bindings.txt:2: "), "{error}");
    }
}

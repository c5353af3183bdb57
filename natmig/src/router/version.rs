//! Between rules, which speak of segments, and versions, which speak of interfaces.

use std::{collections::HashMap, net::Ipv4Addr};

use natmig_common::{Action, FLAG_HOME_EDGE, Version};

use super::RouterError;
use crate::{
    names::SegmentName,
    rule::{Attachment, MacAddress, Rule},
};

/// Which access interface serves which segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments {
    by_segment: HashMap<SegmentName, u32>,
    by_ifindex: HashMap<u32, SegmentName>,
}

impl Segments {
    /// Adds a segment and its access interface.
    pub(super) fn insert(&mut self, segment: SegmentName, ifindex: u32) {
        self.by_segment.insert(segment.clone(), ifindex);
        self.by_ifindex.insert(ifindex, segment);
    }

    pub(super) fn ifindex(&self, segment: &SegmentName) -> Result<u32, RouterError> {
        self.by_segment
            .get(segment)
            .copied()
            .ok_or_else(|| RouterError::UnknownSegment {
                segment: segment.clone(),
            })
    }

    /// The segment behind an interface. An interface that is gone has a name that no segment has,
    /// so that its entries differ from whatever they should be.
    pub(super) fn segment(&self, ifindex: u32) -> SegmentName {
        self.by_ifindex
            .get(&ifindex)
            .cloned()
            .unwrap_or_else(|| SegmentName::new(format!("?{ifindex}")))
    }

    /// The version that does what a rule says.
    pub(super) fn version(&self, rule: &Rule) -> Result<Version, RouterError> {
        let mut version = Version::default();
        match rule {
            Rule::Absent => {}
            Rule::Away { locator, home } => {
                version.action = Action::Away as u8;
                version.counterpart = locator.octets();
                if let Some(at) = home {
                    version.flags = FLAG_HOME_EDGE;
                    self.attach(&mut version, at)?;
                }
            }
            Rule::Local {
                locator,
                at,
                gateway,
            } => {
                version.action = Action::Local as u8;
                version.counterpart = locator.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
                // The program has no use for the field in this action; it keeps what is to be
                // announced across a restart between prepare and commit.
                version.forward = gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
                self.attach(&mut version, at)?;
            }
            Rule::Deliver { identity, at } => {
                version.action = Action::Deliver as u8;
                version.counterpart = identity.octets();
                self.attach(&mut version, at)?;
            }
            Rule::Forward { identity, to } => {
                version.action = Action::Forward as u8;
                version.counterpart = identity.octets();
                version.forward = to.octets();
            }
            Rule::Known { identity } => {
                version.action = Action::Known as u8;
                version.counterpart = identity.octets();
            }
        }
        Ok(version)
    }

    fn attach(&self, version: &mut Version, at: &Attachment) -> Result<(), RouterError> {
        version.mac = at.mac.0;
        version.ifindex = self.ifindex(&at.segment)?;
        Ok(())
    }

    /// The rule that a version does.
    pub(super) fn rule(&self, version: &Version) -> Rule {
        let counterpart = Ipv4Addr::from(version.counterpart);
        let at = || Attachment {
            segment: self.segment(version.ifindex),
            mac: MacAddress(version.mac),
        };
        match action(version) {
            Action::Absent => Rule::Absent,
            Action::Away => Rule::Away {
                locator: counterpart,
                home: is_home(version).then(at),
            },
            Action::Local => Rule::Local {
                locator: (!counterpart.is_unspecified()).then_some(counterpart),
                at: at(),
                gateway: None,
            },
            Action::Deliver => Rule::Deliver {
                identity: counterpart,
                at: at(),
            },
            Action::Forward => Rule::Forward {
                identity: counterpart,
                to: Ipv4Addr::from(version.forward),
            },
            Action::Known => Rule::Known {
                identity: counterpart,
            },
        }
    }
}

/// The action of a version; a number that is none does nothing, as in the program.
pub(super) fn action(version: &Version) -> Action {
    Action::from_raw(version.action).unwrap_or(Action::Absent)
}

/// Whether the version is an away VM's on its home edge.
pub(super) fn is_home(version: &Version) -> bool {
    action(version) == Action::Away && version.flags & FLAG_HOME_EDGE != 0
}

/// Whether two versions do the same. What is to be announced does not count.
pub(super) fn same(one: &Version, other: &Version) -> bool {
    let relevant = |version: &Version| {
        let mut version = *version;
        match action(&version) {
            Action::Absent => version = Version::default(),
            Action::Local => version.forward = [0; 4],
            Action::Away | Action::Deliver | Action::Forward | Action::Known => {}
        }
        version
    };
    relevant(one) == relevant(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_survives_the_way_through_a_version() {
        let mut segments = Segments::default();
        segments.insert("rack1".into(), 7);
        let at = Attachment {
            segment: "rack1".into(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
        };
        let [a, b] = [Ipv4Addr::new(10, 1, 1, 10), Ipv4Addr::new(10, 1, 2, 130)];
        let rules = [
            Rule::Absent,
            Rule::Away {
                locator: b,
                home: None,
            },
            Rule::Away {
                locator: b,
                home: Some(at.clone()),
            },
            Rule::Local {
                locator: Some(b),
                at: at.clone(),
                gateway: None,
            },
            Rule::Local {
                locator: None,
                at: at.clone(),
                gateway: None,
            },
            Rule::Deliver { identity: a, at },
            Rule::Forward { identity: a, to: b },
            Rule::Known { identity: a },
        ];
        for rule in rules {
            let version = segments.version(&rule).unwrap();
            assert_eq!(segments.rule(&version), rule);
            assert!(same(&version, &version));
        }
    }

    #[test]
    fn unknown_segment_is_refused() {
        let rule = Rule::Deliver {
            identity: Ipv4Addr::new(10, 1, 1, 10),
            at: Attachment {
                segment: "rack9".into(),
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
            },
        };
        let error = Segments::default().version(&rule).unwrap_err();
        assert!(error.to_string().contains("rack9"));
    }
}

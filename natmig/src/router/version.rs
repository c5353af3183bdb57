//! Between rules, which speak of segments, and versions, which speak of interfaces.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use bytemuck::Zeroable as _;
use natmig_common::{Action, FLAG_HOME_EDGE, Mac, Version};

use super::{RouterError, family::Net};
use crate::{
    names::SegmentName,
    rule::{Attachment, MacAddress, Rule},
};

/// Which access interface serves which segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

    /// The version that does what a rule says; all of its addresses are of the family.
    pub(super) fn version<F: Net>(&self, rule: &Rule) -> Result<Version<F>, RouterError> {
        let mut version = Version::<F>::zeroed();
        let octets = |address: IpAddr| {
            F::of(address)
                .map(F::octets)
                .ok_or(RouterError::OtherFamily { address })
        };
        match rule {
            Rule::Absent => {}
            Rule::Away { locator, home } => {
                version.action = Action::Away as u8;
                version.counterpart = octets(*locator)?;
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
                version.counterpart = locator.map_or(Ok(F::UNSPECIFIED), octets)?;
                // The program has no use for the field in this action; it keeps what is to be
                // announced across a restart between prepare and commit.
                version.forward = gateway.map_or(Ok(F::UNSPECIFIED), octets)?;
                self.attach(&mut version, at)?;
            }
            Rule::Deliver { identity, at } => {
                version.action = Action::Deliver as u8;
                version.counterpart = octets(*identity)?;
                self.attach(&mut version, at)?;
            }
            Rule::Forward { identity, to } => {
                version.action = Action::Forward as u8;
                version.counterpart = octets(*identity)?;
                version.forward = octets(*to)?;
            }
            Rule::Known { identity } => {
                version.action = Action::Known as u8;
                version.counterpart = octets(*identity)?;
            }
        }
        Ok(version)
    }

    fn attach<F: Net>(&self, version: &mut Version<F>, at: &Attachment) -> Result<(), RouterError> {
        version.mac = at.mac.0;
        version.ifindex = self.ifindex(&at.segment)?;
        Ok(())
    }

    /// The rule that a version does.
    pub(super) fn rule(&self, version: &Decoded) -> Rule {
        let at = || Attachment {
            segment: self.segment(version.ifindex),
            mac: MacAddress(version.mac),
        };
        // Only a version that nobody wrote has none.
        let counterpart = version
            .counterpart
            .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        match version.action {
            Action::Absent => Rule::Absent,
            Action::Away => Rule::Away {
                locator: counterpart,
                home: version.is_home().then(at),
            },
            Action::Local => Rule::Local {
                locator: version.counterpart,
                at: at(),
                gateway: None,
            },
            Action::Deliver => Rule::Deliver {
                identity: counterpart,
                at: at(),
            },
            Action::Forward => Rule::Forward {
                identity: counterpart,
                to: version.forward.unwrap_or(counterpart),
            },
            Action::Known => Rule::Known {
                identity: counterpart,
            },
        }
    }
}

/// A version of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) action: Action,
    pub(super) flags: u8,
    pub(super) mac: Mac,
    pub(super) ifindex: u32,
    /// The other address of the binding.
    pub(super) counterpart: Option<IpAddr>,
    /// Where packets to a locator go on to; the gateway that is announced to a visitor.
    pub(super) forward: Option<IpAddr>,
}

impl Decoded {
    /// No binding.
    pub(super) const ABSENT: Self = Self {
        action: Action::Absent,
        flags: 0,
        mac: [0; 6],
        ifindex: 0,
        counterpart: None,
        forward: None,
    };

    /// What a version says.
    pub(super) fn of<F: Net>(version: &Version<F>) -> Self {
        let address =
            |octets: F::Octets| (octets != F::UNSPECIFIED).then(|| F::address(F::number(octets)));
        Self {
            action: action(version),
            flags: version.flags,
            mac: version.mac,
            ifindex: version.ifindex,
            counterpart: address(version.counterpart),
            forward: address(version.forward),
        }
    }

    /// Whether it is an away VM's on its home edge.
    pub(super) fn is_home(&self) -> bool {
        self.action == Action::Away && self.flags & FLAG_HOME_EDGE != 0
    }

    /// Whether it is a VM's that visits here.
    pub(super) fn is_visitor(&self) -> bool {
        self.action == Action::Local && self.counterpart.is_some()
    }
}

/// The action of a version; a number that is none does nothing, as in the program.
pub(super) fn action<F: Net>(version: &Version<F>) -> Action {
    Action::from_raw(version.action).unwrap_or(Action::Absent)
}

/// Whether two versions do the same. What is to be announced does not count.
pub(super) fn same<F: Net>(one: &Version<F>, other: &Version<F>) -> bool {
    let relevant = |version: &Version<F>| {
        let mut version = *version;
        match action(&version) {
            Action::Absent => version = Version::zeroed(),
            Action::Local => version.forward = F::UNSPECIFIED,
            Action::Away | Action::Deliver | Action::Forward | Action::Known => {}
        }
        version
    };
    relevant(one) == relevant(other)
}

#[cfg(test)]
mod tests {
    use natmig_common::{Ipv4, Ipv6};

    use super::*;

    fn every_rule_survives<F: Net>(a: &str, b: &str) {
        let mut segments = Segments::default();
        segments.insert("rack1".into(), 7);
        let at = Attachment {
            segment: "rack1".into(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
        };
        let [a, b] = [a, b].map(|text| text.parse::<IpAddr>().unwrap());
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
            let version = segments.version::<F>(&rule).unwrap();
            assert_eq!(segments.rule(&Decoded::of(&version)), rule);
            assert!(same(&version, &version));
        }
    }

    #[test]
    fn every_rule_survives_the_way_through_a_version() {
        every_rule_survives::<Ipv4>("10.1.1.10", "10.1.2.130");
        every_rule_survives::<Ipv6>("2001:db8:1::10", "2001:db8:2::80");
    }

    #[test]
    fn a_rule_of_the_other_family_is_refused() {
        let rule = Rule::Known {
            identity: Ipv4Addr::new(10, 1, 1, 10).into(),
        };
        let error = Segments::default().version::<Ipv6>(&rule).unwrap_err();
        assert!(matches!(error, RouterError::OtherFamily { .. }), "{error}");
    }

    #[test]
    fn unknown_segment_is_refused() {
        let rule = Rule::Deliver {
            identity: Ipv4Addr::new(10, 1, 1, 10).into(),
            at: Attachment {
                segment: "rack9".into(),
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
            },
        };
        let error = Segments::default().version::<Ipv4>(&rule).unwrap_err();
        assert!(error.to_string().contains("rack9"));
    }
}

//! Rules on the wire.

use super::{
    Malformed, address, address_bytes, mac, name, optional_address, optional_address_bytes,
    required, v1,
};
use crate::rule::{Attachment, Change, Changes, Rule};

impl From<&Attachment> for v1::Attachment {
    fn from(at: &Attachment) -> Self {
        Self {
            segment: at.segment.to_string(),
            mac: at.mac.0.to_vec(),
        }
    }
}

impl TryFrom<v1::Attachment> for Attachment {
    type Error = Malformed;

    fn try_from(at: v1::Attachment) -> Result<Self, Malformed> {
        Ok(Self {
            segment: name("attachment.segment", &at.segment)?,
            mac: mac("attachment.mac", &at.mac)?,
        })
    }
}

impl From<&Rule> for v1::Rule {
    fn from(rule: &Rule) -> Self {
        use v1::rule::{Absent, Action, Away, Deliver, Forward, Known, Local};
        let action = match rule {
            Rule::Absent => Action::Absent(Absent {}),
            Rule::Away { locator, home } => Action::Away(Away {
                locator: address_bytes(*locator),
                home: home.as_ref().map(Into::into),
            }),
            Rule::Local {
                locator,
                at,
                gateway,
            } => Action::Local(Local {
                locator: optional_address_bytes(*locator),
                at: Some(at.into()),
                gateway: optional_address_bytes(*gateway),
            }),
            Rule::Deliver { identity, at } => Action::Deliver(Deliver {
                identity: address_bytes(*identity),
                at: Some(at.into()),
            }),
            Rule::Forward { identity, to } => Action::Forward(Forward {
                identity: address_bytes(*identity),
                to: address_bytes(*to),
            }),
            Rule::Known { identity } => Action::Known(Known {
                identity: address_bytes(*identity),
            }),
        };
        Self {
            action: Some(action),
        }
    }
}

impl TryFrom<v1::Rule> for Rule {
    type Error = Malformed;

    fn try_from(rule: v1::Rule) -> Result<Self, Malformed> {
        use v1::rule::Action;
        Ok(match required("rule.action", rule.action)? {
            Action::Absent(_) => Self::Absent,
            Action::Away(away) => Self::Away {
                locator: address("away.locator", &away.locator)?,
                home: away.home.map(TryInto::try_into).transpose()?,
            },
            Action::Local(local) => Self::Local {
                locator: optional_address("local.locator", &local.locator)?,
                at: required("local.at", local.at)?.try_into()?,
                gateway: optional_address("local.gateway", &local.gateway)?,
            },
            Action::Deliver(deliver) => Self::Deliver {
                identity: address("deliver.identity", &deliver.identity)?,
                at: required("deliver.at", deliver.at)?.try_into()?,
            },
            Action::Forward(forward) => Self::Forward {
                identity: address("forward.identity", &forward.identity)?,
                to: address("forward.to", &forward.to)?,
            },
            Action::Known(known) => Self::Known {
                identity: address("known.identity", &known.identity)?,
            },
        })
    }
}

impl From<&Change> for v1::Change {
    fn from(change: &Change) -> Self {
        Self {
            address: address_bytes(change.address),
            rule: Some((&change.rule).into()),
        }
    }
}

impl TryFrom<v1::Change> for Change {
    type Error = Malformed;

    fn try_from(change: v1::Change) -> Result<Self, Malformed> {
        let address = address("change.address", &change.address)?;
        let rule: Rule = required("change.rule", change.rule)?.try_into()?;
        if !rule.suits(address) {
            return Err(Malformed::new(
                "change.rule",
                format!("is about another address family than {address}"),
            ));
        }
        Ok(Self { address, rule })
    }
}

impl From<&Changes> for v1::Changes {
    fn from(changes: &Changes) -> Self {
        Self {
            early: changes.early.iter().map(Into::into).collect(),
            pending: changes.pending.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Changes> for Changes {
    type Error = Malformed;

    fn try_from(changes: v1::Changes) -> Result<Self, Malformed> {
        let convert = |changes: Vec<v1::Change>| {
            changes
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()
        };
        Ok(Self {
            early: convert(changes.early)?,
            pending: convert(changes.pending)?,
        })
    }
}

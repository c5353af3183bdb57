//! Audit records on the wire.

use super::{Malformed, enumeration, optional_text, v1};
use crate::{
    audit::{Asked, AuditOutcome, AuditRecord, Caller},
    coordinator::Timestamp,
};

impl From<&AuditRecord> for v1::AuditRecord {
    fn from(record: &AuditRecord) -> Self {
        let AuditRecord {
            id,
            at,
            asked: Asked { who, call, what },
            outcome,
        } = record;
        let (kind, detail, migration) = match outcome {
            AuditOutcome::Done(migration) => (v1::AuditOutcome::Done, String::new(), *migration),
            AuditOutcome::Refused(why) => (v1::AuditOutcome::Refused, why.clone(), None),
            AuditOutcome::Denied(why) => (v1::AuditOutcome::Denied, why.clone(), None),
        };
        Self {
            id: *id,
            at: at.0,
            who: who.name.clone(),
            address: who.address.map_or_else(String::new, |it| it.to_string()),
            certificate: who.certificate.clone().unwrap_or_default(),
            uid: who.uid,
            pid: who.pid,
            call: call.clone(),
            what: what.clone(),
            outcome: kind.into(),
            detail,
            migration,
        }
    }
}

impl TryFrom<v1::AuditRecord> for AuditRecord {
    type Error = Malformed;

    fn try_from(wire: v1::AuditRecord) -> Result<Self, Malformed> {
        let outcome = match enumeration("audit.outcome", wire.outcome)? {
            v1::AuditOutcome::Done => AuditOutcome::Done(wire.migration),
            v1::AuditOutcome::Refused => AuditOutcome::Refused(wire.detail),
            v1::AuditOutcome::Denied => AuditOutcome::Denied(wire.detail),
            v1::AuditOutcome::Unspecified => {
                return Err(Malformed::new("audit.outcome", "is missing"));
            }
        };
        let address = optional_text(wire.address)
            .map(|text| text.parse())
            .transpose()
            .map_err(|_| Malformed::new("audit.address", "is no address with a port"))?;
        Ok(Self {
            id: wire.id,
            at: Timestamp(wire.at),
            asked: Asked {
                who: Caller {
                    name: wire.who,
                    address,
                    certificate: optional_text(wire.certificate),
                    uid: wire.uid,
                    pid: wire.pid,
                },
                call: wire.call,
                what: wire.what,
            },
            outcome,
        })
    }
}

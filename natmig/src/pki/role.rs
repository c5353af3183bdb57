//! Who the holder of a certificate is.
//!
//! A role is a URI in the style of SPIFFE IDs, `spiffe://natmig/ROLE/NAME`, among the certificate's
//! subject alternative names: the standard place for a workload's identity, which other software
//! reads too, and which no DNS or address check of TLS confuses with a host's name.

use std::fmt;

use crate::names::RouterName;

/// What every role's URI begins with.
const PREFIX: &str = "spiffe://natmig/";

/// Longest name in a certificate: the limit of a common name (RFC 5280, appendix A.1).
const NAME_LIMIT: usize = 64;

/// Who the holder of a certificate is, and so what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The agent of this router.
    Agent(RouterName),
    /// A controller; its name is for people.
    Controller(String),
    /// Whoever may change everything; its name is for people, and for the audit log.
    Operator(String),
    /// Whoever may look at everything and change nothing.
    ReadOnly(String),
}

/// A certificate does not say who its holder is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// It has no role of natmig's.
    #[error(
        "the certificate names no role: none of its alternative names is a URI that begins with \
         {PREFIX}; issue it with `natmig pki issue`"
    )]
    Missing,
    /// It has several.
    #[error("the certificate names several roles; issue one certificate for each")]
    Several,
    /// It has one that is not known.
    #[error(
        "`{0}` is no role; a role is {PREFIX} followed by agent, controller, operator or \
         read-only, and a name"
    )]
    Unknown(String),
    /// The name cannot be in a certificate.
    #[error(
        "`{0}` cannot be a name in a certificate; use 1 to {NAME_LIMIT} letters, digits, `-`, `_` \
         and `.`"
    )]
    Name(String),
}

impl Role {
    /// What kind of role it is, as on the command line and in URIs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Controller(_) => "controller",
            Self::Operator(_) => "operator",
            Self::ReadOnly(_) => "read-only",
        }
    }

    /// Who has it.
    pub fn name(&self) -> &str {
        match self {
            Self::Agent(router) => router.as_str(),
            Self::Controller(name) | Self::Operator(name) | Self::ReadOnly(name) => name,
        }
    }

    /// As it is in a certificate.
    pub fn uri(&self) -> String {
        format!("{PREFIX}{}/{}", self.kind(), self.name())
    }

    /// The role of this kind and name.
    pub fn new(kind: &str, name: &str) -> Result<Self, RoleError> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(valid) {
            return Err(RoleError::Name(name.to_owned()));
        }
        match kind {
            "agent" => Ok(Self::Agent(RouterName::new(name))),
            "controller" => Ok(Self::Controller(name.to_owned())),
            "operator" => Ok(Self::Operator(name.to_owned())),
            "read-only" => Ok(Self::ReadOnly(name.to_owned())),
            _ => Err(RoleError::Unknown(format!("{PREFIX}{kind}/{name}"))),
        }
    }

    /// The one role among a certificate's URIs; URIs of others are ignored.
    pub fn among<'a>(uris: impl IntoIterator<Item = &'a str>) -> Result<Self, RoleError> {
        let mut roles = uris.into_iter().filter_map(|uri| uri.strip_prefix(PREFIX));
        let role = roles.next().ok_or(RoleError::Missing)?;
        if roles.next().is_some() {
            return Err(RoleError::Several);
        }
        let (kind, name) = role
            .split_once('/')
            .ok_or_else(|| RoleError::Unknown(format!("{PREFIX}{role}")))?;
        Self::new(kind, name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_survives_its_uri() {
        for kind in ["agent", "controller", "operator", "read-only"] {
            let role = Role::new(kind, "a-1.b_2").unwrap();
            let uri = role.uri();
            assert_eq!(Role::among(["https://other", &uri]), Ok(role));
        }
    }

    #[test]
    fn nothing_else_is_a_role() {
        let role = |uri| Role::among([uri]);
        assert_eq!(Role::among([]), Err(RoleError::Missing));
        assert_eq!(role("spiffe://other/operator/a"), Err(RoleError::Missing));
        assert_eq!(
            Role::among(["spiffe://natmig/agent/a", "spiffe://natmig/operator/a"]),
            Err(RoleError::Several)
        );
        for uri in [
            "spiffe://natmig/operator",
            "spiffe://natmig/owner/a",
            "spiffe://natmig/Operator/a",
        ] {
            assert!(matches!(role(uri), Err(RoleError::Unknown(_))), "{uri}");
        }
        for uri in [
            "spiffe://natmig/agent/",
            "spiffe://natmig/agent/a/b",
            "spiffe://natmig/agent/a b",
            "spiffe://natmig/agent/%61",
        ] {
            assert!(matches!(role(uri), Err(RoleError::Name(_))), "{uri}");
        }
    }
}

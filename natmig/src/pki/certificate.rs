//! Reads a certificate: who its holder is, by which names it is dialled, and how long it is valid.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{EXPIRY_WARNING, PkiError, Role, RoleError};

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is, as a distinguished name.
    pub subject: String,
    /// Who signed it, as a distinguished name.
    pub issuer: String,
    /// Whether it signs others.
    pub is_authority: bool,
    /// Who its holder is.
    pub role: Result<Role, RoleError>,
    /// DNS names and addresses by which its holder is dialled.
    pub names: Vec<String>,
    /// First second in which it is valid.
    pub not_before: SystemTime,
    /// Last second in which it is valid.
    pub not_after: SystemTime,
    /// SHA-256 of the whole certificate, in hexadecimal.
    pub fingerprint: String,
}

/// Whether a certificate is valid at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It is not valid yet.
    NotYet,
    /// It is valid.
    Valid,
    /// It is valid for so long only: soon it must be renewed.
    Expiring(Duration),
    /// It is no longer valid.
    Expired,
}

impl Certificate {
    /// Reads the first certificate of a PEM file.
    pub fn read(path: &Path) -> Result<Self, PkiError> {
        Self::parse(&der(path)?).map_err(unreadable(path))
    }

    /// Reads a certificate in DER; an error says what is wrong with it.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("it is followed by something else".to_owned());
        }
        let alternatives = parsed
            .subject_alternative_name()
            .map_err(|error| error.to_string())?;
        let mut uris = Vec::new();
        let mut names = Vec::new();
        for name in alternatives
            .iter()
            .flat_map(|names| &names.value.general_names)
        {
            if let GeneralName::URI(uri) = name {
                uris.push(*uri);
            } else if let GeneralName::DNSName(name) = name {
                names.push((*name).to_owned());
            } else if let GeneralName::IPAddress(bytes) = name
                && let Some(address) = address(bytes)
            {
                names.push(address.to_string());
            }
        }
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            is_authority: parsed.is_ca(),
            role: Role::among(uris),
            names,
            not_before: moment(parsed.validity().not_before.timestamp()),
            not_after: moment(parsed.validity().not_after.timestamp()),
            fingerprint: hexadecimal(&Sha256::digest(der)),
        })
    }

    /// Whether it is valid at a time.
    pub fn validity(&self, at: SystemTime) -> Validity {
        if at < self.not_before {
            return Validity::NotYet;
        }
        match self.not_after.duration_since(at) {
            Err(_) => Validity::Expired,
            Ok(left) if left < EXPIRY_WARNING => Validity::Expiring(left),
            Ok(_) => Validity::Valid,
        }
    }

    /// What is to be said about its validity at a time, if anything.
    pub fn warning(&self, at: SystemTime) -> Option<String> {
        match self.validity(at) {
            Validity::Valid => None,
            Validity::NotYet => Some(format!(
                "is not valid before {}; is the clock right?",
                rfc3339(self.not_before)
            )),
            Validity::Expiring(left) => Some(format!(
                "expires in {} days, on {}; renew it with `natmig pki renew`",
                left.as_secs() / 86_400,
                rfc3339(self.not_after)
            )),
            Validity::Expired => Some(format!(
                "expired on {}; renew it with `natmig pki renew`",
                rfc3339(self.not_after)
            )),
        }
    }
}

/// Whether the first certificate of one PEM file bears the signature of the first of another one.
pub(super) fn is_signed_by(path: &Path, authority: &Path) -> Result<bool, PkiError> {
    let (signed, signer) = (der(path)?, der(authority)?);
    let parse = |der, path| {
        X509Certificate::from_der(der)
            .map(|(_, parsed)| parsed)
            .map_err(|error| unreadable(path)(error.to_string()))
    };
    let (signed, signer) = (parse(&signed, path)?, parse(&signer, authority)?);
    Ok(signed.verify_signature(Some(signer.public_key())).is_ok())
}

fn der(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    let pem = fs::read(path).map_err(PkiError::system(path))?;
    CertificateDer::from_pem_slice(&pem).map_err(|error| unreadable(path)(error.to_string()))
}

fn unreadable(path: &Path) -> impl FnOnce(String) -> PkiError {
    let path = path.to_owned();
    move |problem| PkiError::NoCertificate { path, problem }
}

/// A time as people and programs write it, in UTC.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    at.replace_nanosecond(0)
        .unwrap_or(at)
        .format(&Rfc3339)
        .unwrap_or_else(|_| at.to_string())
}

fn moment(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

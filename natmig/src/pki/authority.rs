//! The authority: signs certificates for roles.
//!
//! Its certificate may sign end entities only (path length 0). An agent's or operator's certificate
//! is for clients only, so that no agent can pose as a controller, whatever names it has.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::{
    Certificate, Existing, PkiError, Role, certificate::is_signed_by, write_private, write_public,
};

/// Clocks of different machines may differ by this much.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// The authority's certificate, in its directory.
const CERTIFICATE: &str = "ca.pem";

/// The authority's key, in its directory.
const KEY: &str = "ca.key";

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
    not_after: SystemTime,
}

/// What a certificate is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who its holder will be.
    pub role: Role,
    /// DNS names and addresses by which it is dialled.
    pub names: Vec<String>,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid; never longer than the authority.
    pub not_after: SystemTime,
}

/// A certificate, signed.
#[derive(Debug)]
pub struct Issued {
    /// In PEM.
    pub certificate: String,
    /// Its private key in PEM.
    pub key: String,
}

impl Request {
    /// Valid for so many days from now on.
    pub fn days(role: Role, names: Vec<String>, days: u32) -> Self {
        let now = SystemTime::now();
        Self {
            role,
            names,
            not_before: now - CLOCK_SKEW,
            not_after: now + Duration::from_hours(24) * days,
        }
    }
}

impl Authority {
    /// Where the authority's certificate is.
    pub fn certificate_path(directory: &Path) -> PathBuf {
        directory.join(CERTIFICATE)
    }

    /// Makes an authority and writes it to a directory.
    pub fn create(
        directory: &Path,
        name: &str,
        days: u32,
        existing: Existing,
    ) -> Result<Certificate, PkiError> {
        let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
        if existing == Existing::Keep
            && let Some(path) = [&certificate, &key].into_iter().find(|path| path.exists())
        {
            return Err(PkiError::Exists(path.clone()));
        }
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
        params.not_after = OffsetDateTime::from(now + Duration::from_hours(24) * days);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        write_private(&key, &issuer.key().serialize_pem(), existing)?;
        write_public(&certificate, &issuer.pem(), existing)?;
        Certificate::read(&certificate)
    }

    /// Opens the authority in a directory.
    pub fn open(directory: &Path) -> Result<Self, PkiError> {
        let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |problem: String| PkiError::Authority { path, problem }
        };
        let pem = fs::read_to_string(&certificate)
            .map_err(|error| unusable(&certificate)(error.to_string()))?;
        let key_pem =
            fs::read_to_string(&key).map_err(|error| unusable(&key)(error.to_string()))?;
        let key_pair =
            KeyPair::from_pem(&key_pem).map_err(|error| unusable(&key)(error.to_string()))?;
        let own = Certificate::read(&certificate)?;
        if !own.is_authority {
            return Err(unusable(&certificate)(
                "it is no authority's certificate".to_owned(),
            ));
        }
        let issuer = Issuer::from_ca_cert_pem(&pem, key_pair)
            .map_err(|error| unusable(&certificate)(error.to_string()))?;
        Ok(Self {
            issuer,
            certificate,
            not_after: own.not_after,
        })
    }

    /// Whether it has signed a certificate. Names do not tell: authorities may be named alike.
    pub fn has_signed(&self, certificate: &Path) -> Result<bool, PkiError> {
        is_signed_by(certificate, &self.certificate)
    }

    /// Signs a certificate for a new key.
    pub fn issue(&self, request: &Request) -> Result<Issued, PkiError> {
        self.issue_for(request, &KeyPair::generate()?)
    }

    /// Signs a certificate with the same role and names as another one, for its key in PEM.
    pub fn renew(&self, request: &Request, key: &str) -> Result<Issued, PkiError> {
        self.issue_for(request, &KeyPair::from_pem(key)?)
    }

    fn issue_for(&self, request: &Request, key: &KeyPair) -> Result<Issued, PkiError> {
        let is_controller = matches!(request.role, Role::Controller(_));
        if is_controller && request.names.is_empty() {
            return Err(PkiError::NoName);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&request.role.to_string());
        params.serial_number = Some(serial_number(key));
        params.use_authority_key_identifier_extension = true;
        params.not_before = OffsetDateTime::from(request.not_before);
        params.not_after = OffsetDateTime::from(request.not_after.min(self.not_after));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if is_controller {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params
            .subject_alt_names
            .push(SanType::URI(request.role.uri().try_into()?));
        for name in &request.names {
            params.subject_alt_names.push(alternative(name)?);
        }
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Differs between certificates of one key, too.
fn serial_number(key: &KeyPair) -> SerialNumber {
    use sha2::{Digest as _, Sha256};
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(key.public_key_raw());
    hash.update(now.as_nanos().to_be_bytes());
    let mut serial = hash.finalize()[..16].to_vec();
    // A serial number is positive (RFC 5280, section 4.1.2.2).
    serial[0] &= 0x7f;
    SerialNumber::from_slice(&serial)
}

fn alternative(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '*' | '_');
    if name.is_empty() || !name.chars().all(valid) {
        return Err(PkiError::Name(name.to_owned()));
    }
    Ok(SanType::DnsName(name.try_into()?))
}

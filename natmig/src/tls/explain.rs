//! Says in an operator's words why two sides do not get along.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls knows many more errors, and says itself what they are"
)]

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// What went wrong on a TLS connection, for this side's log or terminal.
pub(super) fn explain(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(error) => describe(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection in the middle of the TLS handshake; does it speak TLS there?"
                .to_owned()
        }
        None => error.to_string(),
    }
}

/// The side that speaks judges the other one's certificate, or hears how its own was judged.
fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(problem) => {
            format!("its certificate is refused: {}", judge(problem))
        }
        Error::NoCertificatesPresented => {
            "it presented no certificate; every side needs one, see `natmig pki issue`".to_owned()
        }
        Error::AlertReceived(alert) => heard(*alert),
        Error::InvalidMessage(_) => {
            "it does not speak TLS; both sides must be set up for it".to_owned()
        }
        Error::PeerIncompatible(problem) => {
            format!("it speaks another TLS than 1.3 with HTTP/2: {problem:?}")
        }
        other => other.to_string(),
    }
}

fn judge(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired; renew it with `natmig pki renew` (or a clock is wrong)".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; is a clock wrong?".to_owned()
        }
        // The same name of an authority with another key gives a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is signed by an unknown authority: not by one in this side's `ca` file".to_owned()
        }
        CertificateError::NotValidForName => {
            "it is for another name than the one that was dialled; issue one with --address"
                .to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "it is not for {}, which was dialled, but for {}; issue one with --address {}",
            expected.to_str(),
            if presented.is_empty() {
                "no address at all".to_owned()
            } else {
                presented.join(", ")
            },
            expected.to_str(),
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not for this side of a connection; a controller needs one that was issued with \
             `natmig pki issue controller`"
                .to_owned()
        }
        other => other.to_string(),
    }
}

fn heard(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateExpired => {
            "it has expired; renew it with `natmig pki renew` (or a clock is wrong)"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it is signed by an authority that the other side does not know"
        }
        AlertDescription::CertificateRequired => "none was presented",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked => {
            "it is not one that may be used here; see the other side's log"
        }
        other => return format!("the other side ended the TLS handshake: {other:?}"),
    };
    format!("the other side refuses this side's certificate: {why}")
}

//! An error with its causes in one line. What a transport or a library says alone is hardly ever
//! enough; what a message of natmig's own says already is not said again.

use std::error::Error;

/// The error and its causes.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    append(error.to_string(), error.source())
}

/// A message and the causes of what it says.
pub(crate) fn append(mut message: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("/a: {source}; look there")]
        Named { source: io::Error },
        #[error("failed")]
        Bare { source: io::Error },
    }

    #[test]
    fn every_cause_is_said_once() {
        let source = || io::Error::from(io::ErrorKind::NotFound);
        let named = anyhow::Error::new(Failed::Named { source: source() }).context("cannot start");
        let bare = Failed::Bare { source: source() };
        assert_eq!(
            with_causes(named.as_ref()),
            "cannot start: /a: entity not found; look there"
        );
        assert_eq!(with_causes(&bare), "failed: entity not found");
    }
}

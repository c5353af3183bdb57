//! The controller's configuration file.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Where the controller listens for commands of this machine, and where they look for it.
pub const DEFAULT_SOCKET: &str = "/run/natmig/controller.sock";

/// Where the controller keeps its state.
pub const DEFAULT_STORE: &str = "/var/lib/natmig/controller.redb";

/// What `natmig controller --config FILE` reads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// TCP address for agents and remote commands; without it only the Unix socket is served.
    pub listen: Option<SocketAddr>,
    /// Unix socket for commands of this machine.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// File of the embedded database.
    #[serde(default = "default_store")]
    pub store: PathBuf,
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

fn default_store() -> PathBuf {
    DEFAULT_STORE.into()
}

/// A configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: {source}; name the controller's configuration with --config FILE")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error(
        "{path}:{line}:{column}: {message}\nkeys are listen (\"ADDRESS:PORT\"), socket and store (paths)"
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
}

impl ControllerConfig {
    /// Reads and validates a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            ConfigError::Parse {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                message: error.message().to_owned(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ControllerConfig, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.toml");
        fs::write(&path, text).unwrap();
        ControllerConfig::read(&path)
    }

    #[test]
    fn empty_file_means_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.listen, None);
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.store, Path::new(DEFAULT_STORE));
    }

    #[test]
    fn malformed_files_name_line_and_remedy() {
        for (text, place, message) in [
            (
                "socket = \"/s\"\nlisten = \"here\"",
                ":2:10: ",
                "socket address",
            ),
            ("port = 7400", ":1:1: ", "unknown field `port`"),
            ("store = 3", ":1:9: ", "string"),
            ("listen = [", ":1:", ""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(place), "{error}");
            assert!(error.contains(message), "{error}");
            assert!(error.contains("keys are"), "{error}");
        }
        let error = ControllerConfig::read(Path::new("/nowhere.toml")).unwrap_err();
        assert!(error.to_string().contains("--config"));
    }
}

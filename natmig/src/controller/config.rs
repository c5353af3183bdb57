//! The controller's configuration file.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::group::SocketRole;
use crate::{store::EtcdConfig, tls::CredentialFiles};

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
    /// Certificates; without them nothing but the Unix socket is served.
    pub tls: Option<CredentialFiles>,
    /// Serve `listen` without TLS: whoever reaches it commands the fabric.
    #[serde(default)]
    pub insecure: bool,
    /// Unix socket for commands of this machine.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Group of users who may use the Unix socket besides root and the controller's own user.
    pub socket_group: Option<String>,
    /// What those users may do.
    #[serde(default)]
    pub socket_role: SocketRole,
    /// File of the embedded database, for one controller.
    pub store: Option<PathBuf>,
    /// Where state is kept instead, for several controllers.
    pub etcd: Option<EtcdConfig>,
    /// What this controller is called among several; the host's name by default.
    pub name: Option<String>,
    /// URL at which agents and commands reach this controller, which the others tell them while it
    /// leads; by default that of `listen`.
    pub advertise: Option<String>,
    /// Where metrics are served; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
}

/// Where a controller keeps its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// In a file.
    File(PathBuf),
    /// On etcd.
    Etcd(EtcdConfig),
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            listen: None,
            tls: None,
            insecure: false,
            socket: default_socket(),
            socket_group: None,
            socket_role: SocketRole::default(),
            store: None,
            etcd: None,
            name: None,
            advertise: None,
            metrics: None,
        }
    }
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
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
    /// An address would be served without TLS.
    #[error(
        "{path}: listen = \"{listen}\" needs [tls] with ca, certificate and key; see `natmig pki \
         --help`. Without TLS whoever reaches that address commands the fabric; insecure = true \
         allows it all the same"
    )]
    Insecure {
        /// The file.
        path: PathBuf,
        /// The address.
        listen: SocketAddr,
    },
    /// TLS and its opposite.
    #[error("{path}: has both [tls] and insecure = true; remove one of them")]
    Contradiction {
        /// The file.
        path: PathBuf,
    },
    /// It is not what it should be.
    #[error(
        "{path}:{line}:{column}: {message}\nkeys are listen and metrics (\"ADDRESS:PORT\"), socket and store \
         (paths), socket_group (a name), socket_role (\"operator\" or \"read-only\"), insecure (true or false), \
         name, advertise (\"https://HOST:PORT\"), and the tables [tls] with ca, certificate and key, and \
         [etcd] with endpoints, prefix, lease, ca, certificate, key, user and password_file"
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
    /// Its parts contradict each other, or something is missing.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
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
        let config: Self = toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            ConfigError::Parse {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        match (config.listen, &config.tls, config.insecure) {
            (Some(listen), None, false) => {
                return Err(ConfigError::Insecure {
                    path: path.to_owned(),
                    listen,
                });
            }
            (_, Some(_), true) => {
                return Err(ConfigError::Contradiction {
                    path: path.to_owned(),
                });
            }
            _ => {}
        }
        config.check().map_err(|message| ConfigError::Invalid {
            path: path.to_owned(),
            message,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if let Some(metrics) = self.metrics.filter(|_| self.metrics == self.listen) {
            return Err(format!(
                "listen and metrics are both \"{metrics}\"; give metrics a port of its own"
            ));
        }
        let Some(etcd) = &self.etcd else {
            return Ok(());
        };
        if self.store.is_some() {
            return Err(
                "store names a file and [etcd] is given too; keep one of them (`natmig store export` \
                 and `import` move what is stored)"
                    .to_owned(),
            );
        }
        etcd.check().map_err(|error| error.to_string())?;
        self.advertised().map(|_| ())
    }

    /// Where the state is.
    pub fn place(&self) -> StorePlace {
        match (&self.etcd, &self.store) {
            (Some(etcd), _) => StorePlace::Etcd(etcd.clone()),
            (None, Some(path)) => StorePlace::File(path.clone()),
            (None, None) => StorePlace::File(DEFAULT_STORE.into()),
        }
    }

    /// What this controller is called.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            fs::read_to_string("/proc/sys/kernel/hostname")
                .map_or_else(|_| "controller".to_owned(), |name| name.trim().to_owned())
        })
    }

    /// URL at which this controller is reached while it leads.
    pub fn advertised(&self) -> Result<String, String> {
        match (&self.advertise, self.listen) {
            (Some(url), _) if url.starts_with("http://") || url.starts_with("https://") => {
                Ok(url.clone())
            }
            (Some(url), _) => Err(format!(
                "advertise = \"{url}\" is no URL; write \"https://HOST:PORT\""
            )),
            (None, Some(listen)) if !listen.ip().is_unspecified() && listen.port() != 0 => {
                let scheme = if self.tls.is_some() { "https" } else { "http" };
                Ok(format!("{scheme}://{listen}"))
            }
            (None, _) => Err(
                "with [etcd], the other controllers tell agents where this one is: set advertise = \
                 \"https://HOST:PORT\", or listen to an address of this host"
                    .to_owned(),
            ),
        }
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
        assert_eq!(config.metrics, None);
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.place(), StorePlace::File(DEFAULT_STORE.into()));
        assert_eq!(config, ControllerConfig::default());
    }

    #[test]
    fn etcd_needs_an_address_and_excludes_a_file() {
        const ETCD: &str =
            "[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\nprefix = \"/natmig/f1\"\n";
        let config = parse(&format!(
            "listen = \"127.0.0.1:7400\"\ninsecure = true\n{ETCD}lease = \"5s\""
        ))
        .unwrap();
        assert_eq!(config.advertised().unwrap(), "http://127.0.0.1:7400");
        let StorePlace::Etcd(etcd) = config.place() else {
            panic!("{config:?}");
        };
        assert_eq!(etcd.lease, std::time::Duration::from_secs(5));
        for (text, problem) in [
            (ETCD.to_owned(), "advertise"),
            (
                format!("listen = \"0.0.0.0:7400\"\ninsecure = true\n{ETCD}"),
                "advertise",
            ),
            (format!("advertise = \"here\"\n{ETCD}"), "no URL"),
            (format!("store = \"/s\"\n{ETCD}"), "keep one of them"),
            (format!("{ETCD}lease = \"1s\""), "whole seconds from 2"),
            (format!("{ETCD}lease = \"300ms\""), "whole seconds"),
            (format!("{ETCD}user = \"me\""), "password_file"),
            (format!("{ETCD}key = \"/k\""), "go together"),
            (format!("{ETCD}ca = \"/ca.pem\""), "not encrypted"),
            (ETCD.replace("http:", "https:"), "name the authority"),
            (ETCD.replace("http://", ""), "no endpoint"),
            (ETCD.replace("/natmig/f1", "natmig"), "no prefix"),
            (
                ETCD.replace("[\"http://127.0.0.1:2379\"]", "[]"),
                "no endpoint",
            ),
            (ETCD.replace("prefix", "prefax"), "prefax"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(error.contains("controller.toml"), "{error}");
        }
    }

    #[test]
    fn plain_tcp_needs_to_be_asked_for() {
        let listen = "listen = \"127.0.0.1:7400\"\n";
        let error = parse(listen).unwrap_err().to_string();
        assert!(error.contains("insecure = true"), "{error}");
        assert!(parse(&format!("{listen}insecure = true")).unwrap().insecure);
        let tls = "[tls]\nca = \"a\"\ncertificate = \"b\"\nkey = \"c\"";
        let config = parse(&format!("{listen}{tls}")).unwrap();
        assert_eq!(config.advertised().unwrap(), "https://127.0.0.1:7400");
        assert_eq!(config.tls.unwrap().key, Path::new("c"));
        let error = parse(&format!("{listen}insecure = true\n{tls}")).unwrap_err();
        assert!(error.to_string().contains("both"), "{error}");
        let config = parse("socket_group = \"natmig\"\nsocket_role = \"operator\"").unwrap();
        assert_eq!(config.socket_role, SocketRole::Operator);
        assert_eq!(parse("").unwrap().socket_role, SocketRole::ReadOnly);
    }

    #[test]
    fn metrics_are_served_where_the_file_says() {
        let config = parse("metrics = \"127.0.0.1:9442\"").unwrap();
        assert_eq!(config.metrics, Some(([127, 0, 0, 1], 9442).into()));
        let same = "listen = \"127.0.0.1:7400\"\ninsecure = true\nmetrics = \"127.0.0.1:7400\"";
        let error = parse(same).unwrap_err().to_string();
        assert!(error.contains("a port of its own"), "{error}");
    }

    #[test]
    fn malformed_files_name_line_and_remedy() {
        for (text, place, message) in [
            (
                "socket = \"/s\"\nlisten = \"here\"",
                ":2:10: ",
                "socket address",
            ),
            ("metrics = \"9442\"", ":1:11: ", "socket address"),
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

//! Sockets that the controller listens on.
//!
//! The Unix socket is private to the controller's user (and its group, if it has one) from the
//! moment it appears under its name: it is bound beside it, restricted, and moved into place.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process,
};

use super::{ControllerConfig, group::SocketGroup};
use crate::metrics::MetricsError;

/// Sockets that are bound and not yet served. Binding may need capabilities that serving does not.
#[must_use]
#[derive(Debug)]
pub struct Listeners {
    pub(super) unix: UnixListener,
    pub(super) socket: SocketFile,
    pub(super) group: Option<SocketGroup>,
    pub(super) tcp: Option<TcpListener>,
    pub(super) metrics: Option<TcpListener>,
}

impl Listeners {
    /// Binds what the configuration names.
    pub fn bind(config: &ControllerConfig) -> Result<Self, ListenError> {
        let group =
            match &config.socket_group {
                None => None,
                Some(name) => Some(SocketGroup::find(name, config.socket_role).map_err(
                    |source| ListenError::Group {
                        name: name.clone(),
                        source,
                    },
                )?),
            };
        let (unix, socket) = bind(&config.socket, group.as_ref())?;
        let tcp = match config.listen {
            None => None,
            Some(address) => {
                let bound = TcpListener::bind(address).and_then(|tcp| {
                    tcp.set_nonblocking(true)?;
                    Ok(tcp)
                });
                Some(bound.map_err(|source| ListenError::Tcp { address, source })?)
            }
        };
        let metrics = config.metrics.map(|address| {
            TcpListener::bind(address).map_err(|source| MetricsError { address, source })
        });
        Ok(Self {
            unix,
            socket,
            group,
            tcp,
            metrics: metrics.transpose()?,
        })
    }
}

/// A Unix socket that this process listens on; its name vanishes with it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
}

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers on it.
    #[error(
        "{0}: another controller listens on this socket; stop it first, or choose another socket"
    )]
    InUse(PathBuf),
    /// Something that is no socket has its name.
    #[error("{0}: exists and is no socket; move it away, or choose another socket")]
    NotASocket(PathBuf),
    /// The socket's group cannot be looked up.
    #[error("socket_group = \"{name}\": {source}; make it with `groupadd`, or correct the name")]
    Group {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The TCP address cannot be had.
    #[error("cannot listen on {address}: {source}; see `listen` in the configuration")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The address for metrics cannot be had.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The system refuses.
    #[error("{path}: {source}")]
    System {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Binds the Unix socket `path`, mode 0600, or 0660 if it has a group. One that a dead controller
/// left is replaced.
fn bind(
    path: &Path,
    group: Option<&SocketGroup>,
) -> Result<(UnixListener, SocketFile), ListenError> {
    let system = |source| ListenError::System {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(system)?;
    }
    match UnixStream::connect(path) {
        Ok(_) => return Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt as _;
            let kind = fs::symlink_metadata(path).map_err(system)?.file_type();
            if !kind.is_socket() {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
        }
        Err(error) => return Err(system(error)),
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", process::id()));
    let aside = PathBuf::from(aside);
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(system(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&aside).map_err(system)?;
    listener.set_nonblocking(true).map_err(system)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).map_err(system)?;
    if let Some(group) = group {
        nix::unistd::chown(&aside, None, Some(group.gid()))
            .map_err(io::Error::from)
            .and_then(|()| fs::set_permissions(&aside, fs::Permissions::from_mode(0o660)))
            .map_err(system)?;
    }
    fs::rename(&aside, path).map_err(system)?;
    Ok((
        listener,
        SocketFile {
            path: path.to_owned(),
        },
    ))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket is gone already");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_socket_is_replaced_and_a_live_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below").join("controller.sock");
        let (listener, file) = bind(&path, None).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(bind(&path, None), Err(ListenError::InUse(_))));
        drop(listener);
        std::mem::forget(file);
        assert!(path.exists());
        let (_listener, file) = bind(&path, None).unwrap();
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        assert!(matches!(bind(&path, None), Err(ListenError::NotASocket(_))));
    }
}

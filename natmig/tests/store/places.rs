//! Where stores are: each place can be opened again and again, by one leader after the other.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use natmig::store::{Candidate, EtcdConfig, EtcdError, EtcdStore, FileStore, Lease, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::server::Etcd;

/// A place for one store.
pub trait Place {
    /// Opens it; the store that was opened before must be gone.
    fn open(&mut self) -> Box<dyn Store>;
}

/// A file.
pub struct FilePlace {
    directory: TempDir,
}

impl FilePlace {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.redb")
    }
}

impl Place for FilePlace {
    fn open(&mut self) -> Box<dyn Store> {
        Box::new(FileStore::open(&self.path()).unwrap())
    }
}

/// A running etcd, and a runtime to talk to it.
pub struct Server {
    pub etcd: Etcd,
    pub runtime: Runtime,
    prefixes: AtomicU32,
}

impl Server {
    /// `None` where there is no etcd.
    pub fn start(members: usize) -> Option<Self> {
        Some(Self::of(Etcd::start(members)?))
    }

    pub fn of(etcd: Etcd) -> Self {
        Self {
            etcd,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            prefixes: AtomicU32::new(0),
        }
    }

    /// The configuration of a prefix that nobody else uses.
    pub fn config(&self) -> EtcdConfig {
        let number = self.prefixes.fetch_add(1, Ordering::Relaxed);
        EtcdConfig {
            endpoints: self.etcd.endpoints(),
            prefix: format!("/natmig/test{number}"),
            lease: Duration::from_secs(2),
            ca: None,
            certificate: None,
            key: None,
            user: None,
            password_file: None,
        }
    }

    /// A place of its own.
    pub fn place(&self) -> EtcdPlace<'_> {
        EtcdPlace {
            server: self,
            config: self.config(),
            lease: None,
        }
    }

    /// Waits for leadership.
    pub fn lead(&self, config: &EtcdConfig) -> EtcdStore {
        self.runtime.block_on(async {
            let candidate = Candidate::new(config, "test", "http://127.0.0.1:7400").unwrap();
            tokio::time::timeout(Duration::from_mins(1), candidate.lead(None))
                .await
                .expect("in time")
                .unwrap()
        })
    }

    /// Leads, or says who does.
    pub fn lead_unless_led(&self, config: &EtcdConfig) -> Result<EtcdStore, EtcdError> {
        self.runtime.block_on(async {
            let candidate = Candidate::new(config, "test", "http://127.0.0.1:7400")?;
            candidate.lead_unless_led().await
        })
    }

    pub fn resign(&self, lease: &Lease) {
        self.runtime.block_on(lease.revoke());
    }
}

/// A prefix on etcd.
pub struct EtcdPlace<'a> {
    server: &'a Server,
    pub config: EtcdConfig,
    lease: Option<Lease>,
}

impl Place for EtcdPlace<'_> {
    fn open(&mut self) -> Box<dyn Store> {
        if let Some(lease) = self.lease.take() {
            self.server.resign(&lease);
        }
        let store = self.server.lead(&self.config);
        self.lease = Some(store.lease());
        Box::new(store)
    }
}

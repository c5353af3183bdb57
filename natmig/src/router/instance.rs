//! Names and places of an instance: pins, lock, port, guard; and the lock of its single writer.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::RouterError;
use crate::config::DEFAULT_INSTANCE;

/// Where the BPF file system is.
const BPFFS: &str = "/sys/fs/bpf";
/// Where lock and state files are.
const RUN: &str = "/run/natmig";

/// An instance of natmig on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) name: String,
}

impl Instance {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// The directory of all pins.
    pub(super) fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join("natmig").join(&self.name)
    }

    /// The directory of the maps' pins.
    pub(super) fn maps(&self) -> PathBuf {
        self.pins().join("maps")
    }

    /// The directory of the links' pins.
    pub(super) fn links(&self) -> PathBuf {
        self.pins().join("links")
    }

    /// The pin of an interface's link. By index: the file system refuses dots, which names of
    /// VLAN interfaces have.
    pub(super) fn link(&self, ifindex: u32) -> PathBuf {
        self.links().join(format!("interface-{ifindex}"))
    }

    /// The directory of the programs' pins.
    pub(super) fn programs(&self) -> PathBuf {
        self.pins().join("programs")
    }

    /// What natmig was loaded with, for the commands that read and write its tables.
    pub(super) fn state_file(&self) -> PathBuf {
        Path::new(RUN).join(format!("{}.json", self.name))
    }

    fn lock_file(&self) -> PathBuf {
        Path::new(RUN).join(format!("{}.lock", self.name))
    }

    /// Locked by the process that traces the instance.
    pub(super) fn trace_lock_file(&self) -> PathBuf {
        Path::new(RUN).join(format!("{}.trace.lock", self.name))
    }

    /// The two ends of the router's port: the kernel's and natmig's.
    pub(super) fn port(&self) -> (String, String) {
        if self.name == DEFAULT_INSTANCE {
            return ("natmig0".to_owned(), "natmig1".to_owned());
        }
        // Interface names have at most 15 characters.
        let suffix = if self.name.len() <= 11 {
            self.name.clone()
        } else {
            use sha2::{Digest as _, Sha256};
            let hash = Sha256::digest(self.name.as_bytes());
            let mut first = [0; 8];
            first[3..].copy_from_slice(&hash[..5]);
            format!("{:010x}", u64::from_be_bytes(first))
        };
        (format!("nm0-{suffix}"), format!("nm1-{suffix}"))
    }

    /// The name of the guard's table.
    pub(super) fn guard_table(&self) -> String {
        if self.name == DEFAULT_INSTANCE {
            "natmig".to_owned()
        } else {
            format!("natmig_{}", self.name)
        }
    }

    /// Fails unless the BPF file system is mounted.
    pub(super) fn check_bpffs() -> Result<(), RouterError> {
        let kind = nix::sys::statfs::statfs(BPFFS).map_err(|error| {
            RouterError::system(format!("look at {BPFFS}"))(io::Error::from(error))
        })?;
        if kind.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
            Ok(())
        } else {
            Err(RouterError::NoBpffs)
        }
    }

    /// Becomes the instance's single writer, until the lock is dropped.
    pub(super) fn lock(&self) -> Result<Lock, RouterError> {
        loop {
            let lock = self.lock_once()?;
            // Who unloads removes the file that it has locked: a lock on it locks nothing.
            if lock.is_of(&self.lock_file()) {
                return Ok(lock);
            }
        }
    }

    fn lock_once(&self) -> Result<Lock, RouterError> {
        let path = self.lock_file();
        let doing = format!("open {}", path.display());
        fs::create_dir_all(RUN).map_err(RouterError::system(format!("create {RUN}")))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(RouterError::system(&*doing))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)
                    .map_err(RouterError::system(&*doing))?;
                return Err(RouterError::Locked {
                    instance: self.name.clone(),
                    holder: holder.trim().to_owned(),
                    path,
                });
            }
            Err((_, error)) => {
                return Err(RouterError::system(format!("lock {}", path.display()))(
                    error.into(),
                ));
            }
        };
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(RouterError::system(&*doing))?;
        Ok(Lock { file })
    }
}

/// Held by the single writer of an instance.
#[derive(Debug)]
pub(super) struct Lock {
    file: Flock<File>,
}

impl Lock {
    fn is_of(&self, path: &Path) -> bool {
        let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let locked = self.file.metadata().map(inode);
        matches!((locked, fs::metadata(path).map(inode)), (Ok(one), Ok(other)) if one == other)
    }

    /// Removes the lock's file, then ends the lock.
    pub(super) fn remove(self, instance: &Instance) -> io::Result<()> {
        let removed = fs::remove_file(instance.lock_file());
        drop(self);
        removed
    }
}

//! Writes certificates and keys: whole or not at all, keys for their owner only from the first byte.

use std::{
    fs::{self, File, Permissions},
    io::{ErrorKind, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::PkiError;

/// What becomes of a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and nothing is written.
    Keep,
    /// It is replaced.
    Replace,
}

/// Writes a key: mode 0600.
pub fn write_private(path: &Path, text: &str, existing: Existing) -> Result<(), PkiError> {
    write(path, text, 0o600, existing)
}

/// Writes a certificate: mode 0644.
pub fn write_public(path: &Path, text: &str, existing: Existing) -> Result<(), PkiError> {
    write(path, text, 0o644, existing)
}

fn write(path: &Path, text: &str, mode: u32, existing: Existing) -> Result<(), PkiError> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).map_err(PkiError::system(directory))?;
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(PkiError::system(path))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.as_file().set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.as_file().sync_all())
        .map_err(PkiError::system(path))?;
    let persisted = match existing {
        Existing::Keep => file.persist_noclobber(path),
        Existing::Replace => file.persist(path),
    };
    persisted.map_err(|error| {
        if error.error.kind() == ErrorKind::AlreadyExists {
            PkiError::Exists(path.to_owned())
        } else {
            PkiError::system(path)(error.error)
        }
    })?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(PkiError::system(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_private_and_is_not_overwritten_by_accident() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below").join("a.key");
        write_private(&path, "first", Existing::Keep).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = write_private(&path, "second", Existing::Keep).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        write_private(&path, "third", Existing::Replace).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "third");
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}

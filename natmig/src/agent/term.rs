//! The highest term that this router has seen, on disk: unlike the pinned tables it survives a
//! reboot, so that a controller that lost its leadership meanwhile stays fenced.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use super::execute::TermKeeper;

/// The file that keeps the term.
#[derive(Debug)]
pub(super) struct TermFile {
    path: PathBuf,
    term: u64,
}

/// The term cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum TermError {
    /// The system refuses.
    #[error(
        "{path}: {source}; the agent keeps the controller's term there: make the directory writable, or choose one with --state"
    )]
    System {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{0}: holds no term; if no other controller can be running, remove the file")]
    Corrupt(PathBuf),
}

impl TermFile {
    pub(super) fn open(path: &Path) -> Result<Self, TermError> {
        let term = match fs::read_to_string(path) {
            Ok(text) => text
                .trim()
                .parse()
                .map_err(|_| TermError::Corrupt(path.to_owned()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(source) => {
                return Err(TermError::System {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            term,
        })
    }
}

impl TermKeeper for TermFile {
    fn term(&self) -> u64 {
        self.term
    }

    fn raise(&mut self, term: u64) -> Result<(), TermError> {
        if term <= self.term {
            return Ok(());
        }
        write(&self.path, term).map_err(|source| TermError::System {
            path: self.path.clone(),
            source,
        })?;
        self.term = term;
        Ok(())
    }
}

fn write(path: &Path, term: u64) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let aside = path.with_extension("term.new");
    let mut file = File::create(&aside)?;
    writeln!(file, "{term}")?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn term_survives_and_never_falls() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state").join("edge1.term");
        let mut file = TermFile::open(&path).unwrap();
        assert_eq!(file.term(), 0);
        file.raise(7).unwrap();
        file.raise(3).unwrap();
        assert_eq!(TermFile::open(&path).unwrap().term(), 7);
    }

    #[test]
    fn garbage_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("edge1.term");
        fs::write(&path, "seven").unwrap();
        let error = TermFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("edge1.term") && error.contains("remove"));
    }
}

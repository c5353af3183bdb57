//! Debian's kernel packages, unpacked below `target`; nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::Version;
use crate::{
    command::{Privileged, check, output, step},
    packages,
};

const PREFIX: &str = "linux-image-";
/// Debian's kernel for virtual machines: fewer drivers, everything else as on real machines.
const FLAVOR: &str = "-cloud-amd64";

/// An unpacked kernel.
pub(super) struct Kernel {
    /// What `uname -r` says in it.
    pub(super) release: String,
    /// Where its package's files are.
    pub(super) root: PathBuf,
}

impl Kernel {
    /// The compressed kernel.
    pub(super) fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The file of a module, by its path without an ending; none if it is built in.
    pub(super) fn module(&self, path: &str) -> Option<PathBuf> {
        let modules = self.root.join("lib/modules").join(&self.release);
        ["ko", "ko.xz"]
            .map(|ending| modules.join(format!("kernel/{path}.{ending}")))
            .into_iter()
            .find(|file| file.is_file())
    }
}

/// The newest kernel of the first of these versions that the configured archives have, downloaded if
/// it is not here.
pub(super) fn unpack(versions: &[Version], directory: &Path) -> Result<Kernel> {
    let known = || versions.iter().find_map(newest);
    let release = if let Some(release) = known() {
        release
    } else {
        step("refreshing Debian's package lists");
        packages::update(&Privileged::find()?)?;
        known().with_context(|| {
            let names: Vec<_> = versions.iter().map(|version| version.0.as_str()).collect();
            format!(
                "the configured archives have no package {PREFIX}{}…{FLAVOR}; add one that has \
                 (Debian's security or backports archive) to /etc/apt/sources.list.d",
                names.join(" or ")
            )
        })?
    };
    let root = directory.join(&release);
    if !root.is_dir() {
        // The directory gets its name when it is complete.
        let partial = directory.join(format!("{release}.partial"));
        fs::remove_dir_all(&partial).ok();
        fs::create_dir_all(&partial)?;
        download(&release, &partial)?;
        fs::rename(&partial, &root)?;
    }
    Ok(Kernel { release, root })
}

/// The newest release of this version that apt knows.
fn newest(version: &Version) -> Option<String> {
    let list = output(Command::new("apt-cache").args([
        "search",
        "--names-only",
        &format!("^{PREFIX}{}.*{FLAVOR}$", version.0.replace('.', "\\.")),
    ]))?;
    newest_of(version, &list)
}

/// The newest release of this version in what `apt-cache search` printed.
fn newest_of(version: &Version, list: &str) -> Option<String> {
    list.lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix(PREFIX))
        .filter(|release| version.includes(release))
        // A package without a number of its own only depends on the newest one.
        .filter(|release| release.strip_suffix(FLAVOR) != Some(&version.0))
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

/// The numbers in a release, by which it is older or newer than another one.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Downloads a kernel's package and unpacks it into `directory`.
fn download(release: &str, directory: &Path) -> Result<()> {
    step(&format!("downloading Debian's package {PREFIX}{release}"));
    check(
        Command::new("apt-get")
            .args(["download", "--quiet", "--quiet"])
            .args(["--option", "Acquire::Retries=3"])
            // Else apt complains that its own user cannot write into this directory.
            .args(["--option", "APT::Sandbox::User=root"])
            .arg(format!("{PREFIX}{release}"))
            .current_dir(directory)
            .stdout(std::io::stderr()),
    )?;
    let package = fs::read_dir(directory)?
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .context("apt-get downloaded no package")?;
    check(
        Command::new("dpkg-deb")
            .arg("--extract")
            .args([&package, directory]),
    )?;
    fs::remove_file(package)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
linux-image-6.1-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.12-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.99+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
";

    fn newest(version: &str) -> Option<String> {
        newest_of(&version.parse().expect("a version"), LIST)
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(newest("6.1").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(
            newest("6.12").as_deref(),
            Some("6.12.117+deb12-cloud-amd64")
        );
    }

    #[test]
    fn a_version_is_never_taken_for_a_longer_one() {
        assert_eq!(newest("6.11"), None);
        let exact = newest("6.12.99");
        assert_eq!(exact.as_deref(), Some("6.12.99+deb12-cloud-amd64"));
    }
}

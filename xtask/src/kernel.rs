//! Debian's kernels in an emulator: the packet fixtures on another kernel, and what the lab's real
//! guests boot.
//!
//! What runs there is what runs here, the same binaries and the same object. A program that did
//! not say how it ended has failed, so a kernel that stops halfway is a failure as well.

mod fixtures;
mod guest;
mod initramfs;
mod machine;
mod package;

pub(crate) use guest::{Boot, guest};

use std::{path::Path, str::FromStr};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    command::{captured, cargo, step},
    object,
    packages::{self, Need},
};

/// Programs that the emulated machine is made of and with.
pub(crate) const NEEDS: &[Need] = &[
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Need {
        program: "strip",
        package: "binutils",
    },
    Need {
        program: "busybox",
        package: "busybox-static",
    },
    Need {
        program: "cpio",
        package: "cpio",
    },
    Need {
        program: "ip",
        package: "iproute2",
    },
];

/// Where kernels are unpacked.
const DIRECTORY: &str = "target/kernels";

/// Test targets of the fixtures that involve the kernel and depend on no timing.
const TESTS: &[&str] = &["packets", "counting", "malformed", "port", "random"];

/// The package of the fixtures, and of its program that prints what the verifier made of ours.
pub(crate) const FIXTURES: &str = "natmig-fixtures";

/// A kernel's version as far as it was asked for, such as `6.1`.
#[derive(Clone, Debug)]
pub(crate) struct Version(String);

impl Version {
    /// Whether this release, such as `6.1.0-56-cloud-amd64`, is one of this version.
    fn includes(&self, release: &str) -> bool {
        release
            .strip_prefix(&self.0)
            .is_some_and(|rest| rest.starts_with(['.', '-', '+']))
    }
}

impl FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split('.').all(|part| part.parse::<u32>().is_ok());
        if numbers && text.contains('.') {
            Ok(Self(text.to_owned()))
        } else {
            Err("a kernel version is numbers with dots, such as 6.1")
        }
    }
}

/// Runs the fixtures on Debian's kernel of each of these versions.
pub(crate) fn test(versions: &[Version], object: &Path) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "other kernels are tested on x86-64 machines only"
    );
    packages::ensure(NEEDS)?;
    let mut programs = vec![fixtures::Program {
        name: FIXTURES,
        path: object::build_binary(object, FIXTURES)?,
        arguments: "--json",
    }];
    programs.extend(build_tests()?);
    let directory = std::env::current_dir()?.join(DIRECTORY);

    let mut failed = Vec::new();
    for version in versions {
        let kernel = package::unpack(std::slice::from_ref(version), &directory)?;
        step(&format!("packet fixtures on Linux {}", kernel.release));
        let image = fixtures::image(&kernel, &programs, object)?;
        let ended = machine::run(&kernel, &image)?;
        let before = failed.len();
        for program in &programs {
            let how = match ended.iter().find(|(name, _)| name == program.name) {
                Some((_, 0)) => continue,
                Some((_, status)) => format!("failed with exit status {status}"),
                None => "did not end".to_owned(),
            };
            failed.push(format!("Linux {}: {} {how}", kernel.release, program.name));
        }
        if failed.len() == before {
            step(&format!(
                "Linux {}: the program loads; {} passed",
                kernel.release,
                TESTS.join(", ")
            ));
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// Builds the tests without running them.
fn build_tests() -> Result<Vec<fixtures::Program>> {
    step("building the packet fixtures");
    let mut command = cargo();
    command.args([
        "test",
        "--quiet",
        "--locked",
        "--release",
        "--no-run",
        "--message-format=json",
    ]);
    command.args(["--package", FIXTURES]);
    for test in TESTS {
        command.args(["--test", test]);
    }
    let messages = captured(&mut command)?;
    let built: Vec<serde_json::Value> = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    TESTS
        .iter()
        .map(|&name| {
            let path = built
                .iter()
                .filter(|message| message["target"]["name"] == name)
                .find_map(|message| message["executable"].as_str())
                .with_context(|| format!("cargo did not say where the test `{name}` is"))?;
            Ok(fixtures::Program {
                name,
                path: path.into(),
                arguments: "",
            })
        })
        .collect()
}

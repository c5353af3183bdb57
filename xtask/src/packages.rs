//! Programs and libraries from Debian's packages: installed where that is possible, else named.

use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{Privileged, check, find, step};

/// Something that a Debian package brings.
pub(crate) struct Need {
    /// The program that shows that it is there.
    pub(crate) program: &'static str,
    /// The package that brings it.
    pub(crate) package: &'static str,
}

/// What running natmig needs.
pub(crate) const RUN: &[Need] = &[
    Need {
        program: "ip",
        package: "iproute2",
    },
    Need {
        program: "nft",
        package: "nftables",
    },
];

/// What the lab, the demo and the tests need besides.
pub(crate) const LAB: &[Need] = &[
    Need {
        program: "ethtool",
        package: "ethtool",
    },
    Need {
        program: "ping",
        package: "iputils-ping",
    },
    Need {
        program: "traceroute",
        package: "traceroute",
    },
    Need {
        program: "curl",
        package: "curl",
    },
    Need {
        program: "etcd",
        package: "etcd-server",
    },
];

/// Installs what is missing of `needs`.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<_> = needs
        .iter()
        .filter(|need| find(need.program).is_none())
        .map(|need| need.package)
        .collect();
    install(&missing)
}

/// Installs packages; without `apt-get` or root it says which are missing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("missing: {list} (Debian's names). Install them and run this again");
    }
    let Ok(root) = Privileged::find() else {
        bail!("missing: {list}. Run as root: apt-get install --no-install-recommends {list}");
    };
    step(&format!("installing Debian packages: {list}"));
    let apt = || -> Command {
        root.command(
            "apt-get".as_ref(),
            &[("DEBIAN_FRONTEND", "noninteractive".as_ref())],
        )
    };
    let install = || {
        check(
            apt()
                .args(["install", "--yes", "--quiet", "--no-install-recommends"])
                .args(packages)
                .stdout(std::io::stderr()),
        )
    };
    // A package list may be older than the archive, or missing on a fresh machine.
    if install().is_err() {
        update(&root)?;
        install()?;
    }
    Ok(())
}

/// Fetches the archives' current package lists.
pub(crate) fn update(root: &Privileged) -> Result<()> {
    check(
        root.command("apt-get".as_ref(), &[])
            .args(["update", "--quiet"])
            .stdout(std::io::stderr()),
    )
}

//! The lab's own certificates, made as an operator makes them: natmig speaks TLS in every lab.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// An authority in the lab's run directory.
#[derive(Debug)]
pub struct Pki {
    program: PathBuf,
    directory: PathBuf,
}

impl Pki {
    /// Makes an authority below `run`.
    pub fn create(program: &Path, run: &Path) -> Result<Self> {
        let pki = Self {
            program: program.to_owned(),
            directory: run.join("pki"),
        };
        pki.run(&["init"])?;
        Ok(pki)
    }

    /// Where the certificates are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Issues a controller's certificate; returns the configuration's lines that name it.
    pub fn controller(&self, name: &str, address: IpAddr) -> Result<String> {
        self.issue("controller", name, &["--address", &address.to_string()])
    }

    /// Issues a router's certificate; returns the configuration's lines that name it.
    pub fn agent(&self, router: &str) -> Result<String> {
        self.issue("agent", router, &[])
    }

    fn issue(&self, role: &str, name: &str, more: &[&str]) -> Result<String> {
        let mut arguments = vec!["issue", role, name];
        arguments.extend(more);
        self.run(&arguments)?;
        let file = |name: String| self.directory.join(name).display().to_string();
        Ok(format!(
            "ca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            file("ca.pem".to_owned()),
            file(format!("{role}-{name}.pem")),
            file(format!("{role}-{name}.key")),
        ))
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.program)
            .arg("pki")
            .args(arguments)
            .arg("--directory")
            .arg(&self.directory)
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        ensure!(
            output.status.success(),
            "natmig pki {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

//! An emulated machine's file system: programs of this machine with their libraries, modules of its
//! kernel, and an init.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::package::Kernel;
use crate::command::{captured, check, find, output};

/// A file system in the making: what init does, and what it needs for that.
pub(super) struct Image<'a> {
    kernel: &'a Kernel,
    root: PathBuf,
    init: Vec<String>,
}

impl<'a> Image<'a> {
    /// An image with busybox, whose init begins with these lines; `name` tells it from the kernel's
    /// others.
    pub(super) fn new(kernel: &'a Kernel, name: &str, init: &str) -> Result<Self> {
        let root = kernel.root.join(name);
        fs::remove_dir_all(&root).ok();
        for directory in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let mut image = Self {
            kernel,
            root,
            init: vec![init.to_owned()],
        };
        image.tool("busybox")?;
        Ok(image)
    }

    /// Lets init load a kernel module; nothing to do if it is built in.
    pub(super) fn module(&mut self, module: &str) -> Result<()> {
        let Some(file) = self.kernel.module(module) else {
            return Ok(());
        };
        let name = file.file_name().context("a module without a name")?;
        fs::copy(&file, self.root.join("modules").join(name))?;
        let name = name.to_string_lossy();
        if let Some(plain) = name.strip_suffix(".xz") {
            self.run(format!("unxz /modules/{name}"));
            self.run(format!("insmod /modules/{plain}"));
        } else {
            self.run(format!("insmod /modules/{name}"));
        }
        Ok(())
    }

    /// Takes a program of this machine along.
    pub(super) fn tool(&mut self, name: &str) -> Result<()> {
        let path = find(name).with_context(|| format!("{name} is not to be found"))?;
        self.program(&path, name)
    }

    /// Takes a program along.
    pub(super) fn program(&mut self, path: &Path, name: &str) -> Result<()> {
        install(path, name, &self.root)?;
        // It is nine tenths of the program, and all of it would lie in the guest's memory.
        let copy = self.root.join("bin").join(name);
        check(Command::new("strip").arg("--strip-debug").arg(copy))
    }

    /// Takes a file along.
    pub(super) fn file(&mut self, path: &Path, name: &str) -> Result<()> {
        fs::copy(path, self.root.join(name))?;
        Ok(())
    }

    /// Adds lines to init.
    pub(super) fn run(&mut self, lines: impl Into<String>) {
        self.init.push(lines.into());
    }

    /// Packs it and returns the archive's path.
    pub(super) fn pack(self) -> Result<PathBuf> {
        let path = self.root.join("init");
        fs::write(&path, self.init.join("\n") + "\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        pack(&self.root, &self.root.with_extension("cpio"))
    }
}

/// Copies a program as `/bin/NAME`, and the libraries that it needs to where it looks for them.
fn install(program: &Path, name: &str, root: &Path) -> Result<()> {
    fs::copy(program, root.join("bin").join(name))
        .with_context(|| format!("cannot copy {}", program.display()))?;
    // Fails for a program that needs no libraries.
    let Some(libraries) = output(Command::new("ldd").arg(program)) else {
        return Ok(());
    };
    for line in libraries.lines() {
        ensure!(
            !line.ends_with("not found"),
            "a library of {} is missing: {}",
            program.display(),
            line.trim()
        );
        let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else {
            continue;
        };
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library without a directory")?)?;
        fs::copy(library, to).with_context(|| format!("cannot copy {library}"))?;
    }
    Ok(())
}

/// Packs a directory into an archive whose files belong to root. The archive is whole when it gets
/// its name.
fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let partial = archive.with_extension("partial");
    let mut cpio = Command::new("cpio")
        .args(["--create", "--quiet", "--format=newc", "--owner=0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(File::create(&partial)?)
        .spawn()
        .context("cannot run cpio")?;
    let names = captured(Command::new("find").arg(".").current_dir(root))?;
    cpio.stdin
        .take()
        .context("cpio has no input")?
        .write_all(names.as_bytes())?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    fs::rename(&partial, archive)?;
    Ok(archive.to_owned())
}

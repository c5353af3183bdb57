//! The emulated machine's file system: the tests, the programs that they run, and an init that
//! runs them one after the other.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::package::Kernel;
use crate::command::{captured, find, output};

/// Modules that the fixtures need, by path below a kernel's modules, in the order of loading.
const MODULES: &[&str] = &["drivers/net/veth"];

/// What init does before it runs the tests, and how it runs one: its output on the first serial
/// line, its name and exit status on the second one.
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin NATMIG_EBPF_OBJECT=/natmig.o NATMIG_REQUIRE_ROOT=1
# An emulated machine is slow.
export NATMIG_RANDOM_HOST=10000 NATMIG_RANDOM_KERNEL=4000
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
stty -onlcr
stty -onlcr </dev/ttyS1
run() { \"$@\"; echo \"$1 $?\" >/dev/ttyS1; }";

/// A program that runs in the machine.
pub(super) struct Program {
    /// Its name there.
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    pub(super) arguments: &'static str,
}

/// Makes the image that runs these programs in turn, and returns its path.
pub(super) fn build(kernel: &Kernel, programs: &[Program], object: &Path) -> Result<PathBuf> {
    let root = kernel.root.join("initramfs");
    fs::remove_dir_all(&root).ok();
    for directory in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(object, root.join("natmig.o"))?;

    let mut init = vec![INIT.to_owned()];
    for module in MODULES {
        if let Some(file) = kernel.module(module) {
            let name = file.file_name().context("a module without a name")?;
            fs::copy(&file, root.join("modules").join(name))?;
            let name = name.to_string_lossy();
            if let Some(plain) = name.strip_suffix(".xz") {
                init.push(format!("unxz /modules/{name}"));
                init.push(format!("insmod /modules/{plain}"));
            } else {
                init.push(format!("insmod /modules/{name}"));
            }
        }
    }
    for name in ["busybox", "ip"] {
        let path = find(name).with_context(|| format!("{name} is not to be found"))?;
        install(&path, name, &root)?;
    }
    for program in programs {
        install(&program.path, program.name, &root)?;
        init.push(["run", program.name, program.arguments].join(" "));
    }
    init.push("poweroff -f\n".to_owned());
    let path = root.join("init");
    fs::write(&path, init.join("\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;

    pack(&root, &kernel.root.join("initramfs.cpio"))
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

/// Packs a directory into an archive whose files belong to root.
fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let mut cpio = Command::new("cpio")
        .args(["--create", "--quiet", "--format=newc", "--owner=0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(File::create(archive)?)
        .spawn()
        .context("cannot run cpio")?;
    let names = captured(Command::new("find").arg(".").current_dir(root))?;
    cpio.stdin
        .take()
        .context("cpio has no input")?
        .write_all(names.as_bytes())?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(archive.to_owned())
}

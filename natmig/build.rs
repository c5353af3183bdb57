//! Embeds the eBPF object and generates the gRPC code.
//!
//! The object comes from `NATMIG_EBPF_OBJECT`, which `cargo xtask build` sets. Without it the binary
//! is built all the same, for `cargo check` and tests on machines without an eBPF toolchain, and
//! says at run time how to get one that can load the program.
//!
//! All calls of the protocol become an enumeration, so that the compiler sees when a list of them has gaps.
//!
//! The protocol files are compiled by `protox`, so that no `protoc` needs to be installed.

use std::{env, error::Error, fs, path::Path};

/// The protocol's files, below `proto/`.
const PROTOCOL: [&str; 3] = [
    "natmig/v1/rule.proto",
    "natmig/v1/agent.proto",
    "natmig/v1/control.proto",
];

/// What is used of etcd's protocol, below `proto/`.
const ETCD_PROTOCOL: &str = "etcd/rpc.proto";

fn main() -> Result<(), Box<dyn Error>> {
    embed_program()?;
    generate_protocol()
}

fn embed_program() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=NATMIG_EBPF_OBJECT");
    let output = Path::new(&env::var("OUT_DIR")?).join("natmig.bpf.o");
    match env::var_os("NATMIG_EBPF_OBJECT") {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", Path::new(&object).display());
            fs::copy(&object, &output)
                .map_err(|error| format!("NATMIG_EBPF_OBJECT={}: {error}", object.display()))?;
        }
        None => fs::write(&output, [])?,
    }
    Ok(())
}

fn generate_protocol() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOCOL, ["proto"])?;
    let calls = Path::new(&env::var("OUT_DIR")?).join("rpc.rs");
    fs::write(calls, list_calls(&descriptors))?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    let descriptors = protox::compile([ETCD_PROTOCOL], ["proto"])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Source of an enumeration of all calls of all services.
fn list_calls(descriptors: &prost_types::FileDescriptorSet) -> String {
    let mut calls = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                calls.push((method.name(), path));
            }
        }
    }
    let each = |line: &dyn Fn(&str, &str) -> String| -> String {
        let lines = calls.iter().map(|(name, path)| line(name, path));
        lines.collect()
    };
    let variants = each(&|name, path| format!("/// `{path}`.\n{name},\n"));
    let paths = each(&|name, path| format!("\"{path}\" => Some(Self::{name}),\n"));
    let names = each(&|name, _| format!("Self::{name} => \"{name}\",\n"));
    format!(
        "/// A call of the protocol.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]\n\
         pub enum Rpc {{\n{variants}}}\n\
         impl Rpc {{\n\
         /// The call with this path of HTTP.\n\
         pub fn from_path(path: &str) -> Option<Self> {{\n\
         match path {{\n{paths}_ => None,\n}}\n}}\n\
         /// Its name.\n\
         pub fn name(self) -> &'static str {{\n\
         match self {{\n{names}}}\n}}\n}}\n"
    )
}

//! `cargo xtask fuzz`: the packet logic against the oracle, by inputs that reach new code.
//!
//! libFuzzer on the stable compiler: what it needs of the compiler is LLVM's coverage pass, which is
//! a flag, and no sanitizer (there is no memory to be unsafe with but the frame's, of which every
//! access is checked).

use std::{
    env, fs,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    command::{cargo, check, host, step},
    packages::{self, Need},
};

/// libFuzzer is C++.
const NEEDS: &[Need] = &[Need {
    program: "c++",
    package: "g++",
}];

/// Counters by edge and comparisons, as libFuzzer reads them; panics where numbers overflow.
const RUSTFLAGS: &str = "--cfg fuzzing -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares \
    -C codegen-units=1 -C debug-assertions -C overflow-checks";

const PACKAGE: &str = "natmig-fuzz";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How long to fuzz.
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u32,
    /// Further arguments of libFuzzer, such as the file of an input to run.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    packages::ensure(NEEDS)?;
    let directory = env::current_dir()?.join("target/fuzz");
    let target = host();
    step("building the fuzzer");
    check(
        cargo()
            .args(["build", "--quiet", "--locked", "--release"])
            .args(["--package", PACKAGE, "--features", "libfuzzer"])
            // With a target, build scripts are not instrumented.
            .args(["--target", &target, "--target-dir"])
            .arg(&directory)
            .env("RUSTFLAGS", RUSTFLAGS),
    )?;
    let found = directory.join("corpus");
    let artifacts = directory.join("artifacts");
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&artifacts)?;
    step(&format!(
        "fuzzing for {} minutes; what it finds is in {}",
        arguments.minutes,
        artifacts.display()
    ));
    let mut fuzzer = Command::new(directory.join(target).join("release").join(PACKAGE));
    fuzzer
        .arg(format!("-max_total_time={}", arguments.minutes * 60))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-max_len=700", "-timeout=10", "-print_final_stats=1"])
        .args(&arguments.rest);
    if arguments
        .rest
        .iter()
        .all(|argument| argument.starts_with('-'))
    {
        fuzzer.arg(found).arg("tests/fuzz/corpus");
    }
    check(&mut fuzzer)?;
    Ok(ExitCode::SUCCESS)
}

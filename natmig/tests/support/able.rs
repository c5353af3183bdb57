//! Whether tests that need root and the eBPF program can run; a module by itself, for test programs that
//! need nothing else of `support`.

/// Says loudly what is missing, if something is; with `NATMIG_REQUIRE_ROOT=1` that is an error.
pub(crate) fn able() -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if !natmig::router::has_program() {
        "a build with the eBPF program (cargo xtask build)"
    } else {
        return true;
    };
    assert!(
        std::env::var_os("NATMIG_REQUIRE_ROOT").is_none_or(|value| value != "1"),
        "NATMIG_REQUIRE_ROOT=1, and this test needs {missing}"
    );
    eprintln!("SKIPPED: this test needs {missing}");
    false
}

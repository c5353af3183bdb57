//! `natmig pki` as an operator runs it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_natmig"))
        .arg("pki")
        .args(arguments)
        .arg("--directory")
        .arg(directory)
        .output()
        .unwrap()
}

fn fine(directory: &Path, arguments: &[&str]) -> String {
    let output = run(directory, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(directory: &Path, arguments: &[&str]) -> String {
    let output = run(directory, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn show(directory: &Path, file: &str) -> Value {
    let path = directory.join(file);
    let text = fine(directory, &["show", path.to_str().unwrap(), "--json"]);
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

#[test]
fn certificates_are_made_shown_and_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let without = refused(directory, &["issue", "agent", "edge1"]);
    assert!(without.contains("natmig pki init"), "{without}");
    fine(directory, &["init"]);
    let again = refused(directory, &["init"]);
    assert!(again.contains("--force"), "{again}");

    fine(directory, &["issue", "agent", "edge1"]);
    for (file, mode) in [
        ("ca.key", 0o600),
        ("ca.pem", 0o644),
        ("agent-edge1.key", 0o600),
        ("agent-edge1.pem", 0o644),
    ] {
        let found = fs::metadata(directory.join(file)).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, mode, "{file}");
    }
    let shown = show(directory, "agent-edge1.pem");
    assert_eq!(shown["role"], "agent");
    assert_eq!(shown["name"], "edge1");
    assert_eq!(shown["uri"], "spiffe://natmig/agent/edge1");
    assert_eq!(shown["valid"], true);
    assert_eq!(shown["warning"], Value::Null);
    assert_eq!(shown["fingerprint"].as_str().unwrap().len(), 64);

    let taken = refused(directory, &["issue", "agent", "edge1"]);
    assert!(taken.contains("--force"), "{taken}");
    assert_eq!(show(directory, "agent-edge1.pem"), shown);

    let nameless = refused(directory, &["issue", "controller", "ctl1"]);
    assert!(nameless.contains("--address"), "{nameless}");
    let controller = ["issue", "controller", "ctl1", "--address", "198.18.0.1"];
    let names = ["--address", "ctl1.example.net", "--output", "ctl"];
    fine(directory, &[&controller[..], &names[..]].concat());
    let shown_controller = show(directory, "ctl.pem");
    let addresses = serde_json::json!(["ctl1.example.net", "198.18.0.1"]);
    for address in addresses.as_array().unwrap() {
        let shown = shown_controller["addresses"].as_array().unwrap();
        assert!(shown.contains(address), "{shown:?}");
    }

    for (name, message) in [("edge 1", "letters"), ("a/b", "letters"), ("", "letters")] {
        let error = refused(directory, &["issue", "agent", name]);
        assert!(error.contains(message), "{error}");
    }

    let path = directory.join("agent-edge1.pem");
    let path = path.to_str().unwrap();
    let key = fs::read(directory.join("agent-edge1.key")).unwrap();
    fine(directory, &["renew", path, "--days", "400"]);
    let renewed = show(directory, "agent-edge1.pem");
    assert_ne!(renewed["fingerprint"], shown["fingerprint"]);
    assert!(renewed["not_after"].as_str() > shown["not_after"].as_str());
    assert_eq!(renewed["uri"], shown["uri"]);
    assert_eq!(fs::read(directory.join("agent-edge1.key")).unwrap(), key);
    fine(directory, &["renew", path, "--new-key"]);
    assert_ne!(fs::read(directory.join("agent-edge1.key")).unwrap(), key);
    let authority = directory.join("ca.pem");
    let error = refused(directory, &["renew", authority.to_str().unwrap()]);
    assert!(error.contains("authority"), "{error}");

    let table = fine(directory, &["show"]);
    for text in ["agent edge1", "controller ctl1", "authority", "sha-256"] {
        assert!(table.contains(text), "{table}");
    }
}

#[test]
fn only_the_authority_that_signed_a_certificate_renews_it() {
    // Both authorities have the same name.
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (own, other) = (own.path(), other.path());
    fine(own, &["init"]);
    fine(other, &["init"]);
    fine(own, &["issue", "operator", "a"]);
    let certificate = own.join("operator-a.pem");
    let path = certificate.to_str().unwrap();
    let read = || {
        let key = fs::read(own.join("operator-a.key")).unwrap();
        (fs::read(&certificate).unwrap(), key)
    };
    let before = read();
    for arguments in [&["renew", path][..], &["renew", path, "--new-key"]] {
        let error = refused(other, arguments);
        assert!(error.contains("--directory"), "{error}");
        assert!(error.contains(other.to_str().unwrap()), "{error}");
        assert!(read() == before, "{arguments:?} changed the files");
    }
    fine(own, &["renew", path]);
    assert!(read() != before);
}

#[test]
fn certificate_that_expires_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fine(directory, &["init"]);
    let issued = run(directory, &["issue", "operator", "a", "--days", "20"]);
    let warning = String::from_utf8(issued.stderr).unwrap();
    assert!(warning.contains("expires in 19 days"), "{warning}");
    assert!(warning.contains("natmig pki renew"), "{warning}");
    let shown = show(directory, "operator-a.pem");
    assert!(shown["warning"].as_str().unwrap().contains("expires"));

    let broken = directory.join("broken.pem");
    fs::write(&broken, "garbage").unwrap();
    let error = refused(directory, &["show", broken.to_str().unwrap()]);
    assert!(error.contains("broken.pem: no certificate"), "{error}");
}

#[test]
fn controllers_configuration_is_checked_with_its_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fine(directory, &["init"]);
    for (name, days) in [("ctl1", "365"), ("ctl2", "20")] {
        let address = ["--address", "198.18.0.1", "--days", days];
        fine(
            directory,
            &[&["issue", "controller", name], &address[..]].concat(),
        );
    }
    let file = directory.join("controller.toml");
    let check = |name: &str, etcd: &str| {
        let credentials = format!(
            "ca = \"{0}/ca.pem\"\ncertificate = \"{0}/controller-{name}.pem\"\n\
             key = \"{0}/controller-{name}.key\"\n",
            directory.display()
        );
        let own = if etcd.is_empty() {
            format!("store = \"/nowhere\"\n[tls]\n{credentials}")
        } else {
            format!(
                "advertise = \"https://198.18.0.1:7400\"\n[etcd]\nendpoints = [\"{etcd}\"]\nprefix = \"/natmig\"\n{credentials}"
            )
        };
        fs::write(&file, format!("socket = \"/nowhere/socket\"\n{own}")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_natmig"))
            .args(["controller", "--check", "--config"])
            .arg(&file)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{error}");
        error
    };
    assert_eq!(check("ctl1", ""), "");
    let warning = check("ctl2", "");
    assert!(
        warning.contains("controller-ctl2.pem: expires in"),
        "{warning}"
    );
    let etcd = "https://198.18.0.2:2379";
    assert_eq!(check("ctl1", etcd), "");
    let warning = check("ctl2", etcd);
    assert!(
        warning.contains("controller-ctl2.pem: expires in"),
        "{warning}"
    );
}

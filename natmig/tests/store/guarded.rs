//! etcd that does not let everybody in: certificates on both sides, and users with passwords.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::{Duration, SystemTime},
};

use natmig::{
    coordinator::StoreOp,
    pki::{Authority, Existing, Request, Role},
    store::{Candidate, EtcdConfig, Store as _},
    tls::CredentialFiles,
};

use crate::{
    places::Server,
    records::{topology, vm},
    server::Etcd,
};

/// A certificate with this role and these names, of the authority in this directory, which is made if
/// it is not there yet.
fn issue(directory: &Path, kind: &str, names: &[String]) -> CredentialFiles {
    if !directory.join("ca.pem").exists() {
        Authority::create(directory, "test", 10, Existing::Keep).unwrap();
    }
    let role = Role::new(kind, "test").unwrap();
    let issued = Authority::open(directory)
        .unwrap()
        .issue(&Request::days(role, names.to_vec(), 5))
        .unwrap();
    let files = CredentialFiles::in_directory(directory, kind);
    fs::write(&files.certificate, issued.certificate).unwrap();
    fs::write(&files.key, issued.key).unwrap();
    files
}

/// What natmig shows to etcd.
fn with(config: EtcdConfig, files: &CredentialFiles) -> EtcdConfig {
    EtcdConfig {
        ca: Some(files.ca.clone()),
        certificate: Some(files.certificate.clone()),
        key: Some(files.key.clone()),
        ..config
    }
}

/// etcd that shows the certificate of a controller, and asks for one of the same authority.
fn server_with_certificates(directory: &Path) -> Option<Server> {
    let member = issue(directory, "controller", &[crate::server::address()]);
    let path = |path: &Path| path.display().to_string();
    let arguments = [
        ("--cert-file", path(&member.certificate)),
        ("--key-file", path(&member.key)),
        ("--trusted-ca-file", path(&member.ca)),
    ];
    let arguments = arguments
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .chain(["--client-cert-auth".to_owned()])
        .collect();
    Etcd::start_with(1, "https", arguments).map(Server::of)
}

fn works(server: &Server, config: &EtcdConfig) {
    let mut store = server.lead(config);
    store.load().unwrap();
    let ops = [
        StoreOp::PutTopology(topology()),
        StoreOp::PutVm(vm(1)),
        StoreOp::PutNextId(4),
    ];
    store.apply(&ops).unwrap();
    store.confirm().unwrap();
    server.resign(&store.lease());
    assert_eq!(server.lead(config).load().unwrap().next_id, 4);
}

#[test]
fn files_for_etcd_are_looked_at_before_it_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let files = issue(directory.path(), "operator", &[]);
    let config = EtcdConfig {
        endpoints: vec!["https://127.0.0.1:2379".to_owned()],
        prefix: "/natmig/test".to_owned(),
        lease: Duration::from_secs(2),
        ca: Some(files.ca.clone()),
        certificate: Some(files.certificate.clone()),
        key: Some(files.key.clone()),
        user: None,
        password_file: None,
    };
    config.check().unwrap();
    let warning = config.warning(SystemTime::now()).unwrap().unwrap();
    assert!(warning.contains("operator.pem: expires in"), "{warning}");

    // The key's file holds no certificate, and the certificate's no key.
    let (no_certificate, no_key) = (Some(files.key), Some(files.certificate));
    let ca = EtcdConfig {
        ca: no_certificate.clone(),
        ..config.clone()
    };
    let certificate = EtcdConfig {
        certificate: no_certificate,
        ..config.clone()
    };
    let key = EtcdConfig {
        key: no_key,
        ..config
    };
    for (config, problem) in [
        (ca, "operator.key: holds no certificate"),
        (certificate, "operator.key: holds no certificate"),
        (key, "operator.pem: holds no private key"),
    ] {
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn etcd_and_natmig_show_each_other_certificates() {
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(server) = server_with_certificates(own.path()) else {
        return;
    };
    let files = issue(own.path(), "operator", &[]);
    let known = with(server.config(), &files);
    works(&server, &known);

    let foreign = issue(other.path(), "operator", &[]);
    let plain = EtcdConfig {
        endpoints: vec![known.endpoints[0].replace("https://", "http://")],
        ca: None,
        certificate: None,
        key: None,
        ..known.clone()
    };
    let strangers = [
        ("without TLS", plain),
        (
            "without a certificate",
            EtcdConfig {
                certificate: None,
                key: None,
                ..known.clone()
            },
        ),
        (
            "with a certificate of another authority",
            EtcdConfig {
                certificate: Some(foreign.certificate.clone()),
                key: Some(foreign.key.clone()),
                ..known.clone()
            },
        ),
        (
            "that does not know etcd's authority",
            with(known.clone(), &foreign),
        ),
    ];
    for (who, config) in strangers {
        let outcome = server.lead_unless_led(&config).map(drop);
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(&config.endpoints[0]), "{who}: {error}");
        assert!(!error.contains("(transport error)"), "{who}: {error}");
        assert!(error.contains("`ca`, `certificate` and `key`"), "{error}");
    }
}

/// All certificates, and the authority itself, are others from one moment to the next.
#[test]
fn changed_certificates_are_used_without_a_restart() {
    let (shown, next) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(mut server) = server_with_certificates(shown.path()) else {
        return;
    };
    let files = issue(shown.path(), "operator", &[]);
    let config = with(server.config(), &files);
    let candidate = async { Candidate::new(&config, "test", "http://127.0.0.1:7400") };
    let candidate = server.runtime.block_on(candidate).unwrap();
    let lead = |server: &Server| {
        let lead = candidate.lead(None);
        let lead = async { tokio::time::timeout(Duration::from_secs(20), lead).await };
        let store = server.runtime.block_on(lead).map(Result::unwrap);
        store.map(|store| server.resign(&store.lease()))
    };
    lead(&server).unwrap();

    server.etcd.kill(0);
    issue(next.path(), "controller", &[crate::server::address()]);
    issue(next.path(), "operator", &[]);
    for name in ["ca.pem", "controller.pem", "controller.key", "operator.pem"] {
        fs::copy(next.path().join(name), shown.path().join(name)).unwrap();
    }
    server.etcd.restart(0);
    let error = config.check().unwrap_err().to_string();
    assert!(error.contains("operator.key: cannot be used"), "{error}");
    let error = server.lead_unless_led(&config).unwrap_err().to_string();
    assert!(error.contains("operator.key: cannot be used"), "{error}");
    fs::copy(next.path().join("operator.key"), &files.key).unwrap();
    lead(&server).unwrap();
}

/// Asks etcd's gateway, as its own command line would.
fn ask(server: &Server, path: &str, body: &str) {
    let address = server.etcd.client_address(0);
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(
        stream,
        "POST /v3/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "{path} {body}: {answer}"
    );
}

#[test]
fn etcd_asks_for_a_password() {
    let Some(server) = Server::start(1) else {
        return;
    };
    // In base64: all keys from `/natmig/` up to `/natmig0`.
    let prefix = r#"{"name":"natmig","perm":{"permType":"READWRITE","key":"L25hdG1pZy8=","range_end":"L25hdG1pZzA="}}"#;
    for (path, body) in [
        ("auth/user/add", r#"{"name":"root","password":"r"}"#),
        ("auth/role/add", r#"{"name":"root"}"#),
        ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("auth/role/add", r#"{"name":"natmig"}"#),
        ("auth/role/grant", prefix),
        ("auth/user/add", r#"{"name":"natmig","password":"secret"}"#),
        ("auth/user/grant", r#"{"user":"natmig","role":"natmig"}"#),
        ("auth/enable", "{}"),
    ] {
        ask(&server, path, body);
    }
    let directory = tempfile::tempdir().unwrap();
    let password = |text: &str| {
        let file = directory.path().join(text);
        fs::write(&file, format!("{text}\n")).unwrap();
        EtcdConfig {
            user: Some("natmig".to_owned()),
            password_file: Some(file),
            ..server.config()
        }
    };
    works(&server, &password("secret"));
    for config in [server.config(), password("guess")] {
        let error = server.lead_unless_led(&config).unwrap_err();
        assert!(!error.is_transient(), "{error}");
    }
    // Whoever was turned away is let in once the file holds the right password.
    let corrected = password("guess");
    let candidate = async { Candidate::new(&corrected, "test", "http://127.0.0.1:7400") };
    let candidate = server.runtime.block_on(candidate).unwrap();
    let lead = || server.runtime.block_on(candidate.lead_unless_led());
    lead().unwrap_err();
    fs::write(corrected.password_file.as_ref().unwrap(), "secret").unwrap();
    server.resign(&lead().unwrap().lease());
    // Outside of the prefix that the role names.
    let elsewhere = EtcdConfig {
        prefix: "/other/fabric".to_owned(),
        ..password("secret")
    };
    let error = server.lead_unless_led(&elsewhere).unwrap_err();
    assert!(error.to_string().contains("permission denied"), "{error}");
}

//! Who may connect to a controller, and what it may do there: real TLS over loopback, real
//! certificates, every role.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use natmig::{
    audit::AuditRecord,
    controller::{self, ControllerConfig},
    coordinator::{StoreOp, Stored},
    pki::{Authority, Existing, Request, Role},
    proto::{
        MESSAGE_LIMIT, PROTOCOL,
        v1::{
            self, agent_service_client::AgentServiceClient,
            control_service_client::ControlServiceClient,
        },
    },
    store::{FileStore, Leadership, Store, StoreError},
    tls::{CredentialFiles, Credentials, dial},
};
use rustls::{ClientConfig, RootCertStore, pki_types::pem::PemObject as _};
use support::{Client, Fabric, ROUTERS, RunningController, all_in_sync, set_up};
use tokio::{io::AsyncReadExt as _, sync::oneshot};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// Certificates of one authority, in a directory of their own.
struct Pki {
    directory: tempfile::TempDir,
    authority: Authority,
}

fn role(kind: &str, name: &str) -> Role {
    Role::new(kind, name).unwrap()
}

impl Pki {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Authority::create(directory.path(), "test", 10, Existing::Keep).unwrap();
        let authority = Authority::open(directory.path()).unwrap();
        Self {
            directory,
            authority,
        }
    }

    fn issue(&self, role: Role) -> CredentialFiles {
        let names = match role {
            Role::Controller(_) => vec!["127.0.0.1".to_owned()],
            Role::Agent(_) | Role::Operator(_) | Role::ReadOnly(_) => Vec::new(),
        };
        self.issue_as(&Request::days(role, names, 5))
    }

    fn issue_as(&self, request: &Request) -> CredentialFiles {
        let stem = format!("{}-{}", request.role.kind(), request.role.name());
        let files = CredentialFiles::in_directory(self.directory.path(), &stem);
        let issued = self.authority.issue(request).unwrap();
        fs::write(&files.certificate, issued.certificate).unwrap();
        fs::write(&files.key, issued.key).unwrap();
        files
    }

    fn credentials(&self, role: Role) -> Credentials {
        Credentials::load(&self.issue(role)).unwrap()
    }
}

/// A controller with TLS.
struct Secure {
    fabric: Fabric,
    controller: RunningController,
    url: String,
}

impl Secure {
    async fn start(files: &CredentialFiles) -> Self {
        let fabric = Fabric::new();
        let config = ControllerConfig {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            tls: Some(files.clone()),
            ..fabric.config()
        };
        let store = Box::new(fabric.store());
        let controller = controller::start_with(&config, store, support::times())
            .await
            .unwrap();
        let url = format!("https://{}", controller.address().unwrap());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(controller.run(async {
            stopped.await.ok();
        }));
        Self {
            fabric,
            controller: RunningController {
                stop: Some(stop),
                task,
            },
            url,
        }
    }

    async fn client(&self, credentials: &Credentials) -> Client {
        let channel = dial(&self.url, PATIENCE, Some(credentials)).await.unwrap();
        ControlServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// Why there is no connection.
    async fn refusal(&self, credentials: &Credentials) -> String {
        let error = dial(&self.url, PATIENCE, Some(credentials)).await;
        error.unwrap_err().to_string()
    }

    async fn finish(self) {
        self.fabric.finish(self.controller).await;
    }
}

fn hello(router: &str) -> v1::FromAgent {
    v1::FromAgent {
        message: Some(v1::from_agent::Message::Hello(v1::Hello {
            router: router.to_owned(),
            protocol: PROTOCOL,
            ..Default::default()
        })),
    }
}

/// How a session of `router` begins: its first command, or a refusal.
async fn session(
    secure: &Secure,
    credentials: &Credentials,
    router: &str,
) -> Result<tonic::Streaming<v1::Command>, tonic::Status> {
    let channel = dial(&secure.url, PATIENCE, Some(credentials))
        .await
        .unwrap();
    // The session lasts as long as its sender of messages, which never says more than hello.
    let outgoing = futures::StreamExt::chain(
        tokio_stream::once(hello(router)),
        futures::stream::pending(),
    );
    let answer = AgentServiceClient::new(channel).session(outgoing).await?;
    Ok(answer.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn fabric_works_over_tls() {
    let pki = Pki::new();
    let mut secure = Secure::start(&pki.issue(role("controller", "ctl1"))).await;
    let url = secure.url.clone();
    for router in ROUTERS {
        let credentials = Arc::new(pki.credentials(role("agent", router)));
        secure
            .fabric
            .start_agent_with(router, vec![url.clone()], Some(credentials));
    }
    let mut client = secure.client(&pki.credentials(role("operator", "o"))).await;
    set_up(&mut client).await;
    all_in_sync(&mut client).await;
    let id = support::start(&mut client, support::start_request(&["vm1"], "rack2")).await;
    support::reach(&mut client, id, natmig::coordinator::Phase::is_final).await;
    let vms = support::vms(&mut client).await;
    secure.fabric.tables_agree(&vms).unwrap();
    secure.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_may_do_what_is_its_own_and_nothing_else() {
    let pki = Pki::new();
    let secure = Secure::start(&pki.issue(role("controller", "ctl1"))).await;
    for (kind, speaks, looks, operates) in [
        ("agent", true, false, false),
        ("controller", false, true, false),
        ("operator", false, true, true),
        ("read-only", false, true, false),
    ] {
        let credentials = pki.credentials(role(kind, "edge1"));
        let mut client = secure.client(&credentials).await;
        let look = client.list_routers(v1::ListRoutersRequest {}).await;
        assert_eq!(look.is_ok(), looks, "{kind}: {look:?}");
        let operate = client
            .remove_vms(v1::RemoveVmsRequest { names: vec![] })
            .await;
        assert_eq!(operate.is_ok(), operates, "{kind}: {operate:?}");
        let session = session(&secure, &credentials, "edge1").await;
        assert_eq!(session.is_ok(), speaks, "{kind}: {session:?}");
        for refused in [look.err(), operate.err(), session.err()]
            .into_iter()
            .flatten()
        {
            assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
            assert!(refused.message().contains("needs the role"), "{refused:?}");
            assert!(refused.message().contains(kind), "{refused:?}");
        }
    }
    secure.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_cannot_speak_for_another_router() {
    let pki = Pki::new();
    let secure = Secure::start(&pki.issue(role("controller", "ctl1"))).await;
    let edge1 = pki.credentials(role("agent", "edge1"));
    let refused = session(&secure, &edge1, "edge2").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    for name in ["edge1", "edge2"] {
        assert!(refused.message().contains(name), "{refused:?}");
    }
    let mut commands = session(&secure, &edge1, "edge1").await.unwrap();
    assert!(commands.message().await.unwrap().is_some());
    secure.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_turned_away_and_told_why() {
    let pki = Pki::new();
    let other = Pki::new();
    let secure = Secure::start(&pki.issue(role("controller", "ctl1"))).await;
    let operator = || role("operator", "o");
    let now = SystemTime::now();
    let hour = Duration::from_hours(1);

    let foreign = other.issue(operator());
    let cases = [
        (
            "the client is of another authority",
            CredentialFiles {
                ca: pki.issue(operator()).ca,
                ..foreign.clone()
            },
            "authority that the other side does not know",
        ),
        (
            "the client does not know the controller's authority",
            foreign,
            "unknown authority",
        ),
        (
            "the client has expired",
            pki.issue_as(&Request {
                not_before: now - 2 * hour,
                not_after: now - hour,
                ..Request::days(role("operator", "old"), Vec::new(), 1)
            }),
            "expired",
        ),
        (
            "the client is not valid yet",
            pki.issue_as(&Request {
                not_before: now + hour,
                not_after: now + 2 * hour,
                ..Request::days(role("operator", "early"), Vec::new(), 1)
            }),
            // TLS has one alert for both.
            "it has expired; renew it with `natmig pki renew` (or a clock is wrong)",
        ),
    ];
    for (what, files, message) in cases {
        let refusal = secure.refusal(&Credentials::load(&files).unwrap()).await;
        assert!(refusal.contains(message), "{what}: {refusal}");
    }

    // Somebody without a certificate, who knows the authority.
    let mut roots = RootCertStore::empty();
    let ca = fs::read(pki.issue(operator()).ca).unwrap();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(&ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = secure.url.strip_prefix("https://").unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");

    // Somebody without TLS: neither an answer nor a controller that stops to answer others.
    let plain = secure.url.replace("https://", "http://");
    let mut client = ControlServiceClient::new(dial(&plain, PATIENCE, None).await.unwrap());
    client
        .list_routers(v1::ListRoutersRequest {})
        .await
        .unwrap_err();
    let mut client = secure.client(&pki.credentials(operator())).await;
    client
        .list_routers(v1::ListRoutersRequest {})
        .await
        .unwrap();
    secure.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controller_is_recognised_by_name_and_role() {
    let pki = Pki::new();
    let operator = pki.credentials(role("operator", "o"));
    let elsewhere = Request::days(role("controller", "ctl1"), vec!["192.0.2.1".to_owned()], 1);
    let secure = Secure::start(&pki.issue_as(&elsewhere)).await;
    let refusal = secure.refusal(&operator).await;
    assert!(refusal.contains("not for 127.0.0.1"), "{refusal}");
    assert!(refusal.contains("192.0.2.1"), "{refusal}");
    secure.finish().await;

    // No other role can pose as a controller, whatever address it names.
    let config = ControllerConfig {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        tls: Some(pki.issue(role("agent", "edge1"))),
        ..Fabric::new().config()
    };
    let error = controller::start(&config).await.unwrap_err().to_string();
    assert!(error.contains("agent edge1"), "{error}");
}

/// Replaces files as an operator's tool does: each one whole, the certificate after the key.
fn replace(files: &CredentialFiles, by: &CredentialFiles) {
    for (to, from) in [
        (&files.ca, &by.ca),
        (&files.key, &by.key),
        (&files.certificate, &by.certificate),
    ] {
        let aside = to.with_extension("aside");
        fs::copy(from, &aside).unwrap();
        fs::rename(&aside, to).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_again_and_broken_ones_ignored() {
    let (old, fresh) = (Pki::new(), Pki::new());
    let files = old.issue(role("controller", "ctl1"));
    let secure = Secure::start(&files).await;
    let old_operator = old.credentials(role("operator", "o"));
    let fresh_operator = fresh.credentials(role("operator", "o"));
    let mut connected = secure.client(&old_operator).await;
    connected
        .list_routers(v1::ListRoutersRequest {})
        .await
        .unwrap();
    secure.refusal(&fresh_operator).await;

    replace(&files, &fresh.issue(role("controller", "ctl1")));
    let mut client = secure.client(&fresh_operator).await;
    client
        .list_routers(v1::ListRoutersRequest {})
        .await
        .unwrap();
    secure.refusal(&old_operator).await;
    // Who was connected before still is.
    connected
        .list_routers(v1::ListRoutersRequest {})
        .await
        .unwrap();

    for broken in [&files.certificate, &files.key, &files.ca] {
        let whole = fs::read(broken).unwrap();
        fs::write(broken, "garbage").unwrap();
        secure.client(&fresh_operator).await;
        fs::remove_file(broken).unwrap();
        secure.client(&fresh_operator).await;
        fs::write(broken, whole).unwrap();
        secure.client(&fresh_operator).await;
    }
    secure.finish().await;
}

#[test]
fn credentials_count_what_they_cannot_use() {
    let pki = Pki::new();
    let files = pki.issue(role("operator", "o"));
    let credentials = Credentials::load(&files).unwrap();
    let before = credentials.certificate().fingerprint.clone();
    // Another certificate without its key.
    let key = fs::read(&files.key).unwrap();
    pki.issue(role("operator", "o"));
    let fresh_key = fs::read(&files.key).unwrap();
    fs::write(&files.key, key).unwrap();
    credentials.refresh();
    assert_eq!(credentials.failures(), 1);
    assert_eq!(credentials.certificate().fingerprint, before);
    credentials.refresh();
    assert_eq!(credentials.failures(), 1, "nothing has changed since");
    fs::write(&files.key, fresh_key).unwrap();
    credentials.refresh();
    assert_ne!(credentials.certificate().fingerprint, before);
    assert_eq!(credentials.failures(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn session_ends_when_its_certificate_expires_and_begins_with_a_renewed_one() {
    let pki = Pki::new();
    let mut secure = Secure::start(&pki.issue(role("controller", "ctl1"))).await;
    let mut operator = secure.client(&pki.credentials(role("operator", "o"))).await;
    set_up(&mut operator).await;
    let edge1 = role("agent", "edge1");
    let issue = |valid: Duration| {
        pki.issue_as(&Request {
            not_after: SystemTime::now() + valid,
            ..Request::days(edge1.clone(), Vec::new(), 1)
        })
    };
    // Long enough to be used even on a machine that has much else to do.
    let mut valid = Duration::from_secs(5);
    let agent = Arc::new(Credentials::load(&issue(valid)).unwrap());
    let url = secure.url.clone();
    secure
        .fabric
        .start_agent_with("edge1", vec![url], Some(agent));
    let mut deadline = Instant::now() + valid;
    while !is_connected(&mut operator).await {
        if Instant::now() > deadline {
            valid *= 2;
            assert!(valid < 20 * PATIENCE, "the agent does not connect");
            issue(valid);
            deadline = Instant::now() + valid;
        }
        tokio::time::sleep(POLL).await;
    }
    let deadline = Instant::now() + valid + PATIENCE;
    while is_connected(&mut operator).await {
        assert!(Instant::now() < deadline, "the session goes on");
        tokio::time::sleep(POLL).await;
    }
    issue(Duration::from_hours(1));
    let deadline = Instant::now() + PATIENCE;
    while !is_connected(&mut operator).await {
        assert!(Instant::now() < deadline, "the agent does not come back");
        tokio::time::sleep(POLL).await;
    }
    secure.finish().await;
}

/// Whether the agent of edge1 is connected.
async fn is_connected(operator: &mut Client) -> bool {
    let answer = operator.list_routers(v1::ListRoutersRequest {}).await;
    let mut routers = answer.unwrap().into_inner().routers.into_iter();
    routers.any(|router| router.name == "edge1" && router.connected)
}

#[test]
fn certificate_outlives_no_authority() {
    let pki = Pki::new();
    let files = pki.issue_as(&Request::days(role("operator", "o"), Vec::new(), 3650));
    let own = natmig::pki::Certificate::read(&files.certificate).unwrap();
    let authority = natmig::pki::Certificate::read(Path::new(&files.ca)).unwrap();
    assert_eq!(own.not_after, authority.not_after);
    assert!(authority.is_authority && !own.is_authority);
}

/// A store that remembers what was stored together.
struct Recording {
    inner: FileStore,
    batches: Arc<Mutex<Vec<Vec<StoreOp>>>>,
}

impl Store for Recording {
    fn load(&mut self) -> Result<Stored, StoreError> {
        self.inner.load()
    }

    fn apply(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        self.batches.lock().unwrap().push(ops.to_vec());
        self.inner.apply(ops)
    }

    fn begin_term(&mut self, seconds: u64) -> Result<u64, StoreError> {
        self.inner.begin_term(seconds)
    }

    fn confirm(&mut self) -> Result<(), StoreError> {
        self.inner.confirm()
    }

    fn leadership(&self) -> Leadership {
        self.inner.leadership()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_log_says_who_did_what_and_what_came_of_it() {
    let pki = Pki::new();
    let secure = Secure::start(&pki.issue(role("controller", "ctl1"))).await;
    let operator = pki.credentials(role("operator", "alice"));
    let mut client = secure.client(&operator).await;
    set_up(&mut client).await;
    let unknown = v1::DrainRouterRequest {
        name: "edge9".to_owned(),
    };
    client.drain_router(unknown).await.unwrap_err();
    let mut malformed = support::vm("vm9", 9);
    malformed.mac = vec![1];
    let malformed = v1::AddVmsRequest {
        vms: vec![malformed],
    };
    client.add_vms(malformed).await.unwrap_err();
    let mut reader = secure
        .client(&pki.credentials(role("read-only", "bob")))
        .await;
    for _ in 0..3 {
        let names = vec!["vm1".to_owned()];
        let denied = reader.remove_vms(v1::RemoveVmsRequest { names }).await;
        assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
    }
    let edge1 = pki.credentials(role("agent", "edge1"));
    session(&secure, &edge1, "edge2").await.unwrap_err();

    let wire = reader.list_audit(v1::ListAuditRequest::default()).await;
    let records: Vec<AuditRecord> = wire
        .unwrap()
        .into_inner()
        .records
        .into_iter()
        .map(|record| record.try_into().unwrap())
        .collect();
    let lines: Vec<_> = records
        .iter()
        .map(|record| {
            let asked = &record.asked;
            let outcome = record.outcome.as_str();
            format!(
                "{}: {} {}: {outcome}",
                asked.who.name, asked.call, asked.what
            )
        })
        .collect();
    let expected = [
        "operator alice: ApplyTopology test.toml: done",
        "operator alice: AddVms vm1 vm2 vm3: done",
        "operator alice: DrainRouter edge9: refused",
        "operator alice: AddVms vm9: refused",
        // Denied three times, noted once.
        "read-only bob: RemoveVms : denied",
        "agent edge1: Session router edge2: denied",
    ];
    assert_eq!(lines, expected);
    let own = operator.certificate().fingerprint.clone();
    assert_eq!(records[0].asked.who.certificate, Some(own));
    assert!(records[0].asked.who.address.is_some());
    let limited = v1::ListAuditRequest {
        since: records[3].at.0,
        limit: 2,
    };
    let limited = reader.list_audit(limited).await.unwrap().into_inner();
    let ids: Vec<_> = limited.records.iter().map(|record| record.id).collect();
    assert_eq!(ids, [records[4].id, records[5].id]);

    let Secure {
        fabric, controller, ..
    } = secure;
    controller.stop().await;
    assert_eq!(fabric.store().load().unwrap().audit, records);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_and_its_record_are_stored_together() {
    let fabric = Fabric::new();
    let batches = Arc::default();
    let store = Recording {
        inner: fabric.store(),
        batches: Arc::clone(&batches),
    };
    let controller = fabric.controller_with(Box::new(store)).await;
    let mut client = fabric.client().await;
    set_up(&mut client).await;
    client
        .drain_router(v1::DrainRouterRequest {
            name: "edge1".to_owned(),
        })
        .await
        .unwrap();
    let batches = batches.lock().unwrap().clone();
    assert!(!batches.is_empty());
    for batch in &batches {
        let records = batch
            .iter()
            .filter(|op| matches!(op, StoreOp::PutAudit(_)))
            .count();
        assert_eq!((records, batch.len() > 1), (1, true), "{batch:?}");
    }
    fabric.finish(controller).await;
}

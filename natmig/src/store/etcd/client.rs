//! A connection to etcd's members: one request at a time to one of them, the next member after a
//! failure, and a token where etcd asks for one.
//!
//! The messages come from `proto/etcd/rpc.proto`, compiled like natmig's own; etcd's published
//! clients need `protoc` to be built.

use std::{
    error::Error as _,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tonic::{
    Code, Request, Status,
    codegen::http::Uri,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use self::pb::{auth_client::AuthClient, kv_client::KvClient, lease_client::LeaseClient};
use super::{
    EtcdError,
    config::{Credentials, EtcdConfig},
};
use crate::causes::{self, with_causes};

/// The generated messages and clients.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_enum_match_arm,
    clippy::derive_partial_eq_without_eq,
    clippy::enum_variant_names,
    unreachable_pub,
    dead_code,
    reason = "generated code"
)]
pub(super) mod pb {
    tonic::include_proto!("etcdserverpb");
}

/// How long a member may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a connection is tried while a request is on it; etcd ends connections that are tried more
/// often than every five seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(6);

/// Largest answer: a page of records.
const ANSWER_LIMIT: usize = 512 << 20;

/// Name of the token in a request's metadata, as etcd's own clients have it.
const TOKEN: &str = "token";

/// What etcd says of a token that is older than the last change of users or roles.
const OLD_TOKEN: &str = "revision of auth store is old";

type Token = MetadataValue<Ascii>;

/// A connection to all members.
#[derive(Clone, Debug)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    place: String,
    members: Vec<Channel>,
    current: AtomicUsize,
    /// Where user and password are.
    config: EtcdConfig,
    token: Mutex<Option<Token>>,
    /// How long one request may take.
    timeout: Duration,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Whether a failed request may succeed when it is made again.
fn is_transient(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Unknown
        | Code::Cancelled
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted
        | Code::Unauthenticated => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => false,
    }
}

impl Client {
    /// Connects when it is first used; only what is wrong with the configuration is an error. Must
    /// be called on a runtime.
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, EtcdError> {
        config.check()?;
        let tls = config.tls()?.map(Arc::new);
        let timeout = (config.lease / 3).min(Duration::from_secs(2));
        let members = config.endpoints.iter().map(|url| {
            let invalid = |error: tonic::transport::Error| EtcdError::Endpoint {
                endpoint: url.clone(),
                problem: with_causes(&error),
            };
            // To tonic the connector's TLS is a transport like any other.
            let plain = url.replacen("https://", "http://", 1);
            let endpoint = Endpoint::from_shared(plain)
                .map_err(invalid)?
                .connect_timeout(CONNECT_TIMEOUT.min(timeout))
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(timeout);
            let Some(tls) = tls.clone() else {
                return Ok(endpoint.connect_lazy());
            };
            let connect = tower::service_fn(move |member: Uri| {
                let tls = Arc::clone(&tls);
                async move { tls.connect(&member).await.map(TokioIo::new) }
            });
            Ok(endpoint.connect_with_connector_lazy(connect))
        });
        Ok(Self(Arc::new(Inner {
            place: format!("etcd {}{}", config.endpoints.join(","), config.prefix),
            members: members.collect::<Result<_, EtcdError>>()?,
            current: AtomicUsize::new(0),
            config: config.clone(),
            token: Mutex::new(None),
            timeout,
        })))
    }

    /// What is connected to, for people.
    pub(super) fn place(&self) -> &str {
        &self.0.place
    }

    pub(super) async fn range(
        &self,
        request: pb::RangeRequest,
    ) -> Result<pb::RangeResponse, EtcdError> {
        self.call(request, |channel, request| async move {
            let mut client = KvClient::new(channel).max_decoding_message_size(ANSWER_LIMIT);
            client.range(request).await
        })
        .await
    }

    pub(super) async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, EtcdError> {
        self.call(request, |channel, request| async move {
            let mut client = KvClient::new(channel).max_decoding_message_size(ANSWER_LIMIT);
            client.txn(request).await
        })
        .await
    }

    pub(super) async fn grant(&self, seconds: i64) -> Result<pb::LeaseGrantResponse, EtcdError> {
        let request = pb::LeaseGrantRequest {
            ttl: seconds,
            id: 0,
        };
        self.call(request, |channel, request| async move {
            LeaseClient::new(channel).lease_grant(request).await
        })
        .await
    }

    pub(super) async fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        let request = pb::LeaseRevokeRequest { id: lease };
        self.call(request, |channel, request| async move {
            LeaseClient::new(channel).lease_revoke(request).await
        })
        .await?;
        Ok(())
    }

    /// Renews a lease, and returns the seconds that it has: 0 if there is no such lease.
    pub(super) async fn keep_alive(&self, lease: i64) -> Result<i64, EtcdError> {
        let request = pb::LeaseKeepAliveRequest { id: lease };
        self.call(request, |channel, request| async move {
            let (metadata, extensions, request) = request.into_parts();
            let stream = tokio_stream::once(request);
            let request = Request::from_parts(metadata, extensions, stream);
            let mut answers = LeaseClient::new(channel)
                .lease_keep_alive(request)
                .await?
                .into_inner();
            let answer = answers.message().await?;
            answer
                .map(|answer| tonic::Response::new(answer.ttl))
                .ok_or_else(|| Status::unavailable("etcd ended the stream of renewals"))
        })
        .await
    }

    /// One request to one member. After a failure that another member may not have, the next request
    /// goes to the next one.
    async fn call<M, T, F, Fut>(&self, message: M, request: F) -> Result<T, EtcdError>
    where
        F: FnOnce(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let inner = &self.0;
        let current = inner.current.load(Ordering::Relaxed);
        let member = inner.members[current % inner.members.len()].clone();
        let outcome = tokio::time::timeout(inner.timeout, async {
            let mut message = Request::new(message);
            if let Some(token) = self.token(&member).await? {
                message.metadata_mut().insert(TOKEN, token);
            }
            request(member, message).await
        })
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        let status = match outcome {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        let place = inner.place.clone();
        // Of a connection that failed, the message says nothing but that.
        let problem = causes::append(status.message().to_owned(), status.source());
        // Tokens end, also when users or roles are changed; the next request gets another one.
        let stale = status.code() == Code::Unauthenticated || problem.contains(OLD_TOKEN);
        if stale {
            *inner.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        if !stale && !is_transient(status.code()) {
            return Err(EtcdError::Refused { place, problem });
        }
        // Whoever failed first moves on, once.
        let next = current.wrapping_add(1);
        if inner
            .current
            .compare_exchange(current, next, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
        {
            tracing::trace!("another request has moved on to the next member");
        }
        Err(EtcdError::Unavailable { place, problem })
    }

    /// The token to show, got from this member if there is none.
    async fn token(&self, member: &Channel) -> Result<Option<Token>, Status> {
        let inner = &self.0;
        if inner.config.user.is_none() {
            return Ok(None);
        }
        let known = inner
            .token
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if known.is_some() {
            return Ok(known);
        }
        // It may have been changed since the last token.
        let credentials = inner.config.credentials();
        let Some(Credentials { user, password }) =
            credentials.map_err(|error| Status::unavailable(with_causes(&error)))?
        else {
            return Ok(None);
        };
        let request = pb::AuthenticateRequest {
            name: user,
            password,
        };
        let answer = AuthClient::new(member.clone())
            .authenticate(request)
            .await?;
        let token: Token = answer
            .into_inner()
            .token
            .parse()
            .map_err(|_| Status::internal("etcd gave a token that no request can carry"))?;
        *inner.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(Some(token))
    }
}

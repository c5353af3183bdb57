//! Lets only those calls through to the services that their caller may make.

use std::{
    task::{Context, Poll},
    time::SystemTime,
};

use futures::future::{Either, Ready, ready};
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tower::{Layer, Service};

use super::{
    denials::Denials,
    peer::{self, Access},
};
use crate::proto::Rpc;

/// Puts the check in front of a service.
#[derive(Clone, Debug)]
pub(super) struct Authorise {
    denials: Denials,
}

impl Authorise {
    pub(super) fn new(denials: Denials) -> Self {
        Self { denials }
    }
}

/// A service behind the check.
#[derive(Clone, Debug)]
pub(super) struct Authorised<S> {
    inner: S,
    denials: Denials,
}

impl<S> Layer<S> for Authorise {
    type Service = Authorised<S>;

    fn layer(&self, inner: S) -> Authorised<S> {
        Authorised {
            inner,
            denials: self.denials.clone(),
        }
    }
}

impl<S> Service<Request<Body>> for Authorised<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match check(&request, &self.denials) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

/// An error unless the caller may make this call.
fn check(request: &Request<Body>, denials: &Denials) -> Result<(), Status> {
    let path = request.uri().path();
    let Some(rpc) = Rpc::from_path(path) else {
        return Err(Status::unimplemented(format!(
            "this version of natmig knows no {path}"
        )));
    };
    let peer = peer::of(request.extensions())?;
    if peer.expires().is_some_and(|at| at < SystemTime::now()) {
        return Err(Status::unauthenticated(format!(
            "the certificate of {peer} has expired since it connected; renew it with `natmig pki \
             renew` and connect again"
        )));
    }
    if peer.may(Access::needed(rpc)) {
        return Ok(());
    }
    let refusal = peer.refusal(rpc);
    denials.note(peer, rpc, String::new(), &refusal);
    Err(Status::permission_denied(refusal))
}

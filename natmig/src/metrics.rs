//! A daemon's metrics, for Prometheus and whatever else reads `OpenMetrics`: `GET /metrics` over
//! plain HTTP, on an address of the daemon's configuration.
//!
//! A scrape reads and changes nothing. It runs beside the daemon's own work, never on the thread
//! that writes the tables, and few scrapes run at once, however many ask.

mod router;

use std::{
    convert::Infallible,
    fmt, io,
    net::{self, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task,
};

pub use self::router::RouterMetrics;

/// What a scrape is answered with (`OpenMetrics` 1.0).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections that are served at once; others wait.
const CONNECTIONS: usize = 8;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause after a connection could not be taken, mostly for want of file descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Metrics as text.
pub trait Metrics: Send + Sync + 'static {
    /// All metrics at this moment, as `OpenMetrics` text; the error says why there are none.
    fn render(&self) -> Result<String, String>;
}

/// Metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve metrics on {address}: {source}; set metrics = \"ADDRESS:PORT\" to an address of this machine that is free, or remove it"
)]
pub struct MetricsError {
    pub(crate) address: SocketAddr,
    pub(crate) source: io::Error,
}

/// The address on which metrics are served.
pub struct Endpoint {
    listener: TcpListener,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.listener).finish()
    }
}

impl Endpoint {
    /// Takes the address.
    pub async fn open(address: SocketAddr) -> Result<Self, MetricsError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| MetricsError { address, source })?;
        Ok(Self { listener })
    }

    /// As [`Self::open`], on an address that was taken already.
    pub fn on(listener: net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        Ok(Self { listener })
    }

    /// The address, with the port that the system chose if it was 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers scrapes until the task ends.
    pub async fn serve(self, metrics: Arc<dyn Metrics>) {
        let limit = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let metrics = Arc::clone(&metrics);
                    tokio::spawn(async move {
                        connection(stream, metrics).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a scrape of the metrics was not taken");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Serves one request.
async fn connection(stream: TcpStream, metrics: Arc<dyn Metrics>) {
    let service = service_fn(|request| answer(request, Arc::clone(&metrics)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scrape of the metrics ended early");
    }
}

async fn answer(
    request: Request<Incoming>,
    metrics: Arc<dyn Metrics>,
) -> Result<Response<String>, Infallible> {
    if request.uri().path() != "/metrics" {
        return Ok(failure(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "metrics can only be read\n",
        ));
    }
    let rendered = task::spawn_blocking(move || metrics.render())
        .await
        .unwrap_or_else(|error| Err(error.to_string()));
    Ok(match rendered {
        Ok(text) => {
            let mut response = Response::new(text);
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
            response
        }
        Err(error) => {
            tracing::warn!(%error, "a scrape of the metrics failed");
            failure(StatusCode::SERVICE_UNAVAILABLE, &format!("{error}\n"))
        }
    })
}

/// A gauge that stands at a value.
pub(crate) fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

fn failure(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct Fixed(Result<String, String>);

    impl Metrics for Fixed {
        fn render(&self) -> Result<String, String> {
            self.0.clone()
        }
    }

    async fn ask(metrics: Fixed, request: &str) -> String {
        let endpoint = Endpoint::open("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = endpoint.address().unwrap();
        let server = tokio::spawn(endpoint.serve(Arc::new(metrics)));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn a_scrape_is_answered_with_open_metrics_text() {
        let metrics = Fixed(Ok("natmig_term 3\n# EOF\n".to_owned()));
        let answer = ask(metrics, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(OPEN_METRICS), "{answer}");
        assert!(answer.ends_with("natmig_term 3\n# EOF\n"), "{answer}");
    }

    #[tokio::test]
    async fn what_cannot_be_answered_says_why() {
        for (request, status, text) in [
            ("GET / HTTP/1.1\r\nHost: here\r\n\r\n", "404", "at /metrics"),
            (
                "DELETE /metrics HTTP/1.1\r\nHost: here\r\n\r\n",
                "405",
                "only be read",
            ),
            (
                "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n",
                "503",
                "not loaded",
            ),
            ("rubbish\r\n\r\n", "400", ""),
        ] {
            let answer = ask(Fixed(Err("not loaded".to_owned())), request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.contains(text), "{answer}");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_refused_with_a_remedy() {
        let first = Endpoint::open("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let error = Endpoint::open(first.address().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("metrics ="), "{error}");
    }
}

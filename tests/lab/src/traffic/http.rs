//! Downloads by the real `curl` from a small HTTP server in the VM, one connection each.

use std::{
    io::{Cursor, Read},
    net::{SocketAddr, TcpListener},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Flow, HTTP_PORT, Record, content};
use crate::{namespace::Namespace, network::Network};

const STREAM: u32 = u32::MAX;

fn body(size: u64) -> Vec<u8> {
    (0..size)
        .map(|position| content(STREAM, position))
        .collect()
}

/// Known content at a steady rate, so that a download lasts as long as it should.
struct Paced {
    body: Cursor<Vec<u8>>,
    rate: u64,
    start: Instant,
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let due = Duration::from_nanos(self.body.position() * 1_000_000_000 / self.rate.max(1));
        thread::sleep(due.saturating_sub(self.start.elapsed()));
        let length = buffer.len().min(4096);
        self.body.read(&mut buffer[..length])
    }
}

/// Serves `/SIZE/RATE`, over both address families: that many bytes of known content, that many bytes a second.
pub(super) fn serve(namespace: &Namespace, stop: &Arc<AtomicBool>) -> Result<JoinHandle<()>> {
    let listener = namespace.enter(|| Ok(TcpListener::bind(("::", HTTP_PORT))?))?;
    let server =
        tiny_http::Server::from_listener(listener, None).map_err(anyhow::Error::from_boxed)?;
    let stop = Arc::clone(stop);
    Ok(thread::spawn(move || {
        // Clients finish what they began after the stop; the server outlives them.
        let mut last = Instant::now();
        while !stop.load(Ordering::Relaxed) || last.elapsed() < Duration::from_millis(200) {
            if let Ok(Some(request)) = server.recv_timeout(Duration::from_millis(50)) {
                last = Instant::now();
                let mut numbers = request
                    .url()
                    .split('/')
                    .filter_map(|part| part.parse().ok());
                let (size, rate) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                let paced = Paced {
                    body: Cursor::new(body(size)),
                    rate,
                    start: Instant::now(),
                };
                let response = tiny_http::Response::new(
                    200.into(),
                    Vec::new(),
                    paced,
                    usize::try_from(size).ok(),
                    None,
                );
                thread::spawn(move || {
                    // A client that goes away is noticed at its own side.
                    drop(request.respond(response.with_chunked_threshold(usize::MAX)));
                });
            }
        }
    }))
}

#[derive(Debug, Default)]
struct Shared {
    completed: AtomicU64,
    bytes: AtomicU64,
    longest: AtomicU64,
    broken: Mutex<Option<String>>,
}

/// One download after the other.
#[derive(Debug)]
pub(super) struct Downloads {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Downloads {
    pub(super) fn start(
        network: &Network,
        flow: &Flow,
        rate: u32,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let namespace = network.node(&flow.from)?.clone();
        let url = format!("http://{}", SocketAddr::new(flow.to_address, HTTP_PORT));
        let shared = Arc::<Shared>::default();
        let (stop, inner, name) = (
            Arc::clone(stop),
            Arc::clone(&shared),
            format!("curl {} → {}", flow.from, flow.to_address),
        );
        let thread = thread::spawn(move || {
            // The first one is short, so that the flow is soon known to work.
            let mut size = u64::from(rate) / 4;
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                if let Err(error) = download(&namespace, &url, size, rate) {
                    inner
                        .broken
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(format!("{name}: {error:#}"));
                    return;
                }
                inner.completed.fetch_add(1, Ordering::Relaxed);
                inner.bytes.fetch_add(size, Ordering::Relaxed);
                inner
                    .longest
                    .fetch_max(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
                size = u64::from(rate) * 3;
            }
        });
        Ok(Self { shared, thread })
    }

    pub(super) fn completed(&self) -> u64 {
        self.shared.completed.load(Ordering::Relaxed)
    }

    pub(super) fn broken(&self) -> Option<String> {
        self.shared
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn finish(self, record: &mut Record) {
        if self.thread.join().is_err() {
            record.broken = Some("a thread panicked".into());
        }
        record.connections = self.shared.completed.load(Ordering::Relaxed);
        record.bytes = self.shared.bytes.load(Ordering::Relaxed);
        let broken = self
            .shared
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        record.broken = record.broken.take().or(broken);
    }
}

fn download(namespace: &Namespace, url: &str, size: u64, rate: u32) -> Result<()> {
    let output = namespace
        .command("curl")
        .args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "60",
            "--globoff",
            "--noproxy",
            "*",
        ])
        .arg(format!("{url}/{size}/{rate}"))
        .stdin(Stdio::null())
        .output()
        .context("cannot run curl")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    ensure!(output.stdout == body(size), "wrong content");
    Ok(())
}

//! A TCP proxy between natmig and a server, which holds back what natmig sends when it is told to: for
//! requests that are on their way while the world changes.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by several test programs, each of which uses a part"
)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What was sent within this time after the first byte held back is one request.
const BURST: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct State {
    /// Bytes that may still pass towards the server.
    left: u64,
    /// Bytes that have passed towards the server.
    passed: u64,
    /// When the first byte was held back.
    since: Option<Instant>,
}

/// The proxy; everything passes until it is told otherwise.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Set when the first burst of what is held back goes on to the server.
    released: watch::Sender<bool>,
}

impl Proxy {
    pub async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                left: u64::MAX,
                passed: 0,
                since: None,
            })),
            released: watch::channel(false).0,
        };
        let serve = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let proxy = serve.clone();
                let server = server.clone();
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(server).await {
                        proxy.pass(client, server).await;
                    }
                });
            }
        });
        proxy
    }

    /// Holds back what is sent from here on, after so many bytes.
    pub fn hold_after(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap();
        state.left = bytes;
        state.since = None;
    }

    /// Bytes that have passed towards the server.
    pub fn passed(&self) -> u64 {
        self.state.lock().unwrap().passed
    }

    /// Whether anything is held back.
    pub fn holds(&self) -> bool {
        self.state.lock().unwrap().since.is_some()
    }

    /// Lets the first request that is held back go on to the server, and nothing after it.
    pub fn release_first(&self) {
        self.released.send_replace(true);
    }

    async fn pass(&self, client: TcpStream, server: TcpStream) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let back = tokio::spawn(async move {
            // Whichever side ends first ends the connection.
            tokio::io::copy(&mut from_server, &mut to_client).await.ok();
        });
        let mut held = Vec::new();
        let mut released = self.released.subscribe();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = tokio::select! {
                read = from_client.read(&mut buffer) => read,
                () = set(&mut released) => {
                    if to_server.write_all(&held).await.is_err() {
                        break;
                    }
                    held.clear();
                    // The rest is swallowed; the connection stays.
                    while from_client.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
                    break;
                }
            };
            let Ok(read @ 1..) = read else {
                break;
            };
            let passing = {
                let mut state = self.state.lock().unwrap();
                let passing = read.min(usize::try_from(state.left).unwrap_or(usize::MAX));
                state.passed += passing as u64;
                if state.left != u64::MAX {
                    state.left -= passing as u64;
                }
                if passing < read {
                    let since = *state.since.get_or_insert_with(Instant::now);
                    if since.elapsed() < BURST {
                        held.extend_from_slice(&buffer[passing..read]);
                    }
                }
                passing
            };
            if to_server.write_all(&buffer[..passing]).await.is_err() {
                break;
            }
        }
        back.abort();
    }
}

/// Returns when the flag is set, or can be no more.
async fn set(flag: &mut watch::Receiver<bool>) {
    flag.wait_for(|set| *set).await.ok();
}

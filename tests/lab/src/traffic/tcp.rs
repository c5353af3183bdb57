//! Long TCP transfers: one connection for the whole run, content checked in both directions.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Flow, Progress, Record, TCP_PORTS, content};
use crate::network::Network;

/// No progress for this long is a broken connection. After an outage a sender may be silent for as
/// long as that lasted, for its timer doubles, up to two minutes; and outages may follow each other.
const PATIENCE: Duration = Duration::from_mins(5);
const TICK: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Shared {
    checked: AtomicU64,
    broken: Mutex<Option<String>>,
}

impl Shared {
    fn fail(&self, why: String) {
        self.broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
    }
}

/// One running transfer.
#[derive(Debug)]
pub(super) struct Transfer {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<u64>>,
    readers: Vec<JoinHandle<(u64, Duration)>>,
}

impl Transfer {
    pub(super) fn start(
        network: &Network,
        flow: &Flow,
        rate: u32,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let address = SocketAddr::new(flow.to_address, flow.port + TCP_PORTS);
        let listener = network
            .node(&flow.to)?
            .enter(|| Ok(TcpListener::bind(address)?))?;
        let client = network.node(&flow.from)?.enter(|| {
            TcpStream::connect_timeout(&address, Duration::from_secs(10))
                .with_context(|| format!("{} cannot connect to {address}", flow.from))
        })?;
        let (server, peer) = listener.accept()?;
        anyhow::ensure!(
            peer.ip() == flow.from_address,
            "{} sees {peer} instead of {}",
            flow.to,
            flow.from_address
        );
        let shared = Arc::<Shared>::default();
        let mut transfer = Self {
            shared: Arc::clone(&shared),
            writers: Vec::new(),
            readers: Vec::new(),
        };
        let name = format!("{} {} → {}", flow.label(), flow.from, flow.to);
        for (direction, (source, sink)) in [(&client, &server), (&server, &client)]
            .into_iter()
            .enumerate()
        {
            let stream = flow.id * 2 + direction as u32;
            source.set_nodelay(true)?;
            source.set_write_timeout(Some(PATIENCE))?;
            sink.set_read_timeout(Some(PATIENCE))?;
            let (source, sink) = (source.try_clone()?, sink.try_clone()?);
            let (stop, failed, title) = (Arc::clone(stop), Arc::clone(&shared), name.clone());
            transfer.writers.push(thread::spawn(move || {
                write(source, stream, rate, &stop, &failed).unwrap_or_else(|error| {
                    failed.fail(format!("{title}: writing: {error}"));
                    0
                })
            }));
            let (shared, title) = (Arc::clone(&shared), name.clone());
            transfer.readers.push(thread::spawn(move || {
                read(sink, stream, &shared).unwrap_or_else(|error| {
                    shared.fail(format!("{title}: reading: {error}"));
                    (0, Duration::ZERO)
                })
            }));
        }
        Ok(transfer)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.shared.checked.load(Ordering::Relaxed)
    }

    pub(super) fn broken(&self) -> Option<String> {
        self.shared
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for the end of both directions; everything written must have been read.
    pub(super) fn finish(self, record: &mut Record) {
        let written: Vec<Option<u64>> = self
            .writers
            .into_iter()
            .map(|thread| thread.join().ok())
            .collect();
        let read: Vec<Option<(u64, Duration)>> = self
            .readers
            .into_iter()
            .map(|thread| thread.join().ok())
            .collect();
        for (written, read) in written.iter().zip(&read) {
            if written.is_none() || *written != read.map(|(bytes, _)| bytes) {
                self.shared.fail(format!(
                    "{written:?} bytes written, {:?} read",
                    read.map(|(bytes, _)| bytes)
                ));
            }
        }
        let broken = self
            .shared
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        record.connections = 1;
        record.bytes = read.iter().flatten().map(|(bytes, _)| bytes).sum();
        record.stall = read
            .iter()
            .flatten()
            .map(|(_, stall)| stall.as_nanos() as u64)
            .max()
            .unwrap_or(0);
        record.broken = broken;
    }
}

fn write(
    mut to: TcpStream,
    stream: u32,
    rate: u32,
    stop: &AtomicBool,
    shared: &Shared,
) -> std::io::Result<u64> {
    let chunk = (u64::from(rate) * TICK.as_millis() as u64 / 1000).max(1);
    let mut position = 0;
    while !stop.load(Ordering::Relaxed)
        && shared
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    {
        let bytes: Vec<u8> = (position..position + chunk)
            .map(|at| content(stream, at))
            .collect();
        to.write_all(&bytes)?;
        position += chunk;
        thread::sleep(TICK);
    }
    to.shutdown(Shutdown::Write)?;
    Ok(position)
}

fn read(mut from: TcpStream, stream: u32, shared: &Shared) -> std::io::Result<(u64, Duration)> {
    let mut position = 0;
    let mut progress = Progress::new();
    let mut buffer = vec![0; 65536];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok((position, progress.longest)),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        progress.note();
        for byte in &buffer[..length] {
            if *byte != content(stream, position) {
                return Err(std::io::Error::other(format!(
                    "wrong content at byte {position}"
                )));
            }
            position += 1;
        }
        shared.checked.fetch_add(length as u64, Ordering::Relaxed);
    }
}

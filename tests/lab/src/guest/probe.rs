//! Traffic with a guest's echo service: what a peer sends comes back from the guest, so everything
//! that is lost, doubled or damaged in either direction shows here.

use std::{
    fmt,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::ECHO_PORT;
use crate::{account::Window, clock, namespace::Namespace, run, traffic::content};

/// Time between datagrams.
const INTERVAL: Duration = Duration::from_millis(10);
/// Bytes that a connection sends between two pauses of as long.
const CHUNK: usize = 256;
/// A guest that does not answer by then is gone.
const PATIENCE: Duration = Duration::from_mins(2);

/// What became of a datagram: nanoseconds since the epoch, 0 for never.
#[derive(Clone, Copy, Debug, Default)]
struct Datagram {
    sent: u64,
    returned: u64,
}

/// Numbered datagrams to a guest and back.
#[derive(Debug)]
pub struct Datagrams {
    label: String,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Result<(Vec<Datagram>, u64)>>,
}

/// What became of all datagrams.
#[derive(Clone, Debug)]
pub struct DatagramRecord {
    label: String,
    datagrams: Vec<Datagram>,
    /// Answers that came again.
    pub duplicates: u64,
}

impl Datagrams {
    /// Starts to send from a node; returns when the guest has answered.
    pub fn start(from: &Namespace, label: &str, guest: IpAddr) -> Result<Self> {
        let socket = from.enter(|| {
            let any: IpAddr = match guest {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
            socket.connect(SocketAddr::new(guest, ECHO_PORT))?;
            Ok(socket)
        })?;
        socket.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let heard = Arc::new(AtomicBool::new(false));
        let thread = {
            let (stop, sent, heard) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&heard));
            thread::spawn(move || exchange(&socket, &stop, &sent, &heard))
        };
        run::wait_for(&format!("answers to {label}"), PATIENCE, || {
            ensure!(!thread.is_finished(), "{label} ended");
            Ok(heard.load(Ordering::Relaxed).then_some(()))
        })?;
        Ok(Self {
            label: label.to_owned(),
            stop,
            sent,
            thread,
        })
    }

    /// Lets so many more go out.
    pub fn more(&self, count: u64) -> Result<()> {
        let until = self.sent.load(Ordering::Relaxed) + count;
        run::wait_for(&format!("more of {}", self.label), PATIENCE, || {
            ensure!(!self.thread.is_finished(), "{} ended", self.label);
            Ok((self.sent.load(Ordering::Relaxed) >= until).then_some(()))
        })
    }

    /// Ends it, when everything that was sent lately was answered or is overdue.
    pub fn finish(self) -> Result<DatagramRecord> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(outcome) = self.thread.join() else {
            bail!("{}: its thread panicked", self.label);
        };
        let (datagrams, duplicates) = outcome.with_context(|| self.label.clone())?;
        Ok(DatagramRecord {
            label: self.label,
            datagrams,
            duplicates,
        })
    }
}

fn exchange(
    socket: &UdpSocket,
    stop: &AtomicBool,
    count: &AtomicU64,
    heard: &AtomicBool,
) -> Result<(Vec<Datagram>, u64)> {
    let mut datagrams: Vec<Datagram> = Vec::new();
    let mut duplicates = 0;
    let mut due = Instant::now();
    let mut buffer = [0; 64];
    let mut stopped = None;
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let number = buffer[..length]
                    .try_into()
                    .map(u64::from_be_bytes)
                    .context("an answer that is none")?;
                let datagram = usize::try_from(number)
                    .ok()
                    .and_then(|number| datagrams.get_mut(number))
                    .context("an answer to what was not sent")?;
                if datagram.returned == 0 {
                    datagram.returned = clock::now();
                } else {
                    duplicates += 1;
                }
                heard.store(true, Ordering::Relaxed);
                continue;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // An ICMP error; the datagram that it is about is missing.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable
                ) => {}
            Err(error) => return Err(error.into()),
        }
        if stop.load(Ordering::Relaxed) {
            let since: &mut Instant = stopped.get_or_insert_with(Instant::now);
            let missing = datagrams.iter().rev().take(100);
            let open = missing.filter(|datagram| datagram.returned == 0).count();
            if open == 0 || since.elapsed() > Duration::from_secs(10) {
                return Ok((datagrams, duplicates));
            }
        } else if Instant::now() >= due {
            let number = datagrams.len() as u64;
            let sent = clock::now();
            // Else it did not go out: no room, or the ICMP error of an earlier one.
            if socket.send(&number.to_be_bytes()).is_ok() {
                datagrams.push(Datagram { sent, returned: 0 });
                count.fetch_add(1, Ordering::Relaxed);
            }
            due = Instant::now() + INTERVAL;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

impl fmt::Display for DatagramRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, missing) = (self.sent(), self.missing());
        write!(f, "{}: {sent} datagrams, {missing} unanswered", self.label)
    }
}

impl DatagramRecord {
    /// How many were sent.
    pub fn sent(&self) -> usize {
        self.datagrams.len()
    }

    /// How many were not answered.
    pub fn missing(&self) -> usize {
        let missing = self.datagrams.iter().filter(|it| it.returned == 0);
        missing.count()
    }

    /// Longest time from a datagram to its answer.
    fn longest_delay(&self) -> u64 {
        let delays = self
            .datagrams
            .iter()
            .map(|it| it.returned.saturating_sub(it.sent));
        delays.max().unwrap_or_default()
    }

    /// What a person would call the outage: the longest time between two answers, around the pause.
    pub fn outage(&self, window: &Window) -> u64 {
        let mut returned: Vec<u64> = self.datagrams.iter().map(|it| it.returned).collect();
        returned.retain(|&at| at > 0);
        returned.sort_unstable();
        let gaps = returned
            .windows(2)
            .filter(|pair| pair[1] >= window.unplug && pair[0] <= window.end());
        gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// An error if something was lost that was sent outside of the windows, or came back twice. Windows
    /// are longer by `learning`, for a peer that has to learn something when they end.
    pub fn check(&self, windows: &[Window], learning: Duration) -> Result<()> {
        let learning = u64::try_from(learning.as_nanos())?;
        ensure!(
            self.duplicates == 0,
            "{}: {} duplicates",
            self.label,
            self.duplicates
        );
        let delay = self.longest_delay();
        for (number, datagram) in self.datagrams.iter().enumerate() {
            let excused = windows.iter().any(|it| {
                datagram.sent + delay >= it.unplug && datagram.sent <= it.end() + learning
            });
            ensure!(
                datagram.returned > 0 || excused,
                "{}: datagram {number} of {} is lost, sent {} ns after the guest ran again",
                self.label,
                self.datagrams.len(),
                windows
                    .first()
                    .map_or(0, |it| i128::from(datagram.sent) - i128::from(it.end())),
            );
        }
        Ok(())
    }
}

/// A connection whose every byte must come back as it was.
#[derive(Debug)]
pub struct Connection {
    label: String,
    stop: Arc<AtomicBool>,
    returned: Arc<AtomicU64>,
    writer: JoinHandle<Result<u64>>,
    reader: JoinHandle<Result<(u64, Duration)>>,
}

/// What became of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionRecord {
    /// Bytes that came back, as they were sent.
    pub bytes: u64,
    /// Longest time without a byte.
    pub stall: Duration,
}

impl Connection {
    /// Connects and starts to send; returns when the guest has answered.
    pub fn start(from: &Namespace, label: &str, guest: IpAddr) -> Result<Self> {
        let stream = from.enter(|| {
            Ok(TcpStream::connect_timeout(
                &SocketAddr::new(guest, ECHO_PORT),
                PATIENCE,
            )?)
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let returned = Arc::new(AtomicU64::new(0));
        let writer = {
            let (stream, stop) = (stream.try_clone()?, Arc::clone(&stop));
            thread::spawn(move || write(stream, &stop))
        };
        let reader = {
            let returned = Arc::clone(&returned);
            thread::spawn(move || read(stream, &returned))
        };
        run::wait_for(&format!("answers to {label}"), PATIENCE, || {
            ensure!(!reader.is_finished(), "{label} ended");
            Ok((returned.load(Ordering::Relaxed) > 0).then_some(()))
        })?;
        Ok(Self {
            label: label.to_owned(),
            stop,
            returned,
            writer,
            reader,
        })
    }

    /// Waits until so many more bytes came back.
    pub fn more(&self, bytes: u64) -> Result<()> {
        let until = self.returned.load(Ordering::Relaxed) + bytes;
        run::wait_for(&format!("more of {}", self.label), PATIENCE, || {
            ensure!(!self.reader.is_finished(), "{} broke", self.label);
            Ok((self.returned.load(Ordering::Relaxed) >= until).then_some(()))
        })
    }

    /// Ends it in order; an error if a byte is missing or wrong.
    pub fn finish(self) -> Result<ConnectionRecord> {
        self.stop.store(true, Ordering::Relaxed);
        let (Ok(written), Ok(read)) = (self.writer.join(), self.reader.join()) else {
            bail!("{}: a thread panicked", self.label);
        };
        let sent = written.with_context(|| format!("{}: sending", self.label))?;
        let (bytes, stall) = read.with_context(|| format!("{}: receiving", self.label))?;
        ensure!(
            sent == bytes,
            "{}: {bytes} of {sent} bytes came back",
            self.label
        );
        Ok(ConnectionRecord { bytes, stall })
    }
}

fn write(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64> {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let chunk: Vec<u8> = (sent..).take(CHUNK).map(|at| content(0, at)).collect();
        stream.write_all(&chunk)?;
        sent += CHUNK as u64;
        thread::sleep(INTERVAL);
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(sent)
}

fn read(mut stream: TcpStream, returned: &AtomicU64) -> Result<(u64, Duration)> {
    let mut buffer = [0; 4096];
    let mut at = 0;
    let mut stall = Duration::ZERO;
    let mut last = Instant::now();
    loop {
        let length = stream.read(&mut buffer)?;
        stall = stall.max(last.elapsed());
        last = Instant::now();
        if length == 0 {
            return Ok((at, stall));
        }
        for &byte in &buffer[..length] {
            ensure!(byte == content(0, at), "byte {at} is not what was sent");
            at += 1;
        }
        returned.store(at, Ordering::Relaxed);
    }
}

//! The kernel's tables as rtnetlink tells of them: all of them at once, and every change.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::decode::{self, Event};

/// Multicast groups (`RTNLGRP_*`): links, neighbours, addresses, routes, rules, settings of
/// interfaces, nexthop objects.
const GROUPS: [u32; 12] = [1, 3, 5, 7, 8, 9, 11, 12, 19, 24, 25, 32];

/// Bytes of events that the kernel keeps: some 50,000 routes.
const EVENT_BUFFER: libc::c_int = 32 << 20;

/// Bytes of a datagram, more than the kernel puts into one.
const DATAGRAM: usize = 1 << 17;

/// `NLM_F_DUMP_INTR`: something changed while it was read.
const DUMP_INTERRUPTED: u16 = 1 << 4;

/// How often an interrupted dump is repeated.
const ATTEMPTS: usize = 5;

/// Reading the kernel's tables failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MonitorError {
    /// Events were lost.
    #[error("the kernel dropped events, because they came faster than they were read")]
    Overrun,
    /// A message is not understood.
    #[error("an event of rtnetlink is not understood: {0}")]
    Unknown(String),
    /// Tables changed all the time while they were read.
    #[error("the kernel's tables changed all the time while they were read")]
    Restless,
    /// The system refuses.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A subscription to all changes, and a socket for questions.
pub(super) struct Monitor {
    events: Socket,
    questions: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    pending: VecDeque<Event>,
}

impl Monitor {
    pub(super) fn open() -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            events.add_membership(group)?;
        }
        events.set_non_blocking(true)?;
        set_receive_buffer(&events)?;
        Ok(Self {
            events,
            questions: Socket::new(NETLINK_ROUTE)?,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
            pending: VecDeque::new(),
        })
    }

    /// The next event; `None` if there is none at the moment.
    pub(super) fn next(&mut self) -> Result<Option<Event>, MonitorError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            self.buffer.clear();
            match self.events.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(MonitorError::Overrun);
                }
                Err(error) => return Err(error.into()),
            }
            let pending = &mut self.pending;
            messages(&self.buffer, |header, bytes| {
                let payload = &bytes[HEADER..];
                if let Some(event) = decode::raw(header.message_type, payload) {
                    pending.push_back(event);
                    return Ok(());
                }
                let event = decode(bytes)?.map_or(Event::Nothing, decode::event);
                let replaced = header.flags & NLM_F_REPLACE != 0;
                pending.push_back(if let Event::Route(route, _) = event {
                    Event::Route(route, replaced)
                } else {
                    event
                });
                Ok(())
            })?;
        }
    }

    /// Forgets all events that there are so far, because everything is about to be read.
    pub(super) fn skip(&mut self) -> Result<(), MonitorError> {
        self.pending.clear();
        loop {
            self.buffer.clear();
            match self.events.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted
                        || error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks for all there is of something.
    pub(super) fn dump(
        &mut self,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, MonitorError> {
        for _ in 0..ATTEMPTS {
            if let Some(all) = self.dump_once(request.clone())? {
                return Ok(all);
            }
        }
        Err(MonitorError::Restless)
    }

    /// `None` if something changed meanwhile.
    fn dump_once(
        &mut self,
        request: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, MonitorError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.questions.send(&bytes, 0)?;
        let (mut all, mut done, mut interrupted) = (Vec::new(), false, false);
        while !done {
            self.buffer.clear();
            self.questions.recv(&mut self.buffer, 0)?;
            let asked = self.sequence;
            messages(&self.buffer, |header, bytes| {
                if header.sequence_number != asked {
                    return Ok(());
                }
                interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match parse(bytes)?.payload {
                    NetlinkPayload::InnerMessage(message) => all.push(message),
                    NetlinkPayload::Done(end) if end.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-end.code).into());
                    }
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
                }
                Ok(())
            })?;
        }
        Ok((!interrupted).then_some(all))
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as the monitor is.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }
}

/// Bytes of a message's header.
const HEADER: usize = 16;

/// Calls `each` with header and bytes of every message of a datagram.
fn messages(
    datagram: &[u8],
    mut each: impl FnMut(NetlinkHeader, &[u8]) -> Result<(), MonitorError>,
) -> Result<(), MonitorError> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let unknown = |text: String| MonitorError::Unknown(text);
        let message =
            NetlinkBuffer::new_checked(rest).map_err(|error| unknown(error.to_string()))?;
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        let mut header = NetlinkHeader::default();
        header.length = message.length();
        header.message_type = message.message_type();
        header.flags = message.flags();
        header.sequence_number = message.sequence_number();
        let bytes = rest
            .get(..length)
            .filter(|bytes| bytes.len() >= HEADER)
            .ok_or_else(|| unknown("its length is wrong".to_owned()))?;
        each(header, bytes)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<NetlinkMessage<RouteNetlinkMessage>, MonitorError> {
    NetlinkMessage::deserialize(bytes).map_err(|error| MonitorError::Unknown(error.to_string()))
}

fn decode(bytes: &[u8]) -> Result<Option<RouteNetlinkMessage>, MonitorError> {
    let payload = parse(bytes)?.payload;
    Ok(if let NetlinkPayload::InnerMessage(message) = payload {
        Some(message)
    } else {
        None
    })
}

/// As large a buffer as the kernel grants.
fn set_receive_buffer(socket: &Socket) -> io::Result<()> {
    let value = EVENT_BUFFER;
    for option in [libc::SO_RCVBUF, libc::SO_RCVBUFFORCE] {
        let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
        // SAFETY: the value is a number of the size that is said, valid during the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size,
            )
        };
        if result < 0 && option == libc::SO_RCVBUF {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

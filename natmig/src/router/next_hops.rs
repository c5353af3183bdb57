//! Next hops of natmig's own: `ROUTES`, `NEXT_HOPS` and the routes of prefixes, kept equal to what
//! the kernel's own tables say, so that the program need not ask them for every packet.
//!
//! The mirror is pure: routes, neighbours and interfaces in, changes of the tables out. The keeper
//! feeds it with rtnetlink's events and applies what comes out. Where anything is not plainly
//! understood, a prefix has no route, and the program asks the kernel. The same goes for everything
//! when the keeper is not alive, or not certain: see [`natmig_common::Heartbeat`].

mod decode;
mod elements;
mod fib;
mod follower;
mod grains;
mod heartbeat;
mod keeper;
mod links;
mod mirror;
mod monitor;
mod paths;
mod prefix;
mod sets;
mod settings;
mod table;

use std::{
    collections::BTreeMap,
    io::Write as _,
    mem::offset_of,
    os::unix::net::UnixStream,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
    time::Instant,
};

use ipnet::IpNet;
use natmig_common::{Interface, names};

use self::{
    follower::Follower, heartbeat::Heartbeat, keeper::Keeper, monitor::Monitor, table::Table,
};
use super::{RouterError, instance::Instance, loader, maps::Maps, netlink::Socket};

pub use self::heartbeat::Pulse;
pub(super) use self::heartbeat::listen;

/// The route that all of a prefix takes: an IPv4 /16 or /24, or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixRoute {
    /// The prefix.
    pub prefix: IpNet,
    /// Element of `ROUTES`; 0 to ask the kernel.
    pub route: u16,
}

/// Has the program ask the kernel for everything, until a keeper says otherwise.
pub(super) fn withdraw(maps: &Maps) {
    let patience = offset_of!(natmig_common::Heartbeat, patience);
    maps.heartbeat.store(0, patience, 0);
}

/// What the keeper is told.
enum Message {
    /// The interfaces changed.
    Interfaces(BTreeMap<u32, Interface>),
    Stop,
}

/// The running keeper of next hops. When it is dropped, the program asks the kernel.
#[derive(Debug)]
pub struct NextHops {
    messages: Sender<Message>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl NextHops {
    /// Starts the keeper of an instance, in the calling thread's network namespace. `set_routes` has
    /// the routes of prefixes changed before it returns, on whatever thread writes the tables;
    /// `false` ends the keeper.
    pub(super) fn start(
        instance: &Instance,
        interfaces: BTreeMap<u32, Interface>,
        set_routes: impl FnMut(Vec<PrefixRoute>) -> bool + Send + 'static,
    ) -> Result<Self, RouterError> {
        let doing = || RouterError::system("start the keeper of next hops");
        let (messages, received) = channel();
        let (wake, woken) = UnixStream::pair().map_err(doing())?;
        wake.set_nonblocking(true).map_err(doing())?;
        woken.set_nonblocking(true).map_err(doing())?;
        let monitor = Monitor::open().map_err(doing())?;
        let keeper = Keeper {
            follower: Follower::new(monitor, interfaces),
            socket: Socket::open().map_err(doing())?,
            table: Table::open(instance)?,
            heartbeat: Heartbeat::new(loader::open_program(instance, names::HEARTBEAT_PROGRAM)?),
            set_routes: Box::new(set_routes),
            messages: received,
            wake: woken,
            next_beat: Instant::now(),
            stopping: false,
        };
        let thread = thread::Builder::new()
            .name("next-hops".to_owned())
            .spawn(move || keeper.run())
            .map_err(doing())?;
        Ok(Self {
            messages,
            wake,
            thread: Some(thread),
        })
    }

    /// Tells the keeper of interfaces that changed.
    pub(super) fn set_interfaces(&self, interfaces: BTreeMap<u32, Interface>) {
        self.tell(Message::Interfaces(interfaces));
    }

    fn tell(&self, message: Message) {
        // An error says that the keeper has ended, or that it has been woken already.
        if self.messages.send(message).is_ok()
            && let Err(error) = (&self.wake).write(&[0])
        {
            tracing::debug!(%error, "the keeper of next hops is awake");
        }
    }
}

impl Drop for NextHops {
    fn drop(&mut self) {
        self.tell(Message::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the keeper of next hops panicked");
        }
    }
}

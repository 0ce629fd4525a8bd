//! [`Tcp`] without a kernel: several nodes on one network in memory, with a clock that the test sets.
//!
//! Deterministic: what is cut where comes from a seed. Bytes arrive in pieces of any size, a reader that does not read fills its
//! buffer and then its writer's, and whatever the test orders fails.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use nix::errno::Errno;

use super::datagrams::{Endpoint, HEADROOM, PAYLOAD_BYTES_MAX, Udp};
use super::sockets::Table;
use super::{Chunk, Close, Event, Id, IdMap, Options, Tcp, Wait};
use crate::io::lease::{self, Lease};
use crate::proto::rng::Rng;
use crate::time::Time;

/// Bytes a connection takes in before its reader reads.
const ROOM_BYTES: usize = 100_000;
/// Bytes a datagram socket keeps until they are received, each datagram counted as 500 more; what comes then is lost.
const QUEUE_BYTES: usize = 200_000;
/// Buffers per node.
const BUFFERS: u16 = 8;
/// Of which datagrams leave so many to others.
const BUFFERS_KEPT: usize = 4;

/// The network. A copy is the same network.
#[derive(Clone)]
pub struct Network(Rc<RefCell<Inner>>);

struct Inner {
    now: Time,
    rng: Rng,
    /// Both ends of all connections; a number is never used again.
    ends: Vec<End>,
    /// Who listens where: the node, and its name for the listener.
    listeners: HashMap<SocketAddr, (usize, Id)>,
    /// Connections that nobody has accepted: the end that is to be, and who came.
    backlog: HashMap<SocketAddr, VecDeque<usize>>,
    /// Connections to these addresses fail.
    unreachable: HashMap<SocketAddr, Errno>,
    /// The datagram sockets.
    mailboxes: HashMap<SocketAddr, Mailbox>,
    nodes: usize,
    port: u16,
    /// The number of every interface.
    interface_index: u32,
}

#[derive(Default)]
struct Mailbox {
    waiting: VecDeque<(Endpoint, Vec<u8>)>,
    bytes: usize,
    /// The only one who is heard.
    peer: Option<SocketAddr>,
}

#[derive(Default)]
struct End {
    peer: usize,
    address: Option<SocketAddr>,
    inbox: VecDeque<u8>,
    /// Each with what is told when all of it is with the other end.
    outgoing: VecDeque<(Vec<u8>, Event)>,
    /// A FIN follows the last of `outgoing`.
    shut_down: bool,
    /// The other end's FIN is behind the inbox.
    ended: bool,
    error: Option<Errno>,
    closed: bool,
}

impl Network {
    /// A network on which everything that is left to chance follows from `seed`.
    pub fn new(seed: u8) -> Network {
        Network(Rc::new(RefCell::new(Inner {
            now: Time::from_nanos(1_000_000_000),
            rng: Rng::from_seed([seed; 32]),
            ends: Vec::new(),
            listeners: HashMap::new(),
            backlog: HashMap::new(),
            unreachable: HashMap::new(),
            mailboxes: HashMap::new(),
            nodes: 0,
            port: 40_000,
            interface_index: 1,
        })))
    }

    /// One more node.
    pub fn node(&self) -> Fake {
        let mut inner = self.0.borrow_mut();
        inner.nodes += 1;
        let leases = lease::map(BUFFERS).expect("memory");
        Fake {
            network: self.clone(),
            number: inner.nodes,
            table: Table::new(),
            sockets: IdMap::default(),
            order: Vec::new(),
            free: leases,
            early: Vec::new(),
            wait: Wait::Not,
            accept_error: None,
            datagram_error: None,
        }
    }

    /// The clock of all nodes.
    pub fn now(&self) -> Time {
        self.0.borrow().now
    }

    /// Sets it.
    pub fn advance_to(&self, now: Time) {
        self.0.borrow_mut().now = now;
    }

    /// Every interface is removed and made again. Listeners stay.
    pub fn renew_interfaces(&self) {
        self.0.borrow_mut().interface_index += 1;
    }

    /// From now on connections to `address` fail with `error`; without, they do what they do.
    pub fn refuse(&self, address: SocketAddr, error: Option<Errno>) {
        let mut inner = self.0.borrow_mut();
        match error {
            Some(error) => drop(inner.unreachable.insert(address, error)),
            None => drop(inner.unreachable.remove(&address)),
        }
    }
}

enum Socket {
    Listener { address: SocketAddr, accepting: bool },
    Stream { end: usize, wanted: bool, passing: Option<Id>, failed: bool },
    Datagrams { address: SocketAddr, peer: Option<SocketAddr> },
}

/// One node.
pub struct Fake {
    network: Network,
    number: usize,
    table: Table<()>,
    sockets: IdMap<Socket>,
    /// In the order in which they came.
    order: Vec<Id>,
    free: Vec<Lease>,
    early: Vec<Event>,
    /// How long the last turn would have waited.
    wait: Wait,
    accept_error: Option<Errno>,
    datagram_error: Option<Errno>,
}

impl Fake {
    /// How long the last turn would have waited.
    pub fn wait(&self) -> Wait {
        self.wait
    }

    /// Sockets in use.
    pub fn open(&self) -> usize {
        self.sockets.len()
    }

    /// Buffers that nobody holds; at rest, all of them.
    pub fn buffers_home(&self) -> bool {
        self.free.len() == usize::from(BUFFERS)
    }

    /// Closes everything, as the end of a process does.
    pub fn close_all(&mut self) {
        for id in self.order.clone() {
            self.close(id, Close::Finish);
        }
    }

    /// All connections break, at both ends.
    pub fn break_all(&mut self, error: Errno) {
        let mut inner = self.network.0.borrow_mut();
        for (_, socket) in self.sockets.iter() {
            if let Socket::Stream { end, .. } = socket {
                let peer = inner.ends[*end].peer;
                inner.ends[*end].error = Some(error);
                inner.ends[peer].error = Some(error);
            }
        }
    }

    /// The next attempt to accept fails.
    pub fn fail_accept(&mut self, error: Errno) {
        self.accept_error = Some(error);
    }

    /// No datagram can be sent from now on; without `error`, again.
    pub fn fail_datagrams(&mut self, error: Option<Errno>) {
        self.datagram_error = error;
    }

    fn insert(&mut self, socket: Socket) -> Id {
        let id = self.table.insert(());
        self.sockets.insert(id, socket);
        self.order.push(id);
        id
    }

    fn queue(&mut self, id: Id, bytes: Vec<u8>) {
        if let Some(Socket::Stream { end, .. }) = self.sockets.at(id) {
            self.network.0.borrow_mut().ends[*end].outgoing.push_back((bytes, Event::Sent(id)));
        }
    }

    /// The end that is sent what `from` brings, if that is passed on.
    fn target(&self, from: Id) -> Option<usize> {
        let Socket::Stream { passing, .. } = self.sockets.at(from)? else { return None };
        match self.sockets.at((*passing)?)? {
            Socket::Stream { end, .. } => Some(*end),
            Socket::Listener { .. } | Socket::Datagrams { .. } => None,
        }
    }

    /// Accepts somebody, if somebody waits.
    fn accept_one(&mut self, listener: Id, events: &mut Vec<Event>) -> bool {
        let Some(Socket::Listener { address, accepting }) = self.sockets.at_mut(listener) else {
            return false;
        };
        let address = *address;
        let mut inner = self.network.0.borrow_mut();
        let waiting = inner.backlog.get_mut(&address).filter(|waiting| *accepting && !waiting.is_empty());
        let Some(waiting) = waiting else { return false };
        if let Some(error) = self.accept_error.take() {
            *accepting = false;
            events.push(Event::AcceptFailed { listener, error });
            return false;
        }
        let end = waiting.pop_front().expect("somebody waits");
        let from = inner.ends[inner.ends[end].peer].address.expect("who connects has an address");
        drop(inner);
        let id = self.insert(Socket::Stream { end, wanted: false, passing: None, failed: false });
        events.push(Event::Accepted { listener, id, from });
        true
    }

    /// Receives what has come to a datagram socket, as far as there are buffers.
    fn take_datagrams(&mut self, id: Id, events: &mut Vec<Event>) {
        let Some(Socket::Datagrams { address, .. }) = self.sockets.at(id) else { return };
        let mut inner = self.network.0.borrow_mut();
        let Some(mailbox) = inner.mailboxes.get_mut(address) else { return };
        while self.free.len() > BUFFERS_KEPT
            && let Some((from, payload)) = mailbox.waiting.pop_front()
            && let Some(mut lease) = self.free.pop()
        {
            mailbox.bytes -= payload.len() + 500;
            lease[HEADROOM..HEADROOM + payload.len()].copy_from_slice(&payload);
            events.push(Event::Datagram { id, from, chunk: Chunk::behind_headroom(lease, payload.len()) });
        }
    }

    fn move_on(&mut self, id: Id, events: &mut Vec<Event>) {
        let Some(Socket::Stream { end, .. }) = self.sockets.at(id) else { return };
        for event in self.network.0.borrow_mut().deliver(*end) {
            // Who brought it may have been closed.
            if !matches!(event, Event::Passed { from, .. } if self.sockets.at(from).is_none()) {
                events.push(event);
            }
        }
        let target = self.target(id);
        let Some(Socket::Stream { end, wanted, passing, failed }) = self.sockets.at_mut(id) else { return };
        let mut inner = self.network.0.borrow_mut();
        let (inner, free) = (&mut *inner, &mut self.free);
        let own = &mut inner.ends[*end];
        if let Some(error) = own.error.filter(|_| !*failed) {
            *failed = true;
            return events.push(Event::Failed { id, error });
        }
        if !*wanted || *failed {
            return;
        }
        if own.inbox.is_empty() {
            if own.ended {
                *wanted = false;
                events.push(Event::Ended(id));
            }
        } else if let Some(target) = target.filter(|_| inner.rng.below(4) > 0) {
            // One in four finds no pipe.
            let count = 1 + inner.rng.below(own.inbox.len() as u64) as usize;
            let bytes: Vec<u8> = own.inbox.drain(..count).collect();
            (*wanted, *passing) = (false, None);
            inner.ends[target].outgoing.push_back((bytes, Event::Passed { from: id, bytes: count, left: 0 }));
        } else if let Some(mut lease) = free.pop() {
            let most = own.inbox.len().min(lease.len());
            let count = 1 + inner.rng.below(most as u64) as usize;
            own.inbox.drain(..count).zip(lease.iter_mut()).for_each(|(byte, place)| *place = byte);
            (*wanted, *passing) = (false, None);
            events.push(Event::Received { id, chunk: Chunk::new(lease, count) });
        }
    }
}

impl Inner {
    /// Moves what `end` has to send, as far as there is room; what is told of it.
    fn deliver(&mut self, end: usize) -> Vec<Event> {
        let peer = self.ends[end].peer;
        let mut told = Vec::new();
        while let Some((mut bytes, event)) = self.ends[end].outgoing.pop_front() {
            if self.ends[peer].closed {
                // Nobody reads it any more.
                self.ends[end].error.get_or_insert(Errno::ECONNRESET);
                return told;
            }
            let inbox = &mut self.ends[peer].inbox;
            let count = bytes.len().min(ROOM_BYTES.saturating_sub(inbox.len()));
            inbox.extend(bytes.drain(..count));
            if !bytes.is_empty() {
                self.ends[end].outgoing.push_front((bytes, event));
                return told;
            }
            told.push(event);
        }
        if self.ends[end].shut_down {
            self.ends[peer].ended = true;
        }
        told
    }

    fn close(&mut self, end: usize, how: Close) {
        self.deliver(end);
        let peer = self.ends[end].peer;
        let own = &mut self.ends[end];
        own.closed = true;
        // Unread bytes make a RST of a FIN, as in the kernel.
        if how == Close::Reset || !own.inbox.is_empty() {
            self.ends[peer].error.get_or_insert(Errno::ECONNRESET);
        } else {
            self.ends[peer].ended = true;
        }
    }
}

impl Tcp for Fake {
    fn now(&self) -> Time {
        self.network.now()
    }

    fn listen(&mut self, mut address: SocketAddr, _: &Options) -> Result<(Id, SocketAddr), Errno> {
        let mut inner = self.network.0.borrow_mut();
        if address.port() == 0 {
            inner.port += 1;
            address.set_port(inner.port);
        }
        if inner.listeners.contains_key(&address) {
            return Err(Errno::EADDRINUSE);
        }
        drop(inner);
        let id = self.insert(Socket::Listener { address, accepting: false });
        self.network.0.borrow_mut().listeners.insert(address, (self.number, id));
        Ok((id, address))
    }

    fn interface_index(&self, _: &str) -> Option<u32> {
        Some(self.network.0.borrow().interface_index)
    }

    fn accept(&mut self, listener: Id) {
        if let Some(Socket::Listener { accepting, .. }) = self.sockets.at_mut(listener) {
            *accepting = true;
        }
    }

    fn connect(&mut self, address: SocketAddr, _: &Options) -> Result<Id, Errno> {
        let mut inner = self.network.0.borrow_mut();
        let (own, peer) = (inner.ends.len(), inner.ends.len() + 1);
        inner.port = inner.port.checked_add(1).unwrap_or(1024);
        let from = SocketAddr::from((Ipv4Addr::new(10, 0, 0, self.number as u8), inner.port));
        inner.ends.push(End { peer, address: Some(from), ..End::default() });
        inner.ends.push(End { peer: own, ..End::default() });
        let error = match inner.unreachable.get(&address) {
            Some(error) => Some(*error),
            None if inner.listeners.contains_key(&address) => None,
            None => Some(Errno::ECONNREFUSED),
        };
        if error.is_none() {
            inner.backlog.entry(address).or_default().push_back(peer);
        }
        drop(inner);
        let id =
            self.insert(Socket::Stream { end: own, wanted: false, passing: None, failed: error.is_some() });
        match error {
            // Silence, not even a refusal.
            Some(Errno::ETIMEDOUT) => {}
            Some(error) => self.early.push(Event::Failed { id, error }),
            None => self.early.push(Event::Connected(id)),
        }
        Ok(id)
    }

    fn receive(&mut self, id: Id) {
        if let Some(Socket::Stream { wanted, .. }) = self.sockets.at_mut(id) {
            *wanted = true;
        }
    }

    fn pass(&mut self, from: Id, to: Id) {
        if let Some(Socket::Stream { wanted, passing, .. }) = self.sockets.at_mut(from) {
            (*wanted, *passing) = (true, Some(to));
        }
    }

    fn send(&mut self, id: Id, chunk: Chunk) {
        self.queue(id, chunk.to_vec());
        self.free.push(chunk.lease);
    }

    fn send_bytes(&mut self, id: Id, bytes: &[u8]) {
        self.queue(id, bytes.to_vec());
    }

    // Bytes in memory are acknowledged at once.
    fn be_patient(&mut self, _: Id) {}

    fn shut_down(&mut self, id: Id) {
        if let Some(Socket::Stream { end, .. }) = self.sockets.at(id) {
            self.network.0.borrow_mut().ends[*end].shut_down = true;
        }
    }

    fn close(&mut self, id: Id, how: Close) {
        let Some(socket) = self.sockets.remove(id) else { return };
        self.order.retain(|other| *other != id);
        self.table.remove(id);
        let mut inner = self.network.0.borrow_mut();
        match socket {
            Socket::Stream { end, .. } => inner.close(end, how),
            Socket::Listener { address, .. } => {
                inner.listeners.remove(&address);
                let waiting = inner.backlog.remove(&address).unwrap_or_default();
                waiting.into_iter().for_each(|end| inner.close(end, Close::Reset));
            }
            Socket::Datagrams { address, .. } => drop(inner.mailboxes.remove(&address)),
        }
    }

    fn give_back(&mut self, chunk: Chunk) {
        self.free.push(chunk.lease);
    }

    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        self.wait = wait;
        events.append(&mut self.early);
        for id in self.order.clone() {
            while self.accept_one(id, events) {}
            self.move_on(id, events);
            self.take_datagrams(id, events);
        }
        Ok(())
    }
}

impl Udp for Fake {
    fn bind(&mut self, mut address: SocketAddr) -> Result<(Id, SocketAddr), Errno> {
        let mut inner = self.network.0.borrow_mut();
        if address.port() == 0 {
            inner.port += 1;
            address.set_port(inner.port);
        }
        if inner.mailboxes.contains_key(&address) {
            return Err(Errno::EADDRINUSE);
        }
        inner.mailboxes.insert(address, Mailbox::default());
        drop(inner);
        Ok((self.insert(Socket::Datagrams { address, peer: None }), address))
    }

    fn associate(&mut self, peer: SocketAddr) -> Result<Id, Errno> {
        let mut inner = self.network.0.borrow_mut();
        inner.port = inner.port.checked_add(1).unwrap_or(1024);
        let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, self.number as u8), inner.port));
        inner.mailboxes.insert(address, Mailbox { peer: Some(peer), ..Mailbox::default() });
        drop(inner);
        Ok(self.insert(Socket::Datagrams { address, peer: Some(peer) }))
    }

    fn send_datagram(&mut self, id: Id, to: Option<Endpoint>, payload: &[u8]) -> Result<(), Errno> {
        let Some(Socket::Datagrams { address, peer }) = self.sockets.at(id) else { return Err(Errno::EBADF) };
        let Some(to) = to.map(|to| to.remote).or(*peer) else { return Err(Errno::EDESTADDRREQ) };
        if let Some(error) = self.datagram_error {
            return Err(error);
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Errno::EMSGSIZE);
        }
        let mut inner = self.network.0.borrow_mut();
        let Some(mailbox) = inner.mailboxes.get_mut(&to) else {
            if peer.is_some() {
                self.early.push(Event::Undelivered { id, error: Errno::ECONNREFUSED });
            }
            return Ok(());
        };
        let heard = mailbox.peer.is_none_or(|peer| peer == *address);
        if heard && mailbox.bytes + payload.len() <= QUEUE_BYTES {
            mailbox.bytes += payload.len() + 500;
            let from = Endpoint { remote: *address, local: None };
            mailbox.waiting.push_back((from, payload.to_vec()));
        }
        Ok(())
    }
}

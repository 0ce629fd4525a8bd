//! [`Tcp`] on io_uring.
//!
//! One turn is one enter: it submits what was asked for, waits, and brings what happened. Accepting is multishot. A receive
//! is armed one by one, since whoever cannot pass bytes on must not be given more, and takes its buffer from a provided ring
//! only when bytes are there. A send is tried at once (MSG_DONTWAIT) and so ends within the enter that submits it; the
//! kernel does the rest of it from a copy, when there is room.

mod kind;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::{cqueue, opcode, squeue, types};
use nix::errno::Errno;
use nix::sys::socket::{SockFlag, SockaddrLike, SockaddrStorage};

use kind::{Kind, kind_of, token};

use super::datagrams::{self, Datagrams, Endpoint, Udp};
use super::pipe::{Passing, Pipes, holds_bytes, without_waiting};
use super::sockets::{self, Socket, Spare, Table};
use super::{Chunk, Close, Event, Id, Options, Tcp, Wait};
use crate::io::clock;
use crate::io::lease::{self, BUFFER_BYTES, Lease};
use crate::io::ring::{BufferRing, Features, Ring};
use crate::io::wake::Waker;
use crate::time::Time;

/// Buffers, a power of two: as many as may come in one turn.
const BUFFERS: u16 = 64;
/// Buffers the kernel has at least. Few, since they rotate through the cache first-in first-out.
const BUFFERS_MIN: u16 = 2;

/// What is to be sent.
enum Outgoing {
    /// In a buffer; tried once.
    Chunk(Chunk),
    /// In memory of its own, from there on; stays until the kernel has taken it.
    Copy(Vec<u8>, usize),
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        match self {
            Outgoing::Chunk(chunk) => chunk,
            Outgoing::Copy(bytes, start) => &bytes[*start..],
        }
    }
}

struct Entry {
    socket: Socket,
    /// Where to; the kernel reads it while connecting.
    address: Option<Box<SockaddrStorage>>,
    /// The first is with the kernel while `sending`.
    outgoing: VecDeque<Outgoing>,
    sending: bool,
    /// A receive was asked for and has not ended.
    receiving: bool,
    /// What it brings is passed on.
    passing: Option<Passing>,
    /// Whose bytes wait in a pipe for room.
    fed_by: Option<Id>,
    /// A FIN follows the last of `outgoing`.
    shut_down: bool,
    /// Submissions that have not completed.
    under_way: u32,
    /// Goes when nothing is under way; nobody hears of it.
    closing: bool,
}

/// [`Tcp`] on a ring of the calling thread.
pub struct Uring {
    // Order matters: the ring goes before the memory it uses.
    ring: Ring,
    buffers: BufferRing,
    table: Table<Entry>,
    /// Buffers of chunks that went out or came back.
    home: Vec<Lease>,
    spare: Spare,
    pipes: Pipes,
    /// Receives that found no buffer, and those asked for since; first in line for the buffers of the next turn.
    starved: VecDeque<Id>,
    /// Connections that broke before all that came was received.
    suspects: Vec<Id>,
    /// Receives that brought bytes, or would have, in the last turn.
    wanted: u16,
    waker: Waker,
    wake_armed: bool,
    datagrams: Datagrams,
    /// Sockets of `datagrams`; the ring polls for them while there are any.
    datagrams_count: usize,
    datagrams_armed: bool,
    /// System calls made for the ring.
    enters: u64,
    failure: Option<io::Error>,
    /// What happened between two turns.
    early: Vec<Event>,
    now: Time,
}

impl Uring {
    /// A ring for the calling thread, which must be the one that uses it: (S).
    ///
    /// # Errors
    /// What [`crate::io::ring::available`] refuses; ENOMEM.
    pub fn new(waker: Waker) -> io::Result<Uring> {
        let ring = Ring::new(Features::default())?;
        let mut buffers = BufferRing::register(&ring, 0, 0, BUFFERS)?;
        let mut leases = lease::map(BUFFERS + datagrams::BUFFERS)?;
        let datagrams = Datagrams::new(leases.split_off(usize::from(BUFFERS)))?;
        leases.into_iter().for_each(|lease| buffers.give_back(lease));
        Ok(Uring {
            ring,
            buffers,
            table: Table::new(),
            home: Vec::with_capacity(usize::from(BUFFERS)),
            spare: Spare::default(),
            pipes: Pipes::new(),
            starved: VecDeque::new(),
            suspects: Vec::new(),
            wanted: 0,
            waker,
            wake_armed: false,
            datagrams,
            datagrams_count: 0,
            datagrams_armed: false,
            enters: 0,
            failure: None,
            early: Vec::new(),
            now: clock::now(),
        })
    }

    fn insert(&mut self, socket: Socket) -> Id {
        self.table.insert(Entry {
            socket,
            address: None,
            outgoing: VecDeque::new(),
            sending: false,
            receiving: false,
            passing: None,
            fed_by: None,
            shut_down: false,
            under_way: 0,
            closing: false,
        })
    }

    fn insert_datagrams(&mut self, socket: UdpSocket) -> Result<Id, Errno> {
        let id = self.insert(Socket::Datagrams(socket));
        let Uring { table, datagrams, .. } = self;
        let entry = table.at(id).expect("just inserted");
        datagrams.watch(&entry.socket, id).inspect_err(|_| table.remove(id))?;
        self.datagrams_count += 1;
        Ok(id)
    }

    /// Asks once to hear of `fd` when it is readable.
    fn poll(&mut self, fd: RawFd, kind: Kind) {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32);
        self.push(poll.build(), token(kind, 0));
    }

    /// Queues a submission for the socket `id`. That it failed is said by the next turn.
    fn submit(&mut self, id: Id, kind: Kind, entry: squeue::Entry) {
        if let Some(socket) = self.table.at(id) {
            socket.under_way += 1;
        }
        self.push(entry, token(kind, id.key()));
    }

    fn push(&mut self, entry: squeue::Entry, user_data: u64) {
        // SAFETY: (L) buffers are provided, or in `outgoing` like the copies (O), which like the address of a connect stays
        // in its entry until nothing of the entry is under way; the ring is dropped first.
        if let Err(error) = unsafe { self.ring.push(&entry.user_data(user_data), &mut self.enters) } {
            self.failure = Some(error);
        }
    }

    fn fd(&mut self, id: Id) -> Option<types::Fd> {
        let entry = self.table.at(id).filter(|entry| !entry.closing)?;
        Some(types::Fd(entry.socket.as_raw_fd()))
    }

    /// Asks to hear of a RST, also while nothing is received: a poll for nothing completes with POLLERR or POLLHUP.
    fn watch(&mut self, id: Id) {
        self.poll_socket(id, Kind::Broken, 0);
    }

    fn arm_receive(&mut self, id: Id) {
        let Some(fd) = self.fd(id) else { return };
        let receive = opcode::Recv::new(fd, std::ptr::null_mut(), BUFFER_BYTES as u32)
            .buf_group(self.buffers.group())
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.submit(id, Kind::Receive, receive);
    }

    /// The same of a socket, for `what`.
    fn poll_socket(&mut self, id: Id, kind: Kind, what: libc::c_short) {
        if let Some(fd) = self.fd(id) {
            self.submit(id, kind, opcode::PollAdd::new(fd, what as u32).build());
        }
    }

    /// Something has come that is to be passed on.
    fn fill_pipe(&mut self, from: Id, events: &mut Vec<Event>) {
        let Uring { table, pipes, .. } = self;
        let Some(entry) = table.at(from) else { return };
        let Some(Passing { to, .. }) = entry.passing.take() else { return };
        let Some(mut pipe) = pipes.take() else { return self.arm_receive(from) };
        let filled = without_waiting(&entry.socket, || pipe.fill(&entry.socket));
        entry.receiving = matches!(filled, Err(Errno::EAGAIN));
        if matches!(filled, Ok(0) | Err(Errno::EAGAIN)) && holds_bytes(&entry.socket) {
            entry.receiving = true;
            pipes.give_back(pipe);
            return self.arm_receive(from);
        }
        match filled {
            Ok(bytes) if bytes > 0 => {
                entry.passing = Some(Passing { to, pipe: Some(pipe) });
                return self.drain_pipe(from, events);
            }
            Ok(_) => events.push(Event::Ended(from)),
            Err(Errno::EAGAIN) => {
                entry.passing = Some(Passing { to, pipe: None });
                self.poll_socket(from, Kind::Readable, libc::POLLIN);
            }
            Err(error) => events.push(Event::Failed { id: from, error }),
        }
        self.pipes.give_back(pipe);
    }

    /// There may be room for what the pipe holds.
    fn drain_pipe(&mut self, from: Id, events: &mut Vec<Event>) {
        let Uring { table, pipes, .. } = self;
        let passing = table.at(from).and_then(|entry| entry.passing.take());
        let Some(Passing { to, pipe: Some(mut pipe) }) = passing else { return };
        let Some(target) = table.at(to).filter(|target| !target.closing) else {
            return pipes.give_back(pipe);
        };
        match without_waiting(&target.socket, || pipe.drain(&target.socket)) {
            Ok(bytes) => {
                let left = pipe.len();
                events.extend((bytes > 0).then_some(Event::Passed { from, bytes, left }));
                if left > 0 {
                    target.fed_by = Some(from);
                    if let Some(entry) = table.at(from) {
                        entry.passing = Some(Passing { to, pipe: Some(pipe) });
                    }
                    return self.poll_socket(to, Kind::Writable, libc::POLLOUT);
                }
            }
            Err(error) => events.push(Event::Failed { id: to, error }),
        }
        pipes.give_back(pipe);
    }

    /// Queues `outgoing` behind what is queued; only the first in line may keep a buffer.
    fn enqueue(&mut self, id: Id, outgoing: Outgoing) {
        let Uring { table, spare, home, .. } = self;
        let Some(entry) = table.at(id).filter(|entry| !entry.closing) else {
            return self.let_go(outgoing);
        };
        let outgoing = match outgoing {
            Outgoing::Chunk(chunk) if entry.sending => {
                let copy = spare.copy(&chunk);
                home.push(chunk.lease);
                Outgoing::Copy(copy, 0)
            }
            other => other,
        };
        entry.outgoing.push_back(outgoing);
        if !entry.sending {
            self.submit_send(id, libc::MSG_DONTWAIT);
        }
    }

    /// Submits the first in line.
    fn submit_send(&mut self, id: Id, flags: libc::c_int) {
        let Some(entry) = self.table.at(id) else { return };
        let Some(outgoing) = entry.outgoing.front() else { return };
        let bytes = outgoing.bytes();
        let fd = types::Fd(entry.socket.as_raw_fd());
        let send = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32)
            .flags(flags | libc::MSG_NOSIGNAL)
            .build();
        entry.sending = true;
        self.submit(id, Kind::Send, send);
    }

    fn let_go(&mut self, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Chunk(chunk) => self.home.push(chunk.lease),
            Outgoing::Copy(bytes, _) => self.spare.give_back(bytes),
        }
    }

    fn reap(&mut self, events: &mut Vec<Event>) {
        self.now = clock::now();
        self.wanted = 0;
        while let Some((user_data, result, flags)) = self.ring.next() {
            match kind_of(user_data) {
                Kind::Wake => {
                    self.wake_armed = false;
                    self.waker.clear();
                    events.push(Event::Woken);
                }
                Kind::Datagrams => self.datagrams_armed = false,
                Kind::Cancel => {}
                kind => self.completed(kind, user_data as u32, result, flags, events),
            }
        }
        self.ring.reaped();
        if !self.datagrams_armed && self.datagrams_count > 0 {
            let Uring { table, datagrams, .. } = self;
            let socket = |key| table.by_key(key).map(|(id, entry)| (id, entry.socket.as_raw_fd()));
            datagrams.serve(socket, events);
        }
    }

    /// One completion of a socket's.
    fn completed(&mut self, kind: Kind, key: u32, result: i32, flags: u32, events: &mut Vec<Event>) {
        let lease = cqueue::buffer_select(flags).map(|slot| self.buffers.take(slot, result));
        let (id, entry) = self.table.by_key(key).expect("a socket stays while something is under way");
        if !cqueue::more(flags) {
            entry.under_way -= 1;
        }
        if entry.closing {
            self.completed_closing(id, kind, result, lease);
            return;
        }
        let outcome = if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result) };
        match kind {
            Kind::Accept => self.accepted(id, outcome, flags, events),
            Kind::Connect => self.connected(id, outcome.map(drop), events),
            Kind::Receive => self.received(id, outcome, lease, events),
            Kind::Send => self.sent(id, outcome, events),
            Kind::Broken => self.broken(id, outcome),
            Kind::Readable => self.fill_pipe(id, events),
            Kind::Writable => {
                if let Some(from) = entry.fed_by.take() {
                    self.drain_pipe(from, events);
                }
            }
            Kind::Wake | Kind::Datagrams | Kind::Cancel => {}
        }
    }

    /// What was under way when the socket was closed.
    fn completed_closing(&mut self, id: Id, kind: Kind, result: i32, lease: Option<Lease>) {
        self.home.extend(lease);
        if kind == Kind::Accept && result >= 0 {
            // Too late; whoever came hears of a RST or a FIN.
            drop(own(result));
        }
        self.remove_if_done(id);
    }

    fn remove_if_done(&mut self, id: Id) {
        let Some(entry) = self.table.at(id).filter(|entry| entry.closing && entry.under_way == 0) else {
            return;
        };
        let outgoing = std::mem::take(&mut entry.outgoing);
        let pipe = entry.passing.take().and_then(|passing| passing.pipe);
        pipe.into_iter().for_each(|pipe| self.pipes.give_back(pipe));
        outgoing.into_iter().for_each(|outgoing| self.let_go(outgoing));
        self.table.remove(id);
    }

    fn accepted(&mut self, listener: Id, outcome: Result<i32, Errno>, flags: u32, events: &mut Vec<Event>) {
        match outcome {
            Ok(fd) => {
                let stream = TcpStream::from(own(fd));
                // Gone again already: there is nobody to serve.
                if let Ok(from) = stream.peer_addr() {
                    let id = self.insert(Socket::Stream(stream));
                    self.watch(id);
                    events.push(Event::Accepted { listener, id, from });
                }
            }
            Err(Errno::ECANCELED | Errno::ECONNABORTED | Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => return events.push(Event::AcceptFailed { listener, error }),
        }
        if !cqueue::more(flags) {
            self.accept(listener);
        }
    }

    fn connected(&mut self, id: Id, outcome: Result<(), Errno>, events: &mut Vec<Event>) {
        match outcome {
            Ok(()) => {
                self.watch(id);
                events.push(Event::Connected(id));
            }
            Err(error) => events.push(Event::Failed { id, error }),
        }
    }

    /// What the poll for nothing says: POLLHUP alone is a connection that both ends have ended.
    fn broken(&mut self, id: Id, outcome: Result<i32, Errno>) {
        if outcome.is_ok_and(|polled| polled & i32::from(libc::POLLERR) != 0) {
            self.suspects.push(id);
        }
    }

    /// Tells of those that broke and are not received from any more: what came before is read first, and then the error.
    fn tell_suspects(&mut self) {
        let Uring { suspects, table, early, .. } = self;
        suspects.retain(|id| match table.at(*id).filter(|entry| !entry.closing) {
            Some(entry) if entry.receiving => true,
            Some(entry) => {
                early.extend(entry.socket.take_error().map(|error| Event::Failed { id: *id, error }));
                false
            }
            None => false,
        });
    }

    fn received(
        &mut self,
        id: Id,
        outcome: Result<i32, Errno>,
        lease: Option<Lease>,
        events: &mut Vec<Event>,
    ) {
        self.wanted = self.wanted.saturating_add(1);
        let starved = matches!(outcome, Err(Errno::ENOBUFS | Errno::EINTR | Errno::EAGAIN));
        if let Some(entry) = self.table.at(id) {
            entry.receiving = starved;
        }
        match (outcome, lease) {
            (Ok(bytes), Some(lease)) if bytes > 0 => {
                events.push(Event::Received { id, chunk: Chunk::new(lease, bytes as usize) });
            }
            (outcome, lease) => {
                self.home.extend(lease);
                match outcome {
                    Ok(_) => events.push(Event::Ended(id)),
                    Err(_) if starved => self.starved.push_back(id),
                    Err(error) => events.push(Event::Failed { id, error }),
                }
            }
        }
    }

    fn sent(&mut self, id: Id, outcome: Result<i32, Errno>, events: &mut Vec<Event>) {
        let Uring { table, spare, home, .. } = self;
        let Some(entry) = table.at(id) else { return };
        entry.sending = false;
        let sent = match outcome {
            Ok(bytes) => bytes as usize,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(error) => return events.push(Event::Failed { id, error }),
        };
        let outgoing = entry.outgoing.pop_front().expect("what was under way is first in line");
        if sent < outgoing.bytes().len() {
            let rest = match outgoing {
                Outgoing::Chunk(chunk) => {
                    let copy = spare.copy(&chunk[sent..]);
                    home.push(chunk.lease);
                    Outgoing::Copy(copy, 0)
                }
                Outgoing::Copy(bytes, start) => Outgoing::Copy(bytes, start + sent),
            };
            entry.outgoing.push_front(rest);
            return self.submit_send(id, libc::MSG_WAITALL);
        }
        events.push(Event::Sent(id));
        if entry.outgoing.is_empty() && entry.shut_down {
            entry.socket.send_fin();
        }
        self.let_go(outgoing);
        self.submit_send(id, libc::MSG_DONTWAIT);
    }
}

/// The connection that an accept brought.
fn own(fd: i32) -> OwnedFd {
    // SAFETY: the kernel just opened this descriptor for us, nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Tcp for Uring {
    fn now(&self) -> Time {
        self.now
    }

    fn listen(&mut self, address: SocketAddr, options: &Options) -> Result<(Id, SocketAddr), Errno> {
        let (listener, bound) = sockets::listener(address, options, SockFlag::empty())?;
        Ok((self.insert(Socket::Listener(listener)), bound))
    }

    fn interface_index(&self, name: &str) -> Option<u32> {
        sockets::interface_index(name)
    }

    fn accept(&mut self, listener: Id) {
        if let Some(fd) = self.fd(listener) {
            let accept = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build();
            self.submit(listener, Kind::Accept, accept);
        }
    }

    fn connect(&mut self, address: SocketAddr, options: &Options) -> Result<Id, Errno> {
        let stream = sockets::stream(address, options, SockFlag::empty())?;
        let fd = types::Fd(stream.as_raw_fd());
        let address = Box::new(SockaddrStorage::from(address));
        let connect = opcode::Connect::new(fd, address.as_ptr(), address.len()).build();
        let id = self.insert(Socket::Stream(stream));
        self.table.at(id).expect("just inserted").address = Some(address);
        self.submit(id, Kind::Connect, connect);
        Ok(id)
    }

    fn receive(&mut self, id: Id) {
        if let Some(entry) = self.table.at(id) {
            entry.receiving = true;
            // Behind those in line: armed before them, it would take the buffer that they wait for.
            match self.starved.is_empty() {
                true => self.arm_receive(id),
                false => self.starved.push_back(id),
            }
        }
    }

    fn pass(&mut self, from: Id, to: Id) {
        if let Some(entry) = self.table.at(from).filter(|entry| !entry.closing) {
            entry.receiving = true;
            entry.passing = Some(Passing { to, pipe: None });
            self.poll_socket(from, Kind::Readable, libc::POLLIN);
        }
    }

    fn send(&mut self, id: Id, chunk: Chunk) {
        self.enqueue(id, Outgoing::Chunk(chunk));
    }

    fn send_bytes(&mut self, id: Id, bytes: &[u8]) {
        let copy = self.spare.copy(bytes);
        self.enqueue(id, Outgoing::Copy(copy, 0));
    }

    fn be_patient(&mut self, id: Id) {
        if let Some(entry) = self.table.at(id).filter(|entry| !entry.closing) {
            entry.socket.be_patient();
        }
    }

    fn shut_down(&mut self, id: Id) {
        let Some(entry) = self.table.at(id).filter(|entry| !entry.closing) else { return };
        entry.shut_down = true;
        if entry.outgoing.is_empty() {
            entry.socket.send_fin();
        }
    }

    fn close(&mut self, id: Id, how: Close) {
        let Some(fd) = self.fd(id) else { return };
        let entry = self.table.at(id).expect("it has a descriptor");
        entry.closing = true;
        entry.socket.stop_listening();
        self.datagrams_count -= usize::from(matches!(entry.socket, Socket::Datagrams(_)));
        if how == Close::Reset {
            entry.socket.will_reset();
        }
        if entry.under_way > 0 {
            // Behind what was sent and not tried yet.
            let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::fd(fd).all());
            self.push(cancel.build(), token(Kind::Cancel, 0));
        }
        self.remove_if_done(id);
    }

    fn give_back(&mut self, chunk: Chunk) {
        self.home.push(chunk.lease);
    }

    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        let Uring { buffers, datagrams, home, .. } = self;
        home.drain(..).for_each(|lease| match buffers.owns(lease.slot()) {
            true => buffers.give_back(lease),
            false => datagrams.take_home(lease),
        });
        let wanted = usize::from(self.wanted).max(self.starved.len());
        self.buffers.top_up_to((2 * wanted).clamp(BUFFERS_MIN.into(), BUFFERS.into()) as u16);
        // Not more than find one: of a thousand most would fail again, turn after turn.
        for _ in 0..self.buffers.available {
            let Some(id) = self.starved.pop_front() else { break };
            self.arm_receive(id);
        }
        self.tell_suspects();
        if !self.wake_armed {
            self.poll(self.waker.as_fd().as_raw_fd(), Kind::Wake);
            self.wake_armed = true;
        }
        if !self.datagrams_armed && self.datagrams_count > 0 {
            self.poll(self.datagrams.as_fd().as_raw_fd(), Kind::Datagrams);
            self.datagrams_armed = true;
        }
        let (want, timeout) = match wait {
            // Those in line are armed in the next turn; who has nothing to receive does not keep them waiting.
            _ if !self.early.is_empty() || !self.starved.is_empty() => (0, None),
            Wait::Not => (0, None),
            Wait::Forever => (1, None),
            Wait::Until(deadline) => (1, Some(deadline.since(clock::now()))),
        };
        self.enters += 1;
        self.ring.enter(want, timeout)?;
        events.append(&mut self.early);
        self.reap(events);
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl Udp for Uring {
    fn bind(&mut self, address: SocketAddr) -> Result<(Id, SocketAddr), Errno> {
        let (socket, bound) = datagrams::shared(address)?;
        Ok((self.insert_datagrams(socket)?, bound))
    }

    fn associate(&mut self, address: SocketAddr) -> Result<Id, Errno> {
        self.insert_datagrams(datagrams::associated(address)?)
    }

    fn send_datagram(&mut self, id: Id, to: Option<Endpoint>, payload: &[u8]) -> Result<(), Errno> {
        let entry = self.table.at(id).filter(|entry| !entry.closing).ok_or(Errno::EBADF)?;
        datagrams::send(id, entry.socket.as_raw_fd(), to, payload, &mut self.early)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::io::tcp::Patience;
    use crate::time::Span;

    #[test]
    fn who_found_no_buffer_is_served_when_there_is_one_and_not_tried_before() {
        if crate::io::ring::available(Features::default()).is_err() {
            return eprintln!("SKIPPED: no io_uring here");
        }
        const ALL: usize = 6 * BUFFERS as usize;
        let mut tcp = Uring::new(Waker::new().unwrap()).unwrap();
        let second = Span::from_secs(1);
        let patience = Patience { idle: second, interval: second, probes: 9, unacknowledged: None };
        let options = Options { patience, device: None };
        let (listener, address) = tcp.listen("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        tcp.accept(listener);
        let (mut others, mut ids) = (Vec::new(), Vec::new());
        while ids.len() < ALL {
            others.push(TcpStream::connect(address).unwrap());
            others.last_mut().unwrap().write_all(b"x").unwrap();
            let mut events = Vec::new();
            tcp.turn(Wait::Forever, &mut events).unwrap();
            ids.extend(events.iter().filter_map(|event| match event {
                Event::Accepted { id, .. } => Some(*id),
                _ => None,
            }));
        }
        ids.iter().for_each(|id| tcp.receive(*id));
        let (mut received, mut tried) = (0, 0);
        while received < ALL {
            let mut events = Vec::new();
            tcp.turn(Wait::Forever, &mut events).unwrap();
            tried += usize::from(tcp.wanted);
            for event in events {
                if let Event::Received { chunk, .. } = event {
                    received += 1;
                    tcp.give_back(chunk);
                }
            }
        }
        assert!(tried <= 2 * ALL, "{tried} receives for {ALL} connections");
    }
}

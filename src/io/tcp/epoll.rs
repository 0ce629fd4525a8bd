//! [`Tcp`] on plain system calls: epoll, accept, recv, send.
//!
//! For containers and kernels that refuse io_uring, and as the other side of every measurement. Everything is watched
//! edge-triggered from its beginning to its end: what became ready is remembered until a call says that it is not.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, SockFlag, SockaddrStorage, connect, recv, send};

use super::datagrams::{self, Datagrams, Endpoint, Udp};
use super::pipe::{Passing, Pipe, Pipes, holds_bytes};
use super::sockets::{self, Socket, Spare, Table};
use super::{Chunk, Close, Event, Id, Options, Tcp, Wait};
use crate::io::clock;
use crate::io::lease::{self, Lease};
use crate::io::wake::Waker;
use crate::time::Time;

/// Buffers: as many receives as happen in one turn.
const BUFFERS: u16 = 16;
/// Connections accepted from one listener in one turn.
const ACCEPTS: usize = 32;
/// What the waker's readiness is reported for; no socket has this key.
const WAKE: u64 = u64::MAX;
/// Likewise for the datagram sockets together, level-triggered.
const DATAGRAMS: u64 = u64::MAX - 1;

struct Entry {
    socket: Socket,
    connecting: bool,
    /// A listener that accepts, or a connection that is to be received from.
    wanted: bool,
    readable: bool,
    /// In `Epoll::ready`.
    listed: bool,
    /// What found no room in the kernel, each from there on.
    outgoing: VecDeque<(Vec<u8>, usize)>,
    /// What it brings is passed on.
    passing: Option<Passing>,
    /// Whose bytes wait in a pipe for room.
    fed_by: Option<Id>,
    /// A FIN follows the last of `outgoing`.
    shut_down: bool,
}

impl Entry {
    fn new(socket: Socket, connecting: bool) -> Entry {
        Entry {
            socket,
            connecting,
            wanted: false,
            readable: false,
            listed: false,
            outgoing: VecDeque::new(),
            passing: None,
            fed_by: None,
            shut_down: false,
        }
    }
}

/// [`Tcp`] on plain system calls.
pub struct Syscall {
    epoll: Epoll,
    table: Table<Entry>,
    free: Vec<Lease>,
    datagrams: Datagrams,
    spare: Spare,
    pipes: Pipes,
    /// Wanted and readable; a turn serves the front.
    ready: VecDeque<Id>,
    /// Broken, and received from: what came before is read first, and then the error.
    suspects: Vec<Id>,
    /// What happened between two turns.
    early: Vec<Event>,
    waker: Waker,
    now: Time,
}

impl Syscall {
    /// For the calling thread.
    ///
    /// # Errors
    /// EMFILE, ENOMEM.
    pub fn new(waker: Waker) -> io::Result<Syscall> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(waker.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE))?;
        let mut free = lease::map(BUFFERS + datagrams::BUFFERS)?;
        let datagrams = Datagrams::new(free.split_off(usize::from(BUFFERS)))?;
        epoll.add(datagrams.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, DATAGRAMS))?;
        Ok(Syscall {
            epoll,
            table: Table::new(),
            free,
            datagrams,
            spare: Spare::default(),
            pipes: Pipes::new(),
            ready: VecDeque::new(),
            suspects: Vec::new(),
            early: Vec::new(),
            waker,
            now: clock::now(),
        })
    }

    /// Takes a buffer back.
    fn take_home(&mut self, lease: Lease) {
        match lease.slot() < BUFFERS {
            true => self.free.push(lease),
            false => self.datagrams.take_home(lease),
        }
    }

    fn insert_datagrams(&mut self, socket: UdpSocket) -> Result<Id, Errno> {
        let id = self.table.insert(Entry::new(Socket::Datagrams(socket), false));
        let Syscall { table, datagrams, .. } = self;
        let entry = table.at(id).expect("just inserted");
        let watched = datagrams.watch(&entry.socket, id);
        watched.inspect_err(|_| table.remove(id)).map(|()| id)
    }

    fn insert(&mut self, socket: Socket, connecting: bool) -> Result<Id, Errno> {
        let listener = matches!(socket, Socket::Listener(_));
        let id = self.table.insert(Entry::new(socket, connecting));
        let flags = if listener { EpollFlags::EPOLLIN } else { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT };
        let event = EpollEvent::new(flags | EpollFlags::EPOLLET, u64::from(id.key()));
        let entry = self.table.at(id).expect("just inserted");
        let watched = self.epoll.add(entry.socket.as_fd(), event);
        watched.inspect_err(|_| self.table.remove(id)).map(|()| id)
    }

    /// Puts a socket in line if there is something to do for it.
    fn list(&mut self, id: Id) {
        if let Some(entry) = self.table.at(id)
            && entry.wanted
            && entry.readable
            && !entry.listed
        {
            entry.listed = true;
            self.ready.push_back(id);
        }
    }

    /// Tells of those that broke and are not received from any more.
    fn tell_suspects(&mut self) {
        let Syscall { suspects, table, early, .. } = self;
        suspects.retain(|id| match table.at(*id) {
            Some(entry) if entry.wanted => true,
            Some(entry) => {
                early.extend(entry.socket.take_error().map(|error| Event::Failed { id: *id, error }));
                false
            }
            None => false,
        });
    }

    fn serve_datagrams(&mut self, events: &mut Vec<Event>) {
        let Syscall { table, datagrams, .. } = self;
        let socket = |key| table.by_key(key).map(|(id, entry)| (id, entry.socket.as_raw_fd()));
        datagrams.serve(socket, events);
    }

    /// Serves those in line, each once, as far as there are buffers.
    fn serve(&mut self, events: &mut Vec<Event>) {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(entry) = self.table.at(id) else { continue };
            entry.listed = false;
            match entry.socket {
                Socket::Listener(_) => self.serve_listener(id, events),
                Socket::Stream(_) => {
                    if let Some((to, pipe)) = self.pipe_for(id) {
                        self.fill_pipe(id, to, pipe, events);
                    } else if let Some(lease) = self.free.pop() {
                        self.serve_stream(id, lease, events);
                    }
                }
                Socket::Datagrams(_) => {}
            }
            self.list(id);
        }
    }

    fn serve_listener(&mut self, listener: Id, events: &mut Vec<Event>) {
        for _ in 0..ACCEPTS {
            let Some(Entry { socket: Socket::Listener(socket), .. }) = self.table.at(listener) else {
                return;
            };
            let error = match socket.accept() {
                Ok((stream, from)) => {
                    let watched = stream.set_nonblocking(true).map_err(errno_of);
                    match watched.and_then(|()| self.insert(Socket::Stream(stream), false)) {
                        Ok(id) => {
                            events.push(Event::Accepted { listener, id, from });
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => errno_of(error),
            };
            let Some(entry) = self.table.at(listener) else { return };
            match error {
                Errno::EAGAIN => entry.readable = false,
                Errno::EINTR | Errno::ECONNABORTED => continue,
                error => {
                    entry.wanted = false;
                    events.push(Event::AcceptFailed { listener, error });
                }
            }
            return;
        }
    }

    /// Where to what this one has brought is passed on, and a pipe for it if one is free.
    fn pipe_for(&mut self, from: Id) -> Option<(Id, Pipe)> {
        let Passing { to, .. } = self.table.at(from)?.passing.take()?;
        Some((to, self.pipes.take()?))
    }

    fn fill_pipe(&mut self, from: Id, to: Id, mut pipe: Pipe, events: &mut Vec<Event>) {
        let Some(entry) = self.table.at(from) else { return self.pipes.give_back(pipe) };
        match pipe.fill(&entry.socket) {
            // It stays in line, and is received from.
            Ok(0) | Err(Errno::EAGAIN) if holds_bytes(&entry.socket) => {}
            Err(Errno::EAGAIN) => {
                entry.readable = false;
                entry.passing = Some(Passing { to, pipe: None });
            }
            filled => {
                entry.wanted = false;
                match filled {
                    Ok(bytes) if bytes > 0 => {
                        entry.passing = Some(Passing { to, pipe: Some(pipe) });
                        return self.drain_pipe(from, events);
                    }
                    Ok(_) => events.push(Event::Ended(from)),
                    Err(error) => events.push(Event::Failed { id: from, error }),
                }
            }
        }
        self.pipes.give_back(pipe);
    }

    /// There may be room for what the pipe holds.
    fn drain_pipe(&mut self, from: Id, events: &mut Vec<Event>) {
        let Syscall { table, pipes, .. } = self;
        let passing = table.at(from).and_then(|entry| entry.passing.take());
        let Some(Passing { to, pipe: Some(mut pipe) }) = passing else { return };
        let Some(target) = table.at(to) else { return pipes.give_back(pipe) };
        match pipe.drain(&target.socket) {
            Ok(bytes) => {
                let left = pipe.len();
                events.extend((bytes > 0).then_some(Event::Passed { from, bytes, left }));
                if left > 0 {
                    target.fed_by = Some(from);
                    if let Some(entry) = table.at(from) {
                        entry.passing = Some(Passing { to, pipe: Some(pipe) });
                    }
                    return;
                }
            }
            Err(error) => events.push(Event::Failed { id: to, error }),
        }
        pipes.give_back(pipe);
    }

    fn serve_stream(&mut self, id: Id, mut lease: Lease, events: &mut Vec<Event>) {
        let Some(entry) = self.table.at(id) else { return self.free.push(lease) };
        let received = recv(entry.socket.as_raw_fd(), &mut lease, MsgFlags::MSG_DONTWAIT);
        if matches!(received, Err(Errno::EAGAIN)) {
            entry.readable = false;
        }
        if matches!(received, Err(Errno::EAGAIN | Errno::EINTR)) {
            return self.free.push(lease);
        }
        entry.wanted = false;
        match received {
            Ok(bytes) if bytes > 0 => {
                return events.push(Event::Received { id, chunk: Chunk::new(lease, bytes) });
            }
            Ok(_) => events.push(Event::Ended(id)),
            Err(error) => events.push(Event::Failed { id, error }),
        }
        self.free.push(lease);
    }

    /// Sends, or keeps the rest for when there is room.
    fn send_some(&mut self, id: Id, bytes: &[u8]) {
        let Some(entry) = self.table.at(id) else { return };
        let sent = match entry.outgoing.is_empty() {
            true => attempt(&entry.socket, bytes),
            false => Ok(0),
        };
        match sent {
            Ok(sent) if sent == bytes.len() => self.early.push(Event::Sent(id)),
            Ok(sent) => entry.outgoing.push_back((self.spare.copy(&bytes[sent..]), 0)),
            Err(error) => self.early.push(Event::Failed { id, error }),
        }
    }

    /// There may be room again.
    fn send_rest(&mut self, id: Id, events: &mut Vec<Event>) {
        let Some(entry) = self.table.at(id) else { return };
        while let Some((bytes, start)) = entry.outgoing.front_mut() {
            match attempt(&entry.socket, &bytes[*start..]) {
                Ok(sent) => *start += sent,
                Err(error) => return events.push(Event::Failed { id, error }),
            }
            if *start < bytes.len() {
                return;
            }
            events.push(Event::Sent(id));
            self.spare.give_back(entry.outgoing.pop_front().expect("there is a first").0);
        }
        if entry.shut_down {
            entry.shut_down = false;
            entry.socket.send_fin();
        }
        if let Some(from) = entry.fed_by.take() {
            self.drain_pipe(from, events);
        }
    }

    /// What epoll says of one socket.
    fn became_ready(&mut self, key: u32, flags: EpollFlags, events: &mut Vec<Event>) {
        let Some((id, entry)) = self.table.by_key(key) else { return };
        if flags.contains(EpollFlags::EPOLLERR) {
            if entry.wanted {
                self.suspects.push(id);
            } else if let Some(error) = entry.socket.take_error() {
                return events.push(Event::Failed { id, error });
            }
        }
        if entry.connecting && flags.contains(EpollFlags::EPOLLOUT) {
            entry.connecting = false;
            events.push(Event::Connected(id));
        }
        if flags.contains(EpollFlags::EPOLLIN) {
            entry.readable = true;
            self.list(id);
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.send_rest(id, events);
        }
    }
}

/// What the kernel takes at once; 0 when it has no room.
fn attempt(socket: &Socket, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(0),
            result => return result,
        }
    }
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Tcp for Syscall {
    fn now(&self) -> Time {
        self.now
    }

    fn listen(&mut self, address: SocketAddr, options: &Options) -> Result<(Id, SocketAddr), Errno> {
        let (listener, bound) = sockets::listener(address, options, SockFlag::SOCK_NONBLOCK)?;
        Ok((self.insert(Socket::Listener(listener), false)?, bound))
    }

    fn interface_index(&self, name: &str) -> Option<u32> {
        sockets::interface_index(name)
    }

    fn accept(&mut self, listener: Id) {
        self.receive(listener);
    }

    fn connect(&mut self, address: SocketAddr, options: &Options) -> Result<Id, Errno> {
        let stream = sockets::stream(address, options, SockFlag::SOCK_NONBLOCK)?;
        let fd = stream.as_raw_fd();
        let begun = connect(fd, &SockaddrStorage::from(address));
        // Watched only now: a socket that is not connecting yet counts as hung up.
        let id = self.insert(Socket::Stream(stream), true)?;
        if let Err(error) = begun
            && error != Errno::EINPROGRESS
        {
            self.early.push(Event::Failed { id, error });
        }
        Ok(id)
    }

    fn receive(&mut self, id: Id) {
        if let Some(entry) = self.table.at(id) {
            entry.wanted = true;
            self.list(id);
        }
    }

    fn pass(&mut self, from: Id, to: Id) {
        if let Some(entry) = self.table.at(from) {
            entry.passing = Some(Passing { to, pipe: None });
            self.receive(from);
        }
    }

    fn send(&mut self, id: Id, chunk: Chunk) {
        self.send_some(id, &chunk);
        self.take_home(chunk.lease);
    }

    fn send_bytes(&mut self, id: Id, bytes: &[u8]) {
        self.send_some(id, bytes);
    }

    fn be_patient(&mut self, id: Id) {
        if let Some(entry) = self.table.at(id) {
            entry.socket.be_patient();
        }
    }

    fn shut_down(&mut self, id: Id) {
        let Some(entry) = self.table.at(id) else { return };
        match entry.outgoing.is_empty() {
            true => entry.socket.send_fin(),
            false => entry.shut_down = true,
        }
    }

    fn close(&mut self, id: Id, how: Close) {
        let Some(entry) = self.table.at(id) else { return };
        if how == Close::Reset {
            entry.socket.will_reset();
        }
        let pipe = entry.passing.take().and_then(|passing| passing.pipe);
        pipe.into_iter().for_each(|pipe| self.pipes.give_back(pipe));
        self.table.remove(id);
    }

    fn give_back(&mut self, chunk: Chunk) {
        self.take_home(chunk.lease);
    }

    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        self.tell_suspects();
        events.append(&mut self.early);
        let timeout = match wait {
            _ if !events.is_empty() || !self.ready.is_empty() => EpollTimeout::ZERO,
            Wait::Not => EpollTimeout::ZERO,
            Wait::Forever => EpollTimeout::NONE,
            // Up to the next millisecond: a deadline must not be missed by a wait that ends just before it.
            Wait::Until(deadline) => {
                let millis = deadline.since(clock::now()).as_nanos().div_ceil(1_000_000);
                EpollTimeout::try_from(millis.min(86_400_000)).unwrap_or(EpollTimeout::ZERO)
            }
        };
        let mut happened = [EpollEvent::empty(); 256];
        let count = match self.epoll.wait(&mut happened, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        self.now = clock::now();
        for event in &happened[..count] {
            match event.data() {
                WAKE => {
                    self.waker.clear();
                    events.push(Event::Woken);
                }
                DATAGRAMS => self.serve_datagrams(events),
                key => self.became_ready(key as u32, event.events(), events),
            }
        }
        self.serve(events);
        Ok(())
    }
}

impl Udp for Syscall {
    fn bind(&mut self, address: SocketAddr) -> Result<(Id, SocketAddr), Errno> {
        let (socket, bound) = datagrams::shared(address)?;
        Ok((self.insert_datagrams(socket)?, bound))
    }

    fn associate(&mut self, address: SocketAddr) -> Result<Id, Errno> {
        self.insert_datagrams(datagrams::associated(address)?)
    }

    fn send_datagram(&mut self, id: Id, to: Option<Endpoint>, payload: &[u8]) -> Result<(), Errno> {
        let entry = self.table.at(id).ok_or(Errno::EBADF)?;
        datagrams::send(id, entry.socket.as_raw_fd(), to, payload, &mut self.early)
    }
}

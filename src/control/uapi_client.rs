//! The clients of the configuration socket: one thread each, none can hold up another.
//!
//! [`super::uapi_socket`] accepts and hands each connection to [`Clients::admit`].

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{MsgFlags, send};
use zeroize::{Zeroize, Zeroizing};

use super::uapi::{
    Request, RequestError, RequestLimits, RequestParser, RequestProblem, SetRequest, emit, emit_errno,
};
use super::uapi_socket::{ClientLimits, Command};
use crate::io::clock;

/// Bytes read from or written to a client at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    commands: Sender<Command>,
    limits: ClientLimits,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    live: Vec<Live>,
    /// Of live clients, and of those that were dropped and have not ended yet.
    threads: Vec<JoinHandle<()>>,
}

/// A client as the others see it. Dropped, its thread ends, whatever it is waiting for.
#[derive(Debug)]
struct Live {
    stream: Arc<UnixStream>,
    /// When it last sent or took something, in nanoseconds of the monotonic clock.
    active_ns: Arc<AtomicU64>,
    /// Nothing is ever sent: closing the channel ends the wait for the device's owner.
    _cancel: Sender<()>,
}

impl Drop for Live {
    fn drop(&mut self) {
        // Ends a read or write under way. It fails if the client has hung up, which ends them too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Clients {
    pub(super) fn new(commands: Sender<Command>, limits: ClientLimits) -> Clients {
        Clients { commands, limits, table: Mutex::default() }
    }

    /// Gives a connection its thread. If there are too many, the one that was idle longest goes.
    pub(super) fn admit(self: &Arc<Clients>, stream: UnixStream) {
        let mut table = self.table();
        table.threads.retain(|thread| !thread.is_finished());
        while table.live.len() >= self.limits.count.max(1) {
            table.drop_idlest();
        }
        if let Err(error) = self.start(stream, &mut table) {
            tracing::warn!("cannot serve a client of the configuration socket: {error}");
        }
    }

    /// Makes room when the system has none.
    pub(super) fn drop_one(&self) {
        self.table().drop_idlest();
    }

    /// Drops all and waits until their threads have ended.
    pub(super) fn stop(&self) {
        let Table { live, threads } = std::mem::take(&mut *self.table());
        drop(live);
        for thread in threads {
            // A panic has been reported by its thread and concerns only its client.
            let _ = thread.join();
        }
    }

    fn start(self: &Arc<Clients>, stream: UnixStream, table: &mut Table) -> io::Result<()> {
        // Accepted sockets wait, unlike the one that listens.
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(self.limits.idle))?;
        stream.set_write_timeout(Some(self.limits.stalled))?;
        let (cancel, cancelled) = bounded(0);
        let client = Client {
            stream: Arc::new(stream),
            active_ns: Arc::new(AtomicU64::new(clock::now().as_nanos())),
            cancelled,
            commands: self.commands.clone(),
        };
        let stream = Arc::clone(&client.stream);
        let live = Live { stream, active_ns: Arc::clone(&client.active_ns), _cancel: cancel };
        let clients = Arc::clone(self);
        let thread = std::thread::Builder::new().name("uapi-client".into()).spawn(move || {
            // Dropped after a panic too. The lock is held by whoever starts us, so a thread that ends at once finds its
            // entry made. Not made by them: it would wait for their own lock if there is no thread to be had.
            let _entry = Entry { clients, stream: Arc::clone(&client.stream) };
            // Whatever goes wrong with a client is the end of it and of nothing else.
            if let Err(error) = client.run() {
                tracing::debug!("a client of the configuration socket was dropped: {error}");
            }
        })?;
        table.live.push(live);
        table.threads.push(thread);
        Ok(())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is whole, so one that was interrupted by a panic is no danger.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place in the table, held by its thread.
struct Entry {
    clients: Arc<Clients>,
    stream: Arc<UnixStream>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.clients.table().live.retain(|live| !Arc::ptr_eq(&live.stream, &self.stream));
    }
}

impl Table {
    fn drop_idlest(&mut self) {
        let since = |live: &Live| live.active_ns.load(Ordering::Relaxed);
        if let Some(idlest) = (0..self.live.len()).min_by_key(|&index| since(&self.live[index])) {
            self.live.remove(idlest);
        }
    }
}

/// A client as its own thread sees it.
struct Client {
    stream: Arc<UnixStream>,
    active_ns: Arc<AtomicU64>,
    cancelled: Receiver<()>,
    commands: Sender<Command>,
}

impl Client {
    /// Serves it until it hangs up.
    fn run(&self) -> io::Result<()> {
        let interface_index = |name: &str| if_nametoindex(name).ok();
        let mut parser = RequestParser::new(RequestLimits::default(), interface_index);
        let mut buffer = Zeroizing::new(vec![0; BUFFER_BYTES]);
        loop {
            let count = match (&*self.stream).read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.was_active();
            let mut unread = &buffer[..count];
            while let Some(request) = parser.feed(&mut unread) {
                self.answer(request)?;
            }
            buffer[..count].zeroize();
        }
    }

    fn answer(&self, request: Result<Request, RequestError>) -> io::Result<()> {
        let mut out = Outgoing { client: self, text: Zeroizing::new(Vec::with_capacity(BUFFER_BYTES)) };
        match request {
            Ok(Request::Get) => emit(&*self.ask(Command::Get)?, &mut out)?,
            Ok(Request::Set(request)) => emit_errno(self.set(request)?, &mut out)?,
            Err(error) => {
                tracing::info!("a configuration request was refused: {error}");
                emit_errno(Err(error.errno()), &mut out)?;
                if error.problem == RequestProblem::TooLarge {
                    out.flush()?;
                    return Err(ErrorKind::InvalidData.into());
                }
            }
        }
        out.flush()
    }

    fn set(&self, request: Box<SetRequest>) -> io::Result<Result<(), Errno>> {
        self.ask(|reply| Command::Set(request, reply))
    }

    /// Asks the device's owner. Takes as long as the owner does, but ends with the client.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> io::Result<T> {
        let gone = || io::Error::from(ErrorKind::ConnectionAborted);
        let (reply, answer) = bounded(1);
        select! {
            send(self.commands, command(reply)) -> sent => sent.map_err(|_| gone())?,
            recv(self.cancelled) -> _ => return Err(gone()),
        }
        select! {
            recv(answer) -> answer => answer.map_err(|_| gone()),
            recv(self.cancelled) -> _ => Err(gone()),
        }
    }

    fn was_active(&self) {
        // Relaxed: only compared with others of its kind, and a moment's error does not matter.
        self.active_ns.store(clock::now().as_nanos(), Ordering::Relaxed);
    }
}

/// Collects text and sends it; wiped afterwards, and never longer than its first allocation.
struct Outgoing<'a> {
    client: &'a Client,
    text: Zeroizing<Vec<u8>>,
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() == BUFFER_BYTES {
            self.flush()?;
        }
        let count = bytes.len().min(BUFFER_BYTES - self.text.len());
        self.text.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.text.len() {
            // NOSIGNAL: a client that hung up is an error here and not our end.
            match send(self.client.stream.as_raw_fd(), &self.text[sent..], MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            self.client.was_active();
        }
        self.text.as_mut_slice().zeroize();
        self.text.clear();
        Ok(())
    }
}

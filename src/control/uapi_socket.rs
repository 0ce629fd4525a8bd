//! Where `wg` and `wg-quick` reach us: `/var/run/wireguard/NAME.sock`.
//!
//! ```text
//! accept thread ── one thread per client: read, parse, ask, answer ──Command──▶ owner of the device
//!   └─ watches the socket file: when it is removed, the tunnel is to end
//! ```
//! A client can wait for the owner, never the owner for a client: commands are whole, replies fit their channel, and text
//! is made on the client's own thread. A client that says nothing for [`IDLE_TIME`] or does not read its answer for
//! [`STALLED_TIME`] is dropped; of more than [`CLIENTS_MAX`], the one that was idle longest.
//!
//! The text is [`super::uapi`]'s. Source: wireguard.com/xplatform; wireguard-tools looks for the socket in that place.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::uapi::{DeviceState, SetRequest};
use super::uapi_client::Clients;
use super::unix_socket::{Listener, SocketError, SocketFile, bind_in, errno_of};
use super::watched::WatchedPeer;
use crate::io::wake::Waker;

/// Where the tools look for sockets.
pub const DIRECTORY: &str = "/var/run/wireguard";
/// Clients at once.
pub const CLIENTS_MAX: usize = 64;
/// How long a client may say nothing.
pub const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long a client may leave no room for the next bytes of its answer.
pub const STALLED_TIME: Duration = Duration::from_secs(10);
/// How often to look whether the socket file is still there, if the kernel cannot tell us.
const LOOK_TIME_MS: u16 = 1000;
/// How long to wait when the system has no descriptors or memory for a new client.
const ACCEPT_PAUSE_MS: u16 = 100;

/// What a client asks of the thread that owns the device. That thread sends one reply and need not see whether it arrives:
/// the channel has room for it, and an error means that the client is gone.
#[derive(Debug)]
pub enum Command {
    /// All about the device. Boxed: of what a channel carries, a copy stays in its memory, and keys must not.
    Get(Sender<Box<DeviceState>>),
    /// Apply all of it, in order, or say why not.
    Set(Box<SetRequest>, Sender<Result<(), Errno>>),
    /// What may be shown of the peers.
    Peers(Sender<Vec<WatchedPeer>>),
}

/// What clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Clients at once.
    pub count: usize,
    /// How long one may say nothing. Not zero.
    pub idle: Duration,
    /// How long one may leave no room for the next bytes of its answer. Not zero.
    pub stalled: Duration,
}

/// [`CLIENTS_MAX`], [`IDLE_TIME`], [`STALLED_TIME`].
impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits { count: CLIENTS_MAX, idle: IDLE_TIME, stalled: STALLED_TIME }
    }
}

/// Listens where `wg` looks for the interface `name`. A socket left behind by a process that is gone is replaced.
///
/// # Errors
/// [`SocketError`].
pub fn bind(name: &str) -> Result<Listener, SocketError> {
    bind_in(Path::new(DIRECTORY), name)
}

/// The threads that serve clients. Dropped, it stops as [`Server::stop`] does.
#[derive(Debug)]
pub struct Server {
    stop: Waker,
    accept: Option<JoinHandle<UnixListener>>,
    clients: Arc<Clients>,
    /// Shared with the accept thread, which watches it.
    file: Option<Arc<SocketFile>>,
}

/// Starts serving. `on_removed` is called once, on the accept thread, if the socket file goes other than by
/// [`Server::stop`]; it should only tell somebody, in particular not stop the server itself.
///
/// # Errors
/// [`SocketError::System`]: no descriptors or no threads left.
pub fn serve(
    listener: Listener,
    commands: Sender<Command>,
    on_removed: impl FnOnce() + Send + 'static,
) -> Result<Server, SocketError> {
    serve_with(listener, commands, ClientLimits::default(), on_removed)
}

/// As [`serve`], with other limits.
///
/// # Errors
/// [`SocketError::System`]: no descriptors or no threads left.
pub fn serve_with(
    listener: Listener,
    commands: Sender<Command>,
    limits: ClientLimits,
    on_removed: impl FnOnce() + Send + 'static,
) -> Result<Server, SocketError> {
    let Listener { socket, file } = listener;
    let path = file.as_ref().map_or_else(PathBuf::new, |file| file.path.clone());
    let system = |doing| move |errno| SocketError::System { path, doing, errno };
    let stop = Waker::new().map_err(system.clone()("make an eventfd"))?;
    socket
        .set_nonblocking(true)
        .map_err(|error| system.clone()("use it without waiting")(errno_of(&error)))?;
    let file = file.map(Arc::new);
    let clients = Arc::new(Clients::new(commands, limits));
    let acceptor = Acceptor {
        socket,
        stop: stop.clone(),
        clients: Arc::clone(&clients),
        watch: file.as_ref().map(|file| Watch::new(Arc::clone(file))),
    };
    let accept = std::thread::Builder::new()
        .name("uapi".into())
        .spawn(move || acceptor.run(on_removed))
        .map_err(|error| system("start a thread")(errno_of(&error)))?;
    Ok(Server { stop, accept: Some(accept), clients, file })
}

impl Server {
    /// Removes the socket file if it is still ours, forgets all clients and ends the threads. Waits for no client.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(accept) = self.accept.take() {
            // A panic there has been reported by its thread; the file and the clients go all the same.
            let listener = accept.join();
            // Only now, so that the accept thread cannot take it for somebody else's doing; and before the listener
            // closes: whoever is refused takes the file for a leftover and puts his own in its place.
            drop(self.file.take());
            drop(listener);
        }
        self.clients.stop();
    }
}

/// The accept thread.
struct Acceptor {
    socket: UnixListener,
    stop: Waker,
    clients: Arc<Clients>,
    watch: Option<Watch>,
}

impl Acceptor {
    /// Gives the socket back when it is told to stop.
    fn run(mut self, on_removed: impl FnOnce()) -> UnixListener {
        let mut on_removed = Some(on_removed);
        loop {
            if self.watch.as_ref().is_some_and(Watch::is_removed) {
                self.watch = None;
                if let Some(tell) = on_removed.take() {
                    tracing::info!("the configuration socket was removed");
                    tell();
                }
            }
            if self.wait() {
                return self.socket;
            }
            match self.socket.accept() {
                Ok((stream, _)) => self.clients.admit(stream),
                Err(error) if is_shortage(errno_of(&error)) => {
                    // The connection stays in the backlog, so without a pause we would spin.
                    self.clients.drop_one();
                    if is_woken(&self.stop, ACCEPT_PAUSE_MS) {
                        return self.socket;
                    }
                }
                // Nobody there after all, or gone again.
                Err(_) => {}
            }
        }
    }

    /// Until there is something to do; whether that is to stop.
    fn wait(&self) -> bool {
        let mut fds = vec![
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
        ];
        let mut timeout = PollTimeout::NONE;
        match &self.watch {
            Some(Watch { events: Some(events), .. }) => {
                fds.push(PollFd::new(events.as_fd(), PollFlags::POLLIN));
            }
            Some(_) => timeout = PollTimeout::from(LOOK_TIME_MS),
            None => {}
        }
        // EINTR is as good as any other reason to look.
        let _ = poll(&mut fds, timeout);
        fds[0].any() == Some(true)
    }
}

fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS)
}

fn is_woken(stop: &Waker, timeout_ms: u16) -> bool {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::from(timeout_ms));
    fds[0].any() == Some(true)
}

/// Notices that the socket file goes.
struct Watch {
    file: Arc<SocketFile>,
    /// `None` if the system has no more of them; then we look from time to time.
    events: Option<Inotify>,
}

impl Watch {
    fn new(file: Arc<SocketFile>) -> Watch {
        let events = watch_file(&file.path)
            .inspect_err(|errno| tracing::debug!("no inotify for the configuration socket: {errno}"))
            .ok();
        Watch { file, events }
    }

    /// Asks the file system, whatever the events say: they only wake us.
    fn is_removed(&self) -> bool {
        if let Some(events) = &self.events {
            let _ = events.read_events();
        }
        !self.file.is_there()
    }
}

fn watch_file(path: &Path) -> Result<Inotify, Errno> {
    let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    // The socket itself keeps the inode alive, so what we see of a removal is the link count: an attribute.
    let flags = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
    events.add_watch(path, flags | AddWatchFlags::IN_DONT_FOLLOW)?;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn a_removal_is_noticed_without_inotify_too() {
        let directory = tempfile::tempdir().unwrap();
        let Listener { socket, file } = bind_in(directory.path(), "wg0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let file = Arc::new(file.unwrap());
        let watch = Some(Watch { file: Arc::clone(&file), events: None });
        let stop = Waker::new().unwrap();
        let (commands, _inbox) = bounded(0);
        let clients = Arc::new(Clients::new(commands, ClientLimits::default()));
        let acceptor = Acceptor { socket, stop: stop.clone(), clients, watch };
        let (tell, removed) = bounded(1);
        let thread = std::thread::spawn(move || acceptor.run(move || tell.send(()).unwrap()));
        fs::remove_file(&file.path).unwrap();
        removed.recv().unwrap();
        stop.wake();
        thread.join().unwrap();
    }
}

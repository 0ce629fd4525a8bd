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

use std::fs::{self, DirBuilder, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::sockopt::AcceptConn;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_socket, connect, getsockname,
    getsockopt, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

use super::name::{NameProblem, check_name};
use super::observer::WatchedPeer;
use super::uapi::{DeviceState, SetRequest};
use super::uapi_client::Clients;
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

/// Why there is no configuration socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UapiSocketError {
    /// No interface can have this name.
    #[error("configuration socket: the interface name {0:?} {1}")]
    Name(String, NameProblem),
    /// Another process answers there.
    #[error("configuration socket {}: in use by another process; stop it or choose another interface name", .0.display())]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("configuration socket {}: something that is no socket is in its place; remove it", .0.display())]
    NotASocket(PathBuf),
    /// We may not create it.
    #[error("configuration socket {}: no permission to create it; run as root, or hand in a listening socket", .0.display())]
    Permission(PathBuf),
    /// The system refused.
    #[error("configuration socket {}: cannot {doing}: {errno}; check that directory and the limits of the system", .path.display())]
    System {
        /// Of the socket's file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        errno: Errno,
    },
    /// What was handed in cannot accept `wg`'s connections.
    #[error(
        "configuration socket: the descriptor handed in is no listening Unix stream socket; bind and listen first"
    )]
    NotListening,
}

/// A socket that listens, and its file. Dropped without [`serve`], the file goes.
#[derive(Debug)]
pub struct Listener {
    /// `None` if it was handed in and has no name, or none any more. Dropped before the socket: whoever is refused takes the
    /// file for a leftover and puts his own in its place.
    file: Option<SocketFile>,
    socket: UnixListener,
}

impl Listener {
    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

/// The name of our socket in the file system. Dropped, it is removed if it is still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// What is at `path` now, if it is a socket.
    fn at(path: &Path) -> Option<SocketFile> {
        let found = fs::symlink_metadata(path).ok().filter(|found| found.file_type().is_socket())?;
        Some(SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// Whether nobody has removed, moved or replaced it.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() {
            // If the directory has become read-only there is nothing we could do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens where `wg` looks for the interface `name`. A socket left behind by a process that is gone is replaced.
///
/// # Errors
/// [`UapiSocketError`].
pub fn bind(name: &str) -> Result<Listener, UapiSocketError> {
    bind_in(Path::new(DIRECTORY), name)
}

/// As [`bind`], in another directory; it is created if its parent exists. Directory 0755, socket 0600, whatever the umask.
///
/// # Errors
/// [`UapiSocketError`].
pub fn bind_in(directory: &Path, name: &str) -> Result<Listener, UapiSocketError> {
    check_name(name).map_err(|problem| UapiSocketError::Name(super::shorten(name), problem))?;
    let path = directory.join(format!("{name}.sock"));
    let system = |doing| {
        let path = path.clone();
        move |errno| match errno {
            Errno::EACCES | Errno::EPERM | Errno::EROFS => UapiSocketError::Permission(path),
            errno => UapiSocketError::System { path, doing, errno },
        }
    };
    create_directory(directory).map_err(system("create its directory"))?;
    let address = UnixAddr::new(&path).map_err(system("use this name"))?;
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(system("open a socket"))?;
    // The file gets this mode at birth, so nobody is let in between bind and a later chmod.
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    fchmod(&listener, mode).map_err(system("set its mode"))?;
    if let Err(errno) = bind_socket(listener.as_raw_fd(), &address) {
        if errno != Errno::EADDRINUSE {
            return Err(system("bind it")(errno));
        }
        remove_stale(&path, &address)?;
        bind_socket(listener.as_raw_fd(), &address).map_err(system("bind it"))?;
    }
    let file = SocketFile::at(&path);
    // Again, for a umask that takes even the owner's bits away.
    set_mode(&path, mode.bits()).map_err(system("set its mode"))?;
    listen(&listener, Backlog::MAXCONN).map_err(system("listen"))?;
    Ok(Listener { socket: listener.into(), file })
}

/// A socket that somebody else has bound, and on which they listen.
///
/// # Errors
/// [`UapiSocketError::NotListening`].
pub fn from_fd(descriptor: OwnedFd) -> Result<Listener, UapiSocketError> {
    let address =
        getsockname::<UnixAddr>(descriptor.as_raw_fd()).map_err(|_| UapiSocketError::NotListening)?;
    if getsockopt(&descriptor, AcceptConn) != Ok(true) {
        return Err(UapiSocketError::NotListening);
    }
    let file = address.path().filter(|path| path.is_absolute()).and_then(SocketFile::at);
    Ok(Listener { socket: descriptor.into(), file })
}

fn create_directory(directory: &Path) -> Result<(), Errno> {
    match DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => set_mode(directory, 0o755),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(errno_of(&error)),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Errno> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| errno_of(&error))
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), UapiSocketError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(UapiSocketError::NotASocket(path.to_owned()));
        }
        _ => {}
    }
    let system = |errno| UapiSocketError::System { path: path.to_owned(), doing: "see who uses it", errno };
    // Not waiting: a process whose backlog is full uses it too.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(system)?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(|error| match errno_of(&error) {
            Errno::EACCES | Errno::EPERM | Errno::EROFS => UapiSocketError::Permission(path.to_owned()),
            errno => system(errno),
        }),
        Err(Errno::ENOENT) => Ok(()),
        Ok(()) | Err(Errno::EAGAIN) => Err(UapiSocketError::InUse(path.to_owned())),
        Err(errno) => Err(system(errno)),
    }
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
/// [`UapiSocketError::System`]: no descriptors or no threads left.
pub fn serve(
    listener: Listener,
    commands: Sender<Command>,
    on_removed: impl FnOnce() + Send + 'static,
) -> Result<Server, UapiSocketError> {
    serve_with(listener, commands, ClientLimits::default(), on_removed)
}

/// As [`serve`], with other limits.
///
/// # Errors
/// [`UapiSocketError::System`]: no descriptors or no threads left.
pub fn serve_with(
    listener: Listener,
    commands: Sender<Command>,
    limits: ClientLimits,
    on_removed: impl FnOnce() + Send + 'static,
) -> Result<Server, UapiSocketError> {
    let Listener { socket, file } = listener;
    let path = file.as_ref().map_or_else(PathBuf::new, |file| file.path.clone());
    let system = |doing| move |errno| UapiSocketError::System { path, doing, errno };
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

//! A Unix socket that listens, and its file: for its owner alone, replaced when its process is gone, removed at the end.
//!
//! Three listen so: the configuration socket ([`super::uapi_socket`]), and for those who watch ([`super::observer`]) `show`'s and,
//! with `--metrics unix:PATH`, Prometheus's. A file that is not a socket of ours is never removed.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::socket::sockopt::AcceptConn;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_socket, connect, getsockname,
    getsockopt, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

use super::name::{NameProblem, check_name};

/// How often, and after what pause, a starter tries to get its turn.
const TURN_TRIES: u32 = 50;
const TURN_PAUSE: Duration = Duration::from_millis(20);

/// Why nobody can listen there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// No interface can have this name.
    #[error("socket: the interface name {0:?} {1}")]
    Name(String, NameProblem),
    /// Another process answers there.
    #[error("socket {}: in use by another process; stop it or choose another name", .0.display())]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("socket {}: something that is no socket is in its place; remove it", .0.display())]
    NotASocket(PathBuf),
    /// We may not create it.
    #[error("socket {}: no permission to create it; run as root, or choose a place where you may", .0.display())]
    Permission(PathBuf),
    /// The system refused.
    #[error("socket {}: cannot {doing}: {errno}; check that directory and the limits of the system", .path.display())]
    System {
        /// Of the socket's file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        errno: Errno,
    },
    /// What was handed in cannot accept `wg`'s connections.
    #[error("socket: the descriptor handed in is no listening Unix stream socket; bind and listen first")]
    NotListening,
}

/// A socket that listens, and its file. Dropped, the file goes.
#[derive(Debug)]
pub struct Listener {
    /// `None` if it was handed in and has no name, or none any more. Dropped before the socket: whoever is refused takes the
    /// file for a leftover and puts his own in its place.
    pub(super) file: Option<SocketFile>,
    pub(super) socket: UnixListener,
}

impl Listener {
    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

/// The name of our socket in the file system. Dropped, it is removed if it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    pub(super) path: PathBuf,
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
    pub(super) fn is_there(&self) -> bool {
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

/// Listens at `directory/name.sock`, `name` being an interface's; the directory is created if its parent exists. Directory 0755,
/// socket 0600, whatever the umask.
///
/// # Errors
/// [`SocketError`].
pub fn bind_in(directory: &Path, name: &str) -> Result<Listener, SocketError> {
    check_name(name).map_err(|problem| SocketError::Name(super::shorten(name), problem))?;
    let path = directory.join(format!("{name}.sock"));
    create_directory(directory).map_err(|errno| refused(&path, "create its directory", errno))?;
    bind(&path)
}

/// Listens at `path`; mode 0600, whatever the umask. A socket left behind by a process that is gone is replaced.
///
/// # Errors
/// [`SocketError`].
pub fn bind(path: &Path) -> Result<Listener, SocketError> {
    let system = |doing| move |errno| refused(path, doing, errno);
    let address = UnixAddr::new(path).map_err(system("use this name"))?;
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(system("open a socket"))?;
    let _turn = take_turn(path);
    // The file gets this mode at birth, so nobody is let in between bind and a later chmod.
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    fchmod(&listener, mode).map_err(system("set its mode"))?;
    if let Err(errno) = bind_socket(listener.as_raw_fd(), &address) {
        if errno != Errno::EADDRINUSE {
            return Err(system("bind it")(errno));
        }
        remove_stale(path, &address)?;
        bind_socket(listener.as_raw_fd(), &address).map_err(|errno| match errno {
            Errno::EADDRINUSE => SocketError::InUse(path.to_owned()),
            errno => system("bind it")(errno),
        })?;
    }
    // At once: a socket that refuses looks like a leftover.
    listen(&listener, Backlog::MAXCONN).map_err(system("listen"))?;
    let file = SocketFile::at(path);
    // Again, for a umask that takes even the owner's bits away.
    set_mode(path, mode.bits()).map_err(system("set its mode"))?;
    Ok(Listener { socket: listener.into(), file })
}

fn refused(path: &Path, doing: &'static str, errno: Errno) -> SocketError {
    match errno {
        Errno::EACCES | Errno::EPERM | Errno::EROFS => SocketError::Permission(path.to_owned()),
        errno => SocketError::System { path: path.to_owned(), doing, errno },
    }
}

/// A socket that somebody else has bound, and on which they listen.
///
/// # Errors
/// [`SocketError::NotListening`].
pub fn from_fd(descriptor: OwnedFd) -> Result<Listener, SocketError> {
    let address = getsockname::<UnixAddr>(descriptor.as_raw_fd()).map_err(|_| SocketError::NotListening)?;
    if getsockopt(&descriptor, AcceptConn) != Ok(true) {
        return Err(SocketError::NotListening);
    }
    let file = address.path().filter(|path| path.is_absolute()).and_then(SocketFile::at);
    Ok(Listener { socket: descriptor.into(), file })
}

fn create_directory(directory: &Path) -> Result<(), Errno> {
    match DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => set_mode(directory, 0o755),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(errno_of(&error)),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Errno> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| errno_of(&error))
}

pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Those who start at the same place take turns, so that nobody takes for a leftover what another has bound and does not listen on
/// yet. Whoever gets no turn within a second goes on without: all who may read the directory can keep it.
fn take_turn(path: &Path) -> Option<Flock<File>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Should it be a FIFO, opening it must not wait.
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NONBLOCK).bits();
    let mut directory = File::options().read(true).custom_flags(flags).open(directory).ok()?;
    for _ in 0..TURN_TRIES {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => directory = file,
            // Not on this file system.
            Err(_) => return None,
        }
        thread::sleep(TURN_PAUSE);
    }
    None
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        _ => {}
    }
    if is_used(path, address)? {
        return Err(SocketError::InUse(path.to_owned()));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(refused(path, "remove what is left of it", errno_of(&error)))
        }
        _ => Ok(()),
    }
}

/// Whether somebody listens there.
fn is_used(path: &Path, address: &UnixAddr) -> Result<bool, SocketError> {
    let system = |errno| SocketError::System { path: path.to_owned(), doing: "see who uses it", errno };
    // Not waiting: a process whose backlog is full uses it too.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(system)?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(errno) => Err(system(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn of_many_who_find_the_same_leftover_one_has_its_place_and_keeps_it() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            drop(UnixListener::bind(directory.path().join("wg0.sock")).unwrap());
            let begin = Barrier::new(4);
            let start = || {
                begin.wait();
                bind_in(directory.path(), "wg0")
            };
            let results: Vec<_> = thread::scope(|scope| {
                let starters: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                starters.into_iter().map(|starter| starter.join().unwrap()).collect()
            });
            let listening: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
            assert_eq!(listening.len(), 1, "{results:?}");
            assert!(listening[0].file.as_ref().is_some_and(SocketFile::is_there));
            assert!(
                results.iter().all(|result| matches!(result, Ok(_) | Err(SocketError::InUse(_)))),
                "{results:?}"
            );
        }
    }
}

//! Where watchers come in: the listeners, and how many may pass.
//!
//! A door lets in [`WATCHERS_MAX`] at most per [`DOOR_PAUSE`]: a crowd may keep the observer's thread busy, not a processor. The rest
//! waits in the listener's backlog, which is the kernel's memory and bounded there.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{Backlog, listen};

use super::endpoint::MetricsAddress;
use super::unix_socket::{self, Listener, SocketError};
use super::watcher::{Language, Stream};
use crate::time::{Span, Time};

/// Watchers at once, of each kind.
pub const WATCHERS_MAX: usize = 64;
/// How long a door stays closed when a crowd came, or when there are no descriptors for who stands there.
pub const DOOR_PAUSE: Span = Span::from_millis(100);

/// Where watchers come in.
#[derive(Debug)]
pub enum Entrance {
    /// A network address.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(Listener),
}

/// Why metrics cannot be served where they were asked for.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address is taken, or not ours.
    #[error("cannot serve metrics at {0}: {1}; is the address one of this host, and the port free?")]
    Address(SocketAddr, io::Error),
    /// The file cannot be made.
    #[error("cannot serve metrics: {0}")]
    Socket(SocketError),
}

/// Listens for Prometheus.
///
/// # Errors
/// [`MetricsError`].
pub fn listen_metrics(address: &MetricsAddress) -> Result<Entrance, MetricsError> {
    match address {
        MetricsAddress::Tcp(address) => {
            let failed = |error| MetricsError::Address(*address, error);
            let listener = TcpListener::bind(address).map_err(failed)?;
            // The library's backlog of 128 is small for a crowd; the kernel cuts this one to what it allows.
            listen(&listener, Backlog::MAXCONN).map_err(|errno| failed(errno.into()))?;
            let address = listener.local_addr().map_err(failed)?;
            tracing::info!("metrics at http://{address}/metrics");
            Ok(Entrance::Tcp(listener))
        }
        MetricsAddress::Unix(path) => {
            let listener = unix_socket::bind(path).map_err(MetricsError::Socket)?;
            tracing::info!("metrics at /metrics on {address}");
            Ok(Entrance::Unix(listener))
        }
    }
}

/// A listener that never waits.
pub(super) struct Door {
    entrance: Entrance,
    /// In which those who come here speak.
    pub language: Language,
    /// Nobody is let in before then.
    pub closed_until: Time,
    /// When it was opened last, and how many came since.
    opened: Time,
    entered: usize,
}

impl Door {
    pub fn new(entrance: Entrance, language: Language) -> io::Result<Door> {
        match &entrance {
            Entrance::Tcp(listener) => listener.set_nonblocking(true)?,
            Entrance::Unix(listener) => listener.socket().set_nonblocking(true)?,
        }
        let never = Time::default();
        Ok(Door { entrance, language, closed_until: never, opened: never, entered: 0 })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.entrance {
            Entrance::Tcp(listener) => listener.as_fd(),
            Entrance::Unix(listener) => listener.socket().as_fd(),
        }
    }

    /// The next one, if there is one and the door is open.
    pub fn let_in(&mut self, now: Time) -> Option<Stream> {
        if now < self.closed_until {
            return None;
        }
        if now.since(self.opened) >= DOOR_PAUSE {
            (self.opened, self.entered) = (now, 0);
        }
        if self.entered == WATCHERS_MAX {
            self.closed_until = self.opened + DOOR_PAUSE;
            return None;
        }
        let accepted = self.accept();
        // Without descriptors for him he stays there, and poll would not sleep.
        let short = accepted
            .as_ref()
            .is_err_and(|error| !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted));
        if short {
            self.closed_until = now + DOOR_PAUSE;
        }
        self.entered += usize::from(accepted.is_ok());
        accepted.ok()
    }

    fn accept(&self) -> io::Result<Stream> {
        match &self.entrance {
            Entrance::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Tcp(stream))
            }
            Entrance::Unix(listener) => {
                let (stream, _) = listener.socket().accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_crowd_comes_in_by_portions_and_nobody_of_it_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("door");
        let entrance = Entrance::Unix(unix_socket::bind(&path).unwrap());
        let mut door = Door::new(entrance, Language::Lines).unwrap();
        let crowd: Vec<_> = (0..2 * WATCHERS_MAX + 1).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let mut came = |millis| {
            let now = Time::from_nanos(0) + Span::from_secs(9) + Span::from_millis(millis);
            std::iter::from_fn(|| door.let_in(now)).count()
        };
        let seen = [0, 0, 99, 100, 150, 200, 201].map(&mut came);
        assert_eq!(seen, [WATCHERS_MAX, 0, 0, WATCHERS_MAX, 0, 1, 0]);
        assert_eq!(seen.into_iter().sum::<usize>(), crowd.len());
    }
}

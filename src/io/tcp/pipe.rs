//! Bytes on their way from one connection to another through a pipe, never through our memory: splice(2).
//!
//! The kernel moves references to the pages in which they came. So a pipe costs no copy, but two calls; it pays for whoever
//! brings much at once.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::pipe2;

use super::Id;

/// Bytes in a pipe at most.
pub const PIPE_BYTES: usize = 256 << 10;
/// Pipes at most. Whoever finds none free does without.
pub const PIPES_MAX: usize = 64;

/// What one connection brings is passed on to another.
#[derive(Debug)]
pub(super) struct Passing {
    /// Whom to.
    pub to: Id,
    /// Holds what found no room there.
    pub pipe: Option<Pipe>,
}

/// A pipe, and what is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    bytes: usize,
}

impl Pipe {
    fn new() -> Result<Pipe, Errno> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused to a user who has too many of them (pipe(7) pipe-user-pages-soft): then it takes less at once.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        Ok(Pipe { reader, writer, bytes: 0 })
    }

    /// Takes what `from` has brought, without waiting: how many bytes, 0 when its other end sends no more.
    ///
    /// # Errors
    /// EAGAIN when there is nothing; what ends the connection.
    pub fn fill(&mut self, from: impl AsFd) -> Result<usize, Errno> {
        let bytes = retry(|| splice(&from, None, &self.writer, None, PIPE_BYTES - self.bytes, flags()))?;
        self.bytes += bytes;
        Ok(bytes)
    }

    /// Gives `to` what is inside, as far as it has room: how many bytes.
    ///
    /// # Errors
    /// What ends the connection.
    pub fn drain(&mut self, to: impl AsFd) -> Result<usize, Errno> {
        let before = self.bytes;
        while self.bytes > 0 {
            match retry(|| splice(&self.reader, None, &to, None, self.bytes, flags())) {
                Ok(bytes) => self.bytes -= bytes,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(before - self.bytes)
    }

    /// Bytes inside.
    pub fn len(&self) -> usize {
        self.bytes
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE
}

fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// While `call` runs, `socket` makes nobody wait: splice(2) asks the descriptor, not its own flags.
pub(super) fn without_waiting<T>(socket: impl AsFd, call: impl FnOnce() -> T) -> T {
    // Cannot fail on a descriptor that is open.
    let _ = fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let result = call();
    let _ = fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()));
    result
}

/// Whether bytes are there that splice(2) does not get: it stops at urgent data for good, which recv(2) passes over.
pub(super) fn holds_bytes(socket: impl AsFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_fd().as_raw_fd(), &mut [0], flags).is_ok_and(|bytes| bytes > 0)
}

/// Pipes, and how many there may be. One is kept at rest: whoever finds room at once gives it back at once.
#[derive(Debug)]
pub(super) struct Pipes {
    free: Option<Pipe>,
    out: usize,
}

impl Pipes {
    /// With one, if there are descriptors for it.
    pub fn new() -> Pipes {
        Pipes { free: Pipe::new().ok(), out: 0 }
    }

    /// An empty pipe, unless too many are out or there are no descriptors.
    pub fn take(&mut self) -> Option<Pipe> {
        if self.out == PIPES_MAX {
            return None;
        }
        let pipe = self.free.take().or_else(|| Pipe::new().ok())?;
        self.out += 1;
        Some(pipe)
    }

    /// Takes a pipe back.
    pub fn give_back(&mut self, pipe: Pipe) {
        self.out -= 1;
        if pipe.len() == 0 {
            self.free = Some(pipe);
        } else if self.free.is_none() {
            self.free = Pipe::new().ok();
        }
    }
}

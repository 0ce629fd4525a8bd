//! Standard error and standard output, without ever waiting long for whoever reads them.
//!
//! A worker that logs must not stop because a pipe is full or a terminal hangs. What finds no room is lost, and the next
//! line that gets through says how many were.
//!
//! Standard error cannot simply be made non-blocking: that would hold for every process which shares it, our shell
//! included. So each line is written through a non-blocking opening of our own, made for it and closed after it, since
//! a kept one would hold on to the terminal when the daemon lets go of it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};

/// Longest line written, in bytes; the rest is cut off. limits.h PIPE_BUF: a pipe takes that much whole or not at all.
pub const LINE_BYTES_MAX: usize = 4096;
/// How long the first line that finds no room waits for it, in milliseconds. Those after it do not wait.
const PATIENCE_MS: u16 = 20;
/// How long the last words of a process wait for room, in milliseconds.
const LAST_WORDS_PATIENCE_MS: u16 = 1000;

/// Writes the last words of a process, one line.
pub fn print_last(line: &str) {
    write_if_room(io::stderr().as_fd(), line.as_bytes(), LAST_WORDS_PATIENCE_MS);
}

/// Writes the lines of `text`, up to the first that finds no room.
pub fn print(text: &str) {
    for line in text.split_inclusive('\n') {
        if !write_if_room(io::stderr().as_fd(), line.as_bytes(), PATIENCE_MS) {
            return;
        }
    }
}

/// Lines for standard output that were lost since the last one written.
static OUTPUT_LOST: Mutex<u64> = Mutex::new(0);

/// Writes one line to standard output. The first that finds no room waits a moment for it, those after it do not, and before
/// the next that finds some comes what `notice` says of so many lost ones.
pub fn print_out(line: &str, notice: impl FnOnce(u64) -> String) {
    let mut lost = OUTPUT_LOST.lock().unwrap_or_else(PoisonError::into_inner);
    let notice = |lost| notice(lost) + "\n";
    write_line(io::stdout().as_fd(), format!("{line}\n").as_bytes(), &mut lost, notice);
}

/// Standard error as a writer that loses what does not fit.
#[derive(Debug, Default)]
pub struct Stderr {
    /// Lines lost since the last one written.
    lost: u64,
}

impl Stderr {
    /// Writes one whole line. Before it, if lines were lost, what `notice` says of so many.
    pub fn write(&mut self, line: &str, notice: impl FnOnce(u64) -> String) {
        write_line(io::stderr().as_fd(), line.as_bytes(), &mut self.lost, notice);
    }
}

fn write_line(to: BorrowedFd<'_>, line: &[u8], lost: &mut u64, notice: impl FnOnce(u64) -> String) {
    if *lost > 0 {
        if !write_if_room(to, notice(*lost).as_bytes(), 0) {
            *lost += 1;
            return;
        }
        *lost = 0;
    }
    if !write_if_room(to, line, PATIENCE_MS) {
        *lost = 1;
    }
}

/// Whether `line` was written, or can never be (closed pipe, full disk): then there is nothing to wait for either.
fn write_if_room(to: BorrowedFd<'_>, line: &[u8], patience_ms: u16) -> bool {
    let line = cut(line);
    let mut fds = [PollFd::new(to, PollFlags::POLLOUT)];
    let room = poll(&mut fds, PollTimeout::from(patience_ms)).is_ok_and(|ready| ready > 0);
    room && write_without_blocking(to, &line) != Err(Errno::EAGAIN)
}

/// `poll` alone does not do: others may fill the pipe meanwhile, and a terminal with room for one byte polls writable.
fn write_without_blocking(to: BorrowedFd<'_>, line: &[u8]) -> Result<usize, Errno> {
    let kind =
        fstat(to).map_or(SFlag::empty(), |status| SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT);
    if kind == SFlag::S_IFSOCK {
        return send(to.as_raw_fd(), line, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
    if kind == SFlag::S_IFIFO || kind == SFlag::S_IFCHR {
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(format!("/proc/self/fd/{}", to.as_raw_fd()));
        if let Ok(own) = opened {
            return nix::unistd::write(own, line);
        }
        // No /proc, or a terminal of another user: what poll said has to do.
    }
    nix::unistd::write(to, line)
}

/// At most [`LINE_BYTES_MAX`] bytes, still ending in a newline.
fn cut(line: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if line.len() <= LINE_BYTES_MAX {
        return line.into();
    }
    let mut short = line[..LINE_BYTES_MAX - 1].to_vec();
    short.push(b'\n');
    short.into()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    use nix::unistd::pipe2;

    use super::*;

    /// A pipe whose writing end would block, as standard error does.
    fn filled_pipe() -> (OwnedFd, OwnedFd) {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        while write_without_blocking(write.as_fd(), &[0; 4096]).is_ok() {}
        (read, write)
    }

    /// Everything in the pipe, which must not be empty.
    fn drain(read: &OwnedFd) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 20];
        let bytes = nix::unistd::read(read, &mut buffer).unwrap();
        buffer.truncate(bytes);
        buffer
    }

    fn log(to: &impl AsFd, line: &[u8], lost: &mut u64) {
        write_line(to.as_fd(), line, lost, |lost| format!("{lost} lost\n"));
    }

    #[test]
    fn a_full_pipe_costs_the_patience_once_and_then_nothing() {
        let (_read, write) = filled_pipe();
        let start = Instant::now();
        let mut lost = 0;
        for _ in 0..1000 {
            log(&write, b"line\n", &mut lost);
        }
        assert_eq!(lost, 1000);
        assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    }

    #[test]
    fn the_first_line_after_a_jam_says_how_many_were_lost() {
        let (read, write) = filled_pipe();
        let mut lost = 0;
        log(&write, b"one\n", &mut lost);
        log(&write, b"two\n", &mut lost);
        drain(&read);
        log(&write, b"three\n", &mut lost);
        assert_eq!(drain(&read), b"2 lost\nthree\n");
        assert_eq!(lost, 0);
    }

    #[test]
    fn a_pipe_nobody_will_ever_read_is_no_reason_to_stop() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(read);
        let mut lost = 0;
        log(&write, b"line\n", &mut lost);
        assert_eq!(lost, 0);
    }

    #[test]
    fn a_socket_nobody_reads_does_not_stop_us() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut lost = 0;
        for _ in 0..1000 {
            log(&ours, &[b'x'; 4096], &mut lost);
        }
        assert!(lost > 0);
    }

    #[test]
    fn a_line_longer_than_a_pipe_takes_at_once_is_cut() {
        let long = cut(&[b'x'; 10_000]).into_owned();
        assert_eq!((long.len(), long.last()), (LINE_BYTES_MAX, Some(&b'\n')));
    }
}

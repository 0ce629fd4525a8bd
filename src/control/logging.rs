//! Log lines to standard error, without ever waiting for whoever reads them.
//!
//! A worker that logs must not stop because a pipe is full or a terminal hangs. What finds no room is lost, and the next
//! line that gets through says how many were.
//!
//! Standard error cannot simply be made non-blocking: that would hold for every process which shares it, our shell
//! included. So each line is written through a non-blocking opening of our own, made for it and closed after it, since
//! a kept one would hold on to the terminal when the daemon lets go of it.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Longest line written, in bytes; the rest is cut off. limits.h PIPE_BUF: a pipe takes that much whole or not at all.
const LINE_BYTES_MAX: usize = 4096;
/// How long the first line that finds no room waits for it, in milliseconds. Those after it do not wait.
const PATIENCE_MS: u16 = 20;
/// How long the last words of a process wait for room, in milliseconds.
const LAST_WORDS_PATIENCE_MS: u16 = 1000;

/// Starts logging to standard error everything at least as severe as `level`.
///
/// Colours only on a terminal and if `NO_COLOR` is unset; times only where nobody else adds them, that is neither on
/// a terminal nor in the journal of systemd. A second call changes nothing.
pub fn start(level: LevelFilter) {
    let terminal = io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let timed = !terminal && std::env::var_os("JOURNAL_STREAM").is_none();
    let base = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(colour)
        .with_target(false)
        .log_internal_errors(false)
        .with_writer(LossyStderr::default());
    // An error means that a subscriber is there already.
    let _ = if timed { base.try_init() } else { base.without_time().try_init() };
}

/// Writes one plain line `uringvpn: …` to standard error, without waiting for a reader that does not read.
///
/// For errors before logging has started and after everything has ended.
pub fn print_error(text: &str) {
    let line = format!("uringvpn: {text}\n");
    write_if_room(io::stderr().as_fd(), line.as_bytes(), LAST_WORDS_PATIENCE_MS);
}

/// Writes the lines of `text` to standard error, without waiting for a reader that does not read.
pub fn print_lines(text: &str) {
    for line in text.split_inclusive('\n') {
        if !write_if_room(io::stderr().as_fd(), line.as_bytes(), PATIENCE_MS) {
            return;
        }
    }
}

/// Standard error as a writer that loses what does not fit.
#[derive(Default)]
struct LossyStderr {
    lost: Mutex<u64>,
}

impl<'a> MakeWriter<'a> for LossyStderr {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { lost: &self.lost }
    }
}

/// Takes one whole line per call.
struct LineWriter<'a> {
    /// Lines lost since the last one written. Held while writing, so that lines neither mix nor overfill a pipe.
    lost: &'a Mutex<u64>,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        write_line(io::stderr().as_fd(), line, &mut lost);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_line(to: BorrowedFd<'_>, line: &[u8], lost: &mut u64) {
    if *lost > 0 {
        let notice = format!("({lost} log lines were lost: nobody read them)\n");
        if !write_if_room(to, notice.as_bytes(), 0) {
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

    #[test]
    fn a_full_pipe_costs_the_patience_once_and_then_nothing() {
        let (_read, write) = filled_pipe();
        let start = Instant::now();
        let mut lost = 0;
        for _ in 0..1000 {
            write_line(write.as_fd(), b"line\n", &mut lost);
        }
        assert_eq!(lost, 1000);
        assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    }

    #[test]
    fn the_first_line_after_a_jam_says_how_many_were_lost() {
        let (read, write) = filled_pipe();
        let mut lost = 0;
        write_line(write.as_fd(), b"one\n", &mut lost);
        write_line(write.as_fd(), b"two\n", &mut lost);
        drain(&read);
        write_line(write.as_fd(), b"three\n", &mut lost);
        assert_eq!(drain(&read), b"(2 log lines were lost: nobody read them)\nthree\n");
        assert_eq!(lost, 0);
    }

    #[test]
    fn a_pipe_nobody_will_ever_read_is_no_reason_to_stop() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(read);
        let mut lost = 0;
        write_line(write.as_fd(), b"line\n", &mut lost);
        assert_eq!(lost, 0);
    }

    #[test]
    fn a_socket_nobody_reads_does_not_stop_us() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut lost = 0;
        for _ in 0..1000 {
            write_line(ours.as_fd(), &[b'x'; 4096], &mut lost);
        }
        assert!(lost > 0);
    }

    #[test]
    fn a_line_longer_than_a_pipe_takes_at_once_is_cut() {
        let long = cut(&[b'x'; 10_000]).into_owned();
        assert_eq!((long.len(), long.last()), (LINE_BYTES_MAX, Some(&b'\n')));
    }
}

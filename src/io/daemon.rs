//! Going to the background, and telling whoever started us how that went.
//!
//! [`detach`] forks while the process still has one thread. The parent waits in front of a pipe until the child says
//! "ready" or why not, so that `uringvpn … && ping …` works and an error is seen where the command was typed.
//!
//! ```text
//! parent ──fork──► child: setsid, open devices, start threads
//!   │                │
//!   │ ◄── "ready" ───┤  ready(): standard streams to /dev/null, work on
//!   │ ◄── reason ────┤  failed(): then the child exits
//!   │ ◄── nothing ───┘  the child died: the parent says how
//!   exit 0 or 1
//! ```
//!
//! Standard streams that are closed at the start are not our business: the Rust runtime has opened /dev/null in their
//! place before `main`, and it ignores SIGPIPE, so writing to a parent that is gone is an error and not our end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

/// First byte of the child's message: it is up.
const READY: u8 = b'+';
/// First byte of the child's message: it is not, and the rest says why.
const FAILED: u8 = b'-';
/// Longest message in bytes. limits.h PIPE_BUF: written whole and without blocking into an empty pipe.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Which of the two processes we are after [`detach`].
#[derive(Debug)]
pub enum Detached {
    /// The one that was started; it has nothing left to do but to exit. `Err` is the reason to print first.
    Parent(Result<(), String>),
    /// The one in the background.
    Child(Daemon),
}

/// What happens to standard output and standard error once the daemon is ready. Standard input always goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Both go to /dev/null.
    Nothing,
    /// Those that are a regular file or a socket (a log file, the journal) stay. A terminal or a pipe never stays:
    /// the one would be written to by a process nobody sees, the other would keep its reader waiting for the end.
    Logs,
}

/// The child's side: owes its parent one message. Dropped without one, the parent reports that the child died.
#[derive(Debug)]
pub struct Daemon {
    to_parent: File,
}

/// Splits off a child in a session of its own and, in the parent, waits for its message.
///
/// To be called before the first thread is started. The child's working directory changes only in [`Daemon::ready`],
/// relative file names work until then. Of the descriptors that whoever started us left open, the child keeps the standard
/// streams and those `handed_in`: others would wait for the end of a pipe that we hold, or miss their disk.
///
/// # Errors
/// Whatever pipe or fork report: no more descriptors or processes. Nothing has happened then.
///
/// # Panics
/// If there is a second thread: its locks would be held for ever in the child.
pub fn detach(handed_in: &[RawFd]) -> io::Result<Detached> {
    if let Ok(threads) = std::fs::read_dir("/proc/self/task") {
        let count = threads.count();
        assert!(count <= 1, "detach: {count} threads run already, fork would lose all but one");
    }
    // Close-on-exec, and no copy but the two we know: the end of the child is the end of the pipe.
    let (from_child, to_parent) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the process has one thread (asserted above), so no lock can be held by a thread the child lacks, and
    // the child may do whatever the parent could.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(to_parent);
            Ok(Detached::Parent(await_message(File::from(from_child), child)))
        }
        ForkResult::Child => {
            drop(from_child);
            close_all_but(handed_in, to_parent.as_raw_fd());
            // Fails only for a process group leader, which a fresh child is not.
            let _ = setsid();
            Ok(Detached::Child(Daemon { to_parent: File::from(to_parent) }))
        }
    }
}

/// Closes every descriptor above the standard streams but these. One that is still in use here must not exist.
fn close_all_but(handed_in: &[RawFd], pipe: RawFd) {
    let mut keep: Vec<_> = handed_in.iter().copied().chain([pipe, libc::STDERR_FILENO]).collect();
    keep.sort_unstable();
    keep.push(RawFd::MAX);
    for pair in keep.windows(2) {
        let (first, last) = (pair[0].saturating_add(1), pair[1].saturating_sub(1));
        if first <= last {
            // SAFETY: plain numbers; nobody in this process owns one of these descriptors, as this is called before
            // anything is opened. Linux before 5.9 does not know the call: then they stay open, which is harmless to us.
            unsafe { libc::syscall(libc::SYS_close_range, first as u32, last as u32, 0) };
        }
    }
}

/// Tells systemd that the tunnel is up, if it asked to be told.
///
/// Source: sd_notify(3): a datagram to the socket in NOTIFY_SOCKET, `@` standing for the zero byte of an abstract name.
pub fn notify_started() {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(b"READY=1", &address)
    });
    if let Err(error) = sent {
        tracing::warn!("NOTIFY_SOCKET: cannot tell that the tunnel is up: {error}");
    }
}

impl Daemon {
    /// Tells the parent that all is well and lets go of the terminal and the working directory.
    ///
    /// # Errors
    /// The parent is gone, so whoever wanted the daemon has given up on it: the caller should end. Or /dev/null cannot
    /// be opened; the parent then hears of a failure.
    pub fn ready(mut self, keep: Keep) -> io::Result<()> {
        if let Err(error) = release_streams(keep) {
            self.send(FAILED, &format!("cannot go to the background: /dev/null: {error}"))?;
            return Err(error);
        }
        // Else the file system we were started on could not be unmounted. Best effort, "/" may be out of reach.
        let _ = chdir("/");
        self.send(READY, "")
    }

    /// Tells the parent why the daemon cannot run. Nothing is done about the process itself; the caller ends it.
    pub fn failed(mut self, reason: &str) {
        // If the parent is gone there is nobody to tell.
        let _ = self.send(FAILED, reason);
    }

    fn send(&mut self, kind: u8, text: &str) -> io::Result<()> {
        let mut message = vec![kind];
        message.extend_from_slice(text.as_bytes());
        message.truncate(MESSAGE_BYTES_MAX);
        self.to_parent.write_all(&message)
    }
}

/// Points the standard streams to /dev/null, except those to be kept.
fn release_streams(keep: Keep) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    if !(keep == Keep::Logs && is_log(io::stdout())) {
        dup2_stdout(&null)?;
    }
    if !(keep == Keep::Logs && is_log(io::stderr())) {
        dup2_stderr(&null)?;
    }
    Ok(())
}

/// Whether `stream` is a regular file or a socket: somebody keeps or takes what is written there.
pub fn is_log(stream: impl AsFd) -> bool {
    let Ok(status) = fstat(stream) else { return false };
    let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
    kind == SFlag::S_IFREG || kind == SFlag::S_IFSOCK
}

/// Reads the child's message; if there is none, asks the kernel how the child ended.
fn await_message(mut from_child: File, child: Pid) -> Result<(), String> {
    let mut message = Vec::new();
    // The child closes its end right after its one message. An error here means the same as no message.
    let _ = from_child.read_to_end(&mut message);
    match message.split_first() {
        Some((&READY, _)) => Ok(()),
        Some((_, reason)) => Err(String::from_utf8_lossy(reason).into_owned()),
        None => Err(format!("the background process ended before the tunnel was up ({})", await_end(child))),
    }
}

fn await_end(child: Pid) -> String {
    loop {
        return match waitpid(child, None) {
            Err(Errno::EINTR) => continue,
            Ok(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
            _ => "it is not known how".to_owned(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A parent's end and a child's end without two processes.
    fn pair() -> (File, Daemon) {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (File::from(read), Daemon { to_parent: File::from(write) })
    }

    #[test]
    fn the_parent_repeats_the_childs_reason() {
        let (parent, daemon) = pair();
        daemon.failed("port 51820 is in use");
        assert_eq!(await_message(parent, Pid::this()), Err("port 51820 is in use".to_owned()));
    }

    #[test]
    fn a_reason_of_any_length_neither_blocks_nor_splits() {
        let (parent, daemon) = pair();
        daemon.failed(&"ü".repeat(1 << 20));
        let reason = await_message(parent, Pid::this()).unwrap_err();
        assert!(reason.starts_with("üü") && reason.len() < MESSAGE_BYTES_MAX + 8, "{} bytes", reason.len());
    }

    #[test]
    fn a_child_that_says_nothing_is_reported() {
        let (parent, daemon) = pair();
        drop(daemon);
        // Not a child of ours, so there is nothing to wait for.
        let reason = await_message(parent, Pid::this()).unwrap_err();
        assert!(reason.contains("ended before the tunnel was up"), "{reason}");
    }
}

//! The command: copies what the tunnel sends into a file, ends the capture when told to, and says how much was missed.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use super::{Filter, PeerName, Wanted};
use crate::control::show::{self, ShowError};
use crate::proto::keys::KeyError;
use crate::stats::drop::Direction;
use crate::stats::pcapng::{self, STATISTICS_BYTES_MAX, Statistics};

/// Write packets inside a running tunnel to a file, with peer and drop reason as comments
///
/// The packets are those that the interface sends and receives, cut as they travel, in pcapng, which Wireshark and tshark read.
/// Each has its direction (outbound: from the interface to a peer), and as its comment the peer and, if it was dropped, the
/// reason. Datagrams from the network that do not open are no packets: `uringvpn show` counts them.
///
/// The tunnel waits for nobody: packets for which there is no room on the way to the file are missed and counted, in the file
/// and at the end. One capture of a tunnel runs at a time. Ctrl-C ends it and leaves a file that is whole. Exit code 1 when
/// the tunnel does not run, the file cannot be written, or the tunnel is killed.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Capture {
    /// Interface of the tunnel; not needed if only one runs
    pub name: Option<String>,
    /// The file to write, which only you may read; - is standard output
    #[arg(long, short, value_name = "FILE")]
    pub write: PathBuf,
    /// Only packets that are dropped
    #[arg(long)]
    pub drops: bool,
    /// Only packets to and from this peer: its public key, or with --plaintext its ADDRESS:PORT
    #[arg(long, value_name = "KEY", value_parser = peer)]
    pub peer: Option<PeerName>,
    /// Only packets this way
    #[arg(long, value_enum)]
    pub direction: Option<Way>,
    /// Keep only the first bytes of each packet; 0 keeps all
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub snap: u32,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: Option<u32>,
}

/// How long to wait for a tunnel to notice that we go.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// Seen from the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// From the network to the interface
    Inbound,
    /// From the interface to the network
    Outbound,
}

fn peer(text: &str) -> Result<PeerName, KeyError> {
    text.parse()
}

/// Why there is no capture, or no whole one.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The tunnel does not run, or refuses.
    #[error(transparent)]
    Tunnel(#[from] ShowError),
    /// Packets would make a mess of the terminal.
    #[error("will not write packets to a terminal; name a file with -w, or pipe them to another program")]
    Terminal,
    /// The file cannot be written.
    #[error("cannot write {name}: {1}", name = .0.display())]
    Write(PathBuf, io::Error),
    /// The tunnel was killed.
    #[error("{0}: the tunnel broke off; {name} holds what came until then", name = .1.display())]
    BrokenOff(String, PathBuf),
}

impl Capture {
    fn wanted(&self) -> Wanted {
        let direction = self.direction.map(|way| match way {
            Way::Inbound => Direction::Inbound,
            Way::Outbound => Direction::Outbound,
        });
        let filter = Filter { direction, peer: self.peer, drops: self.drops, snap: self.snap };
        Wanted { filter, count: self.count, seconds: self.seconds }
    }
}

/// Captures until the tunnel or whoever started us has enough; says on `notes` how much that was. Takes SIGINT and SIGTERM
/// for this process; a second one ends it at once.
///
/// # Errors
/// [`CaptureError`].
pub fn run(capture: &Capture, notes: &mut dyn Write) -> Result<(), CaptureError> {
    let to_stdout = capture.write == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(CaptureError::Terminal);
    }
    let name = show::meant(capture.name.as_deref())?;
    let (mut stream, first) = ask(&name, &capture.wanted())?;
    let end = record(&capture.write, &first, &mut stream, || {
        // Nobody need read it.
        let _ = writeln!(notes, "capturing {name}; Ctrl-C ends it");
    });
    if end.is_err() {
        leave(&mut stream);
    }
    let end = end.map_err(|error| CaptureError::Write(capture.write.clone(), error))?;
    let Some(Statistics { written, missed, comment, .. }) = end else {
        return Err(CaptureError::BrokenOff(name, capture.write.clone()));
    };
    let file = if to_stdout { "standard output".to_owned() } else { capture.write.display().to_string() };
    let s = if written == 1 { "" } else { "s" };
    let _ = writeln!(notes, "wrote {file}: {written} packet{s}, {missed} missed ({comment})");
    Ok(())
}

/// Asks for a capture; the connection, and the first bytes that came over it.
fn ask(name: &str, wanted: &Wanted) -> Result<(UnixStream, Vec<u8>), ShowError> {
    let failed = |error: io::Error| show::failed(name, &error);
    let question = serde_json::to_string(wanted).map_err(|error| failed(error.into()))?;
    let mut stream = show::put(name, &format!("capture {question}")).map_err(failed)?;
    let mut first = vec![0; 1 << 16];
    let bytes = stream.read(&mut first).map_err(failed)?;
    first.truncate(bytes);
    if first.first() != Some(&pcapng::FIRST_BYTE) {
        stream.read_to_end(&mut first).map_err(failed)?;
        let answer = show::whole(name, String::from_utf8_lossy(&first).into_owned())?;
        return Err(ShowError::Answer(name.to_owned(), format!("it sends no packets but {answer:?}")));
    }
    // Packets may be rare.
    stream.set_read_timeout(None).map_err(failed)?;
    Ok((stream, first))
}

/// Copies `first` and what the tunnel sends into the file; `begun` is called once both are there.
fn record(
    path: &Path,
    first: &[u8],
    stream: &mut UnixStream,
    begun: impl FnOnce(),
) -> io::Result<Option<Statistics>> {
    let mut out = open(path)?;
    end_on_signal(stream)?;
    begun();
    copy(first, stream, &mut *out)
}

/// Ends the capture and waits for that, so that whoever comes next is let in.
fn leave(stream: &mut UnixStream) {
    // Without success there is nothing to wait for.
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(LEAVE_PATIENCE));
    let _ = io::copy(stream, &mut io::sink());
}

/// Opens only now that there is something to write: a refused capture leaves an older file as it is.
fn open(path: &Path) -> io::Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    // What goes through a tunnel is nobody else's business.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if file.metadata()?.is_file() {
        // One that was there before may be open to all.
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(Box::new(file))
}

/// Tells the tunnel to end when we are told to. A thread of its own, since the copying one may wait for a disk or a pipe.
fn end_on_signal(stream: &UnixStream) -> io::Result<()> {
    let stream = stream.try_clone()?;
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let _ = signals.wait();
        // Fails when the tunnel has ended already.
        let _ = stream.shutdown(Shutdown::Write);
        // From now on they end the process, as they usually do.
        let _ = signals.thread_unblock();
        loop {
            std::thread::park();
        }
    })?;
    Ok(())
}

/// Copies until the tunnel sends no more; what its last words are, if the file is whole.
fn copy(first: &[u8], from: &mut dyn Read, to: &mut dyn Write) -> io::Result<Option<Statistics>> {
    let mut buffer = vec![0; 1 << 16];
    let mut tail = first.to_vec();
    // Whoever reads along is not to wait for a buffer to fill.
    to.write_all(first).and_then(|()| to.flush())?;
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A tunnel that was killed may reset the connection.
            Ok(0) | Err(_) => break,
            Ok(bytes) => {
                to.write_all(&buffer[..bytes]).and_then(|()| to.flush())?;
                tail.extend(&buffer[bytes.saturating_sub(STATISTICS_BYTES_MAX)..bytes]);
                tail.drain(..tail.len().saturating_sub(STATISTICS_BYTES_MAX));
            }
        }
    }
    Ok(pcapng::read_end(&tail))
}

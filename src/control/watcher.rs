//! Somebody who watches, from his question to his leaving; nobody waits for him.
//!
//! ```text
//! asks (PATIENCE) ── question complete ──▶ reads the answer (PATIENCE) ── all written ──▶ leaves
//! ```
//! Whoever takes longer, asks for more than [`QUESTION_BYTES_MAX`] or breaks off is dropped where he stands. What he writes after
//! his question is read and forgotten until he closes: closing first, with bytes of his unread, would reset the connection, and
//! with it what of the answer is still on its way.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::poll::PollFlags;
use nix::sys::socket::{setsockopt, sockopt};

use crate::io::clock;
use crate::time::{Span, Time};

/// How long a watcher may take to ask, and to read its answer.
pub const PATIENCE: Span = Span::from_secs(5);
/// Longest question in bytes, HTTP's headers included; and most bytes that are read after it.
pub const QUESTION_BYTES_MAX: usize = 8192;

/// In which language a watcher speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    /// A word and a line feed, answered by a line of JSON.
    Lines,
    /// [`super::http`].
    Http,
}

impl Language {
    /// What ends a question.
    fn end(self) -> &'static [u8] {
        match self {
            Language::Lines => b"\n",
            Language::Http => b"\r\n\r\n",
        }
    }
}

/// Bytes that many may share. Not a slice: what was made once is never copied.
pub type Body = Arc<Vec<u8>>;

/// What is written back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Comes first.
    pub head: String,
    /// The rest.
    pub body: Body,
}

impl Answer {
    /// What remains after `written` bytes, or a part of it; empty if nothing does.
    fn rest(&self, written: usize) -> &[u8] {
        let head = self.head.as_bytes();
        head.get(written..)
            .filter(|rest| !rest.is_empty())
            .unwrap_or_else(|| self.body.get(written - head.len()..).unwrap_or_default())
    }
}

/// See the module.
pub(super) struct Watcher {
    stream: Stream,
    /// In which it asks.
    pub language: Language,
    question: Vec<u8>,
    /// `None` until it was asked for.
    answer: Option<Answer>,
    written: usize,
    /// Bytes read since all was written; `None` before.
    leaving: Option<usize>,
    /// When it is dropped.
    pub deadline: Time,
}

/// A connection that never waits.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// If it is one.
    pub fn unix(&self) -> Option<&UnixStream> {
        match self {
            Stream::Unix(stream) => Some(stream),
            Stream::Tcp(_) => None,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn end_writing(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

/// How far something went that must not wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    Waiting,
    /// It never will.
    Broken,
}

impl Watcher {
    pub fn new(stream: Stream, language: Language, now: Time) -> Watcher {
        Watcher {
            stream,
            language,
            question: Vec::new(),
            answer: None,
            written: 0,
            leaving: None,
            deadline: now + PATIENCE,
        }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }

    /// What it waits for.
    pub fn wants(&self) -> PollFlags {
        let talks = self.answer.is_some() && self.leaving.is_none();
        if talks { PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    /// Reads what is asked, writes what `reply` says to it, sees the watcher off, as far as that goes without waiting. False when
    /// there is no more to do, as when somebody else answers.
    pub fn go_on(&mut self, reply: impl FnOnce(Language, &Stream, &[u8]) -> Option<Answer>) -> bool {
        if self.answer.is_none() {
            match self.listen() {
                Progress::Done => {
                    let Some(answer) = reply(self.language, &self.stream, &self.question) else {
                        return false;
                    };
                    self.make_way(&answer);
                    self.answer = Some(answer);
                    // Reading the answer has its own time, however long making it took.
                    self.deadline = clock::now() + PATIENCE;
                }
                Progress::Waiting => return true,
                Progress::Broken => return false,
            }
        }
        match self.talk() {
            Progress::Done => self.see_off(),
            talked => talked == Progress::Waiting,
        }
    }

    /// Lets the socket of the owner take a long answer whole. Else reader and writer take turns for each piece, and each turn waits
    /// for a processor that has other work. Needs CAP_NET_ADMIN; what cannot be had costs only that time.
    fn make_way(&self, answer: &Answer) {
        if let (Language::Lines, Stream::Unix(stream)) = (self.language, &self.stream) {
            let _ = setsockopt(stream, sockopt::SndBufForce, &answer.body.len());
        }
    }

    /// Reads on until the question is complete.
    fn listen(&mut self) -> Progress {
        let end = self.language.end();
        let mut buffer = [0; 1024];
        while !self.question.windows(end.len()).any(|window| window == end) {
            if self.question.len() > QUESTION_BYTES_MAX {
                return Progress::Broken;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Progress::Broken,
                Ok(bytes) => self.question.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return stopped(&error),
            }
        }
        Progress::Done
    }

    /// Writes on.
    fn talk(&mut self) -> Progress {
        let Some(answer) = &self.answer else { return Progress::Waiting };
        loop {
            let rest = answer.rest(self.written);
            if rest.is_empty() {
                return Progress::Done;
            }
            match self.stream.write(rest) {
                Ok(0) => return Progress::Broken,
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return stopped(&error),
            }
        }
    }

    /// Reads what is still written to us, until the other end closes; false when it has.
    fn see_off(&mut self) -> bool {
        if self.leaving.is_none() && self.stream.end_writing().is_err() {
            return false;
        }
        let read = self.leaving.get_or_insert(0);
        let mut buffer = [0; 1024];
        while *read <= QUESTION_BYTES_MAX {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(bytes) => *read += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return stopped(&error) == Progress::Waiting,
            }
        }
        false
    }
}

fn stopped(error: &io::Error) -> Progress {
    if error.kind() == ErrorKind::WouldBlock { Progress::Waiting } else { Progress::Broken }
}

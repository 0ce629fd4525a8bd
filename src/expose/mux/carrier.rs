//! One carrier: which streams it has, what goes out next; and how the other side can be wrong.

use std::collections::{HashMap, VecDeque};

use super::StreamId;
use super::frames::{FrameError, Frames};
use super::window::Overrun;

/// The other side does what it must not. There is no way to go on with its carrier then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Breach {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("more bytes than its window has room for")]
    Overrun,
    #[error("a stream that was never opened")]
    Unopened,
    #[error("a stream opened twice, or by the wrong side")]
    Opened,
    #[error("data behind its end")]
    Ended,
    #[error("more streams than it reads answers for")]
    Unread,
}

impl From<Overrun> for Breach {
    fn from(_: Overrun) -> Breach {
        Breach::Overrun
    }
}

#[derive(Debug, Default)]
pub(super) struct Carrier {
    pub frames: Frames,
    pub streams: HashMap<u32, usize>,
    /// The number of the stream that was opened last.
    pub newest: u32,
    /// Frames that go out next, and how many bytes of them are not data: what the other side can bring about.
    pub out: Vec<u8>,
    pub answers_bytes: usize,
    /// Sends that have not ended.
    pub unsent: u8,
    /// Streams that may send and would find no room.
    pub paused: VecDeque<StreamId>,
    /// Something is to be done for it at the end of the turn.
    pub listed: bool,
    /// Goes with the last of its streams.
    pub retiring: bool,
    /// Has gone, but for the other side's FIN: closed before, what that still sends would turn our end into a RST, and what the
    /// kernel has not sent yet would be lost.
    pub leaving: bool,
}

impl Carrier {
    /// The key of the stream with this number; none if it is over.
    pub fn number(&self, number: u32) -> Result<Option<usize>, Breach> {
        match self.streams.get(&number) {
            Some(key) => Ok(Some(*key)),
            // Over already, which the other side does not know yet.
            None if number <= self.newest => Ok(None),
            None => Err(Breach::Unopened),
        }
    }
}

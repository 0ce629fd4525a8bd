//! One stream: the state of both its directions, and of the socket that it is joined to.

use super::window::Window;
use crate::io::tcp::Id;
use crate::stats::exposed::recorder::Meter;
use crate::time::Time;

/// The sides of a stream.
pub(super) const CARRIER: usize = 0;
pub(super) const SOCKET: usize = 1;

/// What a stream is joined to.
#[derive(Debug)]
pub(super) struct Joined<T> {
    pub socket: Id,
    pub tag: T,
    pub meter: Meter,
    /// A receive is asked for, or is to be when there is room in the carrier.
    pub receiving: bool,
    /// So many bytes of the carrier's are in the send that has not ended, if there is one.
    pub sending: Option<usize>,
    /// The carrier's end was passed on.
    pub shut_down: bool,
}

#[derive(Debug)]
pub(super) struct Stream<T> {
    pub serial: u64,
    pub carrier: Id,
    pub number: u32,
    pub window: Window,
    pub joined: Option<Joined<T>>,
    /// For the socket, behind what is being sent.
    pub waiting: Vec<u8>,
    /// From the side with the same index, as the next.
    pub ended: [bool; 2],
    pub bytes: [u64; 2],
    pub started: Time,
    pub touched: Time,
}

impl<T> Stream<T> {
    /// Whether both sides have ended it, and the socket has all there was.
    pub fn finished(&self) -> bool {
        self.ended[SOCKET] && self.joined.as_ref().is_some_and(|joined| joined.shut_down)
    }
}

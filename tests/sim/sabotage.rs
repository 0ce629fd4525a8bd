//! Faults planted in the encrypted simulation behind the back of whoever judges it: each must be noticed, or the laws prove
//! nothing.

use std::net::SocketAddr;

use uringvpn::dataplane::view::Change;
use uringvpn::io::driver::Driver;
use uringvpn::io::fake::Outgoing;
use uringvpn::proto::Endpoint;
use uringvpn::proto::output::Update;
use uringvpn::proto::replay::ReplayWindow;
use uringvpn::proto::session::Role;
use uringvpn::stats::drop::DropReason;
use uringvpn::time::Span;
use uringvpn::wire::message::DATA_HEADER_BYTES;
use uringvpn::worker::handoff::{Arrival, Order};

use crate::check::Checked;
use crate::encrypted::World;
use crate::node::private_key;
use crate::wire::Flight;
use crate::workload::outer;

/// The first byte of a data message.
const DATA: u8 = 4;
/// Packets that [`Sabotage::Hoard`] keeps.
const HOARD: u64 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A byte of what goes to the TUN is another one.
    FlipByte,
    /// Something goes to the TUN twice.
    WriteTwice,
    /// A write to the TUN is counted and never done.
    LoseWrite,
    /// Datagrams change places on the wire.
    SwapDatagrams,
    /// A host's counters go back by one.
    ReuseCounter,
    /// Replay windows are emptied, and what was sent is sent again.
    EmptyWindows,
    /// Initiations come from somebody who has a peer's key and is not that peer.
    StealKey,
    /// Handshakes begin anew all the time.
    Impatience,
    /// The clock of one host's workers stands still.
    StopClock,
    /// The protocol thread believes a worker that lies about where a peer is.
    LieAboutPlace,
    /// Workers seal with a session as soon as it is made.
    SkipConfirmation,
    /// Packets are taken in and staged for ever.
    Hoard,
    /// A packet is taken in and gone.
    Vanish,
    /// A written packet is counted twice.
    CountTwice,
    /// A peer has a packet dropped that no worker dropped.
    BlamePeer,
    LeakBuffer,
    /// Nothing reaches the other hosts any more.
    CutWire,
}

impl World {
    /// On what one worker did in one turn.
    pub(crate) fn tamper(&mut self, host: usize, flights: &mut Vec<Flight>, written: &mut Vec<Vec<u8>>) {
        match self.sabotage {
            Some(Sabotage::FlipByte) => {
                if let Some(last) = written.last_mut().and_then(|write| write.last_mut()) {
                    *last ^= 1;
                }
            }
            Some(Sabotage::WriteTwice) => {
                let again = written.first().cloned();
                written.extend(again);
            }
            Some(Sabotage::LoseWrite) => written.clear(),
            Some(Sabotage::SwapDatagrams) => {
                for pair in flights.chunks_mut(2).filter(|pair| pair.len() == 2) {
                    if pair[0].bytes.len() == pair[1].bytes.len() {
                        pair.swap(0, 1);
                    }
                }
            }
            Some(Sabotage::Hoard) if self.healed => {
                let counters = &self.nodes[host].seats[0].counters;
                if counters.out_packets.get() < HOARD {
                    counters.out_packets.add(HOARD);
                }
                if counters.staged.get() < HOARD {
                    counters.staged.set(counters.staged.get() + HOARD);
                }
            }
            Some(Sabotage::CutWire) if self.healed => flights.clear(),
            _ => {}
        }
    }

    /// On what one worker sends.
    pub(crate) fn seal_again(&self, sent: &mut Vec<Outgoing>) {
        if self.sabotage != Some(Sabotage::ReuseCounter) {
            return;
        }
        let data = sent.iter().rfind(|datagram| datagram.bytes[0] == DATA);
        if let Some(mut again) = data.cloned() {
            // The same header and another text.
            again.bytes[DATA_HEADER_BYTES] ^= 1;
            sent.push(again);
        }
    }

    /// Before a turn of one worker.
    pub(crate) fn mislead(&mut self, host: usize, worker: usize) {
        if self.sabotage != Some(Sabotage::SkipConfirmation) {
            return;
        }
        let seat = &mut self.nodes[host].seats[worker];
        let fresh =
            seat.sessions.values().find(|session| session.role() == Role::Responder && !session.confirmed());
        if let Some(session) = fresh.cloned() {
            let update = Update::Current { peer: session.peer(), session: Some(session) };
            seat.smuggle(Order::Change(Change::Peer(update)));
        }
    }

    /// Before a step of the protocol thread.
    pub(crate) fn unsettle(&mut self, host: usize) {
        match self.sabotage {
            Some(Sabotage::StealKey) => self.observer.forget_handshakes(),
            Some(Sabotage::Impatience) => {
                let (now, node) = (self.now, &mut self.nodes[host]);
                let wall = node.wall(now);
                let device = &mut node.exchange.tunnel.device;
                device.set_private_key(None, now, wall);
                device.set_private_key(Some(private_key(host)), now, wall);
            }
            _ => {}
        }
    }

    /// Once, when all trouble is over.
    pub(crate) fn plant(&mut self) -> Checked {
        let counters = self.nodes[0].seats[0].counters.clone();
        match self.sabotage {
            Some(Sabotage::EmptyWindows) => {
                self.hand_in_all();
                self.pass(Span::from_secs(1))?;
                for host in 0..self.nodes.len() {
                    for session in self.observer.sessions_of(host) {
                        *session.window() = ReplayWindow::default();
                    }
                }
                (0..50).for_each(|_| self.wire.replay(self.now, &mut self.random));
            }
            Some(Sabotage::StopClock) => {
                self.hand_in_all();
                self.pass(Span::from_secs(200))?;
                self.hand_in_all();
            }
            Some(Sabotage::LieAboutPlace) => {
                let remote = SocketAddr::new(outer(self.plan.outer_v6, 3), 666);
                let local_index = self.observer.index_of(0);
                self.take_in(0, Arrival::Roamed { local_index, from: Endpoint::to(remote) })?;
            }
            Some(Sabotage::Vanish) => counters.out_packets.add(1),
            Some(Sabotage::CountTwice) => counters.written_packets.add(1),
            Some(Sabotage::BlamePeer) => {
                let peer = self.nodes[0].exchange.tunnel.device.peer(0).expect("it was configured");
                peer.activity.count_drop(DropReason::SendError, 1);
            }
            Some(Sabotage::LeakBuffer) => {
                let fake = self.nodes[0].seats[0].worker.driver_mut();
                let leaked = std::iter::from_fn(|| fake.send_buffer()).take(2);
                assert!(leaked.count() > 1, "buffers to leak");
            }
            _ => {}
        }
        Ok(())
    }
}

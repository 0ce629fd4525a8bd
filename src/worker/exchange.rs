//! What the protocol thread does, without its clock, its sockets and its sleep: messages and news of the workers in, orders
//! and datagrams out. The simulation drives it as [`super::protocol`] does.

use super::handoff::{Arrival, Order, Orders};
use super::handshake_log;
use super::tunnel::Tunnel;
use crate::dataplane::view::Change;
use crate::proto::output::{Handled, Transmit};
use crate::stats::recorder::Handshakes;
use crate::time::{Time, WallTime};

/// The tunnel, and the ways to the workers.
pub struct Exchange {
    /// Keys, peers, sessions, allowed IPs.
    pub tunnel: Tunnel,
    /// One for each worker.
    pub workers: Vec<Orders>,
    handshakes: Handshakes,
}

impl Exchange {
    /// Puts both together; how long handshakes take is recorded in `handshakes`.
    pub fn new(tunnel: Tunnel, workers: Vec<Orders>, handshakes: Handshakes) -> Exchange {
        Exchange { tunnel, workers, handshakes }
    }

    /// Takes in what a worker handed over, with `queued` others behind it. What became of a handshake message; `None` for
    /// anything else.
    pub fn handle(&mut self, arrival: Arrival, queued: usize, now: Time, wall: WallTime) -> Option<Handled> {
        match arrival {
            Arrival::Handshake { bytes, len, from } => {
                let handled = self.tunnel.device.handle_datagram(&bytes[..len], from, queued, now, wall);
                handshake_log::handled(handled, from, &self.tunnel);
                Some(handled)
            }
            Arrival::Roamed { local_index, from } => {
                self.tunnel.device.handle_roamed(local_index, from);
                None
            }
        }
    }

    /// The interface went up or down, or has another MTU.
    pub fn link_changed(&mut self, up: bool, mtu: u16, now: Time, wall: WallTime) {
        for worker in &mut self.workers {
            worker.give(Order::Change(Change::Mtu(mtu)));
        }
        self.tunnel.device.set_up(up, now, wall);
    }

    /// Says what follows from what happened: first to the workers, so that they can open what comes back, then to the
    /// network. `told` hears what workers are told.
    pub fn speak(&mut self, mut told: impl FnMut(&Change, &Tunnel), mut send: impl FnMut(&Transmit)) {
        while let Some(change) = self.tunnel.poll_change() {
            handshake_log::told(&change, &self.tunnel);
            told(&change, &self.tunnel);
            for worker in &mut self.workers {
                worker.give(Order::Change(change.clone()));
            }
        }
        self.workers.iter_mut().for_each(Orders::wake);
        while let Some(transmit) = self.tunnel.device.poll_transmit() {
            handshake_log::sent(&transmit, &self.tunnel);
            send(&transmit);
        }
        while let Some(round_trip) = self.tunnel.device.poll_round_trip() {
            self.handshakes.record(round_trip);
        }
    }
}

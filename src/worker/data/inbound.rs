//! The inbound half of a turn: what was received is opened and joined; what is joined is written.
//!
//! Steps 1, 8 and 9 of the walk in [`crate::dataplane`]; those between are [`inbound::datagrams`].

use std::sync::atomic::Ordering;

use nix::errno::Errno;

use super::{DataWorker, moment};
use crate::dataplane::Context;
use crate::dataplane::encap::Encap;
use crate::dataplane::inbound;
use crate::io::driver::Driver;
use crate::io::lease::Lease;
use crate::offload::coalesce::Gather;
use crate::offload::stride::Received;
use crate::proto::Endpoint;
use crate::proto::output::Handled;
use crate::stats::drop::DropReason;
use crate::stats::offloads::Refusal;
use crate::stats::recorder::{Delivery, record};
use crate::time::Time;
use crate::worker::handoff::Arrival;
use crate::worker::handshake_log;
use crate::worker::refusals::REFUSED_TIME;

impl<D: Driver> DataWorker<D> {
    /// Inbound, step 1.
    pub fn on_received(&mut self, mut lease: Lease, received: &Received, now: Time) {
        self.counters.receives.add(1);
        self.counters.overflown.add(received.overflown.into());
        self.moved = true;
        self.turn_bytes += u64::from(received.bytes);
        let count = received.datagrams().len() as u64;
        record(&mut self.reporter.recorder().receive_datagrams, count);
        if self.flags.paused.load(Ordering::Relaxed) {
            self.counters.in_datagrams.add(count);
            self.counters.in_bytes.add(received.bytes.into());
            self.counters.count_drop(DropReason::TunDown, count);
        } else {
            let slot = lease.slot();
            let context = Context { view: &self.view, now, counters: &self.counters };
            let DataWorker { queue, coalescer, findings, .. } = self;
            inbound::datagrams(&mut lease, slot, received, &context, queue, coalescer, findings);
            self.hand_over(&lease, received);
            self.take_note(received, now);
            if let Some(tap) = &mut self.tap {
                tap.refused_packets(&lease, &self.findings.refused, received.from, &self.view, now);
            }
            self.findings.refused.clear();
        }
        self.driver.lend(lease);
    }

    /// Inbound: handshake messages go to the protocol thread. Not those of whoever does not know our public key: a flood of
    /// them would leave no room for others.
    fn hand_over(&mut self, buffer: &[u8], received: &Received) {
        let from = Endpoint { remote: received.from, local: received.to };
        let mut refused = 0;
        for range in self.findings.handshakes.drain(..) {
            let message = &buffer[range];
            if !self.view.mac1_fits(message) {
                refused += 1;
            } else if Arrival::handshake(message, from).is_some_and(|arrival| self.outbox.arrival(arrival)) {
                self.counters.handshakes.add(1);
            } else {
                self.counters.count_drop(DropReason::HandoffFull, 1);
            }
        }
        if refused > 0 {
            self.counters.count_drop(DropReason::BadMac1, refused);
            handshake_log::refused(refused, Handled::BadMac1, from);
        }
    }

    /// Inbound: what authenticated messages tell of their peers.
    fn take_note(&mut self, received: &Received, now: Time) {
        let here = Endpoint { remote: received.from, local: received.to };
        let plain = self.view.encap == Encap::Plain;
        for heard in self.findings.heard.drain(..) {
            let Some(peer) = self.view.peer_mut(heard.peer) else { continue };
            if plain {
                // The port may differ from worker to worker, only our own address is news.
                peer.endpoint = peer.endpoint.map(|known| Endpoint { local: received.to, ..known });
                continue;
            }
            if heard.note(&peer.activity, now) {
                self.outbox.news(heard.peer);
            }
            let roamed = Arrival::Roamed { local_index: heard.local_index, from: here };
            if peer.endpoint != Some(here) && self.outbox.arrival(roamed) {
                peer.endpoint = Some(here);
            }
        }
    }

    /// Inbound, step 8.
    pub fn flush_writes(&mut self, now: Time) {
        let mut joined = None;
        for mut gather in self.coalescer.drain() {
            gather.reaped = now;
            gather.joined = *joined.get_or_insert_with(|| moment(&self.driver));
            self.in_flight += 1;
            self.driver.write(gather);
        }
    }

    /// Inbound, step 9.
    pub fn on_written(&mut self, gather: Gather, result: Result<(), Errno>, now: Time) {
        self.in_flight -= 1;
        if gather.is_our_own() {
            self.tun_gone |= result == Err(Errno::EBADFD);
            self.counters.icmp_errors.add(result.is_ok().into());
            return self.coalescer.recycle(gather);
        }
        let packets = u64::from(gather.packets);
        let dropped = match result {
            Ok(()) => {
                self.counters.tun_writes.add(1);
                self.counters.written_packets.add(packets);
                self.counters.written_bytes.add(gather.inner_bytes() as u64);
                self.turn_bytes += gather.inner_bytes() as u64;
                let Gather { received, reaped, joined, .. } = gather;
                let moments = Delivery { received, reaped, opened: joined, written: now };
                self.reporter.record_delivery(moments, packets);
                record(&mut self.reporter.recorder().write_bytes, gather.inner_bytes() as u64);
                None
            }
            Err(Errno::EINVAL) if packets > 1 => return self.write_in_pieces(gather, now),
            // A TUN that is down says EIO at once.
            Err(Errno::EIO) => Some(DropReason::TunDown),
            Err(error) => {
                self.tun_gone |= error == Errno::EBADFD;
                Some(DropReason::TunWriteError)
            }
        };
        if let Some(reason) = dropped {
            self.counters.count_drop(reason, packets);
        }
        if let Some(tap) = &mut self.tap {
            tap.write(&gather, dropped, &self.driver, &self.view, now);
        }
        self.coalescer.recycle(gather);
    }

    /// Writes the packets of a refused superpacket one by one, behind what was queued with it. A kernel may refuse one and
    /// take another, so the next is tried whole again.
    fn write_in_pieces(&mut self, gather: Gather, now: Time) {
        self.counters.write_retries.add(1);
        let refusal = Refusal::Superpacket { tcp: gather.is_tcp() };
        self.self_check.refused(refusal, Errno::EINVAL, now, Some(now + REFUSED_TIME));
        for packet in self.coalescer.apart(&gather) {
            self.in_flight += 1;
            self.driver.write(packet);
        }
        self.coalescer.recycle(gather);
    }
}

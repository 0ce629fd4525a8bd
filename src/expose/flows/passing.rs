//! Datagrams of a flow on their way: to its connection, where they wait for room up to a bound, and from there.

use nix::errno::Errno;

use super::{
    BYTES_MAX, DATAGRAMS_PER_TURN, FlowId, Flows, INWARD, OUTWARD, Outside, Over, WAITING_BYTES_MAX,
    WAITING_BYTES_TOTAL, WAITING_DATAGRAMS_MAX, loss_of,
};
use crate::expose::frames::{self, HEADER_BYTES};
use crate::expose::relay::End;
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Chunk, Event};
use crate::stats::exposed::reasons::Loss;

impl<T: Copy> Flows<T> {
    // From the datagram socket to the connection.

    /// Something came to the datagram socket.
    pub(super) fn datagram(&mut self, udp: &mut (impl Udp + ?Sized), key: usize, chunk: Chunk) {
        let flow = &mut self.flows[key];
        flow.touched = udp.now();
        if flow.answered || matches!(flow.outside, Outside::Service(_)) {
            self.assure(key);
        }
        self.pass_in(udp, key, chunk);
    }

    /// Sends a datagram to the connection, or keeps it until that can be.
    pub(super) fn pass_in(&mut self, udp: &mut (impl Udp + ?Sized), key: usize, mut chunk: Chunk) {
        let bytes = HEADER_BYTES + chunk.len();
        if let Some(loss) = self.why_no_room(key, bytes) {
            self.lost(key, loss);
            return udp.give_back(chunk);
        }
        let flow = &mut self.flows[key];
        flow.inward.add(chunk.len());
        flow.count(INWARD, chunk.len(), udp.now());
        if let Some(connection) = flow.connection.filter(|_| flow.under_way == 0) {
            (flow.under_way, flow.under_way_bytes) = (1, bytes);
            chunk.prepend(&frames::header(chunk.len()));
            return udp.send(connection, chunk);
        }
        if flow.connection.is_none() {
            self.waiting_bytes += bytes;
        }
        flow.pending_count += 1;
        frames::put(&chunk, &mut flow.pending);
        udp.give_back(chunk);
    }

    /// Why so many more bytes cannot be on their way to the connection.
    fn why_no_room(&self, key: usize, bytes: usize) -> Option<Loss> {
        let flow = &self.flows[key];
        if flow.connection.is_some() {
            return (flow.under_way_bytes + flow.pending.len() + bytes > BYTES_MAX).then_some(Loss::Full);
        }
        let many = flow.pending_count >= WAITING_DATAGRAMS_MAX;
        let long = flow.pending.len() + bytes > WAITING_BYTES_MAX;
        (many || long || self.waiting_bytes + bytes > WAITING_BYTES_TOTAL).then_some(Loss::Early)
    }

    /// Sends what has waited, in one piece, when nothing is under way.
    pub(super) fn send_pending(&mut self, udp: &mut (impl Udp + ?Sized), key: usize) {
        let flow = &mut self.flows[key];
        let Some(connection) = flow.connection.filter(|_| flow.under_way == 0) else { return };
        flow.under_way_bytes = 0;
        if !flow.pending.is_empty() {
            let pending = std::mem::take(&mut flow.pending);
            (flow.pending_count, flow.under_way, flow.under_way_bytes) = (0, 1, pending.len());
            udp.send_bytes(connection, &pending);
        }
    }

    // From the connection to the datagram socket.

    /// Something happened to the connection.
    pub(super) fn connection_event(
        &mut self,
        udp: &mut (impl Udp + ?Sized),
        key: usize,
        event: Event,
    ) -> Option<Over<T>> {
        match event {
            Event::Received { chunk, .. } => self.pass_out(udp, key, chunk),
            Event::Ended(_) => Some(self.end(udp, key, End::Finished)),
            Event::Failed { error, .. } => Some(self.end(udp, key, End::Broken(error))),
            _ => {
                self.flows[key].under_way -= 1;
                self.send_pending(udp, key);
                None
            }
        }
    }

    /// Passes on what came from the connection.
    pub(super) fn pass_out(
        &mut self,
        udp: &mut (impl Udp + ?Sized),
        key: usize,
        chunk: Chunk,
    ) -> Option<Over<T>> {
        let over = self.pass_out_bytes(udp, key, &chunk);
        udp.give_back(chunk);
        over
    }

    /// Passes on what `bytes` hold, up to [`DATAGRAMS_PER_TURN`]; receives more when that was all.
    pub(super) fn pass_out_bytes(
        &mut self,
        udp: &mut (impl Udp + ?Sized),
        key: usize,
        mut bytes: &[u8],
    ) -> Option<Over<T>> {
        for _ in 0..DATAGRAMS_PER_TURN {
            if bytes.is_empty() {
                break;
            }
            match self.pass_one_out(udp, key, bytes) {
                Ok(count) => bytes = &bytes[count..],
                // It does not speak our language.
                Err(_) => return Some(self.end(udp, key, End::Broken(Errno::EPROTO))),
            }
        }
        let flow = &mut self.flows[key];
        match flow.connection {
            Some(connection) if bytes.is_empty() => udp.receive(connection),
            _ => {
                flow.rest = bytes.to_vec();
                self.busy.push_back(FlowId { serial: flow.serial, key });
            }
        }
        None
    }

    /// Passes on the datagram at the beginning of `bytes`, if its end has come: how many bytes it took.
    fn pass_one_out(
        &mut self,
        udp: &mut (impl Udp + ?Sized),
        key: usize,
        bytes: &[u8],
    ) -> Result<usize, frames::TooLong> {
        let flow = &mut self.flows[key];
        let (count, payload) = flow.frames.take(bytes)?;
        let Some(payload) = payload else { return Ok(count) };
        let sent = match &mut flow.outside {
            Outside::Visitor(to) => udp.send_datagram(flow.socket, Some(*to), payload),
            Outside::Service(service) => {
                service.keep(payload);
                udp.send_datagram(flow.socket, None, payload)
            }
        };
        flow.touched = udp.now();
        flow.answered = matches!(flow.outside, Outside::Visitor(_));
        let payload_bytes = payload.len();
        match sent {
            Ok(()) => {
                flow.outward.add(payload_bytes);
                flow.count(OUTWARD, payload_bytes, udp.now());
            }
            Err(error) => self.lost(key, loss_of(error)),
        }
        Ok(count)
    }

    /// Nobody is where a datagram went to; the service may have another address.
    pub(super) fn refused(&mut self, udp: &mut (impl Udp + ?Sized), key: usize) {
        let flow = &mut self.flows[key];
        let Outside::Service(service) = &mut flow.outside else { return };
        let old = flow.socket;
        let (socket, lost) = service.refused(udp, old);
        flow.socket = socket;
        self.sockets.remove(old);
        self.sockets.insert(socket, key);
        (0..lost).for_each(|_| self.lost(key, Loss::Refused));
    }
}

//! The carrier: how it comes about, and what happens when it is lost.

use super::calls::answer;
use super::{Alarm, CONNECT_TIME, Carrier, Client, Link, RETRY_FIRST, Role};
use crate::expose::message::{ClientMessage, Frames, frame};
use crate::expose::news::News;
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Chunk, Close, Id};
use crate::stats::exposed::public_port::{Protocol, PublicPort};
use crate::time::Span;

/// Longest wait between two attempts. Visitors are served meanwhile.
const RETRY_MAX: Span = Span::from_secs(60);

impl<T: Udp> Client<T> {
    /// Sees to it that there is a carrier, if there should be one.
    pub(super) fn look_at_carrier(&mut self) {
        if !matches!(self.carrier, Carrier::None) {
            return;
        }
        let is_open = matches!(&self.link, Link::Up { control, .. } if control.is_open());
        let wanted = self.config.mux && self.config.protocol == Protocol::Tcp;
        let (true, true, Some(address)) = (is_open, wanted, self.server) else { return };
        if self.lease.is_none() {
            return self.tell_lost("the server is bore's, or has --lease 0".to_owned());
        }
        match self.tcp.connect(address, &self.leg) {
            Ok(id) => {
                self.roles.insert(id, Role::Carrier);
                self.carrier = Carrier::Coming { id, frames: Frames::default() };
                self.alarms.set(self.tcp.now() + CONNECT_TIME, Alarm::CarrierComing(id));
            }
            Err(error) => self.carrier_lost(self.config.how.reason(error)),
        }
    }

    /// The server asks who we are before it gives us its visitors.
    pub(super) fn carrier_challenged(&mut self, id: Id, chunk: Chunk) {
        let Carrier::Coming { frames, .. } = &mut self.carrier else { return self.tcp.give_back(chunk) };
        let answer = answer(self.auth.as_ref(), frames, &chunk);
        self.tcp.give_back(chunk);
        match answer {
            Ok(None) => self.tcp.receive(id),
            Ok(Some(proof)) => self.carry(id, proof),
            Err(reason) => self.carrier_lost(reason.to_owned()),
        }
    }

    /// Tells the server whose visitors to send here, behind `said`.
    pub(super) fn carry(&mut self, id: Id, mut said: Vec<u8>) {
        let Some(lease) = self.lease else { return self.carrier_lost("the lease is over".to_owned()) };
        said.extend(frame(&ClientMessage::Carry(lease)));
        self.tcp.send_bytes(id, &said);
        self.roles.remove(id);
        self.carrier = Carrier::Up { id };
        self.mux.carry(&mut self.tcp, id, None, 1);
    }

    /// There is no carrier, or no longer; another attempt follows.
    pub(super) fn carrier_lost(&mut self, reason: String) {
        if let Carrier::Coming { id, .. } = self.carrier {
            self.roles.remove(id);
            self.tcp.close(id, Close::Reset);
        }
        self.carrier = Carrier::None;
        if self.draining {
            return;
        }
        let most = (RETRY_FIRST.as_nanos() << self.carrier_failures.min(20)).min(RETRY_MAX.as_nanos());
        self.carrier_failures += 1;
        let wait = Span::from_nanos(most / 2 + self.rng.below(most / 2 + 1));
        self.carrier_retry = self.tcp.now() + wait;
        self.alarms.set(self.carrier_retry, Alarm::Carrier);
        self.tell_lost(reason);
    }

    fn tell_lost(&mut self, reason: String) {
        let port = PublicPort { number: self.port.unwrap_or(0), protocol: self.config.protocol };
        self.news.push(News::CarrierLost { port, reason });
    }

    /// Takes no more visitors from the carrier; it goes with the last of those it has.
    pub(super) fn drop_carrier(&mut self) {
        match self.carrier {
            Carrier::None => {}
            Carrier::Coming { id, .. } => {
                self.roles.remove(id);
                self.tcp.close(id, Close::Reset);
            }
            Carrier::Up { id } => self.mux.retire(id),
        }
        self.carrier = Carrier::None;
    }
}

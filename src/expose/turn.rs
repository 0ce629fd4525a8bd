//! What a client and a server do alike in each turn.

use std::io;

use super::alarms::Alarms;
use super::flows::{self, Flows};
use super::mux::{Mux, Told};
use super::relay::{Over, Relays};
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Event, Tcp, Wait};
use crate::time::Time;

/// What one who relays stands on.
pub(super) struct Parts<'a, R: Relaying + ?Sized> {
    pub tcp: &'a mut R::Tcp,
    pub relays: &'a mut Relays<R::Tag>,
    pub flows: &'a mut Flows<R::FlowTag>,
    pub mux: &'a mut Mux<R::Tag>,
    pub alarms: &'a mut Alarms<R::Alarm>,
    /// Empty between turns; kept for its memory.
    pub events: &'a mut Vec<Event>,
}

/// A client or a server.
pub(super) trait Relaying {
    type Tcp: Udp;
    type Tag: Copy;
    type FlowTag: Copy;
    type Alarm: Ord;

    fn parts(&mut self) -> Parts<'_, Self>;

    /// Something happened to a connection that is not relayed, or to a datagram of no flow.
    fn on(&mut self, event: Event);

    /// The time of an alarm has come.
    fn ring(&mut self, alarm: Self::Alarm);

    /// A pair is over.
    fn relay_over(&mut self, over: Over<Self::Tag>);

    /// A flow is over.
    fn flow_over(&mut self, over: flows::Over<Self::FlowTag>);

    /// A visitor on a carrier came or went, or a carrier is gone.
    fn told(&mut self, told: Told<Self::Tag>);

    /// Drops alarms that matter to nobody any more, if they are many.
    fn thin_out_alarms(&mut self);

    /// Waits until something happens, at most until `limit`, and acts on it.
    ///
    /// # Errors
    /// As [`Tcp::turn`].
    fn take_turn(&mut self, limit: Option<Time>) -> io::Result<()> {
        let Parts { tcp, relays, flows, mux, alarms, events } = self.parts();
        let deadlines = [alarms.next(), relays.deadline(), flows.deadline(), mux.deadline(), limit];
        let wait = match deadlines.into_iter().flatten().min() {
            _ if mux.is_busy() => Wait::Not,
            None => Wait::Forever,
            Some(deadline) => Wait::Until(deadline),
        };
        let mut events = std::mem::take(events);
        let result = tcp.turn(wait, &mut events);
        events.drain(..).for_each(|event| self.pass(event));
        *self.parts().events = events;
        self.look_at_the_clock();
        self.listen_to_mux();
        let Parts { tcp, mux, .. } = self.parts();
        mux.flush(tcp);
        self.thin_out_alarms();
        result
    }

    fn pass(&mut self, event: Event) {
        let Parts { tcp, relays, flows, .. } = self.parts();
        let event = match relays.handle(tcp, event) {
            Ok(over) => return over.into_iter().for_each(|over| self.relay_over(over)),
            Err(event) => event,
        };
        let event = match flows.handle(tcp, event) {
            Ok(over) => return over.into_iter().for_each(|over| self.flow_over(over)),
            Err(event) => event,
        };
        let Parts { tcp, mux, .. } = self.parts();
        match mux.handle(tcp, event) {
            Ok(()) => self.listen_to_mux(),
            Err(event) => self.on(event),
        }
    }

    fn listen_to_mux(&mut self) {
        while let Some(told) = self.parts().mux.take_told() {
            self.told(told);
        }
    }

    fn look_at_the_clock(&mut self) {
        let now = self.parts().tcp.now();
        while let Some(alarm) = self.parts().alarms.due(now) {
            self.ring(alarm);
        }
        loop {
            let Parts { tcp, relays, .. } = self.parts();
            let Some(over) = relays.expire(tcp) else { break };
            self.relay_over(over);
        }
        loop {
            let Parts { tcp, flows, .. } = self.parts();
            let Some(over) = flows.expire(tcp) else { break };
            self.flow_over(over);
        }
        let Parts { tcp, mux, .. } = self.parts();
        mux.expire(tcp);
    }
}

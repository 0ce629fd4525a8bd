//! The control connection: how it comes about, what is told on it, and what happens when it is lost.

use super::{Alarm, CONNECT_TIME, Client, Link, REFUSALS_MAX, RETRY_FIRST, RETRY_MAX, Role};
use crate::expose::auth::Authenticator;
use crate::expose::control::{Control, ControlError, Told};
use crate::expose::news::News;
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Chunk, Close, Id};
use crate::stats::exposed::public_port::PublicPort;
use crate::time::Span;

impl<T: Udp> Client<T> {
    /// Tries the server's addresses from `index` on; `error` is why those before did not do.
    pub(super) fn connect(&mut self, index: usize, error: ControlError) {
        let Some(address) = self.addresses.server.get(index) else { return self.lost(error) };
        match self.tcp.connect(*address, &self.leg) {
            Ok(id) => {
                self.server = Some(*address);
                self.roles.insert(id, Role::Link);
                self.link = Link::Connecting { id, index };
                self.alarms.set(self.tcp.now() + CONNECT_TIME, Alarm::Connecting(id));
            }
            Err(error) => self.connect(index + 1, ControlError::Io(self.config.how.reason(error))),
        }
    }

    pub(super) fn link_connected(&mut self, id: Id) {
        let secret = self.config.secret.as_ref().map(|secret| secret.as_bytes());
        let lease = self.lease.map(|lease| Authenticator::for_lease(secret, lease));
        let number = self.port.unwrap_or(self.config.port);
        let port = PublicPort { number, protocol: self.config.protocol };
        let (control, greeting) = Control::new(self.auth.clone(), lease, port, self.tcp.now());
        self.alarms.set(control.deadline(), Alarm::Silence(id));
        self.link = Link::Up { id, control: Box::new(control) };
        if !greeting.is_empty() {
            self.tcp.send_bytes(id, &greeting);
        }
        self.tcp.receive(id);
    }

    pub(super) fn link_received(&mut self, id: Id, mut chunk: Chunk) {
        let (now, mut out, mut failed) = (self.tcp.now(), Vec::new(), None);
        while !chunk.is_empty() && failed.is_none() {
            let Link::Up { control, .. } = &mut self.link else { break };
            match control.take(&chunk, now, &mut out) {
                Err(error) => failed = Some(error),
                Ok((count, told)) => {
                    chunk.advance(count);
                    told.into_iter().for_each(|told| self.told(id, told));
                }
            }
        }
        self.tcp.give_back(chunk);
        match failed {
            Some(error) => self.lost(error),
            None => {
                if !out.is_empty() {
                    self.tcp.send_bytes(id, &out);
                }
                self.tcp.receive(id);
            }
        }
    }

    pub(super) fn told(&mut self, id: Id, told: Told) {
        match told {
            Told::Open(_) if self.draining => self.release(id),
            Told::Open(port) => {
                (self.port, self.failures, self.refusals) = (Some(port), 0, 0);
                let public = PublicPort { number: port, protocol: self.config.protocol };
                self.count_open(public);
                self.news.push(News::Public {
                    address: self.config.public(port),
                    port: public,
                    local: self.config.local.to_string(),
                });
                // The server has let go of the one there was.
                self.drop_carrier();
                self.look_at_carrier();
            }
            Told::Lease(lease) => self.lease = Some(lease),
            Told::Visitor(visitor, from) => self.call(visitor, from),
            Told::Trouble(reason) => self.news.push(News::Trouble { reason }),
        }
    }

    fn count_open(&mut self, port: PublicPort) {
        let local = self.config.local.to_string();
        match &self.seen {
            Some(seen) if seen.public() == port => {
                self.recorder.counters.reconnects.add(1);
                seen.taken_by(local);
            }
            other => {
                other.iter().for_each(|seen| self.recorder.port_closed(seen.public()));
                self.seen = Some(self.recorder.port_opened(port, local));
            }
        }
    }

    /// Without a control connection: for good, or until the next attempt.
    pub(super) fn lost(&mut self, error: ControlError) {
        if self.draining {
            return self.drop_link(Link::Done);
        }
        let never_up = self.port.is_none();
        if never_up || error.is_final() {
            self.failure = Some(error);
            return self.drop_link(Link::Done);
        }
        self.drop_link(Link::Waiting);
        if matches!(error, ControlError::Refused(_)) {
            self.refusals += 1;
            if self.refusals >= REFUSALS_MAX && self.config.port == 0 {
                (self.port, self.lease) = (Some(0), None);
            }
        }
        let most = (RETRY_FIRST.as_nanos() << self.failures.min(10)).min(RETRY_MAX.as_nanos());
        self.failures += 1;
        // Clients that were lost together do not come back together.
        let wait = Span::from_nanos(most / 2 + self.rng.below(most / 2 + 1));
        self.alarms.set(self.tcp.now() + wait, Alarm::Retry);
        let again_in_seconds = wait.as_nanos() as f64 / 1e9;
        self.recorder.counters.lost.add(1);
        let reason = format!("{}: {error}", self.config.server);
        self.news.push(News::Lost { reason, again_in_seconds });
    }

    pub(super) fn drop_link(&mut self, next: Link) {
        if let Link::Connecting { id, .. } | Link::Up { id, .. } | Link::Leaving { id } = self.link {
            self.roles.remove(id);
            self.tcp.close(id, Close::Finish);
        }
        self.link = next;
        if let Some(seen) = &self.seen {
            seen.left_alone();
        }
        if matches!(self.link, Link::Done) {
            // Only now: had it gone before, the server would have wondered.
            self.drop_carrier();
            let seen = self.seen.take();
            seen.into_iter().for_each(|seen| self.recorder.port_closed(seen.public()));
        }
    }
}

//! Host names of endpoints, resolved by a thread of its own: the system's resolver may take half a minute.
//!
//! ```text
//! protocol thread ── request(key, host:port) ─▶ resolver thread ── getaddrinfo
//!        ▲                                          │
//!        └── report: (key, address) ────────────────┘
//! ```
//!
//! A name without address is tried again after 1 s, 2 s, 4 s and so on up to a minute, until it has one or is
//! forgotten. One thread does one name at a time: what the caller waits for is the handshake anyway, and a name server
//! that is silent is silent for all of them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::endpoint::{HostPort, ResolveError};
use crate::io::clock;
use crate::proto::keys::PublicKey;
use crate::time::{Span, Time};

/// Wait after the first failure; doubles with each.
const RETRY_FIRST: Span = Span::from_secs(1);
/// Longest wait between two attempts.
const RETRY_MAX: Span = Span::from_secs(60);

/// Asks for addresses without waiting for them. Dropped, the thread ends when its current name is done.
#[derive(Clone, Debug)]
pub struct Resolver {
    requests: Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Resolve(PublicKey, HostPort),
    Forget(PublicKey),
}

impl Resolver {
    /// Starts the thread; it sends each peer's address to `outbox`, once per request.
    ///
    /// # Errors
    /// No more threads.
    pub fn start(outbox: Sender<(PublicKey, SocketAddr)>) -> io::Result<Resolver> {
        Resolver::start_with(|_| true, move |public_key, address| outbox.send((public_key, address)).is_ok())
    }

    /// Starts the thread for a device that has no socket for some addresses, and does not look into a channel by itself.
    ///
    /// Of a name's addresses the first that is `served` counts. `report` gets the results on the resolver's thread and
    /// answers whether anybody still wants them.
    ///
    /// # Errors
    /// No more threads.
    pub fn start_with<S, R>(served: S, report: R) -> io::Result<Resolver>
    where
        S: Fn(IpAddr) -> bool + Send + 'static,
        R: FnMut(PublicKey, SocketAddr) -> bool + Send + 'static,
    {
        let (requests, inbox) = unbounded();
        let look_up = move |host: &HostPort| {
            let found = host.resolve()?;
            found.into_iter().find(|address| served(address.ip())).ok_or_else(|| ResolveError {
                endpoint: host.clone(),
                reason: "only addresses of a family without socket".to_owned(),
            })
        };
        thread::Builder::new().name("resolver".to_owned()).spawn(move || serve(&inbox, look_up, report))?;
        Ok(Resolver { requests })
    }

    /// Asks for the address of `host`, for the peer `public_key`; replaces what was asked for it before.
    ///
    /// Never waits. An answer to the earlier request may still be on its way.
    pub fn request(&self, public_key: PublicKey, host: HostPort) {
        // Fails only if nobody listens to results any more.
        let _ = self.requests.send(Request::Resolve(public_key, host));
    }

    /// Stops trying for this peer: it has an address from elsewhere, or is gone. Never waits.
    pub fn forget(&self, public_key: PublicKey) {
        let _ = self.requests.send(Request::Forget(public_key));
    }
}

/// The thread: takes requests in, tries what is due, until nobody asks or listens any more.
fn serve(
    inbox: &Receiver<Request>,
    mut look_up: impl FnMut(&HostPort) -> Result<SocketAddr, ResolveError>,
    mut report: impl FnMut(PublicKey, SocketAddr) -> bool,
) {
    let mut backlog = Backlog::default();
    loop {
        let request = match backlog.wait(clock::now()) {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => inbox.recv_timeout(Duration::from_nanos(wait.as_nanos())),
        };
        match request {
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(request) => {
                backlog.take_in(request, clock::now());
                // All that came, before the next name takes its time.
                inbox.try_iter().for_each(|request| backlog.take_in(request, clock::now()));
            }
        }
        if let Some((public_key, host)) = backlog.due(clock::now()) {
            match look_up(&host) {
                Err(error) => backlog.failed(public_key, &error, clock::now()),
                Ok(address) => {
                    backlog.resolved(public_key, address);
                    if !report(public_key, address) {
                        return;
                    }
                }
            }
        }
    }
}

/// Names without address so far, at most one per peer.
#[derive(Debug, Default)]
struct Backlog {
    names: HashMap<PublicKey, Name>,
}

#[derive(Debug)]
struct Name {
    host: HostPort,
    due: Time,
    /// Attempts that failed.
    failures: u32,
}

impl Backlog {
    fn take_in(&mut self, request: Request, now: Time) {
        match request {
            Request::Resolve(public_key, host) => {
                // Asking again for the same name is no reason to ask name servers more often.
                if self.names.get(&public_key).is_none_or(|name| name.host != host) {
                    self.names.insert(public_key, Name { host, due: now, failures: 0 });
                }
            }
            Request::Forget(public_key) => drop(self.names.remove(&public_key)),
        }
    }

    /// How long until the next attempt; `None` if there is nothing to try.
    fn wait(&self, now: Time) -> Option<Span> {
        self.names.values().map(|name| name.due.since(now)).min()
    }

    /// The name to be tried now, the one that waited longest.
    fn due(&self, now: Time) -> Option<(PublicKey, HostPort)> {
        let due = self.names.iter().filter(|(_, name)| name.due <= now);
        due.min_by_key(|(_, name)| name.due).map(|(public_key, name)| (*public_key, name.host.clone()))
    }

    /// Says so the first time only; the tries after it are a matter of patience.
    fn failed(&mut self, public_key: PublicKey, error: &ResolveError, now: Time) {
        let Some(name) = self.names.get_mut(&public_key) else { return };
        let wait = Span::from_nanos(RETRY_FIRST.as_nanos() << name.failures.min(6)).min(RETRY_MAX);
        if name.failures == 0 {
            tracing::warn!(peer = %public_key, "{error}; trying again until it has an address");
        } else {
            tracing::debug!(peer = %public_key, "{error}");
        }
        name.failures = name.failures.saturating_add(1);
        name.due = now + wait;
    }

    fn resolved(&mut self, public_key: PublicKey, address: SocketAddr) {
        let Some(name) = self.names.remove(&public_key) else { return };
        if name.failures > 0 {
            tracing::info!(peer = %public_key, "{} is {address} now", name.host);
        } else {
            tracing::debug!(peer = %public_key, "{} is {address}", name.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PublicKey = PublicKey::from_bytes([7; 32]);

    fn host(text: &str) -> HostPort {
        text.parse().unwrap()
    }

    fn seconds(seconds: u64) -> Time {
        Time::default() + Span::from_secs(seconds)
    }

    fn failure() -> ResolveError {
        ResolveError { endpoint: host("h:1"), reason: "no answer".to_owned() }
    }

    #[test]
    fn a_name_is_tried_again_after_a_second_and_then_ever_later_up_to_a_minute() {
        let mut backlog = Backlog::default();
        backlog.take_in(Request::Resolve(PEER, host("h:1")), seconds(0));
        let mut now = seconds(0);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(backlog.due(now), Some((PEER, host("h:1"))));
            backlog.failed(PEER, &failure(), now);
            assert_eq!(backlog.wait(now), Some(Span::from_secs(expected)));
            assert_eq!(backlog.due(now), None);
            now = now + Span::from_secs(expected);
        }
    }

    #[test]
    fn asking_again_for_a_name_changes_nothing_and_for_another_starts_anew() {
        let mut backlog = Backlog::default();
        backlog.take_in(Request::Resolve(PEER, host("h:1")), seconds(0));
        backlog.failed(PEER, &failure(), seconds(0));
        backlog.failed(PEER, &failure(), seconds(1));
        backlog.take_in(Request::Resolve(PEER, host("h:1")), seconds(1));
        assert_eq!(backlog.wait(seconds(1)), Some(Span::from_secs(2)));
        backlog.take_in(Request::Resolve(PEER, host("other:1")), seconds(1));
        assert_eq!(backlog.due(seconds(1)), Some((PEER, host("other:1"))));
    }

    #[test]
    fn what_is_forgotten_or_resolved_is_not_tried_again() {
        let mut backlog = Backlog::default();
        backlog.take_in(Request::Resolve(PEER, host("h:1")), seconds(0));
        backlog.resolved(PEER, "192.0.2.7:1".parse().unwrap());
        assert_eq!(backlog.wait(seconds(0)), None);
        backlog.take_in(Request::Resolve(PEER, host("h:1")), seconds(0));
        backlog.take_in(Request::Forget(PEER), seconds(0));
        assert_eq!(backlog.wait(seconds(0)), None);
    }

    #[test]
    fn of_two_names_that_are_due_the_one_that_waited_longer_is_next() {
        let other = PublicKey::from_bytes([8; 32]);
        let mut backlog = Backlog::default();
        backlog.take_in(Request::Resolve(PEER, host("late:1")), seconds(2));
        backlog.take_in(Request::Resolve(other, host("early:1")), seconds(1));
        assert_eq!(backlog.due(seconds(3)), Some((other, host("early:1"))));
    }

    #[test]
    fn an_address_is_reported_and_a_caller_never_waits_for_a_name_that_hangs() {
        let (requests, inbox) = unbounded();
        let (outbox, results) = unbounded();
        let (release, hanging) = unbounded::<()>();
        let resolver = Resolver { requests };
        let thread = thread::spawn(move || {
            let look_up = move |_: &HostPort| {
                let _ = hanging.recv();
                Ok("192.0.2.7:1".parse().unwrap())
            };
            serve(&inbox, look_up, move |public_key, address| outbox.send((public_key, address)).is_ok());
        });
        resolver.request(PEER, host("h:1"));
        // Returned, though the name hangs.
        resolver.request(PublicKey::from_bytes([8; 32]), host("h:1"));
        assert!(results.is_empty());
        drop(release);
        assert_eq!(results.recv().unwrap(), (PEER, "192.0.2.7:1".parse().unwrap()));
        assert_eq!(results.recv().unwrap().0, PublicKey::from_bytes([8; 32]));
        drop(resolver);
        thread.join().unwrap();
    }

    #[test]
    fn of_a_names_addresses_the_first_with_a_socket_counts() {
        let (outbox, results) = unbounded();
        let report = move |public_key, address| outbox.send((public_key, address)).is_ok();
        let resolver = Resolver::start_with(|address| address.is_ipv6(), report).unwrap();
        resolver.request(PublicKey::from_bytes([8; 32]), host("192.0.2.7:1"));
        resolver.request(PEER, host("[2001:db8::7]:1"));
        assert_eq!(results.recv().unwrap(), (PEER, "[2001:db8::7]:1".parse().unwrap()));
    }
}

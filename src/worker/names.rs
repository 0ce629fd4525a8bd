//! Peers whose endpoint is a host name: which name, and when it is looked up.
//!
//! At the start, and whenever handshakes have failed for long: the peer may have moved to another address of the name.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use crossbeam_channel::Sender;

use crate::control::endpoint::HostPort;
use crate::control::resolve::Resolver;
use crate::proto::keys::PublicKey;

/// The protocol thread's part of it; [`crate::control::resolve`] does the looking up.
#[derive(Debug)]
pub struct Names {
    /// Endpoints as the configuration named them last, addresses too.
    given: HashMap<PublicKey, HostPort>,
    /// Names that still count: nobody has set an address by hand since.
    names: HashMap<PublicKey, HostPort>,
    /// There are none until there is a name.
    resolver: Option<Resolver>,
    found: Sender<(PublicKey, SocketAddr)>,
}

impl Names {
    /// Peers whose endpoints are `given`; all names are looked up, and `found` gets the addresses.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn new(
        given: HashMap<PublicKey, HostPort>,
        found: Sender<(PublicKey, SocketAddr)>,
    ) -> io::Result<Names> {
        let mut names = Names { given: HashMap::new(), names: HashMap::new(), resolver: None, found };
        names.follow(given, &HashSet::new())?;
        Ok(names)
    }

    /// Endpoints as the configuration named them last.
    pub fn given(&self) -> &HashMap<PublicKey, HostPort> {
        &self.given
    }

    /// Makes sure that [`Names::follow`] cannot fail with these endpoints.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn prepare(&mut self, given: &HashMap<PublicKey, HostPort>) -> io::Result<()> {
        if self.resolver.is_none() && given.values().any(|endpoint| endpoint.address().is_none()) {
            self.resolver = Some(Resolver::start(self.found.clone())?);
        }
        Ok(())
    }

    /// The configuration names these endpoints now. Names that it did not name before are looked up, and those of peers that
    /// were not `present` until now.
    ///
    /// # Errors
    /// No thread to be had; then no name is looked up.
    pub fn follow(
        &mut self,
        given: HashMap<PublicKey, HostPort>,
        present: &HashSet<PublicKey>,
    ) -> io::Result<()> {
        let before = std::mem::replace(&mut self.given, given);
        let nameless: Vec<_> =
            self.names.keys().filter(|key| !self.given.contains_key(key)).copied().collect();
        nameless.iter().for_each(|key| self.forget(key));
        let is_news = |key: &PublicKey, endpoint: &HostPort| {
            before.get(key) != Some(endpoint) || !present.contains(key)
        };
        let given = self.given.iter().map(|(key, endpoint)| (*key, endpoint.clone()));
        let news: Vec<_> = given.filter(|(key, endpoint)| is_news(key, endpoint)).collect();
        for (key, endpoint) in news {
            if endpoint.address().is_some() {
                self.forget(&key);
                continue;
            }
            if self.resolver.is_none() {
                self.resolver = Some(Resolver::start(self.found.clone())?);
            }
            self.names.insert(key, endpoint);
            self.look_up(&key);
        }
        Ok(())
    }

    /// Looks the peer's name up, if it has one.
    pub fn look_up(&self, key: &PublicKey) {
        if let (Some(resolver), Some(name)) = (&self.resolver, self.names.get(key)) {
            resolver.request(*key, name.clone());
        }
    }

    /// Whoever sets or removes a peer by hand knows better than a name.
    pub fn forget(&mut self, key: &PublicKey) {
        if self.names.remove(key).is_some()
            && let Some(resolver) = &self.resolver
        {
            resolver.forget(*key);
        }
    }

    /// As [`Names::forget`], for all peers.
    pub fn forget_all(&mut self) {
        let keys: Vec<_> = self.names.keys().copied().collect();
        keys.iter().for_each(|key| self.forget(key));
    }

    /// Whether an address that was found for the peer's name is still wanted.
    pub fn counts(&self, key: &PublicKey) -> bool {
        self.names.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, unbounded};

    use super::*;

    const PEER: PublicKey = PublicKey::from_bytes([7; 32]);
    // Every resolver knows it, and it is a name all the same.
    const NAME: &str = "localhost:9";

    fn names(endpoint: &str) -> (Names, Receiver<(PublicKey, SocketAddr)>) {
        let (found, addresses) = unbounded();
        (Names::new(given(endpoint), found).unwrap(), addresses)
    }

    fn given(endpoint: &str) -> HashMap<PublicKey, HostPort> {
        [(PEER, endpoint.parse().unwrap())].into()
    }

    #[test]
    fn a_name_is_looked_up_at_the_start_and_whenever_it_is_asked_for() {
        let (names, addresses) = names(NAME);
        for _ in 0..3 {
            let (peer, address) = addresses.recv().unwrap();
            assert!(peer == PEER && address.ip().is_loopback() && address.port() == 9 && names.counts(&peer));
            names.look_up(&PEER);
        }
    }

    #[test]
    fn an_address_is_not_looked_up() {
        let (names, addresses) = names("192.0.2.7:9");
        names.look_up(&PEER);
        assert!(!names.counts(&PEER) && names.resolver.is_none() && addresses.is_empty());
    }

    #[test]
    fn a_peer_that_was_set_by_hand_has_no_name_until_the_configuration_gives_it_another() {
        let (mut names, addresses) = names(NAME);
        addresses.recv().unwrap();
        names.forget(&PEER);
        names.look_up(&PEER);
        names.follow(given(NAME), &[PEER].into()).unwrap();
        assert!(!names.counts(&PEER));
        names.follow(given("localhost:10"), &[PEER].into()).unwrap();
        assert_eq!(addresses.recv().unwrap().1.port(), 10);
        names.follow(given("192.0.2.7:9"), &[PEER].into()).unwrap();
        assert!(!names.counts(&PEER));
    }

    #[test]
    fn a_peer_whose_endpoint_is_named_no_more_has_no_name() {
        let (mut names, addresses) = names(NAME);
        addresses.recv().unwrap();
        names.follow(HashMap::new(), &[PEER].into()).unwrap();
        assert!(!names.counts(&PEER));
    }

    #[test]
    fn a_peer_that_was_removed_by_hand_has_its_name_again_when_it_is_back() {
        let (mut names, addresses) = names(NAME);
        addresses.recv().unwrap();
        names.forget_all();
        assert!(!names.counts(&PEER));
        names.follow(given(NAME), &HashSet::new()).unwrap();
        assert!(names.counts(&PEER));
        addresses.recv().unwrap();
    }
}

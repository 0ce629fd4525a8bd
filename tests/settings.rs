//! What a request of `wg` does to the tunnel: text in, what a `get` tells and where packets go out. No kernel.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use ipnet::IpNet;
use uringvpn::control::uapi::{PeerState, Request, RequestLimits, RequestParser};
use uringvpn::dataplane::view::{Change, View};
use uringvpn::proto::keys::{PrivateKey, PublicKey};
use uringvpn::proto::output::Update;
use uringvpn::time::{Span, Time, WallTime};
use uringvpn::worker::tunnel::Tunnel;

const NOW: Time = Time::from_nanos(1_000_000_000);
const WALL: WallTime = WallTime::from_parts(1_700_000_000, 0);

/// A tunnel, and a worker that hears of all its changes.
struct Device {
    tunnel: Tunnel,
    view: View,
    /// Of peers; tables of routes are large.
    changes: Vec<Update>,
    now: Time,
}

impl Device {
    fn new() -> Device {
        Device {
            tunnel: Tunnel::new(1, [3; 32]),
            view: View::for_wireguard(1420),
            changes: Vec::new(),
            now: NOW,
        }
    }

    /// With a private key, up, and nothing to say any more.
    fn running() -> Device {
        let mut device = Device::new();
        device.set(&format!("private_key={}\n", private(1)));
        device.tunnel.device.set_up(true, NOW, WALL);
        device.catch_up();
        device
    }

    /// Applies the lines of a set.
    fn set(&mut self, lines: &str) {
        let text = format!("set=1\n{lines}\n");
        let mut parser = RequestParser::new(RequestLimits::default(), |_| None);
        let Some(Ok(Request::Set(request))) = parser.feed(&mut text.as_bytes()) else { panic!("{text}") };
        self.tunnel.apply(&request, self.now, WALL);
        self.catch_up();
    }

    fn catch_up(&mut self) {
        while let Some(change) = self.tunnel.poll_change() {
            if let Change::Peer(update) = &change {
                self.changes.push(update.clone());
            }
            self.view.apply(change);
        }
    }

    fn peers(&self) -> Vec<PeerState> {
        self.tunnel.state(0, 0).peers
    }

    /// What a get lists as the peer's, in order of address.
    fn allowed_ips(&self, number: u8) -> Vec<String> {
        let peers = self.peers();
        let peer = peers.iter().find(|peer| peer.public_key == public(number)).unwrap();
        let mut prefixes = peer.allowed_ips.clone();
        prefixes.sort();
        prefixes.iter().map(IpNet::to_string).collect()
    }

    /// Whose an address is, by the worker's routes.
    fn owner(&self, address: &str) -> Option<PublicKey> {
        let index = self.view.route(address.parse::<IpAddr>().unwrap()).ok()?;
        self.tunnel.device.peer(index).map(|status| *status.public_key)
    }

    fn initiations(&mut self) -> usize {
        std::iter::from_fn(|| self.tunnel.device.poll_transmit()).filter(|sent| sent.bytes[0] == 1).count()
    }
}

fn private(number: u8) -> String {
    PrivateKey::from_bytes([number; 32]).to_hex()
}

fn public(number: u8) -> PublicKey {
    PrivateKey::from_bytes([number; 32]).public_key()
}

/// The line that begins a peer.
fn peer(number: u8) -> String {
    format!("public_key={}\n", public(number).to_hex())
}

#[test]
fn an_allowed_ip_belongs_to_the_peer_that_got_it_last() {
    let mut device = Device::new();
    device.set(&format!("{}allowed_ip=10.0.0.0/8\nallowed_ip=10.0.0.0/8\nallowed_ip=0.0.0.0/0\n", peer(2)));
    device.set(&format!("{}allowed_ip=10.0.0.9/8\nallowed_ip=10.1.0.0/16\n", peer(3)));
    assert_eq!(device.allowed_ips(2), ["0.0.0.0/0"]);
    assert_eq!(device.allowed_ips(3), ["10.0.0.0/8", "10.1.0.0/16"]);
    assert_eq!(device.owner("10.1.2.3"), Some(public(3)));
    assert_eq!(device.owner("11.1.2.3"), Some(public(2)));
    assert_eq!(device.owner("fd00::1"), None);
}

#[test]
fn taking_an_allowed_ip_away_from_a_peer_that_does_not_have_it_changes_nothing() {
    let mut device = Device::new();
    device.set(&format!("{}allowed_ip=10.0.0.0/8\n{}", peer(2), peer(3)));
    device.set(&format!("{}allowed_ip=-10.0.0.0/8\nallowed_ip=-10.0.0.0/9\nallowed_ip=-::/0\n", peer(3)));
    assert_eq!(device.owner("10.1.2.3"), Some(public(2)));
    device.set(&format!("{}allowed_ip=-10.9.9.9/8\n", peer(2)));
    assert_eq!((device.owner("10.1.2.3"), device.allowed_ips(2).len()), (None, 0));
}

#[test]
fn one_peer_may_have_130561_allowed_ips_and_gives_them_back_one_by_one() {
    const COUNT: u32 = 130_561;
    let prefix = |number: u32| format!("10.{}.{}.{}/32", number >> 16 & 255, number >> 8 & 255, number & 255);
    let lines = |sign: &str, numbers: std::ops::Range<u32>| -> String {
        numbers.map(|number| format!("allowed_ip={sign}{}\n", prefix(number))).collect()
    };
    let mut device = Device::new();
    device.set(&format!("{}{}", peer(2), lines("", 0..COUNT)));
    assert_eq!(device.allowed_ips(2).len(), COUNT as usize);
    assert_eq!(device.owner("10.1.253.255"), Some(public(2)));
    assert_eq!(device.owner("10.1.254.1"), None);
    for request in [0..1, 1..2, 2..197] {
        device.set(&format!("{}{}", peer(2), lines("-", request)));
    }
    assert_eq!(device.allowed_ips(2).len(), COUNT as usize - 197);
    assert_eq!((device.owner("10.0.0.196"), device.owner("10.0.0.197")), (None, Some(public(2))));
    device.set(&format!("{}{}", peer(2), lines("-", 197..COUNT)));
    assert!(device.allowed_ips(2).is_empty() && device.owner("10.1.0.0").is_none());
}

#[test]
fn forty_peers_with_fifty_two_allowed_ips_each_are_listed_as_they_were_set() {
    let mut device = Device::new();
    let prefix =
        |of: u8, number: u8| format!("abcd:{of}::{number}/128").parse::<IpNet>().unwrap().to_string();
    for of in 2..42 {
        let lines: String = (0..52).map(|number| format!("allowed_ip={}\n", prefix(of, number))).collect();
        device.set(&format!("{}{lines}", peer(of)));
    }
    for of in 2..42 {
        let mut expected: Vec<_> = (0..52).map(|number| prefix(of, number)).collect();
        let mut listed = device.allowed_ips(of);
        expected.sort();
        listed.sort();
        assert_eq!(listed, expected);
        assert_eq!(device.owner(&format!("abcd:{of}::51")), Some(public(of)));
    }
}

#[test]
fn update_only_and_remove_of_an_unknown_peer_do_nothing() {
    let mut device = Device::new();
    device.set(&format!("{}update_only=true\nallowed_ip=10.0.0.0/8\n{}remove=true\n", peer(2), peer(3)));
    assert!(device.peers().is_empty() && device.owner("10.0.0.1").is_none() && device.changes.is_empty());
}

#[test]
fn a_peer_with_our_own_key_is_passed_over_and_one_whose_key_becomes_ours_goes() {
    let mut device = Device::new();
    device.set(&format!("private_key={}\n{}allowed_ip=10.0.0.0/8\n", private(1), peer(1)));
    assert!(device.peers().is_empty() && device.owner("10.0.0.1").is_none());
    device.set(&format!("{}allowed_ip=10.0.0.0/8\n", peer(2)));
    device.set(&format!("private_key={}\n", private(2)));
    assert!(device.peers().is_empty() && device.owner("10.0.0.1").is_none());
}

#[test]
fn without_a_private_key_nothing_is_said_and_with_one_again_at_once() {
    let mut device = Device::running();
    device.set(&format!("{}endpoint=192.0.2.7:1\npersistent_keepalive_interval=9\n", peer(2)));
    assert_eq!(device.initiations(), 1);
    device.set(&format!("private_key={}\n", "0".repeat(64)));
    assert!(device.tunnel.state(0, 0).private_key.is_none());
    device.now = NOW + Span::from_secs(60);
    device.tunnel.device.handle_timeout(device.now, WALL);
    device.set(&format!("{}endpoint=192.0.2.8:1\n", peer(2)));
    assert_eq!(device.initiations(), 0);
    device.set(&format!("private_key={}\n", private(3)));
    assert_eq!(device.initiations(), 1);
}

#[test]
fn the_same_keepalive_again_does_not_put_the_next_one_off() {
    let mut device = Device::running();
    let again = format!("{}endpoint=192.0.2.7:1\npersistent_keepalive_interval=25\n", peer(2));
    device.set(&again);
    device.initiations();
    let due = device.tunnel.device.poll_timeout();
    for second in 1..5 {
        device.now = NOW + Span::from_secs(second);
        device.set(&again);
        assert_eq!((device.tunnel.device.poll_timeout(), device.initiations()), (due, 0));
    }
}

#[test]
fn peers_that_replace_themselves_begin_anew_and_those_that_are_only_set_again_do_not() {
    let mut device = Device::running();
    let lines = format!("{}replace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n", peer(2));
    device.set(&lines);
    let added = |device: &Device| {
        let is_added = |change: &&Update| matches!(change, Update::PeerAdded { .. });
        device.changes.iter().filter(is_added).count()
    };
    device.set(&lines);
    assert_eq!((added(&device), device.owner("10.0.0.1")), (1, Some(public(2))));
    device.set(&format!("replace_peers=true\n{lines}"));
    assert_eq!((added(&device), device.owner("10.0.0.1")), (2, Some(public(2))));
    assert_eq!(device.peers().len(), 1);
}

#[test]
fn a_thousand_times_added_and_removed_a_peer_leaves_nothing() {
    let mut device = Device::running();
    for _ in 0..1000 {
        device.set(&format!("{}endpoint=192.0.2.7:1\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n", peer(2)));
        device.set(&format!("{}remove=true\n", peer(2)));
    }
    assert!(device.peers().is_empty() && device.owner("10.0.0.1").is_none());
    let indices = device.changes.iter().filter_map(|change| match change {
        Update::PeerAdded { peer, .. } => Some(*peer),
        _ => None,
    });
    assert_eq!(indices.max(), Some(0), "one place was enough");
}

#[test]
fn an_endpoint_may_be_our_own_address_or_a_link_local_one() {
    let mut device = Device::new();
    for endpoint in ["127.0.0.1:51820", "[::1]:51820", "[fe80::1%3]:4", "255.255.255.255:1"] {
        device.set(&format!("{}endpoint={endpoint}\n", peer(2)));
        assert_eq!(device.peers()[0].endpoint.unwrap().to_string(), endpoint);
    }
}

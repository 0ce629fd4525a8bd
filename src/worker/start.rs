//! From the configuration to a protocol thread that has something to do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use crossbeam_channel::{Receiver, unbounded};
use zeroize::Zeroizing;

use super::exchange::Exchange;
use super::handoff::Orders;
use super::names::Names;
use super::outer::Outer;
use super::protocol::Protocol;
use super::tunnel::Tunnel;
use crate::control::config::DeviceConfig;
use crate::control::endpoint::HostPort;
use crate::control::peer::PeerConfig;
use crate::control::uapi::{AllowedIpChange, PeerChange, SetRequest};
use crate::io::clock;
use crate::proto::keys::PublicKey;
use crate::stats::recorder::Handshakes;
use crate::stats::settings::Settings;

/// The protocol thread's body, told what `config` says, and where it hears of the addresses of names. It records how long
/// handshakes take in `handshakes`.
///
/// # Errors
/// No random seed, no thread for names.
pub fn protocol(
    config: &DeviceConfig,
    outer: Outer,
    settings: Arc<Settings>,
    workers: Vec<Orders>,
    handshakes: Handshakes,
) -> anyhow::Result<(Protocol, Receiver<(PublicKey, SocketAddr)>)> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).context("the kernel gives no random numbers")?;
    let mut tunnel = Tunnel::new(workers.len(), *seed);
    tunnel.apply(&request(config), clock::now(), clock::wall());
    // Set up by us already. A packet that comes before the supervisor's first news must begin a handshake, too.
    tunnel.device.set_up(config.set_up, clock::now(), clock::wall());
    let (found, addresses) = unbounded();
    let names = Names::new(endpoints(&config.peers), found)?;
    let exchange = Exchange::new(tunnel, workers, handshakes);
    Ok((Protocol::new(exchange, outer, settings, names), addresses))
}

/// The configuration as a request, without port and mark: the sockets have them already.
pub(super) fn request(config: &DeviceConfig) -> SetRequest {
    // With room for all: a vector that grows would leave copies of preshared keys behind that nobody wipes.
    let mut peers = Vec::with_capacity(config.peers.len());
    peers.extend(config.peers.iter().filter_map(peer));
    SetRequest { private_key: config.private_key.clone().map(Some), peers, ..SetRequest::default() }
}

fn peer(config: &PeerConfig) -> Option<PeerChange> {
    Some(PeerChange {
        public_key: config.public_key?,
        update_only: false,
        remove: false,
        preshared_key: config.preshared_key.clone(),
        endpoint: config.endpoint.as_ref().and_then(HostPort::address),
        persistent_keepalive: config.keepalive,
        replace_allowed_ips: true,
        allowed_ips: config
            .allowed_ips
            .iter()
            .map(|prefix| AllowedIpChange { prefix: *prefix, remove: false })
            .collect(),
    })
}

/// The endpoints as they were written.
pub(super) fn endpoints(peers: &[PeerConfig]) -> HashMap<PublicKey, HostPort> {
    peers.iter().filter_map(|peer| Some((peer.public_key?, peer.endpoint.clone()?))).collect()
}

//! Opens what a tunnel consists of: TUN queues, sockets, the interface, the view of peers.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::interface::Interface;
use super::outer::Outer;
use crate::control::config::DeviceConfig;
use crate::control::logging;
use crate::control::peer::PeerConfig;
use crate::dataplane::view::{Change, View};
use crate::io::descriptor;
use crate::io::message::Devices;
use crate::io::tun::{self, OffloadSwitches, TUNSETOFFLOAD_REFUSED, Tun, TunOffloads, TunRequest};
use crate::io::udp::{self, BUSY_PATIENCE, Steering, UdpGroup, UdpRequest};
use crate::proto::keys::PrivateKey;
use crate::proto::output::Update;
use crate::stats::offloads::{Found, Offload, SelfCheck};

/// Bytes of socket buffer per worker and direction: the default holds three trains.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// A tunnel that is open but not yet running.
#[derive(Debug)]
pub struct Device {
    /// All this in a line, for the log.
    pub summary: String,
    /// The interface.
    pub interface: Interface,
    /// Each worker's descriptors.
    pub queues: Vec<Devices>,
    /// What the TUN takes off us.
    pub offloads: TunOffloads,
    /// The same and more, for those who watch.
    pub self_check: Arc<SelfCheck>,
    /// Where datagrams arrive.
    pub listen_port: u16,
    /// Datagrams per send at most; 1 without UDP_SEGMENT.
    pub train_segments_max: u16,
    /// What workers start with: in plaintext mode all there is to know.
    pub view: View,
    /// The sockets as a whole, for the protocol thread; `None` in plaintext mode.
    pub outer: Option<Outer>,
}

/// Lets this process open as many descriptors and lock as much memory as it may.
///
/// The soft limit of descriptors is usually 1024, for the sake of programs with select(2). A queue has up to seven
/// descriptors, its ring and doorbell included, so 256 of them need more. Rings count as locked memory where we lack
/// CAP_IPC_LOCK. If a limit stays low, opening says what there was no room for.
pub(super) fn raise_limits() {
    for limit in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        let raised = getrlimit(limit)
            .and_then(|(soft, hard)| if soft < hard { setrlimit(limit, hard, hard) } else { Ok(()) });
        if let Err(error) = raised {
            tracing::debug!("{limit:?} stays as it is: {error}");
        }
    }
}

/// Opens everything `config` asks for.
///
/// # Errors
/// With what, on which object, and what to do.
pub fn open(config: &DeviceConfig) -> anyhow::Result<Device> {
    // Names first: they may take long, and nothing must be left half open meanwhile. In encrypted mode they may be
    // found later.
    let addresses = if config.plaintext { resolve(&config.peers)? } else { Vec::new() };
    let request = socket_request(config);
    let sockets = udp::open(&request)?;
    let view = if config.plaintext {
        plain_view(&config.peers, &addresses, &sockets)?
    } else {
        encrypted_view(config)
    };
    let outer = (!config.plaintext).then(|| Outer::new(request, &sockets)).transpose()?;
    let tun = open_tun(config)?;
    logging::name_interface(&tun.name);
    let literal = config.peers.iter().filter_map(|peer| peer.endpoint.as_ref()?.address());
    let endpoints: Vec<_> = view.endpoints().chain(literal).collect();
    let interface = Interface::new(&tun, config, &endpoints)?;
    interface.configure()?;
    sockets.notes.iter().for_each(|note| tracing::warn!("{note}"));
    let summary = summary(&tun, sockets.port);
    let self_check = Arc::new(check(&tun, &sockets, config));
    let queues =
        tun.queues.into_iter().zip(sockets.workers).map(|(tun, sockets)| Devices { tun, sockets }).collect();
    Ok(Device {
        summary,
        interface,
        queues,
        offloads: tun.offloads,
        self_check,
        listen_port: sockets.port,
        train_segments_max: sockets.train_segments_max,
        view,
        outer,
    })
}

/// The addresses of each peer, best first; none for a peer without an endpoint.
fn resolve(peers: &[PeerConfig]) -> anyhow::Result<Vec<Vec<SocketAddr>>> {
    peers
        .iter()
        .map(|peer| peer.endpoint.as_ref().map_or(Ok(Vec::new()), |host| Ok(host.resolve()?)))
        .collect()
}

/// Peers come later. But our key counts from the first datagram on: a flood may be there before the protocol thread.
fn encrypted_view(config: &DeviceConfig) -> View {
    let mut view = View::for_wireguard(config.mtu);
    let public_key = config.private_key.as_ref().map(PrivateKey::public_key);
    view.apply(Change::Peer(Update::LocalKey { public_key }));
    view
}

fn plain_view(
    peers: &[PeerConfig],
    addresses: &[Vec<SocketAddr>],
    sockets: &UdpGroup,
) -> anyhow::Result<View> {
    let mut view = View::default();
    for (peer, addresses) in peers.iter().zip(addresses) {
        let index = view.add_peer(endpoint(addresses, sockets)?);
        for prefix in &peer.allowed_ips {
            view.add_route(*prefix, index);
        }
    }
    Ok(view)
}

/// The first of a peer's addresses that we have a socket for.
fn endpoint(addresses: &[SocketAddr], sockets: &UdpGroup) -> anyhow::Result<Option<SocketAddr>> {
    let served = |address: &SocketAddr| {
        sockets
            .workers
            .iter()
            .all(|worker| if address.is_ipv4() { worker.v4.is_some() } else { worker.v6.is_some() })
    };
    match (addresses.iter().find(|address| served(address)), addresses.first()) {
        (None, Some(address)) => {
            bail!("peer {address} cannot be reached: no socket of its address family (see --listen)")
        }
        (served, _) => Ok(served.copied()),
    }
}

fn socket_request(config: &DeviceConfig) -> UdpRequest {
    UdpRequest {
        address: config.listen.address,
        port: config.listen.port,
        workers: config.queues,
        gro: config.allows(Offload::Gro),
        gso: config.allows(Offload::Gso),
        buffer_bytes: SOCKET_BUFFER_BYTES,
        steering: if config.plaintext { Steering::SourcePort } else { Steering::ReceiverIndex },
        steer: config.allows(Offload::Steering),
        fwmark: config.fwmark,
        patience: BUSY_PATIENCE,
    }
}

fn open_tun(config: &DeviceConfig) -> anyhow::Result<Tun> {
    let offloads = OffloadSwitches { tso: config.allows(Offload::Tso), uso: config.allows(Offload::Uso) };
    if let Some(descriptor) = config.tun_fd {
        let descriptor = descriptor::take(descriptor).context("the TUN's descriptor that was handed in")?;
        return Ok(tun::from_fd(descriptor, offloads)?);
    }
    Ok(tun::open(&TunRequest { name: config.tun.clone(), queues: config.queues, offloads })?)
}

/// One line for what is there.
fn summary(tun: &Tun, port: u16) -> String {
    let made = if tun.created { "created" } else { "attached" };
    format!("{} {made} with {} queues, UDP port {port}", tun.name, tun.queues.len())
}

/// How the offloads of interface and sockets were found; those of io_uring are not known yet.
fn check(tun: &Tun, sockets: &UdpGroup, config: &DeviceConfig) -> SelfCheck {
    let check = SelfCheck::new(&tun.name);
    let refused_by_tun = |there: bool| (!there).then_some(TUNSETOFFLOAD_REFUSED);
    for (offload, refusal) in [
        (Offload::Tso, refused_by_tun(tun.offloads.tso)),
        (Offload::Uso, refused_by_tun(tun.offloads.uso)),
        (Offload::Gso, sockets.refusal(Offload::Gso)),
        (Offload::Gro, sockets.refusal(Offload::Gro)),
        (Offload::Steering, sockets.refusal(Offload::Steering)),
    ] {
        let found = match refusal {
            _ if !config.allows(offload) => Found::SwitchedOff,
            _ if offload == Offload::Steering && config.queues == 1 => Found::Unneeded("there is one worker"),
            Some(how) => Found::Refused(how.to_owned()),
            None => Found::On,
        };
        check.found(offload, found);
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cookie::MacWriter;
    use crate::time::Time;
    use crate::wire::message::RESPONSE_BYTES;

    #[test]
    fn the_first_message_is_judged_by_the_key_of_the_configuration() {
        let keys = [1, 2].map(|byte| PrivateKey::from_bytes([byte; 32]));
        let messages = keys.each_ref().map(|key| {
            let mut message = [0; RESPONSE_BYTES];
            MacWriter::new(&key.public_key()).write_macs(&mut message, Time::default());
            message
        });
        let [private_key, _] = keys.map(Some);
        let view = encrypted_view(&DeviceConfig { private_key, ..DeviceConfig::default() });
        assert_eq!(messages.each_ref().map(|message| view.mac1_fits(message)), [true, false]);
    }

    #[test]
    fn the_descriptor_limit_rises_to_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Enough for the tests that run beside this one.
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        raise_limits();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}

//! Opens what a tunnel consists of: TUN queues, sockets, the interface's settings, the view of peers.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::control::config::{DeviceConfig, Offloads};
use crate::control::netlink::{Netlink, NetlinkError};
use crate::control::peer::PeerConfig;
use crate::dataplane::view::View;
use crate::io::message::Devices;
use crate::io::tun::{self, OffloadSwitches, Tun, TunOffloads, TunRequest};
use crate::io::udp::{self, UdpGroup, UdpRequest};
use crate::offload::train::TRAIN_BYTES_MAX_V6;

/// Bytes of socket buffer per worker and direction: the default holds three trains.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// Superpackets that may wait in a TUN queue.
const TXQUEUELEN: u32 = 1000;
/// Larger superpackets than the TUN's vnet header can describe (BIG TCP) must not arise.
const GSO_SIZE_MAX: u32 = 65_536;

/// A tunnel that is open but not yet running.
#[derive(Debug)]
pub struct Device {
    /// The interface's name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Each worker's descriptors.
    pub queues: Vec<Devices>,
    /// What the TUN takes off us.
    pub offloads: TunOffloads,
    /// Datagrams per send at most; 1 without UDP_SEGMENT.
    pub train_segments_max: u16,
    /// Routes and peers.
    pub view: View,
}

/// Lets this process open as many descriptors as it may.
///
/// The soft limit is usually 1024, for the sake of programs with select(2). A queue has up to seven descriptors, its ring
/// and doorbell included, so 256 of them need more. If it stays low, opening says what there was no room for.
pub(super) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::debug!("the limit of open files stays as it is (RLIMIT_NOFILE: {error})");
    }
}

/// Opens everything `config` asks for.
///
/// # Errors
/// With what, on which object, and what to do.
pub fn open(config: &DeviceConfig) -> anyhow::Result<Device> {
    // Names first: they may take long, and nothing must be left half open meanwhile.
    let addresses = resolve(&config.peers)?;
    let sockets = open_sockets(config)?;
    let view = view(&config.peers, &addresses, &sockets)?;
    let tun = open_tun(config)?;
    let mut netlink = Netlink::connect()?;
    // Routes need the interface up. An attached interface keeps the settings that are not asked for.
    configure(&mut netlink, &tun, config, &view)?;
    report(&tun, &sockets, config.offloads);
    let queues =
        tun.queues.into_iter().zip(sockets.workers).map(|(tun, sockets)| Devices { tun, sockets }).collect();
    Ok(Device {
        name: tun.name,
        index: tun.index,
        queues,
        offloads: tun.offloads,
        train_segments_max: sockets.train_segments_max,
        view,
    })
}

/// The addresses of each peer, best first; none for a peer without an endpoint.
fn resolve(peers: &[PeerConfig]) -> anyhow::Result<Vec<Vec<SocketAddr>>> {
    peers
        .iter()
        .map(|peer| peer.endpoint.as_ref().map_or(Ok(Vec::new()), |host| Ok(host.resolve()?)))
        .collect()
}

fn view(peers: &[PeerConfig], addresses: &[Vec<SocketAddr>], sockets: &UdpGroup) -> anyhow::Result<View> {
    let mut view = View::default();
    for (peer, addresses) in peers.iter().zip(addresses) {
        let index = view.add_peer(endpoint(addresses, sockets)?);
        for prefix in &peer.allowed_ips {
            view.routes.insert(*prefix, index);
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

fn open_sockets(config: &DeviceConfig) -> anyhow::Result<UdpGroup> {
    let request = UdpRequest {
        address: config.listen.address,
        port: config.listen.port,
        workers: config.queues,
        gro: config.offloads.udp_gro,
        gso: config.offloads.udp_gso,
        buffer_bytes: SOCKET_BUFFER_BYTES,
    };
    Ok(udp::open(&request)?)
}

fn open_tun(config: &DeviceConfig) -> anyhow::Result<Tun> {
    let offloads = OffloadSwitches { tso: config.offloads.tso, uso: config.offloads.uso };
    Ok(tun::open(&TunRequest { name: config.tun.clone(), queues: config.queues, offloads })?)
}

fn configure(netlink: &mut Netlink, tun: &Tun, config: &DeviceConfig, view: &View) -> anyhow::Result<()> {
    let index = tun.index;
    let name = &tun.name;
    netlink
        .set_mtu(index, config.mtu.into())
        .with_context(|| format!("cannot set the MTU of {name} to {}", config.mtu))?;
    if tun.created {
        netlink.set_txqueuelen(index, TXQUEUELEN)?;
        limit_superpackets(netlink, index, config.mtu);
    }
    for address in &config.addresses {
        tolerate_existing(netlink.add_address(index, *address))
            .with_context(|| format!("cannot give {address} to {name}"))?;
    }
    netlink.set_up(index).with_context(|| format!("cannot set {name} up"))?;
    if config.routes {
        for prefix in config.route_prefixes() {
            if let Some(endpoint) = endpoint_within(prefix, view) {
                tracing::warn!(
                    "{prefix} is not routed to {name}: it contains the peer endpoint {endpoint}, whose datagrams would \
                     come back into the tunnel; if a more specific route leads to {0}, add this one with \
                     `ip route add {prefix} dev {name}`",
                    endpoint.ip()
                );
                continue;
            }
            tolerate_existing(netlink.add_route(index, prefix))
                .with_context(|| format!("cannot route {prefix} to {name}"))?;
        }
    }
    Ok(())
}

/// The first endpoint that a route for `prefix` could catch: its datagrams would enter the tunnel they come out of.
fn endpoint_within(prefix: IpNet, view: &View) -> Option<SocketAddr> {
    view.peers.iter().filter_map(|peer| peer.endpoint).find(|endpoint| prefix.contains(&endpoint.ip()))
}

/// Lets the kernel build superpackets that fit one train. On a gateway it must not: a forwarded superpacket over the
/// limit would be segmented in software, which costs more than a second train.
fn limit_superpackets(netlink: &mut Netlink, index: u32, mtu: u16) {
    let segments = if forwards() { u16::MAX.into() } else { (TRAIN_BYTES_MAX_V6 / u32::from(mtu)).max(1) };
    if let Err(error) = netlink.set_gso_limits(index, segments, GSO_SIZE_MAX) {
        tracing::debug!("superpackets keep the kernel's limits: {error}");
    }
}

fn forwards() -> bool {
    ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"]
        .iter()
        .any(|path| std::fs::read(path).is_ok_and(|text| text.starts_with(b"1")))
}

/// An attached interface may have it already.
fn tolerate_existing(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(NetlinkError::Exists { .. }) => Ok(()),
        other => other,
    }
}

/// One line for what is up, one for each thing the kernel does not give us.
fn report(tun: &Tun, sockets: &UdpGroup, wanted: Offloads) {
    let made = if tun.created { "created" } else { "attached" };
    tracing::info!("{} {made} with {} queues, UDP port {}", tun.name, tun.queues.len(), sockets.port);
    if wanted.tso && !tun.offloads.tso {
        tracing::warn!("{}: no TCP segmentation on the TUN; every packet is a read of its own", tun.name);
    }
    if wanted.uso && wanted.tso && !tun.offloads.uso {
        tracing::warn!(
            "{}: no UDP segmentation on the TUN (Linux 6.2 has it); continuing with TCP only",
            tun.name
        );
    }
    for note in &sockets.notes {
        tracing::warn!("{note}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_limit_rises_to_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Enough for the tests that run beside this one.
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        raise_descriptor_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }

    #[test]
    fn a_prefix_around_any_peers_endpoint_is_recognized() {
        let mut view = View::default();
        view.add_peer(None);
        let v4 = "192.0.2.7:51820".parse().unwrap();
        let v6 = "[2001:db8::7]:51820".parse().unwrap();
        view.add_peer(Some(v4));
        view.add_peer(Some(v6));
        for (prefix, expected) in [
            ("192.0.2.7/32", Some(v4)),
            ("128.0.0.0/1", Some(v4)),
            ("2001:db8::/32", Some(v6)),
            ("192.0.2.8/29", None),
            ("10.0.0.0/8", None),
            ("fd00::/8", None),
        ] {
            assert_eq!(endpoint_within(prefix.parse().unwrap(), &view), expected, "{prefix}");
        }
    }
}

//! The TUN interface as others see it: MTU, addresses, routes.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use ipnet::IpNet;
use nix::errno::Errno;

use crate::control::config::DeviceConfig;
use crate::control::netlink::{Netlink, NetlinkError};
use crate::io::tun::Tun;
use crate::offload::train::TRAIN_BYTES_MAX;
use crate::wire::message::DATA_OVERHEAD_BYTES;

/// Packets or superpackets that may wait in a TUN queue. A TUN drops what finds no room, and the scheduler may well not run
/// a worker for 5 ms: at 400,000 packets a second that is 2000. What TCP keeps there is bounded by its windows.
const TXQUEUELEN: u32 = 3000;
/// Larger superpackets than the TUN's vnet header can describe (BIG TCP) must not arise.
const GSO_SIZE_MAX: u32 = 65_536;

/// An interface and what we add to it.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index where it was opened.
    pub index: u32,
    /// A queue of it, to ask where it is.
    pub queue: Arc<OwnedFd>,
    created: bool,
    /// Opened by whoever started us, perhaps with more rights than ours.
    handed_in: bool,
    mtu: u16,
    /// Whether to set it up; otherwise somebody else does, and gives it addresses and routes.
    set_up: bool,
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
}

impl Interface {
    /// What `config` wants of `tun`. Says which allowed IPs cannot be routed.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new(tun: &Tun, config: &DeviceConfig, endpoints: &[SocketAddr]) -> std::io::Result<Interface> {
        let queue = tun.queues[0].try_clone()?;
        for address in &config.addresses {
            if let Some(endpoint) = endpoint_within(*address, endpoints) {
                tracing::warn!(
                    "{address} on {} contains the peer endpoint {endpoint}: without a more specific route to it the \
                     tunnel's datagrams come back into the tunnel",
                    tun.name
                );
            }
        }
        Ok(Interface {
            name: tun.name.clone(),
            index: tun.index,
            queue: Arc::new(queue),
            created: tun.created,
            handed_in: config.tun_fd.is_some(),
            mtu: config.mtu,
            set_up: config.set_up,
            addresses: config.addresses.clone(),
            routes: routes(config, &config.addresses, endpoints, &tun.name),
        })
    }

    /// Sets everything and the interface up, if it is to be up. One that was there before keeps what is not asked for.
    ///
    /// # Errors
    /// The kernel's, with what was to be set.
    pub fn configure(&self) -> anyhow::Result<()> {
        let Interface { name, index, mtu, created, .. } = self;
        let mut netlink = Netlink::connect()?;
        match netlink.set_mtu(*index, (*mtu).into()) {
            Err(NetlinkError::Refused { errno: Errno::EPERM, .. }) if self.handed_in => {
                tracing::info!("{name} keeps the MTU it was handed in with");
            }
            other => other.with_context(|| format!("cannot set the MTU of {name} to {mtu}"))?,
        }
        if *created {
            netlink.set_txqueuelen(*index, TXQUEUELEN)?;
        }
        limit_superpackets(&mut netlink, *index, *mtu, *created);
        if !self.set_up {
            return Ok(());
        }
        self.add_addresses(&mut netlink)?;
        // Routes need the interface up.
        netlink.set_up(*index).with_context(|| format!("cannot set {name} up"))?;
        self.add_routes(&mut netlink)
    }

    /// Fits the superpackets to another MTU. `netlink` speaks to the namespace that the interface is in, where it may have
    /// another `index` than where it was opened.
    pub fn mtu_changed(&self, netlink: &mut Netlink, index: u32, mtu: u16) {
        limit_superpackets(netlink, index, mtu, self.created);
    }

    /// Adds what the kernel took away when the interface was set down: its routes and IPv6 addresses.
    ///
    /// # Errors
    /// As [`Interface::configure`].
    pub fn restore(&self) -> anyhow::Result<()> {
        let mut netlink = Netlink::connect()?;
        self.add_addresses(&mut netlink)?;
        self.add_routes(&mut netlink)
    }

    /// Routes what `config` wants routed, and nothing else any more; with `now` at once, else with [`Interface::restore`].
    ///
    /// # Errors
    /// As [`Interface::configure`].
    pub fn reroute(&mut self, config: &DeviceConfig, now: bool) -> anyhow::Result<()> {
        let literal = config.peers.iter().filter_map(|peer| peer.endpoint.as_ref()?.address());
        let wanted = routes(config, &self.addresses, &literal.collect::<Vec<_>>(), &self.name);
        let before = std::mem::replace(&mut self.routes, wanted);
        if !now {
            return Ok(());
        }
        let mut netlink = Netlink::connect()?;
        let (old, new): (HashSet<_>, HashSet<_>) = (before.iter().collect(), self.routes.iter().collect());
        for prefix in old.difference(&new) {
            // One that somebody has removed already is gone as well.
            let _ = netlink.remove_route(self.index, **prefix);
        }
        self.add_these_routes(&mut netlink, new.difference(&old).copied())
    }

    fn add_addresses(&self, netlink: &mut Netlink) -> anyhow::Result<()> {
        for address in &self.addresses {
            match netlink.add_address(self.index, *address) {
                // An attached interface may have it already, and so may one that was down.
                Err(NetlinkError::Exists { .. }) => {}
                other => other.with_context(|| format!("cannot give {address} to {}", self.name))?,
            }
        }
        Ok(())
    }

    fn add_routes(&self, netlink: &mut Netlink) -> anyhow::Result<()> {
        self.add_these_routes(netlink, self.routes.iter())
    }

    fn add_these_routes<'a>(
        &self,
        netlink: &mut Netlink,
        prefixes: impl Iterator<Item = &'a IpNet>,
    ) -> anyhow::Result<()> {
        for prefix in prefixes {
            match netlink.add_route(self.index, *prefix) {
                Err(NetlinkError::Exists { .. }) => tracing::warn!(
                    "{prefix} is not routed to {}: there is a route to it already (`ip route show {prefix}`)",
                    self.name
                ),
                other => other.with_context(|| format!("cannot route {prefix} to {}", self.name))?,
            }
        }
        Ok(())
    }
}

/// What to route to the interface, which has these `addresses`. Says which allowed IPs cannot be routed.
fn routes(config: &DeviceConfig, addresses: &[IpNet], endpoints: &[SocketAddr], name: &str) -> Vec<IpNet> {
    // The kernel routes the interface's own networks by itself.
    let connected = |prefix: &IpNet| addresses.iter().any(|address| address.trunc() == *prefix);
    let wanted = config.route_prefixes().filter(|prefix| config.routes && !connected(prefix));
    wanted.filter(|prefix| may_be_routed(*prefix, endpoints, name)).collect()
}

/// A route that catches a peer's own endpoint would lead the tunnel's datagrams back into it.
fn may_be_routed(prefix: IpNet, endpoints: &[SocketAddr], name: &str) -> bool {
    let Some(endpoint) = endpoint_within(prefix, endpoints) else { return true };
    tracing::warn!(
        "{prefix} is not routed to {name}: it contains the peer endpoint {endpoint}, whose datagrams would come back \
         into the tunnel; if a more specific route leads to {0}, add this one with `ip route add {prefix} dev {name}`",
        endpoint.ip()
    );
    false
}

/// The first endpoint that a route for `prefix` could catch.
fn endpoint_within(prefix: IpNet, endpoints: &[SocketAddr]) -> Option<SocketAddr> {
    endpoints.iter().copied().find(|endpoint| prefix.contains(&endpoint.ip()))
}

/// Lets the kernel build superpackets that fit one train. On a gateway it must not: a forwarded superpacket over the
/// limit would be segmented in software, which costs more than a second train. Their size is limited in any case.
fn limit_superpackets(netlink: &mut Netlink, index: u32, mtu: u16, created: bool) {
    let segments = if forwards() || !created { u16::MAX.into() } else { segments_per_train(mtu) };
    if let Err(error) = netlink.set_gso_limits(index, segments, GSO_SIZE_MAX) {
        tracing::debug!("superpackets keep the kernel's limits: {error}");
    }
}

/// Datagrams of the longest packets that one train carries, sealed or plain.
fn segments_per_train(mtu: u16) -> u32 {
    (TRAIN_BYTES_MAX / (u32::from(mtu) + DATA_OVERHEAD_BYTES as u32)).max(1)
}

fn forwards() -> bool {
    ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"]
        .iter()
        .any(|path| std::fs::read(path).is_ok_and(|text| text.starts_with(b"1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_around_any_peers_endpoint_is_recognized() {
        let v4 = "192.0.2.7:51820".parse().unwrap();
        let v6 = "[2001:db8::7]:51820".parse().unwrap();
        let endpoints = [v4, v6];
        for (prefix, expected) in [
            ("192.0.2.7/32", Some(v4)),
            ("128.0.0.0/1", Some(v4)),
            ("2001:db8::/32", Some(v6)),
            ("192.0.2.8/29", None),
            ("10.0.0.0/8", None),
            ("fd00::/8", None),
        ] {
            assert_eq!(endpoint_within(prefix.parse().unwrap(), &endpoints), expected, "{prefix}");
        }
    }
}

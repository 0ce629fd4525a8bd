//! The TUN interface as others see it: MTU, addresses, routes.

use std::net::SocketAddr;

use anyhow::Context;
use ipnet::IpNet;

use crate::control::config::DeviceConfig;
use crate::control::netlink::{Netlink, NetlinkError};
use crate::dataplane::view::View;
use crate::io::tun::Tun;
use crate::offload::train::TRAIN_BYTES_MAX;

/// Superpackets that may wait in a TUN queue.
const TXQUEUELEN: u32 = 1000;
/// Larger superpackets than the TUN's vnet header can describe (BIG TCP) must not arise.
const GSO_SIZE_MAX: u32 = 65_536;

/// An interface and what we add to it.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
}

impl Interface {
    /// What `config` wants of `tun`. Says which allowed IPs cannot be routed.
    pub fn new(tun: &Tun, config: &DeviceConfig, view: &View) -> Interface {
        for address in &config.addresses {
            if let Some(endpoint) = endpoint_within(*address, view) {
                tracing::warn!(
                    "{address} on {} contains the peer endpoint {endpoint}: without a more specific route to it the \
                     tunnel's datagrams come back into the tunnel",
                    tun.name
                );
            }
        }
        // The kernel routes the interface's own networks by itself.
        let connected = |prefix: &IpNet| config.addresses.iter().any(|address| address.trunc() == *prefix);
        let wanted = config.route_prefixes().filter(|prefix| config.routes && !connected(prefix));
        let routes = wanted.filter(|prefix| may_be_routed(*prefix, view, &tun.name)).collect();
        Interface { name: tun.name.clone(), index: tun.index, addresses: config.addresses.clone(), routes }
    }

    /// Sets everything and the interface up. One that was there before keeps what is not asked for.
    ///
    /// # Errors
    /// The kernel's, with what was to be set.
    pub fn configure(&self, mtu: u16, created: bool) -> anyhow::Result<()> {
        let Interface { name, index, .. } = self;
        let mut netlink = Netlink::connect()?;
        netlink
            .set_mtu(*index, mtu.into())
            .with_context(|| format!("cannot set the MTU of {name} to {mtu}"))?;
        if created {
            netlink.set_txqueuelen(*index, TXQUEUELEN)?;
        }
        limit_superpackets(&mut netlink, *index, mtu, created);
        self.add_addresses(&mut netlink)?;
        // Routes need the interface up.
        netlink.set_up(*index).with_context(|| format!("cannot set {name} up"))?;
        self.add_routes(&mut netlink)
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
        for prefix in &self.routes {
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

/// A route that catches a peer's own endpoint would lead the tunnel's datagrams back into it.
fn may_be_routed(prefix: IpNet, view: &View, name: &str) -> bool {
    let Some(endpoint) = endpoint_within(prefix, view) else { return true };
    tracing::warn!(
        "{prefix} is not routed to {name}: it contains the peer endpoint {endpoint}, whose datagrams would come back \
         into the tunnel; if a more specific route leads to {0}, add this one with `ip route add {prefix} dev {name}`",
        endpoint.ip()
    );
    false
}

/// The first endpoint that a route for `prefix` could catch.
fn endpoint_within(prefix: IpNet, view: &View) -> Option<SocketAddr> {
    view.endpoints().find(|endpoint| prefix.contains(&endpoint.ip()))
}

/// Lets the kernel build superpackets that fit one train. On a gateway it must not: a forwarded superpacket over the
/// limit would be segmented in software, which costs more than a second train. Their size is limited in any case.
fn limit_superpackets(netlink: &mut Netlink, index: u32, mtu: u16, created: bool) {
    let segments =
        if forwards() || !created { u16::MAX.into() } else { (TRAIN_BYTES_MAX / u32::from(mtu)).max(1) };
    if let Err(error) = netlink.set_gso_limits(index, segments, GSO_SIZE_MAX) {
        tracing::debug!("superpackets keep the kernel's limits: {error}");
    }
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

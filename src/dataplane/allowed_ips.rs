//! Allowed IPs: the longest prefix that holds an address names the peer, in both directions.
//!
//! Source: WireGuard whitepaper §2 (cryptokey routing).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

pub use crate::proto::PeerIndex;

/// Address to peer, by longest prefix over all peers.
#[derive(Clone, Debug, Default)]
pub struct AllowedIps {
    v4: PrefixMap<Ipv4Net, PeerIndex>,
    v6: PrefixMap<Ipv6Net, PeerIndex>,
}

impl AllowedIps {
    /// Gives `prefix` to `peer`. A prefix has one owner: returns the former one.
    pub fn insert(&mut self, prefix: IpNet, peer: PeerIndex) -> Option<PeerIndex> {
        match prefix {
            IpNet::V4(v4) => self.v4.insert(v4.trunc(), peer),
            IpNet::V6(v6) => self.v6.insert(v6.trunc(), peer),
        }
    }

    /// Takes `prefix` away from whoever has it, and tells who that was.
    pub fn remove(&mut self, prefix: IpNet) -> Option<PeerIndex> {
        match prefix {
            IpNet::V4(v4) => self.v4.remove(&v4.trunc()),
            IpNet::V6(v6) => self.v6.remove(&v6.trunc()),
        }
    }

    /// The peer that owns `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<PeerIndex> {
        match address {
            IpAddr::V4(v4) => self.v4.get_lpm(&Ipv4Net::from(v4)).map(|(_, peer)| *peer),
            IpAddr::V6(v6) => self.v6.get_lpm(&Ipv6Net::from(v6)).map(|(_, peer)| *peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_longest_prefix_wins_whoever_owns_the_shorter_ones() {
        let mut table = AllowedIps::default();
        table.insert(net("0.0.0.0/0"), 0);
        table.insert(net("10.0.0.0/8"), 1);
        table.insert(net("10.1.2.3/32"), 2);
        table.insert(net("2001:db8::/32"), 3);
        assert_eq!(table.lookup(address("10.1.2.3")), Some(2));
        assert_eq!(table.lookup(address("10.1.2.4")), Some(1));
        assert_eq!(table.lookup(address("11.0.0.1")), Some(0));
        assert_eq!(table.lookup(address("2001:db8::9")), Some(3));
        assert_eq!(table.lookup(address("2001:db9::9")), None);
    }

    #[test]
    fn a_prefix_has_one_owner_the_last() {
        let mut table = AllowedIps::default();
        assert_eq!(table.insert(net("10.0.0.0/8"), 1), None);
        assert_eq!(table.insert(net("10.0.0.9/8"), 2), Some(1));
        assert_eq!(table.lookup(address("10.9.9.9")), Some(2));
    }

    /// Few bits, so that prefixes nest and addresses hit.
    fn clustered() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u8>().prop_map(|low| IpAddr::from([10, 0, low >> 4, low << 4])),
            any::<u8>().prop_map(|low| IpAddr::from([
                0xfd00,
                0,
                0,
                0,
                0,
                0,
                low as u16 >> 4,
                (low as u16) << 12
            ])),
        ]
    }

    proptest! {
        #[test]
        fn lookup_is_a_linear_scan_for_the_longest_prefix(
            prefixes in prop::collection::vec((clustered(), 0u8..=128), 0..40),
            probes in prop::collection::vec(clustered(), 1..40),
        ) {
            let mut table = AllowedIps::default();
            let mut list: Vec<(IpNet, PeerIndex)> = Vec::new();
            for (index, (base, length)) in prefixes.into_iter().enumerate() {
                let prefix = IpNet::new(base, if base.is_ipv4() { length % 33 } else { length }).expect("in range").trunc();
                table.insert(prefix, index as u32);
                list.retain(|(known, _)| *known != prefix);
                list.push((prefix, index as u32));
            }
            for probe in probes {
                let scan = list.iter().filter(|(prefix, _)| prefix.contains(&probe)).max_by_key(|(prefix, _)| prefix.prefix_len());
                prop_assert_eq!(table.lookup(probe), scan.map(|(_, peer)| *peer));
            }
        }
    }
}

//! What the operator wants: one [`DeviceConfig`], and whether it can work.
//!
//! The command line ([`super::cli`]) fills a [`DeviceConfig`], [`DeviceConfig::check`] says whether it can work, and
//! only then does [`crate::worker`] open anything. Everything here is values: no kernel, no network. Their text forms:
//! [`super::peer`], [`super::endpoint`], [`super::name`].

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::os::fd::RawFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use super::config_error::ConfigError;
use super::endpoint::{Listen, MetricsAddress};
use super::name::{TUN_DEFAULT, check_name};
use super::peer::{PeerConfig, drop_repetitions, truncate_prefixes};
use super::secret::quote;
use crate::proto::keys::PrivateKey;
use crate::stats::offloads::Offload;
use crate::time::Span;

/// Queues, hence workers, a device may have. linux/if_tun.h: MAX_TAP_QUEUES is 256.
pub const QUEUES: RangeInclusive<usize> = 1..=256;
/// MTUs in bytes: from the smallest link IPv4 allows (RFC 791) to the largest packet that fits a datagram over IPv4.
pub const MTU: RangeInclusive<u16> = 68..=65_507;
/// Smallest MTU in bytes on which the kernel runs IPv6. RFC 8200 §5.
pub const MTU_IPV6_MIN: u16 = 1280;
/// MTU in bytes if none is given: fits a 1500-byte path whatever the outer family, plain or WireGuard.
pub const MTU_DEFAULT: u16 = 1420;

/// A tunnel interface and how it is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Interface name, or a pattern like `uring%d` for which the kernel chooses the number.
    pub tun: String,
    /// TUN queues; each has a worker, a ring and UDP sockets of its own. Within [`QUEUES`].
    pub queues: usize,
    /// Addresses of the interface with their prefix lengths; the host bits count. Empty: the interface gets none.
    pub addresses: Vec<IpNet>,
    /// Where we receive. Port 0, never with `plaintext`: the kernel chooses one.
    pub listen: Listen,
    /// The other ends. After [`check`](DeviceConfig::check): no two with the same key or the same allowed IP, and
    /// with `plaintext` at least one.
    pub peers: Vec<PeerConfig>,
    /// Who we are to our peers. `None` with `plaintext`, and where the configuration socket is to bring it.
    pub private_key: Option<PrivateKey>,
    /// Mark of the tunnel's own datagrams for policy routing (SO_MARK); 0 marks none.
    pub fwmark: u32,
    /// Largest IP packet in the tunnel, in bytes. Within [`MTU`].
    pub mtu: u16,
    /// Which driver talks to the kernel.
    pub io: IoChoice,
    /// Carry bare IP packets without encryption. Never assumed, must be asked for.
    pub plaintext: bool,
    /// Offloads to leave unused although the kernel may have them.
    pub disabled: Vec<Offload>,
    /// Print statistics this often; `None` prints them only at exit, and in the background not at all.
    pub stats_interval: Option<Span>,
    /// Where Prometheus finds metrics.
    pub metrics: Option<MetricsAddress>,
    /// Whether they tell of each peer, too.
    pub metrics_peers: bool,
    /// Whether worker N stays on the Nth core we may run on.
    pub pin: PinChoice,
    /// Add the routes of [`route_prefixes`](DeviceConfig::route_prefixes).
    pub routes: bool,
    /// Serve the configuration socket that `wg` talks to.
    pub uapi: bool,
    /// Set the interface up, with its addresses and routes. Otherwise it is made and left down, for `wg-quick` or
    /// whoever started us to configure.
    pub set_up: bool,
    /// A TUN queue opened by whoever started us, by its descriptor's number. We are the only ones to use it.
    pub tun_fd: Option<RawFd>,
    /// A listening configuration socket opened by whoever started us, likewise.
    pub uapi_fd: Option<RawFd>,
    /// Stay in the foreground instead of going to the background once the tunnel is up.
    pub foreground: bool,
}

/// One queue, no peers, no key, every offload, default name, port and MTU; encrypted.
impl Default for DeviceConfig {
    fn default() -> Self {
        DeviceConfig {
            tun: TUN_DEFAULT.to_owned(),
            queues: 1,
            addresses: Vec::new(),
            listen: Listen::default(),
            peers: Vec::new(),
            private_key: None,
            fwmark: 0,
            mtu: MTU_DEFAULT,
            io: IoChoice::Auto,
            plaintext: false,
            disabled: Vec::new(),
            stats_interval: None,
            metrics: None,
            metrics_peers: false,
            pin: PinChoice::Auto,
            routes: true,
            uapi: true,
            set_up: true,
            tun_fd: None,
            uapi_fd: None,
            foreground: false,
        }
    }
}

/// Which driver moves packets between us and the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring if the kernel lets us, else system calls, said in one line.
    #[default]
    Auto,
    /// io_uring or nothing: being refused is an error.
    Uring,
    /// epoll, readv, writev, recvmsg, sendmsg.
    Syscall,
}

/// Whether each worker stays on a core of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinChoice {
    /// Pinned with several workers on at least [`CORES_TO_PIN`] cores.
    #[default]
    Auto,
    /// Pinned.
    On,
    /// Placed by the scheduler.
    Off,
}

/// Cores from which on workers are pinned unasked. On fewer they share them with the programs whose packets they carry,
/// and the scheduler finds better places than we do: on two cores a pinned single flow lost a fifth of its throughput.
pub const CORES_TO_PIN: usize = 4;

impl DeviceConfig {
    /// Whether `offload` may be used where the kernel has it.
    pub fn allows(&self, offload: Offload) -> bool {
        !self.disabled.contains(&offload)
    }

    /// Says whether this configuration can work, and makes it canonical: repeated addresses are dropped, host bits of
    /// allowed IPs cleared.
    ///
    /// Looks only at the values: whether the port is free or a name resolves is found out by running.
    ///
    /// # Errors
    /// The first [`ConfigError`] found, in the order device, keys, peers, conflicts between peers.
    pub fn check(mut self) -> Result<DeviceConfig, ConfigError> {
        self.check_device()?;
        drop_repetitions(&mut self.addresses);
        if self.mtu < MTU_IPV6_MIN
            && let Some(&address) = self.addresses.iter().find(|address| matches!(address, IpNet::V6(_)))
        {
            return Err(ConfigError::MtuForIpv6 { mtu: self.mtu, address });
        }
        if self.plaintext && self.private_key.is_some() {
            return Err(ConfigError::PlaintextWithKey);
        }
        // An encrypted device may start empty, peers and even its key can come over the configuration socket.
        if self.peers.is_empty() && (self.plaintext || (self.set_up && self.private_key.is_none())) {
            return Err(ConfigError::NoPeers);
        }
        for peer in &mut self.peers {
            check_mode(peer, self.plaintext)?;
            truncate_prefixes(&mut peer.allowed_ips);
        }
        if !self.plaintext {
            self.check_keys()?;
        }
        check_conflicts(&self.peers, self.plaintext)?;
        Ok(self)
    }

    /// Reads "no allowed IPs" as the command line means it: a single peer gets `0.0.0.0/0` and `::/0`.
    ///
    /// # Errors
    /// [`ConfigError::NoAllowedIps`] if there are several peers and one has none.
    pub fn complete_allowed_ips(mut self) -> Result<DeviceConfig, ConfigError> {
        match self.peers.as_mut_slice() {
            [only] if only.allowed_ips.is_empty() => only.allowed_ips = everything(),
            peers => {
                if let Some(peer) = peers.iter().find(|peer| peer.allowed_ips.is_empty()) {
                    return Err(ConfigError::NoAllowedIps { peer: Box::new(peer.clone()) });
                }
            }
        }
        Ok(self)
    }

    /// The part of [`check`](DeviceConfig::check) that looks at the device alone: what can be said before files are read.
    pub(super) fn check_device(&self) -> Result<(), ConfigError> {
        check_name(&self.tun).map_err(|problem| ConfigError::Name { name: quote(&self.tun), problem })?;
        if !QUEUES.contains(&self.queues) {
            return Err(ConfigError::Queues { given: self.queues as u64 });
        }
        if self.tun_fd.is_some() && self.queues > 1 {
            return Err(ConfigError::QueuesOfDescriptor { given: self.queues });
        }
        if !MTU.contains(&self.mtu) {
            return Err(ConfigError::Mtu { given: self.mtu.into() });
        }
        if self.plaintext && self.listen.port == 0 {
            return Err(ConfigError::PlaintextPort { listen: self.listen });
        }
        Ok(())
    }

    /// Peers of an encrypted device: we need a key to talk to them, theirs are not ours and all different.
    fn check_keys(&self) -> Result<(), ConfigError> {
        if self.peers.is_empty() {
            return Ok(());
        }
        let own = self.private_key.as_ref().ok_or(ConfigError::NoPrivateKey)?.public_key();
        let mut seen = HashSet::new();
        for peer in &self.peers {
            let Some(public_key) = peer.public_key else { continue };
            if public_key == own {
                return Err(ConfigError::OwnKey { peer: Box::new(peer.clone()) });
            }
            if !seen.insert(public_key) {
                return Err(ConfigError::SharedKey { public_key });
            }
        }
        Ok(())
    }

    /// Prefixes to route into the interface: every allowed IP but the default routes `0.0.0.0/0` and `::/0`.
    ///
    /// A default route through the tunnel would also catch the tunnel's own datagrams, so it is left to the operator.
    pub fn route_prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.peers.iter().flat_map(|peer| &peer.allowed_ips).copied().filter(|prefix| prefix.prefix_len() > 0)
    }
}

/// Two peers may not claim one prefix, nor, since a plaintext peer is known by nothing else, one endpoint.
fn check_conflicts(peers: &[PeerConfig], plaintext: bool) -> Result<(), ConfigError> {
    let mut claims: HashMap<IpNet, &PeerConfig> = HashMap::new();
    let mut endpoints = HashMap::new();
    for peer in peers {
        for &prefix in &peer.allowed_ips {
            if let Some(first) = claims.insert(prefix, peer) {
                return Err(ConfigError::SharedAllowedIp {
                    prefix,
                    first: Box::new(first.clone()),
                    second: Box::new(peer.clone()),
                });
            }
        }
        let Some(endpoint) = peer.endpoint.as_ref().filter(|_| plaintext) else { continue };
        if let Some(first) = endpoints.insert(endpoint.identity(), peer) {
            return Err(ConfigError::SharedEndpoint {
                endpoint: endpoint.clone(),
                first: Box::new(first.clone()),
                second: Box::new(peer.clone()),
            });
        }
    }
    Ok(())
}

fn check_mode(peer: &PeerConfig, plaintext: bool) -> Result<(), ConfigError> {
    let boxed = || Box::new(peer.clone());
    if !plaintext {
        return match peer.public_key {
            None => Err(ConfigError::NeitherKeyNorPlaintext { peer: boxed() }),
            Some(_) => Ok(()),
        };
    }
    let meaningless = [
        (peer.public_key.is_some(), "a public key"),
        (peer.preshared_key.is_some(), "a preshared key"),
        (peer.keepalive.is_some(), "a keepalive"),
    ];
    if let Some(&(_, what)) = meaningless.iter().find(|(given, _)| *given) {
        return Err(ConfigError::MeaninglessInPlaintext { peer: boxed(), what });
    }
    if peer.endpoint.is_none() {
        return Err(ConfigError::NoEndpoint { peer: boxed() });
    }
    Ok(())
}

/// Reads a firewall mark: decimal, hexadecimal after `0x`, or `off` for 0.
pub fn parse_fwmark(text: &str) -> Option<u32> {
    if text.eq_ignore_ascii_case("off") {
        return Some(0);
    }
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    if digits.starts_with(['+', '-']) { None } else { u32::from_str_radix(digits, radix).ok() }
}

/// The default routes of both families.
fn everything() -> Vec<IpNet> {
    vec![Ipv4Net::default().into(), Ipv6Net::default().into()]
}

#[cfg(test)]
mod tests {
    use super::super::peer::PeerText;
    use super::*;
    use crate::proto::keys::{PresharedKey, PublicKey};

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn peer(text: &str) -> PeerConfig {
        text.parse::<PeerText>().unwrap().peer
    }

    fn private_key() -> PrivateKey {
        PrivateKey::from_bytes([1; 32])
    }

    fn encrypted(peers: &[&str]) -> DeviceConfig {
        DeviceConfig { plaintext: false, private_key: Some(private_key()), ..plain(peers) }
    }

    fn plain(peers: &[&str]) -> DeviceConfig {
        DeviceConfig {
            plaintext: true,
            peers: peers.iter().map(|text| peer(text)).collect(),
            ..DeviceConfig::default()
        }
    }

    fn nets(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn queues_and_mtu_have_bounds() {
        for queues in [1, 256] {
            assert!(DeviceConfig { queues, ..plain(&["h:1"]) }.check().is_ok());
        }
        for queues in [0, 257, 1_000_000] {
            let given = queues as u64;
            let config = DeviceConfig { queues, ..plain(&["h:1"]) };
            assert_eq!(config.check(), Err(ConfigError::Queues { given }));
        }
        assert!(DeviceConfig { mtu: 68, ..plain(&["h:1"]) }.check().is_ok());
        assert_eq!(DeviceConfig { mtu: 67, ..plain(&["h:1"]) }.check(), Err(ConfigError::Mtu { given: 67 }));
        let ipv6 = DeviceConfig { mtu: 1279, addresses: nets("10.0.0.1/24 fd00::1/64"), ..plain(&["h:1"]) };
        let address = nets("fd00::1/64")[0];
        assert_eq!(ipv6.check(), Err(ConfigError::MtuForIpv6 { mtu: 1279, address }));
    }

    #[test]
    fn a_single_peer_gets_everything_and_several_must_say() {
        let one = plain(&["192.0.2.7:1"]).check().unwrap().complete_allowed_ips().unwrap();
        assert_eq!(one.peers[0].allowed_ips, nets("0.0.0.0/0 ::/0"));
        assert_eq!(one.route_prefixes().count(), 0);

        let two = plain(&["a:1,allowed-ips=10.0.0.0/8", "b:1"]);
        let two = two.check().unwrap().complete_allowed_ips();
        assert_eq!(two, Err(ConfigError::NoAllowedIps { peer: Box::new(peer("b:1")) }));
    }

    #[test]
    fn without_plaintext_a_peer_needs_a_key_and_with_it_must_not_have_one() {
        let boxed = |text: &str| Box::new(peer(text));
        let keyed = format!("{KEY}@h:1");
        let encrypted = DeviceConfig { plaintext: false, ..plain(&["h:1"]) };
        assert_eq!(encrypted.check(), Err(ConfigError::NeitherKeyNorPlaintext { peer: boxed("h:1") }));
        for (text, what) in [(keyed.as_str(), "a public key"), ("h:1,keepalive=5", "a keepalive")] {
            let expected = ConfigError::MeaninglessInPlaintext { peer: boxed(text), what };
            assert_eq!(plain(&[text]).check(), Err(expected));
        }
        let mut shared = plain(&["h:1"]);
        shared.peers[0].preshared_key = Some(PresharedKey::from_bytes([7; 32]));
        let error = shared.check().unwrap_err();
        assert!(
            matches!(error, ConfigError::MeaninglessInPlaintext { what: "a preshared key", .. }),
            "{error}"
        );
        let nowhere = ",allowed-ips=10.0.0.0/8";
        assert_eq!(plain(&[nowhere]).check(), Err(ConfigError::NoEndpoint { peer: boxed(nowhere) }));
        assert_eq!(plain(&[]).check(), Err(ConfigError::NoPeers));
    }

    #[test]
    fn an_encrypted_device_needs_a_private_key_as_soon_as_it_has_peers() {
        let keyed = format!("{KEY}@");
        assert!(encrypted(&[&keyed]).check().is_ok());
        let keyless = DeviceConfig { private_key: None, ..encrypted(&[&keyed]) };
        assert_eq!(keyless.check(), Err(ConfigError::NoPrivateKey));
        assert!(encrypted(&[]).check().is_ok());
        assert_eq!(DeviceConfig::default().check(), Err(ConfigError::NoPeers));
        let by_name = DeviceConfig { set_up: false, ..DeviceConfig::default() };
        assert!(by_name.check().is_ok());
    }

    #[test]
    fn plaintext_and_a_private_key_contradict_each_other() {
        let both = DeviceConfig { plaintext: true, ..encrypted(&["h:1"]) };
        assert_eq!(both.check(), Err(ConfigError::PlaintextWithKey));
    }

    #[test]
    fn a_peers_key_is_neither_ours_nor_anothers() {
        let own = format!("{}@", private_key().public_key());
        let error = encrypted(&[&own]).check().unwrap_err();
        assert!(matches!(error, ConfigError::OwnKey { .. }), "{error}");
        let (a, b) = (format!("{KEY}@,allowed-ips=10.0.0.0/8"), format!("{KEY}@h:1"));
        let public_key = KEY.parse().unwrap();
        assert_eq!(encrypted(&[&a, &b]).check(), Err(ConfigError::SharedKey { public_key }));
    }

    #[test]
    fn encrypted_peers_may_share_an_endpoint_and_the_kernel_may_choose_our_port() {
        let (a, b) = (format!("{KEY}@h:1"), format!("{}@h:1", PublicKey::from_bytes([9; 32])));
        let listen = Listen { address: None, port: 0 };
        assert!(DeviceConfig { listen, ..encrypted(&[&a, &b]) }.check().is_ok());
        let error = DeviceConfig { listen, ..plain(&["h:1"]) }.check().unwrap_err();
        assert!(error.to_string().starts_with("listen 0: "), "{error}");
    }

    #[test]
    fn a_mark_is_decimal_hexadecimal_or_off() {
        for (text, mark) in
            [("0", 0), ("off", 0), ("OFF", 0), ("51820", 51820), ("0xca6C", 0xca6c), ("4294967295", u32::MAX)]
        {
            assert_eq!(parse_fwmark(text), Some(mark), "{text}");
        }
        for wrong in ["", "0x", "+1", "-1", "0x+1", "4294967296", "ca6c", "1 "] {
            assert_eq!(parse_fwmark(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_descriptor_handed_in_is_one_queue() {
        let two = DeviceConfig { tun_fd: Some(3), queues: 2, ..encrypted(&[]) };
        assert_eq!(two.check(), Err(ConfigError::QueuesOfDescriptor { given: 2 }));
    }

    #[test]
    fn two_peers_share_neither_an_allowed_ip_nor_an_endpoint() {
        let (a, b) = ("a:1,allowed-ips=10.0.0.0/8+fd00::/64", "b:1,allowed-ips=10.1.2.3/8");
        let error = plain(&[a, b]).check().unwrap_err();
        assert!(matches!(error, ConfigError::SharedAllowedIp { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("10.0.0.0/8") && text.contains(a) && text.contains("b:1"), "{text}");

        let (a, b) = ("A.example:1,allowed-ips=10.0.0.0/8", "a.example.:1,allowed-ips=11.0.0.0/8");
        assert!(matches!(plain(&[a, b]).check(), Err(ConfigError::SharedEndpoint { .. })));
        // A longer prefix inside another peer's is what longest-prefix match is for.
        assert!(plain(&["a:1,allowed-ips=10.0.0.0/8", "b:1,allowed-ips=10.1.0.0/16"]).check().is_ok());
    }
}

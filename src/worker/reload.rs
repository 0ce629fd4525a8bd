//! SIGHUP: the configuration file is read again, and the running tunnel follows it as with `wg syncconf`.
//!
//! Followed: keys, port, mark, peers, and the routes to them. The interface's addresses, MTU and name are those of the start. A
//! file that cannot be read, has a mistake or asks for a port that is taken changes nothing, and one line says so.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;
use nix::errno::Errno;

use super::crew::Crew;
use super::start;
use crate::control::config::DeviceConfig;
use crate::control::config_file::ConfigFile;
use crate::control::endpoint::HostPort;
use crate::control::uapi::{PeerChange, SetRequest};
use crate::proto::keys::{PresharedKey, PublicKey};

/// The file, and what the interface took from it at the start.
#[derive(Debug)]
pub struct Reload {
    file: Option<Box<ConfigFile>>,
    addresses: Vec<IpNet>,
    mtu: u16,
}

impl Reload {
    /// For a tunnel that runs with `config`, which is the content of `file`.
    pub fn new(file: Option<Box<ConfigFile>>, config: &DeviceConfig) -> Reload {
        Reload { file, addresses: config.addresses.clone(), mtu: config.mtu }
    }

    /// Reads the file and makes the tunnel follow it; returns what it says, and `None` if all stays as it was.
    pub fn run(&self, crew: &Crew) -> Option<DeviceConfig> {
        let Some(file) = &self.file else {
            tracing::info!("SIGHUP: there is no configuration file to read again");
            return None;
        };
        let name = file.name();
        if !file.is_lasting() {
            tracing::warn!("SIGHUP: {name} is not a file that can be read again; nothing was changed");
            return None;
        }
        let (config, warnings) = match file.read() {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!("SIGHUP: {error}; nothing was changed");
                return None;
            }
        };
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        if let Err(errno) = crew.follow(config.clone()) {
            let why = match errno {
                Errno::EAGAIN => "there is no thread to be had that looks up names".to_owned(),
                _ => {
                    format!("the kernel refuses ListenPort {} or the FwMark: {errno}", config.listen.port)
                }
            };
            tracing::warn!("SIGHUP: {name}: {why}; nothing was changed");
            return None;
        }
        if (&config.addresses, config.mtu) != (&self.addresses, self.mtu) {
            tracing::warn!(
                "SIGHUP: {name}: Address and MTU of a running interface stay; restart to change them"
            );
        }
        tracing::info!("SIGHUP: {name} was read again");
        Some(config)
    }
}

/// What makes a device with the peers `present` follow `config`. `given` has the endpoints as a configuration named them last:
/// one that is named as before stays where its peer roamed to.
pub fn request(
    config: &DeviceConfig,
    present: &HashSet<PublicKey>,
    given: &HashMap<PublicKey, HostPort>,
) -> SetRequest {
    let wanted: HashSet<_> = config.peers.iter().filter_map(|peer| peer.public_key).collect();
    let gone = present.difference(&wanted);
    let mut request = start::request(config);
    for (change, peer) in request.peers.iter_mut().zip(&config.peers) {
        change.preshared_key.get_or_insert(PresharedKey::NONE);
        change.persistent_keepalive.get_or_insert(0);
        let key = &change.public_key;
        if present.contains(key) && given.get(key) == peer.endpoint.as_ref() {
            change.endpoint = None;
        }
    }
    request.peers.extend(gone.map(|key| PeerChange { remove: true, ..PeerChange::new(*key) }));
    SetRequest {
        listen_port: Some(config.listen.port).filter(|&port| port != 0),
        fwmark: Some(config.fwmark),
        ..request
    }
}

/// What the protocol thread answers: why the file is not followed.
pub type Followed = Result<(), Errno>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::peer::PeerText;
    use crate::proto::keys::PrivateKey;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn config(peers: &[&str]) -> DeviceConfig {
        let peer = |text: &&str| {
            let (byte, rest) = text.split_once('@').expect("a number, @ and the rest");
            let text = format!("{}@{rest}", key(byte.parse().expect("a number")));
            text.parse::<PeerText>().expect("a peer").peer
        };
        let private_key = Some(PrivateKey::from_bytes([1; 32]));
        DeviceConfig { private_key, peers: peers.iter().map(peer).collect(), ..DeviceConfig::default() }
    }

    fn given(config: &DeviceConfig) -> HashMap<PublicKey, HostPort> {
        start::endpoints(&config.peers)
    }

    #[test]
    fn peers_that_are_no_longer_named_go_and_what_is_not_said_of_others_is_none() {
        let config = config(&["2@192.0.2.2:1,allowed-ips=10.0.0.2"]);
        let request = request(&config, &[key(2), key(3)].into(), &given(&config));
        let [kept, gone] = request.peers.as_slice() else { panic!("{request:?}") };
        assert!(gone.public_key == key(3) && gone.remove);
        assert!(kept.public_key == key(2) && !kept.remove && kept.replace_allowed_ips);
        assert_eq!((kept.allowed_ips.len(), kept.persistent_keepalive), (1, Some(0)));
        assert_eq!(kept.preshared_key, Some(PresharedKey::NONE));
        assert_eq!((request.fwmark, request.replace_peers), (Some(0), false));
    }

    #[test]
    fn an_endpoint_named_as_before_is_left_to_roaming_and_another_one_is_taken() {
        let before = given(&config(&["2@192.0.2.2:1", "3@192.0.2.3:1", "4@h:1"]));
        let config = config(&["2@192.0.2.2:1", "3@192.0.2.33:1", "4@h:1", "5@192.0.2.5:1"]);
        let request = request(&config, &[key(2), key(3), key(4)].into(), &before);
        let endpoints: Vec<_> = request.peers.iter().map(|peer| peer.endpoint).collect();
        let at = |text: &str| text.parse().ok();
        assert_eq!(endpoints, [None, at("192.0.2.33:1"), None, at("192.0.2.5:1")]);
    }

    #[test]
    fn without_a_port_in_the_file_the_port_stays() {
        let mut config = config(&[]);
        config.listen.port = 0;
        assert_eq!(request(&config, &HashSet::new(), &HashMap::new()).listen_port, None);
        config.listen.port = 7;
        assert_eq!(request(&config, &HashSet::new(), &HashMap::new()).listen_port, Some(7));
    }
}

//! Why a configuration cannot work, each in one sentence that names the object and what to do.
//!
//! Found by [`super::config`] in the values and by [`super::cli`] on the way to them. No message repeats a secret.

use std::path::PathBuf;

use ipnet::IpNet;

use super::config::{MTU, MTU_DEFAULT, MTU_IPV6_MIN, QUEUES};
use super::endpoint::{AddressError, HostPort, Listen, ListenError, MetricsAddressError, PORT_DEFAULT};
use super::expose::ExposeError;
use super::file::FileError;
use super::name::{NameProblem, TUN_DEFAULT};
use super::peer::{PEER_EXAMPLE, PeerConfig, PeerError};
use super::secret::SecretError;
use crate::proto::keys::{KeyError, PublicKey};

/// Why a configuration cannot work. Each says on which object and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The interface name is one the kernel would refuse.
    #[error("interface name {name}: {problem}; a correct name is for example {TUN_DEFAULT}")]
    Name {
        /// The name given, as a message may show it.
        name: String,
        /// Which rule it breaks.
        problem: NameProblem,
    },
    /// Not within [`QUEUES`].
    #[error("queues {given}: must be from {} to {}; one per core is a good start", QUEUES.start(), QUEUES.end())]
    Queues {
        /// The number given.
        given: u64,
    },
    /// Not within [`MTU`].
    #[error(
        "mtu {given}: must be from {} to {} bytes; {MTU_DEFAULT} fits a 1500-byte path, IPv6 inside the tunnel needs at least {MTU_IPV6_MIN}",
        MTU.start(), MTU.end()
    )]
    Mtu {
        /// The number given, in bytes.
        given: u64,
    },
    /// An IPv6 interface address with an MTU on which the kernel switches IPv6 off.
    #[error(
        "mtu {mtu}: too small for the IPv6 address {address}; give at least {MTU_IPV6_MIN} or only IPv4 addresses"
    )]
    MtuForIpv6 {
        /// The MTU given, in bytes.
        mtu: u16,
        /// The first IPv6 address.
        address: IpNet,
    },
    /// An interface address that cannot be parsed.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A listening address or port that cannot be parsed.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A place for metrics that cannot be parsed.
    #[error(transparent)]
    MetricsAddress(#[from] MetricsAddressError),
    /// Something about metrics that are not asked for.
    #[error("{0} needs --metrics, which says where metrics are served")]
    WithoutMetrics(&'static str),
    /// A statistics interval out of range.
    #[error("stats interval {given}: must be from 1 to 86400 seconds")]
    StatsInterval {
        /// The number given, in seconds.
        given: u64,
    },
    /// Whom to log in detail is named by a public key.
    #[error("--log-peer: {0}; give the public keys of peers, separated by commas, as `wg show` prints them")]
    LogPeer(KeyError),
    /// A peer that cannot be parsed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Options of `local` and `server` that cannot work.
    #[error(transparent)]
    Expose(#[from] ExposeError),
    /// A file with a key that gives us none.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A mistake in the configuration file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A configuration file whose name is not that of an interface.
    #[error(
        "config {}: the interface gets the file's name, which must be one like wg0.conf; or give --tun NAME", .path.display()
    )]
    NameOfFile {
        /// The file.
        path: PathBuf,
    },
    /// A mark that is no number.
    #[error("fwmark {given}: must be a number up to 0xffffffff, for example 51820 or 0xca6c, or off")]
    Fwmark {
        /// The text given, as a message may show it.
        given: String,
    },
    /// A descriptor that is handed in has a number.
    #[error("{variable} {given}: must be the number of an open descriptor, 3 or higher")]
    Descriptor {
        /// The environment variable.
        variable: &'static str,
        /// Its value, as a message may show it.
        given: String,
    },
    /// A command among options: `-f probe`.
    #[error(
        "{name} is a command: it stands first, `uringvpn {name}`; an interface of that name can be made with --tun {name}"
    )]
    CommandAsName {
        /// The command.
        name: String,
    },
    /// Two options that cannot both be honoured.
    #[error("{0} and {1} exclude each other: remove one of them")]
    Excluding(&'static str, &'static str),
    /// A key in a place where only the command line would see it.
    #[error(
        "an argument or environment variable holds what may be a key, where none belongs; keys are in files, see --private-key in --help"
    )]
    MisplacedKey,
    /// Nobody to talk to.
    #[error(
        "no peer given: add --private-key FILE --peer PUBLIC_KEY@HOST:PORT, or, to send packets unencrypted, --plaintext --peer HOST:PORT, for example --plaintext --peer 192.0.2.7:{PORT_DEFAULT}"
    )]
    NoPeers,
    /// Neither a key nor `--plaintext`.
    #[error(
        "peer \"{peer}\" has no public key: either give it one, PUBLIC_KEY@{}, for an encrypted tunnel, or add --plaintext to send its packets unencrypted",
        .peer.endpoint.as_ref().map_or("HOST:PORT".to_owned(), HostPort::to_string)
    )]
    NeitherKeyNorPlaintext {
        /// The peer.
        peer: Box<PeerConfig>,
    },
    /// Peers to talk to, and no key of our own to do it with.
    #[error(
        "no private key: make one with `umask 077; uringvpn genkey > wg.key` and add --private-key wg.key, or add --plaintext to send packets unencrypted"
    )]
    NoPrivateKey,
    /// A private key and `--plaintext`.
    #[error("--plaintext and a private key contradict each other: remove one of them")]
    PlaintextWithKey,
    /// Plaintext peers do not learn our port.
    #[error(
        "listen {listen}: with --plaintext the port must be a number from 1 to 65535; correct are for example {PORT_DEFAULT} and 192.0.2.1:{PORT_DEFAULT}"
    )]
    PlaintextPort {
        /// The port, and the address if one was given.
        listen: Listen,
    },
    /// A peer with our own key.
    #[error("peer \"{peer}\" has this device's own public key: give it the key of the other end")]
    OwnKey {
        /// The peer.
        peer: Box<PeerConfig>,
    },
    /// Two peers with one key.
    #[error("public key {public_key} is given to two peers: make them one peer with the allowed IPs of both")]
    SharedKey {
        /// The key both have.
        public_key: PublicKey,
    },
    /// A descriptor that was handed in is one queue.
    #[error("queues {given}: a TUN descriptor that was handed in is one queue; leave --queues away")]
    QueuesOfDescriptor {
        /// The number given.
        given: usize,
    },
    /// Plaintext mode does not learn endpoints.
    #[error(
        "peer \"{peer}\" has no endpoint: with --plaintext every peer needs one, for example {PEER_EXAMPLE}"
    )]
    NoEndpoint {
        /// The peer.
        peer: Box<PeerConfig>,
    },
    /// An option that only makes sense with encryption, together with `--plaintext`.
    #[error("peer \"{peer}\" has {what}, which --plaintext cannot honour: remove it, or remove --plaintext")]
    MeaninglessInPlaintext {
        /// The peer.
        peer: Box<PeerConfig>,
        /// "a public key", "a preshared key", "a keepalive".
        what: &'static str,
    },
    /// Several peers, and one of them does not say what is behind it.
    #[error(
        "peer \"{peer}\" has no allowed IPs: with several peers each must say what is behind it, for example {PEER_EXAMPLE}"
    )]
    NoAllowedIps {
        /// The peer.
        peer: Box<PeerConfig>,
    },
    /// Two peers claim the same prefix.
    #[error(
        "allowed IP {prefix} is claimed by two peers, \"{first}\" and \"{second}\": leave it with one of them"
    )]
    SharedAllowedIp {
        /// The prefix both claim.
        prefix: IpNet,
        /// The peer given first.
        first: Box<PeerConfig>,
        /// The peer given later.
        second: Box<PeerConfig>,
    },
    /// Two plaintext peers with one endpoint: their datagrams could not be told apart.
    #[error(
        "endpoint {endpoint} is given to two peers, \"{first}\" and \"{second}\": make them one peer with the allowed IPs of both"
    )]
    SharedEndpoint {
        /// The endpoint both have.
        endpoint: HostPort,
        /// The peer given first.
        first: Box<PeerConfig>,
        /// The peer given later.
        second: Box<PeerConfig>,
    },
}

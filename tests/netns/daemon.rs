//! One encrypted `uringvpn` at host 0 under the eyes of raw peers at host 1.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

use base64ct::{Base64, Encoding as _};
use uringvpn::stats::drop::DropReason;
use uringvpn::stats::snapshot::Snapshot;

use crate::raw_peer::{Identity, RawPeer, open_socket};
use crate::raw_session::Key;
use crate::rig::{Family, Host, Rig, inner, outer};
use crate::tunnel::{PROGRAM, Report, Tunnel};

/// Where it listens.
pub const PORT: u16 = 51820;
/// Lines that it may print in a test that does nothing but send it packets.
const LINES_MAX: usize = 12;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running daemon. Its inner address is 10.9.0.1.
pub struct Daemon<'r> {
    pub host: &'r Host,
    pub process: Tunnel,
    pub interface: String,
    identity: Identity,
    files: tempfile::TempDir,
}

impl<'r> Daemon<'r> {
    #[track_caller]
    pub fn start(rig: &'r Rig, options: &str) -> Daemon<'r> {
        Daemon::with_key(rig, options, Identity::new())
    }

    #[track_caller]
    pub fn with_key(rig: &'r Rig, options: &str, identity: Identity) -> Daemon<'r> {
        let host = &rig.hosts[0];
        let files = tempfile::tempdir().unwrap();
        let interface =
            format!("ur{}x{}", std::process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let key = write_key(&files, "key", &identity.private);
        let words = format!(
            "{PROGRAM} -f --tun {interface} --private-key {key} --listen {PORT} --address {}/24 \
             --stats-interval 86400 {options}",
            inner(Family::V4, 0)
        );
        let process = Tunnel::spawn(&mut host.command(words.split_whitespace()));
        process.wait_up();
        Daemon { host, process, interface, identity, files }
    }

    pub fn public_key(&self) -> Key {
        self.identity.public
    }

    /// Its address for peers at host 1.
    pub fn address() -> SocketAddr {
        SocketAddr::new(outer(Family::V4, 1, 1), PORT)
    }

    /// Stops it; the final numbers must add up.
    #[track_caller]
    pub fn stop(self) -> Report {
        self.assert_quiet();
        self.process.stop()
    }

    /// Stops it and starts another with the same key.
    #[track_caller]
    pub fn restart(self, rig: &'r Rig) -> Daemon<'r> {
        let identity = self.identity.clone();
        self.stop();
        Daemon::with_key(rig, "", identity)
    }

    /// It lives and has printed next to nothing.
    #[track_caller]
    pub fn assert_quiet(&self) {
        let output = self.process.output();
        assert!(self.process.is_alive() && output.lines().count() <= LINES_MAX, "{output}");
    }

    /// `wg set INTERFACE …`
    pub fn set(&self, words: &str) {
        self.host.run(&format!("wg set {} {words}", self.interface));
    }

    /// What `wg show INTERFACE …` says of `peer`, without its key.
    pub fn show(&self, what: &str, peer: &RawPeer) -> String {
        let (text, key) =
            (self.host.run(&format!("wg show {} {what}", self.interface)), base64(&peer.identity.public));
        let line = text.lines().find_map(|line| line.strip_prefix(&key));
        line.unwrap_or_else(|| panic!("no {key} in {text}")).trim().to_owned()
    }

    /// Somebody at `address` whom it does not know.
    pub fn stranger(&self, at: &Host, address: impl Into<IpAddr>) -> RawPeer {
        let address = address.into();
        let socket = at.inside(|| open_socket(address));
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        RawPeer {
            identity: Identity::new(),
            psk: [0; 32],
            inner: Ipv4Addr::UNSPECIFIED,
            socket,
            remote: SocketAddr::new(outer(family, 1, 1), PORT),
            remote_key: self.public_key(),
        }
    }

    /// A peer at host 1 that it knows, with the inner address 10.9.0.`last`.
    pub fn peer(&self, rig: &Rig, last: u8) -> RawPeer {
        let inner = Ipv4Addr::new(10, 9, 0, last);
        let peer = RawPeer { inner, ..self.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2)) };
        self.set_peer(&peer, &format!("allowed-ips {inner}/32"));
        peer
    }

    /// A peer as [`Daemon::peer`], whose endpoint it knows, too.
    pub fn peer_at(&self, rig: &Rig, last: u8) -> RawPeer {
        let peer = self.peer(rig, last);
        self.set_peer(&peer, &format!("endpoint {}", peer.socket.local_addr().unwrap()));
        peer
    }

    /// `wg set INTERFACE peer KEY …`
    pub fn set_peer(&self, peer: &RawPeer, words: &str) {
        self.set(&format!("peer {} {words}", base64(&peer.identity.public)));
    }

    pub fn set_psk(&self, peer: &RawPeer, psk: &Key) {
        let file = write_key(&self.files, "psk", psk);
        self.set_peer(peer, &format!("preshared-key {file}"));
    }

    pub fn set_private_key(&self, identity: &Identity) {
        self.set(&format!("private-key {}", write_key(&self.files, "other-key", &identity.private)));
    }

    /// What `uringvpn show` tells of it.
    pub fn shown(&self) -> Snapshot {
        let json = self.host.run(&format!("{PROGRAM} show --json {}", self.interface));
        serde_json::from_str(&json).unwrap()
    }

    /// Packets dropped for `reason` so far.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        let drops = self.shown().drops;
        drops.iter().filter(|dropped| dropped.reason == reason.label()).map(|dropped| dropped.packets).sum()
    }

    /// A socket on its host, at its inner address.
    pub fn inner_socket(&self) -> UdpSocket {
        self.host.inside(|| UdpSocket::bind((inner(Family::V4, 0), 0)).unwrap())
    }
}

pub fn base64(key: &Key) -> String {
    Base64::encode_string(key)
}

fn write_key(files: &tempfile::TempDir, name: &str, key: &Key) -> String {
    let path = files.path().join(name);
    std::fs::write(&path, base64(key)).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

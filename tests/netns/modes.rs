//! Both ends of a tunnel, sealed or plain, for tests whose promise holds in either mode.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use uringvpn::stats::drop::DropReason;

use crate::rig::{Family, Rig, inner, outer};
use crate::tunnel::{PROGRAM, Pair, Report, Tunnel};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How packets become datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Plain,
    Sealed,
}

/// Both.
pub const MODES: [Mode; 2] = [Mode::Plain, Mode::Sealed];

/// A name that no other interface has: configuration sockets lie in one directory whatever the network namespace.
pub fn interface() -> String {
    format!("um{}x{}", std::process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Makes a private key in `directory/name`; returns the public one.
pub fn make_key(directory: &TempDir, name: &str) -> String {
    let file = directory.path().join(name);
    let private = Command::new(PROGRAM).arg("genkey").output().unwrap().stdout;
    fs::write(&file, private).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let input = Stdio::from(fs::File::open(&file).unwrap());
    let public = Command::new(PROGRAM).arg("pubkey").stdin(input).output().unwrap().stdout;
    String::from_utf8(public).unwrap().trim().to_owned()
}

/// Packets of the kernel's own, as soon as the interface is up, may come before the workers know any peer.
pub const BEFORE_ROUTES: DropReason = DropReason::NoRoute;

/// What goes through the tunnel and may come out of it.
pub const EVERYTHING: [&str; 2] = ["0.0.0.0/0+::/0"; 2];

/// Host 0's and host 1's ends.
pub struct Ends {
    pub pair: Pair,
    /// Their interfaces.
    pub links: [String; 2],
    _keys: TempDir,
}

impl Ends {
    /// Starts both with `options` and waits until they reach each other. `allowed` are the allowed IPs of each end's peer.
    #[track_caller]
    pub fn start(rig: &Rig, mode: Mode, options: &str, allowed: [&str; 2]) -> Ends {
        let keys = tempfile::tempdir().unwrap();
        let public = ["0", "1"].map(|name| make_key(&keys, name));
        let links = [interface(), interface()];
        let start = |index: usize| {
            let other = 1 - index;
            let remote =
                format!("{}:51820,allowed-ips={}", outer(Family::V4, 1, other as u8 + 1), allowed[index]);
            let [v4, v6] = [Family::V4, Family::V6].map(|family| inner(family, index as u8));
            let secrets = match mode {
                Mode::Plain => format!("--plaintext --peer {remote}"),
                Mode::Sealed => {
                    let key = keys.path().join(index.to_string());
                    format!("--private-key {} --peer {}@{remote}", key.display(), public[other])
                }
            };
            let words = format!(
                "{PROGRAM} -f --tun {} --no-routes --listen 51820 --stats-interval 86400 --address {v4}/24 --address \
                 {v6}/64 {secrets} {options}",
                links[index]
            );
            let tunnel = Tunnel::spawn(&mut rig.hosts[index].command(words.split_whitespace()));
            tunnel.wait_up();
            tunnel
        };
        let pair = Pair { near: start(0), far: start(1) };
        pair.wait_reachable(rig);
        Ends { pair, links, _keys: keys }
    }

    /// Stops both and returns their final numbers.
    #[track_caller]
    pub fn stop(self) -> [Report; 2] {
        self.pair.stop()
    }
}

//! Ends of encrypted tunnels for the tests: ours and other programs', their keys, and what joins two of them.
//!
//! Configuration sockets lie in one directory whatever the network namespace, so every interface has a name of its own.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::rig::{FAMILIES, Family, Host, Rig, inner, outer, wait_until};
use crate::traffic::{Iperf, ping, reaches};
use crate::tunnel::{PROGRAM, Tunnel};

/// Where every end listens unless a test says otherwise.
pub const PORT: u16 = 51820;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub fn interface() -> String {
    format!("uw{}x{}", std::process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A program that is one end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Ours,
    WireguardGo,
    Boringtun,
}

impl Program {
    /// The command line that makes `interface`.
    pub fn words(self, interface: &str, options: &str) -> String {
        match self {
            Program::Ours => format!("{PROGRAM} -f {options} {interface}"),
            Program::WireguardGo => format!("wireguard-go -f {interface}"),
            Program::Boringtun => format!("boringtun-cli -f --disable-drop-privileges {interface}"),
        }
    }
}

/// A key pair and its file.
pub struct Keys {
    directory: tempfile::TempDir,
    pub public: String,
}

impl Keys {
    pub fn new() -> Keys {
        let directory = tempfile::tempdir().unwrap();
        let make = |arguments: &[&str], input: Option<&Path>| {
            let mut command = Command::new(PROGRAM);
            command.args(arguments);
            if let Some(input) = input {
                command.stdin(fs::File::open(input).unwrap());
            }
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        };
        fs::write(directory.path().join("key"), make(&["genkey"], None)).unwrap();
        fs::write(directory.path().join("psk"), make(&["genpsk"], None)).unwrap();
        for file in ["key", "psk"] {
            let path = directory.path().join(file);
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let public = make(&["pubkey"], Some(&directory.path().join("key"))).trim().to_owned();
        Keys { directory, public }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// One end that runs.
pub struct End {
    pub program: Program,
    pub process: Tunnel,
    pub interface: String,
}

impl End {
    /// Starts `program` on host `index`, without peers; its interface is up and has its inner addresses.
    pub fn start(program: Program, host: &Host, index: u8, keys: &Keys, options: &str) -> End {
        let end = End::open(program, host, keys, options, PORT);
        host.run(&format!("ip address add {}/24 dev {}", inner(Family::V4, index), end.interface));
        host.run(&format!("ip address add {}/64 dev {} nodad", inner(Family::V6, index), end.interface));
        host.run(&format!("ip link set {} mtu 1420 up", end.interface));
        end
    }

    /// Starts `program` on `host`, with a key and a port, without peers and addresses; its interface is down.
    pub fn open(program: Program, host: &Host, keys: &Keys, options: &str, port: u16) -> End {
        let interface = interface();
        let words = program.words(&interface, options);
        End::launch(program, host, &interface, &mut host.command(words.split_whitespace()), keys, port)
    }

    /// [`End::open`] with a command of one's own.
    pub fn launch(
        program: Program,
        host: &Host,
        interface: &str,
        command: &mut Command,
        keys: &Keys,
        port: u16,
    ) -> End {
        let interface = interface.to_owned();
        let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
        // One that was killed has left its own; numbers of files are used again, and so this looks at the time, too.
        let found = || fs::metadata(&socket).map(|file| (file.ino(), file.ctime(), file.ctime_nsec())).ok();
        let stale = found();
        let process = Tunnel::spawn(command);
        wait_until("the configuration socket", || {
            assert!(process.is_alive(), "{program:?} ended early: {}", process.output());
            found().is_some() && found() != stale && host.has_link(&interface)
        });
        let end = End { program, process, interface };
        // Of one that was killed, the port may be taken for a moment; ours waits for it.
        let key = keys.file("key");
        let words = format!("wg set {} private-key {} listen-port {port}", end.interface, key.display());
        wait_until("the port to be free", || {
            let output = host.command(words.split_whitespace()).output().unwrap();
            assert!(output.status.success() || program != Program::Ours, "{output:?}");
            output.status.success()
        });
        end
    }

    /// Tells it of a peer with the inner addresses of host `index`.
    pub fn meet(&self, host: &Host, peer: &Keys, index: u8, endpoint: Option<SocketAddr>, words: &str) {
        let endpoint = endpoint.map(|endpoint| format!("endpoint {endpoint}")).unwrap_or_default();
        let allowed = format!("{}/32,{}/128", inner(Family::V4, index), inner(Family::V6, index));
        self.wg(host, &format!("peer {} {endpoint} allowed-ips {allowed} {words}", peer.public));
    }

    /// `wg set INTERFACE …`
    pub fn wg(&self, host: &Host, words: &str) {
        host.run(&format!("wg set {} {words}", self.interface));
    }

    pub fn show(&self, host: &Host, what: &str) -> String {
        host.run(&format!("wg show {} {what}", self.interface))
    }

    /// What `wg show INTERFACE WHAT` says of one peer, without its key.
    #[track_caller]
    pub fn show_peer(&self, host: &Host, what: &str, peer: &Keys) -> String {
        let text = self.show(host, what);
        let line = text.lines().find_map(|line| line.strip_prefix(&peer.public));
        line.unwrap_or_else(|| panic!("no {} in {text}", peer.public)).trim().to_owned()
    }

    /// Bytes received from and sent to a peer.
    pub fn transfer(&self, host: &Host, peer: &Keys) -> [u64; 2] {
        let text = self.show_peer(host, "transfer", peer);
        let (received, sent) = text.split_once('\t').unwrap();
        [received, sent].map(|bytes| bytes.parse().unwrap())
    }

    /// Seconds, 0 before the first.
    pub fn latest_handshake(&self, host: &Host, peer: &Keys) -> u64 {
        self.show_peer(host, "latest-handshakes", peer).parse().unwrap()
    }

    pub fn endpoint(&self, host: &Host, peer: &Keys) -> String {
        self.show_peer(host, "endpoints", peer)
    }

    pub fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/wireguard/{}.sock", self.interface))
    }
}

/// Where the end on host 1 is found by host 0.
pub fn far_endpoint(family: Family) -> SocketAddr {
    SocketAddr::new(outer(family, 1, 2), PORT)
}

/// Two ends that know each other; only end 0 knows where the other is.
pub fn join(rig: &Rig, ends: &[End; 2], keys: &[Keys; 2], family: Family, psk: bool) {
    let psk = if psk { format!("preshared-key {}", keys[0].file("psk").display()) } else { String::new() };
    for (index, end) in ends.iter().enumerate() {
        let other = 1 - index;
        let endpoint = (index == 0).then(|| far_endpoint(family));
        end.meet(&rig.hosts[index], &keys[other], other as u8, endpoint, &psk);
    }
}

pub fn ours(rig: &Rig, options: &str) -> ([End; 2], [Keys; 2]) {
    let keys = [Keys::new(), Keys::new()];
    let start =
        |index: usize| End::start(Program::Ours, &rig.hosts[index], index as u8, &keys[index], options);
    let ends = [start(0), start(1)];
    join(rig, &ends, &keys, Family::V4, false);
    (ends, keys)
}

/// Packets of several sizes in both families, TCP both ways, and what `wg` says of it.
pub fn assert_it_carries(rig: &Rig, ends: &[End; 2]) {
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    for family in FAMILIES {
        for bytes in [100, 1420] {
            ping(near, inner(family, 1), 3, bytes);
            ping(far, inner(family, 0), 3, bytes);
        }
    }
    let iperf = Iperf::start(far);
    iperf.run(near, inner(Family::V4, 1), "--bytes 5M");
    iperf.run(near, inner(Family::V6, 1), "--bytes 5M --reverse");
    for (end, host) in ends.iter().zip(&rig.hosts) {
        let transfer = end.show(host, "transfer");
        let counts: Vec<u64> =
            transfer.split_whitespace().skip(1).map(|count| count.parse().unwrap()).collect();
        assert!(counts.iter().all(|count| *count > 1_000_000), "{transfer}");
        // boringtun tells how long ago, which is 0 for a while.
        let handshake = end.show(host, "latest-handshakes");
        assert!(end.program == Program::Boringtun || !handshake.trim_end().ends_with("\t0"), "{handshake}");
    }
}

pub fn installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    let there = found.status.success();
    assert!(
        there || std::env::var("CI").as_deref() != Ok("true"),
        "{program} is missing, scripts/test installs it"
    );
    there
}

//! The shipped program in the network namespace of a benchmark, with peers that each have one address.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use uringvpn::proto::keys::{PrivateKey, PublicKey};

/// Where it listens.
pub const PORT: u16 = 51820;

/// Its interface. Sockets lie in one directory whatever the network namespace, so the name must be nobody else's.
pub fn interface() -> String {
    format!("bn{}", std::process::id())
}

/// Runs a command that must succeed.
pub fn run(words: &str) {
    let mut words = words.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success());
}

/// What the operator of a peer has to know of it: the address inside the tunnel of the one with this number.
pub fn address(number: usize) -> Ipv4Addr {
    let [_, high, middle, low] = (number as u32 + 256).to_be_bytes();
    Ipv4Addr::new(10, high, middle, low)
}

/// The tunnel with its `key`, started by `before` and with `options`, knowing all `peers`. What it prints is in `files`/out.
pub fn start(before: &str, options: &str, files: &Path, key: &PrivateKey, peers: &[PublicKey]) -> Child {
    let file = |name: &str, text: &str| {
        let path = files.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let interface = interface();
    let key = file("key", &key.to_base64());
    let words = format!(
        "{before} {} -f --tun {interface} --private-key {key} --listen {PORT} --address 10.0.0.1/8 \
         --stats-interval 86400 {options}",
        env!("CARGO_BIN_EXE_uringvpn"),
    );
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    let out = fs::File::create(files.join("out")).unwrap();
    command.args(words).stdout(out.try_clone().unwrap()).stderr(out);
    let mut child = command.spawn().unwrap();
    let socket = format!("/var/run/wireguard/{interface}.sock");
    while !Path::new(&socket).exists() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "ended early: {:?}",
            fs::read_to_string(files.join("out"))
        );
        thread::sleep(Duration::from_millis(10));
    }
    let peers = peers.iter().enumerate();
    let config = peers
        .map(|(number, peer)| format!("[Peer]\nPublicKey = {peer}\nAllowedIPs = {}/32\n", address(number)));
    run(&format!("wg addconf {interface} {}", file("peers", &config.collect::<String>())));
    child
}

//! The configuration protocol on real sockets: a device made of nothing but its state, served to clients of every kind and
//! to the real `wg`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use proptest::prelude::*;
use tempfile::TempDir;
use uringvpn::control::uapi::{
    DeviceState, PeerChange, PeerState, Request, RequestLimits, RequestParser, RequestProblem, SetRequest,
    emit,
};
use uringvpn::control::uapi_socket::{ClientLimits, Command, DIRECTORY, Server, bind, serve_with};
use uringvpn::control::unix_socket::{Listener, SocketError, bind_in, from_fd};
use uringvpn::proto::keys::{PresharedKey, PrivateKey, PublicKey};
use uringvpn::time::WallTime;

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const ZERO_KEY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Does what a set says, field by field.
fn apply(state: &mut DeviceState, request: SetRequest) {
    if let Some(key) = request.private_key {
        state.private_key = key;
    }
    state.listen_port = request.listen_port.unwrap_or(state.listen_port);
    state.fwmark = request.fwmark.unwrap_or(state.fwmark);
    if request.replace_peers {
        state.peers.clear();
    }
    for change in request.peers {
        apply_to_peer(state, change);
    }
}

fn apply_to_peer(state: &mut DeviceState, change: PeerChange) {
    let known = state.peers.iter().position(|peer| peer.public_key == change.public_key);
    let index = match known {
        Some(index) if change.remove => {
            state.peers.remove(index);
            return;
        }
        Some(index) => index,
        None if change.remove || change.update_only => return,
        None => {
            state.peers.push(peer(change.public_key));
            state.peers.len() - 1
        }
    };
    if change.replace_allowed_ips {
        state.peers[index].allowed_ips.clear();
    }
    for ip in &change.allowed_ips {
        for (holder, peer) in state.peers.iter_mut().enumerate() {
            // Nobody can take away what another peer has, but everybody can take it over.
            if holder == index || !ip.remove {
                peer.allowed_ips.retain(|prefix| *prefix != ip.prefix);
            }
        }
        if !ip.remove {
            state.peers[index].allowed_ips.push(ip.prefix);
        }
    }
    let peer = &mut state.peers[index];
    peer.preshared_key = change.preshared_key.unwrap_or_else(|| peer.preshared_key.clone());
    peer.endpoint = change.endpoint.or(peer.endpoint);
    peer.persistent_keepalive = change.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
}

fn peer(public_key: PublicKey) -> PeerState {
    PeerState {
        public_key,
        preshared_key: PresharedKey::NONE,
        endpoint: None,
        last_handshake: WallTime::default(),
        tx_bytes: 0,
        rx_bytes: 0,
        persistent_keepalive: 0,
        allowed_ips: Vec::new(),
    }
}

/// A device with this many peers.
fn many_peers(count: u32) -> DeviceState {
    let key = |number: u32| PublicKey::from_bytes(std::array::from_fn(|at| number.to_be_bytes()[at % 4]));
    DeviceState { peers: (0..count).map(|number| peer(key(number))).collect(), ..DeviceState::default() }
}

/// A served device.
struct Device {
    server: Server,
    state: Arc<Mutex<DeviceState>>,
    path: PathBuf,
    /// Told when the socket file goes.
    removed: Receiver<()>,
    /// Goes last.
    _directory: Option<TempDir>,
}

impl Device {
    fn new() -> Device {
        Device::with(DeviceState::default(), ClientLimits::default())
    }

    fn with(state: DeviceState, limits: ClientLimits) -> Device {
        let directory = tempfile::tempdir().unwrap();
        let listener = bind_in(directory.path(), "wg0").unwrap();
        let path = directory.path().join("wg0.sock");
        Device { _directory: Some(directory), ..Device::served(listener, path, state, limits) }
    }

    fn served(listener: Listener, path: PathBuf, state: DeviceState, limits: ClientLimits) -> Device {
        let (commands, inbox) = bounded(0);
        let state = Arc::new(Mutex::new(state));
        let owned = Arc::clone(&state);
        // Ends when the server has dropped the last sender.
        std::thread::spawn(move || {
            for command in inbox {
                match command {
                    Command::Peers(_) => unreachable!("nobody watches here"),
                    Command::Get(reply) => drop(reply.send(Box::new(owned.lock().unwrap().clone()))),
                    Command::Set(request, reply) => {
                        apply(&mut owned.lock().unwrap(), *request);
                        let _ = reply.send(Ok(()));
                    }
                }
            }
        });
        let (tell, removed) = bounded(1);
        let server = serve_with(listener, commands, limits, move || tell.send(()).unwrap()).unwrap();
        Device { server, state, path, removed, _directory: None }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    fn state(&self) -> DeviceState {
        self.state.lock().unwrap().clone()
    }
}

/// The answer to one request: up to its blank line.
fn ask(stream: &mut UnixStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    read_answer(stream)
}

fn read_answer(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.ends_with(b"\n\n") {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "hung up after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..count]);
    }
    String::from_utf8(answer).unwrap()
}

/// Waits until the server has hung up, without reading.
fn wait_for_hangup(stream: &UnixStream) {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::NONE).unwrap();
}

fn is_hung_up(stream: &UnixStream, wait: PollTimeout) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, wait).unwrap() == 1
}

/// Requests that are wrong, each with the errno it deserves.
fn bad_requests() -> Vec<(String, Errno)> {
    let in_device = |line: &str| (format!("set=1\nlisten_port=7\n{line}\n\n"), Errno::EINVAL);
    let in_peer = |line: &str| (format!("set=1\nlisten_port=7\npublic_key={KEY}\n{line}\n\n"), Errno::EINVAL);
    let alone = |text: &str, errno| (text.to_owned(), errno);
    vec![
        in_device("frobnicate=1"),
        in_device("listen_port=65536"),
        in_device("listen_port=-1"),
        in_device("listen_port="),
        in_device("fwmark=4294967296"),
        in_device("fwmark=0x1"),
        in_device(&format!("private_key={}", &KEY[1..])),
        in_device(&format!("private_key={KEY}00")),
        in_device(&format!("private_key={}", KEY.replace('b', "g"))),
        in_device("replace_peers=false"),
        in_device(&format!("preshared_key={KEY}")),
        in_device("allowed_ip=10.0.0.0/8"),
        in_device(&format!("public_key={}", &KEY[2..])),
        in_device(&format!("fwmark=1\0\nprivate_key={ZERO_KEY}")),
        in_peer("listen_port=8"),
        in_peer("own_public_key=1"),
        in_peer("endpoint=vpn.example.org:51820"),
        in_peer("endpoint=192.0.2.7"),
        in_peer("allowed_ip=10.0.0.0/33"),
        in_peer("allowed_ip=::/129"),
        in_peer("allowed_ip=10.0.0.1"),
        in_peer("persistent_keepalive_interval=65536"),
        in_peer("protocol_version=2"),
        in_peer("remove=yes"),
        in_peer("update_only=1"),
        in_peer("replace_allowed_ips=TRUE"),
        in_peer(&format!("preshared_key={}", "x".repeat(1000))),
        alone("put=1\nlisten_port=7\n\n", Errno::EINVAL),
        alone("get=1\nlisten_port=7\n\n", Errno::EINVAL),
        alone("get=10\n\n", Errno::EINVAL),
        alone("\n", Errno::EINVAL),
        alone("set=1\nlisten_port=7\nfwmark\n\n", Errno::EPROTO),
        alone("set=1\nlisten_port=7\n\r\n", Errno::EPROTO),
        alone("set=1\r\nlisten_port=7\r\n\r\n", Errno::EINVAL),
    ]
}

#[test]
fn a_wrong_request_is_refused_as_a_whole_and_the_connection_goes_on() {
    let before = DeviceState { listen_port: 51820, fwmark: 9, ..many_peers(3) };
    let device = Device::with(before.clone(), ClientLimits::default());
    let mut stream = device.connect();
    for (request, errno) in bad_requests() {
        let expected = format!("errno={}\n\n", -(errno as i32));
        assert_eq!(ask(&mut stream, &request), expected, "{request:?}");
        assert_eq!(device.state(), before, "{request:?}");
    }
    assert_eq!(ask(&mut stream, "set=1\nlisten_port=7\n\n"), "errno=0\n\n");
    assert_eq!(device.state().listen_port, 7);
}

#[test]
fn a_request_that_ends_before_its_blank_line_changes_nothing() {
    let device = Device::new();
    let mut stream = device.connect();
    stream.write_all(b"set=1\nlisten_port=7\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(device.state(), DeviceState::default());
}

#[test]
fn several_requests_may_share_a_connection_and_come_byte_by_byte() {
    let device = Device::new();
    let mut stream = device.connect();
    let requests = format!("set=1\npublic_key={KEY}\nallowed_ip=10.0.0.9/8\n\nget=1\n\nput=1\n\n");
    for byte in requests.as_bytes() {
        stream.write_all(&[*byte]).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(
        answers,
        format!(
            "errno=0\n\nlisten_port=0\nfwmark=0\npublic_key={KEY}\npreshared_key={ZERO_KEY}\nprotocol_version=1\n\
             last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n\
             persistent_keepalive_interval=0\nallowed_ip=10.0.0.0/8\nerrno=0\n\nerrno=-22\n\n"
        )
    );
}

#[test]
fn lines_of_a_peer_mean_what_they_mean_in_their_order() {
    let device = Device::new();
    let mut stream = device.connect();
    let other = KEY.replace('b', "c");
    for request in [
        format!(
            "set=1\npublic_key={KEY}\nallowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=fd00::/8\n\n"
        ),
        format!(
            "set=1\npublic_key={other}\nallowed_ip=1.0.0.0/8\npublic_key={KEY}\npersistent_keepalive_interval=5\n\n"
        ),
        format!("set=1\npublic_key={other}\nallowed_ip=-fd00::/8\nremove=true\npublic_key={other}\n\n"),
        format!("set=1\npublic_key={ZERO_KEY}\nupdate_only=true\nallowed_ip=9.0.0.0/8\n\n"),
    ] {
        assert_eq!(ask(&mut stream, &request), "errno=0\n\n", "{request}");
    }
    let state = device.state();
    assert_eq!(state.peers.len(), 2);
    assert_eq!(state.peers[0].allowed_ips, ["fd00::/8".parse::<IpNet>().unwrap()]);
    assert_eq!(state.peers[0].persistent_keepalive, 5);
    assert_eq!(state.peers[1].allowed_ips, [], "removed and made again");
}

#[test]
fn zeros_take_the_private_key_away_and_it_is_read_back_clamped() {
    let device = Device::new();
    let mut stream = device.connect();
    ask(&mut stream, &format!("set=1\nprivate_key={}\n\n", "ff".repeat(32)));
    let clamped = format!("private_key=f8{}7f\n", "ff".repeat(30));
    assert!(ask(&mut stream, "get=1\n\n").starts_with(&clamped));
    ask(&mut stream, &format!("set=1\nprivate_key={ZERO_KEY}\n\n"));
    assert_eq!(ask(&mut stream, "get=1\n\n"), "listen_port=0\nfwmark=0\nerrno=0\n\n");
}

#[test]
fn a_request_beyond_the_limits_is_refused_before_it_is_held() {
    let limits = RequestLimits { bytes: 2000, peers: 2, allowed_ips: 2 };
    let problem = |text: &str| {
        let mut parser = RequestParser::new(limits, |_| None);
        parser.feed(&mut text.as_bytes()).unwrap().unwrap_err().problem
    };
    let peer = format!("public_key={KEY}\n");
    assert_eq!(problem(&format!("set=1\n{}\n", peer.repeat(3))), RequestProblem::TooMany("public_key"));
    let ips = "allowed_ip=::/0\n";
    assert_eq!(
        problem(&format!("set=1\n{peer}{ips}{peer}{ips}{ips}\n")),
        RequestProblem::TooMany("allowed_ip")
    );
    assert_eq!(problem(&format!("set=1\n{}", "fwmark=1\n".repeat(300))), RequestProblem::TooLarge);
}

#[test]
fn a_client_that_never_reads_holds_up_nobody_and_is_dropped() {
    // Long enough for the other, who reads a long answer on a busy machine.
    let limits = ClientLimits { stalled: Duration::from_secs(5), ..ClientLimits::default() };
    let device = Device::with(many_peers(20_000), limits);
    let mut deaf = device.connect();
    deaf.write_all(b"get=1\n\n").unwrap();
    let mut other = device.connect();
    for _ in 0..3 {
        assert_eq!(ask(&mut other, "get=1\n\n").matches("public_key=").count(), 20_000);
        assert_eq!(ask(&mut other, "set=1\nfwmark=4\n\n"), "errno=0\n\n");
    }
    wait_for_hangup(&deaf);
    let mut answer = String::new();
    deaf.read_to_string(&mut answer).unwrap();
    assert!(!answer.contains("errno="), "{} bytes", answer.len());
}

#[test]
fn a_client_that_reads_byte_by_byte_is_dropped_too() {
    let limits = ClientLimits { stalled: Duration::from_millis(300), ..ClientLimits::default() };
    let device = Device::with(many_peers(20_000), limits);
    let mut slow = device.connect();
    slow.write_all(b"get=1\n\n").unwrap();
    while !is_hung_up(&slow, PollTimeout::from(20u8)) {
        slow.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(ask(&mut device.connect(), "set=1\n\n"), "errno=0\n\n");
}

#[test]
fn a_client_that_says_nothing_is_dropped() {
    let limits = ClientLimits { idle: Duration::from_millis(100), ..ClientLimits::default() };
    let device = Device::with(DeviceState::default(), limits);
    let mut silent = device.connect();
    assert_eq!(silent.read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn a_thousand_connections_cost_the_idlest_their_place() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
    let device = Device::new();
    let mut clients: Vec<UnixStream> = (0..1000).map(|_| device.connect()).collect();
    let mut last = clients.split_off(1000 - 64);
    for (index, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.read(&mut [0; 10]).unwrap(), 0, "client {index}");
    }
    for client in &mut last {
        assert_eq!(ask(client, "set=1\n\n"), "errno=0\n\n");
    }
}

#[test]
fn a_client_that_hangs_up_during_its_answer_is_the_end_of_nothing_else() {
    let device = Device::with(many_peers(20_000), ClientLimits::default());
    for _ in 0..10 {
        let mut rude = device.connect();
        rude.write_all(b"get=1\n\nget=1\n\n").unwrap();
        rude.read_exact(&mut [0; 100]).unwrap();
    }
    assert_eq!(ask(&mut device.connect(), "set=1\n\n"), "errno=0\n\n");
}

#[test]
fn junk_without_an_end_holds_up_nobody() {
    let device = Device::new();
    let mut junk = device.connect();
    junk.set_nonblocking(true).unwrap();
    let mut other = device.connect();
    for _ in 0..200 {
        let _ = junk.write(&[b'='; 65536]);
        assert_eq!(ask(&mut other, "set=1\n\n"), "errno=0\n\n");
    }
}

#[test]
fn stopping_waits_for_no_client_and_for_no_owner() {
    let directory = tempfile::tempdir().unwrap();
    let listener = bind_in(directory.path(), "wg0").unwrap();
    // Nobody takes commands from the other end, as if the owner hung.
    let (commands, _inbox) = bounded(1);
    let (tell, removed) = bounded(1);
    let server = serve_with(listener, commands, ClientLimits::default(), move || tell.send(()).unwrap());
    let path = directory.path().join("wg0.sock");
    let mut clients: Vec<_> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for (client, text) in clients.iter_mut().zip(["", "set=1\nfwmark=", "get=1\n\n", "get=1\n\n"]) {
        client.write_all(text.as_bytes()).unwrap();
    }
    server.unwrap().stop();
    assert!(!path.exists());
    assert!(removed.recv().is_err(), "stopping is not a removal");
    for client in &mut clients {
        assert!(client.read(&mut [0; 10]).unwrap_or_default() == 0);
    }
}

#[test]
fn removing_moving_or_replacing_the_socket_file_is_noticed() {
    let ways: [fn(&Path); 3] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::rename(path, path.with_extension("moved")).unwrap(),
        |path| {
            let other = path.with_extension("other");
            drop(UnixListener::bind(&other).unwrap());
            fs::rename(other, path).unwrap();
        },
    ];
    for (index, go) in ways.into_iter().enumerate() {
        let device = Device::new();
        go(&device.path);
        device.removed.recv().unwrap();
        device.server.stop();
        assert_eq!(device.path.exists(), index == 2, "somebody else's socket stays");
    }
}

#[test]
fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wg0.sock");
    drop(UnixListener::bind(&path).unwrap());
    let listener = bind_in(directory.path(), "wg0").unwrap();
    assert_eq!(bind_in(directory.path(), "wg0").unwrap_err(), SocketError::InUse(path.clone()));
    drop(listener);
    assert!(!path.exists(), "a listener takes its file with it");
    fs::write(&path, "a file").unwrap();
    assert_eq!(bind_in(directory.path(), "wg0").unwrap_err(), SocketError::NotASocket(path));
}

#[test]
fn names_and_places_that_cannot_be_are_refused_in_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["../x", "", "a/b", "a b", "1234567890123456"] {
        let error = bind_in(directory.path(), name).unwrap_err();
        assert!(matches!(error, SocketError::Name(..)), "{name:?}: {error}");
    }
    let deep = directory.path().join("d".repeat(120));
    for place in [directory.path().join("no/such"), deep] {
        let error = bind_in(&place, "wg0").unwrap_err();
        assert!(matches!(error, SocketError::System { .. }), "{error}");
    }
    // Nobody makes directories there, not even root.
    let error = bind_in(Path::new("/sys/uringvpn"), "wg0").unwrap_err();
    assert!(matches!(error, SocketError::Permission(_)), "{error}");
}

#[test]
fn only_the_owner_may_connect_whatever_the_umask() {
    let root = geteuid().is_root();
    for mask in [0, 0o777].into_iter().take(if root { 2 } else { 1 }) {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("wireguard");
        let before = umask(Mode::from_bits_truncate(mask));
        let listener = bind_in(&directory, "wg0");
        umask(before);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&directory.join("wg0.sock")), 0o600, "umask {mask:o}");
        assert_eq!(mode(&directory), 0o755, "umask {mask:o}");
        drop(listener.unwrap());
    }
}

#[test]
fn a_listening_socket_can_be_handed_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("given.sock");
    let given = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let listener = from_fd(given).unwrap();
    let device = Device::served(listener, path.clone(), many_peers(1), ClientLimits::default());
    assert!(ask(&mut device.connect(), "get=1\n\n").contains("public_key="));
    device.server.stop();
    assert!(!path.exists());
}

#[test]
fn what_does_not_listen_is_refused() {
    let datagram = UnixDatagram::bind(tempfile::tempdir().unwrap().path().join("d")).unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    for descriptor in [OwnedFd::from(datagram), OwnedFd::from(file), OwnedFd::from(stream)] {
        assert_eq!(from_fd(descriptor).unwrap_err(), SocketError::NotListening);
    }
}

mod text {
    use super::*;

    /// States as a device can have them: no key and no prefix twice.
    fn states() -> impl Strategy<Value = DeviceState> {
        let v4 =
            (any::<u32>(), 1..=u16::MAX).prop_map(|(a, port)| SocketAddr::from((Ipv4Addr::from(a), port)));
        let v6 = (any::<u128>(), 1..=u16::MAX)
            .prop_map(|(a, port)| SocketAddr::from((Ipv6Addr::from(a | 1 << 125), port)));
        let prefix = prop_oneof![
            (any::<[u8; 4]>(), 0..=32u8).prop_map(|(a, bits)| IpNet::new(a.into(), bits).unwrap().trunc()),
            (any::<[u8; 16]>(), 0..=128u8).prop_map(|(a, bits)| IpNet::new(a.into(), bits).unwrap().trunc()),
        ];
        let keys = (any::<[u8; 32]>(), any::<[u8; 32]>());
        let one =
            (keys, prop::option::of(prop_oneof![v4, v6]), any::<u16>(), prop::collection::vec(prefix, 0..4))
                .prop_map(|((key, psk), endpoint, persistent_keepalive, allowed_ips)| PeerState {
                    preshared_key: PresharedKey::from_bytes(psk),
                    endpoint,
                    persistent_keepalive,
                    allowed_ips,
                    ..peer(PublicKey::from_bytes(key))
                });
        let key = prop::option::of(any::<[u8; 32]>().prop_map(PrivateKey::from_bytes));
        (key, any::<u16>(), any::<u32>(), prop::collection::vec(one, 0..5)).prop_map(
            |(private_key, listen_port, fwmark, mut peers)| {
                let mut seen = std::collections::HashSet::new();
                for peer in &mut peers {
                    peer.allowed_ips.retain(|prefix| seen.insert(*prefix));
                }
                DeviceState { private_key, listen_port, fwmark, peers }
            },
        )
    }

    /// Whether a line of a get's answer may stand in a set.
    fn is_setting(line: &str) -> bool {
        let facts = ["last_handshake", "tx_bytes", "rx_bytes", "errno"];
        !line.is_empty() && !facts.iter().any(|fact| line.starts_with(fact))
    }

    proptest! {
        #[test]
        fn the_answer_to_a_get_sets_the_same_state(state in states()) {
            let mut answer = Vec::new();
            emit(&state, &mut answer).unwrap();
            let answer = String::from_utf8(answer).unwrap();
            prop_assert!(answer.ends_with("\nerrno=0\n\n"));
            let lines = answer.lines().filter(|line| is_setting(line));
            let set: String = ["set=1", "replace_peers=true"].into_iter().chain(lines).map(|l| format!("{l}\n")).collect();
            let mut parser = RequestParser::new(RequestLimits::default(), |_| None);
            let Some(Ok(Request::Set(request))) = parser.feed(&mut format!("{set}\n").as_bytes()) else {
                return Err(TestCaseError::fail(set));
            };
            let mut same = many_peers(3);
            apply(&mut same, *request);
            prop_assert_eq!(DeviceState { private_key: state.private_key.clone(), ..same }, state);
        }
    }

    #[test]
    fn no_debug_output_and_no_error_shows_a_secret() {
        let mut parser = RequestParser::new(RequestLimits::default(), |_| None);
        let secrets = format!("set=1\nprivate_key={KEY}\npublic_key={ZERO_KEY}\npreshared_key={KEY}\n\n");
        let request = parser.feed(&mut secrets.as_bytes()).unwrap().unwrap();
        let wrong =
            parser.feed(&mut format!("set=1\nprivate_key={KEY}0\n\n").as_bytes()).unwrap().unwrap_err();
        for shown in [format!("{request:?}"), format!("{wrong} {wrong:?}")] {
            assert!(!shown.contains(&KEY[..8]) && !shown.contains("184, 89"), "{shown}");
        }
    }
}

mod tool {
    use super::*;

    /// A device where the real `wg` looks for it, or `None` if we are not root.
    fn device(name: &str) -> Option<(Device, String)> {
        if !geteuid().is_root() || Process::new("wg").arg("--version").output().is_err() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "needs root and wg, and CI=true forbids skipping"
            );
            eprintln!("SKIPPED: needs root, for {DIRECTORY}, and wireguard-tools");
            return None;
        }
        let name = format!("{name}{}", std::process::id());
        let listener = bind(&name).unwrap();
        let path = Path::new(DIRECTORY).join(format!("{name}.sock"));
        Some((Device::served(listener, path, DeviceState::default(), ClientLimits::default()), name))
    }

    /// What `wg` prints; it must succeed.
    fn wg(arguments: &[&str], input: &str) -> String {
        let mut child = Process::new("wg")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "wg {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

    /// A configuration as `wg showconf` prints it.
    fn configuration() -> String {
        format!(
            "[Interface]\nListenPort = 51820\nFwMark = 0x2a\nPrivateKey = {PRIVATE}\n\n\
             [Peer]\nPublicKey = {PEER}\nPresharedKey = {OTHER}\nAllowedIPs = 10.0.0.0/8, fd00::/64\n\
             Endpoint = [2001:db8::7]:51821\nPersistentKeepalive = 25\n\n\
             [Peer]\nPublicKey = {OTHER}\nAllowedIPs = 0.0.0.0/0\nEndpoint = 192.0.2.7:1\n"
        )
    }

    #[test]
    fn wg_sets_a_whole_configuration_and_shows_it_again() {
        let Some((_device, name)) = device("sc") else { return };
        wg(&["setconf", &name, "/dev/stdin"], &configuration());
        assert_eq!(wg(&["showconf", &name], "").trim(), configuration().trim());
        wg(&["syncconf", &name, "/dev/stdin"], &configuration());
        assert_eq!(wg(&["showconf", &name], "").trim(), configuration().trim());
        let fewer = configuration().split(&format!("[Peer]\nPublicKey = {OTHER}")).next().unwrap().to_owned();
        wg(&["syncconf", &name, "/dev/stdin"], &fewer);
        assert_eq!(wg(&["showconf", &name], "").trim(), fewer.trim());
        wg(&["addconf", &name, "/dev/stdin"], &format!("[Peer]\nPublicKey = {OTHER}\n"));
        assert_eq!(wg(&["show", &name, "peers"], "").trim(), format!("{PEER}\n{OTHER}"));
    }

    #[test]
    fn wg_shows_what_happened() {
        let Some((device, name)) = device("sh") else { return };
        wg(&["setconf", &name, "/dev/stdin"], &configuration());
        {
            let mut state = device.state.lock().unwrap();
            let peer = &mut state.peers[0];
            (peer.rx_bytes, peer.tx_bytes) = (u64::MAX, 5);
            peer.last_handshake = WallTime::from_parts(1_700_000_000, 1);
            peer.endpoint = Some("[fe80::1%1]:4".parse().unwrap());
        }
        assert_eq!(wg(&["show", &name, "transfer"], ""), format!("{PEER}\t{}\t5\n{OTHER}\t0\t0\n", u64::MAX));
        let handshakes = wg(&["show", &name, "latest-handshakes"], "");
        assert_eq!(handshakes, format!("{PEER}\t1700000000\n{OTHER}\t0\n"));
        assert!(wg(&["show", &name, "endpoints"], "").contains("[fe80::1%lo]:4"));
        assert!(wg(&["show", &name], "").contains("fwmark: 0x2a"));
        assert!(wg(&["show", "interfaces"], "").split_whitespace().any(|shown| shown == name));
    }

    #[test]
    fn wg_sets_single_values() {
        let Some((device, name)) = device("st") else { return };
        wg(&["set", &name, "listen-port", "7", "fwmark", "0x10", "private-key", "/dev/stdin"], PRIVATE);
        wg(&["set", &name, "peer", PEER, "allowed-ips", "10.0.0.9/8", "endpoint", "[fe80::1%lo]:9"], "");
        wg(
            &["set", &name, "peer", PEER, "persistent-keepalive", "off", "preshared-key", "/dev/stdin"],
            OTHER,
        );
        let state = device.state();
        assert_eq!((state.listen_port, state.fwmark), (7, 16));
        assert_eq!(state.private_key, Some(PRIVATE.parse().unwrap()));
        assert_eq!(state.peers[0].preshared_key, OTHER.parse().unwrap());
        assert_eq!(state.peers[0].endpoint, Some("[fe80::1%1]:9".parse().unwrap()));
        assert_eq!(state.peers[0].allowed_ips, ["10.0.0.0/8".parse::<IpNet>().unwrap()]);
        wg(&["set", &name, "private-key", "/dev/null", "peer", PEER, "remove"], "");
        assert_eq!(device.state(), DeviceState { listen_port: 7, fwmark: 16, ..DeviceState::default() });
    }

    #[test]
    fn the_socket_belongs_to_its_owner_alone() {
        let Some((device, _)) = device("mo") else { return };
        assert_eq!(fs::metadata(&device.path).unwrap().mode() & 0o777, 0o600);
    }
}

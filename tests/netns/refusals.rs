//! What stands in the way of a start: one clear sentence, exit code 1, nothing left behind; or a warning, and on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

use crate::kernel::forbid_io_uring;
use crate::rig::{Family, Host, Rig, inner, outer};
use crate::traffic::ping;
use crate::tunnel::{DRIVERS, PROGRAM, Pair, TUN, Tunnel, foreground};

/// Options that work on host 0 unless something is in the way.
const OPTIONS: &str = "--queues 2 --address 10.9.0.1/24 --address fd09::1/64 --peer 192.0.2.2:51820";

/// `command` must end with code 1 and one line that says why and contains all of `words`.
#[track_caller]
pub fn assert_refused(command: &mut Command, words: &[&str]) {
    let (status, output) = Tunnel::spawn(command).wait();
    assert_eq!(status.code(), Some(1), "{output}");
    let said: Vec<_> = output.lines().filter(|line| line.starts_with("uringvpn: ")).collect();
    assert_eq!(said.len(), 1, "{output}");
    assert_eq!(output.lines().last(), Some(said[0]), "{output}");
    for word in words {
        assert!(said[0].contains(word), "no {word:?} in: {}", said[0]);
    }
    assert!(!output.contains("panicked"), "{output}");
}

/// Like [`assert_refused`] for our command line on `host`; no interface and no socket of ours may be left.
#[track_caller]
fn assert_start_refused(host: &Host, wrapper: &[&str], options: &str, words: &[&str]) {
    let line = wrapper.iter().map(|word| (*word).to_owned()).chain(foreground(options));
    assert_refused(&mut host.command(line), words);
    assert!(!host.has_link(TUN));
    assert_eq!(host.run("ss -Hlun sport = :51820"), "");
}

#[test]
fn a_second_instance_is_refused_and_the_first_one_unharmed() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for io in DRIVERS {
        for queues in [1, 2] {
            let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues {queues}"));
            let other = format!("{PROGRAM} -f --plaintext --tun uvt1 --io {io} {OPTIONS}");
            assert_refused(&mut host.command(other.split_whitespace()), &["51820", "port in use"]);
            assert!(!host.has_link("uvt1"));
            let same = foreground(&format!("--io {io} --listen 51821 {OPTIONS}"));
            assert_refused(&mut host.command(same), &["uvt0", "in use by another program"]);
            assert!(host.has_link(TUN));
            ping(host, inner(Family::V4, 1), 20, 1420);
            for report in pair.stop() {
                assert_eq!(report.dropped_otherwise(&[]), 0, "{}", report.output);
            }
        }
    }
}

#[test]
fn a_port_that_somebody_shares_already_is_refused() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for any in ["0.0.0.0:51820", "[::]:51820", "192.0.2.1:51820"] {
        let foreign = host.inside(|| shared_socket(any.parse().unwrap()));
        assert_start_refused_with_socket(host, &["51820", "port in use"]);
        drop(foreign);
    }
    Tunnel::start(host, OPTIONS).stop();
}

#[track_caller]
fn assert_start_refused_with_socket(host: &Host, words: &[&str]) {
    assert_refused(&mut host.command(foreground(OPTIONS)), words);
    assert!(!host.has_link(TUN));
}

fn shared_socket(address: SocketAddr) -> UdpSocket {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    UdpSocket::from(socket)
}

#[test]
fn an_interface_that_is_not_ours_to_take_is_refused_and_left_alone() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for (create, words) in [
        ("ip tuntap add dev uvt0 mode tun", &["uvt0", "without multi_queue", "ip tuntap"][..]),
        ("ip tuntap add dev uvt0 mode tap multi_queue", &["uvt0", "not a TUN"]),
        ("ip link add uvt0 type veth peer name uvt9", &["uvt0", "not a TUN", "ip link delete"]),
    ] {
        host.run(create);
        assert_refused(&mut host.command(foreground(OPTIONS)), words);
        assert!(host.has_link(TUN), "{create}: removed by a refused start");
        host.run("ip link delete uvt0");
    }
}

#[test]
fn a_persistent_interface_is_attached_to_and_survives_us() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for io in DRIVERS {
        host.run("ip tuntap add dev uvt0 mode tun multi_queue");
        for _ in 0..3 {
            let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 2"));
            assert!(pair.near.output().contains("uvt0 attached with 2 queues"), "{}", pair.near.output());
            ping(host, inner(Family::V6, 1), 5, 1420);
            pair.stop();
            assert!(host.has_link(TUN));
        }
        host.run("ip link delete uvt0");
    }
}

#[test]
fn without_cap_net_admin_it_says_so_and_leaves_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let words = ["uvt0", "not permitted", "CAP_NET_ADMIN"];
    let without = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    assert_start_refused(host, &without, OPTIONS, &words);
    // Nobody may not look into the build directory.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = directory.path().join("uringvpn");
    std::fs::copy(PROGRAM, &copy).unwrap();
    let mut line = foreground(OPTIONS);
    line[0] = copy.to_str().unwrap().to_owned();
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all --inh-caps -all";
    let line: Vec<_> = nobody.split_whitespace().map(str::to_owned).chain(line).collect();
    // Where only root may open the device, that is what is refused first.
    let everybody = std::fs::metadata("/dev/net/tun").unwrap().permissions().mode() & 0o006 == 0o006;
    assert_refused(
        &mut host.command(line),
        if everybody { &words[..1] } else { &["/dev/net/tun", "EACCES"] },
    );
    assert!(!host.has_link(TUN));
}

/// A command line under a limit of locked memory; CAP_IPC_LOCK would make the limit meaningless.
fn with_memory_lock(limit_bytes: u32, options: &str) -> Vec<String> {
    let wrapper = format!(
        "setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock prlimit --memlock={limit_bytes}:{limit_bytes}"
    );
    wrapper.split_whitespace().map(str::to_owned).chain(foreground(options)).collect()
}

#[test]
fn where_it_may_lock_no_memory_it_warns_once_and_uses_system_calls() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let near = Tunnel::spawn(&mut host.command(with_memory_lock(0, &format!("--io auto {OPTIONS}"))));
    near.wait_up();
    let output = assert_works(&rig, near, "auto");
    // Linux 6.18 charges the rings themselves.
    let warnings = output.lines().filter(|line| line.contains(" WARN ") && line.contains("ENOMEM")).count();
    assert!(warnings <= 1, "{output}");
    let near = Tunnel::spawn(&mut host.command(with_memory_lock(0, &format!("--io syscall {OPTIONS}"))));
    near.wait_up();
    assert_works(&rig, near, "syscall");
}

#[test]
fn where_it_may_lock_too_little_memory_it_works_all_the_same() {
    let Some(rig) = Rig::pair() else { return };
    let options = format!("--io auto --queues 4 {}", OPTIONS.trim_start_matches("--queues 2 "));
    // One ring fits into some of these, four do not.
    for kibibytes in [8, 32, 64, 96, 128, 256] {
        let line = with_memory_lock(kibibytes << 10, &options);
        let near = Tunnel::spawn(&mut rig.hosts[0].command(line));
        near.wait_up();
        let output = assert_works(&rig, near, "auto");
        // At the start if there is no ring at all, else of the first worker that gets none.
        let refused = |line: &&str| line.contains(" WARN uvt0: uring is ") && line.contains("ENOMEM");
        assert!(output.lines().filter(refused).count() <= 1, "{output}");
    }
}

/// Gives the tunnel on host 0 a peer, and pings.
#[track_caller]
fn assert_works(rig: &Rig, near: Tunnel, io: &str) -> String {
    let to = outer(Family::V4, 1, 1);
    let options =
        format!("--io {io} --queues 2 --address 10.9.0.2/24 --address fd09::2/64 --peer {to}:51820");
    let pair = Pair { far: Tunnel::start(&rig.hosts[1], &options), near };
    pair.wait_reachable(rig);
    for family in crate::rig::FAMILIES {
        ping(&rig.hosts[0], inner(family, 1), 10, 1420);
    }
    let [near, _] = pair.stop();
    assert_eq!(near.dropped_otherwise(&[]), 0, "{}", near.output);
    near.output
}

#[test]
fn where_io_uring_is_forbidden_it_warns_once_and_uses_system_calls() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for errno in [Errno::EPERM, Errno::ENOSYS] {
        let mut command = host.command(foreground(&format!("--io auto {OPTIONS}")));
        forbid_io_uring(&mut command, errno);
        let near = Tunnel::spawn(&mut command);
        near.wait_up();
        let output = assert_works(&rig, near, "auto");
        let warnings: Vec<_> = output.lines().filter(|line| line.contains(" WARN ")).collect();
        assert_eq!(warnings.len(), 2, "{output}");
        assert!(warnings[0].contains("plaintext"), "{output}");
        for word in ["io_uring", &format!("{errno:?}"), "seccomp", "plain system calls"] {
            assert!(warnings[1].contains(word), "no {word:?} in: {}", warnings[1]);
        }

        let mut command = host.command(foreground(&format!("--io uring {OPTIONS}")));
        forbid_io_uring(&mut command, errno);
        assert_refused(&mut command, &["io_uring", &format!("{errno:?}"), "seccomp"]);
        assert!(!host.has_link(TUN));
    }
}

#[test]
fn a_peer_whose_name_nobody_knows_is_refused() {
    let Some(rig) = Rig::pair() else { return };
    let options = "--queues 2 --address 10.9.0.1/24 --peer no-such-host.invalid:51820";
    let words = ["no-such-host.invalid:51820", "cannot be resolved"];
    assert_start_refused(&rig.hosts[0], &[], options, &words);
}

#[test]
fn without_dev_net_tun_it_says_what_to_do() {
    let Some(rig) = Rig::pair() else { return };
    let script = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
    assert_start_refused(&rig.hosts[0], &wrapper, OPTIONS, &["/dev/net/tun", "ENOENT", "modprobe tun"]);
}

#[test]
fn a_listening_address_of_another_host_is_refused() {
    let Some(rig) = Rig::pair() else { return };
    let options = format!("{OPTIONS} --listen 203.0.113.5:51820");
    assert_start_refused(&rig.hosts[0], &[], &options, &["203.0.113.5", "not an address of this host"]);
}

#[test]
fn a_low_port_without_the_right_to_it_is_refused() {
    let Some(rig) = Rig::pair() else { return };
    let without = ["setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service"];
    let options = format!("{OPTIONS} --listen 80");
    assert_start_refused(
        &rig.hosts[0],
        &without,
        &options,
        &[":80", "not permitted", "CAP_NET_BIND_SERVICE"],
    );
}

#[test]
fn a_peer_of_a_family_that_we_do_not_listen_on_is_refused() {
    let Some(rig) = Rig::pair() else { return };
    let options = "--queues 2 --listen 192.0.2.1:51820 --peer [2001:db8:1::2]:51820";
    assert_start_refused(&rig.hosts[0], &[], options, &["2001:db8:1::2", "address family"]);
}

#[test]
fn a_host_without_ipv6_carries_ipv4() {
    let Some(rig) = Rig::pair() else { return };
    for host in &rig.hosts {
        host.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    }
    for io in DRIVERS {
        let ends = [(0, 1), (1, 0)].map(|(here, there): (usize, u8)| {
            let address: IpAddr = Ipv4Addr::new(10, 9, 0, here as u8 + 1).into();
            let peer = outer(Family::V4, 1, there + 1);
            Tunnel::start(
                &rig.hosts[here],
                &format!("--io {io} --queues 2 --address {address}/24 --peer {peer}:51820"),
            )
        });
        ping(&rig.hosts[0], inner(Family::V4, 1), 5, 1420);
        ends.into_iter().for_each(|end| drop(end.stop()));
    }
}

//! Which of its addresses an encrypted tunnel sends from, and hosts that have addresses of one family only.

use std::net::{IpAddr, SocketAddr};

use crate::ends::{End, Keys, PORT, Program, far_endpoint, interface, join, ours};
use crate::kernel::forbid_ipv6_sockets;
use crate::rig::{FAMILIES, Family, Host, Rig, inner, outer, wait_equal, wait_until};
use crate::traffic::{Sample, is_silent, ping, reaches};

/// A second address of the far host.
fn second(family: Family) -> IpAddr {
    outer(family, 1, 12)
}

fn add_address(host: &Host, address: IpAddr, link: &str) {
    let bits = if address.is_ipv4() { "/24" } else { "/64 nodad" };
    host.run(&format!("ip address add {address}{bits} dev {link}"));
}

fn remove_address(host: &Host, address: IpAddr, link: &str) {
    let bits = if address.is_ipv4() { "24" } else { "64" };
    host.run(&format!("ip address del {address}/{bits} dev {link}"));
}

/// Both ends and their hosts; the near one reaches the far one.
struct Joined {
    rig: Rig,
    ends: [End; 2],
    keys: [Keys; 2],
}

impl Joined {
    fn start() -> Option<Joined> {
        let rig = Rig::pair()?;
        let (ends, keys) = ours(&rig, "--queues 2");
        wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
        Some(Joined { rig, ends, keys })
    }

    fn near(&self) -> &Host {
        &self.rig.hosts[0]
    }

    fn far(&self) -> &Host {
        &self.rig.hosts[1]
    }

    /// The near end is told where the far one is.
    fn direct(&self, address: IpAddr) {
        let endpoint = SocketAddr::new(address, PORT);
        self.ends[0].wg(self.near(), &format!("peer {} endpoint {endpoint}", self.keys[1].public));
    }

    fn far_as_seen(&self) -> String {
        self.ends[0].endpoint(self.near(), &self.keys[1])
    }

    fn near_as_seen(&self) -> String {
        self.ends[1].endpoint(self.far(), &self.keys[0])
    }
}

#[test]
fn an_answer_leaves_from_the_address_that_was_addressed() {
    let Some(joined) = Joined::start() else { return };
    let [near, far] = [joined.near(), joined.far()];
    // An address on an interface that the answer does not leave through.
    let elsewhere: IpAddr = "203.0.113.1".parse().unwrap();
    far.run(&format!("ip address add {elsewhere}/32 dev lo"));
    near.run(&format!("ip route add {elsewhere} via {}", outer(Family::V4, 1, 2)));
    for family in FAMILIES {
        add_address(far, second(family), "veth0");
    }
    let [v4, v6] = FAMILIES;
    for address in [outer(v4, 1, 2), outer(v6, 1, 2), second(v4), second(v6), elsewhere, outer(v4, 1, 2)] {
        joined.direct(address);
        let expected = SocketAddr::new(address, PORT).to_string();
        ping(near, inner(Family::V4, 1), 3, 100);
        assert_eq!(joined.far_as_seen(), expected, "after an answer");
        ping(far, inner(Family::V6, 0), 3, 100);
        assert_eq!(joined.far_as_seen(), expected, "after the far end spoke of its own accord");
        assert!(!joined.near_as_seen().contains("203.0.113."));
    }
}

#[test]
fn the_response_of_a_handshake_leaves_from_the_address_that_was_addressed() {
    let Some(joined) = Joined::start() else { return };
    for family in FAMILIES {
        add_address(joined.far(), second(family), "veth0");
        joined.direct(second(family));
        // Without sessions the next packet begins a handshake, and the first message back is its response.
        let interface = &joined.ends[0].interface;
        joined.near().run(&format!("ip link set {interface} down"));
        joined.near().run(&format!("ip link set {interface} up"));
        wait_until("an answer", || reaches(joined.near(), inner(Family::V4, 1)));
        assert_eq!(joined.far_as_seen(), SocketAddr::new(second(family), PORT).to_string());
    }
}

#[test]
fn an_address_that_was_removed_is_left_for_another_without_losing_a_packet() {
    let Some(joined) = Joined::start() else { return };
    let [near, far] = [joined.near(), joined.far()];
    for (host, link) in [(near, "to-b"), (far, "veth0")] {
        // Otherwise the second address of a network goes with the first.
        host.run(&format!("sysctl -qw net.ipv4.conf.{link}.promote_secondaries=1"));
    }
    for family in FAMILIES {
        // The one that begins.
        joined.direct(outer(family, 1, 2));
        ping(near, inner(Family::V4, 1), 2, 100);
        add_address(near, outer(family, 1, 10), "to-b");
        remove_address(near, outer(family, 1, 1), "to-b");
        ping(near, inner(Family::V4, 1), 2, 100);
        let moved = SocketAddr::new(outer(family, 1, 10), PORT).to_string();
        wait_equal("the endpoint", moved, || joined.near_as_seen());
        // The one that answers.
        add_address(far, second(family), "veth0");
        joined.direct(second(family));
        ping(near, inner(Family::V4, 1), 2, 100);
        remove_address(far, second(family), "veth0");
        ping(far, inner(Family::V4, 0), 2, 100);
        wait_equal("the endpoint", far_endpoint(family).to_string(), || joined.far_as_seen());
        add_address(near, outer(family, 1, 1), "to-b");
        remove_address(near, outer(family, 1, 10), "to-b");
        wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    }
}

/// Pings and bytes over IPv4, with an end on host 0 that was started in a special way.
fn carries_ipv4(rig: &Rig, keys: [Keys; 2], near: End) {
    let ends = [near, End::start(Program::Ours, &rig.hosts[1], 1, &keys[1], "--queues 2")];
    let near = &rig.hosts[0];
    near.run(&format!("ip address add {}/24 dev {}", inner(Family::V4, 0), ends[0].interface));
    near.run(&format!("ip link set {} mtu 1420 up", ends[0].interface));
    join(rig, &ends, &keys, Family::V4, false);
    // An endpoint that cannot be reached from here does no harm.
    ends[0].wg(near, &format!("peer {} endpoint {}", keys[1].public, far_endpoint(Family::V6)));
    assert!(is_silent(near, inner(Family::V4, 1)));
    ends[0].wg(near, &format!("peer {} endpoint {}", keys[1].public, far_endpoint(Family::V4)));
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let sample = Sample::new(3_000_000);
    sample.cross(near, &rig.hosts[1], inner(Family::V4, 1));
    sample.cross(&rig.hosts[1], near, inner(Family::V4, 0));
    for end in ends {
        end.process.stop();
    }
}

#[test]
fn a_host_whose_ipv6_is_disabled_has_a_tunnel_over_ipv4() {
    let Some(rig) = Rig::pair() else { return };
    rig.hosts[0].inside(|| {
        for scope in ["all", "default", "lo", "to-b"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
    });
    let keys = [Keys::new(), Keys::new()];
    let near = End::open(Program::Ours, &rig.hosts[0], &keys[0], "--queues 2", PORT);
    carries_ipv4(&rig, keys, near);
}

#[test]
fn a_host_without_ipv6_sockets_has_a_tunnel_over_ipv4() {
    let Some(rig) = Rig::pair() else { return };
    for io in crate::tunnel::DRIVERS {
        let keys = [Keys::new(), Keys::new()];
        let interface = interface();
        let words = Program::Ours.words(&interface, &format!("--queues 2 --io {io}"));
        let mut command = rig.hosts[0].command(words.split_whitespace());
        forbid_ipv6_sockets(&mut command);
        let near = End::launch(Program::Ours, &rig.hosts[0], &interface, &mut command, &keys[0], PORT);
        carries_ipv4(&rig, keys, near);
    }
}

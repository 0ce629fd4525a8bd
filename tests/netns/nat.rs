//! The encrypted tunnel through a router that translates addresses and forgets what is silent.
//!
//! ```text
//!  client (host 1)             router (host 0)                     server (host 2)
//!  192.0.2.2 ───────────────── 192.0.2.1 │ 198.51.100.1 ────────── 198.51.100.2
//!                                 translates ──▶ 198.51.100.1
//! ```

use std::fs;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use crate::ends::{End, Keys, PORT, Program};
use crate::filter;
use crate::rig::{Family, Host, Rig, inner, outer, wait_equal, wait_until};
use crate::traffic::{is_silent, ping, reaches};

/// How long the router knows who does not speak.
const FORGETS_SECONDS: u64 = 4;

struct Natted {
    rig: Rig,
    client: End,
    server: End,
    /// Of the client and the server.
    keys: [Keys; 2],
}

impl Natted {
    /// `words` is what the client says of its peer beside the endpoint.
    fn start(words: &str) -> Option<Natted> {
        let rig = Rig::three()?;
        let [router, client_host, server_host] = [&rig.hosts[0], &rig.hosts[1], &rig.hosts[2]];
        router.inside(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            // Conntrack, and these files with it, come with the first rule that needs it.
        });
        translate(router, "");
        router.inside(|| {
            for file in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
                fs::write(format!("/proc/sys/net/netfilter/{file}"), FORGETS_SECONDS.to_string()).unwrap();
            }
        });
        client_host.run(&format!("ip route add default via {}", outer(Family::V4, 1, 1)));
        let keys = [Keys::new(), Keys::new()];
        let client = End::start(Program::Ours, client_host, 0, &keys[0], "--queues 2");
        let server = End::start(Program::Ours, server_host, 1, &keys[1], "--queues 2");
        server.meet(server_host, &keys[0], 0, None, "");
        let endpoint = SocketAddr::new(outer(Family::V4, 2, 2), PORT);
        client.meet(client_host, &keys[1], 1, Some(endpoint), words);
        let natted = Natted { rig, client, server, keys };
        wait_until("an answer", || reaches(natted.client_host(), inner(Family::V4, 1)));
        Some(natted)
    }

    fn router(&self) -> &Host {
        &self.rig.hosts[0]
    }

    fn client_host(&self) -> &Host {
        &self.rig.hosts[1]
    }

    fn server_host(&self) -> &Host {
        &self.rig.hosts[2]
    }

    /// Where the server believes the client to be.
    fn seen(&self) -> String {
        self.server.endpoint(self.server_host(), &self.keys[0])
    }
}

/// From now on the client's datagrams leave the router from `port`, any if it is empty; what was known of them is forgotten.
fn translate(router: &Host, port: &str) {
    filter::load(
        router,
        &format!(
            "chain post {{ type nat hook postrouting priority srcnat;
             ip protocol udp oifname to-c masquerade {port}; }}"
        ),
    );
    router.run("conntrack -F");
}

#[test]
fn a_client_behind_nat_stays_reachable_by_its_keepalives_and_only_by_them() {
    let Some(natted) = Natted::start("persistent-keepalive 1") else { return };
    assert_eq!(natted.seen(), format!("{}:{PORT}", outer(Family::V4, 2, 1)));
    let [client_host, server_host] = [natted.client_host(), natted.server_host()];
    sleep(Duration::from_secs(FORGETS_SECONDS + 1));
    // The router still knows the client.
    ping(server_host, inner(Family::V4, 0), 1, 100);
    natted.client.wg(client_host, &format!("peer {} persistent-keepalive 0", natted.keys[1].public));
    sleep(Duration::from_secs(FORGETS_SECONDS + 2));
    assert!(is_silent(server_host, inner(Family::V4, 0)), "the router should have forgotten the client");
    wait_until("an answer once the client speaks", || reaches(client_host, inner(Family::V4, 1)));
    ping(server_host, inner(Family::V4, 0), 1, 100);
}

#[test]
fn a_new_translation_costs_at_most_one_packet_in_either_direction() {
    let Some(natted) = Natted::start("") else { return };
    for port in 40_001..40_009 {
        translate(natted.router(), &format!("to :{port}"));
        // The first packet may be lost. When each of the server's workers knows by it where the client is, no other.
        reaches(natted.client_host(), inner(Family::V4, 1));
        wait_equal("the endpoint", format!("{}:{port}", outer(Family::V4, 2, 1)), || natted.seen());
        ping(natted.client_host(), inner(Family::V4, 1), 5, 100);
        reaches(natted.server_host(), inner(Family::V4, 0));
        ping(natted.server_host(), inner(Family::V4, 0), 5, 100);
        assert_eq!(natted.seen(), format!("{}:{port}", outer(Family::V4, 2, 1)));
    }
}

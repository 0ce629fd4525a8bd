//! What the kernel does for a tunnel: every switch takes effect, a refusal is logged once, and `show` tells all of it.

use std::net::UdpSocket;

use serde_json::Value;

use crate::modes::{EVERYTHING, Ends, MODES, Mode};
use crate::rig::{FAMILIES, Family, Host, Rig, inner, wait_until};
use crate::traffic::{Sample, ping, udp_trains_in_order};
use crate::tunnel::{DRIVERS, PROGRAM, Report};

/// What the tunnel with the interface `link` tells.
fn told(host: &Host, link: &str) -> Value {
    serde_json::from_str(&host.run(&format!("{PROGRAM} show {link} --json"))).unwrap()
}

/// State and cause of `offload`.
#[track_caller]
fn state(told: &Value, offload: &str) -> (String, String) {
    let row = told["offloads"].as_array().unwrap().iter().find(|row| row["offload"] == offload).unwrap();
    assert!(row["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{row}");
    (row["state"].as_str().unwrap().to_owned(), row["cause"].as_str().unwrap().to_owned())
}

fn is(state: &str, cause: &str) -> (String, String) {
    (state.to_owned(), cause.to_owned())
}

/// TCP and UDP superpackets from host 0 to host 1.
fn superpackets(rig: &Rig, sample: &Sample) {
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    sample.cross(near, far, inner(Family::V4, 1));
    udp_trains_in_order(near, far, inner(Family::V6, 1), 1000);
}

/// Every offload that is told is used, and every other is not.
#[track_caller]
fn assert_used(disabled: &[&str], [near, far]: &[Report; 2]) {
    let on = |offload| !disabled.contains(&offload);
    let several = |report: &Report, packets, calls| report.total(packets) > report.total(calls);
    let superpackets = on("tso") || on("uso");
    assert_eq!(several(near, "out_packets", "tun_reads"), superpackets, "{disabled:?}: {}", near.output);
    assert_eq!(several(far, "written_packets", "tun_writes"), superpackets, "{disabled:?}: {}", far.output);
    assert_eq!(several(near, "sent_datagrams", "trains"), on("gso"), "{disabled:?}: {}", near.output);
    if !on("gro") {
        assert!(!several(far, "in_datagrams", "receives"), "{disabled:?}: {}", far.output);
    } else if on("gso") {
        assert!(several(far, "in_datagrams", "receives"), "{disabled:?}: {}", far.output);
    }
}

#[test]
fn every_switch_takes_effect_and_is_told() {
    let Some(rig) = Rig::pair() else { return };
    let sample = Sample::new(1_000_000);
    let ring_parts = ["defer-taskrun", "multishot-read"];
    for switch in ["", "tso,uso", "gso", "gro", "steering", "defer-taskrun,multishot-read", "uring"] {
        let options = match switch {
            "" => "--io uring --queues 2".to_owned(),
            "uring" => "--io syscall --queues 2".to_owned(),
            _ => format!("--io uring --queues 2 --disable {switch}"),
        };
        let disabled: Vec<_> = switch.split(',').collect();
        let ends = Ends::start(&rig, Mode::Sealed, &options, EVERYTHING);
        let told = told(&rig.hosts[0], &ends.links[0]);
        for row in told["offloads"].as_array().unwrap() {
            let offload = row["offload"].as_str().unwrap();
            let expected = match offload {
                _ if disabled.contains(&offload) => is("off", "switch"),
                _ if switch == "uring" && ring_parts.contains(&offload) => is("off", "unneeded"),
                _ => is("on", "none"),
            };
            assert_eq!(state(&told, offload), expected, "{options}: {offload}");
        }
        superpackets(&rig, &sample);
        assert_used(&disabled, &ends.stop());
    }
}

#[test]
fn a_single_kind_of_superpacket_can_be_switched_off() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(1_000_000);
    for switch in ["tso", "uso"] {
        let ends = Ends::start(&rig, Mode::Plain, &format!("--queues 1 --disable {switch}"), EVERYTHING);
        let told = told(near, &ends.links[0]);
        assert_eq!(state(&told, switch), is("off", "switch"));
        assert_eq!(state(&told, "steering"), is("off", "unneeded"));
        match switch {
            "tso" => sample.cross(near, far, inner(Family::V4, 1)),
            _ => udp_trains_in_order(near, far, inner(Family::V6, 1), 1000),
        }
        let [near, far] = ends.stop();
        assert_eq!(near.total("tun_reads"), near.total("out_packets"), "{}", near.output);
        assert_eq!(far.total("tun_writes"), far.total("written_packets"), "{}", far.output);
    }
}

/// Datagrams from many ports that all belong to the first of two workers; how many the second one got.
fn strays(rig: &Rig, switches: &str) -> u64 {
    const DATAGRAMS: u64 = 200;
    let ends = Ends::start(rig, Mode::Plain, &format!("--queues 2 {switches}"), EVERYTHING);
    let near = &rig.hosts[0];
    let received = || {
        let told = told(near, &ends.links[0]);
        [0, 1].map(|worker| told["workers"][worker]["counters"]["in_datagrams"].as_u64().unwrap())
    };
    let before = received();
    for port in (20_000..).step_by(2).take(DATAGRAMS as usize) {
        let socket = rig.hosts[1].inside(|| UdpSocket::bind(("192.0.2.2", port)).unwrap());
        socket.send_to(&[0; 100], "192.0.2.1:51820").unwrap();
    }
    wait_until("all datagrams", || received().iter().sum::<u64>() >= before.iter().sum::<u64>() + DATAGRAMS);
    let strays = received()[1] - before[1];
    ends.stop();
    strays
}

#[test]
fn without_steering_the_kernels_hash_chooses_the_worker() {
    let Some(rig) = Rig::pair() else { return };
    // The kernel of the other end may have a few packets of its own to send, by its second worker.
    let [steered, hashed] = ["", "--disable steering"].map(|switches| strays(&rig, switches));
    assert!(steered < 20, "{steered} of 200 datagrams came to the wrong worker");
    // A fair coin for each: 50 is seven standard deviations below the mean.
    assert!(hashed > 50, "{hashed} of 200 datagrams came to the other worker");
}

#[test]
fn a_path_too_narrow_for_trains_is_logged_once_and_told() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(1_000_000);
    near.run("ip route add 192.0.2.2/32 dev to-b mtu 1300");
    for (mode, io) in MODES.into_iter().zip(DRIVERS) {
        let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2"), EVERYTHING);
        let link = &ends.links[0].clone();
        assert_eq!(state(&told(near, link), "gso"), is("on", "none"));
        for _ in 0..4 {
            sample.cross(near, far, inner(Family::V4, 1));
        }
        let (downgraded, cause) = state(&told(near, link), "gso");
        // Linux says EMSGSIZE since 6.14.
        assert!(downgraded == "downgraded" && ["EMSGSIZE", "EINVAL"].contains(&cause.as_str()), "{cause}");
        assert_eq!(state(&told(far, &ends.links[1]), "gso"), is("on", "none"));
        let page = near.run(&format!("{PROGRAM} show {link}"));
        let line = page.lines().find(|line| line.trim_start().starts_with("gso")).unwrap();
        for part in ["downgraded", " ago: ", &cause, "the path to 192.0.2.2:51820 is too narrow"] {
            assert!(line.contains(part), "no {part:?} in: {line}");
        }
        let top = near.run(&format!("{PROGRAM} top {link} --plain --count 1 --interval 0.1"));
        assert!(top.contains(&format!("\noffloads  gso DOWNGRADED: {cause} ")), "{top}");
        let [near_report, _] = ends.stop();
        assert!(near_report.total("train_retries") > 0, "{}", near_report.output);
        let logged: Vec<_> = near_report.output.lines().filter(|line| line.contains("downgraded")).collect();
        assert_eq!(logged.len(), 1, "{}", near_report.output);
        for part in [" WARN ", link, "gso is downgraded", &cause, "192.0.2.2:51820", "leave one by one"] {
            assert!(logged[0].contains(part), "no {part:?} in: {}", logged[0]);
        }
    }
}

#[test]
fn a_tunnel_tells_how_it_is_set_up_also_after_a_change() {
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    for (mode, io) in MODES.into_iter().zip(DRIVERS) {
        let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2 --mtu 1400"), EVERYTHING);
        let link = ends.links[0].as_str();
        let settings = || told(near, link)["settings"].clone();
        let now = settings();
        let name = if mode == Mode::Plain { "plaintext" } else { "encrypted" };
        assert_eq!(now["pid"], ends.pair.near.pid().as_raw());
        assert_eq!((now["mode"].as_str(), &now["queues"]), (Some(name), &2.into()));
        assert_eq!(now["drivers"], serde_json::json!([io]));
        assert_eq!((&now["mtu"], &now["listen_port"]), (&1400.into(), &51820.into()));
        let kernel = near.run("uname -r");
        assert!(now["kernel"].as_str().unwrap().contains(kernel.trim()), "{now}");
        near.run(&format!("ip link set {link} mtu 1300"));
        wait_until("the new MTU", || settings()["mtu"] == 1300);
        if mode == Mode::Sealed {
            near.run(&format!("wg set {link} listen-port 51999"));
            assert_eq!(settings()["listen_port"], 51999);
        }
        let page = near.run(&format!("{PROGRAM} show {link}"));
        for part in [name, &format!("driver {io}"), "MTU 1300", kernel.trim()] {
            assert!(page.lines().nth(1).unwrap().contains(part), "no {part:?} in\n{page}");
        }
        for family in FAMILIES {
            ping(near, inner(family, 1), 2, 1300);
        }
        ends.stop();
    }
}

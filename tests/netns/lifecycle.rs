//! Starting, stopping, and what happens to the interface meanwhile.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uringvpn::stats::drop::DropReason;

use crate::rig::{Family, Host, Rig, inner, outer, wait_until};
use crate::traffic::{Iperf, Stream, is_silent, ping, reaches};
use crate::tunnel::{DRIVERS, PROGRAM, Pair, TUN, Tunnel};

/// The end of host 0, for tests that start it more than once.
fn near_options(io: &str) -> String {
    let peer = outer(Family::V4, 1, 2);
    format!("--io {io} --queues 2 --address 10.9.0.1/24 --address fd09::1/64 --peer {peer}:51820")
}

#[test]
fn sigterm_and_sigint_end_it_with_code_0_and_the_interface_is_gone() {
    let Some(rig) = Rig::pair() else { return };
    for io in DRIVERS {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            for loaded in [false, true] {
                let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 2"));
                let streams =
                    loaded.then(|| [Stream::start(&rig.hosts[0], 0, 1), Stream::start(&rig.hosts[1], 1, 0)]);
                if loaded {
                    thread::sleep(Duration::from_millis(100));
                }
                let (_, took) = pair.near.end(signal);
                println!("{io}, {signal}, loaded {loaded}: {:.1} ms", took.as_secs_f64() * 1e3);
                assert!(!rig.hosts[0].has_link(TUN), "{io}: still there when the process has ended");
                drop(streams);
                pair.far.stop();
            }
        }
    }
}

#[test]
fn a_full_load_of_tcp_is_finished_with_and_accounted_for_when_it_ends() {
    let Some(rig) = Rig::pair_alone() else { return };
    for io in DRIVERS {
        for round in 0..4 {
            // A new server: the old one waits for a client that is gone.
            let iperf = Iperf::start(&rig.hosts[1]);
            let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 2"));
            let direction = if round % 2 == 0 { "" } else { "--reverse" };
            let client = iperf.start_client(
                &rig.hosts[0],
                inner(Family::V4, 1),
                &format!("--time 30 --parallel 4 {direction}"),
            );
            let received = || rig.hosts[0].statistic(TUN, "rx_packets");
            let before = received();
            wait_until("load", || received() > before + 1000);
            let (near, took) = pair.near.end(Signal::SIGTERM);
            println!("{io} {direction}: {:.1} ms", took.as_secs_f64() * 1e3);
            assert!(near.total("in_datagrams") > 100, "{}", near.output);
            pair.far.stop();
            drop(client);
        }
    }
}

#[test]
fn it_starts_again_at_once_ten_times_in_a_row() {
    let Some(rig) = Rig::pair() else { return };
    for io in DRIVERS {
        let Pair { mut near, far } = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 2"));
        for _ in 0..10 {
            near.stop();
            near = Tunnel::start(&rig.hosts[0], &near_options(io));
            wait_until("ping after a restart", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
        }
        near.stop();
        far.stop();
    }
}

#[test]
fn it_starts_again_at_once_after_sigkill() {
    let Some(rig) = Rig::pair() else { return };
    for io in DRIVERS {
        let Pair { mut near, far } = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 2"));
        for round in 0..5 {
            kill(near.pid(), Signal::SIGKILL).unwrap();
            let (status, output) = near.wait();
            assert_eq!(status.code(), None, "{output}");
            near = Tunnel::start(&rig.hosts[0], &near_options(io));
            wait_until("ping after SIGKILL", || {
                assert!(near.is_alive(), "{io}, round {round}: {}", near.output());
                reaches(&rig.hosts[0], inner(Family::V4, 1))
            });
        }
        near.stop();
        far.stop();
    }
}

#[test]
fn an_interface_set_down_pauses_the_tunnel_and_up_resumes_it() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    for io in DRIVERS {
        let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 2"));
        let streams = [Stream::start(near, 0, 1), Stream::start(far, 1, 0)];
        for _ in 0..20 {
            near.run("ip link set uvt0 down");
            assert!(is_silent(far, inner(Family::V4, 0)), "{io}: answers while it is down");
            near.run("ip link set uvt0 up");
            pair.wait_reachable(&rig);
        }
        assert!(streams.iter().all(|stream| stream.sent() > 200));
        drop(streams);
        ping(near, inner(Family::V4, 1), 10, 1420);
        let far = pair.far.stop();
        near.wait_read(51820);
        let (_, lost) = near.overflowed(51820);
        let near = pair.near.stop();
        assert!(near.dropped(DropReason::TunDown) > 0, "{}", near.output);
        assert_eq!(near.dropped_otherwise(&[DropReason::TunDown]), 0, "{}", near.output);
        assert_eq!(far.dropped_otherwise(&[]), 0, "{}", far.output);
        // The wire between them loses nothing, and a socket only what finds no room.
        let [received, sent] = [(&near, "in"), (&far, "sent")]
            .map(|(end, name)| ["datagrams", "bytes"].map(|what| end.total(&format!("{name}_{what}"))));
        assert_eq!(received[0] + lost, sent[0], "{lost} lost: {}{}", near.output, far.output);
        assert!(lost > 0 || received[1] == sent[1], "{}{}", near.output, far.output);
        assert!(
            near.output.contains("uvt0 is down: pausing") && near.output.contains("uvt0 is up: resuming")
        );
    }
}

#[test]
fn a_deleted_interface_ends_it_with_code_0_and_a_message() {
    let Some(rig) = Rig::pair() else { return };
    for io in DRIVERS {
        for loaded in [false, true] {
            let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 2"));
            let stream = loaded.then(|| Stream::start(&rig.hosts[1], 1, 0));
            rig.hosts[0].run("ip link delete uvt0");
            let (status, output) = pair.near.wait();
            assert_eq!(status.code(), Some(0), "{io}, loaded {loaded}: {output}");
            assert_eq!(output.matches("uvt0 was deleted").count(), 1, "{io}, loaded {loaded}: {output}");
            drop(stream);
            pair.far.stop();
        }
    }
}

/// A process nobody waits for; killed when dropped.
struct Daemon<'a> {
    host: &'a Host,
    pid: i32,
}

impl Daemon<'_> {
    fn is_alive(&self) -> bool {
        self.host.processes().contains(&self.pid)
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // Only if it is still one of this host's processes: the number may belong to another by now.
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn in_the_background_the_command_returns_when_the_tunnel_is_up() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for io in DRIVERS {
        let far = Tunnel::start(
            &rig.hosts[1],
            &format!("--io {io} --queues 2 --address 10.9.0.2/24 --peer {}:51820", outer(Family::V4, 1, 1)),
        );
        let words = format!("{PROGRAM} --plaintext --tun {TUN} {}", near_options(io));
        let output = host.command(words.split_whitespace()).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{message}");
        // At once: that is the promise.
        ping(host, inner(Family::V4, 1), 3, 1420);
        let processes = host.processes();
        assert_eq!(processes.len(), 1, "{processes:?}");
        let daemon = Daemon { host, pid: processes[0] };

        // A second one is refused where it was typed, and leaves no process behind.
        let output = host.command(words.split_whitespace()).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("port in use"), "{message}");
        wait_until("only the first is left", || host.processes() == [daemon.pid]);

        kill(Pid::from_raw(daemon.pid), Signal::SIGTERM).unwrap();
        wait_until("it has ended", || !daemon.is_alive());
        assert!(!host.has_link(TUN));
        far.stop();
    }
}

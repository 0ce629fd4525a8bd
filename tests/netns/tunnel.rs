//! One `uringvpn` process, and what it printed.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uringvpn::stats::drop::{Direction, DropReason};

use crate::rig::{FAMILIES, Family, Host, PATIENCE, Rig, inner, outer, wait_until};
use crate::traffic::reaches;

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_uringvpn");
/// The interface name in every namespace.
pub const TUN: &str = "uvt0";
/// Both drivers, as `--io` names them.
pub const DRIVERS: [&str; 2] = ["uring", "syscall"];

/// The command line that runs a tunnel in the foreground and prints the totals at its end.
pub fn foreground(options: &str) -> Vec<String> {
    let words = format!("{PROGRAM} -f --plaintext --tun {TUN} --stats-interval 86400 {options}");
    words.split_whitespace().map(str::to_owned).collect()
}

/// A running tunnel; killed when dropped.
pub struct Tunnel {
    child: Child,
    log: File,
}

impl Tunnel {
    /// Starts a tunnel and waits until its interface is up.
    #[track_caller]
    pub fn start(host: &Host, options: &str) -> Tunnel {
        let tunnel = Tunnel::spawn(&mut host.command(foreground(options)));
        tunnel.wait_up();
        tunnel
    }

    /// Starts `command`, which runs a tunnel in the foreground sooner or later.
    pub fn spawn(command: &mut Command) -> Tunnel {
        let log = tempfile::tempfile().unwrap();
        let child =
            command.stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap()).spawn().unwrap();
        Tunnel { child, log }
    }

    /// Waits until it says that its interface is up and its sockets are open. (The interface itself would not do: after a
    /// crash that of the last process stays for a moment.)
    #[track_caller]
    pub fn wait_up(&self) {
        wait_until("the interface is up", || {
            assert!(self.is_alive(), "ended early: {}", self.output());
            self.output().contains(" queues, UDP port ")
        });
    }

    /// Process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        status.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        let mut bytes = vec![0; self.log.metadata().unwrap().len() as usize];
        let read = self.log.read_at(&mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Waits for its end and returns that with what was printed.
    #[track_caller]
    pub fn wait(mut self) -> (ExitStatus, String) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.output());
            }
            assert!(Instant::now() < give_up, "does not end: {}", self.output());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends `signal`, waits for exit code 0 and returns the final numbers, which must add up. Also the time it took.
    #[track_caller]
    pub fn end(self, signal: Signal) -> (Report, Duration) {
        assert!(self.is_alive(), "ended early: {}", self.output());
        kill(self.pid(), signal).unwrap();
        let sent = Instant::now();
        let (status, output) = self.wait();
        let took = sent.elapsed();
        assert_eq!(status.code(), Some(0), "{output}");
        let report = Report::of(output);
        report.assert_balanced();
        (report, took)
    }

    /// [`Tunnel::end`] with SIGTERM.
    #[track_caller]
    pub fn stop(self) -> Report {
        self.end(Signal::SIGTERM).0
    }

    /// A line `name: value kB` of /proc/PID/status, in bytes.
    pub fn memory_bytes(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a tunnel printed in its life.
#[derive(Debug)]
pub struct Report {
    /// All of it.
    pub output: String,
    totals: HashMap<String, u64>,
}

impl Report {
    #[track_caller]
    fn of(output: String) -> Report {
        let line = output.lines().rev().find_map(|line| line.strip_prefix("totals: "));
        let line = line.unwrap_or_else(|| panic!("no totals in: {output}"));
        let pairs = line.split_whitespace().map(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Report { totals: pairs.collect(), output }
    }

    /// A counter's final value.
    #[track_caller]
    pub fn total(&self, name: &str) -> u64 {
        *self.totals.get(name).unwrap_or_else(|| panic!("no total {name}: {}", self.output))
    }

    /// Packets dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.totals.get(&format!("dropped_{}", reason.label())).copied().unwrap_or(0)
    }

    /// Packets dropped for reasons other than `expected`. On a busy machine a tunnel tells TCP to slow down, and a segment
    /// that is sent again cannot be marked for it (RFC 3168 §6.1.5): that loss is no fault.
    pub fn dropped_otherwise(&self, expected: &[DropReason]) -> u64 {
        let by_design = |reason| reason == DropReason::QueueDelay;
        DropReason::ALL
            .iter()
            .filter(|reason| !expected.contains(reason) && !by_design(**reason))
            .map(|&reason| self.dropped(reason))
            .sum()
    }

    /// The conservation law: what came in went out or was dropped for a reason, and nothing is left.
    #[track_caller]
    pub fn assert_balanced(&self) {
        for (direction, taken_in, passed_on) in [
            (Direction::Outbound, "out_packets", &["sent_datagrams"][..]),
            (Direction::Inbound, "in_datagrams", &["written_packets", "keepalives", "handshakes"]),
        ] {
            let dropped: u64 = DropReason::ALL
                .iter()
                .filter(|reason| reason.direction() == direction)
                .map(|&reason| self.dropped(reason))
                .sum();
            let came_out = passed_on.iter().map(|name| self.total(name)).sum::<u64>() + dropped;
            assert_eq!(self.total(taken_in), came_out, "{direction:?}: {}", self.output);
        }
        for word in ["Imbalance", "do not add up", "panicked"] {
            assert!(!self.output.contains(word), "{}", self.output);
        }
    }
}

/// Tunnels at host 0 and host 1 of a rig, talking to each other.
pub struct Pair {
    pub near: Tunnel,
    pub far: Tunnel,
}

impl Pair {
    /// Starts both with `options` over `family` outside, and waits until they reach each other.
    #[track_caller]
    pub fn start(rig: &Rig, family: Family, options: &str) -> Pair {
        // Below this MTU the kernel has no IPv6.
        let mtu = options.split_whitespace().skip_while(|word| *word != "--mtu").nth(1);
        let small = mtu.is_some_and(|mtu| mtu.parse::<u32>().unwrap() < 1280);
        let start = |index: u8| {
            let mut options = options.to_owned();
            for (family, prefix) in FAMILIES.into_iter().zip([24, 64]).take(if small { 1 } else { 2 }) {
                options += &format!(" --address {}/{prefix}", inner(family, index));
            }
            let peer = std::net::SocketAddr::new(outer(family, 1, 2 - index), 51820);
            Tunnel::start(&rig.hosts[usize::from(index)], &format!("{options} --peer {peer}"))
        };
        let pair = Pair { near: start(0), far: start(1) };
        pair.wait_reachable(rig);
        pair
    }

    /// Waits until host 0 reaches host 1 through the tunnel.
    #[track_caller]
    pub fn wait_reachable(&self, rig: &Rig) {
        wait_until("ping through the tunnel", || {
            assert!(
                self.near.is_alive() && self.far.is_alive(),
                "{}{}",
                self.near.output(),
                self.far.output()
            );
            reaches(&rig.hosts[0], inner(Family::V4, 1))
        });
    }

    /// Stops both and returns their final numbers.
    #[track_caller]
    pub fn stop(self) -> [Report; 2] {
        [self.near.stop(), self.far.stop()]
    }
}

//! Hosts for a test: network namespaces joined by veth pairs, gone when the rig is dropped.
//!
//! ```text
//!  uvt-PID-N-a               uvt-PID-N-b                       uvt-PID-N-c (only in a rig of three)
//!  192.0.2.1, 2001:db8:1::1  192.0.2.2, 2001:db8:1::2          outer addresses
//!    to-b ─────────────────── veth0
//!  198.51.100.1, 2001:db8:2::1                                 198.51.100.2, 2001:db8:2::2
//!    to-c ───────────────────────────────────────────────────── veth0
//!  10.9.0.1, fd09::1         10.9.0.2, fd09::2                 10.9.0.3, fd09::3  inner, by convention
//! ```

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// How long anything that must come may take before we call it a hang: a machine may be slow and busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Held shared by ordinary tests, alone by those that load the machine or count what it does.
static MACHINE: RwLock<()> = RwLock::new(());
static SWEEP: Once = Once::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address family, inner or outer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Both.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A host's outer address on the wire between host 0 and host `wire`; `end` is 1 at host 0 and 2 at the other.
pub fn outer(family: Family, wire: u8, end: u8) -> IpAddr {
    match (family, wire) {
        (Family::V4, 1) => Ipv4Addr::new(192, 0, 2, end).into(),
        (Family::V4, _) => Ipv4Addr::new(198, 51, 100, end).into(),
        (Family::V6, wire) => Ipv6Addr::new(0x2001, 0xdb8, wire.into(), 0, 0, 0, 0, end.into()).into(),
    }
}

/// The inner address of host `index`.
pub fn inner(family: Family, index: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, 0, index + 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(index) + 1).into(),
    }
}

/// One network namespace.
pub struct Host {
    name: String,
    namespace: File,
}

impl Host {
    fn new(name: String) -> Host {
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let namespace = File::open(Path::new("/run/netns").join(&name)).unwrap();
        let host = Host { name, namespace };
        host.inside(|| {
            // Hosts in the tests speak when spoken to; idle must be idle.
            std::fs::write("/proc/sys/net/ipv6/conf/default/router_solicitations", "0").unwrap();
            std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1").unwrap();
            // A tunnel that falls behind a flow tells it so: by marks, which let every packet still be accounted for.
            std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap();
        });
        host.run("ip link set lo up");
        host
    }

    /// What ip(8) calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `words` as a command on this host; it dies with the thread that starts it.
    pub fn command<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv", "--pdeathsig", "KILL"]).args(words);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"URINGVPN_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs a short command, which must succeed, and returns what it printed.
    #[track_caller]
    pub fn run(&self, words: &str) -> String {
        succeed(&mut self.command(words.split_whitespace()))
    }

    /// Runs `what` on a thread in this namespace. Sockets it opens belong to this host for good.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
                what()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Whether there is an interface of that name.
    pub fn has_link(&self, name: &str) -> bool {
        self.inside(|| nix::net::if_::if_nametoindex(name).is_ok())
    }

    /// Process ids on this host.
    pub fn processes(&self) -> Vec<i32> {
        let text = succeed(Command::new("ip").args(["netns", "pids", &self.name]));
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// A number from `/proc/net/snmp` or `/proc/net/netstat`, for example ("TcpExt", "TCPOFOQueue").
    pub fn counted(&self, group: &str, name: &str) -> u64 {
        let text = self.inside(|| {
            let read = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
            read("snmp") + &read("netstat")
        });
        let mut lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "))
            .map(str::split_whitespace);
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let value = names.zip(values).find(|(found, _)| *found == name).unwrap().1;
        value.parse().unwrap()
    }

    /// Datagrams that this host threw away because a socket's buffer was full: in all, and at sockets of `port`.
    pub fn overflowed(&self, port: u16) -> (u64, u64) {
        let snmp6 = self.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
        let errors_v6 = snmp6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors")).unwrap();
        let all = self.counted("Udp", "RcvbufErrors") + errors_v6.trim().parse::<u64>().unwrap();
        let lost = |columns: Vec<&str>| columns.last().unwrap().parse::<u64>().unwrap();
        (all, self.sockets(port, lost).into_iter().sum())
    }

    /// Waits until all that has come to UDP sockets of `port` was read from them.
    #[track_caller]
    pub fn wait_read(&self, port: u16) {
        let unread = || self.sockets(port, |columns| columns[4].ends_with(":00000000"));
        wait_until("all datagrams to be read", || unread().into_iter().all(|empty| empty));
    }

    /// What `read` makes of the columns of /proc/net/udp and udp6, for each socket of `port`.
    fn sockets<T>(&self, port: u16, read: impl Fn(Vec<&str>) -> T) -> Vec<T> {
        let texts = self.inside(|| {
            ["udp", "udp6"]
                .map(|file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap())
        });
        let port = format!(":{port:04X}");
        let lines = texts.iter().flat_map(|text| text.lines().skip(1));
        let columns = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        columns.filter(|columns| columns[1].ends_with(&port)).map(read).collect()
    }

    /// A number from `/sys/class/net/LINK/statistics`, for example "tx_dropped".
    pub fn statistic(&self, link: &str, name: &str) -> u64 {
        self.run(&format!("cat /sys/class/net/{link}/statistics/{name}")).trim().parse().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Panics may be on their way already; what cannot be removed is swept by the next run.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A test's right to the machine, until it is dropped.
pub enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
    Aside,
}

impl Turn {
    fn shared() -> Turn {
        Turn::Shared { _guard: MACHINE.read().unwrap_or_else(PoisonError::into_inner) }
    }

    /// For a test of several rigs that run aside, beside each other: they have the machine to themselves, all of them.
    pub fn alone() -> Turn {
        Turn::Alone { _guard: MACHINE.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// Hosts and wires; host 0 has a wire to every other.
pub struct Rig {
    pub hosts: Vec<Host>,
    _turn: Turn,
}

impl Rig {
    /// Two hosts for a test that may run beside others; `None` without root.
    pub fn pair() -> Option<Rig> {
        Rig::new(2, Turn::shared)
    }

    /// Two hosts for a test that must have the machine to itself; `None` without root.
    pub fn pair_alone() -> Option<Rig> {
        Rig::new(2, Turn::alone)
    }

    /// Two hosts for a test that lasts long and does little: it runs beside those that have the machine to themselves, too.
    pub fn pair_aside() -> Option<Rig> {
        Rig::new(2, || Turn::Aside)
    }

    /// Three hosts, the first between the others; `None` without root.
    pub fn three() -> Option<Rig> {
        Rig::new(3, Turn::shared)
    }

    fn new(count: usize, turn: fn() -> Turn) -> Option<Rig> {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root, and CI=true forbids skipping");
            // Straight to the descriptor: the test harness would swallow what a passing test prints.
            let name = thread::current().name().unwrap_or_default().to_owned();
            let _ = writeln!(std::io::stderr(), "SKIPPED: needs root: {name}");
            return None;
        }
        SWEEP.call_once(sweep_killed_runs);
        let turn = turn();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let letters = ['a', 'b', 'c'];
        let name = |letter| format!("uvt-{}-{number}-{letter}", std::process::id());
        let hosts: Vec<_> = letters[..count].iter().map(|letter| Host::new(name(letter))).collect();
        let rig = Rig { hosts, _turn: turn };
        for (wire, letter) in letters.into_iter().enumerate().take(count).skip(1) {
            rig.connect(wire, letter);
        }
        Some(rig)
    }

    fn connect(&self, wire: usize, letter: char) {
        let [hub, spoke] = [&self.hosts[0], &self.hosts[wire]];
        let near = format!("to-{letter}");
        hub.run(&format!("ip link add {near} type veth peer name veth0 netns {}", spoke.name));
        for (host, link, end) in [(hub, near.as_str(), 1), (spoke, "veth0", 2)] {
            host.run(&format!("ip address add {}/24 dev {link}", outer(Family::V4, wire as u8, end)));
            host.run(&format!("ip address add {}/64 dev {link} nodad", outer(Family::V6, wire as u8, end)));
            host.run(&format!("ip link set {link} up"));
        }
    }
}

/// Polls `ready` for at most [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, ready: impl FnMut() -> bool) {
    wait_at_most(PATIENCE, what, ready);
}

/// Polls `ready` for at most `patience`.
#[track_caller]
pub fn wait_at_most(patience: Duration, what: &str, mut ready: impl FnMut() -> bool) {
    wait_within(patience, what, true, &mut ready);
}

/// Polls `value` until it is `expected`, for at most [`PATIENCE`], and says what it was instead.
#[track_caller]
pub fn wait_equal<T: PartialEq + Debug>(what: &str, expected: T, mut value: impl FnMut() -> T) {
    wait_within(PATIENCE, what, expected, &mut value);
}

/// The only place that waits for something to come true.
#[track_caller]
fn wait_within<T: PartialEq + Debug>(
    patience: Duration,
    what: &str,
    expected: T,
    value: &mut dyn FnMut() -> T,
) {
    let give_up = Instant::now() + patience;
    loop {
        let found = value();
        if found == expected {
            return;
        }
        assert!(Instant::now() < give_up, "waited in vain for: {what}: {found:?}, not {expected:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Removes namespaces of runs whose process no longer exists.
fn sweep_killed_runs() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("uvt-").and_then(|rest| rest.split('-').next()) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

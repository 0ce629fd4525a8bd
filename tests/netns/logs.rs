//! The log of an encrypted tunnel: what it tells of peers, what a flood makes of it, and where a daemon's lines go.

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use uringvpn::stats::drop::DropReason;

use crate::daemon::{Daemon, base64};
use crate::ends::interface;
use crate::raw_peer::{Identity, RawPeer, Stamp, send_train};
use crate::rig::{Host, Rig, wait_until};
use crate::tunnel::{PROGRAM, Tunnel};

/// Lines of one place of the program in [`INTERVAL_SECONDS`].
const LINES_MAX: u64 = 20;
const INTERVAL_SECONDS: u64 = 5;

/// Initiations that whoever does not know our public key would send.
fn junk(count: usize) -> Vec<Vec<u8>> {
    let message = |number: usize| {
        let mut message = vec![number as u8; 148];
        message[..4].copy_from_slice(&[1, 0, 0, 0]);
        message
    };
    (0..count).map(message).collect()
}

/// How many lines a summary stands for, itself included; 1 for any other.
fn lines_told(line: &str) -> u64 {
    let count = line.split_once("(the newest of ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    count.unwrap_or(1)
}

#[test]
fn a_flood_of_bad_handshakes_is_counted_and_does_not_flood_the_log() {
    let Some(rig) = Rig::pair() else { return };
    let began = Instant::now();
    let daemon = Daemon::start(&rig, "--queues 1 --log-level trace");
    let enemy = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
    let junk = junk(200);
    for _ in 0..20 {
        send_train(&enemy.socket, enemy.remote, &junk);
        // One that is answered: those before it have been judged.
        let peer = daemon.peer(&rig, 2);
        peer.ping(&mut peer.handshake(1));
    }
    let report = daemon.process.stop();
    let intervals = began.elapsed().as_secs() / INTERVAL_SECONDS + 1;
    let refused: Vec<_> = report.output.lines().filter(|line| line.contains("mac1 is wrong")).collect();
    let told: u64 = refused.iter().map(|line| lines_told(line)).sum();
    // A line tells of all that came in one receive.
    let counted = report.dropped(DropReason::BadMac1);
    assert!(counted > 2_000 && (1..=counted).contains(&told), "{counted}, {told}:\n{}", report.output);
    // A summary for each interval besides.
    let lines_max = intervals * (LINES_MAX + 1);
    assert!((refused.len() as u64) <= lines_max, "{} lines, {lines_max}", refused.len());
    assert!(refused.iter().any(|line| lines_told(line) > 1));
}

#[test]
fn the_handshakes_of_a_chosen_peer_are_told_and_those_of_others_are_not() {
    let Some(rig) = Rig::pair() else { return };
    let identity = Identity::new();
    let key = base64(&identity.public);
    let daemon = Daemon::start(&rig, &format!("--queues 1 --log-format json --log-peer {key}"));
    let stranger = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
    let chosen = RawPeer { identity, ..stranger };
    daemon.set_peer(&chosen, "allowed-ips 10.9.0.2/32");
    let other = daemon.peer(&rig, 3);
    other.ping(&mut other.handshake(1));
    let initiation = chosen.initiation(1, Stamp::now()).message;
    chosen.send(&initiation);
    chosen.hear(2);
    chosen.send(&initiation);
    other.send(&initiation[..100]);
    let lines = || -> Vec<Value> {
        let output = daemon.process.output();
        output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    };
    let told = |words: &str| {
        let about = |line: &Value| {
            line["peer"] == key && line["level"] == "debug" && line["interface"] == daemon.interface
        };
        let has = |line: &Value| line["message"].as_str().unwrap().contains(words);
        lines().iter().any(|line| about(line) && has(line))
    };
    for words in ["initiation answered", "endpoint is 192.0.2.2:", "initiation refused, it is not newer"] {
        wait_until(words, || told(words));
    }
    assert!(lines().iter().all(|line| line["level"] != "debug" || line["peer"] == key));
    kill(daemon.process.pid(), Signal::SIGTERM).unwrap();
    let (_, output) = daemon.process.wait();
    assert!(!output.contains(&base64(&other.identity.public)), "{output}");
    assert!(output.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{output}");
}

/// A journal that only what is started with [`Journal::command`] sees.
struct Journal {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Journal {
    fn start() -> Journal {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("socket")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Journal { socket, directory }
    }

    /// `words` where /run is empty but for this journal.
    fn command(&self, host: &Host, words: &[&str]) -> std::process::Command {
        let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
                      mount --bind \"$0\" /run/systemd/journal && exec \"$@\"";
        let directory = self.directory.path().to_str().unwrap();
        host.command([&["sh", "-c", script, directory], words].concat())
    }

    /// Adds entries that came meanwhile.
    fn read(&self, entries: &mut Vec<String>) {
        let mut buffer = [0; 8192];
        while let Ok(bytes) = self.socket.recv(&mut buffer) {
            entries.push(String::from_utf8_lossy(&buffer[..bytes]).into_owned());
        }
    }

    #[track_caller]
    fn wait(&self, entries: &mut Vec<String>, words: &str) -> String {
        wait_until(words, || {
            self.read(entries);
            entries.iter().any(|entry| entry.contains(words))
        });
        entries.iter().find(|entry| entry.contains(words)).unwrap().clone()
    }
}

#[test]
fn the_journal_gets_fields_and_standard_error_only_why_it_ended() {
    let Some(rig) = Rig::pair() else { return };
    let (journal, name, mut entries) = (Journal::start(), interface(), Vec::new());
    let words = [PROGRAM, "-f", "--log-to", "journald", "--stats-interval", "86400", &name];
    let process = Tunnel::spawn(&mut journal.command(&rig.hosts[0], &words));
    let up = journal.wait(&mut entries, " queues, UDP port ");
    let fields: Vec<_> = up.lines().skip(1).collect();
    let interface = format!("URINGVPN_INTERFACE={name}");
    assert_eq!(fields, ["PRIORITY=6", "SYSLOG_IDENTIFIER=uringvpn", &interface]);
    kill(process.pid(), Signal::SIGTERM).unwrap();
    let (status, output) = process.wait();
    assert_eq!((status.code(), output.as_str()), (Some(0), ""));
    journal.wait(&mut entries, "MESSAGE=totals: ");

    let words = [
        PROGRAM,
        "-f",
        "--log-to",
        "journald",
        "--io",
        "uring",
        "--tun",
        "a",
        "--plaintext",
        "--peer",
        "nowhere.invalid:9",
    ];
    let (status, output) = Tunnel::spawn(&mut journal.command(&rig.hosts[0], &words)).wait();
    assert_eq!(status.code(), Some(1), "{output}");
    let error = journal.wait(&mut entries, "nowhere.invalid");
    assert!(error.contains("\nPRIORITY=3\n"), "{error}");
    assert!(output.starts_with("uringvpn: ") && output.lines().count() == 1, "{output}");
}

#[test]
fn a_standard_error_that_systemd_connected_to_the_journal_is_left_for_its_own_protocol() {
    let Some(rig) = Rig::pair() else { return };
    let (journal, name, mut entries) = (Journal::start(), interface(), Vec::new());
    let path = journal.directory.path().join("stderr");
    let stderr = fs::File::create(&path).unwrap();
    let file = stderr.metadata().unwrap();
    let mut command = journal.command(&rig.hosts[0], &[PROGRAM, "-f", &name]);
    command.env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()));
    let mut child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
    journal.wait(&mut entries, " queues, UDP port ");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
}

#[test]
fn without_a_journal_asking_for_it_is_an_error_and_not_silence() {
    let Some(rig) = Rig::pair() else { return };
    let words = ["sh", "-c", "mount -t tmpfs none /run && exec \"$@\"", "sh"];
    let tunnel = [PROGRAM, "-f", "--log-to", "journald", "wg0"];
    let (status, output) = Tunnel::spawn(&mut rig.hosts[0].command([&words[..], &tunnel].concat())).wait();
    assert_eq!(status.code(), Some(1));
    let expected =
        "uringvpn: cannot log to the journal: /run/systemd/journal/socket: No such file or directory";
    assert!(output.starts_with(expected), "{output}");
}

#[test]
fn a_daemons_log_stays_in_its_file_and_moves_from_a_pipe_to_the_journal() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for to_file in [true, false] {
        let (journal, name, mut entries) = (Journal::start(), interface(), Vec::new());
        let log: PathBuf = journal.directory.path().join("log");
        let mut command = journal.command(host, &[PROGRAM, &name]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(if to_file { fs::File::create(&log).unwrap().into() } else { Stdio::piped() });
        let mut starter = command.spawn().unwrap();
        let mut printed = String::new();
        if let Some(mut pipe) = starter.stderr.take() {
            // Ends, though the daemon lives.
            pipe.read_to_string(&mut printed).unwrap();
        }
        assert!(starter.wait().unwrap().success(), "{printed}");
        let is_daemon = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.contains(&name))
        };
        let pid = host.processes().into_iter().find(is_daemon).expect("the daemon");
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        wait_until("the daemon has ended", || !host.processes().contains(&pid));
        if to_file {
            printed = fs::read_to_string(&log).unwrap();
            assert!(printed.contains("SIGTERM: finishing"), "{printed}");
        } else {
            journal.wait(&mut entries, "MESSAGE=SIGTERM: finishing\nPRIORITY=6\n");
        }
        assert!(printed.contains(" queues, UDP port "), "{printed}");
        journal.read(&mut entries);
        assert_eq!(entries.is_empty(), to_file, "{entries:?}");
    }
}

//! `uringvpn capture` of a tunnel under load, read back by tshark; readers that are slow, greedy, killed or full; tunnels that end.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use uringvpn::stats::drop::DropReason;
use uringvpn::stats::pcapng::{Statistics, read_end};

use crate::modes::{EVERYTHING, Ends, Mode};
use crate::rig::{Family, Rig, inner, wait_until};
use crate::traffic::{Iperf, answered, ping, reaches};
use crate::tunnel::PROGRAM;

/// Directions as tshark prints them.
const INBOUND: &str = "0x00000001";
const OUTBOUND: &str = "0x00000002";

/// A running `uringvpn capture NAME -w FILE …`; killed when dropped.
struct Capture {
    child: Child,
    directory: tempfile::TempDir,
}

impl Capture {
    /// Starts one and waits until it captures.
    #[track_caller]
    fn start(name: &str, options: &[&str]) -> Capture {
        let directory = tempfile::tempdir().unwrap();
        let said = File::create(directory.path().join("said")).unwrap();
        // One that was there before, and that all may read.
        File::create(directory.path().join("file")).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["capture", name, "-w"]).arg(directory.path().join("file")).args(options);
        let child = command.stdin(Stdio::null()).stderr(said).spawn().unwrap();
        let capture = Capture { child, directory };
        wait_until("the capture begins", || capture.said().contains("capturing "));
        capture
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("said")).unwrap()
    }

    fn file(&self) -> String {
        self.directory.path().join("file").to_str().unwrap().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the capture ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Presses Ctrl-C, so to say; what the file says of itself.
    #[track_caller]
    fn interrupt(&mut self) -> Statistics {
        self.signal(Signal::SIGINT);
        self.whole()
    }

    /// Waits for its end with a whole file.
    #[track_caller]
    fn whole(&mut self) -> Statistics {
        let status = self.wait();
        let statistics = read_end(&fs::read(self.file()).unwrap());
        assert!(status.success() && statistics.is_some(), "{}", self.said());
        let statistics = statistics.unwrap();
        let said = self.said();
        assert!(said.contains(&format!("file: {} packet", statistics.written)), "{said} {statistics:?}");
        assert!(said.contains(&format!(", {} missed (", statistics.missed)), "{said} {statistics:?}");
        statistics
    }

    /// Direction, comment and one more field of every packet that matches `filter`.
    #[track_caller]
    fn packets(&self, filter: &str, field: &str) -> Vec<[String; 3]> {
        tshark(&self.file(), filter, field)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn tshark(file: &str, filter: &str, field: &str) -> Vec<[String; 3]> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r", file, "-Y", filter, "-T", "fields", "-o", "tcp.check_checksum:TRUE"]);
    command.args(["-o", "udp.check_checksum:TRUE"]);
    for field in ["frame.packet_flags_direction", "frame.comment", field] {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{filter}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let words = |line: &str| {
        let mut words = line.split('\t').map(str::to_owned);
        std::array::from_fn(|_| words.next().unwrap_or_default())
    };
    text.lines().map(words).collect()
}

fn show(name: &str) -> Value {
    let output = Command::new(PROGRAM).args(["show", name, "--json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The comment of packets to and from the other end.
fn peer(ends: &Ends, mode: Mode) -> String {
    match mode {
        Mode::Plain => "peer 192.0.2.2:51820".to_owned(),
        Mode::Sealed => {
            format!("peer {}", show(&ends.links[0])["peers"][0]["public_key"].as_str().unwrap())
        }
    }
}

/// Runs `uringvpn capture` with `options` to its end: exit code, what it said.
fn refused(options: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(PROGRAM).arg("capture").args(options).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Somebody who has a capture begin and reads none of it.
fn lazy(name: &str) -> UnixStream {
    let mut stream = UnixStream::connect(format!("/var/run/uringvpn/{name}.sock")).unwrap();
    stream.write_all(b"capture {}\n").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    stream
}

#[test]
fn what_goes_through_under_load_is_in_the_file_with_direction_and_peer() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let there = inner(Family::V4, 1);
    for (mode, io) in [(Mode::Sealed, "uring"), (Mode::Plain, "syscall")] {
        let ends = Ends::start(&rig, mode, &format!("--queues 2 --io {io}"), EVERYTHING);
        let name = ends.links[0].as_str();
        let iperf = Iperf::start(far);
        let mut capture = Capture::start(name, &[]);
        assert_eq!(fs::metadata(capture.file()).unwrap().permissions().mode() & 0o777, 0o600);
        iperf.run(near, there, "--bytes 5M --bitrate 50M");
        iperf.run(near, there, "--bytes 1M --bitrate 50M --reverse");
        let pings = answered(near, there, 5, "-s 1000");
        let statistics = capture.interrupt();
        assert_eq!(statistics.comment, "ended by its reader");

        let peer = peer(&ends, mode);
        let packets = capture.packets("ip or ipv6", "frame.len");
        assert_eq!(packets.len() as u64, statistics.written);
        // A busy machine's tunnel may drop a segment that is sent again: see `Report::dropped_otherwise`.
        let dropped = format!("{peer}, dropped: {}", DropReason::QueueDelay.label());
        let is_known = |[_, comment, _]: &[String; 3]| *comment == peer || *comment == dropped;
        assert!(packets.iter().all(is_known), "{io}: not all are of {peer}");
        // Cut as they travel, and complete.
        assert!(packets.iter().all(|[_, _, bytes]| bytes.parse::<u32>().unwrap() <= 1420));
        assert_eq!(capture.packets("tcp.checksum.status == 0", "tcp.seq"), <[[String; 3]; 0]>::default());
        if statistics.missed == 0 {
            // The sum of a field over the packets of one direction.
            let sum = |filter: &str, field: &str, direction: &str| {
                let packets = capture.packets(filter, field);
                let values = packets.iter().filter(|packet| packet[0] == direction);
                values.map(|packet| packet[2].parse::<u32>().unwrap()).sum::<u32>()
            };
            assert_eq!(sum("icmp.type == 8", "ip.len", INBOUND), 0);
            assert_eq!(sum("icmp.type == 8", "ip.len", OUTBOUND), 5 * 1028);
            assert!(sum("icmp.type == 0", "ip.len", INBOUND) >= pings * 1028);
            // iperf3 ends when it has written everything, whatever is still on its way.
            assert!(sum("tcp", "tcp.len", OUTBOUND) >= 5 << 19);
            assert!(sum("tcp", "tcp.len", INBOUND) >= 1 << 19);
        } else {
            eprintln!("NOT TESTED: {} packets were missed on this machine", statistics.missed);
        }
        ends.stop();
    }
}

#[test]
fn dropped_packets_carry_their_reason_and_others_can_be_left_out() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 2", ["10.9.0.2/32", "0.0.0.0/0"]);
    let name = ends.links[0].as_str();
    let peer = peer(&ends, Mode::Sealed);
    far.run(&format!("ip address add 10.9.0.99/32 dev {}", ends.links[1]));
    let mut drops = Capture::start(name, &["--drops", "--snap", "28"]);
    assert_eq!(answered(near, "10.9.0.77".parse().unwrap(), 3, ""), 0);
    assert_eq!(answered(far, inner(Family::V4, 0), 2, "-I 10.9.0.99"), 0);
    ping(near, inner(Family::V4, 1), 1, 100);
    drops.interrupt();
    let no_route: [String; 3] = [OUTBOUND, "dropped: no_route", "84"].map(str::to_owned);
    assert_eq!(drops.packets("ip.dst == 10.9.0.77", "frame.len"), vec![no_route; 3]);
    let not_allowed = [INBOUND.to_owned(), format!("{peer}, dropped: source_not_allowed"), "84".to_owned()];
    assert_eq!(drops.packets("ip.src == 10.9.0.99", "frame.len"), vec![not_allowed; 2]);
    assert_eq!(
        drops.packets("frame.comment", "frame.cap_len"),
        drops.packets("frame.cap_len <= 28", "frame.cap_len")
    );
    assert_eq!(
        drops.packets("ip.dst == 10.9.0.2 or ip.src == 10.9.0.2", "ip.dst"),
        <[[String; 3]; 0]>::default()
    );
    let [report, _] = ends.stop();
    assert_eq!(report.dropped(DropReason::SourceNotAllowed), 2);
}

#[test]
fn a_capture_ends_by_itself_and_can_be_read_while_it_runs() {
    let Some(rig) = Rig::pair() else { return };
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 1", EVERYTHING);
    let name = ends.links[0].as_str();
    let key = peer(&ends, Mode::Sealed).split_off(5);
    // Live, through a pipe: each ping is two packets.
    let mut command = Command::new(PROGRAM);
    command
        .args(["capture", name, "-w", "-", "--count", "3", "--peer", &key])
        .args(["--direction", "inbound"]);
    let mut capture = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("three packets have come", || {
        reaches(&rig.hosts[0], inner(Family::V4, 1));
        capture.try_wait().unwrap().is_some()
    });
    let mut bytes = Vec::new();
    capture.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    let statistics = read_end(&bytes).unwrap();
    assert!(capture.wait().unwrap().success());
    assert_eq!((statistics.written, statistics.comment.as_str()), (3, "as many packets as were wanted"));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &bytes).unwrap();
    let packets = tshark(file.path().to_str().unwrap(), "", "frame.len");
    assert_eq!(packets.iter().map(|[direction, ..]| direction.as_str()).collect::<Vec<_>>(), [INBOUND; 3]);

    // A reader that goes before the end has seen enough.
    let pipe = format!("{PROGRAM} capture {name} -w - 2>/dev/null | head -c 1; echo ${{PIPESTATUS[0]}}");
    let mut shell = Command::new("bash").args(["-c", &pipe]).stdout(Stdio::piped()).spawn().unwrap();
    wait_until("the reader's end is noticed", || {
        reaches(&rig.hosts[0], inner(Family::V4, 1));
        shell.try_wait().unwrap().is_some()
    });
    let mut said = String::new();
    shell.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "\n0\n");

    let statistics = Capture::start(name, &["--seconds", "1"]).whole();
    assert_eq!(statistics.comment, "as long as was wanted");
    ends.stop();
}

#[test]
fn whoever_reads_along_sees_a_packet_when_it_has_passed() {
    let Some(rig) = Rig::pair() else { return };
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 1", EVERYTHING);
    let mut command = Command::new(PROGRAM);
    command.args(["capture", ends.links[0].as_str(), "-w", "-"]);
    let mut capture = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let read = Arc::new(Mutex::new(Vec::new()));
    let (mut pipe, so_far) = (capture.stdout.take().unwrap(), read.clone());
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(bytes @ 1..) = pipe.read(&mut buffer) {
            so_far.lock().unwrap().extend_from_slice(&buffer[..bytes]);
        }
    });
    wait_until("the capture has begun", || !read.lock().unwrap().is_empty());
    wait_until("a packet has been there", || {
        packets_in(&read.lock().unwrap()) > 0 || {
            reaches(&rig.hosts[0], inner(Family::V4, 1));
            false
        }
    });
    let before = packets_in(&read.lock().unwrap());
    ping(&rig.hosts[0], inner(Family::V4, 1), 1, 84);
    // There and back, and no more will come.
    wait_until("both packets are read", || packets_in(&read.lock().unwrap()) >= before + 2);
    capture.kill().unwrap();
    capture.wait().unwrap();
    reader.join().unwrap();
    ends.stop();
}

/// Enhanced packet blocks that are there from end to end.
fn packets_in(mut bytes: &[u8]) -> usize {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut packets = 0;
    while bytes.len() >= 8 && bytes.len() >= word(bytes, 4) as usize {
        packets += usize::from(word(bytes, 0) == 6);
        bytes = &bytes[word(bytes, 4) as usize..];
    }
    packets
}

#[test]
fn a_reader_that_does_not_read_costs_packets_of_its_file_and_nothing_else() {
    let Some(rig) = Rig::pair() else { return };
    for io in crate::tunnel::DRIVERS {
        let ends = Ends::start(&rig, Mode::Sealed, &format!("--queues 2 --io {io}"), EVERYTHING);
        let name = ends.links[0].as_str();
        let mut lazy = lazy(name);

        // While it runs nobody else is let in, and what he has is left alone.
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "older").unwrap();
        let (code, said) = refused(&[name, "-w", file.path().to_str().unwrap()]);
        let expected = format!("uringvpn: {name}: another capture of it is running; end that first\n");
        assert_eq!((code, said), (Some(1), expected));
        assert_eq!(fs::read(file.path()).unwrap(), b"older");

        // Several times what all buffers on the way hold.
        let iperf = Iperf::start(&rig.hosts[1]);
        let measured = iperf.run(&rig.hosts[0], inner(Family::V4, 1), "--bytes 60M");
        let sent = measured.number("sum_received", "bytes");
        let shown = show(name);
        let passed = shown["counters"]["out_bytes"].as_u64().unwrap() as f64;
        assert!(passed >= sent, "{passed} of {sent} bytes");
        lazy.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        lazy.read_to_end(&mut rest).unwrap();
        let statistics = read_end(&rest).unwrap();
        assert!(statistics.missed > 1000 && statistics.written > 1000, "{statistics:?}");
        assert!(statistics.written + statistics.missed > (sent / 1420.0) as u64, "{statistics:?}");
        ends.stop();
    }
}

#[test]
fn a_capture_that_breaks_off_leaves_the_tunnel_alone_and_the_next_one_begins() {
    let Some(rig) = Rig::pair() else { return };
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 2", EVERYTHING);
    let name = ends.links[0].as_str();
    let cannot = |path: &str, reason: &str| {
        let (code, said) = refused(&[name, "-w", path]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.ends_with(&format!("uringvpn: cannot write {path}: {reason}\n")), "{said}");
    };
    cannot("/dev/full", "No space left on device (os error 28)");
    cannot("/nowhere/file", "No such file or directory (os error 2)");
    cannot("/dev", "Is a directory (os error 21)");
    let (code, said) = refused(&[name, "-w", "/nowhere/file", "--peer", "192.0.2.9:1"]);
    assert_eq!((code, said), (Some(1), format!("uringvpn: {name}: it has no peer 192.0.2.9:1\n")));
    let mut capture = Capture::start(name, &[]);
    capture.interrupt();
    let capture = Capture::start(name, &[]);
    capture.signal(Signal::SIGKILL);
    // Nobody says when it noticed that its reader was killed.
    wait_until("the next capture is let in", || {
        refused(&[name, "-w", "/dev/null", "--seconds", "1"]).0 == Some(0)
    });
    ping(&rig.hosts[0], inner(Family::V4, 1), 1, 100);
    ends.stop();
}

#[test]
fn when_the_tunnel_ends_the_file_is_whole_and_when_it_is_killed_that_is_said() {
    let Some(rig) = Rig::pair() else { return };
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 2", EVERYTHING);
    let [mut near, mut far] = [0, 1].map(|end| Capture::start(&ends.links[end], &[]));
    ping(&rig.hosts[0], inner(Family::V4, 1), 1, 100);
    kill(ends.pair.far.pid(), Signal::SIGKILL).unwrap();
    assert_eq!(far.wait().code(), Some(1));
    let said =
        format!("{}: the tunnel broke off; {} holds what came until then\n", ends.links[1], far.file());
    assert!(far.said().ends_with(&said), "{}", far.said());
    let mut reader = UnixStream::connect(format!("/var/run/uringvpn/{}.sock", ends.links[0])).unwrap();
    ends.pair.near.stop();
    assert_eq!(near.whole().comment, "the tunnel ended");
    // Who had asked for nothing yet is shown out, too.
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_reader_that_does_not_read_cannot_keep_the_tunnel_from_ending() {
    let Some(rig) = Rig::pair() else { return };
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 2", EVERYTHING);
    let mut lazy = lazy(&ends.links[0]);
    let iperf = Iperf::start(&rig.hosts[1]);
    iperf.run(&rig.hosts[0], inner(Family::V4, 1), "--bytes 20M");
    ends.stop();
    let mut rest = Vec::new();
    lazy.read_to_end(&mut rest).unwrap();
    assert_eq!(read_end(&rest), None);
}

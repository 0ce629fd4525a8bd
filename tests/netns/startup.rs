//! `uringvpn NAME` as its starter meets it: descriptors, limits, standard streams, namespaces, service managers; and where its
//! secrets are to be seen.

use std::fs;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uringvpn::io::tun::{self, OffloadSwitches, TunRequest};
use uringvpn::proto::keys::PresharedKey;

use crate::ends::{End, Keys, Program, interface, ours};
use crate::rig::{Family, Host, PATIENCE, Rig, inner, outer, wait_until};
use crate::traffic::{ping, reaches};
use crate::tunnel::{DRIVERS, PROGRAM, Tunnel};

fn socket_of(name: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{name}.sock"))
}

/// A directory that everybody may look into, with the program: the build directory may be closed to others.
fn open_copy() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = directory.path().join("uringvpn");
    fs::copy(PROGRAM, &copy).unwrap();
    let copy = copy.to_str().unwrap().to_owned();
    (directory, copy)
}

#[test]
fn somebody_without_rights_serves_a_tun_and_a_socket_that_were_handed_in() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let name = interface();
    let (directory, program) = open_copy();
    let log = directory.path().join("log");
    let offloads = OffloadSwitches { tso: true, uso: true };
    let request = TunRequest { name: name.clone(), queues: 1, offloads };
    let queue = host.inside(|| tun::open(&request).unwrap().queues.remove(0));
    host.run(&format!("ip link set {name} mtu 1333"));
    let socket = directory.path().join("given.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // As standard streams, so that no other program gets them.
    let script = "exec 5<&0 6<&1 </dev/null >/dev/null; exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                  --bounding-set -all --inh-caps -all \"$@\"";
    let words = ["sh", "-c", script, "sh", &program, "-f", &name];
    let mut command = host.command(words);
    command.env("WG_TUN_FD", "5").env("WG_UAPI_FD", "6").stdin(queue).stdout(OwnedFd::from(listener));
    let mut child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    drop(command);
    let output = || fs::read_to_string(&log).unwrap();
    wait_until("it is up", || {
        assert!(child.try_wait().unwrap().is_none(), "{}", output());
        output().contains("attached with 1 queues")
    });
    assert!(output().contains("keeps the MTU it was handed in with"), "{}", output());

    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(format!("set=1\nprivate_key={}\n\n", "77".repeat(32)).as_bytes()).unwrap();
    let mut answer = [0; 9];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"errno=0\n\n");

    // Its memory is closed to its own user, and it dumps no core.
    let pid = child.id();
    assert_eq!(fs::metadata(format!("/proc/{pid}/task")).unwrap().uid(), 65534);
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "not dumpable");

    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success(), "{}", output());
}

#[test]
fn descriptors_that_are_not_what_they_should_be_are_refused() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for (variable, number, words) in [
        ("WG_TUN_FD", "5", "not attached to a TUN"),
        ("WG_TUN_FD", "77", "EBADF"),
        ("WG_UAPI_FD", "5", "no listening Unix stream socket"),
        ("WG_UAPI_FD", "77", "EBADF"),
    ] {
        let name = interface();
        let words_of = ["sh", "-c", "exec 5</dev/null; exec \"$@\"", "sh", PROGRAM, "-f", &name];
        let (status, output) = Tunnel::spawn(host.command(words_of).env(variable, number)).wait();
        assert_eq!(status.code(), Some(1), "{variable}={number}: {output}");
        let said: Vec<_> = output.lines().filter(|line| line.starts_with("uringvpn: ")).collect();
        assert!(said.len() == 1 && said[0].contains(words), "{variable}={number}: {output}");
        assert!(!host.has_link(&name) && !socket_of(&name).exists());
    }
}

/// Starts `program NAME` under limits. It may run or refuse; it may not panic, hang or leave anything.
#[track_caller]
fn runs_or_refuses(host: &Host, wrapper: &str, options: &str) -> bool {
    let name = interface();
    let words = format!("{wrapper} {PROGRAM} -f {options} {name}");
    let process = Tunnel::spawn(&mut host.command(words.split_whitespace()));
    let up = |process: &Tunnel| socket_of(&name).exists() && process.output().contains(" queues, UDP port ");
    wait_until("it runs or has ended", || up(&process) || !process.is_alive());
    let runs = process.is_alive();
    if runs {
        kill(process.pid(), Signal::SIGTERM).unwrap();
    }
    let (status, output) = process.wait();
    let said: Vec<_> = output.lines().filter(|line| line.starts_with("uringvpn: ")).collect();
    assert!(!output.contains("panicked") && !output.contains("RUST_BACKTRACE"), "{wrapper}: {output}");
    assert!(
        status.code() == Some(0) || (status.code() == Some(1) && said.len() == 1),
        "{wrapper}: {status}, {output}"
    );
    println!("{wrapper} {options}: {}", said.first().unwrap_or(&"runs"));
    assert!(!host.has_link(&name) && !socket_of(&name).exists(), "{wrapper}: something is left");
    status.success()
}

#[test]
fn under_tight_limits_it_runs_or_says_in_a_sentence_why_not() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for files in [4, 8, 12, 16, 20, 24, 64] {
        let runs = runs_or_refuses(host, &format!("prlimit --nofile={files}:{files}"), "--queues 2");
        assert!(runs || files < 64, "64 descriptors are enough for two queues");
    }
    for mebibytes in [64, 128] {
        let bytes = mebibytes << 20;
        runs_or_refuses(host, &format!("prlimit --as={bytes}:{bytes}"), "--queues 2");
    }
    let no_locking = "setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock prlimit --memlock=0:0";
    assert!(runs_or_refuses(host, no_locking, "--queues 2"));
}

#[test]
fn more_queues_than_cores_work() {
    let Some(rig) = Rig::pair() else { return };
    assert!(runs_or_refuses(&rig.hosts[0], "", "--queues 16"));
    assert!(runs_or_refuses(&rig.hosts[0], "taskset 1", "--pin on --queues 3"));
}

/// The background process that serves `name` on this host.
fn daemon_of(host: &Host, name: &str) -> Pid {
    let serves =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains(name);
    let found: Vec<_> = host.processes().into_iter().filter(serves).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    Pid::from_raw(found[0])
}

fn end_daemon(host: &Host, pid: Pid, name: &str) {
    kill(pid, Signal::SIGTERM).unwrap();
    wait_until("it has ended", || !host.processes().contains(&pid.as_raw()));
    assert!(!host.has_link(name) && !socket_of(name).exists());
}

#[test]
fn in_the_background_it_holds_nothing_of_its_starter_whatever_the_streams_are() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let directory = tempfile::tempdir().unwrap();
    for redirect in ["", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | { read line; sleep 1; }"] {
        let name = interface();
        let held = directory.path().join("held");
        let script = format!("exec 9>{}; \"$@\" {redirect}", held.display());
        let words = ["sh", "-c", &script, "sh", PROGRAM, "--log-level", "trace", &name];
        let output = host.command(words).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{redirect}: {output:?}");
        assert!(socket_of(&name).exists() && host.has_link(&name), "{redirect}: up when the command returns");
        let pid = daemon_of(host, &name);
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let path = entry.unwrap().path();
            let target = fs::read_link(&path).unwrap();
            assert!(!target.starts_with(directory.path()), "{redirect}: {path:?} is {target:?}");
            let number: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let full = redirect.contains("full") && number > 0;
            assert!(
                number > 2 || full || target == Path::new("/dev/null"),
                "{redirect}: {path:?} is {target:?}"
            );
        }
        host.run(&format!("wg show {name}"));
        end_daemon(host, pid, &name);
    }
}

#[test]
fn a_service_manager_is_told_when_it_is_up() {
    let Some(rig) = Rig::pair() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = interface();
    let mut command = rig.hosts[0].command([PROGRAM, "-f", &name]);
    let process = Tunnel::spawn(command.env("NOTIFY_SOCKET", &path));
    let mut told = [0; 100];
    let length = socket.recv(&mut told).unwrap();
    assert_eq!(&told[..length], b"READY=1");
    assert!(socket_of(&name).exists() && rig.hosts[0].has_link(&name));
    process.end(Signal::SIGTERM);
}

#[test]
fn a_packet_sent_as_soon_as_it_is_told_to_be_up_begins_a_handshake() {
    let Some(rig) = Rig::pair() else { return };
    let keys = [Keys::new(), Keys::new()];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let notices = UnixDatagram::bind(&path).unwrap();
    notices.set_read_timeout(Some(PATIENCE)).unwrap();
    let far = rig.hosts[1].inside(|| UdpSocket::bind((outer(Family::V4, 1, 2), 51820)).unwrap());
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let inside = rig.hosts[0].inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for io in DRIVERS.into_iter().cycle().take(10) {
        let words = format!(
            "{PROGRAM} -f --io {io} --tun {} --private-key {} --address {}/24 --peer {}@{}:51820,allowed-ips={}",
            interface(),
            keys[0].file("key").display(),
            inner(Family::V4, 0),
            keys[1].public,
            outer(Family::V4, 1, 2),
            inner(Family::V4, 1)
        );
        let mut command = rig.hosts[0].command(words.split_whitespace());
        let process = Tunnel::spawn(command.env("NOTIFY_SOCKET", &path));
        notices.recv(&mut [0; 100]).unwrap();
        // One only: another would begin it as well.
        inside.send_to(b"first", (inner(Family::V4, 1), 9)).unwrap();
        assert_eq!(far.recv(&mut [0; 1000]).unwrap(), 148, "an initiation");
        process.end(Signal::SIGTERM);
    }
}

/// Children of a process.
fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn as_process_1_of_a_container_of_its_own_user_it_stays_reaps_and_ends_on_sigterm() {
    let Some(rig) = Rig::pair() else { return };
    let name = interface();
    // An orphan that ends soon becomes a child of process 1.
    let script = "(sleep 0.3 & ); exec \"$@\"";
    let words = format!("unshare --user --map-root-user --net --pid --fork --mount-proc {PROGRAM}");
    let (unshare, program) = words.rsplit_once(' ').unwrap();
    let words = unshare.split_whitespace().chain(["sh", "-c", script, "sh", program, &name]);
    let outside = Tunnel::spawn(&mut rig.hosts[0].command(words));
    wait_until("it is up", || {
        assert!(outside.is_alive(), "{}", outside.output());
        socket_of(&name).exists()
    });
    let first = children(outside.pid().as_raw());
    let &[first] = first.as_slice() else { panic!("{first:?}") };
    wait_until("nobody is left unreaped", || children(first).is_empty());
    assert!(outside.is_alive(), "process 1 stays in the foreground");
    let shown = Command::new("wg").args(["show", &name]).stderr(Stdio::inherit()).output().unwrap();
    assert!(shown.status.success());
    kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
    let (status, output) = outside.wait();
    assert!(status.success(), "{output}");
    assert!(!socket_of(&name).exists());
}

#[test]
fn sigterm_at_any_moment_of_its_start_ends_it_and_leaves_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    for delay_ms in 0..30 {
        let name = interface();
        let process = Tunnel::spawn(&mut host.command([PROGRAM, "-f", &name]));
        std::thread::sleep(Duration::from_millis(2 * delay_ms));
        // Twice: the second one finds it ending, or ended.
        let _ = kill(process.pid(), Signal::SIGTERM);
        let _ = kill(process.pid(), Signal::SIGTERM);
        let (status, output) = process.wait();
        assert!(status.success() || status.signal() == Some(libc::SIGTERM), "{status}: {output}");
        wait_until("the interface is gone", || !host.has_link(&name));
        assert!(!socket_of(&name).exists(), "after {} ms: {output}", 2 * delay_ms);
    }
}

#[test]
fn sigterm_while_requests_are_carried_out_ends_it() {
    let Some(rig) = Rig::pair() else { return };
    let end = End::start(Program::Ours, &rig.hosts[0], 0, &Keys::new(), "--queues 2");
    let socket = end.socket();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let Ok(mut client) = UnixStream::connect(socket) else { return };
                let mut answer = [0; 9];
                while client.write_all(b"set=1\nreplace_peers=true\n\n").is_ok()
                    && client.read_exact(&mut answer).is_ok()
                {}
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    end.process.end(Signal::SIGTERM);
    assert!(!socket.exists());
    clients.into_iter().for_each(|client| client.join().unwrap());
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let keys = [Keys::new(), Keys::new()];
    let far = End::start(Program::Ours, &rig.hosts[1], 1, &keys[1], "");
    far.wg(&rig.hosts[1], &format!("peer {} allowed-ips {}/32", keys[0].public, inner(Family::V4, 0)));
    let name = interface();
    let words = format!(
        "{PROGRAM} -f --log-level trace --tun {name} --private-key {} --address {}/24 --peer {}@{}:51820,allowed-ips={}",
        keys[0].file("key").display(),
        inner(Family::V4, 0),
        keys[1].public,
        outer(Family::V4, 1, 2),
        inner(Family::V4, 1)
    );
    let (_never_read, mut full) = std::io::pipe().unwrap();
    // A pipe holds 64 KiB unless told otherwise; pipe(7).
    full.write_all(&[b'.'; 65536]).unwrap();
    let mut command = rig.hosts[0].command(words.split_whitespace());
    let mut child = command.stdout(full.try_clone().unwrap()).stderr(full).spawn().unwrap();
    wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
    ping(&rig.hosts[0], inner(Family::V4, 1), 100, 1420);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!socket_of(&name).exists());
}

#[test]
fn odd_surroundings_do_not_matter() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let name = interface();
    let gone = tempfile::tempdir().unwrap();
    let script = format!("cd {0} && rmdir {0} && umask 777 && exec \"$@\"", gone.path().display());
    let mut command = host.command(["sh", "-c", &script, "sh", PROGRAM, "-f", &name]);
    command.env_remove("HOME").env("TZ", "Nowhere/Land").env("LC_ALL", "xx_XX.UTF-8").env("LANG", "tr_TR");
    let process = Tunnel::spawn(&mut command);
    wait_until("it is up", || socket_of(&name).exists() && host.has_link(&name));
    host.run(&format!("wg show {name}"));
    assert_eq!(fs::metadata(socket_of(&name)).unwrap().permissions().mode() & 0o777, 0o600);
    process.end(Signal::SIGTERM);
}

#[test]
fn no_secret_is_in_the_log_the_arguments_or_the_environment() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 1 --log-level trace");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    ends[0].wg(near, &format!("peer {} preshared-key {}", keys[1].public, keys[0].file("psk").display()));
    ends[1].wg(far, &format!("peer {} preshared-key {}", keys[0].public, keys[0].file("psk").display()));
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    // A file in which a key stands where none belongs.
    let file = keys[0].file("wrong.conf");
    let private = fs::read_to_string(keys[0].file("key")).unwrap();
    fs::write(&file, format!("[Interface]\nPrivateKey = {private}MTU = {private}")).unwrap();
    let words = format!("{PROGRAM} -f --log-level trace --config {}", file.display());
    let (status, refused) = Tunnel::spawn(&mut near.command(words.split_whitespace())).wait();
    assert_eq!(status.code(), Some(2), "{refused}");
    let mut seen = vec![refused];
    for end in &ends {
        let pid = end.process.pid();
        assert!(end.process.output().contains("DEBUG peer "), "there is something to be seen");
        seen.push(end.process.output());
        seen.extend(["cmdline", "environ", "comm"].map(|file| {
            String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap()).into_owned()
        }));
        seen.push(end.show(if end.interface == ends[0].interface { near } else { far }, ""));
    }
    let forms = keys.iter().flat_map(|keys| [keys.file("key"), keys.file("psk")]).flat_map(|file| {
        let base64 = fs::read_to_string(file).unwrap().trim().to_owned();
        let key: PresharedKey = base64.parse().unwrap();
        let list = format!("{:?}", &key.expose()[..8]);
        [base64[..16].to_owned(), key.to_hex()[..16].to_owned(), list.trim_matches(['[', ']']).to_owned()]
    });
    for form in forms {
        let place = seen.iter().find(|text| text.contains(&form));
        assert!(place.is_none(), "{form} in {place:?}");
    }
}

#[test]
fn a_daemon_is_refused_where_it_was_typed_and_the_first_is_unharmed() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let end = End::start(Program::Ours, host, 0, &Keys::new(), "");
    let output = host.command([PROGRAM, &end.interface]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.matches("uringvpn: ").count() == 1, "{said}");
    assert!(end.process.is_alive() && end.socket().exists());
    end.show(host, "");
}

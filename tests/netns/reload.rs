//! `--config FILE` while it runs: read again on SIGHUP, and its host names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};

use crate::ends::{End, Keys, Program, interface};
use crate::rig::{Family, Host, Rig, inner, outer, wait_equal, wait_until};
use crate::traffic::reaches;
use crate::tunnel::{PROGRAM, Tunnel};

/// Puts a file there, whole at any time: whoever reads it meanwhile finds the one before.
fn write(file: &Path, content: &str) {
    let beside = file.with_extension("new");
    fs::write(&beside, content).unwrap();
    fs::set_permissions(&beside, PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(beside, file).unwrap();
}

/// The near end: a process, its file, and how often it was told to read it.
struct Near<'a> {
    host: &'a Host,
    process: Tunnel,
    name: String,
    file: PathBuf,
}

impl<'a> Near<'a> {
    fn start(host: &'a Host, keys: &Keys, content: &str) -> Near<'a> {
        let name = interface();
        let file = keys.file(&format!("{name}.conf"));
        write(&file, content);
        let words = format!("{PROGRAM} -f --queues 2 --config {}", file.display());
        let process = Tunnel::spawn(&mut host.command(words.split_whitespace()));
        process.wait_up();
        Near { host, process, name, file }
    }

    /// Signals, and waits until the log has `words` once more.
    #[track_caller]
    fn hang_up(&self, words: &str) {
        let count = || self.process.output().matches(words).count();
        let before = count();
        kill(self.process.pid(), Signal::SIGHUP).unwrap();
        wait_until(words, || {
            assert!(self.process.is_alive(), "{}", self.process.output());
            count() > before
        });
    }

    #[track_caller]
    fn reload(&self, content: &str) {
        write(&self.file, content);
        self.hang_up("was read again");
    }

    fn show(&self, what: &str) -> String {
        self.host.run(&format!("wg show {} {what}", self.name))
    }

    fn configuration(&self) -> String {
        self.host.run(&format!("wg showconf {}", self.name))
    }

    fn routes(&self, prefix: &str) -> String {
        self.host.run(&format!("ip route show {prefix} dev {}", self.name))
    }
}

/// The near end's file, without the end of its [Interface] section that `more` is.
fn content(keys: &[Keys; 2], more: &str) -> String {
    let key = fs::read_to_string(keys[0].file("key")).unwrap();
    let (address, allowed) = (inner(Family::V4, 0), inner(Family::V4, 1));
    format!(
        "[Interface]\nPrivateKey = {key}Address = {address}/32\n{more}\n[Peer]\nPublicKey = {}\nAllowedIPs = {allowed}/32\n\
         Endpoint = {}:51820\nPersistentKeepalive = 25\n",
        keys[1].public,
        outer(Family::V4, 1, 2)
    )
}

fn far_end(rig: &Rig, keys: &[Keys; 2]) -> End {
    let far = End::start(Program::Ours, &rig.hosts[1], 1, &keys[1], "--queues 1");
    far.wg(&rig.hosts[1], &format!("peer {} allowed-ips {}/32", keys[0].public, inner(Family::V4, 0)));
    far
}

#[test]
fn on_sighup_the_tunnel_follows_its_file_and_sessions_live_on() {
    let Some(rig) = Rig::pair() else { return };
    let keys = [Keys::new(), Keys::new()];
    let _far = far_end(&rig, &keys);
    let file = content(&keys, "ListenPort = 51820");
    let near = Near::start(&rig.hosts[0], &keys[0], &file);
    let answers = || reaches(&rig.hosts[0], inner(Family::V4, 1));
    wait_until("an answer", answers);
    let (handshake, before) = (near.show("latest-handshakes"), near.configuration());

    for _ in 0..100 {
        kill(near.process.pid(), Signal::SIGHUP).unwrap();
    }
    near.hang_up("was read again");
    assert_eq!((near.configuration(), near.show("latest-handshakes")), (before.clone(), handshake.clone()));

    // One peer more, another port, a mark. The last of the hundred may still be at work, and its word be taken for ours.
    let other = Keys::new().public;
    let peer = format!("[Peer]\nPublicKey = {other}\nAllowedIPs = 10.77.0.0/24\n");
    near.reload(&format!("{}{peer}", content(&keys, "ListenPort = 51999\nFwMark = 0x2a")));
    wait_equal("peers", 2, || near.show("peers").lines().count());
    wait_equal("port and mark", "51999\n0x2a\n".to_owned(), || {
        near.show("listen-port") + &near.show("fwmark")
    });
    wait_until("the route", || near.routes("10.77.0.0/24").contains("10.77.0.0/24"));
    wait_until("an answer from the new port", answers);

    // And back, with what belongs to the peer.
    near.reload(&file);
    let found = || (near.configuration(), near.routes("10.77.0.0/24"));
    wait_equal("what it was before", (before, String::new()), found);
    wait_until("the route", || near.routes("10.9.0.2").contains("10.9.0.2"));
    wait_until("an answer from the old port", answers);
    assert_eq!(near.show("latest-handshakes"), handshake, "the session is the one from the start");

    // Only said: the interface is others' by now.
    near.reload(&content(&keys, "ListenPort = 51820\nMTU = 1300"));
    let said = || near.process.output().contains("Address and MTU of a running interface stay");
    wait_until("it is said", said);
}

#[test]
fn a_file_with_a_mistake_or_a_port_that_is_taken_changes_nothing_and_is_named() {
    let Some(rig) = Rig::pair() else { return };
    let keys = [Keys::new(), Keys::new()];
    let _far = far_end(&rig, &keys);
    let file = content(&keys, "ListenPort = 51820");
    let near = Near::start(&rig.hosts[0], &keys[0], &file);
    let before = near.configuration();
    let wrong = |content: &str, words: &str| {
        write(&near.file, content);
        near.hang_up(words);
        assert_eq!(near.configuration(), before, "{words}");
    };
    let shown = near.file.display();
    wrong(
        &format!("{file}Nonsense = 1\n"),
        &format!("{shown}, line 10, column 1: \"Nonsense\" is not a setting"),
    );
    wrong("", &format!("{shown}, line 1, column 1: there is no [Interface] section"));
    wrong("\u{1}", &format!("{shown}, line 1, column 1: this is not text"));
    let _holder = near.host.inside(|| std::net::UdpSocket::bind("0.0.0.0:52000").unwrap());
    wrong(
        &content(&keys, "ListenPort = 52000\nFwMark = 7"),
        "refuses ListenPort 52000 or the FwMark: EADDRINUSE: Address already in use; nothing was changed",
    );
    fs::remove_file(&near.file).unwrap();
    near.hang_up("No such file or directory (os error 2); nothing was changed");
    nix::unistd::mkfifo(&near.file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    near.hang_up("is not a file that can be read again; nothing was changed");
    fs::remove_file(&near.file).unwrap();
    near.reload(&file);
    assert_eq!(near.configuration(), before);
    wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
}

#[test]
fn without_a_file_sighup_is_ignored() {
    let Some(rig) = Rig::pair() else { return };
    let end = End::start(Program::Ours, &rig.hosts[0], 0, &Keys::new(), "");
    for round in 1..4 {
        kill(end.process.pid(), Signal::SIGHUP).unwrap();
        let said = || end.process.output().matches("there is no configuration file to read again").count();
        wait_until("it is said", || said() == round);
    }
    assert!(end.process.is_alive());
    end.process.end(Signal::SIGTERM);
}

#[test]
fn a_host_name_that_nobody_knows_at_the_start_is_found_when_it_exists() {
    let Some(rig) = Rig::pair() else { return };
    let keys = [Keys::new(), Keys::new()];
    let _far = far_end(&rig, &keys);
    // The resolver's own file, for this process alone.
    let hosts = keys[0].file("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let name = interface();
    let peer = format!("{}@late.test:51820,allowed-ips={}", keys[1].public, inner(Family::V4, 1));
    let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    let words = format!(
        "{} {PROGRAM} -f --tun {name} --private-key {} --address {}/24 --peer {peer}",
        hosts.display(),
        keys[0].file("key").display(),
        inner(Family::V4, 0)
    );
    let words = ["unshare", "--mount", "sh", "-c", script, "sh"].into_iter().chain(words.split_whitespace());
    let near = Tunnel::spawn(&mut rig.hosts[0].command(words));
    near.wait_up();
    wait_until("it is looked for in vain", || near.output().contains("trying again until it has an address"));
    // Nobody waits for it.
    assert!(rig.hosts[0].run(&format!("wg show {name} endpoints")).contains("(none)"));
    fs::write(&hosts, format!("{} late.test\n", outer(Family::V4, 1, 2))).unwrap();
    wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
    assert!(near.output().contains("late.test:51820 is 192.0.2.2:51820 now"), "{}", near.output());
}

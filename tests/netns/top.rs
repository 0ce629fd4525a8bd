//! `uringvpn top` of a tunnel under ping: in a real terminal (tmux) with keys pressed, and as lines through a pipe.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::modes::{EVERYTHING, Ends, Mode, interface};
use crate::rig::{Family, Host, Rig, inner, wait_until};
use crate::tunnel::{PROGRAM, Tunnel};

/// Killed when dropped.
struct Background(Child);

impl Background {
    fn ping(host: &Host) -> Background {
        let address = inner(Family::V4, 1).to_string();
        let mut command = host.command(["ping", "-q", "-i", "0.01", &address]);
        Background(command.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A terminal of 80 columns and 24 lines with `top` in it, on a tmux server of its own.
struct Terminal<'a> {
    host: &'a Host,
    directory: TempDir,
}

impl<'a> Terminal<'a> {
    /// What the shell prints after `top` tells how it ended and whether the terminal takes lines again.
    fn start(host: &'a Host, arguments: &str) -> Terminal<'a> {
        Terminal::of_size(host, arguments, ["80", "24"])
    }

    /// The same in so many columns and lines.
    fn of_size(host: &'a Host, arguments: &str, [columns, lines]: [&str; 2]) -> Terminal<'a> {
        let terminal = Terminal { host, directory: tempfile::tempdir().unwrap() };
        let script = format!("{PROGRAM} top {arguments}; echo ended with $?; stty -a; exec sleep 1000");
        terminal.tmux(&["new-session", "-d", "-x", columns, "-y", lines, "sh", "-c", &script]);
        terminal
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.host.command(["tmux", "-u", "-L", "top", "-f", "/dev/null"]);
        command.args(words).env("TMUX_TMPDIR", self.directory.path()).env("LC_ALL", "C.UTF-8");
        command.env_remove("TMUX").env_remove("NO_COLOR").env_remove("TERM");
        command
    }

    #[track_caller]
    fn tmux(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Waits until the screen is as `right` says.
    #[track_caller]
    fn wait(&self, what: &str, right: impl Fn(&str) -> bool) {
        let mut screen = String::new();
        wait_until_or(what, || {
            screen = self.screen();
            right(&screen).then_some(()).ok_or(screen.clone())
        });
    }

    /// Presses `key` and waits until the screen shows `words`.
    #[track_caller]
    fn press_and_wait(&self, key: &str, words: &str) {
        self.press(key);
        self.wait(words, |screen| screen.contains(words));
    }

    /// Waits for the end of `top` and that the terminal is as it was: lines are read and echoed, nothing of the screen is
    /// left, the cursor is seen.
    #[track_caller]
    fn wait_restored(&self, code: i32) -> String {
        let words = format!("ended with {code}\n");
        self.wait(&words, |screen| screen.contains(&words) && screen.contains("icanon"));
        let screen = self.screen();
        assert!(
            screen.contains(" icanon") && screen.contains(" echo ") && !screen.contains("q quit"),
            "{screen}"
        );
        let flags = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        assert_eq!(flags.trim(), "0 1");
        screen
    }

    /// The process of `top`.
    fn pid(&self) -> Pid {
        let is_top = |pid: &i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.starts_with(format!("{PROGRAM}\0top\0").as_bytes())
        };
        Pid::from_raw(self.host.processes().into_iter().find(is_top).unwrap())
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.command(&["kill-server"]).output();
    }
}

/// As [`wait_until`], and says what was there instead.
#[track_caller]
fn wait_until_or(what: &str, mut ready: impl FnMut() -> Result<(), String>) {
    let mut last = String::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until(what, || ready().map_err(|found| last = found).is_ok());
    }));
    assert!(result.is_ok(), "no {what:?} in:\n{last}");
}

/// The packets per second in the line of the outbound direction.
fn outbound_rate(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("out "))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The beginning of the line that starts with `name`, behind the mark of a selected row.
fn row<'a>(screen: &'a str, name: &str) -> Option<&'a str> {
    screen.lines().find(|line| line.trim_start_matches([' ', '>', '*']).starts_with(name))
}

#[test]
fn top_shows_rates_stages_workers_and_peers_and_its_keys_work() {
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 2", EVERYTHING);
    let _ping = Background::ping(near);
    let terminal = Terminal::start(near, &format!("{} --interval 0.3", ends.links[0]));
    terminal.wait("a rate, a stage, CPU and the peer", |screen| {
        outbound_rate(screen).is_some_and(|rate| rate > 0)
            && row(screen, "outbound_seal").is_some_and(|row| row.contains("s "))
            && row(screen, "worker 1").is_some_and(|row| row.ends_with('%'))
            && screen.contains("192.0.2.2:51820")
            && screen
                .lines()
                .next()
                .is_some_and(|line| line.contains(&ends.links[0]) && line.contains("2 workers"))
    });
    terminal.press_and_wait("4", "*4 drops");
    terminal.press_and_wait("Tab", "*1 stages");
    terminal.press_and_wait("Down", ">outbound_seal");
    terminal.press_and_wait("t", "of all since start");
    terminal.press_and_wait("w", "of worker 0, ");
    terminal.press_and_wait("s", "3 peers by received");
    terminal.press_and_wait("3", "allowed IPs 0.0.0.0/0");
    terminal.press_and_wait("?", "order of the peers");
    terminal.press_and_wait("Escape", "*3 peers");
    terminal.press_and_wait("p", "PAUSED");
    terminal.press("p");
    terminal.wait("an end of the pause", |screen| !screen.contains("PAUSED"));
    for (columns, lines) in [("20", "24"), ("80", "5"), ("2", "1"), ("120", "50")] {
        terminal.tmux(&["resize-window", "-x", columns, "-y", lines]);
        terminal.wait("the interface's name", |screen| {
            screen.lines().next().is_some_and(|line| line.starts_with(&ends.links[0][..2]))
        });
    }
    terminal.wait("a wide screen", |screen| screen.contains("write_bytes"));
    terminal.press("q");
    terminal.wait_restored(0);
    ends.stop();
}

#[test]
fn exposed_ports_have_a_screen_with_the_same_keys() {
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    let name = format!("e{}", std::process::id());
    let run =
        |words: String| Tunnel::spawn(&mut near.command(format!("{PROGRAM} {words}").split_whitespace()));
    let server = run(format!("server --bind-addr 127.0.0.1 --name {name}"));
    wait_until("a server", || server.output().contains("waiting for clients at"));
    let client = run("local 8000 --to 127.0.0.1 --port 4321".to_owned());
    wait_until("a public port", || client.output().contains("listening at"));
    let terminal = Terminal::start(near, &format!("{name} --interval 0.3"));
    terminal.wait("sums, state and the port", |screen| {
        screen.starts_with(&format!("{name}  sums ok  up "))
            && screen.contains("now  0 connections open  0 visitors waiting  1 ports open")
            && row(screen, "4321").is_some_and(|row| row.contains("0 bit/s"))
            && screen.contains("no connection so far")
    });
    terminal.press_and_wait("2", "*2 counted");
    terminal.press_and_wait("s", "3 ports by received");
    terminal.press_and_wait("3", "port 4321 of 127.0.0.1:");
    terminal.press_and_wait("?", "order of the ports");
    terminal.press_and_wait("Escape", "*3 ports");
    terminal.press_and_wait("p", "PAUSED");
    terminal.press("q");
    terminal.wait_restored(0);
}

#[test]
fn the_terminal_is_restored_after_a_signal_and_after_the_end_of_the_tunnel() {
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    let ends = Ends::start(&rig, Mode::Plain, "--queues 1", EVERYTHING);
    let arguments = format!("{} --interval 0.2 --ascii", ends.links[0]);
    let seen =
        |screen: &str| screen.contains("*1 stages") && screen.contains("no peer, as in plaintext mode");
    let terminal = Terminal::start(near, &arguments);
    terminal.wait("the screen", seen);
    kill(terminal.pid(), Signal::SIGTERM).unwrap();
    terminal.wait_restored(0);
    let terminal = Terminal::start(near, &arguments);
    terminal.wait("the screen", seen);
    terminal.press("C-c");
    terminal.wait_restored(0);
    let terminal = Terminal::start(near, &arguments);
    terminal.wait("the screen", seen);
    let name = ends.links[0].clone();
    ends.stop();
    let screen = terminal.wait_restored(1);
    assert!(screen.contains(&format!("{name}: the tunnel has ended")), "{screen}");
}

#[test]
fn a_terminal_of_twenty_columns_or_of_one_row_shows_what_fits() {
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    let ends = Ends::start(&rig, Mode::Plain, "--queues 1", EVERYTHING);
    let name = &ends.links[0];
    let arguments = format!("{name} --interval 0.2");
    let narrow = Terminal::of_size(near, &arguments, ["20", "24"]);
    narrow.wait("the first line and the keys", |screen| {
        screen.starts_with(name) && screen.contains("q quit  ? help\n")
    });
    narrow.tmux(&["resize-window", "-x", "80"]);
    narrow.press("q");
    narrow.wait_restored(0);
    drop(narrow);
    let low = Terminal::of_size(near, &arguments, ["80", "1"]);
    low.wait("the first line alone", |screen| {
        screen.starts_with(name) && screen.trim_end().lines().count() == 1
    });
    low.press("p");
    low.wait("that it stands still", |screen| screen.contains("PAUSED"));
    low.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    low.press("q");
    low.wait_restored(0);
    ends.stop();
}

#[test]
fn a_tunnel_that_ended_and_came_back_between_two_looks_is_looked_at_on() {
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    let name = interface();
    let start = |queues: &str| {
        let options = "--plaintext --peer 192.0.2.2:9 --stats-interval 86400 --queues";
        let words = format!("{PROGRAM} -f --tun {name} {options} {queues}");
        let tunnel = Tunnel::spawn(&mut near.command(words.split_whitespace()));
        tunnel.wait_up();
        tunnel
    };
    let first = start("1");
    let terminal = Terminal::start(near, &format!("{name} --interval 0.2"));
    terminal.wait("the tunnel", |screen| screen.contains("1 worker  "));
    // While it is stopped it looks at nothing.
    kill(terminal.pid(), Signal::SIGSTOP).unwrap();
    first.stop();
    let second = start("2");
    kill(terminal.pid(), Signal::SIGCONT).unwrap();
    terminal.wait("the new tunnel", |screen| screen.starts_with(&name) && screen.contains("2 workers"));
    second.stop();
    let screen = terminal.wait_restored(1);
    assert!(screen.contains(&format!("{name}: the tunnel has ended")), "{screen}");
}

#[test]
fn without_a_terminal_top_prints_blocks_of_lines() {
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 1", EVERYTHING);
    let name = ends.links[0].clone();
    let _ping = Background::ping(near);
    // Stages are told of once a second.
    wait_until("a second with packets to have ended", || {
        near.run(&format!("{PROGRAM} show {name}")).contains("its last second")
    });
    let top = |words: &str| -> Output {
        near.command(format!("{PROGRAM} top {words}").split_whitespace()).output().unwrap()
    };
    let output = top(&format!("{name} --interval 1 --count 3"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.is_ascii(), "{text}");
    let blocks: Vec<_> = text.split("\n\n").filter(|block| !block.is_empty()).collect();
    assert_eq!(blocks.len(), 3, "{text}");
    for block in &blocks {
        assert!(outbound_rate(block).is_some(), "{text}");
    }
    assert!(outbound_rate(blocks[2]).unwrap() > 0, "{text}");
    for part in ["outbound_seal ", "inbound_queue ", "worker 0 ", "192.0.2.2:51820", "3 peers by rate"] {
        assert!(blocks[2].contains(part), "no {part:?} in {text}");
    }
    let piped = format!("set -o pipefail; {PROGRAM} top {name} --interval 0.1 | head -n 1");
    let output = near.command(["bash", "-c", &piped]).output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(name.as_bytes()), "{output:?}");
    let mut watcher = near.command([PROGRAM, "top", &name, "--interval", "0.1", "--count", "100"]);
    let mut watcher = watcher.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It must have looked once: what never ran has not ended.
    let mut out = BufReader::new(watcher.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    let rest = std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    ends.stop();
    let ended = watcher.wait_with_output().unwrap();
    rest.join().unwrap().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains(&format!("{name}: the tunnel has ended")));
    let late = top(&name);
    assert_eq!(late.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&late.stderr).contains("nothing of this name is running"));
}

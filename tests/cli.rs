//! The command as its user meets it: what it prints, where, and with which exit code. Nothing here needs root: all but
//! one case end before the kernel is asked for anything, and that one fails with and without rights.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// Every option of the command without its dashes.
const OPTIONS: [&str; 14] = [
    "peer",
    "plaintext",
    "listen",
    "tun",
    "address",
    "mtu",
    "no-routes",
    "queues",
    "io",
    "disable",
    "pin",
    "foreground",
    "stats-interval",
    "log-level",
];

fn environment_name(option: &str) -> String {
    format!("URINGVPN_{}", option.to_uppercase().replace('-', "_"))
}

/// The command with nothing of ours in its environment.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
    for option in OPTIONS {
        command.env_remove(environment_name(option));
    }
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

fn run_with(environment: &[(&str, &str)]) -> Output {
    command().envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The command refused: exit code, one line on standard error that contains all of `words`, nothing on standard output.
#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(text(&output.stdout), "");
    assert!(message.starts_with("uringvpn: ") && message.lines().count() == 1, "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

/// Peers with the mistake that is found last of all. It ends a command whose other options were all understood,
/// before the command does anything.
const LAST_ERROR: &str = "192.0.2.7:9,allowed-ips=10.0.0.0/8 192.0.2.7:9,allowed-ips=11.0.0.0/8";
const LAST_WORDS: &str = "endpoint 192.0.2.7:9 is given to two peers";

#[test]
fn help_names_every_option_and_its_environment_variable() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let help = text(&help.stdout);
    for option in OPTIONS {
        assert!(help.contains(&format!("--{option}")), "no --{option}");
        assert!(help.contains(&format!("[env: {}]", environment_name(option))), "no variable for --{option}");
    }
    for words in
        ["probe", "Examples:", "Exit codes:", "[default: 1420]", "[default: 51820]", "[default: uringvpn0]"]
    {
        assert!(help.contains(words), "no {words:?}");
    }
}

#[test]
fn help_has_no_option_the_tests_do_not_know() {
    let help = run(&["--help"]);
    let variables = text(&help.stdout).matches("[env: URINGVPN_").count();
    assert_eq!(variables, OPTIONS.len());
}

#[test]
fn help_fits_a_terminal_and_does_not_show_what_the_environment_holds() {
    let help = command().arg("--help").env("URINGVPN_PEER", "of-no-concern:1").output().unwrap();
    let help = text(&help.stdout);
    assert!(!help.contains("of-no-concern"));
    for line in help.lines() {
        assert!(line.chars().count() <= 110, "{line}");
    }
}

#[test]
fn the_examples_of_the_help_are_correct() {
    let help = run(&["--help"]);
    let help = text(&help.stdout).replace("\\\n", " ").replace('\'', "");
    let mut examples = 0;
    for line in help.lines().filter(|line| line.contains("uringvpn ") && line.contains("--peer 192")) {
        let line = line.split_once("uringvpn ").unwrap().1;
        // One more option that is wrong by itself ends the command before it does anything.
        let output = command().args(line.split_whitespace()).args(["--mtu", "0"]).output().unwrap();
        assert_refused(&output, 2, &["mtu 0"]);
        examples += 1;
    }
    assert_eq!(examples, 3);
}

#[test]
fn version_and_a_wrong_option_have_their_exit_codes() {
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(text(&version.stdout), concat!("uringvpn ", env!("CARGO_PKG_VERSION"), "\n"));
    for wrong in [
        &["--no-such-option"] as &[_],
        &["no-such-command"],
        &["--queues", "many"],
        &["--io", "magic"],
        &["--mtu"],
    ] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{wrong:?}");
    }
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    for queues in ["0", "257", "1000000"] {
        let output = run(&["--plaintext", "--peer", "192.0.2.7:9", "--queues", queues]);
        assert_refused(&output, 2, &[&format!("queues {queues}"), "from 1 to 256"]);
    }
    for mtu in ["0", "67", "65536", "4294967296"] {
        let output = run(&["--plaintext", "--peer", "192.0.2.7:9", "--mtu", mtu]);
        assert_refused(&output, 2, &[&format!("mtu {mtu}"), "from 68 to 65507", "1420", "1280"]);
    }
    for seconds in ["0", "86401"] {
        let output = run(&["--plaintext", "--peer", "192.0.2.7:9", "--stats-interval", seconds]);
        assert_refused(&output, 2, &[&format!("stats interval {seconds}"), "1 to 86400 seconds"]);
    }
}

#[test]
fn interface_names_the_kernel_would_refuse_are_refused() {
    for (name, words) in [
        ("", "is empty"),
        ("1234567890123456", "has 16 bytes"),
        ("../x", "'/'"),
        ("a b", "' '"),
        ("100%", "%d"),
        ("tunnel-für-uns", "'ü'"),
        ("..", "reserved"),
    ] {
        let output = run(&["--plaintext", "--peer", "192.0.2.7:9", "--tun", name]);
        assert_refused(&output, 2, &["interface name", words]);
    }
}

#[test]
fn a_wrong_peer_is_refused_with_its_place_and_a_correct_one() {
    for (peer, words) in [
        ("192.0.2.7", "the port is missing"),
        ("192.0.2.7:99999", "from 1 to 65535"),
        ("2001:db8::7:51820", "brackets"),
        ("192.0.2.300:51820", "neither an IPv4 address nor a host name"),
        ("not-a-key@192.0.2.7:51820", "public key"),
        ("192.0.2.7:51820,allowed-ips=10.0.0.0/40", "column 29"),
        ("192.0.2.7:51820,allowed-ip=10.0.0.0/8", "column 17"),
        ("192.0.2.7:51820,keepalive=soon", "number of seconds"),
    ] {
        let output = run(&["--plaintext", "--peer", peer]);
        assert_refused(&output, 2, &[words, "column", "a correct one is for example"]);
    }
}

#[test]
fn wrong_addresses_and_ports_are_refused() {
    for address in ["10.0.0.1/33", "ten", "0.0.0.0/0", "ff02::1/64", "10.0.0.1/24/24"] {
        let output = run(&["--plaintext", "--peer", "192.0.2.7:9", "--address", address]);
        assert_refused(&output, 2, &["address", address, "10.9.0.1/24"]);
    }
    for listen in ["0", "65536", "::1:51820", "localhost:51820", "[::1]"] {
        let output = run(&["--plaintext", "--peer", "192.0.2.7:9", "--listen", listen]);
        assert_refused(&output, 2, &["listen", listen, "correct are for example 51820"]);
    }
}

#[test]
fn a_peer_without_key_and_without_plaintext_is_told_the_two_ways_on() {
    let output = run(&["--peer", "192.0.2.7:51820"]);
    assert_refused(&output, 2, &["192.0.2.7:51820", "PUBLIC_KEY@192.0.2.7:51820", "--plaintext"]);
}

#[test]
fn a_peer_with_a_key_is_told_that_this_version_cannot_yet() {
    let output = run(&["--peer", &format!("{KEY}@192.0.2.7:51820")]);
    assert_refused(&output, 1, &["this version does not have encrypted", "--plaintext"]);
    let output = run(&["--plaintext", "--peer", &format!("{KEY}@192.0.2.7:51820")]);
    assert_refused(&output, 2, &["a public key", "remove --plaintext"]);
}

#[test]
fn peers_in_conflict_are_both_named() {
    let (a, b) = ("192.0.2.7:9,allowed-ips=10.0.0.0/8", "192.0.2.8:9,allowed-ips=10.1.2.3/8");
    let output = run(&["--plaintext", "--peer", a, "--peer", b]);
    assert_refused(&output, 2, &["allowed IP 10.0.0.0/8", "192.0.2.7:9", "192.0.2.8:9"]);
    let output = run(&["--plaintext", "--peer", a, "192.0.2.8:9"]);
    assert_refused(&output, 2, &["\"192.0.2.8:9\" has no allowed IPs"]);
    let output = run(&["--plaintext", "--peer", LAST_ERROR]);
    assert_refused(&output, 2, &[LAST_WORDS]);
    assert_refused(&run(&["--plaintext"]), 2, &["no peer given", "--peer"]);
}

#[test]
fn every_environment_variable_is_honoured() {
    // A wrong value in each of those that can be wrong: only a variable that is read can be refused.
    for (option, value) in [
        ("peer", "x"),
        ("listen", "x"),
        ("tun", "a/b"),
        ("address", "x"),
        ("mtu", "1"),
        ("queues", "0"),
        ("stats-interval", "0"),
        ("plaintext", "perhaps"),
        ("no-routes", "perhaps"),
        ("pin", "perhaps"),
        ("foreground", "perhaps"),
        ("io", "magic"),
        ("disable", "tso,magic"),
        ("log-level", "loud"),
    ] {
        let environment = [("URINGVPN_PLAINTEXT", "1"), ("URINGVPN_PEER", LAST_ERROR)];
        let name = environment_name(option);
        let output = command().envs(environment).env(&name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}={value}");
        let message = text(&output.stderr);
        assert!(!message.contains(LAST_WORDS), "{name}={value} was not read: {message}");
    }
}

#[test]
fn the_environment_alone_describes_a_tunnel() {
    let output = run_with(&[
        ("URINGVPN_PEER", LAST_ERROR),
        ("URINGVPN_PLAINTEXT", "yes"),
        ("URINGVPN_ADDRESS", "10.9.0.1/24, fd00::1/64"),
        ("URINGVPN_LISTEN", "[::1]:7"),
        ("URINGVPN_TUN", "uring%d"),
        ("URINGVPN_QUEUES", "2"),
        ("URINGVPN_MTU", "1280"),
        ("URINGVPN_IO", "syscall"),
        ("URINGVPN_DISABLE", "tso,uso,gso,gro"),
        ("URINGVPN_PIN", "on"),
        ("URINGVPN_NO_ROUTES", "true"),
        ("URINGVPN_FOREGROUND", "0"),
        ("URINGVPN_STATS_INTERVAL", "5"),
        ("URINGVPN_LOG_LEVEL", "trace"),
    ]);
    assert_refused(&output, 2, &[LAST_WORDS]);
}

#[test]
fn the_command_line_wins_over_the_environment() {
    let output = command()
        .env("URINGVPN_PLAINTEXT", "1")
        .env("URINGVPN_PEER", LAST_ERROR)
        .env("URINGVPN_QUEUES", "0")
        .args(["--queues", "300"])
        .output()
        .unwrap();
    assert_refused(&output, 2, &["queues 300"]);
}

#[test]
fn bytes_that_are_no_text_are_refused_and_not_a_panic() {
    use std::os::unix::ffi::OsStrExt;
    let output = command().arg("--peer").arg(OsStr::from_bytes(b"\xff\xfe:1")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn closed_and_full_standard_streams_change_the_exit_code_of_nothing() {
    let binary = env!("CARGO_BIN_EXE_uringvpn");
    let shell = |script: &str| Command::new("sh").args(["-c", script, "sh", binary]).status().unwrap().code();
    assert_eq!(shell(r#""$1" --queues 0 <&- >&- 2>&-"#), Some(2));
    assert_eq!(shell(r#""$1" --queues 0 2>/dev/full"#), Some(2));
    assert_eq!(shell(r#""$1" --help >&-"#), Some(0));
}

#[test]
fn an_error_nobody_reads_does_not_keep_the_process() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    // A pipe holds 64 KiB unless told otherwise; pipe(7).
    filler.write_all(&[b'.'; 65536]).unwrap();
    let status = command().args(["--queues", "0"]).stderr(writer).status().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(2), None));
    drop(filler);
    let mut held = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut held).unwrap();
    assert!(held.iter().all(|&byte| byte == b'.'));
}

#[test]
fn what_fails_in_the_background_is_told_once_in_the_foreground() {
    // RFC 2606: .invalid never exists.
    let output = run(&["--plaintext", "--peer", "nowhere.invalid:9", "--tun", "clitest%d"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().filter(|line| line.starts_with("uringvpn: ")).count(), 1, "{message}");
    assert!(message.contains("neither encrypted nor authenticated"), "{message}");
}

//! The command as its user meets it: what it prints, where, and with which exit code. Nothing here needs root: all but
//! one case end before the kernel is asked for anything, and that one fails with and without rights.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use uringvpn::control::cli::{self, Invocation};
use uringvpn::control::config::DeviceConfig;

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
/// Never to be seen in any output.
const SECRET: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

/// Every option of the command without its dashes.
const OPTIONS: [&str; 22] = [
    "peer",
    "private-key",
    "config",
    "plaintext",
    "fwmark",
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
    "metrics",
    "metrics-peers",
    "log-level",
    "log-peer",
    "log-format",
    "log-to",
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
    for name in ["WG_TUN_FD", "WG_UAPI_FD", "WG_PROCESS_FOREGROUND", "LOG_LEVEL"] {
        command.env_remove(name);
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
    for words in [
        "probe",
        "genkey",
        "pubkey",
        "genpsk",
        "show",
        "wg-quick up ./wg0.conf",
        "Examples:",
        "Exit codes:",
        "[default: 1420]",
        "[default: 51820]",
        "[default: uringvpn0]",
        "[default: info]",
    ] {
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
    let help = text(&help.stdout).replace("\\\n", " ");
    let mut examples = 0;
    for line in help.lines().filter(|line| line.contains("--peer ") && line.contains("--address")) {
        let line = line.split_once("uringvpn ").unwrap().1;
        let line = line.replace("CLIENT_KEY", KEY).replace("SERVER_KEY", KEY);
        // One more option that is wrong by itself ends the command before it does anything.
        let output = command().args(line.split_whitespace()).args(["--mtu", "0"]).output().unwrap();
        assert_refused(&output, 2, &["mtu 0"]);
        examples += 1;
    }
    assert_eq!(examples, 4);
}

#[test]
fn version_and_a_wrong_option_have_their_exit_codes() {
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(text(&version.stdout), concat!("uringvpn ", env!("CARGO_PKG_VERSION"), "\n"));
    for wrong in [
        &["--no-such-option"] as &[_],
        &["no-such-command", "at-all"],
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
        assert_refused(&run(&[name]), 2, &["interface name", words]);
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
fn a_peer_with_a_key_is_told_how_to_make_ours_and_nothing_falls_back_to_plaintext() {
    let output = run(&["--peer", &format!("{KEY}@192.0.2.7:51820")]);
    assert_refused(&output, 2, &["no private key", "uringvpn genkey > wg.key", "--private-key wg.key"]);
    let output = run(&["--plaintext", "--peer", &format!("{KEY}@192.0.2.7:51820")]);
    assert_refused(&output, 2, &["a public key", "remove --plaintext"]);
    let output = run(&["--plaintext", "--peer", "192.0.2.7:51820,psk=/nonexistent"]);
    assert_refused(&output, 2, &["a preshared key", "remove --plaintext"]);
    let output = run(&["--plaintext", "--private-key", "/nonexistent", "--peer", "192.0.2.7:51820"]);
    assert_refused(&output, 2, &["--plaintext and a private key contradict each other"]);
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
        ("private-key", "/nonexistent"),
        ("config", "/nonexistent"),
        ("fwmark", "x"),
        ("listen", "x"),
        ("tun", "a/b"),
        ("address", "x"),
        ("mtu", "1"),
        ("queues", "0"),
        ("stats-interval", "0"),
        ("metrics", "9586"),
        ("metrics-peers", "perhaps"),
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
fn a_report_of_no_tunnel_or_of_absurd_length_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("report.html");
    let page = page.to_str().unwrap();
    assert_refused(&run(&["report", "none0", "-o", page]), 1, &["none0: nothing of this name is running"]);
    assert_refused(&run(&["report", "a/b", "-o", page]), 1, &["the interface name \"a/b\""]);
    assert_refused(&run(&["report", "--from", page, "-o", page]), 1, &["cannot read ", page]);
    for seconds in ["0", "3601", "-1", "many"] {
        let output = run(&["report", "none0", &format!("--seconds={seconds}"), "-o", page]);
        assert_eq!(output.status.code(), Some(2), "{seconds}");
        assert!(text(&output.stderr).contains("--seconds"), "{}", text(&output.stderr));
    }
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
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

/// A folder with the files given, readable by us alone.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::write(&path, content.replace("SECRET", SECRET).replace("KEY", KEY)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }
    folder
}

/// What the command line would run, and its warnings.
fn understood(arguments: &[&str]) -> (DeviceConfig, Vec<String>) {
    match cli::parse(std::iter::once(&"uringvpn").chain(arguments)) {
        Ok(Invocation::Run { config, warnings, .. }) => (*config, warnings),
        other => panic!("{arguments:?}: {other:?}"),
    }
}

/// The command refused with a message of one line that has all of `words` and nothing of the secret.
#[track_caller]
fn assert_kept_secret(output: &Output, words: &[&str]) {
    assert_refused(output, 2, words);
    let message = text(&output.stderr);
    assert!(!message.contains(&SECRET[..12]) && !message.contains(&SECRET[30..40]), "{message}");
}

fn feed(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn generated_keys_are_what_wg_would_print_and_no_two_are_alike() {
    for name in ["genkey", "genpsk"] {
        let (one, other) = (run(&[name]), run(&[name]));
        assert_eq!((one.status.code(), one.stdout.len(), text(&one.stderr)), (Some(0), 45, ""), "{name}");
        assert!(one.stdout.ends_with(b"=\n") && one.stdout != other.stdout, "{name}");
    }
    let private = run(&["genkey"]).stdout;
    let public = feed(&["pubkey"], &private);
    assert_eq!((public.status.code(), public.stdout.len()), (Some(0), 45));
    assert_eq!(public.stdout, feed(&["pubkey"], private.trim_ascii_end()).stdout);
}

#[test]
fn what_is_no_key_has_no_public_key() {
    for input in ["", "\n", &SECRET[1..], &format!("{SECRET}{SECRET}"), &format!("{SECRET}\nmore"), "\u{fc}"]
    {
        let output = feed(&["pubkey"], input.as_bytes());
        assert_refused(&output, 1, &["standard input: not a key"]);
        assert!(!text(&output.stderr).contains(&SECRET[4..12]));
    }
    assert_kept_secret(&run(&["pubkey", SECRET]), &["may be a key"]);
}

#[test]
fn a_key_written_where_all_can_read_it_comes_with_a_warning() {
    let folder = folder(&[("open", ""), ("closed", "")]);
    fs::set_permissions(folder.path().join("open"), PermissionsExt::from_mode(0o644)).unwrap();
    for (name, warned) in [("open", true), ("closed", false)] {
        let out = fs::File::create(folder.path().join(name)).unwrap();
        let output = command().arg("genkey").stdout(out).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text(&output.stderr).contains("world accessible"), warned, "{name}");
        assert_eq!(fs::read(folder.path().join(name)).unwrap().len(), 45);
    }
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output =
        command().arg("genkey").stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output();
    assert_refused(&output.unwrap(), 1, &["standard output"]);
}

#[test]
fn a_key_pasted_where_a_file_belongs_is_refused_and_not_repeated() {
    for arguments in [
        &["--private-key", SECRET, "--peer", "KEY@192.0.2.7:9"] as &[_],
        &["--private-key=SECRET", "--peer", "KEY@192.0.2.7:9"],
        &["--private-key", "/dev/null", "--peer", "KEY@192.0.2.7:9,psk=SECRET,psk=x"],
        &["--peer", "KEY@192.0.2.7:9,preshared-key=SECRET"],
        &["--peer", "SECRET"],
        &["--config", SECRET],
        &["--tun", SECRET, "--plaintext", "--peer", "192.0.2.7:9"],
        &["--address", SECRET],
        &["--listen", SECRET],
        &["--fwmark", SECRET],
        &[SECRET],
    ] {
        let arguments: Vec<_> =
            arguments.iter().map(|word| word.replace("SECRET", SECRET).replace("KEY", KEY)).collect();
        let output = command().args(&arguments).output().unwrap();
        assert_kept_secret(&output, &[]);
    }
    let key_file = folder(&[("wg.key", "SECRET\n")]);
    let key_file = key_file.path().join("wg.key");
    let peer = format!("{KEY}@192.0.2.7:9,psk={SECRET}");
    let output = command().arg("--private-key").arg(&key_file).args(["--peer", &peer]).output().unwrap();
    assert_kept_secret(&output, &["psk: this is a key"]);
    for name in ["URINGVPN_PRIVATE_KEY", "URINGVPN_CONFIG", "URINGVPN_QUEUES", "WG_TUN_FD"] {
        assert_kept_secret(&run_with(&[(name, SECRET)]), &["key"]);
        let help = command().arg("--help").env(name, SECRET).output().unwrap();
        assert!(!text(&help.stdout).contains(&SECRET[..12]), "{name}");
    }
}

#[test]
fn a_key_file_that_gives_no_key_is_named_with_the_reason() {
    let folder = folder(&[
        ("empty", "\n"),
        ("short", &SECRET[1..]),
        ("long", &"x".repeat(5000)),
        ("binary", "\0\u{1}"),
    ]);
    let peer = format!("{KEY}@192.0.2.7:9");
    for (name, words) in [
        ("empty", "is empty"),
        ("short", "not a key: 44 characters"),
        ("long", "more than 4096 bytes"),
        ("binary", "not a key"),
        ("missing", "No such file"),
        (".", "is a directory"),
        ("/dev/zero", "is a device"),
        ("/dev/stdin", "is a device"),
    ] {
        let path = folder.path().join(name);
        let path = path.to_str().unwrap();
        assert_kept_secret(&run(&["--private-key", path, "--peer", &peer]), &[path, words]);
    }
}

#[test]
fn an_encrypted_tunnel_is_understood_from_options_and_key_files() {
    let folder = folder(&[("wg.key", "SECRET\n"), ("psk", "KEY")]);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let peer = format!("{KEY}@,allowed-ips=10.9.0.2,psk={}", path("psk"));
    let (config, warnings) = understood(&[
        "--private-key",
        &path("wg.key"),
        "--peer",
        &peer,
        "--fwmark",
        "0xca6c",
        "--listen",
        "0",
    ]);
    assert_eq!(config.private_key, Some(SECRET.parse().unwrap()));
    assert_eq!(config.peers[0].preshared_key, Some(KEY.parse().unwrap()));
    assert_eq!((config.fwmark, config.listen.port), (0xca6c, 0));
    assert!(!config.plaintext && config.uapi && config.set_up && warnings.is_empty());
    assert!(!format!("{config:?}").contains(&SECRET[..12]));

    fs::set_permissions(path("psk"), PermissionsExt::from_mode(0o644)).unwrap();
    let (_, warnings) = understood(&["--private-key", &path("wg.key"), "--peer", &peer]);
    assert!(warnings.len() == 1 && warnings[0].contains("chmod 600"), "{warnings:?}");
}

#[test]
fn a_key_comes_from_standard_input_too() {
    let peer = format!("{KEY}@192.0.2.7:9,allowed-ips=10.0.0.0/8");
    let arguments = ["--private-key", "-", "--peer", &peer, &peer];
    // The mistake found last: the key was understood.
    let output = feed(&arguments, format!("{SECRET}\n").as_bytes());
    assert_refused(&output, 2, &["is given to two peers"]);
    assert_kept_secret(&feed(&arguments, &SECRET.as_bytes()[1..]), &["-: not a key"]);
}

#[test]
fn a_name_alone_is_an_interface_for_others_to_configure() {
    let (config, warnings) = understood(&["wg7", "--queues", "2", "--mtu", "1380", "-f"]);
    assert_eq!((config.tun.as_str(), config.queues, config.mtu), ("wg7", 2, 1380));
    assert!(config.uapi && !config.set_up && !config.routes && config.foreground && !config.plaintext);
    assert!(config.peers.is_empty() && config.private_key.is_none() && warnings.is_empty());
    assert_eq!(config.listen.port, 0);
    assert_refused(&run(&["1234567890123456"]), 2, &["interface name", "16 bytes"]);
    assert_refused(&run(&["-f", "probe"]), 2, &["probe is a command", "uringvpn probe"]);
    assert_refused(&run(&["--plaintext", "wg7"]), 2, &["--plaintext", "exclude each other"]);
    for (option, value) in
        [("--peer", "h:1"), ("--address", "10.0.0.1/24"), ("--tun", "x"), ("--private-key", "f")]
    {
        let output = run(&["wg7", option, value]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("cannot be used with"), "{option}");
    }
}

#[test]
fn the_variables_of_other_implementations_are_honoured() {
    for (name, value) in [("WG_TUN_FD", "x"), ("WG_UAPI_FD", "1")] {
        assert_refused(&command().arg("wg7").env(name, value).output().unwrap(), 2, &[name, "descriptor"]);
    }
    let two = command().args(["wg7", "--queues", "2"]).env("WG_TUN_FD", "9").output().unwrap();
    assert_refused(&two, 2, &["queues 2", "one queue"]);
}

const FILE: &str = "[Interface]\nPrivateKey = SECRET\nAddress = 10.9.0.1/24\nDNS = 9.9.9.9\n\n\
                    [Peer]\nPublicKey = KEY\nAllowedIPs = 10.9.0.2/32, 0.0.0.0/0\nEndpoint = vpn.example.org:51820\n";

fn config_path(folder: &TempDir) -> PathBuf {
    folder.path().join("wg0.conf")
}

#[test]
fn a_file_of_wg_quick_describes_a_tunnel_that_has_the_files_name() {
    let folder = folder(&[("wg0.conf", FILE)]);
    let path = config_path(&folder);
    let path = path.to_str().unwrap();
    let (config, warnings) = understood(&["--config", path]);
    assert_eq!((config.tun.as_str(), config.mtu, config.listen.port), ("wg0", 1420, 0));
    assert_eq!(config.addresses, ["10.9.0.1/24".parse().unwrap()]);
    assert_eq!(config.private_key, Some(SECRET.parse().unwrap()));
    assert!(config.set_up && config.uapi && config.routes);
    // DNS, and the default route: both are named, and who does them.
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.contains("wg-quick up") && warning.contains(path)));

    fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    let (config, warnings) = understood(&["--config", path, "--tun", "other", "--no-routes"]);
    assert_eq!((config.tun.as_str(), config.routes), ("other", false));
    assert!(warnings.iter().any(|warning| warning.contains("chmod 600")), "{warnings:?}");
}

#[test]
fn a_peer_without_allowed_ips_in_a_file_gets_nothing_unlike_one_on_the_command_line() {
    let folder = folder(&[
        ("wg0.conf", "[Interface]\nPrivateKey=SECRET\n[Peer]\nPublicKey=KEY\n"),
        ("wg.key", "SECRET"),
    ]);
    let (config, warnings) = understood(&["--config", config_path(&folder).to_str().unwrap()]);
    assert!(config.peers[0].allowed_ips.is_empty());
    assert!(warnings.len() == 1 && warnings[0].contains("no AllowedIPs"), "{warnings:?}");
    let key = folder.path().join("wg.key");
    let (config, _) = understood(&["--private-key", key.to_str().unwrap(), "--peer", &format!("{KEY}@h:1")]);
    assert_eq!(config.peers[0].allowed_ips.len(), 2);
}

#[test]
fn a_wrong_file_is_refused_with_line_and_column() {
    let refused = |content: &[u8], words: &[&str]| {
        let folder = folder(&[]);
        fs::write(config_path(&folder), content).unwrap();
        let output = command().arg("--config").arg(config_path(&folder)).output().unwrap();
        assert_kept_secret(&output, words);
    };
    refused(b"", &["line 1, column 1", "no [Interface] section"]);
    refused(b"\x7fELF\x01\x02", &["line 1, column 1", "not text"]);
    let file = FILE.replace("SECRET", SECRET).replace("KEY", KEY);
    for (from, to, words) in [
        (
            "Address",
            "Adress",
            "line 3, column 1: \"Adress\" is not a setting of [Interface]; there are PrivateKey",
        ),
        ("10.9.0.1/24", "10.9.0.1/33", "line 3, column 11: Address: \"10.9.0.1/33\""),
        ("=\u{20}yAnz", "= ", "line 2, column 14: PrivateKey"),
        ("Endpoint", "PublicKey", "line 9, column 1: PublicKey is given twice, first in line 7"),
        ("vpn.example.org:51820", "vpn.example.org", "line 9, column 12: Endpoint: \"vpn.example.org\""),
        ("DNS = 9.9.9.9", "Table = 7", "line 4, column 9: Table: \"7\" is not off or auto"),
    ] {
        assert!(file.contains(from), "{from}");
        refused(file.replacen(from, to, 1).as_bytes(), &["wg0.conf, ", words]);
    }
    let peer = file.split_once("[Peer]").unwrap().1;
    refused(format!("{file}[Peer]{peer}").as_bytes(), &["line 11, column 13", "[Peer] in line 6"]);
}

#[test]
fn a_file_that_is_huge_missing_misnamed_or_excluded_is_refused() {
    let folder = folder(&[("wg0.conf", FILE), ("my tunnel.conf", FILE), ("wg0", FILE)]);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["my tunnel.conf", "wg0"] {
        assert_kept_secret(&run(&["--config", &path(name)]), &["wg0.conf", "--tun NAME"]);
    }
    assert_kept_secret(&run(&["--config", &path("none.conf")]), &["none.conf: No such file"]);
    assert_kept_secret(&run(&["--config", "/dev/zero"]), &["is a device"]);
    fs::File::options().write(true).open(path("wg0")).unwrap().set_len(100 << 20).unwrap();
    assert_kept_secret(&run(&["--config", &path("wg0")]), &["more than 16777216 bytes"]);
    let endless = feed(&["--config", "-", "--tun", "x"], &vec![b'#'; 17 << 20]);
    assert_kept_secret(&endless, &["more than 16777216 bytes"]);
    assert_kept_secret(&run(&["--plaintext", "--config", &path("wg0.conf")]), &["exclude each other"]);
    for (option, value) in [("--peer", "h:1"), ("--mtu", "1400"), ("--fwmark", "1"), ("--listen", "7")] {
        let output = run(&["--config", &path("wg0.conf"), option, value]);
        assert_eq!(output.status.code(), Some(2), "{option}");
        assert!(text(&output.stderr).contains("cannot be used with"), "{option}");
    }
}

#[test]
fn a_fifo_nobody_writes_to_does_not_keep_the_command() {
    let folder = folder(&[]);
    let fifo: &Path = &folder.path().join("fifo");
    nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let output =
        command().arg("--private-key").arg(fifo).args(["--peer", &format!("{KEY}@h:1")]).output().unwrap();
    assert_refused(&output, 2, &["fifo", "does anybody write to it?"]);
}

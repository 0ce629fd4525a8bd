//! Where the command's log lines go and how they look, as far as that needs no tunnel.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

use serde_json::Value;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

/// A tunnel that begins with a warning and ends with an error.
fn doomed(options: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
    for name in ["LEVEL", "PEER", "FORMAT", "TO"] {
        command.env_remove(format!("URINGVPN_LOG_{name}"));
    }
    command.env_remove("LOG_LEVEL").env_remove("JOURNAL_STREAM").stdin(Stdio::null());
    command.args(["-f", "--plaintext", "--peer", "nowhere.invalid:9", "--tun", "logtest%d"]);
    command.args(options).envs(environment.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn the_level_is_that_of_the_option_or_else_of_wireguard_gos_variable() {
    for (value, ours, logged) in [
        ("silent", None, false),
        ("error", None, false),
        ("warn", None, true),
        ("silent", Some("warn"), true),
    ] {
        let ours = ours.map(|level| ("URINGVPN_LOG_LEVEL", level));
        let environment: Vec<_> = [("LOG_LEVEL", value)].into_iter().chain(ours).collect();
        let output = doomed(&[], &environment);
        assert_eq!(said(&output).contains("neither encrypted"), logged, "{value}: {}", said(&output));
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn text_has_time_level_and_message_and_the_error_stands_alone() {
    let output = doomed(&[], &[]);
    let lines: Vec<_> = said(&output).lines().collect();
    let [warning, error] = lines[..] else { panic!("{lines:?}") };
    assert!(warning.contains("Z  WARN plaintext mode: packets are neither encrypted"), "{warning}");
    assert!(error.starts_with("uringvpn: "), "{error}");
}

#[test]
fn json_is_an_object_per_line_to_the_very_end() {
    for (options, environment) in
        [(&["--log-format", "json"][..], &[][..]), (&[], &[("URINGVPN_LOG_FORMAT", "json")])]
    {
        let output = doomed(options, environment);
        let read = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}"));
        let lines: Vec<Value> = said(&output).lines().map(read).collect();
        let levels: Vec<_> = lines.iter().map(|line| line["level"].as_str().unwrap()).collect();
        assert_eq!(levels, ["warn", "error"], "{}", said(&output));
        assert!(lines[1]["message"].as_str().unwrap().contains("nowhere.invalid"), "{}", lines[1]);
        assert!(lines[1]["time"].as_str().unwrap().ends_with('Z'));
    }
}

#[test]
fn what_is_no_public_key_is_refused_and_not_repeated() {
    let output = doomed(&["--log-peer", &format!("{KEY},{}", &KEY[1..])], &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = said(&output);
    assert!(
        said.starts_with("uringvpn: --log-peer: not a key: 44 characters") && said.lines().count() == 1,
        "{said}"
    );
    assert!(!said.contains(&KEY[1..9]), "{said}");
    assert_eq!(doomed(&["--log-peer", KEY], &[]).status.code(), Some(1), "a key is understood");
}

#[test]
fn a_standard_error_that_is_not_the_journals_any_more_is_written_to_as_any_other() {
    let output = doomed(&[], &[("JOURNAL_STREAM", "8:12345")]);
    assert!(said(&output).contains("Z  WARN plaintext mode"), "{}", said(&output));
}

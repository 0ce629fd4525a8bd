//! Every option that takes a time or a number of times, with absurd ones: refused in a sentence, before anything is done.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

/// None of them is a time that makes sense anywhere.
const ABSURD: [&str; 12] = [
    "0",
    "-1",
    "-0.5",
    "nan",
    "NaN",
    "inf",
    "1e300",
    "18446744073709551616",
    "99999999999999999999999999",
    "1s",
    "0x10",
    "",
];

/// Refused with exit code 2, and the message holds one of `words`.
#[track_caller]
fn assert_refused(arguments: &[String], environment: Option<(&str, &str)>, words: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
    let command = command.args(arguments).envs(environment).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?} {environment:?}: {said}");
    assert!(words.iter().any(|word| said.contains(word)), "{arguments:?} {environment:?}: {said}");
    assert!(!said.contains("panicked") && output.stdout.is_empty(), "{said}");
}

#[track_caller]
fn assert_absurd_are_refused(command: &str, option: &str) {
    for value in ABSURD {
        let words = command.split_whitespace().map(str::to_owned);
        let arguments: Vec<String> = words.chain([format!("{option}={value}")]).collect();
        assert_refused(&arguments, None, &[option, "stats interval"]);
    }
}

#[test]
fn a_watch_of_no_time_or_of_ages_is_refused() {
    assert_absurd_are_refused("report", "--seconds");
    for seconds in ["3601", "4294967296", "1.5"] {
        assert_refused(&["report".to_owned(), format!("--seconds={seconds}")], None, &["--seconds"]);
    }
}

#[test]
fn looks_without_a_pause_or_an_end_are_refused() {
    assert_absurd_are_refused("top", "--interval");
    assert_absurd_are_refused("top", "--count");
}

#[test]
fn statistics_at_absurd_intervals_are_refused() {
    assert_absurd_are_refused("-f --plaintext --peer 192.0.2.7:9", "--stats-interval");
    for value in ["0", "86401", "-1", "nan"] {
        let arguments = ["-f", "--plaintext", "--peer", "192.0.2.7:9"].map(str::to_owned);
        let words = ["--stats-interval", "stats interval"];
        assert_refused(&arguments, Some(("URINGVPN_STATS_INTERVAL", value)), &words);
    }
}

#[test]
fn keepalives_at_absurd_intervals_are_refused() {
    for value in ABSURD.into_iter().filter(|value| *value != "0").chain(["65536", "1.5"]) {
        let peer = format!("yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=@,keepalive={value}");
        let arguments = ["-f", "--private-key", "/dev/null", "--peer", &peer].map(str::to_owned);
        assert_refused(&arguments, None, &["keepalive"]);
    }
}

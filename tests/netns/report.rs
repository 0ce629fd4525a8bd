//! `uringvpn report` of a tunnel under load: the page, what it holds, and how a browser shows it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::modes::{EVERYTHING, Ends, Mode};
use crate::rig::{Family, Host, Rig, inner, wait_until};
use crate::traffic::Iperf;
use crate::tunnel::PROGRAM;

/// Programs that open a page and take a picture of it.
const BROWSERS: [&str; 3] = ["chromium-headless-shell", "chromium", "google-chrome"];

/// Reads a log as the tools do: name, base64, two headers, zlib; prints the values of each second.
const LOG_READER: &str = "
import base64, struct, sys, zlib
for line in open(sys.argv[1]):
    if line[0] in '#\"': continue
    data = base64.b64decode(line.strip().split(',')[3])
    cookie, length = struct.unpack('>ii', data[:8])
    assert cookie == 0x1c849314 and length == len(data) - 8, line
    data = zlib.decompress(data[8:])
    cookie, length, shift, digits, low, high, ratio = struct.unpack('>iiiiqqd', data[:40])
    assert (cookie, length, shift, digits, low, ratio) == (0x1c849313, len(data) - 40, 0, 2, 1, 1.0), line
    assert high == 10_000_000_000, line
    total, rest, at = 0, 0, 0
    for byte in data[40:]:
        rest |= (byte & 0x7f) << at
        at += 7
        if byte & 0x80: continue
        count = (rest >> 1) ^ -(rest & 1)
        total += max(count, 0)
        rest, at = 0, 0
    print(total)
";

fn report(options: &[&str]) -> Output {
    Command::new(PROGRAM).arg("report").args(options).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn reported(options: &[&str]) {
    let output = report(options);
    assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file in `directory`, as an argument.
fn within(directory: &TempDir, name: &str) -> String {
    directory.path().join(name).to_str().unwrap().to_owned()
}

/// How many values a histogram of the JSON holds.
fn count(distributions: &Value, name: &str) -> u64 {
    let all = distributions.as_array().unwrap();
    let found = all.iter().find(|distribution| distribution["name"] == name).unwrap();
    found["buckets"].as_array().unwrap().iter().map(|bucket| bucket[1].as_u64().unwrap()).sum()
}

/// The mean of the values of a histogram.
fn mean(distributions: &Value, name: &str) -> f64 {
    let all = distributions.as_array().unwrap();
    let found = all.iter().find(|distribution| distribution["name"] == name).unwrap();
    let product = |bucket: &Value| bucket[0].as_f64().unwrap() * bucket[1].as_f64().unwrap();
    found["buckets"].as_array().unwrap().iter().map(product).sum::<f64>() / count(distributions, name) as f64
}

fn counted(log: &str) -> Vec<u64> {
    let output = Command::new("python3").args(["-c", LOG_READER, log]).output().unwrap();
    assert!(output.status.success(), "{log}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

/// Has a browser draw `page` into `picture`; false when there is no browser.
fn photograph(page: &str, picture: &str) -> bool {
    let there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let Some(browser) = BROWSERS.into_iter().find(there) else { return false };
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,4000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args([format!("--screenshot={picture}"), format!("file://{page}")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{browser}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

#[test]
fn a_report_of_a_tunnel_under_load_draws_what_moved() {
    let Some(rig) = Rig::pair() else { return };
    let ends = Ends::start(&rig, Mode::Sealed, "--queues 2", EVERYTHING);
    let name = ends.links[0].as_str();
    let iperf = Iperf::start(&rig.hosts[1]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| within(&directory, name);
    let client = iperf.start_client(&rig.hosts[0], inner(Family::V4, 1), "--time 60");
    let [page, json, hlog] = [file("report.html"), file("report.json"), file("")];
    reported(&[name, "--seconds", "3", "-o", &page, "--json", &json, "--hlog", &hlog]);
    drop(client);

    let run: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((&run["last"]["interface"], run["intervals"].as_array().unwrap().len()), (&name.into(), 3));
    for stage in ["outbound", "outbound_seal", "outbound_send", "inbound", "read_segments", "train_datagrams"]
    {
        assert!(count(&run["distributions"], stage) > 0, "{stage}");
    }
    let outbound = count(&run["distributions"], "outbound");
    assert_eq!(outbound, count(&run["distributions"], "outbound_seal"));
    // The histograms tell two digits, of the clock nothing is lost.
    for (whole, stages) in [
        ("outbound", &["outbound_seal", "outbound_send"][..]),
        ("inbound", &["inbound_queue", "inbound_open", "inbound_write"]),
    ] {
        let sum: f64 = stages.iter().map(|stage| mean(&run["distributions"], stage)).sum();
        let whole = mean(&run["distributions"], whole);
        assert!((sum - whole).abs() <= whole / 50.0, "{stages:?}: {sum} of {whole}");
    }
    let logged = counted(&file(&format!("{name}-outbound.hlog")));
    assert_eq!((logged.len(), logged.iter().sum::<u64>()), (3, outbound));
    assert_eq!(counted(&file(&format!("{name}-inbound.hlog"))).len(), 3);

    let text = fs::read_to_string(&page).unwrap();
    let lines: Vec<_> = text.split("<polyline").skip(1).collect();
    let drawn = |line: &&&str| line.split("/>").next().unwrap().matches(',').count() > 4;
    assert!(lines.iter().filter(drawn).count() >= 12, "{} lines", lines.len());
    assert!(text.matches("class=\"heat\"").count() > 6 && text.contains("class=\"b b0\""));
    assert!(text.contains(&format!("<h1>{name} ")) && !text.contains("NaN"));
    for part in ["<code>multishot-read</code>", "encrypted", "2, uring", "1420", "51820"] {
        assert!(text.contains(&format!("<td>{part}</td>")), "{part}");
    }

    // The page is the data of the next: drawn again and beside itself, nothing differs.
    let again = file("again.html");
    reported(&["--from", &json, "--against", &page, "-o", &again]);
    let again = fs::read_to_string(&again).unwrap();
    assert!(again.contains("(other run)") && !again.contains("class=\"worse\">+"));

    let picture = file("report.png");
    if photograph(&page, &picture) {
        let png = fs::read(&picture).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 50_000, "{} bytes", png.len());
    } else {
        eprintln!("NOT TESTED: no browser, none of {BROWSERS:?}");
    }
    ends.stop();
}

#[test]
fn a_report_that_cannot_be_written_says_so_at_once_and_leaves_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let ends = Ends::start(&rig, Mode::Plain, "--queues 1", EVERYTHING);
    let name = ends.links[0].as_str();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| within(&directory, name);
    fs::write(file("other.html"), "<html></html>").unwrap();
    let [none, other, page] = [file("none/report.html"), file("other.html"), file("report.html")];
    for (options, reason) in [
        (&["-o", none.as_str()][..], format!("cannot write {none}: No such file or directory")),
        (&["-o", &page, "--hlog", "/proc/self"], "cannot write /proc/self/try.hlog: ".to_owned()),
        (&["-o", &page, "--json", "/dev"], "cannot write /dev: is a directory".to_owned()),
        (&["-o", &page, "--against", &other], format!("{other}: neither a report of uringvpn nor its data")),
        (&["-o", &page, "--against", &none], format!("cannot read {none}: No such file or directory")),
    ] {
        // An hour: what is found out only afterwards would hang here.
        let output = report(&[&[name, "--seconds", "3600"], options].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&reason) && said.lines().count() == 1, "{said}");
    }
    let output = report(&[name, "--seconds", "1", "-o", "/dev/full"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot write /dev/full: No space left on device"), "{said}");
    assert!(!fs::metadata("/dev/full").unwrap().is_file());

    // Nothing moves: the page says so.
    let output = report(&[name, "--seconds", "1", "-o", "-"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("<!DOCTYPE html>") && text.trim_end().ends_with("</html>"));
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [Path::new(&other)]);
    ends.stop();
}

/// `words` in a shell on `host`, with `directory` a file system of so many bytes that only they see.
fn on_a_small_disk(host: &Host, directory: &TempDir, bytes: u32, words: &str) -> Output {
    let directory = directory.path().display();
    let script = format!("mount -t tmpfs -o size={bytes} none {directory} && cd {directory} && {words}");
    host.command(["sh", "-c", &script]).output().unwrap()
}

#[test]
fn a_full_or_read_only_disk_is_named_and_leaves_the_old_report_and_no_half_one() {
    let Some(rig) = Rig::pair() else { return };
    let near = &rig.hosts[0];
    let ends = Ends::start(&rig, Mode::Plain, "--queues 1", EVERYTHING);
    let [data, disk] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let json = within(&data, "run.json");
    reported(&[&ends.links[0], "--seconds", "1", "-o", "/dev/null", "--json", &json]);
    ends.stop();
    let old = "echo old > report.html";
    let from = format!("{PROGRAM} report --from {json}");
    let full = "head -c 100000 /dev/zero > fill 2> /dev/null";
    for (words, reason) in [
        (format!("{old}; {from} -o report.html"), "cannot write report.html: No space left on device"),
        (format!("{old}; {full}; {from} -o /dev/null --hlog ."), ".hlog: No space left on device"),
        (
            format!("{old}; {full}; {from} -o /dev/null --json run.json"),
            "cannot write run.json: No space left on device",
        ),
        (
            format!("{old}; mount -o remount,ro . && {from} -o report.html"),
            "report.html: Read-only file system",
        ),
    ] {
        let words = format!("{words}; echo $?; ls; cat report.html");
        let output = on_a_small_disk(near, &disk, 16_384, &words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("uringvpn: ") && said.lines().count() == 1, "{words}: {said}");
        assert!(said.contains(reason), "{words}: {said}");
        let left = String::from_utf8(output.stdout).unwrap();
        let left: Vec<_> = left.lines().filter(|line| *line != "fill").collect();
        assert_eq!(left, ["1", "report.html", "old"], "{words}");
    }
}

#[test]
fn a_watch_that_the_tunnel_does_not_survive_is_drawn_as_far_as_it_went() {
    let Some(rig) = Rig::pair() else { return };
    let ends = Ends::start(&rig, Mode::Plain, "--queues 1", EVERYTHING);
    let name = ends.links[0].clone();
    let directory = tempfile::tempdir().unwrap();
    let page = within(&directory, "report.html");
    let mut command = Command::new(PROGRAM);
    command.args(["report", &name, "--seconds", "3600", "-o", &page]).stdin(Stdio::null());
    let mut watcher = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(watcher.stderr.take().unwrap());
    let mut said = String::new();
    notes.read_line(&mut said).unwrap();
    assert_eq!(said, format!("watching {name} for 3600 s\n"));
    // It looks once a second by the same clock.
    let uptime = || {
        let output = Command::new(PROGRAM).args(["show", &name, "--json"]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["uptime_seconds"].as_f64().unwrap()
    };
    let began = uptime();
    wait_until("some seconds to pass", || uptime() > began + 3.0);
    ends.stop();
    notes.read_to_string(&mut said).unwrap();
    assert!(watcher.wait().unwrap().success(), "{said}");
    assert!(
        said.contains("the tunnel ended in second ") && said.ends_with(&format!("wrote {page}\n")),
        "{said}"
    );
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("<p class=\"note\">the tunnel ended in second "));
}

//! HTTP as far as a scrape needs it: one GET or HEAD, one answer, and the connection ends. Pure.
//!
//! Metrics come in two formats. Who names OpenMetrics in `Accept`, and likes it no less than plain text, gets it; all others,
//! browsers and `curl` among them, get the older text.
//!
//! Source: RFC 9110, RFC 9112; for the media types, OpenMetrics 1.0 and [`crate::stats::text_format`].

use std::sync::Arc;

use super::watcher::{Answer, Body};
use crate::stats::{openmetrics, text_format};

const PLAIN: &str = "text/plain; charset=utf-8";

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// [`openmetrics`].
    OpenMetrics,
    /// [`text_format`].
    Text,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => openmetrics::CONTENT_TYPE,
            Format::Text => text_format::CONTENT_TYPE,
        }
    }
}

/// Answers `request`, which ends with an empty line; `metrics` is asked for them if they are wanted, and may have none to tell.
pub fn answer(request: &[u8], metrics: impl FnOnce(Format) -> Option<Body>) -> Answer {
    let request = String::from_utf8_lossy(request);
    let mut lines = request.split("\r\n");
    let words: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = words[..] else { return line("400 Bad Request", "no HTTP request\n") };
    if !version.starts_with("HTTP/1.") {
        return line("400 Bad Request", "only HTTP/1.0 and HTTP/1.1\n");
    }
    let path = target.split('?').next().unwrap_or_default();
    if !["/", "/metrics"].contains(&path) {
        return line("404 Not Found", "not found; see /metrics\n");
    }
    if !["GET", "HEAD"].contains(&method) {
        return line("405 Method Not Allowed\r\nAllow: GET, HEAD", "only GET and HEAD\n");
    }
    let mut answer = if path == "/" {
        line("200 OK", "uringvpn: see /metrics\n")
    } else {
        let format = wanted_format(lines);
        match metrics(format) {
            Some(text) => whole("200 OK", format.content_type(), text),
            None => line("503 Service Unavailable", "the tunnel does not answer\n"),
        }
    };
    if method == "HEAD" {
        // Its length stays in the head.
        answer.body = Arc::default();
    }
    answer
}

/// A line of our own.
fn line(status: &str, text: &str) -> Answer {
    whole(status, PLAIN, Arc::new(text.into()))
}

fn whole(status: &str, kind: &str, body: Body) -> Answer {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    Answer { head, body }
}

/// What the header lines prefer.
fn wanted_format<'a>(headers: impl Iterator<Item = &'a str>) -> Format {
    let fields = headers.filter_map(|line| line.split_once(':'));
    let accepted = fields.filter(|(name, _)| name.eq_ignore_ascii_case("accept"));
    let (mut openmetrics, mut text) = (0.0_f32, 0.0_f32);
    for range in accepted.flat_map(|(_, value)| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter = |name| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let quality = parameter("q").map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
        let ours = parameter("version").is_none_or(|version| version == "1.0.0");
        match kind.as_str() {
            "application/openmetrics-text" if ours => openmetrics = openmetrics.max(quality),
            "text/plain" | "text/*" | "*/*" => text = text.max(quality),
            _ => {}
        }
    }
    if openmetrics > 0.0 && openmetrics >= text { Format::OpenMetrics } else { Format::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str) -> Answer {
        answer(request.as_bytes(), |format| Some(Arc::new(format!("{format:?}").into())))
    }

    fn format(accept: &str) -> String {
        let answer = ask(&format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n\r\n"));
        String::from_utf8_lossy(&answer.body).into_owned()
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it_and_text_for_all_others() {
        let prometheus_2 = "Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
            version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for accept in [prometheus_2, prometheus_3, "ACCEPT: Application/OpenMetrics-Text"] {
            assert_eq!(format(accept), "OpenMetrics", "{accept}");
        }
        for accept in [
            "X: y",
            "Accept: */*",
            "Accept: text/html,application/xhtml+xml,*/*;q=0.8",
            "Accept: text/plain, application/openmetrics-text;q=0.9",
            "Accept: application/openmetrics-text;version=2.0.0",
            "Accept: application/openmetrics-text;q=0",
            "Accept: application/openmetrics-text;q=much",
            "Accept: application/openmetrics-text;q=NaN",
            "Not-Accept: application/openmetrics-text",
        ] {
            assert_eq!(format(accept), "Text", "{accept}");
        }
    }

    #[test]
    fn what_cannot_be_answered_has_the_status_that_says_why() {
        for (request, status) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", "200 OK"),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200 OK"),
            ("GET / HTTP/1.1\r\n\r\n", "200 OK"),
            ("GET /secrets HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed\r\nAllow: GET, HEAD"),
            ("get /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("GET /metrics\r\n\r\n", "400 Bad Request"),
            ("GET  /metrics HTTP/1.1\r\n\r\n", "400 Bad Request"),
            ("PRI * HTTP/2.0\r\n\r\n", "400 Bad Request"),
            ("\r\n\r\n", "400 Bad Request"),
            ("\0\0\0\r\n\r\n", "400 Bad Request"),
        ] {
            let answer = ask(request);
            assert!(answer.head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {answer:?}");
            assert!(answer.head.contains(&format!("Content-Length: {}\r\n", answer.body.len())));
        }
        let silent = answer(b"GET /metrics HTTP/1.1\r\n\r\n", |_| None);
        assert!(silent.head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{silent:?}");
    }

    #[test]
    fn head_has_the_head_of_get_and_no_body() {
        let [get, head] = ["GET", "HEAD"].map(|method| ask(&format!("{method} /metrics HTTP/1.1\r\n\r\n")));
        assert_eq!((&get.body[..], head.head, &head.body[..]), (&b"Text"[..], get.head, &b""[..]));
    }
}

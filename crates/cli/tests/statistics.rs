//! What a server counts: iostat, df, the text for Prometheus, and the page on a port.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use common::{Mount, Place, Served, can_mount, fails, ok, pagestone};

/// A free port of this machine. Another program may take it first; the server then says so.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn get(port: u16, host: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// Checks the text as `promtool check metrics` does: every sample has a type, names and labels are well formed, no sample
/// comes twice, counters end in `_total`, and a histogram's buckets ascend up to its count. Returns the samples.
fn samples(text: &str) -> Vec<(String, f64)> {
    let (mut types, mut seen, mut out) = (Vec::new(), HashSet::new(), Vec::new());
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# ") {
            let words: Vec<&str> = about.splitn(3, ' ').collect();
            match words[0] {
                "HELP" => assert!(words[2].ends_with('.'), "{line}"),
                "TYPE" => types.push((words[1].to_owned(), words[2].to_owned())),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(seen.insert(series.to_owned()), "twice: {series}");
        let name = series.split('{').next().unwrap();
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{name}");
        let of = |base: &str| types.iter().any(|(known, kind)| known == base && kind == "histogram");
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end).filter(|base| of(base)));
        let (known, kind) = types.iter().find(|(known, _)| known == base.unwrap_or(name)).expect(line);
        assert_eq!(kind == "counter", known.ends_with("_total"), "{known} is a {kind}");
        if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            let labels = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
            assert!(labels.split("\",").all(|label| label.contains("=\"")), "{labels}");
        }
        out.push((series.to_owned(), value.parse().unwrap()));
    }
    for (series, count) in out.iter().filter(|(series, _)| series.contains("_count{")) {
        let buckets = series.replace("_count{", "_bucket{").replace('}', ",le=");
        let of_this: Vec<f64> = out.iter().filter(|(s, _)| s.starts_with(&buckets)).map(|(_, n)| *n).collect();
        assert!(of_this.len() > 10 && of_this.is_sorted(), "{series}");
        assert_eq!(of_this.last(), Some(count), "{series}");
    }
    out
}

fn value(samples: &[(String, f64)], parts: &[&str]) -> f64 {
    let mut found = samples.iter().filter(|(series, _)| parts.iter().all(|part| series.contains(part)));
    let (first, more) = (found.next(), found.next());
    assert!(more.is_none(), "{parts:?} is not one series");
    first.unwrap_or_else(|| panic!("{parts:?} is not there")).1
}

#[test]
fn a_mount_counts_what_programs_do() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let port = port();
    let http = format!("127.0.0.1:{port}");
    let mount = Mount::start(&place, &["--create", "64M", "--http", &http, "--cache", "none"]);
    let path = mount.dir.join("file");
    fs::write(&path, vec![1; 300_000]).unwrap();
    for _ in 0..5 {
        assert_eq!(fs::read(&path).unwrap().len(), 300_000);
    }
    fs::remove_dir(&path).unwrap_err();
    rustix::fs::setxattr(&path, "user.a", b"1", rustix::fs::XattrFlags::REPLACE).unwrap_err();
    let answer = get(port, &http, "/metrics");
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("200 OK") && head.contains("text/plain; version=0.0.4"), "{head}");
    let samples = samples(text);
    assert_eq!(value(&samples, &["pagestone_bytes_total", "written"]), 300_000.0);
    assert_eq!(value(&samples, &["pagestone_bytes_total", "\"read\""]), 1_500_000.0);
    assert_eq!(value(&samples, &["seconds_count", "\"create\""]), 1.0);
    assert_eq!(value(&samples, &["errors_total", "\"xattr\""]), 0.0, "an attribute that is not there is no error");
    assert!(value(&samples, &["seconds_sum", "\"read\""]) > 0.0);
    assert_eq!(value(&samples, &["pagestone_pool_size_bytes"]), f64::from(64 << 20));

    let table = ok(&["iostat", &mount.pool]);
    assert!(table.starts_with("FACE") && table.contains("create") && table.contains("read"), "{table}");
    assert!(!table.contains("rename"), "{table}");
    let exact = ok(&["iostat", "-H", "-p", "-o", "operation,count,errors", "-s", "-count", &mount.pool]);
    let lines: Vec<Vec<&str>> = exact.lines().map(|line| line.split('\t').collect()).collect();
    assert!(lines.iter().any(|line| line[..] == ["create", "1", "0"]), "{exact}");
    let counts: Vec<f64> = lines.iter().map(|line| line[1].parse().unwrap()).collect();
    assert!(counts.is_sorted_by(|a, b| a >= b), "{exact}");
    let json = ok(&["iostat", "--json", &mount.pool, "1", "1"]);
    assert!(json.starts_with("{\"output_version\":1,\"seconds\":"), "{json}");

    let df = ok(&["df", "-H", "-p", &mount.pool]);
    let columns: Vec<&str> = df.trim_end().split('\t').collect();
    assert_eq!((columns[1], columns[6], columns[7]), ("67108864", "1", mount.dir.to_str().unwrap()), "{df}");
    // Without a name, of all that are mounted. Those of other tests may go meanwhile.
    let all = pagestone().args(["df", "--json"]).output().unwrap();
    assert!(String::from_utf8(all.stdout).unwrap().contains(&mount.pool));
    mount.finish();
}

#[test]
fn a_page_shows_the_state_and_changes_nothing() {
    let place = Place::in_shm();
    let pool = place.pool("32M");
    let port = port();
    let http = format!("127.0.0.1:{port}");
    let mut child = pagestone().args(["serve", "--http", &http, &pool]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let served = Served::of(child);
    assert!(ok(&["status", &pool]).contains(&format!("http://{http}/")));
    let page = get(port, &http, "/");
    assert!(
        page.contains("text/html") && page.contains("content-security-policy") && page.contains("<title>Pagestone")
    );
    assert!(!page.contains("src=\"http") && !page.contains("href=\"http"), "everything is on the page itself");
    assert!(get(port, &http, "/v1/status").contains("\"troubles\":[]"));
    assert!(get(port, "localhost", "/v1/statistics").contains("\"faces\":[]"));
    for (host, path, code) in [
        ("evil.example", "/v1/status", 421),
        ("evil.example:80", "/", 421),
        ("", "/", 421),
        (&*http, "/v1/entries?path=/", 404),
    ] {
        let answer = get(port, host, path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{host} {path}: {answer}");
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "POST /v1/status HTTP/1.1\r\nhost: {http}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    ok(&["restart", &pool]);
    assert!(get(port, &http, "/metrics").contains("pagestone_uptime_seconds"), "the port stays over a restart");
    served.finish();
    fails(1, &["--http 0.0.0.0:1", "only an address of this machine"], &["serve", "--http", "0.0.0.0:1", &pool]);
    fails(1, &["not in use"], &["iostat", &pool]);
    fails(2, &["there is no column 'x'", "operation"], &["iostat", "-o", "x", &pool]);
    fails(2, &["terminal"], &["top", &pool]);
}

use std::{collections::BTreeSet, env, fmt::Write as _, fs, path::PathBuf};

use overlay_common::{
    Class, Hook, Reason,
    tables::{ENDPOINTS_MAP, Way},
};
use regex::Regex;

use super::{families::FAMILIES, snapshot::Etcd, *};
use crate::{
    admin::{Census, Pulse, Verdicts, pulse::Latest},
    kernel::datapath::{Contents, CounterRow, MapFill},
};

/// Everything is known.
fn snapshot() -> Snapshot {
    let row = |hook, reason, packets| CounterRow { hook, reason, packets, bytes: 100 * packets };
    Snapshot {
        started: SystemTime::UNIX_EPOCH + Duration::from_hours(500_000),
        ready: true,
        latest: Some(Latest {
            age: Duration::from_millis(250),
            problems: 2,
            census: Census { peers: 3, refused_leases: 1, endpoints: 4, verifications: 9 },
        }),
        repairs: 17,
        counters: Some(vec![
            row(Hook::FromContainer, Reason::Encapsulated, 5),
            row(Hook::FromUplink, Reason::ToEndpoint, 6),
            row(Hook::FromUplink, Reason::WrongVni, u64::MAX / 200),
        ]),
        contents: Some(Contents {
            fills: vec![MapFill { map: ENDPOINTS_MAP, entries: 4, capacity: 4096 }],
            ways: [(Way::Vxlan, 2), (Way::Direct, 1), (Way::Stack, 0)],
        }),
        etcd: Some(Etcd {
            connected: true,
            connections: 2,
            listings: 1,
            watches: 2,
            lease: Some((Duration::from_hours(24), Duration::from_hours(20))),
        }),
        certificate: Some((Duration::from_hours(48), Duration::from_hours(2))),
    }
}

fn nothing_known() -> Snapshot {
    Snapshot {
        ready: false,
        latest: None,
        repairs: 0,
        counters: None,
        contents: None,
        etcd: None,
        certificate: None,
        ..snapshot()
    }
}

#[test]
fn each_metric_is_there_with_its_labels_unit_and_end() {
    let page = families::open_metrics(snapshot()).unwrap();
    for line in [
        "# TYPE overlay_packets counter",
        r#"overlay_packets_total{hook="from_container",reason="encapsulated",class="forwarded"} 5"#,
        "# UNIT overlay_packet_bytes bytes",
        r#"overlay_packet_bytes_total{hook="from_uplink",reason="to_endpoint",class="forwarded"} 600"#,
        r#"overlay_verdicts_total{class="forwarded"} 11"#,
        r#"overlay_verdicts_total{class="declined"} 0"#,
        r#"overlay_verdicts_total{class="dropped"} 92233720368547758"#,
        r#"overlay_peer_ways{way="direct"} 1.0"#,
        r#"overlay_map_capacity{map="endpoints"} 4096.0"#,
        "overlay_loop_silence_seconds 0.25",
        "overlay_problems 2.0",
        "overlay_ready 1.0",
        "overlay_certificate_left_seconds 172800.0",
        "overlay_certificate_soon_seconds 7200.0",
        "overlay_lease_left_seconds 72000.0",
        "overlay_start_time_seconds 1800000000.0",
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
    }
    assert!(page.ends_with("# EOF\n"), "{page}");
    for family in FAMILIES {
        assert!(page.contains(&family.name()), "{}", family.name());
    }
}

#[test]
fn the_older_format_has_the_same_samples_and_calls_families_as_them() {
    let page = families::open_metrics(snapshot()).unwrap();
    let plain = families::plain(&page);
    let samples = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    assert_eq!(samples(&plain), samples(&page));
    assert!(!plain.contains("# UNIT") && !plain.contains("# EOF"), "{plain}");
    for family in FAMILIES {
        let help = format!("# HELP {} {}\n", family.name(), family.help);
        assert!(plain.contains(&help), "{help}{plain}");
    }
}

#[test]
fn what_is_not_known_is_not_shown() {
    let page = families::open_metrics(nothing_known()).unwrap();
    let names = page.lines().filter(|line| !line.starts_with('#'));
    let names: Vec<_> = names.filter_map(|line| line.split(['{', ' ']).next()).collect();
    let known = [
        "overlay_repairs_total",
        "overlay_ready",
        "overlay_build_info",
        "overlay_start_time_seconds",
    ];
    assert_eq!(names, known);
    assert!(page.contains("overlay_ready 0.0\n"), "{page}");
}

#[test]
fn who_understands_open_metrics_says_so() {
    let wants = |accepted: &[&str]| {
        let values = accepted.iter().map(|value| (ACCEPT, value.parse().unwrap()));
        wants_open_metrics(&values.collect())
    };
    // As Prometheus 2.42 asks.
    assert!(wants(&[
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    ]));
    assert!(wants(&["text/plain", "text/html, application/openmetrics-text"]));
    assert!(!wants(&[]) && !wants(&["*/*"]) && !wants(&["text/plain;version=0.0.4"]));
}

#[tokio::test]
async fn who_asks_all_the_time_is_shown_the_same_page() {
    let (pulse, listener) = Pulse::new();
    pulse.beat(true, Vec::new(), Census::default());
    let meters = Meters::new(listener, None, None);
    let first = meters.page().await.unwrap();
    assert!(first.contains("overlay_ready 1.0\n"), "{first}");
    assert!(Arc::ptr_eq(&first, &meters.page().await.unwrap()));
    meters.0.page.lock().await.text =
        Some((Instant::now().checked_sub(FRESH).unwrap(), first.clone()));
    assert!(!Arc::ptr_eq(&first, &meters.page().await.unwrap()));
}

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap()
}

const RULES: &str = "packaging/monitoring/overlay.rules.yml";
const RULES_TEST: &str = "packaging/monitoring/overlay.rules.test.yml";
const DASHBOARD: &str = "packaging/monitoring/overlay.dashboard.json";
const PAGE: &str = "docs/monitoring.md";

/// Every value that a label has in a query of this text.
fn label_values(text: &str, label: &str) -> BTreeSet<String> {
    let matcher = Regex::new(&format!(r#"\b{label}(?:=~|!~|!=|=)\\?"([^"\\]*)"#)).unwrap();
    let found = matcher.captures_iter(text).map(|found| found[1].to_owned()).collect::<Vec<_>>();
    found.iter().flat_map(|value| value.split('|')).map(str::to_owned).collect()
}

#[test]
fn rules_and_dashboard_name_only_what_there_is() {
    let metrics: BTreeSet<_> = FAMILIES.iter().map(families::Family::name).collect();
    let labels: [(&str, BTreeSet<&str>); 4] = [
        ("hook", Hook::ALL.iter().map(|hook| hook.name()).collect()),
        ("reason", Reason::ALL.iter().map(|reason| reason.name()).collect()),
        ("class", Reason::ALL.iter().map(|reason| Verdicts::from(reason.class()).name()).collect()),
        ("way", ["vxlan", "direct", "stack"].into()),
    ];
    let name = Regex::new(r"\boverlay_[a-z0-9_]+").unwrap();
    for path in [RULES, RULES_TEST, DASHBOARD] {
        let text = read(path);
        let named: BTreeSet<_> =
            name.find_iter(&text).map(|found| found.as_str().to_owned()).collect();
        assert!(!named.is_empty(), "{path}");
        let unknown: Vec<_> = named.difference(&metrics).collect();
        assert!(unknown.is_empty(), "{path} names what there is not: {unknown:?}");
        for (label, known) in &labels {
            for value in label_values(&text, label) {
                assert!(known.contains(value.as_str()), "{path}: no {label} is called {value}");
            }
        }
    }
}

/// Compares a file with what it should be, or writes it.
fn hold_true(path: &str, wanted: &str) {
    if env::var_os("OVERLAY_RECORD_PAGES").is_some() {
        fs::write(file(path), wanted).unwrap();
    }
    assert_eq!(read(path), wanted, "{path}: `cargo xtask docs` writes it");
}

#[test]
fn the_dashboard_explains_each_reason_of_a_refusal() {
    let mut table = String::from("| reason | what it says |\n|---|---|\n");
    for reason in Reason::ALL.iter().filter(|reason| reason.class() == Class::Dropped) {
        writeln!(table, "| `{}` | {} |", reason.name(), reason.describe()).unwrap();
    }
    let mut dashboard: serde_json::Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut panels = dashboard["panels"].as_array_mut().unwrap().iter_mut();
    let panel = panels.find(|panel| panel["title"] == "What refusals mean").unwrap();
    panel["options"]["content"] = table.into();
    hold_true(DASHBOARD, &format!("{dashboard:#}\n"));
}

#[test]
fn the_page_of_metrics_says_what_the_code_says() {
    let mut table = String::from("| metric | kind | labels | what it says |\n|---|---|---|---|\n");
    for family in FAMILIES {
        let kind = if family.name().ends_with("_total") { "counter" } else { "gauge" };
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, labels, help) = (family.name(), labels.join(", "), family.help);
        writeln!(table, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    let page = read(PAGE);
    let (before, after) = page.split_once("<!-- metrics -->\n").unwrap();
    let (_, after) = after.split_once("<!-- end -->").unwrap();
    hold_true(PAGE, &format!("{before}<!-- metrics -->\n{table}<!-- end -->{after}"));
}

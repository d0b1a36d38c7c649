//! What who watches hosts from outside is told, and by which alerts.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_agent::fail::HANG_VARIABLE;
use overlay_lab::{
    Agent, Container, ETCD_PREFIX, Etcd, Host, Lab, NETWORK_CONFIG, command::Cmd, eventually,
};
use serde_json::Value;

use crate::support::{SOON, ask, ask_socket, options, problems};

const METRICS: &str = "/metrics";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An agent that hangs must not keep who asks it for longer.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Every sample of an agent by its name and labels, in whole numbers.
fn scrape(host: &Host) -> Result<BTreeMap<String, u64>> {
    let (head, body) = ask(host, METRICS, "application/openmetrics-text", AT_ONCE)?;
    ensure!(head.starts_with("HTTP/1.0 200"), "{head}");
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| -> Result<(String, u64)> {
        let (name, value) = line.rsplit_once(' ').context("no value")?;
        let (whole, _) = value.split_once('.').unwrap_or((value, ""));
        Ok((name.to_owned(), whole.parse()?))
    };
    lines.map(|line| sample(line).with_context(|| line.to_owned())).collect()
}

/// One sample of an agent that has it.
fn sample(host: &Host, name: &str) -> Result<u64> {
    let found = scrape(host)?;
    found.get(name).copied().with_context(|| format!("no {name} in {found:#?}"))
}

/// Waits until a sample is as it should be.
fn wait_for(host: &Host, within: Duration, name: &str, is_right: impl Fn(u64) -> bool) {
    eventually(within, name, || {
        let value = sample(host, name)?;
        ensure!(is_right(value), "{name} is {value}");
        Ok(())
    })
    .unwrap();
}

fn container(agent: &mut Agent, host: &Host) -> Container {
    let container = host.add_container("c").unwrap();
    agent
        .wait_status(SOON, "a container that is known", |status| {
            ensure!(status["endpoints"] == 1, "{}", status["endpoints"]);
            Ok(())
        })
        .unwrap();
    container
}

/// What status says of packets, by the name of the sample that says the same.
fn counters(status: &Value) -> BTreeMap<String, u64> {
    let mut samples = BTreeMap::new();
    for row in status["counters"].as_array().unwrap() {
        let text = |field: &str| row[field].as_str().unwrap();
        let (hook, reason, class) = (text("hook"), text("reason"), text("class"));
        let labels = format!("{{hook=\"{hook}\",reason=\"{reason}\",class=\"{class}\"}}");
        let number = |field: &str| row[field].as_u64().unwrap();
        samples.insert(format!("overlay_packets_total{labels}"), number("packets"));
        samples.insert(format!("overlay_packet_bytes_total{labels}"), number("bytes"));
        *samples.entry(format!("overlay_verdicts_total{{class=\"{class}\"}}")).or_default() +=
            number("packets");
    }
    samples
}

/// That the metrics of a moment say what status says. Packets come when they like.
fn agrees(agent: &Agent, host: &Host) -> Result<()> {
    let before = agent.status()?;
    let found = scrape(host)?;
    let after = agent.status()?;
    ensure!(counters(&before) == counters(&after), "packets have come meanwhile");
    let of_packets = |name: &str| name.starts_with("overlay_packet");
    let shown = found.iter().filter(|(name, _)| of_packets(name));
    let shown: BTreeMap<_, _> = shown.map(|(name, value)| (name.clone(), *value)).collect();
    let mut expected = counters(&after);
    for (name, value) in &expected {
        ensure!(found.get(name) == Some(value), "{name}: {value}, but {:?}", found.get(name));
    }
    expected.retain(|name, _| of_packets(name));
    ensure!(shown == expected, "{shown:#?} is not {expected:#?}");
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    for (name, expected) in [
        ("overlay_peers", after["peers"].as_array().map_or(0, Vec::len) as u64),
        ("overlay_endpoints", number(&after["endpoints"])),
        ("overlay_repairs_total", number(&after["repairs"])),
        ("overlay_problems", problems(&after).len() as u64),
        ("overlay_ready", u64::from(after["ready"] == true)),
    ] {
        ensure!(found.get(name) == Some(&expected), "{name}: {expected}, but {found:#?}");
    }
    Ok(())
}

#[test]
fn metrics_are_what_promtool_accepts_and_agree_with_status() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let [host, other] = [lab.host(0), lab.host(1)];
    // One that is somebody else's to make anew.
    let files =
        ["cert", "key"].map(|name| (name, host.directory().join(name).display().to_string()));
    Cmd::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-subj", "/CN=host", "-days", "10", "-out", &files[0].1, "-keyout", &files[1].1])
        .run()
        .unwrap();
    let files = files.map(|(name, file)| format!("--etcd-{name}file={file}"));
    let with_files = files.iter().fold(options(&etcd), |options, file| options.argument(file));
    let mut agents = [
        host.start_agent(&with_files.argument("--lease-ttl=3600")).unwrap(),
        other.start_agent(&options(&etcd)).unwrap(),
    ];
    let containers = [(0, host), (1, other)].map(|(n, host)| container(&mut agents[n], host));
    eventually(SOON, "a ping", || containers[0].ping(containers[1].address())).unwrap();
    let [a, b, c, _] = containers[1].address().octets();
    let of_other = std::net::Ipv4Addr::new(a, b, c, 77).to_string();
    containers[0].command("ip").args(["addr", "add", &of_other, "dev", "lo"]).run().unwrap();
    let target = containers[1].address().to_string();
    let forged = ["-c1", "-W1", "-I", &of_other, &target];
    containers[0].command("ping").args(forged).output().unwrap();
    eventually(SOON, "the metrics to agree with status", || agrees(&agents[0], host)).unwrap();

    let found = scrape(host).unwrap();
    let value =
        |name: &str| found.get(name).copied().unwrap_or_else(|| panic!("no {name} in {found:#?}"));
    assert!(value(r#"overlay_verdicts_total{class="dropped"}"#) >= 1, "{found:#?}");
    assert!(value("overlay_repairs_total") >= 1, "{found:#?}");
    wait_for(host, SOON, r#"overlay_peer_ways{way="vxlan"}"#, |count| count == 1);
    wait_for(host, SOON, r#"overlay_map_entries{map="peers"}"#, |count| count == 1);
    wait_for(host, SOON, r#"overlay_map_entries{map="vteps"}"#, |count| count == 1);
    assert_eq!(value(r#"overlay_map_capacity{map="peers"}"#), 131_072);
    assert_eq!(value("overlay_lease_ttl_seconds"), 3600);
    assert!((3500..=3600).contains(&value("overlay_lease_left_seconds")), "{found:#?}");
    let left = value("overlay_certificate_left_seconds");
    assert!((9 * 86_400..=10 * 86_400).contains(&left), "{left}");
    // Too few: people are told as well.
    let told = problems(&agents[0].status().unwrap()).join(" ");
    assert!(told.contains("cert expires in 9 days"), "{told}");
    let abi = overlay_common::tables::ABI_VERSION;
    let info =
        format!("overlay_build_info{{version=\"{}\",abi=\"{abi}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(value(&info), 1);
    let verifications = value("overlay_verifications_total");
    wait_for(host, SOON, "overlay_verifications_total", |now| now > verifications);

    let understands = "application/openmetrics-text;version=1.0.0,*/*;q=0.1";
    for (head, page) in at_both(host, understands) {
        assert!(head.contains(&format!("content-type: {OPEN_METRICS}")), "{head}");
        assert!(page.ends_with("# EOF\n"), "{page}");
    }
    for (head, page) in at_both(host, "*/*") {
        assert!(head.contains(&format!("content-type: {PLAIN}")), "{head}");
        let checked = Cmd::new("promtool").args(["check", "metrics"]).input(page.clone()).output();
        let checked = checked.unwrap();
        assert_eq!(checked.status.code(), Some(0), "{}{}{page}", checked.stdout, checked.stderr);
    }
}

/// The answers at the port and at the socket.
fn at_both(host: &Host, accept: &str) -> [(String, String); 2] {
    [ask(host, METRICS, accept, AT_ONCE), ask_socket(host, METRICS, accept)].map(Result::unwrap)
}

#[test]
fn an_agent_whose_loop_hangs_answers_and_says_so() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let [host, other] = [lab.host(0), lab.host(1)];
    let hang = host.directory().join("hang");
    let hanging = options(&etcd).environment(HANG_VARIABLE, hang.to_str().unwrap());
    let mut agents =
        [host.start_agent(&hanging).unwrap(), other.start_agent(&options(&etcd)).unwrap()];
    let containers = [(0, host), (1, other)].map(|(n, host)| container(&mut agents[n], host));
    eventually(SOON, "a ping", || containers[0].ping(containers[1].address())).unwrap();
    wait_for(host, SOON, "overlay_ready", |ready| ready == 1);
    assert!(sample(host, "overlay_loop_silence_seconds").unwrap() < 10);

    fs::write(&hang, "").unwrap();
    let start = Instant::now();
    wait_for(host, SOON * 2, "overlay_loop_silence_seconds", |silence| silence >= 10);
    assert!(start.elapsed() >= Duration::from_secs(8), "the loop was alive until {start:?}");
    assert_eq!(sample(host, "overlay_ready").unwrap(), 0);
    let encapsulated =
        r#"overlay_packets_total{hook="from_container",reason="encapsulated",class="forwarded"}"#;
    let before = sample(host, encapsulated).unwrap();
    containers[0].ping(containers[1].address()).unwrap();
    wait_for(host, SOON, encapsulated, |packets| packets > before);
    assert!(ask_socket(host, METRICS, "*/*").unwrap().1.contains("overlay_ready 0"));

    fs::remove_file(&hang).unwrap();
    wait_for(host, SOON, "overlay_ready", |ready| ready == 1);
    wait_for(host, SOON, "overlay_loop_silence_seconds", |silence| silence < 10);
}

#[test]
fn metrics_tell_of_etcd_and_the_lease_from_the_first_moment_on() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let mut etcd = Etcd::on_host(host).unwrap();
    etcd.put(&format!("{ETCD_PREFIX}/config"), NETWORK_CONFIG).unwrap();
    etcd.stop().unwrap();
    let mut agent = host.spawn_agent(&options(&etcd).argument("--lease-ttl=30")).unwrap();
    wait_for(host, SOON, "overlay_etcd_connected", |connected| connected == 0);
    let found = scrape(host).unwrap();
    assert_eq!(found.get("overlay_ready"), Some(&0));
    for unknown in
        ["overlay_peers", "overlay_lease_left_seconds", "overlay_certificate_left_seconds"]
    {
        assert_eq!(found.get(unknown), None, "{found:#?}");
    }

    etcd.start_again().unwrap();
    agent.wait_ready(SOON).unwrap();
    wait_for(host, SOON, "overlay_etcd_connected", |connected| connected == 1);
    let watches = sample(host, "overlay_etcd_watches_total").unwrap();
    assert!(watches >= 1 && sample(host, "overlay_etcd_listings_total").unwrap() >= 1);
    // It is renewed after 10 s at most.
    wait_for(host, SOON, "overlay_lease_left_seconds", |left| left < 27);
    wait_for(host, SOON, "overlay_lease_left_seconds", |left| left > 28);

    etcd.stop().unwrap();
    wait_for(host, SOON, "overlay_etcd_connected", |connected| connected == 0);
    wait_for(host, SOON * 2, "overlay_lease_left_seconds", |left| left < 18);
    etcd.start_again().unwrap();
    wait_for(host, SOON, "overlay_etcd_connected", |connected| connected == 1);
    wait_for(host, SOON, "overlay_etcd_watches_total", |now| now > watches);
    wait_for(host, SOON, "overlay_lease_left_seconds", |left| left > 18);
}

#[test]
fn each_alert_fires_for_who_is_ill_and_is_silent_otherwise() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/monitoring");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let (rules, tests) = (read("overlay.rules.yml"), read("overlay.rules.test.yml"));
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 6, "{alerts:?}");
    for alert in alerts {
        let silent = tests.matches(&format!("alertname: {alert}, ")).count();
        let fires = tests.matches(&format!("alertname: {alert}\n")).count();
        assert!(silent > 0 && fires > 0, "{alert} is not tested both ways");
    }
    for (verb, file) in [("check", "overlay.rules.yml"), ("test", "overlay.rules.test.yml")] {
        let command = Cmd::new("promtool").args([verb, "rules", file]).directory(&folder);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}{}", output.stdout, output.stderr);
    }
}

//! `cargo xtask load`: the programs on a developer's own host, and that host as it was when they are gone.

use std::{ffi::OsStr, fs, path::PathBuf, process::ExitStatus, time::Duration};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use overlay_lab::{
    AgentOptions, BRIDGE, ETCD_PREFIX, Host, Lab, NETWORK_CONFIG, Process, UPLINK, command::Cmd,
    eventually, workspace,
};

use crate::{
    bad_input::as_nobody,
    overlay::{Overlay, SOON},
};

const AGENT: &str = env!("CARGO_BIN_EXE_overlay-agent");

/// The door by which all tests are run, and which is built by then.
fn xtask() -> PathBuf {
    let xtask = workspace::target_dir().unwrap().join("debug/xtask");
    assert!(xtask.is_file(), "`cargo build --package xtask` makes {}", xtask.display());
    xtask
}

/// `load` on a host, with what is on it under the host's own names.
fn load(host: &Host, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Cmd {
    host.command(xtask())
        .args(["load", "--iface", UPLINK, "--pin-path"])
        .arg(host.pins())
        .arg("--subnet-file")
        .arg(host.subnet_file())
        .args(arguments)
}

/// What an agent could have left, as the tools print it.
fn state(host: &Host) -> Vec<String> {
    [
        "ip -oneline -brief link",
        "ip rule",
        "ip -4 route show table all",
        "iptables-save",
        "nft --stateless list ruleset",
    ]
    .map(|command| {
        let mut words = command.split(' ');
        let output = host.command(words.next().unwrap()).args(words).read().unwrap();
        // The time of day, counters, and whether a bridge has noticed that its port is up are no state.
        let lines = output.lines().filter(|line| !line.starts_with(['#', ':']));
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines = lines.map(|line| words(&line.replace("UNKNOWN", "UP")).join(" "));
        format!("{command}:\n{}", lines.collect::<Vec<_>>().join("\n"))
    })
    .into_iter()
    .chain([host.pins(), &host.subnet_file()].map(|path| format!("{}", path.exists())))
    .collect()
}

/// Ctrl-C, as a terminal sends it.
fn interrupt(loaded: &mut Process) -> ExitStatus {
    loaded.signal(Signal::SIGINT).unwrap();
    eventually(SOON, "`load` to end", || {
        loaded.exit_status()?.with_context(|| format!("it runs: {}", loaded.log_tail(20)))
    })
    .unwrap()
}

/// It must end with `code` and one line of error that has every one of `words`, and leave the host as it was.
fn ends(host: &Host, command: &Cmd, code: i32, words: &[&str]) {
    let before = state(host);
    let output = command.clone().deadline(Duration::from_secs(30)).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}{}", output.stdout, output.stderr);
    let errors: Vec<_> = output.stderr.lines().filter(|line| line.starts_with("error:")).collect();
    let [error] = errors[..] else { panic!("not one line of error: {}", output.stderr) };
    assert!(words.iter().all(|word| error.contains(word)), "{error:?} does not say {words:?}");
    assert_eq!(state(host), before);
}

#[test]
fn counters_follow_what_comes_and_goes_until_ctrl_c_and_nothing_is_left() {
    let lab = Lab::builder().start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let [host, other] = [lab.host(0), lab.host(1)];
    let _agent = other.start_agent(&AgentOptions::new(AGENT, &etcd)).unwrap();
    let remote = other.add_container("c").unwrap();
    let leases = || {
        let leases = etcd.list(&format!("{ETCD_PREFIX}/subnets/")).unwrap();
        leases.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    // As on every host with Docker: its first rule makes a table that outlives the last.
    for verb in ["-A", "-D"] {
        host.command("iptables").args([verb, "FORWARD", "-j", "ACCEPT"]).run().unwrap();
    }
    let (before, leased_before) = (state(host), leases());

    let command = load(host, ["--etcd-endpoints", &etcd.endpoint(), "--agent", AGENT]);
    let log = host.directory().join("load.log");
    let mut loaded = Process::spawn(lab.ledger(), "load", &command, &log).unwrap();
    eventually(Duration::from_secs(20), "a subnet", || {
        loaded.check_running()?;
        host.subnet()
    })
    .unwrap();
    assert_eq!(leases().len(), 2);
    let container = host.add_container("c").unwrap();
    let counted = |hook: &str, reason: &str| {
        let log = fs::read_to_string(&log).unwrap();
        let all = log.lines().filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [_, "s", found, why, more, "packets", bytes, "bytes", _, "in", "all"] = words[..]
            else {
                return None;
            };
            assert!(bytes.starts_with('+') && bytes != "+0", "{line}");
            (found == hook && why == reason).then(|| more.parse::<u64>().unwrap())
        });
        all.sum::<u64>()
    };
    eventually(SOON, "the fast path to be followed both ways", || {
        container.ping(remote.address())?;
        let [out, back] =
            [counted("from_container", "encapsulated"), counted("from_uplink", "to_endpoint")];
        ensure!(out > 0 && back > 0, "{out} and {back}: {}", loaded.log_tail(20));
        Ok(())
    })
    .unwrap();
    let said = loaded.log().unwrap();
    let socket = said.split("--socket ").nth(1).unwrap().lines().next().unwrap().to_owned();
    assert!(PathBuf::from(&socket).exists(), "{socket}");

    assert!(interrupt(&mut loaded).success(), "{}", loaded.log_tail(20));
    let said = loaded.log().unwrap();
    for removed in ["removed device overlay.1", "removed programs and maps", "removed lease"] {
        assert!(said.contains(removed), "{removed}: {said}");
    }
    drop(container);
    host.ip(["link", "delete", BRIDGE]).unwrap();
    // The kernel takes the container's namespace apart in its own time, and its end of the cable with it.
    eventually(SOON, "the host to be as it was", || {
        let now = state(host);
        ensure!(now == before, "{now:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(leases(), leased_before);
    assert!(!PathBuf::from(&socket).parent().unwrap().exists(), "{socket}");
}

#[test]
fn where_an_agent_runs_or_has_left_something_it_is_refused_and_changes_nothing() {
    let mut overlay = Overlay::new();
    let host = overlay.lab.host(0);
    let endpoint = overlay.etcd().endpoint();
    let arguments = ["--etcd-endpoints", &endpoint, "--agent", AGENT];
    let words = ["there is an overlay on this host already", "device overlay.1", "cleanup"];
    // The agent's own rules are made once before Docker's bridge is there, and once more.
    eventually(SOON, "the rules to name the bridge", || {
        let rules = host.command("nft").args(["list", "table", "ip", "overlay.1"]).read()?;
        ensure!(rules.contains(BRIDGE), "{rules}");
        Ok(())
    })
    .unwrap();
    ends(host, &load(host, arguments), 75, &words);
    // Nothing of that agent's is where we would put ours, and yet cleaning up would take its device.
    let elsewhere = host.pins().with_file_name("elsewhere");
    let elsewhere = host
        .command(xtask())
        .args(["load", "--iface", UPLINK, "--pin-path"])
        .arg(&elsewhere)
        .args(arguments);
    ends(host, &elsewhere, 75, &words);
    let status = overlay.agents[0].status().unwrap();
    assert_eq!(status["problems"], serde_json::json!([]));
    overlay.ping();
    // A stopped agent's datapath goes on, and so must the containers.
    overlay.agents[0].stop().unwrap();
    ends(overlay.lab.host(0), &elsewhere, 75, &words);
    overlay.ping();
}

#[test]
fn what_cannot_be_followed_is_one_line_and_a_number_and_leaves_nothing() {
    let overlay = Lab::builder().hosts(1).start().unwrap();
    let host = overlay.host(0);
    let text = host.directory().join("text");
    fs::write(&text, "no object, and no peers file").unwrap();
    let text = text.to_str().unwrap();
    let agent = ["--agent", AGENT];
    for (arguments, code, words) in [
        (&["--object", "/nowhere/programs.o"][..], 66, &["--object", "/nowhere/programs.o"][..]),
        (&["--object", text], 65, &["--object", text, "no object of BPF programs"]),
        (&["--peers", "/nowhere/peers.toml"], 66, &["--peers", "/nowhere/peers.toml"]),
        (&["--agent", "/nowhere/agent"], 66, &["--agent", "/nowhere/agent"]),
        (&["--", "--pin-path=/sys/fs/bpf/elsewhere"], 64, &["--pin-path"]),
        // What the agent says is not said again.
        (&["--peers", text, agent[0], agent[1]], 78, &["peers file", "malformed"]),
        (&["--peers", text, agent[0], agent[1], "--", "--fast-path=maybe"], 64, &["fast-path"]),
        (&["--etcd-endpoints", "ftp://x", agent[0], agent[1]], 64, &["--etcd-endpoints"]),
        (&["--etcd-endpoints", "http://127.0.0.1:1", agent[0], agent[1]], 69, &["127.0.0.1:1"]),
    ] {
        ends(host, &load(host, arguments), code, words);
    }
}

#[test]
fn without_root_it_says_what_to_run() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let (_directory, command) = as_nobody(host, &xtask());
    ends(host, &command.arg("load"), 77, &["root", "sudo", "cargo xtask load"]);
}

use std::{collections::HashMap, net::Ipv4Addr, path::Path};

use super::{checked::visible_password, *};
use crate::control::run_config::RunConfig;

fn parse(args: &[&str], variables: &[(&str, &str)]) -> Result<Cli, clap::Error> {
    let variables: HashMap<String, OsString> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    let args = std::iter::once("overlay-agent").chain(args.iter().copied());
    Cli::from_command_line(args.map(OsString::from), &|name: &str| variables.get(name).cloned())
}

fn run(args: &[&str], variables: &[(&str, &str)]) -> RunConfig {
    let args: Vec<_> = std::iter::once("run").chain(args.iter().copied()).collect();
    match parse(&args, variables).map(|cli| cli.command) {
        Ok(Command::Run(args)) => RunConfig::try_from(*args).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn usage(args: &[&str]) -> String {
    let args: Vec<_> = std::iter::once("run").chain(args.iter().copied()).collect();
    match parse(&args, &[]).map(|cli| cli.command) {
        Ok(Command::Run(args)) => RunConfig::try_from(*args).unwrap_err().to_string(),
        Ok(other) => panic!("{other:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_definition_of_the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn defaults_are_flannels() {
    let config = run(&[], &[]);
    assert_eq!(config.etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(config.etcd.prefix.config_key(), "/coreos.com/network/config");
    assert_eq!(config.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert_eq!(config.lease_ttl.as_secs(), 86_400);
    assert_eq!(config.start_without_etcd.map(|patience| patience.as_secs()), Some(10));
    assert_eq!(run(&["--start-without-etcd=0"], &[]).start_without_etcd, None);
    assert_eq!(config.pin_path, Path::new("/sys/fs/bpf/overlay"));
    assert_eq!(config.socket, Path::new("/run/overlay/agent.sock"));
    assert!(config.fast_path && !config.ip_masq);
    assert!(config.etcd.user.is_none() && config.etcd.identity.is_none());
    assert!(config.etcd.ca_file.is_none() && config.healthz.is_none());
    assert!(config.without_effect.is_empty());
}

#[test]
fn a_flanneld_command_line_in_gos_style_is_understood() {
    let config = run(
        &[
            "-etcd-endpoints=http://a:2379,http://b:2379",
            "-etcd-prefix",
            "/net/",
            "-iface=eth1",
            "-iface",
            "10.0.0.1",
            "-ip-masq",
            "-iptables-forward-rules=false",
            "-healthz-port=8471",
            "-v=4",
        ],
        &[],
    );
    assert_eq!(config.etcd.endpoints, ["http://a:2379", "http://b:2379"]);
    assert_eq!(config.etcd.prefix.config_key(), "/net/config");
    assert_eq!(config.uplink.ifaces, ["eth1", "10.0.0.1"]);
    assert!(config.ip_masq);
    assert_eq!(config.healthz, Some("127.0.0.1:8471".parse().unwrap()));
    assert!(config.without_effect.is_empty(), "{:?}", config.without_effect);
}

#[test]
fn booleans_are_written_as_in_go() {
    for (arg, expected) in [
        ("--ip-masq", true),
        ("--ip-masq=true", true),
        ("--ip-masq=1", true),
        ("-ip-masq=T", true),
        ("--ip-masq=false", false),
        ("-ip-masq=0", false),
    ] {
        assert_eq!(run(&[arg], &[]).ip_masq, expected, "{arg}");
    }
    assert!(usage(&["--ip-masq=yes"]).contains("it must be true or false"));
}

#[test]
fn the_command_line_counts_before_our_variables_and_those_before_flannels() {
    let variables = [("OVERLAY_ETCD_PREFIX", "/ours"), ("FLANNELD_ETCD_PREFIX", "/theirs")];
    let prefix =
        |args: &[&str], variables: &[(&str, &str)]| run(args, variables).etcd.prefix.to_string();
    assert_eq!(prefix(&["--etcd-prefix=/typed"], &variables), "/typed");
    assert_eq!(prefix(&[], &variables), "/ours");
    assert_eq!(prefix(&[], &variables[1..]), "/theirs");
    assert_eq!(prefix(&[], &[("OVERLAY_ETCD_PREFIX", ""), variables[1]]), "/theirs");
}

#[test]
fn variables_reach_every_kind_of_flag() {
    let config = run(
        &[],
        &[
            ("FLANNELD_IP_MASQ", "true"),
            ("FLANNELD_IFACE", "eth1"),
            ("FLANNELD_PUBLIC_IP", "192.0.2.7"),
            ("OVERLAY_FAST_PATH", "off"),
            ("OVERLAY_LEASE_TTL", "60"),
            ("OVERLAY_BRIDGE", "br0,br1"),
        ],
    );
    assert!(config.ip_masq && !config.fast_path);
    assert_eq!(config.uplink.ifaces, ["eth1"]);
    assert_eq!(config.uplink.public_ip, Some(Ipv4Addr::new(192, 0, 2, 7)));
    assert_eq!(config.lease_ttl.as_secs(), 60);
    assert_eq!(config.bridges, ["br0", "br1"]);
}

#[test]
fn a_repeatable_flag_on_the_command_line_hides_its_variable() {
    let config = run(&["--iface=eth0"], &[("FLANNELD_IFACE", "eth1")]);
    assert_eq!(config.uplink.ifaces, ["eth0"]);
}

#[test]
fn a_version_in_the_environment_is_nobodys_flag() {
    let variables = [("FLANNELD_VERSION", "0.28"), ("OVERLAY_HELP", "1")];
    assert!(run(&[], &variables).fast_path);
}

#[test]
fn a_bad_variable_is_named() {
    let error = parse(&["run"], &[("OVERLAY_HEALTHZ_PORT", "many")]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("error: environment variable OVERLAY_HEALTHZ_PORT: invalid value 'many'"),
        "{text}"
    );
}

#[test]
fn a_bad_variable_of_flannels_is_named_in_one_line_and_passed_over_for_the_default() {
    let variables = [
        ("FLANNELD_HEALTHZ_PORT", "many"),
        ("FLANNELD_IP_MASQ", "bogus"),
        ("FLANNELD_IFACE", "eth1"),
        ("FLANNELD_ETCD_PREFIX", ""),
    ];
    let cli = parse(&["run"], &variables).unwrap();
    let [port, masq] = &cli.passed_over[..] else { panic!("{:?}", cli.passed_over) };
    assert!(
        port.starts_with("environment variable FLANNELD_HEALTHZ_PORT: invalid value 'many'"),
        "{port}"
    );
    assert!(masq.contains("FLANNELD_IP_MASQ: invalid value 'bogus'"), "{masq}");
    for line in [port, masq] {
        assert!(line.ends_with("passed over") && !line.contains('\n'), "{line}");
    }
    let config = run(&[], &variables);
    assert!(!config.ip_masq && config.healthz.is_none());
    assert_eq!(config.uplink.ifaces, ["eth1"]);
    assert!(run(&["--ip-masq"], &variables).ip_masq, "the command line wins");
}

#[test]
fn what_cannot_be_followed_is_refused_with_the_flag_and_the_rule() {
    for (args, expected) in [
        (&["--etcd-endpoints=,"][..], "--etcd-endpoints names no endpoint"),
        (
            &["--etcd-certfile=c.pem"],
            "--etcd-certfile needs --etcd-keyfile: a certificate and its key go together",
        ),
        (
            &["--etcd-keyfile=k.pem"],
            "--etcd-keyfile needs --etcd-certfile: a certificate and its key go together",
        ),
        (&["--etcd-password=x"], "--etcd-password needs --etcd-username"),
        (&["--public-ip=224.0.0.1"], "--public-ip must be the address of a host, but is 224.0.0.1"),
        (&["--public-ip=fe80::1"], r#"--public-ip must be an IPv4 address, but is "fe80::1""#),
        (
            &["--iface-can-reach=host"],
            r#"--iface-can-reach must be an IPv4 address, but is "host""#,
        ),
    ] {
        assert_eq!(usage(args), expected, "{args:?}");
    }
    assert!(
        usage(&["--iface-regex=("]).starts_with(r#"--iface-regex "(" is no regular expression"#)
    );
    for margin in ["0", "1440"] {
        let error = usage(&["--subnet-lease-renew-margin", margin]);
        assert!(error.contains("is not in 1..=1439"), "{error}");
    }
}

#[test]
fn no_log_can_show_the_password() {
    let config = run(&["--etcd-username=me", "--etcd-password=hunter2"], &[]);
    assert_eq!(config.etcd.user.as_ref().unwrap().1.reveal(), "hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_password_comes_from_a_file_by_flag_or_variable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    std::fs::write(&path, "hunter2 \nmore\n").unwrap();
    let file = path.display().to_string();
    let flag = format!("--etcd-password-file={file}");
    for config in [
        run(&["--etcd-username=me", &flag], &[]),
        run(&["--etcd-username=me"], &[("OVERLAY_ETCD_PASSWORD_FILE", &file)]),
    ] {
        let (name, password) = config.etcd.user.as_ref().unwrap();
        assert_eq!((name.as_str(), password.reveal()), ("me", "hunter2 "));
    }
    assert_eq!(usage(&[&flag]), "--etcd-password-file needs --etcd-username");
    assert_eq!(
        usage(&["--etcd-username=me", "--etcd-password=x", &flag]),
        "--etcd-password and --etcd-password-file exclude each other"
    );
    std::fs::write(&path, "\n").unwrap();
    assert_eq!(
        usage(&["--etcd-username=me", &flag]),
        format!("--etcd-password-file {file}: its first line is empty")
    );
    std::fs::remove_file(&path).unwrap();
    let error = usage(&["--etcd-username=me", &flag]);
    assert!(error.starts_with(&format!("--etcd-password-file {file}: No such file")), "{error}");
}

#[test]
fn a_password_that_others_can_see_is_warned_of() {
    let warning = |args: &[&str]| visible_password(args.iter().map(Into::into)).is_some();
    assert!(warning(&["overlay-agent", "run", "--etcd-password=x"]));
    assert!(warning(&["overlay-agent", "run", "-etcd-password", "x"]));
    assert!(!warning(&["overlay-agent", "run", "--etcd-password-file=x"]));
    assert!(!warning(&["overlay-agent", "run", "--etcd-username", "etcd-password"]));
}

#[test]
fn flags_without_effect_are_said() {
    let config = run(
        &[
            "--kube-api-url=http://k8s",
            "-kubeconfig-file",
            "/etc/k",
            "--kube-subnet-mgr=false",
            "--public-ipv6=fd00::1",
            "--subnet-lease-renew-margin=10",
            "-vmodule=etcd=9",
        ],
        &[],
    );
    assert_eq!(
        config.without_effect,
        [
            "--kube-api-url, --kubeconfig-file have no effect: leases and the network config are in \
             etcd, not in Kubernetes",
            "--vmodule has no effect: the log goes to stderr, and -v and RUST_LOG say how much of it",
            "--public-ipv6 has no effect: only IPv4 is carried",
            "--subnet-lease-renew-margin has no effect: leases are kept alive all the time",
        ]
    );
}

#[test]
fn whatever_flanneld_starts_with_is_taken() {
    let taken = |line: &str, what: &dyn Fn(&RunConfig) -> bool| {
        let config = run(&line.split(' ').collect::<Vec<_>>(), &[]);
        assert!(what(&config), "{line}: {config:?}");
    };
    for line in [
        "--v 5",
        "-v 5",
        "-v=5",
        "--v=5",
        "-v=4 --v 2",
        "-v 2147483647",
        "--v -1",
        "-vmodule etcd=9,main=3",
        "-log_backtrace_at=main.go:1 --log_backtrace_at main.go:1",
        "-logtostderr -alsologtostderr=false -stderrthreshold INFO -log_dir=/tmp",
        "--kube-subnet-mgr=false -kube-subnet-mgr=0",
        "--kube-api-url http://k8s --kubeconfig-file /k --kube-annotation-prefix x.io",
        "-net-config-path=/etc/kube-flannel/net-conf.json -set-node-network-unavailable=false",
        "--public-ipv6 fd00::1",
        "--healthz-ip nonsense",
        "--healthz-ip= --healthz-port -1",
        "--subnet-lease-renew-margin 60 --subnet-lease-renew-margin=1439",
        "--version=false",
        "--iptables-resync=-1",
    ] {
        taken(line, &|_| true);
    }
    taken("--ip-masq=false -ip-masq", &|config| config.ip_masq);
    taken("-ip-masq --ip-masq=F", &|config| !config.ip_masq);
    taken("--etcd-prefix /a -etcd-prefix=/b", &|config| config.etcd.prefix.to_string() == "/b");
    taken("-iface=a --iface b -iface c", &|config| config.uplink.ifaces == ["a", "b", "c"]);
    taken("--iface-regex a -iface-regex=b", &|config| config.uplink.regexes.len() == 2);
    taken("-etcd-username me -etcd-password -secret-", &|config| {
        config.etcd.user.as_ref().is_some_and(|(_, password)| password.reveal() == "-secret-")
    });
    taken("-healthz-port 0x2117", &|config| {
        config.healthz == Some("127.0.0.1:8471".parse().unwrap())
    });
    taken("-healthz-port=1_0 -healthz-ip=", &|config| {
        config.healthz == Some("0.0.0.0:10".parse().unwrap())
    });
    taken("-iptables-resync 010", &|config| config.iptables_resync.as_secs() == 8);
    taken("-ip-blackhole-route", &|config| config.blackhole);
}

#[test]
fn whatever_flanneld_refuses_is_refused() {
    for (line, expected) in [
        ("--kube-subnet-mgr", "--kube-subnet-mgr is not supported: leases"),
        ("-kube-subnet-mgr=false -kube-subnet-mgr=T", "--kube-subnet-mgr is not supported"),
        ("--nonsense", "unexpected argument '--nonsense'"),
        ("-nonsense=1", "unexpected argument '--nonsense'"),
        ("--ip-masq=", "it must be true or false"),
        ("--ip-masq=maybe", "it must be true or false"),
        ("--healthz-port 1.5", "it must be a whole number"),
        ("--healthz-port --ip-masq", "invalid value '--ip-masq'"),
        ("--healthz-port=65536", "--healthz-port is 65536, which is not in 0..=65535"),
        ("--healthz-port=1 --healthz-ip=1.2.3.4.5.6", "--healthz-ip must be an address"),
        ("--iface", "a value is required"),
        ("-v=much", "it must be a whole number"),
        ("--subnet-lease-renew-margin=-5", "is not in 1..=1439"),
        ("--etcd-endpoints unix:///etcd.sock", "is neither http:// nor https://"),
    ] {
        let error = usage(&line.split(' ').collect::<Vec<_>>());
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn flags_end_at_the_first_word_that_is_none_and_that_is_said() {
    for (line, ignored) in [
        ("--ip-masq foo", r#""foo" is no flag: it is ignored, as by flanneld"#),
        ("--ip-masq true --iface=x", r#""true" is no flag: it is ignored, and the 1 after it"#),
        ("--ip-masq -- --iface x", r#""--iface" is no flag: it is ignored, and the 1 after it"#),
        ("--ip-masq -", r#""-" is no flag: it is ignored"#),
    ] {
        let args: Vec<_> = ["run"].into_iter().chain(line.split(' ')).collect();
        let cli = parse(&args, &[]).unwrap();
        let [said] = &cli.passed_over[..] else { panic!("{line}: {:?}", cli.passed_over) };
        assert!(said.starts_with(ignored), "{line}: {said}");
        let config = run(&args[1..], &[]);
        assert!(config.ip_masq && config.uplink.ifaces.is_empty(), "{line}");
    }
    assert!(parse(&["run", "--ip-masq", "--"], &[]).unwrap().passed_over.is_empty());
    // Other verbs are not flanneld's.
    parse(&["status", "foo"], &[]).unwrap_err();
}

#[test]
fn endpoints_are_spelled_as_for_gos_client() {
    for (typed, expected) in [
        ("HTTP://127.0.0.1:2379", "http://127.0.0.1:2379"),
        ("HttpS://etcd.example:2379/", "https://etcd.example:2379"),
        ("http://127.0.0.1:2379/v3/", "http://127.0.0.1:2379"),
        ("127.0.0.1:2379", "127.0.0.1:2379"),
        ("etcd.example:2379/", "etcd.example:2379"),
        ("http://[fd00::1]:2379", "http://[fd00::1]:2379"),
    ] {
        let flag = format!("--etcd-endpoints= {typed} , http://b:1");
        assert_eq!(run(&[&flag], &[]).etcd.endpoints, [expected, "http://b:1"], "{typed}");
    }
}

#[test]
fn verbosity_is_gos_too_and_comes_from_flannels_variable() {
    for (args, expected) in [
        (&["run", "--v", "5"][..], 5),
        (&["run", "-v=1", "-v", "3"], 3),
        (&["run", "-v", "--ip-masq"], 1),
        (&["run", "-v", "1000"], 255),
        (&["run", "-v", "-3"], 0),
        (&["--v", "2", "run"], 2),
        (&["status", "--v", "2"], 2),
    ] {
        assert_eq!(parse(args, &[]).unwrap().verbosity, expected, "{args:?}");
    }
    assert_eq!(parse(&["run"], &[("FLANNELD_V", "4")]).unwrap().verbosity, 4);
    assert_eq!(parse(&["status"], &[("FLANNELD_V", "4")]).unwrap().verbosity, 0);
}

#[test]
fn whole_numbers_are_written_as_in_go() {
    for (text, expected) in [
        ("0", Some(0)),
        ("-5", Some(-5)),
        ("+5", Some(5)),
        ("010", Some(8)),
        ("0_7", Some(7)),
        ("0XfF", Some(255)),
        ("-0b101", Some(-5)),
        ("1_000", Some(1000)),
        ("9223372036854775807", Some(i64::MAX)),
        ("9223372036854775808", None),
        ("", None),
        ("0x", None),
        ("09", None),
        ("_1", None),
        ("1_", None),
        ("1__0", None),
        ("+-5", None),
        ("1e3", None),
    ] {
        assert_eq!(go_style::go_int(text).ok(), expected, "{text}");
    }
}

#[test]
fn help_and_version_are_asked_for_in_every_style() {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    for (flag, kind) in [
        ("-h", DisplayHelp),
        ("--help", DisplayHelp),
        ("-help", DisplayHelp),
        ("-V", DisplayVersion),
        ("-version", DisplayVersion),
        ("--version=true", DisplayVersion),
    ] {
        let error = parse(&["run", "--ip-masq", flag, "foo"], &[]).unwrap_err();
        assert_eq!(error.kind(), kind, "{flag}");
    }
}

#[test]
fn the_help_of_run_says_what_is_so() {
    let help = parse(&["run", "--help"], &[]).unwrap_err().to_string();
    for untrue in ["no rules are made", "No effect yet"] {
        assert!(!help.contains(untrue), "{untrue}: {help}");
    }
    assert!(help.contains("without effect:\n"), "{help}");
}

#[test]
fn flags_with_an_effect_are_passed_over_in_silence() {
    let config = run(
        &[
            "--iptables-resync=10",
            "--iptables-forward-rules=false",
            "--healthz-ip=127.0.0.1",
            "--ip-masq",
            "--ip-masq-fully-random-disable",
        ],
        &[],
    );
    assert_eq!(config.iptables_resync.as_secs(), 10);
    assert!(!config.forward_rules && config.ip_masq && !config.masquerade_random);
    assert!(config.without_effect.is_empty());
}

#[test]
fn verbosity_may_come_before_or_after_the_verb() {
    for (args, expected) in [
        (&["status"][..], 0),
        (&["-v", "status"], 1),
        (&["status", "-v=6"], 6),
        (&["status", "--v=6"], 6),
        (&["-v", "4", "status"], 4),
        (&["status", "-v", "5"], 5),
    ] {
        assert_eq!(parse(args, &[]).unwrap().verbosity, expected, "{args:?}");
    }
}

#[test]
fn status_reads_the_socket_from_the_environment_too() {
    let cli = parse(&["status"], &[("OVERLAY_SOCKET", "/tmp/x.sock")]).unwrap();
    let Command::Status(args) = cli.command else {
        panic!("not status");
    };
    assert_eq!(args.socket, Path::new("/tmp/x.sock"));
}

#[test]
fn the_help_lists_exit_codes_and_variables() {
    let help = parse(&["--help"], &[]).unwrap_err().to_string();
    assert!(help.contains("78  the network config is malformed"), "{help}");
    let help = parse(&["run", "--help"], &[]).unwrap_err().to_string();
    assert!(help.contains("FLANNELD_<NAME>"), "{help}");
}

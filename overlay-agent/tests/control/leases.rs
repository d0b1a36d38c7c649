//! What others write about leases, by mistake or not, harms no host that is well; and whatever is not believed or
//! not programmed is said.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use overlay_lab::{
    Agent, AgentOptions, ETCD_PREFIX, Etcd, Host, Lab,
    corpus::{self, Case},
    eventually,
    stream::Stream,
};
use serde_json::Value;

use overlay_agent::fail::LEASES_VARIABLE;

use crate::support::{Asking, SOON, options, wait_for_no_problem, wait_for_problem};

/// Hosts that exist have subnets of 10.1.1.0/24 to 10.1.9.0/24; the others are the tests'.
const CONFIG: &str = r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.1.0","SubnetMax":"10.1.9.0","Backend":{"Type":"vxlan"}}"#;

/// As many operations as etcd takes in one transaction.
const BATCH: usize = 128;

fn key(name: &str) -> String {
    format!("{ETCD_PREFIX}/subnets/{name}")
}

fn value(public_ip: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Does something with a client of etcd's, on a host from which it can be reached.
fn with_client<T: Send + 'static>(
    host: &Host,
    etcd: &Etcd,
    work: impl AsyncFnOnce(Client) -> T + Send + 'static,
) -> T {
    let endpoint = etcd.endpoint();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = Client::connect([endpoint], None).await?;
            anyhow::Ok(work(client).await)
        })
    };
    host.namespace().within(work).unwrap()
}

/// Writes leases by the thousands.
fn put_all(host: &Host, etcd: &Etcd, leases: Vec<(String, String)>) {
    with_client(host, etcd, async move |mut client| {
        for batch in leases.chunks(BATCH) {
            let puts =
                batch.iter().map(|(name, value)| TxnOp::put(key(name), value.as_str(), None));
            client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
        }
    });
}

fn agents(lab: &Lab, etcd: &Etcd) -> Vec<Agent> {
    lab.hosts().iter().map(|host| host.start_agent(&options(etcd)).unwrap()).collect()
}

fn peers(status: &Value) -> Vec<String> {
    let peers = status["peers"].as_array().into_iter().flatten();
    peers.filter_map(|peer| peer["subnet"].as_str().map(str::to_owned)).collect()
}

fn wait_for_peer(agent: &mut Agent, subnet: &str) {
    agent
        .wait_status(SOON, &format!("the peer {subnet}"), |status| {
            let peers = peers(status);
            anyhow::ensure!(peers.iter().any(|peer| peer == subnet), "{peers:?}");
            Ok(())
        })
        .unwrap();
}

#[test]
fn whatever_is_written_about_others_harms_nobody_and_is_refused_by_name() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let [one, two] = [lab.host(0), lab.host(1)];
    one.ip(["route", "add", "default", "via", "192.168.33.200"]).unwrap();
    let etcd = lab.start_etcd(CONFIG).unwrap();
    let mut agents = agents(&lab, &etcd);
    let containers: Vec<_> =
        lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
    eventually(SOON, "a first ping", || containers[0].ping(containers[1].address())).unwrap();
    let streams = [
        Stream::start(&containers[0], &containers[1], 7001).unwrap(),
        Stream::start(&containers[1], &containers[0], 7002).unwrap(),
    ];
    let two_is = two.address().to_string();
    let one_is = one.address().to_string();
    let [.., third, _] = containers[1].address().octets();
    let our_mac = agents[0].status().unwrap()["lease"]["vtep_mac"].as_str().unwrap().to_owned();
    let here = |case: &Case| {
        case.body
            .replace("$ONE", &one_is)
            .replace("$TWO", &two_is)
            .replace("$THIRD", &third.to_string())
            .replace("$AROUND", &(third & 0xfe).to_string())
            .replace("$MAC", &our_mac)
    };
    for case in corpus::read("leases").unwrap() {
        let text = here(&case);
        let (name, value) = text.split_once('\n').unwrap();
        let ("refused", reason) = case.verdict().unwrap() else {
            panic!("{}: no lease of the corpus is believed", case.name)
        };
        let reason = reason.replace("$TWO", &two_is);
        etcd.put(&key(name), value).unwrap();
        let whose = if reason == "more lease(s)" { &two_is } else { name };
        let status = wait_for_problem(&mut agents[0], &[&reason, whose]);
        let of_two = format!("10.1.{third}.0/24");
        assert!(peers(&status).contains(&of_two), "{}: {:?}", case.name, peers(&status));
        containers[0].ping(containers[1].address()).unwrap();
        etcd.delete(&key(name)).unwrap();
        wait_for_no_problem(&mut agents[0], &reason);
    }

    let mac = "02:00:00:00:00:99";
    // Of two that are strangers the older counts, and the younger as soon as that is gone.
    etcd.put(&key("10.1.60.0-24"), &value("192.168.33.61", mac)).unwrap();
    etcd.put(&key("10.1.60.16-28"), &value("192.168.33.62", mac)).unwrap();
    wait_for_problem(&mut agents[0], &["10.1.60.16-28", "192.168.33.61 has had for longer"]);
    // Renewing does not make it younger.
    etcd.put(&key("10.1.60.0-24"), &value("192.168.33.61", mac)).unwrap();
    wait_for_problem(&mut agents[1], &["10.1.60.16-28", "192.168.33.61 has had for longer"]);
    etcd.delete(&key("10.1.60.0-24")).unwrap();
    for agent in &mut agents {
        wait_for_peer(agent, "10.1.60.16/28");
        wait_for_no_problem(agent, "10.1.60");
    }
    for stream in streams {
        let seen = stream.stop().unwrap();
        assert_eq!((seen.lost, seen.doubled), (0, 0), "{seen:?}");
    }
    for agent in &agents {
        assert_eq!(agent.packets("", "foreign_inner_source").unwrap(), 0);
    }
}

#[test]
fn five_more_prefix_lengths_cost_the_hosts_of_the_usual_one_nothing() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(CONFIG).unwrap();
    let mut agents = agents(&lab, &etcd);
    let containers: Vec<_> =
        lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
    for (host, length) in (25..=29).enumerate() {
        let address = format!("192.168.33.{}", 100 + host);
        etcd.put(
            &key(&format!("10.1.{}.0-{length}", 100 + host)),
            &value(&address, "02:00:00:00:00:01"),
        )
        .unwrap();
    }
    for agent in &mut agents {
        // With a peer of /24, of each length there is one: the longest count where they are as many.
        wait_for_problem(agent, &["1 lease(s) of length /25 are not programmed"]);
    }
    etcd.put(&key("10.1.120.0-24"), &value("192.168.33.120", "02:00:00:00:00:01")).unwrap();
    for agent in &mut agents {
        wait_for_problem(agent, &["1 lease(s) of length /26 are not programmed"]);
        wait_for_no_problem(agent, "length /24");
    }
    eventually(SOON, "a ping", || containers[0].ping(containers[1].address())).unwrap();
    let log = agents[0].log().unwrap();
    let said = log.lines().filter(|line| line.contains("length")).count();
    assert!(said <= 3, "{said} lines: {log}");
}

#[test]
fn what_does_not_fit_is_counted_and_leaves_the_others_alone() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(CONFIG).unwrap();
    let small = |host: &Host| {
        host.start_agent(&options(&etcd).environment(LEASES_VARIABLE, "100")).unwrap()
    };
    let mut agents: Vec<_> = lab.hosts().iter().map(small).collect();
    let containers: Vec<_> =
        lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
    let lease = |number: u32| {
        let name = format!("10.1.{}.{}-28", 100 + number / 16, number % 16 * 16);
        (name, value(&format!("172.16.{}.{}", number / 250, 1 + number % 250), "02:00:00:00:00:01"))
    };
    put_all(lab.host(0), &etcd, (0..85).map(lease).collect());
    wait_for_problem(&mut agents[0], &["There are 86 leases, and the maps hold 100."]);
    put_all(lab.host(0), &etcd, (85..2000).map(lease).collect());
    for agent in &mut agents {
        let status =
            wait_for_problem(agent, &["1901 lease(s) are not programmed: the maps hold 100"]);
        assert_eq!(peers(&status).len(), 100);
        let log = agent.log().unwrap();
        let errors = log.lines().filter(|line| line.contains("ERROR")).count();
        assert!(errors <= 20, "{errors} lines of errors");
    }
    eventually(SOON, "a ping", || containers[0].ping(containers[1].address())).unwrap();
    // One writer gets only so many.
    let of_one = |number: u32| {
        (
            format!("10.1.{}.{}-28", 20 + number / 16, number % 16 * 16),
            value("172.17.0.9", "02:00:00:00:00:02"),
        )
    };
    put_all(lab.host(0), &etcd, (0..100).map(of_one).collect());
    wait_for_problem(&mut agents[0], &["172.17.0.9 has 64 older leases"]);
    wait_for_problem(&mut agents[0], &["And 26 more leases are not believed."]);
    // All but the hosts' own: these end in a dot where the others go on.
    with_client(lab.host(0), &etcd, async |mut client| {
        for tens in ["10.1.1", "10.1.2"] {
            let options = DeleteOptions::new().with_range(key(&format!("{tens}:")));
            client.delete(key(&format!("{tens}0")), Some(options)).await.unwrap();
        }
    });
    for agent in &mut agents {
        wait_for_no_problem(agent, "lease");
        assert_eq!(peers(&agent.status().unwrap()).len(), 1);
    }
    containers[0].ping(containers[1].address()).unwrap();
}

#[test]
fn megabytes_under_our_prefix_keep_no_agent_from_starting() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(CONFIG).unwrap();
    let mut one = lab.host(0).start_agent(&options(&etcd)).unwrap();
    let large = "x".repeat(1_400_000);
    with_client(lab.host(0), &etcd, async move |mut client| {
        for number in 0..50 {
            client
                .put(key(&format!("10.1.{}.0-24", 100 + number)), large.as_str(), None)
                .await
                .unwrap();
        }
    });
    let mut two = lab.host(1).start_agent(&options(&etcd)).unwrap();
    for agent in [&mut one, &mut two] {
        let status = wait_for_problem(agent, &["10.1.100.0-24", "longer than 4096 bytes"]);
        assert!(status["ready"] == true, "{status}");
        assert_eq!(peers(&status).len(), 1);
        wait_for_problem(agent, &["And 45 more leases are not believed."]);
        let log = agent.log().unwrap();
        let lines = log.lines().filter(|line| line.contains("ignoring")).count();
        assert_eq!(lines, 10, "{log}");
    }
}

#[test]
fn thousands_of_leases_that_go_at_once_keep_nobody_waiting() {
    const LEASES: u32 = 10_000;
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let config = r#"{"Network":"10.0.0.0/8","SubnetMin":"10.255.1.0","SubnetMax":"10.255.9.0","Backend":{"Type":"vxlan"}}"#;
    let etcd = lab.start_etcd(config).unwrap();
    let lease = |number: u32| {
        let [.., high, low] = number.to_be_bytes();
        let mac = format!("02:00:00:00:{high:02x}:{low:02x}");
        (format!("10.{high}.{low}.0-24"), value(&format!("172.16.{high}.{low}"), &mac))
    };
    // 172.16.0.0 is nobody's broadcast address here.
    put_all(host, &etcd, (0..LEASES).map(lease).collect());
    let mut agent = host.start_agent(&options(&etcd)).unwrap();
    let all = usize::try_from(LEASES).unwrap();
    agent
        .wait_status(SOON * 2, "all leases", |status| {
            anyhow::ensure!(peers(status).len() == all, "{}", peers(status).len());
            Ok(())
        })
        .unwrap();
    // An answer that names them all takes its time in a debug build, and more of it while others work, too, on a
    // machine with other things to do. What counts is that it does not wait for them: that was five seconds once.
    let idle = Asking::start(host);
    std::thread::sleep(Duration::from_secs(2));
    let (idle, _) = idle.stop();

    let asking = Asking::start(host);
    let start = Instant::now();
    let before = agent.status().unwrap();
    let own = before["lease"]["subnet"].as_str().unwrap().replace('/', "-");
    with_client(host, &etcd, async move |mut client| {
        // All but our own, in one transaction.
        let before = DeleteOptions::new().with_range(key(&own));
        let after = DeleteOptions::new().with_range(format!("{ETCD_PREFIX}/subnets0"));
        let deletions = [
            TxnOp::delete(key(""), Some(before)),
            TxnOp::delete(key(&format!("{own}0")), Some(after)),
        ];
        client.txn(Txn::new().and_then(deletions)).await.unwrap();
    });
    let after = agent
        .wait_status(SOON * 4, "no lease any more", |status| {
            anyhow::ensure!(peers(status).is_empty(), "{}", peers(status).len());
            Ok(())
        })
        .unwrap();
    let took = start.elapsed();
    let (longest, count) = asking.stop();
    println!(
        "{LEASES} leases went in {took:?}; {count} answers, the longest in {longest:?}, idle in {idle:?}"
    );
    assert!(longest < idle * 2 + Duration::from_millis(500), "{longest:?}, but {idle:?} when idle");
    assert!(took < Duration::from_secs(20), "{took:?}");
    if took > Duration::from_secs(2) {
        let looks = |status: &Value| status["verifications"].as_u64().unwrap();
        assert!(looks(&after) > looks(&before), "the kernel was looked at meanwhile");
    }
}

#[test]
fn the_sentences_about_refused_leases_of_a_peers_file_name_the_file() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("peers.toml");
    let hosts = BTreeMap::from([
        (lab.host(0).address().to_string(), "10.5.1.0/24"),
        ("192.168.33.255".to_owned(), "10.5.2.0/24"),
        ("10.5.9.9".to_owned(), "10.5.3.0/24"),
    ]);
    let text = hosts.iter().fold("network = \"10.5.0.0/16\"\n".to_owned(), |text, (ip, subnet)| {
        text + &format!("[[host]]\npublic-ip = \"{ip}\"\nsubnet = \"{subnet}\"\n")
    });
    std::fs::write(&file, text).unwrap();
    let options =
        AgentOptions::with_endpoints(env!("CARGO_BIN_EXE_overlay-agent"), "http://127.0.0.1:1")
            .argument(&format!("--peers={}", file.display()))
            .argument("--iptables-forward-rules=false");
    let mut agent = lab.host(0).start_agent(&options).unwrap();
    wait_for_problem(&mut agent, &["10.5.2.0/24 in the peers file", "192.168.33.255 means all"]);
    wait_for_problem(&mut agent, &["10.5.3.0/24 in the peers file", "inside the overlay"]);
}

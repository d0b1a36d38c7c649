//! What other people have on a host is left alone, whatever we do there.

use std::{
    fs, mem,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::symlink,
    },
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    libc,
    net::if_::if_nametoindex,
    sys::signal::Signal,
};
use overlay_lab::{Host, Lab, UPLINK, command::Cmd, eventually};

use crate::{
    damage::{self, Target},
    overlay::{Overlay, SOON, peers_file},
};

/// Somebody's XDP program on an interface, which lets everything pass; gone when dropped.
///
/// By the kernel's own interface (include/uapi/linux/bpf.h), because libraries want an object file.
struct Xdp {
    _link: OwnedFd,
}

#[repr(C)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
struct CreateLink {
    program: i32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// Calls bpf(2) for something that is answered by a file descriptor.
fn bpf<T>(command: libc::c_long, attribute: &T) -> Result<OwnedFd> {
    // SAFETY: the kernel reads as much as it is told of an attribute that outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attribute, mem::size_of_val(attribute)) };
    let descriptor = nix::errno::Errno::result(result).context("bpf(2)")?;
    // SAFETY: both commands that are used here answer with a new file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor)?) })
}

impl Xdp {
    fn attach(host: &Host) -> Result<Self> {
        const BPF_PROG_LOAD: libc::c_long = 5;
        const BPF_LINK_CREATE: libc::c_long = 28;
        const BPF_PROG_TYPE_XDP: u32 = 6;
        const BPF_XDP: u32 = 37;
        /// By the stack instead of the driver, because one cannot know what the latter does.
        const XDP_FLAGS_SKB_MODE: u32 = 2;
        /// `r0 = XDP_PASS; exit`
        const PASS: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
        let program = bpf(
            BPF_PROG_LOAD,
            &Load {
                kind: BPF_PROG_TYPE_XDP,
                length: 2,
                instructions: PASS.as_ptr() as u64,
                license: c"GPL".as_ptr() as u64,
            },
        )?;
        let link = host.namespace().within(move || {
            bpf(
                BPF_LINK_CREATE,
                &CreateLink {
                    program: program.as_raw_fd(),
                    interface: if_nametoindex(UPLINK)?,
                    attach_type: BPF_XDP,
                    flags: XDP_FLAGS_SKB_MODE,
                },
            )
        })?;
        Ok(Self { _link: link })
    }
}

fn read(host: &Host, command: &str) -> String {
    let mut words = command.split(' ');
    host.command(words.next().unwrap()).args(words).read().unwrap()
}

fn theirs(host: &Host) -> [String; 5] {
    let link = read(host, &format!("ip -details link show {UPLINK}"));
    let xdp = link.lines().find(|line| line.contains("prog/xdp")).unwrap_or("no XDP program");
    [
        xdp.to_owned(),
        read(host, "ip -brief link show flannel.1"),
        read(host, &format!("tc filter show dev {UPLINK} ingress")),
        read(host, "nft list table ip somebody"),
        read(host, "iptables -S INPUT"),
    ]
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let Overlay { mut agents, containers, options, lab, etcd: _etcd } = Overlay::new();
    let host = lab.host(0);
    for command in [
        "ip link add flannel.1 type vxlan id 9 dstport 4789 dev eth0",
        "tc qdisc add dev eth0 clsact",
        // A classic filter that lets everything pass: return 0xffffffff.
        "tc filter add dev eth0 ingress prio 1 bpf bytecode 1,6\u{a0}0\u{a0}0\u{a0}4294967295",
        "nft add table ip somebody",
        "iptables -A INPUT -s 203.0.113.9 -j DROP",
    ] {
        let mut words = command.split(' ').map(|word| word.replace('\u{a0}', " "));
        host.command(words.next().unwrap()).args(words).run().unwrap();
    }
    let _xdp = Xdp::attach(host).unwrap();
    let pinned = host.pins().parent().unwrap().join("somebody-else");
    fs::create_dir(&pinned).unwrap();
    let map = pinned.join("map");
    host.command("bpftool")
        .args(["map", "create"])
        .arg(&map)
        .args(["type", "hash", "key", "4", "value", "4", "entries", "1", "name", "theirs"])
        .run()
        .unwrap();
    let before = theirs(host);
    assert!(before[0].contains("prog/xdp id"), "{before:?}");
    let target = Target { host, container: &containers[0], peer: lab.host(1) };
    let healthy = damage::healthy(&target).unwrap();

    let everything = ["the device is deleted", "the pin path is removed", "all maps are unpinned"];
    for act in damage::ACTS.iter().filter(|act| everything.contains(&act.what)) {
        (act.does)(&target).unwrap();
        damage::mended(&target, &agents[0], &healthy, SOON, act.what).unwrap();
    }
    containers[0].ping(containers[1].address()).unwrap();
    assert_eq!(before, theirs(host), "mended");
    agents[0].stop().unwrap();
    let mut again = host.start_agent(&options).unwrap();
    assert_eq!(before, theirs(host), "started again");
    again.stop().unwrap();
    let output = host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    assert!(output.contains("overlay.1"), "{output}");
    assert_eq!(before, theirs(host), "cleaned up");
    assert!(map.exists());
    fs::remove_dir_all(&pinned).unwrap();
    // And nothing of ours is left.
    assert!(!host.ip(["-brief", "link"]).unwrap().contains("overlay."));
    assert!(!host.pins().exists() && !host.subnet_file().exists());
    assert!(!read(host, "bpftool net").contains("from_uplink"));
    assert!(!read(host, "iptables -S FORWARD").contains("overlay"));
}

/// What one step of a pass cannot do keeps no other step from being done.
#[test]
fn a_device_in_the_way_of_ours_keeps_nothing_else_from_being_done() {
    let mut overlay = Overlay::new();
    overlay.agents[0].process().signal(Signal::SIGSTOP).unwrap();
    let host = overlay.lab.host(0);
    host.ip(["link", "del", "overlay.1"]).unwrap();
    let theirs = ["link", "add", "theirs", "type", "vxlan", "id", "1", "dstport", "8472"];
    host.ip(theirs).unwrap();
    overlay.agents[0].process().signal(Signal::SIGCONT).unwrap();
    let (host, agent) = (overlay.lab.host(0), &overlay.agents[0]);
    let problems = || anyhow::Ok(agent.status()?["problems"].to_string());
    eventually(SOON, "the agent to tell what is in the way", || {
        let problems = problems()?;
        anyhow::ensure!(problems.contains("overlay.1"), "{problems}");
        Ok(())
    })
    .unwrap();

    let newcomer = host.add_container("newcomer").unwrap();
    let carried = overlay.rise("from_container", "encapsulated");
    eventually(SOON, "a container that comes meanwhile to be connected", || {
        newcomer.ping(overlay.containers[1].address())
    })
    .unwrap();
    assert!(carried.of(&overlay)[0] > 0, "by its own program");
    let status = agent.status().unwrap();
    assert_eq!(status["endpoints"], 2, "{status}");

    host.ip(["link", "del", "theirs"]).unwrap();
    eventually(SOON, "the device to be made again", || {
        let problems = problems()?;
        anyhow::ensure!(problems == "[]", "{problems}");
        Ok(())
    })
    .unwrap();
    overlay.ping();
}

/// Exit code 4 of `iptables` is «somebody holds the lock», and not «there is no such rule».
#[test]
fn rules_that_a_lock_keeps_from_being_listed_are_not_taken_for_gone() {
    let lab = Lab::builder().start().unwrap();
    let [tools, lock] = ["tools", "xtables.lock"].map(|name| lab.directory().join(name));
    fs::create_dir(&tools).unwrap();
    for tool in ["iptables", "iptables-restore"] {
        symlink("/usr/sbin/xtables-legacy-multi", tools.join(tool)).unwrap();
    }
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let lock_path = lock.display().to_string();
    let options =
        peers_file(&lab).environment("PATH", &path).environment("XTABLES_LOCKFILE", &lock_path);
    let mut agent = lab.host(0).start_agent(&options).unwrap();
    let host = lab.host(0);
    let rules = || host.command(tools.join("iptables")).args(["-S", "FORWARD"]).read().unwrap();
    eventually(SOON, "rules of ours", || {
        ensure!(rules().contains("overlay.1"), "{}", rules());
        Ok(())
    })
    .unwrap();
    agent.kill().unwrap();

    let cleanup = || {
        host.command(env!("CARGO_BIN_EXE_overlay-agent"))
            .args(["cleanup", "--pin-path"])
            .arg(host.pins())
            .arg("--subnet-file")
            .arg(host.subnet_file())
            .env("PATH", &path)
            .env("XTABLES_LOCKFILE", &lock_path)
            .output()
            .unwrap()
    };
    let held = Flock::lock(fs::File::create(&lock).unwrap(), FlockArg::LockExclusive).unwrap();
    let refused = cleanup();
    assert!(!refused.status.success() && refused.stderr.contains("lock"), "{refused:?}");
    assert!(rules().contains("overlay.1"), "{}", rules());
    drop(held);
    let done = cleanup();
    assert!(done.status.success() && done.stdout.contains("firewall rules"), "{done:?}");
    assert!(!rules().contains("overlay.1"), "{}", rules());
}

/// Without the program that shows them, there are rules all the same.
#[test]
fn rules_of_nftables_hold_where_there_is_no_nft_to_list_them() {
    let tools = tempfile::tempdir().unwrap();
    for tool in ["nsenter", "iptables", "iptables-save", "iptables-restore", "ip"] {
        let found = Cmd::new("which").arg(tool).read().unwrap();
        symlink(found, tools.path().join(tool)).unwrap();
    }
    let path = tools.path().display().to_string();
    let lab = Lab::builder().start().unwrap();
    let options = peers_file(&lab).environment("PATH", &path).argument("--rules=auto");
    let host = lab.host(0);
    let agent = host.start_agent(&options).unwrap();
    let nft = |verb: &str| {
        host.command("nft").args([verb, "table", "inet", "lock"]).run().unwrap();
    };
    let concerns = |expected: &[&str]| {
        eventually(SOON, "the agent to have seen the rules", || {
            let rules = &agent.status()?["rules"];
            ensure!(rules["concerns"] == serde_json::json!(expected), "{rules}");
            ensure!(rules["honoured"] == !expected.is_empty(), "{rules}");
            Ok(())
        })
        .unwrap();
    };
    concerns(&[]);
    nft("add");
    concerns(&["nftables inet lock: rules cannot be listed without nft"]);
    nft("delete");
    concerns(&[]);
}

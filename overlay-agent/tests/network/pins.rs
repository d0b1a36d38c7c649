//! The pin path, where nothing has been prepared for it.

use std::{fs, path::Path, sync::Barrier, thread};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use overlay_agent::{datapath::PinPath, exit::Exit};

const BPF: &str = "/sys/fs/bpf";

/// How often the file system is mounted anew in this thread's namespace.
fn mounted() -> usize {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some(BPF)).count()
}

/// Runs on a thread with mounts of its own, which those that it starts share.
fn with_own_mounts(task: impl FnOnce() + Send + 'static) {
    let alone = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        task();
    };
    thread::spawn(alone).join().unwrap();
}

/// One of them used to mount the BPF file system over what the other had just pinned.
#[test]
fn agents_that_start_at_once_mount_the_bpf_file_system_once() {
    const AGENTS: usize = 8;
    with_own_mounts(|| {
        for round in 0..50 {
            while mounted() > 0 {
                umount2(BPF, MntFlags::MNT_DETACH).unwrap();
            }
            let start = Barrier::new(AGENTS);
            thread::scope(|scope| {
                let agents: Vec<_> = (0..AGENTS)
                    .map(|agent| {
                        let start = &start;
                        scope.spawn(move || {
                            start.wait();
                            PinPath::open(&Path::new(BPF).join(format!("agent-{agent}")))
                        })
                    })
                    .collect();
                for agent in agents {
                    agent.join().unwrap().unwrap();
                }
            });
            assert_eq!(mounted(), 1, "round {round}");
        }
    });
}

#[test]
fn a_host_without_a_place_for_the_bpf_file_system_is_told_so() {
    with_own_mounts(|| {
        mount(Some("none"), "/sys/fs", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let error = PinPath::open(&Path::new(BPF).join("agent")).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Unavailable);
        assert_eq!(
            format!("{error:#}"),
            "opening /sys/fs/bpf to mount the BPF file system there: No such file or directory (os error 2)"
        );
    });
}

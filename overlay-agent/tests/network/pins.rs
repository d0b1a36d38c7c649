//! The pin path, where nothing has been prepared for it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
    sync::Barrier,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use overlay_agent::{exit::Exit, kernel::datapath::PinPath};

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
fn what_we_mount_and_make_is_roots_alone() {
    with_own_mounts(|| {
        while mounted() > 0 {
            umount2(BPF, MntFlags::MNT_DETACH).unwrap();
        }
        let pins = Path::new(BPF).join("agent");
        let opened = PinPath::open(&pins).unwrap();
        for level in [Path::new(BPF), &pins, &pins.join("links")] {
            let mode = fs::metadata(level).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", level.display());
        }
        drop(opened);
        umount2(BPF, MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_pin_path_that_others_made_or_can_change_is_refused() {
    with_own_mounts(|| {
        // As it is where it was mounted without options.
        let mode = Some("mode=1777");
        mount(Some("bpf"), BPF, Some("bpf"), MsFlags::empty(), mode).unwrap();
        let outer = Path::new(BPF).join("outer");
        let pins = outer.join("agent");
        let links = pins.join("links");
        fs::create_dir_all(&links).unwrap();
        let refused = |level: &Path, why: &str| {
            let error = PinPath::open(&pins).unwrap_err();
            assert_eq!(Exit::of(&error), Exit::Conflict, "{error:#}");
            let start = format!("{} {why}", level.display());
            assert!(format!("{error:#}").starts_with(&start), "{error:#}");
        };
        let nobody = Some(65_534);
        for level in [&outer, &pins, &links] {
            chown(level, nobody, None).unwrap();
            refused(level, "belongs to user 65534");
            chown(level, Some(0), None).unwrap();
            for mode in [0o770, 0o702, 0o1777] {
                fs::set_permissions(level, Permissions::from_mode(mode)).unwrap();
                refused(level, &format!("can be changed by others than root (mode {mode:04o})"));
            }
            fs::set_permissions(level, Permissions::from_mode(0o755)).unwrap();
        }
        fs::remove_dir(&links).unwrap();
        symlink("/tmp", &links).unwrap();
        refused(&links, "is no directory");
        fs::remove_file(&links).unwrap();
        // What an earlier version made is taken over, and closed.
        drop(PinPath::open(&pins).unwrap());
        fs::set_permissions(BPF, Permissions::from_mode(0o777)).unwrap();
        refused(Path::new(BPF), "can be changed by others than root (mode 0777)");
        umount2(BPF, MntFlags::MNT_DETACH).unwrap();
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

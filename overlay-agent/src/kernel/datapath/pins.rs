use std::{
    fs::{self, DirBuilder, File, Permissions},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::exit::{Exit, WithExit};

/// Where an agent pins unless it is told otherwise.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/overlay";

/// The directory, on a BPF file system, where maps and links outlive the agent. Locked for as long as
/// this value lives: one agent per pin path.
#[derive(Debug)]
pub struct PinPath {
    directory: PathBuf,
    lock: Flock<File>,
}

impl PinPath {
    /// Creates and locks `directory`, mounting the BPF file system on `/sys/fs/bpf` where it is missing.
    ///
    /// Fails when another agent holds it, naming that process, when it is not on a BPF file system, or when others
    /// than root may change what is in it.
    pub fn open(directory: &Path) -> Result<Self> {
        mount_bpf_file_system()?;
        Ok(Self { directory: directory.to_owned(), lock: create_and_lock(directory)? })
    }

    /// Makes the directory again where somebody removed it, or the one for links inside it. Returns
    /// whether that was so.
    pub fn restore(&mut self) -> Result<bool> {
        let inode = self.lock.metadata().context("looking at the locked pin path")?.ino();
        let same = fs::metadata(&self.directory).is_ok_and(|found| found.ino() == inode);
        if same && self.directory.join("links").exists() {
            return Ok(false);
        }
        if same {
            create(&self.directory)?;
        } else {
            self.lock = create_and_lock(&self.directory)?;
        }
        Ok(true)
    }

    /// By which filters, which are pinned nowhere, are known to be those of this pin path: 0 at the default one, as
    /// earlier versions have it everywhere.
    pub fn number(&self) -> u16 {
        if self.directory == Path::new(DEFAULT_PIN_PATH) {
            return 0;
        }
        // FNV-1a: the same in every build.
        let bytes = self.directory.as_os_str().as_encoded_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        let [a, b, c, d] = hash.to_be_bytes();
        u16::from_be_bytes([a ^ c, b ^ d]).max(1)
    }

    /// Whether filters that bear the number of the default pin path were made by an earlier version for this one: nobody
    /// else has pins there.
    pub fn inherits(&self) -> bool {
        self.number() != 0 && !Path::new(DEFAULT_PIN_PATH).exists()
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the link of a program is pinned.
    pub fn link(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(name)
    }

    /// Names of the pinned links.
    pub fn links(&self) -> Result<Vec<String>> {
        let directory = self.directory.join("links");
        let names = fs::read_dir(&directory)
            .with_context(|| format!("listing {}", directory.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        Ok(names)
    }

    /// Unpins everything and removes the directory: programs whose links were pinned here are detached,
    /// and maps that nobody uses go.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("removing the pin path {}", self.directory.display()))
    }
}

impl Drop for PinPath {
    /// An agent that failed before it pinned anything leaves no empty directory.
    fn drop(&mut self) {
        for directory in [self.directory.join("links"), self.directory.clone()] {
            // Refused where something is pinned, or where it is gone already.
            fs::remove_dir(directory).ok();
        }
    }
}

/// Makes the directory and the one for links inside it, if they are not there, and sees to it that they are
/// root's alone.
fn create(directory: &Path) -> Result<()> {
    let links = directory.join("links");
    let failed = || format!("creating the pin path {}", directory.display());
    // One by one: what is there already may be somebody else's trap, and nothing is made inside it.
    let levels = directory.ancestors().filter(|level| !level.as_os_str().is_empty());
    let levels: Vec<_> = levels.collect();
    for level in levels.into_iter().rev().chain([links.as_path()]) {
        match DirBuilder::new().mode(PRIVATE).create(level) {
            Ok(()) => {}
            Err(error) if level.symlink_metadata().is_err() => {
                return Err(error).with_context(failed);
            }
            // It is there.
            Err(_) => refuse_others(level)?,
        }
    }
    for level in [directory, &links] {
        fs::set_permissions(level, Permissions::from_mode(PRIVATE)).with_context(failed)?;
    }
    Ok(())
}

/// Who could change what is pinned could make our programs believe what he likes. On a BPF file system, every
/// directory on the way has to be root's; the first one may be open to all if it is sticky, as it is where it
/// was mounted without options, for then nobody can take away what root has made.
fn refuse_others(level: &Path) -> Result<()> {
    let place = || format!("looking at {}", level.display());
    let is_bpf = |path: &Path| statfs(path).map(|found| found.filesystem_type() == BPF_FS_MAGIC);
    let is_inside = level.parent().is_some_and(|parent| is_bpf(parent).unwrap_or_default());
    if !is_inside && !is_bpf(level).with_context(place)? {
        return Ok(());
    }
    // A link to the file system is as good as itself, one inside it may lead out.
    let found = if is_inside { level.symlink_metadata() } else { level.metadata() };
    let found = found.with_context(place)?;
    let refusal = if !found.is_dir() {
        "is no directory".to_owned()
    } else if found.uid() != 0 {
        format!("belongs to user {}", found.uid())
    } else if found.mode() & OTHERS_WRITE != 0 && (is_inside || found.mode() & STICKY == 0) {
        format!("can be changed by others than root (mode {:04o})", found.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(anyhow::anyhow!(
        "{} {refusal}, so what is pinned there cannot be trusted: look who made it, and remove it",
        level.display()
    ))
    .exit(Exit::Conflict)
}

/// Mode of what we make: for root alone.
const PRIVATE: u32 = 0o700;
/// Mode bits: group and others may write.
const OTHERS_WRITE: u32 = 0o022;
/// Mode bit: only an owner takes away what is his.
const STICKY: u32 = 0o1000;

fn create_and_lock(directory: &Path) -> Result<Flock<File>> {
    create(directory)?;
    let kind = statfs(directory)
        .with_context(|| format!("looking at the pin path {}", directory.display()))?
        .filesystem_type();
    if kind != BPF_FS_MAGIC {
        bail!("the pin path {} is not on a BPF file system", directory.display());
    }
    let handle = File::open(directory)
        .with_context(|| format!("opening the pin path {}", directory.display()))?;
    let inode = handle.metadata().context("looking at the pin path")?.ino();
    match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_handle, Errno::EWOULDBLOCK)) => Err(anyhow::anyhow!(
            "another agent uses the pin path {}: {}",
            directory.display(),
            lock_holder(inode)
        ))
        .exit(Exit::Busy),
        Err((_handle, errno)) => {
            Err(errno).with_context(|| format!("locking the pin path {}", directory.display()))
        }
    }
}

fn mount_bpf_file_system() -> Result<()> {
    let root = Path::new("/sys/fs/bpf");
    let is_mounted = || statfs(root).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if is_mounted() {
        return Ok(());
    }
    // Two agents that start at once must not mount it over what the other has just pinned.
    let directory = File::open(root)
        .context("opening /sys/fs/bpf to mount the BPF file system there")
        .exit(Exit::Unavailable)?;
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_directory, errno)| errno)
        .context("locking /sys/fs/bpf to mount the BPF file system there")
        .exit(Exit::Unavailable)?;
    if is_mounted() {
        return Ok(());
    }
    // Without a mode it would be open to everybody.
    mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .context("mounting the BPF file system on /sys/fs/bpf")
        .exit(Exit::Unavailable)
}

/// Who holds the lock on this inode, from `/proc/locks`: lines such as
/// `1: FLOCK  ADVISORY  WRITE 4242 00:1b:12345 0 EOF`.
fn lock_holder(inode: u64) -> String {
    let suffix = format!(":{inode}");
    fs::read_to_string("/proc/locks")
        .unwrap_or_default()
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(5).is_some_and(|file| file.ends_with(&suffix)))
        .and_then(|fields| fields.get(4).map(|pid| format!("process {pid} holds it")))
        .unwrap_or_else(|| "a process in another PID namespace holds it".to_owned())
}

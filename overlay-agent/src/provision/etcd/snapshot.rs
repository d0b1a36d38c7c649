//! Copies of all that etcd holds, with the authority that its hosts trust, and a new etcd made of one.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::unistd::User;
use overlay_lease::store::{
    Store as _,
    etcd::{EtcdConfig, EtcdStore},
};
use ring::digest::{Context as Digest, SHA256, SHA256_OUTPUT_LEN};
use time::{OffsetDateTime, macros::format_description};
use tokio::process::Command;

use super::{
    super::{
        ETCD_DATA, ETCD_DROP_IN, ETCD_UNIT, checks,
        consent::{self, Consent},
        report::Report,
        systemd,
    },
    at_home, check_local,
    data::put_aside,
    local_config,
    settings::Settings,
    tell_hosts_apart, wait_for_answer,
};
use crate::{
    authority::{ca_file, ca_key_file, certificates, pki::Credential},
    exit::{Exit, WithExit as _},
    files,
};

/// Makes copies by itself, on every host with a share in etcd.
const TIMER: &str = "overlay-agent-backup.timer";
/// Where copies are, unless the command line says otherwise.
const BACKUPS: &str = "/var/lib/overlay/backups";
/// What their names begin and end with.
const NAMED: (&str, &str) = ("etcd-", ".tar");

const SNAPSHOT: &str = "snapshot.db";
const CA: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";

/// As whom etcd runs.
const USER: &str = "etcd";

/// What `etcd backup` is asked for.
#[derive(Clone, Debug)]
pub struct Backup {
    /// How to reach etcd.
    pub etcd: EtcdConfig,
    /// Where to write it; otherwise a new one in `/var/lib/overlay/backups`.
    pub file: Option<PathBuf>,
    /// How many of those to keep.
    pub keep: usize,
}

/// What `etcd restore` is asked for.
#[derive(Clone, Debug)]
pub struct Restore {
    /// A copy that was made before; otherwise what this host's own etcd has on its disk.
    pub file: Option<PathBuf>,
    /// Where etcd was, as far as this host knows, and where in it the network is.
    pub etcd: EtcdConfig,
    /// The interface that reaches the other hosts, by name or address.
    pub iface: Option<String>,
    /// Whether to ask.
    pub consent: Consent,
}

/// Has copies made from time to time. Returns whether they were not.
pub(super) async fn enable_timer() -> Result<bool> {
    let is_new = systemd::enable(TIMER).await?;
    if is_new || !systemd::is_active(TIMER).await? {
        systemd::start(TIMER).await?;
    }
    Ok(is_new)
}

/// Has no copies made any more.
pub(in super::super) async fn disable_timer() -> Result<()> {
    match systemd::files_of(TIMER).await? {
        Some(_) => systemd::disable(TIMER).await,
        None => Ok(()),
    }
}

/// Copies all that etcd holds into one file, which only root can read: what it holds opens etcd. Returns where it is.
pub async fn backup(wanted: &Backup) -> Result<PathBuf> {
    checks::root("etcd backup")?;
    let path = match &wanted.file {
        Some(path) => path.clone(),
        None => Path::new(BACKUPS).join(name(OffsetDateTime::now_utc())?),
    };
    let doing = || format!("cannot write {}", path.display());
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).with_context(doing)?;
    // This host's own is nearest, where it has one.
    let etcd =
        if Path::new(ETCD_DROP_IN).exists() { at_home(&wanted.etcd) } else { wanted.etcd.clone() };
    let mut snapshot = tempfile::tempfile_in(directory).with_context(doing)?;
    let mut stream = EtcdStore::new(&etcd)?.snapshot().await.exit(Exit::Unavailable)?;
    while let Some(piece) = stream.next().await.exit(Exit::Unavailable)? {
        snapshot.write_all(&piece).with_context(doing)?;
    }
    verify(&mut snapshot).context("what etcd has sent is not whole")?;
    let archive = tempfile::NamedTempFile::new_in(directory).with_context(doing)?;
    let mut writer = tar::Builder::new(archive);
    snapshot.seek(SeekFrom::Start(0)).with_context(doing)?;
    writer.append_file(SNAPSHOT, &mut snapshot).with_context(doing)?;
    // A host without a share in etcd has no key; that there is an authority is to be known all the same.
    if let Some(file) = &etcd.ca_file {
        let trusted = files::read(file)?.unwrap_or_default();
        let own = certificates::read_authority()?.filter(|own| trusted.contains(&own.certificate));
        let certificate = own.as_ref().map_or(&trusted, |own| &own.certificate);
        append(&mut writer, CA, certificate).with_context(doing)?;
        if let Some(own) = own {
            append(&mut writer, CA_KEY, &own.key).with_context(doing)?;
        }
    }
    let archive = writer.into_inner().with_context(doing)?;
    archive.as_file().sync_all().with_context(doing)?;
    archive.persist(&path).with_context(doing)?;
    if wanted.file.is_none() {
        forget_old(Path::new(BACKUPS), wanted.keep)?;
    }
    Ok(path)
}

fn append(writer: &mut tar::Builder<impl io::Write>, name: &str, text: &str) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    writer.append_data(&mut header, name, text.as_bytes())
}

fn name(now: OffsetDateTime) -> Result<String> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let now = now.format(format).context("cannot write the time")?;
    Ok(format!("{}{now}{}", NAMED.0, NAMED.1))
}

/// Removes all but the latest of those that have our names.
fn forget_old(directory: &Path, keep: usize) -> Result<()> {
    let doing = || format!("cannot clear {}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(doing)? {
        let name = entry.with_context(doing)?.file_name();
        let is_ours = |name: &str| name.starts_with(NAMED.0) && name.ends_with(NAMED.1);
        found.extend(name.to_str().filter(|name| is_ours(name)).map(str::to_owned));
    }
    // Names are in the order of time.
    found.sort_unstable();
    let old = found.len().saturating_sub(keep);
    for name in &found[..old] {
        files::remove(&directory.join(name))?;
    }
    Ok(())
}

/// Fails unless the file ends with the SHA-256 of what is before it, as etcd's own does. It is a database in pages of
/// 512 bytes and more.
fn verify(file: &mut File) -> Result<()> {
    const PAGE: u64 = 512;
    let sum_length = SHA256_OUTPUT_LEN as u64;
    let length = file.metadata().context("cannot look at it")?.len();
    let Some(length) = length.checked_sub(sum_length).filter(|l| *l > 0 && l.is_multiple_of(PAGE))
    else {
        bail!("it has no checksum at its end: it was cut off, or is no snapshot of etcd");
    };
    file.seek(SeekFrom::Start(0)).context("cannot read it")?;
    let mut digest = Digest::new(&SHA256);
    let mut left = length;
    let mut piece = vec![0; 1 << 16];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        file.read_exact(&mut piece[..most]).context("cannot read it")?;
        digest.update(&piece[..most]);
        left -= most as u64;
    }
    let mut sum = [0; SHA256_OUTPUT_LEN];
    file.read_exact(&mut sum).context("cannot read it")?;
    if digest.finish().as_ref() != sum {
        bail!("it is damaged: its checksum is another");
    }
    Ok(())
}

/// What a copy is made of.
struct Contents {
    snapshot: tempfile::TempPath,
    /// By whose certificates members and clients knew each other; nothing where anybody was let in.
    authority: Option<Credential>,
    /// Whether it has a checksum, which what etcd has on its disk has not.
    has_sum: bool,
}

fn read(path: &Path) -> Result<Contents> {
    let named = || format!("cannot read {}", path.display());
    let mut archive = tar::Archive::new(File::open(path).with_context(named).exit(Exit::NotFound)?);
    let (mut snapshot, mut certificate, mut key) = (None, None, None);
    for entry in archive.entries().with_context(named)? {
        let mut entry = entry.with_context(named).exit(Exit::Data)?;
        let name = entry.path().with_context(named)?.into_owned();
        match name.to_str() {
            Some(SNAPSHOT) => {
                let mut file =
                    tempfile::NamedTempFile::new().context("cannot unpack the snapshot")?;
                io::copy(&mut entry, &mut file).with_context(named).exit(Exit::Data)?;
                verify(file.as_file_mut())
                    .with_context(|| format!("the snapshot in {} cannot be used", path.display()))
                    .exit(Exit::Data)?;
                snapshot = Some(file.into_temp_path());
            }
            Some(name @ (CA | CA_KEY)) => {
                let mut text = String::new();
                entry.read_to_string(&mut text).with_context(named).exit(Exit::Data)?;
                *(if name == CA { &mut certificate } else { &mut key }) = Some(text);
            }
            _ => {}
        }
    }
    let snapshot = snapshot
        .with_context(|| {
            format!(
                "there is no snapshot in {}: `overlay-agent etcd backup` makes such files",
                path.display()
            )
        })
        .exit(Exit::Data)?;
    let authority = certificate.map(|certificate| authority(certificate, key, path)).transpose()?;
    Ok(Contents { snapshot, authority, has_sum: true })
}

/// The authority of a copy, of which this host may have the key where the copy has not.
fn authority(certificate: String, key: Option<String>, path: &Path) -> Result<Credential> {
    let own = certificates::read_authority()?.filter(|own| own.certificate == certificate);
    let key = key.or_else(|| own.map(|own| own.key));
    let key = key
        .with_context(|| {
            format!(
                "{} was made on a host without a share in etcd, and has not the key of the hosts' authority: restore it on a \
                 host that has it, or take a copy that was made on one",
                path.display()
            )
        })
        .exit(Exit::Data)?;
    Ok(Credential { certificate, key })
}

/// What this host's etcd, which does not run, has on its disk.
fn own_data() -> Result<Contents> {
    let path = Path::new(ETCD_DATA).join("member/snap/db");
    let file = tempfile::NamedTempFile::new().context("cannot copy etcd's data")?;
    fs::copy(&path, file.path())
        .with_context(|| format!("cannot copy {}", path.display()))
        .exit(Exit::NotFound)?;
    let authority = certificates::read_authority()?;
    Ok(Contents { snapshot: file.into_temp_path(), authority, has_sum: false })
}

/// Makes of a copy a new etcd, on this host alone, at which all hosts go on as if nothing had been.
pub async fn restore(wanted: &Restore) -> Result<()> {
    checks::root("etcd restore")?;
    check_local().await?;
    let tool = tool().await?;
    let uplink = checks::uplink(wanted.iface.as_deref()).await?;
    let mine = Settings::read()?;
    let contents = wanted.file.as_deref().map(read).transpose()?;
    let tls = match (&contents, &mine) {
        (Some(contents), _) => contents.authority.is_some(),
        (None, Some(mine)) => mine.tls,
        (None, None) => {
            return Err(anyhow!(
                "this host's etcd was never the overlay's: name a file that `overlay-agent etcd backup` has made"
            ))
            .exit(Exit::NotFound);
        }
    };
    let authority = match &contents {
        Some(contents) => contents.authority.clone(),
        None => certificates::read_authority()?,
    };
    refuse_strangers(tls, authority.as_ref())?;
    let etcd = local_config(uplink.address, tls, &wanted.etcd.prefix.to_string());
    refuse_if_it_works([&at_home(&etcd), &wanted.etcd]).await?;
    let source = match &wanted.file {
        Some(file) => file.display().to_string(),
        None => "what is on this host's disk".to_owned(),
    };
    let steps = [
        format!(
            "make {source} the overlay's etcd, on this host alone, at {}",
            etcd.endpoints.join(",")
        ),
        format!("keep this host's old data, if there are any, beside {ETCD_DATA}"),
    ];
    let sentence = format!(
        "All hosts go on with {source}. What was written after it is lost, and other members of the old etcd must not \
         come back: they take part anew, with `overlay-agent etcd add`.\n"
    );
    if !consent::ask_about(wanted.consent, &steps, &sentence)? {
        return Ok(());
    }
    let mut report = Report::default();
    systemd::stop(&[ETCD_UNIT]).await?;
    let contents = match contents {
        Some(contents) => contents,
        None => own_data()?,
    };
    if let Some(authority) = &contents.authority {
        certificates::keep_authority(authority)?;
    }
    if tls {
        certificates::make(uplink.address)?;
    }
    let settings = Settings::first(uplink.address, tls);
    let data = Path::new(ETCD_DATA);
    let aside = if data.exists() { Some(put_aside()?) } else { None };
    let unpacked = unpack(tool, &contents, &settings).await;
    if let Some(aside) = &aside {
        if unpacked.is_err() {
            files::remove_all(data)?;
            fs::rename(aside, data).with_context(|| format!("cannot restore {ETCD_DATA}"))?;
        } else {
            report.done("kept", &format!("old data of etcd's, in {}", aside.display()))?;
        }
    }
    unpacked?;
    settings.write()?;
    systemd::reload().await?;
    systemd::enable(ETCD_UNIT).await?;
    enable_timer().await?;
    systemd::restart(ETCD_UNIT).await.exit(Exit::Unavailable)?;
    wait_for_answer(&at_home(&etcd)).await?;
    // What the copy remembers need not be this host.
    tell_hosts_apart(&EtcdStore::new(&at_home(&etcd))?, uplink.address, None).await?;
    report.done("etcd", &format!("{}, of {source}", etcd.endpoints.join(",")))?;
    crate::output::print(
        "\nHosts that know this address go on by themselves. `overlay-agent init` here makes tokens for the others, and \
         for those that are to take part in etcd.\n",
    )
}

/// Hosts believe their own authority alone: neither is another one made for them, nor one of another overlay put in its place.
fn refuse_strangers(tls: bool, authority: Option<&Credential>) -> Result<()> {
    if tls && authority.is_none() {
        return Err(anyhow!(
            "{} is gone, without which hosts do not believe this etcd: name a file that `overlay-agent etcd backup` has \
             made on a host with a share in etcd",
            ca_key_file().display()
        ))
        .exit(Exit::NotFound);
    }
    let here = files::read(&ca_file())?;
    if here.is_some_and(|here| authority.is_none_or(|own| !here.contains(&own.certificate))) {
        return Err(anyhow!(
            "this host is of another overlay than the copy, or its authority was made another since, by {}: a copy of then is \
             worth nothing here; of another overlay, `overlay-agent leave` first",
            ca_file().display()
        ))
        .exit(Exit::Conflict);
    }
    Ok(())
}

/// A cluster that answers has more than any copy of it.
async fn refuse_if_it_works(places: [&EtcdConfig; 2]) -> Result<()> {
    for etcd in places {
        // Credentials that are gone with the rest open nothing.
        let Ok(store) = EtcdStore::new(etcd) else { continue };
        // It takes a majority to answer this.
        if store.get(&store.prefix().config_key()).await.is_ok() {
            return Err(anyhow!(
                "etcd works (at one of {}), and nothing was changed: what it holds is newer than any copy of it. To go back \
                 to one all the same, stop it first on every member (`systemctl stop etcd`)",
                etcd.endpoints.join(",")
            ))
            .exit(Exit::Conflict);
        }
    }
    Ok(())
}

/// What unpacks snapshots: a tool of its own from etcd 3.5 on.
async fn tool() -> Result<&'static str> {
    for tool in ["etcdutl", "etcdctl"] {
        if Command::new(tool).arg("version").env("ETCDCTL_API", "3").output().await.is_ok() {
            return Ok(tool);
        }
    }
    Err(anyhow!("neither etcdutl nor etcdctl is on this host: `apt install etcd-client`"))
        .exit(Exit::Unavailable)
}

async fn unpack(tool: &str, contents: &Contents, settings: &Settings) -> Result<()> {
    let peer = settings.peer_url();
    let mut command = Command::new(tool);
    command
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore"])
        .arg(&contents.snapshot)
        .args(["--data-dir", ETCD_DATA, "--name", &settings.name])
        .args(["--initial-cluster", &format!("{}={peer}", settings.name)])
        .args(["--initial-advertise-peer-urls", &peer])
        .stdin(std::process::Stdio::null());
    if !contents.has_sum {
        command.arg("--skip-hash-check");
    }
    let output = command.output().await.with_context(|| format!("cannot run {tool}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it says nothing");
        return Err(anyhow!("{tool} cannot restore the snapshot: {last}")).exit(Exit::Data);
    }
    let user =
        User::from_name(USER).ok().flatten().with_context(|| format!("there is no user {USER}"))?;
    give(Path::new(ETCD_DATA), user.uid.as_raw(), user.gid.as_raw())
        .with_context(|| format!("cannot give {ETCD_DATA} to {USER}"))
}

fn give(path: &Path, user: u32, group: u32) -> io::Result<()> {
    chown(path, Some(user), Some(group))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user, group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_is_cut_off_or_altered_is_refused() {
        let data = [7; 1024];
        let mut whole = data.to_vec();
        whole.extend(ring::digest::digest(&SHA256, &data).as_ref());
        let check = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            verify(&mut file).map_err(|error| error.to_string())
        };
        check(&whole).unwrap();
        assert!(check(&whole[..1000]).unwrap_err().contains("cut off"));
        assert!(check(&whole[..512 + 32]).unwrap_err().contains("damaged"));
        assert!(check(&[]).unwrap_err().contains("cut off"));
        whole[3] = 8;
        assert!(check(&whole).unwrap_err().contains("damaged"));
    }

    #[test]
    fn the_latest_copies_stay_and_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let at = |seconds| name(OffsetDateTime::from_unix_timestamp(seconds).unwrap()).unwrap();
        assert_eq!(at(0), "etcd-19700101T000000Z.tar");
        for name in [at(0), at(1_000), at(1_000_000), "etcd-notes.txt".to_owned()] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        forget_old(dir.path(), 2).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort_unstable();
        assert_eq!(left, [at(1_000), at(1_000_000), "etcd-notes.txt".to_owned()]);
    }
}

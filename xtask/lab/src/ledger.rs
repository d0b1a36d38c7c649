//! What a lab has made, on disk before it is made, so that anybody can take it down again: our own
//! `Drop`, `lab down`, or the next lab after a crash.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{interrupt, process_id::ProcessId, workspace};

/// A process that a lab started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Which one.
    pub id: ProcessId,
    /// What people call it: `agent on host-one`.
    pub what: String,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A host of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its name, `host-one`.
    pub name: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its address on the wire.
    pub address: Ipv4Addr,
    /// Its folder.
    pub directory: PathBuf,
    /// Where its agent pins maps and programs.
    pub pins: PathBuf,
}

/// Everything a lab has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The lab's name, unique on this machine.
    pub name: String,
    /// The process that takes it down when it ends; none for a lab that is left standing.
    pub owner: Option<ProcessId>,
    /// All its files.
    pub directory: PathBuf,
    /// Its folder in the BPF file system.
    pub pins: PathBuf,
    /// Parent of its containers' control groups, relative to each hierarchy.
    pub cgroup: String,
    /// Its network namespaces, in the order they were made.
    pub namespaces: Vec<String>,
    /// Its processes, in the order they were started.
    pub processes: Vec<ProcessRecord>,
    /// Its hosts.
    pub hosts: Vec<HostRecord>,
}

impl Record {
    /// The file that holds the record of the lab of this name.
    pub fn path(name: &str) -> Result<PathBuf> {
        Ok(directory()?.join(format!("{name}.json")))
    }

    /// Reads one record; none when there is no such lab.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let record = serde_json::from_str(&text)
            .with_context(|| format!("{} is not the record of a lab", path.display()))?;
        Ok(Some(record))
    }

    /// The records of all labs of this workspace.
    pub fn all() -> Result<Vec<Self>> {
        let directory = directory()?;
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        let mut records = Vec::new();
        for entry in entries {
            let path =
                entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                // Gone between listing and reading: somebody else has taken it down.
                records.extend(Self::read(&path)?);
            }
        }
        Ok(records)
    }

    /// Whether the process that should have taken it down is gone.
    pub fn is_orphan(&self) -> bool {
        self.owner.is_some_and(|owner| !owner.is_running())
    }

    fn write(&self) -> Result<()> {
        let path = Self::path(&self.name)?;
        let failed = || format!("cannot write {}", path.display());
        let mut file =
            tempfile::NamedTempFile::new_in(path.parent().unwrap_or_else(|| Path::new("/")))
                .with_context(failed)?;
        serde_json::to_writer_pretty(&mut file, self).with_context(failed)?;
        file.write_all(b"\n").with_context(failed)?;
        file.persist(&path).with_context(failed)?;
        Ok(())
    }
}

fn directory() -> Result<PathBuf> {
    let directory = workspace::target_dir()?.join("lab");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// The shared, saved record of one lab.
#[derive(Debug, Clone)]
pub struct Ledger {
    record: Arc<Mutex<Record>>,
    explain: fn(&Record),
    explained: Arc<AtomicBool>,
}

impl Ledger {
    /// Starts the record, and saves it. What explains a failure is called when a panic drops what is recorded.
    pub fn open(record: Record, explain: fn(&Record)) -> Result<Self> {
        record.write()?;
        Ok(Self { record: Arc::new(Mutex::new(record)), explain, explained: Arc::default() })
    }

    /// A copy of what it says now.
    pub fn record(&self) -> Record {
        self.lock().clone()
    }

    /// The lab's name.
    pub fn name(&self) -> String {
        self.lock().name.clone()
    }

    /// The lab's folder.
    pub fn directory(&self) -> PathBuf {
        self.lock().directory.clone()
    }

    /// Changes the record and saves it.
    pub fn change(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.lock();
        change(&mut record);
        record.write()
    }

    /// Changes the record from a `Drop`, where an error can only be told.
    pub(crate) fn forget(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.lock();
        change(&mut record);
        // After the lab's teardown there is no file any more, and none must come back.
        let exists = Record::path(&record.name).is_ok_and(|path| path.exists());
        if exists && let Err(error) = record.write() {
            eprintln!("{error:#}");
        }
    }

    /// Prints the state of the lab if a panic is what drops things, before the first of them goes.
    pub(crate) fn explain_if_panicking(&self) {
        if thread::panicking()
            && !interrupt::received()
            && !self.explained.swap(true, Ordering::SeqCst)
        {
            (self.explain)(&self.record());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        // A panic between two changes leaves a record that is still true.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

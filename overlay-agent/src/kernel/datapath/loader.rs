use std::fs;

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapInfo},
    programs::{ProgramError, SchedClassifier},
};
use overlay_common::{
    Hook,
    tables::{
        ABI_VERSION, ACCEPTED_MAP, BRIDGES_MAP, CLAIMS_MAP, CONFIG_MAP, CONFIG_SLOT_MAP,
        COUNTERS_MAP, DROPS_MAP, DROPS_PACE_MAP, DROPS_WATCH_MAP, ENDPOINTS_MAP, HANDED_OVER_MAP,
        HOMES_MAP, HostConfig, PEERS_MAP, POLICY_DENIED_MAP, POLICY_FLOWS_MAP, POLICY_MAP,
        POLICY_RULES_MAP, PORTS_MAP, STACK_FLOWS_CAPACITY, STACK_FLOWS_MAP, STACK_FLOWS_SHARES,
        STACK_SEATS_MAP, STACK_STATE_MAP, STACK_TURNS_MAP, VTEPS_MAP,
    },
};

use tokio::io::{Interest, unix::AsyncFd};

use super::{Maps, PinPath};
use crate::exit::{Exit, WithExit};

/// Every pinned map.
const MAPS: [&str; 23] = [
    CONFIG_MAP,
    CONFIG_SLOT_MAP,
    PEERS_MAP,
    VTEPS_MAP,
    BRIDGES_MAP,
    ENDPOINTS_MAP,
    PORTS_MAP,
    HOMES_MAP,
    CLAIMS_MAP,
    STACK_FLOWS_MAP,
    STACK_SEATS_MAP,
    STACK_TURNS_MAP,
    STACK_STATE_MAP,
    HANDED_OVER_MAP,
    ACCEPTED_MAP,
    POLICY_MAP,
    POLICY_RULES_MAP,
    POLICY_FLOWS_MAP,
    POLICY_DENIED_MAP,
    COUNTERS_MAP,
    DROPS_MAP,
    DROPS_WATCH_MAP,
    DROPS_PACE_MAP,
];

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/overlay.bpf.o"));

/// The loaded programs.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    adopted: bool,
    /// Maps that only the programs use. Those that are not loaded yet know them by their file descriptors.
    own: Vec<Map>,
}

impl Programs {
    /// Loads the programs: over the maps that an earlier agent pinned at `pins`, if they are of our ABI
    /// version; else over new ones, which are to be filled, put to use and pinned in that order, so that
    /// the earlier agent's serve until then.
    pub fn load(pins: &PinPath) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for name in [STACK_FLOWS_MAP, STACK_SEATS_MAP, ACCEPTED_MAP, POLICY_FLOWS_MAP] {
            loader.map_max_entries(name, stack_flows_capacity());
        }
        let adopted = can_adopt(pins);
        if adopted {
            for name in MAPS {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        Self { ebpf: load_object(&mut loader)?, adopted, own: Vec::new() }.load_all()
    }

    /// Whether an earlier agent's maps are in use, filled already.
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// Loads the programs over maps of their own, which vanish with this value.
    pub fn load_unpinned() -> Result<Self> {
        Self::on_demand()?.load_all()
    }

    /// Makes only the maps; a program is loaded when it is asked for.
    pub fn on_demand() -> Result<Self> {
        Ok(Self { ebpf: load_object(&mut EbpfLoader::new())?, adopted: false, own: Vec::new() })
    }

    fn load_all(mut self) -> Result<Self> {
        for hook in Hook::ALL {
            self.get(hook)?;
        }
        Ok(self)
    }

    /// The object that they come from; empty where the agent was built without it.
    pub const fn object() -> &'static [u8] {
        OBJECT
    }

    /// The program of a hook, loaded.
    pub fn get(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        let program = classifier(&mut self.ebpf, hook.name())?;
        if program.fd().is_err() {
            program
                .load()
                .with_context(|| format!("loading BPF program {}", hook.name()))
                .exit(Exit::Unavailable)?;
        }
        Ok(program)
    }

    /// Passes on what programs that were built with `cargo xtask build --bpf-log` have to say, for as long as
    /// the runtime runs. Others say nothing.
    pub fn forward_logs(&mut self) -> Result<()> {
        let logger = match aya_log::EbpfLogger::init(&mut self.ebpf) {
            Err(aya_log::Error::MapNotFound) => return Ok(()),
            logger => logger.context("opening the programs' log")?,
        };
        // SAFETY: the logger's descriptor is that of its ring buffer, which it keeps open while it lives.
        let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .map_err(std::io::Error::from)
            .context("waiting for the programs' log")?;
        tokio::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        });
        Ok(())
    }

    /// Handles to the maps; they can be taken once.
    pub fn take_tables(&mut self) -> Result<Maps> {
        let mut ids = Vec::new();
        let mut take = |name: &'static str| -> Result<Map> {
            let map =
                self.ebpf.take_map(name).with_context(|| format!("BPF map {name} is not there"))?;
            let info = map_info(&map).with_context(|| format!("asking about BPF map {name}"))?;
            ids.push((name, info.id()));
            Ok(map)
        };
        let tables = Maps::new(&mut take)?;
        let flows = take(STACK_FLOWS_MAP)?;
        // An earlier agent's may have another size.
        let capacity = map_info(&flows)?.max_entries() as usize;
        let mut own = vec![flows];
        for name in [
            STACK_SEATS_MAP,
            STACK_TURNS_MAP,
            STACK_STATE_MAP,
            HANDED_OVER_MAP,
            ACCEPTED_MAP,
            POLICY_FLOWS_MAP,
            DROPS_MAP,
            DROPS_WATCH_MAP,
            DROPS_PACE_MAP,
        ] {
            own.push(take(name)?);
        }
        self.own = own;
        let flow_share = u16::try_from(capacity / STACK_FLOWS_SHARES).unwrap_or(u16::MAX);
        Ok(tables.with(ids, flow_share))
    }
}

/// As many flows as the kernel's connection tracking has room for, within bounds: the memory is taken at once.
fn stack_flows_capacity() -> u32 {
    let most = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    let most = most.ok().and_then(|text| text.trim().parse().ok());
    let most = most.unwrap_or(0).clamp(STACK_FLOWS_CAPACITY, 8 * STACK_FLOWS_CAPACITY);
    u32::try_from(most).unwrap_or(u32::MAX)
}

fn map_info(map: &Map) -> Result<MapInfo> {
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LpmTrie(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::PerCpuHashMap(data)
    | Map::RingBuf(data)) = map
    else {
        anyhow::bail!("it is of another type");
    };
    Ok(data.info()?)
}

/// A program of the object, loaded or not.
pub(super) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    ebpf.program_mut(name)
        .with_context(|| format!("BPF program {name} is not in the object"))?
        .try_into()
        .map_err(|error: ProgramError| error.into())
}

/// The object over maps with room for one entry, which cost nothing: for programs that only try something.
pub(super) fn load_for_trial() -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_max_entries(name, 1);
    }
    load_object(&mut loader)
}

fn load_object(loader: &mut EbpfLoader<'_>) -> Result<Ebpf> {
    if OBJECT.is_empty() {
        return Err(anyhow::anyhow!(
            "this agent was built without its BPF object: build it with `cargo xtask build`"
        ))
        .exit(Exit::Unavailable);
    }
    loader.load(OBJECT).context("creating the BPF maps").exit(Exit::Unavailable)
}

fn can_adopt(pins: &PinPath) -> bool {
    // Without one of them, there would be a gap until the list of leases is here.
    if !MAPS.iter().all(|name| pins.map(name).exists()) {
        return false;
    }
    match read_abi_version(&pins.map(CONFIG_MAP)) {
        Ok(ABI_VERSION) => true,
        found => {
            tracing::info!(?found, ours = ABI_VERSION, "replacing BPF maps of another version");
            false
        }
    }
}

/// The version of the maps that are pinned in this directory, if there are any.
pub fn pinned_abi_version(directory: &std::path::Path) -> Result<Option<u32>> {
    let path = directory.join(CONFIG_MAP);
    if path.exists() { read_abi_version(&path).map(Some) } else { Ok(None) }
}

fn read_abi_version(path: &std::path::Path) -> Result<u32> {
    let map = Map::Array(MapData::from_pin(path).context("opening the pinned configuration")?);
    let config = Array::<_, HostConfig>::try_from(map).context("reading the configuration map")?;
    // The one that is not in force may not be written yet.
    let mut version = 0;
    for config in config.iter() {
        version = config.context("reading the pinned configuration")?.abi_version.max(version);
    }
    Ok(version)
}

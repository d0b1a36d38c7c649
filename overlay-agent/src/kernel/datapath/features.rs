use std::fmt;

use anyhow::{Context, Result};
use aya::{
    maps::MapType,
    programs::{
        ProgramError, ProgramType, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions,
    },
    sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported},
};
use nix::errno::Errno;
use overlay_common::{Feature, Need, packet::ETHERNET_LENGTH};

use super::loader;
use crate::{
    exit::{Exit, WithExit},
    fail,
};

/// What the running kernel gives us, found out by trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    release: String,
    found: Vec<Feature>,
}

/// The kernel lacks something that we cannot do without.
#[derive(Debug, thiserror::Error)]
pub struct Missing {
    feature: Feature,
    release: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { feature, release } = self;
        write!(
            out,
            "this kernel, Linux {release}, lacks {}, which came with Linux {}: {}",
            feature.name(),
            feature.since(),
            feature.gives()
        )
    }
}

impl Features {
    /// Tries everything once, in a few milliseconds. Leaves nothing behind.
    ///
    /// Fails where something is missing that we cannot do without, naming it and the first kernel that has it.
    pub fn probe() -> Result<Self> {
        let release = nix::sys::utsname::uname()
            .context("asking for the kernel's release")?
            .release()
            .to_string_lossy()
            .into_owned();
        let mut trial = Trial::default();
        let mut found = Vec::new();
        for &feature in Feature::ALL {
            let there = !fail::pretend_without(feature.name())
                && trial.of(feature).with_context(|| {
                    format!("finding out whether this kernel has {}", feature.name())
                })?;
            if there {
                found.push(feature);
            } else if feature.need() == Need::Required {
                return Err(Missing { feature, release }).exit(Exit::Unavailable);
            }
        }
        Ok(Self { release, found })
    }

    /// Whether the kernel has it.
    pub fn has(&self, feature: Feature) -> bool {
        self.found.contains(&feature)
    }

    /// The kernel's release, as `uname -r` has it.
    pub fn release(&self) -> &str {
        &self.release
    }
}

/// The programs that are only tried, loaded when the first of them is.
#[derive(Default)]
struct Trial {
    ebpf: Option<aya::Ebpf>,
}

impl Trial {
    fn of(&mut self, feature: Feature) -> Result<bool> {
        match feature {
            Feature::LruHash => Ok(is_map_supported(MapType::LruHash)?),
            Feature::FibLookup => helper(BpfHelper::BPF_FUNC_fib_lookup),
            Feature::CsumLevel => helper(BpfHelper::BPF_FUNC_csum_level),
            Feature::RedirectNeigh => helper(BpfHelper::BPF_FUNC_redirect_neigh),
            Feature::RedirectPeer => helper(BpfHelper::BPF_FUNC_redirect_peer),
            Feature::Tcx => tcx(),
            Feature::Btf => {
                Ok(self.program(Feature::EncapL2Eth)?.info()?.btf_id().is_some_and(|id| id != 0))
            }
            Feature::EncapL2Eth | Feature::DecapL4Udp => self.run(feature),
        }
    }

    /// Runs the program of a feature over a packet that it can resize.
    fn run(&mut self, feature: Feature) -> Result<bool> {
        let mut packet = [0; 256];
        packet[ETHERNET_LENGTH - 2..][..3].copy_from_slice(&[8, 0, 0x45]);
        let result = self
            .program(feature)?
            .test_run(TestRunOptions { data_in: Some(&packet), ..TestRunOptions::new() })?;
        Ok(result.return_value == 0)
    }

    fn program(&mut self, feature: Feature) -> Result<&mut SchedClassifier> {
        let ebpf = match &mut self.ebpf {
            Some(ebpf) => ebpf,
            none => none.insert(loader::load_for_trial()?),
        };
        let program = loader::classifier(ebpf, &format!("probe_{}", feature.name()))?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
            Err(error) => Err(error.into()),
        }
    }
}

fn helper(helper: BpfHelper) -> Result<bool> {
    Ok(is_helper_supported(ProgramType::SchedClassifier, helper)?)
}

/// Asking who is attached somewhere changes nothing, and a kernel without TCX knows no such question.
fn tcx() -> Result<bool> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(Errno::EINVAL as i32) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

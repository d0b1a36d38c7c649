//! Hundreds of acts of damage in any order, under traffic; see [`crate::damage`] for what they are.
//!
//! `OVERLAY_CHAOS_SEED` chooses another run, `OVERLAY_CHAOS_ACTS` says how many acts there are: the whole suite
//! does 60, a hunt for bugs 500.

use std::sync::RwLock;

use anyhow::{Context as _, Result};
use overlay_lab::{Agent, AgentOptions, Etcd, Lab, eventually, stream::Stream};

use crate::{
    damage::{self, ACTS, MENDED, State, Target},
    overlay::{Overlay, SOON},
};

/// Damaged at the same time, each by its own sequence: what takes time is to see that nothing happens.
const HOSTS: usize = 6;

/// Numbers that look like chance and can be had again (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap()
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// One host and what can happen to it.
struct Victim<'a> {
    target: Target<'a>,
    agent: &'a mut Agent,
    options: &'a AgentOptions,
    /// Agents start while others cannot take it away.
    etcd: &'a RwLock<Etcd>,
    healthy: State,
}

impl Victim<'_> {
    fn start(&mut self) -> Result<()> {
        let _etcd = self.etcd.read().unwrap();
        *self.agent = self.target.host.start_agent(self.options)?;
        Ok(())
    }

    /// One act, by chance; what it was. An agent that it starts is ready when it returns.
    fn suffer(&mut self, chance: &mut Chance) -> Result<String> {
        let kind = chance.below(ACTS.len() + 4);
        if let Some(act) = ACTS.get(kind) {
            (act.does)(&self.target).context(act.what)?;
            return Ok(act.what.to_owned());
        }
        Ok(match kind - ACTS.len() {
            0 => {
                self.agent.stop()?;
                self.start()?;
                "the agent is stopped and started".to_owned()
            }
            1 => {
                self.agent.kill()?;
                self.start()?;
                "the agent is killed and started".to_owned()
            }
            2 => {
                let act = &ACTS[chance.below(ACTS.len())];
                self.agent.kill()?;
                (act.does)(&self.target).context(act.what)?;
                self.start()?;
                format!("while there is no agent, {}", act.what)
            }
            _ => {
                let mut etcd = self.etcd.write().unwrap();
                etcd.stop()?;
                etcd.start_again()?;
                "etcd goes and comes back".to_owned()
            }
        })
    }

    fn suffer_all(&mut self, seed: u64, acts: usize) -> Result<()> {
        let mut chance = Chance(seed);
        for number in 0..acts {
            let name = self.target.host.name();
            let what = self
                .suffer(&mut chance)
                .with_context(|| format!("seed {seed}, act {number} on {name}"))?;
            let story = format!("act {number} on {}, {what}", self.target.host.name());
            damage::mended(&self.target, self.agent, &self.healthy, MENDED, &story)?;
        }
        Ok(())
    }
}

#[test]
fn whatever_happens_is_mended_and_stays_mended() {
    let seed = number("OVERLAY_CHAOS_SEED").unwrap_or(42);
    let acts = usize::try_from(number("OVERLAY_CHAOS_ACTS").unwrap_or(60)).unwrap();
    println!("OVERLAY_CHAOS_SEED={seed} OVERLAY_CHAOS_ACTS={acts}");

    let mut overlay = Overlay::with(Lab::builder().hosts(HOSTS), |options| options);
    for host in &overlay.lab.hosts()[2..] {
        overlay.agents.push(host.start_agent(&overlay.options).unwrap());
        overlay.containers.push(host.add_container("c").unwrap());
    }
    overlay.settle();
    let Overlay { mut agents, containers, options, etcd, lab } = overlay;
    let etcd = etcd.unwrap();
    let streams: Vec<_> = containers
        .chunks(2)
        .flat_map(|pair| [(&pair[0], &pair[1], 7001), (&pair[1], &pair[0], 7002)])
        .map(|(from, to, port)| (from.address(), Stream::start(from, to, port).unwrap()))
        .collect();
    let etcd = RwLock::new(etcd);
    std::thread::scope(|scope| {
        let victims: Vec<_> = agents
            .iter_mut()
            .enumerate()
            .map(|(number, agent)| {
                let (host, container) = (lab.host(number), &containers[number]);
                let target = Target { host, container, peer: lab.host((number + 1) % HOSTS) };
                let healthy = damage::healthy(&target).unwrap();
                let mut victim = Victim { target, agent, options: &options, etcd: &etcd, healthy };
                let share = (acts + HOSTS - 1 - number) / HOSTS;
                scope.spawn(move || victim.suffer_all(seed.wrapping_add(number as u64), share))
            })
            .collect();
        let outcomes: Vec<_> = victims.into_iter().map(|victim| victim.join().unwrap()).collect();
        for outcome in outcomes {
            outcome.unwrap();
        }
    });
    for (number, container) in containers.iter().enumerate() {
        eventually(SOON, "a ping to go through", || {
            container.ping(containers[(number + 1) % HOSTS].address())
        })
        .unwrap();
    }
    for (from, stream) in streams {
        println!("from {from}: {:?}", stream.stop().unwrap());
    }
}

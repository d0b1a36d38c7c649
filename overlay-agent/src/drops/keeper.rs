use std::{
    collections::VecDeque,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use overlay_common::{
    Class, Reason,
    tables::{DropRecord, DropsWatch},
};
use rtnetlink::Handle;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::{self, error::TrySendError},
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::task::AbortOnDropHandle;

use super::{Line, Missed, ToldPacket, Why, interfaces::Interfaces};
use crate::kernel::datapath::{ByReason, DropRing, DropWatch, monotonic};

/// So many packets of each reason, on each processor, are told of in a second when nobody follows: enough for who comes
/// afterwards, and no work.
const RECORDED: DropsWatch = DropsWatch { per_second: 10, declined: 0 };

/// And so many when somebody follows.
const FOLLOWED: u32 = 1000;

/// So many of the last packets are kept.
const KEPT: usize = 1000;

/// So many packets wait for one that follows.
const WAITING: usize = 4096;

/// So many records are read before others have a turn.
const BATCH: usize = 256;

/// How often it is looked whether there is anything, and what was missed is told.
const TICK: Duration = Duration::from_secs(1);

/// What programs tell of single packets, for whoever asks. Clones are the same.
#[derive(Clone, Default)]
pub struct Drops(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    watch: Option<DropWatch>,
    recent: VecDeque<Arc<ToldPacket>>,
    followers: Vec<Follower>,
}

struct Follower {
    packets: mpsc::Sender<Arc<ToldPacket>>,
    declined: bool,
    /// Packets of before are not his. Nanoseconds since the host's start.
    since: u64,
    /// Packets that he was too slow for.
    missed: ByReason,
    number: u64,
}

/// What somebody hears who follows.
pub struct DropStream {
    drops: Drops,
    packets: mpsc::Receiver<Arc<ToldPacket>>,
    declined: bool,
    number: u64,
    /// What was missed in the programs when it was last told.
    told: ByReason,
    tick: Interval,
    lines: VecDeque<Line>,
}

impl Drops {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read: from this ring, for as long as the task lives that this returns.
    pub fn read_from(
        &self,
        ring: DropRing,
        mut watch: DropWatch,
        netlink: Handle,
    ) -> Result<AbortOnDropHandle<()>> {
        // Whatever an earlier agent's followers have asked for.
        watch.ask_for(RECORDED)?;
        self.state().watch = Some(watch);
        // SAFETY: the descriptor is that of the ring's map, which the ring keeps open while it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(std::io::Error::from)
            .context("waiting for BPF map drops")?;
        let keep = self.clone().keep(ring, Interfaces::new(netlink));
        Ok(AbortOnDropHandle::new(tokio::spawn(keep)))
    }

    async fn keep(self, mut ring: AsyncFd<DropRing>, mut interfaces: Interfaces) {
        let mut tick = ticks();
        loop {
            let mut empty = false;
            tokio::select! {
                ready = ring.readable_mut() => {
                    let Ok(mut guard) = ready else { return };
                    let records = take(guard.get_inner_mut());
                    empty = records.len() < BATCH;
                    self.tell(&records, &mut interfaces).await;
                    if empty {
                        guard.clear_ready();
                    }
                }
                _ = tick.tick() => self.settle(),
            }
            if !empty {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn tell(&self, records: &[DropRecord], interfaces: &mut Interfaces) {
        if records.is_empty() {
            return;
        }
        let numbers = records.iter().flat_map(|record| [record.ifindex, record.ingress_ifindex]);
        interfaces.learn(numbers).await;
        let mut state = self.state();
        let port = state.watch.as_ref().map_or(0, DropWatch::vxlan_port);
        for record in records {
            let Some((_, reason)) = record.verdict() else { continue };
            let interface = interfaces.get(record.ifindex);
            let ethernet = interface.is_none_or(|interface| interface.ethernet);
            let Some(mut told) = ToldPacket::read(record, port, ethernet) else { continue };
            told.time = wall_clock(record.time);
            told.interface = interface.map(|interface| interface.name.clone());
            if record.ingress_ifindex != record.ifindex {
                let other = interfaces.get(record.ingress_ifindex);
                told.came_by = other.map(|interface| interface.name.clone());
            }
            state.add(Arc::new(told), reason, record.time);
        }
    }

    /// The packets that were told of last, the oldest first.
    pub fn recent(&self) -> Vec<Arc<ToldPacket>> {
        self.state().recent.iter().cloned().collect()
    }

    /// Begins to follow, with packets that are declined or without; `None` while there are no programs.
    pub fn follow(&self, declined: bool) -> Result<Option<DropStream>> {
        let (sender, packets) = mpsc::channel(WAITING);
        let mut state = self.state();
        if state.watch.is_none() {
            return Ok(None);
        }
        let number = state.followers.iter().map(|follower| follower.number + 1).max().unwrap_or(0);
        let missed = [0; Reason::ALL.len()];
        let since = u64::MAX;
        let follower = Follower { packets: sender, declined, since, missed, number };
        state.followers.push(follower);
        state.ask()?;
        // Programs tell of all that is asked for from here on.
        let since = monotonic().context("reading the clock")?;
        let told = state.missed()?;
        if let Some(follower) = state.followers.last_mut() {
            follower.since = since;
        }
        let lines = VecDeque::from([Line::Listening]);
        drop(state);
        let drops = self.clone();
        Ok(Some(DropStream { drops, packets, declined, number, told, tick: ticks(), lines }))
    }

    /// Takes those off the list who do not follow any more.
    fn settle(&self) {
        let mut state = self.state();
        let before = state.followers.len();
        state.followers.retain(|follower| !follower.packets.is_closed());
        if state.followers.len() != before
            && let Err(error) = state.ask()
        {
            tracing::warn!("{error:#}");
        }
    }
}

impl State {
    fn add(&mut self, told: Arc<ToldPacket>, reason: Reason, time: u64) {
        let dropped = reason.class() == Class::Dropped;
        for follower in &mut self.followers {
            if time < follower.since || !(dropped || follower.declined) {
                continue;
            }
            if let Err(TrySendError::Full(_)) = follower.packets.try_send(Arc::clone(&told)) {
                follower.missed[reason as usize] += 1;
            }
        }
        // Declined ones come by the thousand, and are for who asks.
        if dropped {
            if self.recent.len() == KEPT {
                self.recent.pop_front();
            }
            self.recent.push_back(told);
        }
    }

    /// Has programs tell of what is wanted.
    fn ask(&mut self) -> Result<()> {
        let wanted = match &*self.followers {
            [] => RECORDED,
            followers => DropsWatch {
                per_second: FOLLOWED,
                declined: followers.iter().any(|follower| follower.declined).into(),
            },
        };
        self.watch.as_mut().map_or(Ok(()), |watch| watch.ask_for(wanted))
    }

    fn missed(&self) -> Result<ByReason> {
        self.watch.as_ref().map_or(Ok([0; Reason::ALL.len()]), DropWatch::missed)
    }
}

impl fmt::Debug for Drops {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Drops(…)")
    }
}

impl DropStream {
    /// What there is to hear next; it does not end.
    pub async fn next(&mut self) -> Result<Line> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(line);
            }
            tokio::select! {
                biased;
                _ = self.tick.tick() => {
                    let missed = self.missed()?;
                    self.lines.extend(missed);
                }
                packet = self.packets.recv() => {
                    let packet = packet.context("the task that reads drops has ended")?;
                    return Ok(Line::Packet(Box::new(ToldPacket::clone(&packet))));
                }
            }
        }
    }

    /// What was missed since it was told last.
    fn missed(&mut self) -> Result<Vec<Line>> {
        let mut state = self.drops.state();
        let now = state.missed()?;
        let follower = state.followers.iter_mut().find(|follower| follower.number == self.number);
        let slow = follower.map(|follower| mem::replace(&mut follower.missed, [0; _]));
        drop(state);
        let before = mem::replace(&mut self.told, now);
        let mut lines = Vec::new();
        for (number, &reason) in Reason::ALL.iter().enumerate() {
            if !self.declined && reason.class() != Class::Dropped {
                continue;
            }
            // Who takes the pins away gets maps that begin anew.
            let in_program = now[number].saturating_sub(before[number]);
            lines.extend(Missed::of(reason, in_program, Why::Program));
            let slow = slow.as_ref().map_or(0, |slow| slow[number]);
            lines.extend(Missed::of(reason, slow, Why::Reader));
        }
        Ok(lines.into_iter().map(Line::Missed).collect())
    }
}

impl Drop for DropStream {
    fn drop(&mut self) {
        self.packets.close();
        self.drops.settle();
    }
}

impl fmt::Debug for DropStream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("DropStream(…)")
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn take(ring: &mut DropRing) -> Vec<DropRecord> {
    ring.by_ref().take(BATCH).collect()
}

/// When that was, by the host's clock of now.
fn wall_clock(time: u64) -> String {
    let ago = monotonic().unwrap_or(time).saturating_sub(time);
    let then = SystemTime::now() - Duration::from_nanos(ago);
    let then = OffsetDateTime::from(then);
    // To the microsecond.
    let then = then.replace_nanosecond(then.nanosecond() / 1000 * 1000).unwrap_or(then);
    then.format(&Rfc3339).unwrap_or_default()
}

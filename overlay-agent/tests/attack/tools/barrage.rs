//! Frames that keep coming while something else happens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use overlay_lab::eventually;

use super::{port::Port, site::SOON};

/// A thread that sends the same frames again and again; ended when dropped.
#[derive(Debug)]
pub(crate) struct Barrage {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Barrage {
    /// Sends all of `frames`, and again after `pause`; returns once it flows.
    pub(crate) fn start(port: Port, frames: Vec<Vec<u8>>, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                count.fetch_add(port.send_many(&frames) as u64, Ordering::Relaxed);
                std::thread::sleep(pause);
            }
        });
        let barrage = Self { stop, sent, thread: Some(thread) };
        barrage.go_on();
        barrage
    }

    /// Waits until more has been sent.
    pub(crate) fn go_on(&self) {
        let before = self.sent();
        eventually(SOON, "frames to be sent", || {
            anyhow::ensure!(self.sent() > before + 20, "none is");
            Ok(())
        })
        .unwrap();
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it, and says how many frames the kernel has taken.
    pub(crate) fn stop(mut self) -> u64 {
        self.end();
        self.sent()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Barrage {
    fn drop(&mut self) {
        self.end();
    }
}

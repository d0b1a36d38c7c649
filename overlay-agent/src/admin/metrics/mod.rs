//! `/metrics`: what whoever watches hosts reads time and again. The control loop is not asked: what the kernel knows is read
//! from the maps, what tasks know from where they write it, and what the loop alone knows from its latest beat.

mod families;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use overlay_lease::figures::Figures;
use tokio::{sync::Mutex, time::timeout};

use self::snapshot::{MapCount, Snapshot};
use super::{Listener, Status};
use crate::kernel::datapath::{CounterRow, Readings};

/// A page is shown again to who asks within this time: anybody may ask, as often as he likes.
const FRESH: Duration = Duration::from_millis(500);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// The format that the library writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The older format, for who does not ask for the other.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where everything is that is shown. Clones are the same.
#[derive(Clone)]
pub struct Meters(Arc<Inner>);

struct Inner {
    started: SystemTime,
    listener: Listener,
    figures: Option<Figures>,
    certificate: Option<PathBuf>,
    readings: OnceLock<Readings>,
    page: Arc<Mutex<Page>>,
}

/// What was shown last.
#[derive(Default)]
struct Page {
    text: Option<(Instant, Arc<str>)>,
    maps: MapCount,
}

impl Meters {
    /// Of an agent that starts now: how its loop is, says `listener`; what is counted of etcd, `figures`; and
    /// `certificate` is the file, in PEM, by which etcd knows us.
    pub fn new(listener: Listener, figures: Option<Figures>, certificate: Option<PathBuf>) -> Self {
        Self(Arc::new(Inner {
            started: SystemTime::now(),
            listener,
            figures,
            certificate,
            readings: OnceLock::new(),
            page: Arc::default(),
        }))
    }

    /// From now on there are maps to read.
    pub fn read_from(&self, readings: Readings) {
        // An agent has the same maps for as long as it runs.
        self.0.readings.set(readings).ok();
    }

    /// Adds the counters to what the agent says of itself. Reads for a millisecond.
    pub(super) fn add_counters(&self, status: &mut Status) {
        let (Some(overlay), Some(readings)) = (&mut status.overlay, self.0.readings.get()) else {
            return;
        };
        match readings.counters() {
            Ok(rows) => overlay.counters = rows.into_iter().map(Into::into).collect(),
            Err(error) => {
                status.problems.push(format!("The counters cannot be read: {error:#}."));
            }
        }
    }

    /// Every counter that is not zero; nothing while there are no programs.
    pub(super) fn counters(&self) -> Result<Vec<CounterRow>> {
        self.0.readings.get().map_or(Ok(Vec::new()), Readings::counters)
    }

    /// Everything, in the format of `OpenMetrics`.
    async fn page(&self) -> Result<Arc<str>> {
        let mut page = Arc::clone(&self.0.page).lock_owned().await;
        if let Some((made, text)) = &page.text
            && made.elapsed() < FRESH
        {
            return Ok(Arc::clone(text));
        }
        let inner = Arc::clone(&self.0);
        // Who holds the lock goes on where nobody waits any more, so that there is never more than one.
        let make = tokio::task::spawn_blocking(move || {
            let snapshot = Snapshot::take(&inner, &mut page.maps);
            let text: Arc<str> = families::open_metrics(snapshot)?.into();
            page.text = Some((Instant::now(), Arc::clone(&text)));
            Ok(text)
        });
        make.await.context("the task that reads metrics has ended")?
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Meters(…)")
    }
}

/// Answers `/metrics`.
pub(super) fn router(meters: Meters) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(meters)
}

async fn metrics(State(meters): State<Meters>, headers: HeaderMap) -> Response {
    match timeout(ANSWER, meters.page()).await {
        Ok(Ok(page)) if wants_open_metrics(&headers) => {
            ([(CONTENT_TYPE, OPEN_METRICS)], page.to_string()).into_response()
        }
        Ok(Ok(page)) => ([(CONTENT_TYPE, PLAIN)], families::plain(&page)).into_response(),
        Ok(Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
        }
        Err(_) => {
            let text = format!("no metrics within {} s\n", ANSWER.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// As other exporters decide it: whoever understands the format says so.
fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        kind.split(';').next().is_some_and(|kind| kind.trim() == "application/openmetrics-text")
    })
}

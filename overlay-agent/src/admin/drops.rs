use axum::{
    Router,
    body::Body,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::stream;
use overlay_common::Class;

use super::Meters;
use crate::drops::{DropCount, Drops, Line, ToldPacket};

/// The format of a line of JSON after the other.
const JSON_LINES: &str = "application/jsonl";

#[derive(Clone)]
struct Sources {
    drops: Drops,
    meters: Meters,
}

/// Answers `/drops`, what was dropped last, and `/drops/follow` and `/drops/follow/declined`, what is dropped, and
/// declined, from now on.
pub(super) fn router(drops: Drops, meters: Meters) -> Router {
    Router::new()
        .route("/drops", get(recent))
        .route(
            "/drops/follow",
            get(|State(sources): State<Sources>| async move { follow(&sources, false) }),
        )
        .route(
            "/drops/follow/declined",
            get(|State(sources): State<Sources>| async move { follow(&sources, true) }),
        )
        .with_state(Sources { drops, meters })
}

async fn recent(State(Sources { drops, meters }): State<Sources>) -> Response {
    let write = move || -> anyhow::Result<String> {
        let packets = drops.recent().into_iter();
        let packets = packets.map(|told| Line::Packet(Box::new(ToldPacket::clone(&told))));
        let counters = meters.counters()?.into_iter();
        let dropped = counters.filter(|row| row.class() == Class::Dropped);
        let counts = dropped.map(|row| Line::Count(DropCount::from(row)));
        let lines = packets.chain(counts).map(|line| to_json(&line));
        lines.collect::<Result<_, _>>().map_err(Into::into)
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(lines)) => ([(CONTENT_TYPE, JSON_LINES)], lines).into_response(),
        Ok(Err(error)) => failure(&error),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn follow(sources: &Sources, declined: bool) -> Response {
    let following = match sources.drops.follow(declined) {
        Ok(Some(following)) => following,
        Ok(None) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Err(error) => return failure(&error),
    };
    let lines = stream::try_unfold(following, async |mut following| {
        let line = following.next().await?;
        let line = to_json(&line)?;
        anyhow::Ok(Some((line, following)))
    });
    ([(CONTENT_TYPE, JSON_LINES)], Body::from_stream(lines)).into_response()
}

fn to_json(line: &Line) -> serde_json::Result<String> {
    serde_json::to_string(line).map(|line| line + "\n")
}

fn failure(error: &anyhow::Error) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
}

//! Which peers are there, as `status` tells.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::ensure;
use overlay_lab::{Lab, UPLINK, eventually};
use serde_json::{Value, json};

use crate::{flannel::become_flannel, overlay::Overlay};

/// Some times the time after which silence is a fault.
const SOON: Duration = Duration::from_secs(20);

fn overlay() -> Overlay {
    Overlay::with(Lab::builder(), |options| options.argument("--peer-timeout=3"))
}

/// What the first host says of a peer.
fn peer(overlay: &Overlay, address: Ipv4Addr) -> anyhow::Result<Value> {
    let status = overlay.agents[0].status()?;
    let address = address.to_string();
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    peers
        .into_iter()
        .find(|peer| peer["public_ip"] == address)
        .ok_or_else(|| anyhow::anyhow!("no peer {address} in {status}"))
}

/// Waits until the first host has had an answer in the last second or so, by that way.
fn wait_answered(overlay: &Overlay, address: Ipv4Addr, by: &str) {
    eventually(SOON, "an answer of now", || {
        let answered = peer(overlay, address)?["answered"].clone();
        let seconds = answered["seconds_ago"].as_u64().unwrap_or(u64::MAX);
        ensure!(answered["by"] == by && seconds <= 1, "it is {answered}");
        ensure!(overlay.agents[0].status()?["problems"] == json!([]), "there is a problem");
        Ok(())
    })
    .unwrap();
}

fn wait_problem(overlay: &Overlay, words: &str) {
    eventually(SOON, "status to say so", || {
        let problems = overlay.agents[0].status()?["problems"].clone();
        ensure!(problems.to_string().contains(words), "the problems are {problems}");
        Ok(())
    })
    .unwrap();
}

/// By the program on its uplink, before any firewall and without an agent.
#[test]
fn a_host_that_lets_nothing_in_and_has_no_agent_is_there_for_those_who_ask() {
    let mut overlay = overlay();
    wait_answered(&overlay, overlay.lab.host(1).address(), "vxlan");
    let drop_all = "add table inet closed
        add chain inet closed input { type filter hook input priority 0; policy drop; }";
    overlay.lab.host(1).command("nft").args(["-f", "-"]).input(drop_all.as_bytes()).run().unwrap();
    overlay.agents[1].kill().unwrap();
    // What was answered before that is too old by then.
    let verifications = || overlay.agents[0].status().unwrap()["verifications"].as_u64().unwrap();
    let later = verifications() + 16;
    eventually(SOON, "four seconds of the agent's", || {
        ensure!(verifications() >= later, "it has looked {} times", verifications());
        Ok(())
    })
    .unwrap();
    wait_answered(&overlay, overlay.lab.host(1).address(), "vxlan");
}

#[test]
fn a_host_that_is_gone_and_one_that_the_overlay_does_not_reach_are_told_apart() {
    let overlay = overlay();
    wait_answered(&overlay, overlay.lab.host(1).address(), "vxlan");
    let peer = overlay.lab.host(1).address();
    let wire = overlay.lab.wire().switch();
    let drop_vxlan = "add table bridge between
        add chain bridge between forward { type filter hook forward priority 0; }
        add rule bridge between forward udp dport 8472 drop";
    wire.command("nft").args(["-f", "-"]).input(drop_vxlan.as_bytes()).run().unwrap();
    wait_problem(
        &overlay,
        "answers, but not through the overlay: something between drops UDP port 8472",
    );
    wire.command("nft").args(["delete", "table", "bridge", "between"]).run().unwrap();
    wait_answered(&overlay, overlay.lab.host(1).address(), "vxlan");
    overlay.lab.host(1).ip(["link", "set", UPLINK, "down"]).unwrap();
    wait_problem(&overlay, &format!("{peer}, which leases"));
    wait_problem(&overlay, "neither through the overlay nor past it");
}

/// flannel's hosts have nobody who answers but their kernel.
#[test]
fn a_flannel_host_answers_by_icmp() {
    let overlay =
        Overlay::with(Lab::builder().hosts(3), |options| options.argument("--peer-timeout=3"));
    let _theirs = become_flannel(&overlay, overlay.lab.host(2), false);
    wait_answered(&overlay, overlay.lab.host(2).address(), "icmp");
    wait_answered(&overlay, overlay.lab.host(1).address(), "vxlan");
}

//! Rules that everybody has, which may match and are not meant for the overlay.

use super::{
    Scene,
    packet::Test,
    table::{Rule, Table},
};
use crate::kernel::firewall::docker_nftables::TABLE as DOCKER_BRIDGES;

/// Whether the effect of this rule, `what`, is that of Docker's, ufw's or Kubernetes' own machinery.
pub(super) fn is_plumbing(
    table: &Table,
    chain: &str,
    rule: &Rule,
    what: &str,
    scene: &Scene,
) -> bool {
    let begins = |prefix| chain.starts_with(prefix);
    // As `nft` shows what `iptables` has made.
    let name = table.name.strip_prefix("ip ").unwrap_or(&table.name);
    match (what, name, chain) {
        ("DROP" | "drop", "filter", "DOCKER") => keeps_strangers_out(&rule.tests),
        ("DROP" | "drop", "raw", "PREROUTING") | ("drop", DOCKER_BRIDGES, "raw-PREROUTING") => {
            guards_container(&rule.tests, scene)
        }
        ("drop", DOCKER_BRIDGES, _) => {
            begins("filter-forward-in__")
                && rule.tests.is_empty()
                && rule.text.ends_with("comment \"UNPUBLISHED PORT DROP\"")
        }
        ("LOG", ..) => begins("ufw-"),
        // What is to be masqueraded. CNI-ADMIN is the operator's.
        ("MARK", ..) => {
            begins("KUBE-") || begins("FLANNEL-") || begins("CNI-") && !begins("CNI-ADMIN")
        }
        _ => false,
    }
}

/// `! -i BRIDGE -o BRIDGE`: ports that are not published are closed to the outside (Docker 28).
fn keeps_strangers_out(tests: &[Test]) -> bool {
    let [Test::Not(from), Test::To(to)] = tests else { return false };
    matches!(&**from, Test::From(from) if from == to && to.name().is_some())
}

/// `-d CONTAINER ! -i BRIDGE`: nobody is to address a container from outside (Docker 28). On other bridges than the
/// overlay's such a rule does not match, unless it is somebody else's.
fn guards_container(tests: &[Test], scene: &Scene) -> bool {
    // `nft` shows them in the other order.
    let ([Test::Destination(container), Test::Not(from)]
    | [Test::Not(from), Test::Destination(container)]) = tests
    else {
        return false;
    };
    let Test::From(from) = &**from else { return false };
    container.single().is_some_and(|container| scene.subnet.contains(container))
        && from.name().is_some_and(|from| {
            scene.bridges.is_empty() || scene.bridges.iter().any(|bridge| bridge == from)
        })
}

//! Our agent in a network with as long a policy as anybody writes by hand, and more.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Contender, Site, Standing, ours};

pub(super) const CONTENDER: Contender = Contender {
    name: "ours-policy",
    about: "ours in a network whose policy has 1,000 rules",
    usual: false,
    set_up,
};

const NETWORK: u8 = 66;
const RULES: u16 = 1000;

fn set_up(site: &Site<'_>) -> Result<Standing> {
    ours::with_policy(site, NETWORK, &site.agents.now, &policy(), |options| options)
}

/// Each rule has addresses and ports of its own; what is measured meets none but the last.
fn policy() -> Value {
    let subnet = |number| format!("10.{NETWORK}.{}.0/24", number % 256);
    let rule = |number: u16| {
        let protocol = if number.is_multiple_of(2) { "tcp" } else { "udp" };
        json!({"Name": format!("rule-{number}"), "From": subnet(number), "To": subnet(number * 7),
            "Protocol": protocol,
            "Port": format!("{}-{}", 100 + number, 100 + number * 2), "Action": "deny"})
    };
    let mut rules: Vec<_> = (0..RULES - 1).map(rule).collect();
    rules.push(json!({"Name": "everything-else", "Action": "allow"}));
    rules.into()
}

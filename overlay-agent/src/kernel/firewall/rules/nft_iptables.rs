use serde_json::Value;

use super::{nft_match::only_member, table::Table};

/// Whether `iptables-save` shows the rules of a table as they are. What nobody but `nft` makes it shows as if it asked
/// less than it does, or did nothing; and what one version makes an older does not know.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Whether there are rules that no version makes.
    has_others: bool,
    marks: Count,
    logs: Count,
}

/// Rules that newer versions make without `xt`.
#[derive(Debug, Default)]
struct Count {
    plain: usize,
    all: usize,
}

impl Count {
    fn add(&mut self, is_plain: bool, is_xt: bool) {
        self.plain += usize::from(is_plain);
        self.all += usize::from(is_plain || is_xt);
    }

    /// Whether as many are shown, if any might not be.
    fn is_shown(&self, saved: &Table, words: &str) -> bool {
        let rules = saved.chains.values().flat_map(|chain| &chain.rules);
        let shown = rules.filter(|rule| rule.text.contains(words)).count();
        self.plain == 0 || self.all == shown
    }
}

impl Census {
    /// Takes in one more rule.
    pub(super) fn add(&mut self, statements: &[Value]) {
        let statements = statements.iter().map(only_member);
        // `iptables` counts always.
        let is_counted = statements.clone().any(|part| matches!(part, Some(("counter", _))));
        self.has_others |= !is_counted || !statements.clone().all(is_known);
        let any = |is: &dyn Fn(&str, &Value) -> bool| {
            statements.clone().flatten().any(|(kind, body)| is(kind, body))
        };
        let is_xt = |kind: &str, body: &Value, names: &[&str]| {
            let name = body.get("name").and_then(Value::as_str);
            kind == "xt" && name.is_some_and(|name| names.contains(&name))
        };
        self.marks.add(
            any(&|kind, body| kind == "match" && operand(body, "meta", "key") == Some("mark")),
            any(&|kind, body| is_xt(kind, body, &["mark", "connmark"])),
        );
        self.logs
            .add(any(&|kind, _| kind == "log"), any(&|kind, body| is_xt(kind, body, &["NFLOG"])));
    }

    /// Whether what was saved of the table is all there is to it.
    pub(super) fn is_all_in(&self, saved: &Table) -> bool {
        !self.has_others
            && self.marks.is_shown(saved, " --mark ")
            && self.logs.is_shown(saved, " -j NFLOG")
    }
}

fn is_known(statement: Option<(&str, &Value)>) -> bool {
    match statement {
        Some(("match", body)) => is_known_match(body),
        Some(("log", body)) => body.get("group").is_some(),
        Some((kind, _)) => {
            ["counter", "xt", "accept", "drop", "return", "jump", "goto", "limit"].contains(&kind)
        }
        None => false,
    }
}

/// A member of what is on the left side of a match, maybe behind a mask.
fn operand<'a>(body: &'a Value, kind: &str, name: &str) -> Option<&'a str> {
    let left = body.get("left")?;
    let left = left.get("&").and_then(|masked| masked.get(0)).unwrap_or(left);
    left.get(kind)?.get(name)?.as_str()
}

fn is_known_match(body: &Value) -> bool {
    let (protocol, field) =
        (operand(body, "payload", "protocol"), operand(body, "payload", "field"));
    let is_port = matches!(
        (protocol, field),
        (Some("tcp" | "udp"), Some("sport" | "dport")) | (Some("tcp"), Some("flags"))
    );
    let is_left = match (protocol, field) {
        (Some("ip"), Some("saddr" | "daddr" | "protocol" | "frag-off")) => true,
        (None, None) => {
            matches!(operand(body, "meta", "key"), Some("iifname" | "oifname" | "l4proto" | "mark"))
        }
        _ => is_port,
    };
    let is_right = |right: &Value| match right {
        Value::Object(right) => {
            right.contains_key("prefix") || is_port && right.contains_key("range")
        }
        Value::String(right) => !right.starts_with('@'),
        _ => true,
    };
    let is_compared = matches!(body.get("op").and_then(Value::as_str), Some("==" | "!="));
    is_left && is_compared && body.get("right").is_some_and(is_right)
}

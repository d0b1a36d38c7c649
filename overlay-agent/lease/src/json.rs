//! Reading JSON the way Go's `encoding/json` does: names without regard to case, `null` as absent.
//!
//! Everything in etcd under our prefix may have been written by hand or by flannel, whose decoder
//! accepts `network` for `Network`; what it accepts we must accept.

use serde_json::{Map, Value};

/// The member called `name`: exactly if there is one, otherwise in any case. `null` counts as
/// absent.
pub(crate) fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    raw_member(object, name).filter(|value| !value.is_null())
}

/// As [`member`], but `null` is returned, for the fields where flannel tells the two apart.
pub(crate) fn raw_member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| {
        object.iter().find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    })
}

/// What kind of JSON value this is, in the words of an error message.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_match_in_any_case_and_the_exact_one_wins() {
        let value = json!({"NETWORK": 1, "Network": 2, "subnetlen": 3, "SubnetMin": null});
        let object = value.as_object().unwrap();
        assert_eq!(member(object, "Network"), Some(&json!(2)));
        assert_eq!(member(object, "SubnetLen"), Some(&json!(3)));
        assert_eq!(member(object, "SubnetMin"), None);
        assert_eq!(raw_member(object, "SubnetMin"), Some(&Value::Null));
        assert_eq!(member(object, "Backend"), None);
    }
}

use overlay_common::tables::POLICY_RULES;

/// The first rule for policies that one violates.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is no list.
    #[error("Policy must be an array of rules, but is {0}")]
    NotAnArray(&'static str),

    /// It has too many rules.
    #[error("Policy has {0} rules, and {POLICY_RULES} are the most")]
    TooManyRules(usize),

    /// A rule is no object.
    #[error("Policy[{rule}] must be an object, but is {found}")]
    NotAnObject {
        /// Its place, from 0.
        rule: usize,
        /// What it is.
        found: &'static str,
    },

    /// A field of a rule that there is not: nothing that was meant to narrow a rule is passed over.
    #[error(
        "Policy[{rule}] has a field {field:?}: there are Name, From, To, Protocol, Port and Action"
    )]
    UnknownField {
        /// The rule's place, from 0.
        rule: usize,
        /// The field.
        field: String,
    },

    /// A field is missing, or holds something else than it must.
    #[error("Policy[{rule}].{field} must be {expected}, but is {found}")]
    Field {
        /// The rule's place, from 0.
        rule: usize,
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },

    /// `Port` without a protocol that has ports.
    #[error("Policy[{0}].Port needs a Protocol, \"tcp\" or \"udp\"")]
    PortOfNothing(usize),

    /// Two rules of one name.
    #[error("Policy[{0}].Name {1:?} is another rule's, too: denials are counted by names")]
    SameName(usize, String),
}

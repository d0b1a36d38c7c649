//! Who in the network may begin what with whom: the `Policy` of a network config is compiled to prefixes and sets of
//! rules, and the programs decide by these where packets arrive.

mod compile;
mod in_force;
pub mod reference;

pub use self::{
    compile::{Compiled, FieldPrefix},
    in_force::{Denials, InForce, PolicyTables},
};

//! Files that use each other in a circle cannot be understood one after the other, nor taken apart.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use overlay_lab::workspace;
use petgraph::{algo::tarjan_scc, graphmap::DiGraphMap};
use syn::{
    ItemMod, UseTree,
    visit::{self, Visit},
};

use super::sources::{self, Module};

/// Fails where files of one crate use each other in a circle, or its rooms (the modules of its root) do. A module and
/// those that it is made of are one.
pub(super) fn check() -> Result<()> {
    let mut found = Vec::new();
    for package in workspace::packages()? {
        let files = sources::of(&package)?;
        for depth in [usize::MAX, 1] {
            for circle in circles(&files, depth)? {
                found.push(format!("in {}: {}", package.name, circle.join(", ")));
            }
        }
    }
    if !found.is_empty() {
        bail!("these files use each other: {}", found.join("; "));
    }
    Ok(())
}

/// The circles among these files, each as the names of its modules; what is below `depth` is one with what is above.
fn circles(files: &BTreeMap<Module, String>, depth: usize) -> Result<Vec<Vec<String>>> {
    let node = |module: &Module| module[..module.len().min(depth)].join("::");
    let names: BTreeSet<_> = files.keys().map(node).collect();
    let names: Vec<_> = names.into_iter().collect();
    let mut graph = DiGraphMap::<usize, ()>::new();
    for (module, text) in files {
        let syntax = syn::parse_file(text)
            .with_context(|| format!("cannot read the syntax of {}", module.join("::")))?;
        let mut paths = Paths { inside: module.clone(), found: Vec::new() };
        paths.visit_file(&syntax);
        for path in paths.found {
            let used =
                (0..=path.len()).rev().find_map(|length| files.get_key_value(&path[..length]));
            // The root is made of all others, and uses what it likes.
            let Some((used, _)) = used.filter(|(used, _)| !used.is_empty()) else { continue };
            if module.starts_with(used) || module.is_empty() {
                continue;
            }
            if let (Ok(from), Ok(to)) =
                (names.binary_search(&node(module)), names.binary_search(&node(used)))
                && from != to
            {
                graph.add_edge(from, to, ());
            }
        }
    }
    let circles = tarjan_scc(&graph).into_iter().filter(|circle| circle.len() > 1);
    Ok(circles
        .map(|circle| circle.into_iter().map(|number| names[number].clone()).collect())
        .collect())
}

/// Every path of a file that names something of its own crate.
struct Paths {
    /// The module that is being read.
    inside: Module,
    found: Vec<Module>,
}

impl Paths {
    fn add(&mut self, path: &[String]) {
        let Some((first, rest)) = path.split_first() else { return };
        let base = match first.as_str() {
            "crate" => &[][..],
            "self" => &self.inside,
            "super" => {
                let above = path.iter().take_while(|word| *word == "super").count();
                let base = &self.inside[..self.inside.len().saturating_sub(above)];
                self.found.push([base, &path[above..]].concat());
                return;
            }
            _ => return,
        };
        self.found.push([base, rest].concat());
    }

    fn add_tree(&mut self, tree: &UseTree, before: &mut Module) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_tree(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => {
                before.push(name.ident.to_string());
                self.add(before);
                before.pop();
            }
            UseTree::Rename(name) => {
                before.push(name.ident.to_string());
                self.add(before);
                before.pop();
            }
            UseTree::Glob(_) => self.add(before),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(tree, before);
                }
            }
        }
    }
}

impl Visit<'_> for Paths {
    fn visit_item_mod(&mut self, item: &ItemMod) {
        if item.content.is_none() || item.attrs.iter().any(sources::is_cfg_test) {
            return;
        }
        self.inside.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.inside.pop();
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        if !item.attrs.iter().any(sources::is_cfg_test) {
            self.add_tree(&item.tree, &mut Vec::new());
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let words: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&words);
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = usize::MAX;

    fn found(files: &[(&str, &str)], depth: usize) -> Vec<Vec<String>> {
        let path = |name: &str| name.split("::").map(str::to_owned).collect::<Module>();
        let files = files.iter().map(|(name, text)| (path(name), (*text).to_owned())).collect();
        let mut found = circles(&files, depth).unwrap();
        for circle in &mut found {
            circle.sort();
        }
        found
    }

    #[test]
    fn a_circle_is_found_by_whatever_way_it_goes() {
        let direct = [("a", "use crate::b::B;"), ("b", "use super::a::{self as other};")];
        assert_eq!(found(&direct, ALL), [["a", "b"]]);
        let by_three = [
            ("a", "use crate::{b::B, c::C};"),
            ("b", "fn b(_: crate::c::C) {}"),
            ("c", "mod inner { use super::super::a::A; }"),
        ];
        assert_eq!(found(&by_three, ALL), [["a", "b", "c"]]);
        let by_a_part = [
            ("a", "use self::part::P;"),
            ("a::part", "use crate::b::B;"),
            ("b", "use crate::a::A;"),
        ];
        assert_eq!(found(&by_a_part, ALL), [["a", "a::part", "b"]]);
    }

    #[test]
    fn a_module_and_its_parts_are_one_and_tests_use_what_they_like() {
        let fine = [
            ("a", "pub use self::part::P; use crate::b::B;"),
            ("a::part", "use super::A;"),
            ("b", "#[cfg(test)] mod tests { use crate::a::A; } #[cfg(test)] use crate::a::A;"),
        ];
        assert_eq!(found(&fine, ALL), Vec::<Vec<String>>::new());
    }

    #[test]
    fn rooms_go_one_way() {
        let rooms = [
            ("lower", "pub mod a; pub mod b;"),
            ("lower::a", "use crate::upper::U;"),
            ("lower::b", ""),
            ("upper", "use crate::lower::b::B;"),
        ];
        assert_eq!(found(&rooms, ALL), Vec::<Vec<String>>::new());
        assert_eq!(found(&rooms, 1), [["lower", "upper"]]);
    }
}

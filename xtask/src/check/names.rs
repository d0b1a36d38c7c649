//! One name has one meaning over the whole workspace: whoever searches for it finds one thing.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use overlay_lab::workspace;
use syn::{Item, Visibility};

use super::sources;

/// Fails where two public types or traits have one name.
pub(super) fn check() -> Result<()> {
    let mut places = BTreeMap::<String, Vec<String>>::new();
    for package in workspace::packages()? {
        for (module, text) in sources::of(&package)? {
            let place = [&[package.name.clone()][..], &module].concat().join("::");
            let file = syn::parse_file(&text).with_context(|| format!("cannot read {place}"))?;
            add(&file.items, &place, &mut places);
        }
    }
    let twice: Vec<_> = places
        .iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name} in {}", places.join(" and ")))
        .collect();
    if !twice.is_empty() {
        bail!("of one name: {}", twice.join("; "));
    }
    Ok(())
}

/// Adds what is defined here to what there is of each name.
fn add(items: &[Item], place: &str, places: &mut BTreeMap<String, Vec<String>>) {
    for item in items {
        let (visibility, name) = match item {
            Item::Struct(item) => (&item.vis, &item.ident),
            Item::Enum(item) => (&item.vis, &item.ident),
            Item::Trait(item) => (&item.vis, &item.ident),
            Item::Type(item) => (&item.vis, &item.ident),
            Item::Mod(inner) if !inner.attrs.iter().any(sources::is_cfg_test) => {
                let items = inner.content.as_ref().map_or(&[][..], |(_, items)| items);
                add(items, &format!("{place}::{}", inner.ident), places);
                continue;
            }
            _ => continue,
        };
        if matches!(visibility, Visibility::Public(_)) {
            places.entry(name.to_string()).or_default().push(place.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
        let mut places = BTreeMap::new();
        for (place, text) in files {
            add(&syn::parse_file(text).unwrap().items, place, &mut places);
        }
        places.into_iter().filter(|(_, places)| places.len() > 1).collect()
    }

    #[test]
    fn a_name_of_two_meanings_is_found_in_whatever_crates() {
        let files = [
            ("a", "pub struct Prefix(u8); pub(crate) struct Own; fn Prefix() {}"),
            (
                "b::c",
                "pub mod inner { pub enum Prefix {} } struct Own; #[cfg(test)] mod tests { pub struct Prefix; }",
            ),
        ];
        let places = ["a", "b::c::inner"].map(str::to_owned).to_vec();
        assert_eq!(found(&files), [("Prefix".to_owned(), places)]);
    }
}

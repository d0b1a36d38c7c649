//! The manual's links lead somewhere, and its table of contents has every page.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Result, bail};
use overlay_lab::{
    pages::{self, Page},
    workspace,
};

/// The table of contents, by which mdBook makes a book of the pages.
const CONTENTS: &str = "docs/SUMMARY.md";

/// Fails where a link leads to a page, a heading or a file that is not there, or a page is missing from the contents.
pub(super) fn check() -> Result<()> {
    let pages = pages::manual()?;
    let targets = pages::matching(&["*.md"])?;
    let there = |path: &str| workspace::root().join(path).exists();
    let mut complaints: Vec<_> =
        pages.iter().flat_map(|page| broken(page, &targets, there)).collect();
    complaints.extend(left_out(&pages).map(|path| format!("{path} is not in {CONTENTS}")));
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(())
}

/// The links of a page that lead nowhere.
fn broken(page: &Page, targets: &[Page], there: impl Fn(&str) -> bool) -> Vec<String> {
    let folder = Path::new(&page.path).parent().unwrap_or(Path::new(""));
    let relative = page.links.iter().filter(|link| !link.contains("://"));
    let leads_nowhere = |link: &&String| {
        let (file, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
        let path = if file.is_empty() { page.path.clone() } else { joined(folder, file) };
        let target = targets.iter().find(|page| page.path == path);
        let has_anchor = anchor.is_empty()
            || target.is_some_and(|page| page.anchors.iter().any(|there| there == anchor));
        // A book has nothing but the pages of its folder.
        !(there(&path) && has_anchor && path.starts_with(&*folder.to_string_lossy()))
    };
    relative
        .filter(leads_nowhere)
        .map(|link| format!("{}: the link to {link} leads nowhere", page.path))
        .collect()
}

/// A path from the workspace's root on.
fn joined(folder: &Path, file: &str) -> String {
    let mut parts: Vec<_> = folder.iter().map(|part| part.to_string_lossy()).collect();
    for part in file.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part.into()),
        }
    }
    parts.join("/")
}

/// The pages of `docs` that the contents do not lead to.
fn left_out(pages: &[Page]) -> impl Iterator<Item = &str> {
    let contents = pages.iter().find(|page| page.path == CONTENTS);
    let listed: BTreeSet<_> = contents
        .into_iter()
        .flat_map(|page| &page.links)
        .map(|link| joined(Path::new("docs"), link))
        .collect();
    let paths = pages.iter().map(|page| page.path.as_str());
    paths.filter(move |path| {
        path.starts_with("docs/") && *path != CONTENTS && !listed.contains(*path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str, anchors: &[&str], links: &[&str]) -> Page {
        let owned = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        Page { path: path.to_owned(), anchors: owned(anchors), links: owned(links), blocks: vec![] }
    }

    #[test]
    fn a_link_leads_to_a_page_a_heading_or_a_file() {
        let pages = [
            page("docs/one.md", &["modes"], &[]),
            page(
                "docs/two.md",
                &["here"],
                &[
                    "one.md",
                    "one.md#modes",
                    "#here",
                    "peers.toml",
                    "https://example.org/none",
                    "three.md",
                    "one.md#ports",
                    "#there",
                    "../packaging/default",
                ],
            ),
            page("docs/SUMMARY.md", &[], &["one.md"]),
        ];
        let there = |path: &str| {
            ["docs/one.md", "docs/two.md", "docs/peers.toml", "packaging/default"].contains(&path)
        };
        let found = broken(&pages[1], &pages, there);
        let links: Vec<_> =
            found.iter().filter_map(|line| line.split_whitespace().nth(4)).collect();
        assert_eq!(links, ["three.md", "one.md#ports", "#there", "../packaging/default"]);
        assert_eq!(left_out(&pages).collect::<Vec<_>>(), ["docs/two.md"]);
    }

    #[test]
    fn the_manuals_links_lead_somewhere_and_its_contents_have_every_page() {
        check().unwrap();
    }
}

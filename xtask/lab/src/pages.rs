//! The manual as tests read it: what its pages tell their readers to type, and where their links lead.
//!
//! A block of commands says in the comment before it, which no reader of the page sees, how it is held true:
//!
//! ```text
//! <!-- run -->              typed on the machines of a story, in the page's order; what it shows is compared
//! <!-- run: soon -->        the same, again and again until it shows that
//! <!-- run: fails -->       the same, and each command ends with another code than 0 (`fails, soon`: both)
//! <!-- run elsewhere -->    every command is in a block that is run, on whatever page
//! <!-- run by TEST -->      that test runs them, in words of its own
//! <!-- not run: REASON -->  nobody does, for a reason; that bash and the programs' command lines take them is tried
//! ```
//!
//! A comment of several lines, the first of which is `run`, is a block of its own: what the story needs, and the
//! reader does not (`one# iptables -A INPUT -p udp --dport 8472 -j DROP`).

use std::fs;

use anyhow::{Context as _, Result, bail};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

use crate::{command::Cmd, workspace};

/// Languages of blocks that are typed.
const TYPED: [&str; 3] = ["bash", "console", "sh"];

/// A page of the manual.
#[derive(Debug, Clone)]
pub struct Page {
    /// Where it is, from the workspace's root on.
    pub path: String,
    /// What may follow a `#` in links to it.
    pub anchors: Vec<String>,
    /// Where its links lead, as they are written.
    pub links: Vec<String>,
    /// Its blocks, those that no reader sees included.
    pub blocks: Vec<Block>,
}

/// A fenced block, or a hidden one.
#[derive(Debug, Clone)]
pub struct Block {
    /// The line of its first fence, or of the comment.
    pub line: usize,
    /// The first word after the fence.
    pub language: String,
    /// How it is held true.
    pub role: Option<Role>,
    /// What is in it.
    pub text: String,
}

/// How a block of commands is held true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A story runs it.
    Run {
        /// Until it shows what the page shows.
        soon: bool,
        /// Each command ends with another code than 0.
        fails: bool,
    },
    /// Every command is run by another block.
    Elsewhere,
    /// This test runs it.
    By(String),
    /// Nobody runs it, because of this.
    Not(String),
}

/// A command, and what the page shows of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed {
    /// The host of the prompt; empty where any is meant.
    pub host: String,
    /// What is typed, without the comment at its end.
    pub command: String,
    /// What is shown, line by line.
    pub shown: Vec<String>,
}

impl Page {
    /// Reads a page.
    pub fn read(path: &str) -> Result<Self> {
        let file = workspace::root().join(path);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(path, &text).with_context(|| format!("in {path}"))
    }

    fn parse(path: &str, text: &str) -> Result<Self> {
        let mut page =
            Self { path: path.to_owned(), anchors: vec![], links: vec![], blocks: vec![] };
        let mut role = None;
        // Of the heading, comment or block that is being read.
        let mut said = String::new();
        for (event, at) in Parser::new(text).into_offset_iter() {
            let line = text[..at.start].matches('\n').count() + 1;
            match event {
                Event::Start(Tag::Heading { .. } | Tag::HtmlBlock) => said.clear(),
                Event::End(TagEnd::Heading(_)) => page.anchors.push(anchor(&said)),
                Event::End(TagEnd::HtmlBlock) => {
                    let hidden;
                    (role, hidden) = read_comment(&said)
                        .with_context(|| format!("the comment that ends before line {line}"))?;
                    if let Some(text) = hidden {
                        let (language, role) = ("console".to_owned(), role.take());
                        page.blocks.push(Block { line, language, role, text });
                    }
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let CodeBlockKind::Fenced(info) = kind else {
                        bail!("line {line} is indented as code is: it takes a fence");
                    };
                    said.clear();
                    let language = info.split([',', ' ']).next().unwrap_or_default().to_owned();
                    let role = role.take();
                    page.blocks.push(Block { line, language, role, text: String::new() });
                }
                Event::End(TagEnd::CodeBlock) => {
                    if let Some(block) = page.blocks.last_mut() {
                        block.text.clone_from(&said);
                    }
                }
                Event::Start(Tag::Link { dest_url, .. }) => page.links.push(dest_url.into_string()),
                Event::Start(_) => role = None,
                Event::Text(words) | Event::Code(words) | Event::Html(words) => {
                    said.push_str(&words);
                }
                _ => {}
            }
        }
        Ok(page)
    }
}

impl Block {
    /// Whether there are commands in it.
    pub fn is_typed(&self) -> bool {
        TYPED.contains(&self.language.as_str())
    }

    /// Whether a story runs it.
    pub fn is_run(&self) -> bool {
        matches!(self.role, Some(Role::Run { .. }))
    }

    /// Its commands, in order. Of `console`, what stands behind a prompt, and below it what it shows; else each line.
    pub fn typed(&self) -> Vec<Typed> {
        let mut all: Vec<Typed> = Vec::new();
        let mut goes_on = false;
        for line in self.text.lines() {
            let prompt = if self.language == "console" { prompt(line) } else { Some(("", line)) };
            match (prompt, all.last_mut()) {
                (_, Some(last)) if goes_on => last.command.push_str(line),
                (Some((host, command)), _) => {
                    all.push(Typed {
                        host: host.to_owned(),
                        command: command.trim().to_owned(),
                        shown: Vec::new(),
                    });
                }
                (None, Some(last)) => last.shown.push(line.to_owned()),
                (None, None) => {}
            }
            let Some(last) = all.last_mut() else { continue };
            goes_on = last.shown.is_empty() && last.command.ends_with('\\');
            if goes_on {
                last.command.truncate(last.command.len() - 1);
            } else if let Some((command, _)) = last.command.split_once(" # ") {
                last.command = command.trim_end().to_owned();
            }
        }
        all
    }
}

/// `two# ping …`: the host, and what is typed.
fn prompt(line: &str) -> Option<(&str, &str)> {
    let (host, command) = line.split_once(['#', '$'])?;
    let is_name = host.chars().all(|letter| letter.is_ascii_lowercase());
    (is_name && command.starts_with(' ')).then_some((host, command))
}

/// What a comment says of the block that follows, and the block that it is itself.
fn read_comment(html: &str) -> Result<(Option<Role>, Option<String>)> {
    let Some(comment) = html.trim().strip_prefix("<!--").and_then(|rest| rest.strip_suffix("-->"))
    else {
        return Ok((None, None));
    };
    let comment = comment.trim();
    let (first, rest) = comment.split_once('\n').unwrap_or((comment, ""));
    let (word, more) = first.split_once(": ").unwrap_or((first, ""));
    let role = match word.trim() {
        "run" => {
            let (mut soon, mut fails) = (false, false);
            for word in more.split(", ").filter(|word| !word.is_empty()) {
                match word.trim() {
                    "soon" => soon = true,
                    "fails" => fails = true,
                    other => bail!("`run: {other}` says nothing"),
                }
            }
            Role::Run { soon, fails }
        }
        "run elsewhere" => Role::Elsewhere,
        "not run" if !more.is_empty() => Role::Not(comment["not run: ".len()..].to_owned()),
        by if by.starts_with("run by ") => Role::By(by["run by ".len()..].to_owned()),
        _ => return Ok((None, None)),
    };
    let hidden = matches!(role, Role::Run { .. }).then(|| rest.trim().to_owned());
    Ok((Some(role), hidden.filter(|text| !text.is_empty())))
}

/// What GitHub and mdBook make of a heading.
fn anchor(heading: &str) -> String {
    heading
        .chars()
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ if letter.is_alphanumeric() => Some(letter.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

/// Every page of the manual, the README first.
pub fn manual() -> Result<Vec<Page>> {
    matching(&["README.md", "docs/*.md"])
}

/// Every page of the repository whose path is like one of these.
pub fn matching(patterns: &[&str]) -> Result<Vec<Page>> {
    let listed = Cmd::new("git").arg("ls-files").args(patterns);
    let listed = listed.directory(workspace::root()).read()?;
    listed.lines().map(Page::read).collect()
}

/// Behind these a command begins, as at the beginning of a line.
const STARTS: [&str; 6] = ["&&", "||", "|", ";", "--", "sudo"];

/// Behind these, another command begins, or a file's name stands.
const ENDS: [&str; 7] = ["|", "||", "&&", ";", ">", "<", "2>&1"];

/// The words of each call of `program` in a line of shell, its own name first.
pub fn invocations(program: &str, line: &str) -> Vec<Vec<String>> {
    let words = shlex::split(line).unwrap_or_default();
    let begins = |at: usize| at == 0 || STARTS.contains(&words[at - 1].as_str());
    let starts = (0..words.len()).filter(|at| words[*at] == program && begins(*at));
    let call = |at: usize| words[at..].iter().take_while(|word| !ENDS.contains(&word.as_str()));
    starts.map(|at| call(at).cloned().collect()).collect()
}

/// The line of `shown` from which on `answer` is another. There, a line `…` stands for any lines, `…` within a line for
/// anything, a number for any number, and an interface's address for any. Empty lines do not count.
pub fn difference<'page>(shown: &'page [String], answer: &str) -> Option<&'page str> {
    let answer: Vec<_> = answer.lines().map(shape).filter(|line| !line.is_empty()).collect();
    let shown: Vec<_> =
        shown.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    let mut furthest = 0;
    if shown.is_empty() || agree(&shown, 0, &answer, &mut furthest) {
        return None;
    }
    Some(shown.get(furthest).copied().unwrap_or("nothing more"))
}

/// Whether the lines from number `at` on are the answer. `furthest` counts those that were found before that went wrong.
fn agree(shown: &[&str], at: usize, answer: &[String], furthest: &mut usize) -> bool {
    *furthest = at.max(*furthest);
    match (shown.get(at), answer.split_first()) {
        (None, rest) => rest.is_none(),
        (Some(&"…"), _) => {
            (0..=answer.len()).any(|skipped| agree(shown, at + 1, &answer[skipped..], furthest))
        }
        (Some(line), Some((found, rest))) => {
            is_like(&shape(line), found) && agree(shown, at + 1, rest, furthest)
        }
        (Some(_), None) => false,
    }
}

/// Whether the parts of `wanted` between `…` are in `found`, one after the other, from its beginning to its end.
fn is_like(wanted: &str, found: &str) -> bool {
    let mut parts = wanted.split('…');
    let Some(mut rest) = parts.next().and_then(|first| found.strip_prefix(first.trim_end())) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        let part = part.trim();
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// A line without what another run has otherwise: numbers, interfaces' addresses, how wide its columns are.
fn shape(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let is_mac = |part: &str| part.len() == 17 && part.matches(':').count() == 5;
        let mut shape = String::new();
        for part in word.split_inclusive(['/', ',', '(', ')', '"', '=']) {
            if is_mac(part.trim_end_matches(['/', ',', '(', ')', '"', '='])) {
                shape.push_str("MAC");
                continue;
            }
            for letter in part.chars() {
                match letter {
                    '0'..='9' if shape.ends_with('0') => {}
                    '0'..='9' => shape.push('0'),
                    _ => shape.push(letter),
                }
            }
        }
        shape
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# How it *starts*: `init`, 1

Look at [that](other.md#what-to-do).

<!-- run: fails, soon -->

```console
one# overlay-agent status      # what is wrong
Something is wrong:
  …
$ sleep 1 && \\
    true
```

- In a list

  <!-- not run: it wipes
  the disk -->
  ```sh
  wipe
  ```

<!-- run
two# iptables -A INPUT -j DROP
-->

<!-- run -->
Words between them take the role away.

```console
# reboot
```
";

    #[test]
    fn a_page_says_what_is_typed_where_and_how_that_is_held_true() {
        let page = Page::parse("page.md", PAGE).unwrap();
        assert_eq!(page.anchors, ["how-it-starts-init-1"]);
        assert_eq!(page.links, ["other.md#what-to-do"]);
        let roles: Vec<_> = page.blocks.iter().map(|block| block.role.clone()).collect();
        let wiped = "it wipes\nthe disk".to_owned();
        let run = |soon, fails| Some(Role::Run { soon, fails });
        assert_eq!(roles, [run(true, true), Some(Role::Not(wiped)), run(false, false), None]);
        let typed: Vec<_> = page.blocks.iter().flat_map(Block::typed).collect();
        let commands: Vec<_> =
            typed.iter().map(|typed| (typed.host.as_str(), typed.command.as_str())).collect();
        let expected = [
            ("one", "overlay-agent status"),
            ("", "sleep 1 &&     true"),
            ("", "wipe"),
            ("two", "iptables -A INPUT -j DROP"),
            ("", "reboot"),
        ];
        assert_eq!(commands, expected);
        assert_eq!(typed[0].shown, ["Something is wrong:", "  …"]);
        assert!(Page::parse("page.md", "<!-- run: often -->\n").is_err());
    }

    #[test]
    fn a_programs_calls_are_found_wherever_they_begin() {
        let line =
            "run -- agent join 'a b' && systemctl restart agent; echo | agent set - > /dev/null";
        assert_eq!(
            invocations("agent", line),
            [vec!["agent", "join", "a b"], vec!["agent", "set", "-"]]
        );
    }

    #[test]
    fn what_is_shown_is_compared_but_for_numbers_and_what_is_left_out() {
        let answer = "Leases\n  10.1.78.0/24 at 02:00:0a:01:4e:00, 3 s\n\nNothing is wrong.\n";
        let differs = |shown: &str| {
            let shown: Vec<_> = shown.lines().map(str::to_owned).collect();
            difference(&shown, answer).map(str::to_owned)
        };
        for shown in [
            "",
            "Leases\n…\nNothing is wrong.",
            "…\n10.1.5.0/24   at 66:aa:66:aa:66:aa, 12 s\n…",
            "…\nNothing … wrong.",
            "Leases\n…\nNothing…\n…",
            "…\n… at …\n… is …",
        ] {
            assert_eq!(differs(shown), None, "{shown}");
        }
        for (shown, line) in [
            ("Leases", "nothing more"),
            ("Leases\nNothing is wrong.", "Nothing is wrong."),
            ("…\nNothing is wrong.\nLeases", "Leases"),
            ("…\nNothing is", "Nothing is"),
            ("…\nNothing … right.", "Nothing … right."),
            ("Leases\n10.1.5.0/24 via …\n…", "10.1.5.0/24 via …"),
        ] {
            assert_eq!(differs(shown).as_deref(), Some(line), "{shown}");
        }
    }
}

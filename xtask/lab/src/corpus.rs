//! What failed once, each in a file of its own: `overlay-agent/tests/corpus/<kind>/`. Its page there says what each kind is.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// A file that begins with comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The file's name, without what is behind the dot.
    pub name: String,
    /// The lines that begin with `#`, without that.
    pub comments: Vec<String>,
    /// What follows them, without the last line's end.
    pub body: String,
}

impl Case {
    /// What has to come of it, from the last comment: `ignored: it is no lease`.
    pub fn verdict(&self) -> Result<(&str, &str)> {
        self.comments
            .last()
            .and_then(|last| last.split_once(": "))
            .with_context(|| format!("{} does not say what has to come of it", self.name))
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let mut comments = Vec::new();
        let mut body = text;
        while let Some(rest) = body.strip_prefix('#') {
            let (comment, rest) =
                rest.split_once('\n').with_context(|| format!("{name} is nothing but comments"))?;
            comments.push(comment.trim().to_owned());
            body = rest;
        }
        ensure!(!comments.is_empty(), "{name} does not say what it is");
        let body = body.strip_suffix('\n').unwrap_or(body).to_owned();
        Ok(Self { name: name.to_owned(), comments, body })
    }
}

/// The files of a kind, in the order of their names. All of them: what is not read would look as if it passed.
pub fn files(kind: &str) -> Result<Vec<PathBuf>> {
    let folder = workspace::root().join("overlay-agent/tests/corpus").join(kind);
    let failed = || format!("cannot list {}", folder.display());
    let entries = fs::read_dir(&folder).with_context(failed)?;
    let mut files = entries
        .map(|entry| Ok(entry.with_context(failed)?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    ensure!(!files.is_empty(), "there is nothing in {}", folder.display());
    Ok(files)
}

/// The cases of a kind whose files begin with comments.
pub fn read(kind: &str) -> Result<Vec<Case>> {
    let read = |file: PathBuf| {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        Case::parse(&name, &text)
    };
    files(kind)?.into_iter().map(read).collect()
}

/// Where what comes of a case is not what its file says, a line for each. Of a case comes what its verdict would say of it.
pub fn differences(
    kind: &str,
    comes_of: impl Fn(&Case) -> (&'static str, String),
) -> Result<Vec<String>> {
    let mut different = Vec::new();
    for case in read(kind)? {
        let expected = case.verdict()?;
        let (what, text) = comes_of(&case);
        if expected != (what, text.as_str()) {
            let (expected, of) = expected;
            different.push(format!("{}: {what}: {text}, and not {expected}: {of}", case.name));
        }
    }
    Ok(different)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_come_first_and_the_last_one_is_the_verdict() {
        let case = Case::parse("a", "# about: it\n# refused: no: never\n\n# text\n").unwrap();
        assert_eq!(case.verdict().unwrap(), ("refused", "no: never"));
        assert_eq!((case.comments.len(), case.body.as_str()), (2, "\n# text"));
        for broken in ["", "text", "# only"] {
            Case::parse("a", broken).unwrap_err();
        }
        Case::parse("a", "# it\ntext").unwrap().verdict().unwrap_err();
    }
}

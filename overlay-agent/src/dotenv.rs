//! Files of shell assignments, such as `subnet.env`: `NAME=value`, quoted or not, with comments.

/// The assignments in `text`, in order. Lines that are none are skipped.
pub(crate) fn assignments(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=')?;
        let name = name.trim();
        is_name(name).then(|| (name, unquote(value.trim())))
    })
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && !text.is_empty()
}

/// The value without its quotes; without quotes, up to a comment.
fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.split_once(quote).map_or(rest, |(inner, _)| inner);
        }
    }
    value.split_once(" #").map_or(value, |(value, _)| value).trim_end()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_comments_and_export_are_understood() {
        let text = "# a comment\n\
                    A=1\n  B = \"two words\" # why\n\
                    export C='3#4'\r\n\
                    D=5 # five\nE=\nnot an assignment\n7=8\n=9\n";
        let found: Vec<_> = assignments(text).collect();
        assert_eq!(found, [("A", "1"), ("B", "two words"), ("C", "3#4"), ("D", "5"), ("E", "")]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*|[A-Z=\"'# \n]*") {
            for (name, _) in assignments(&text) {
                prop_assert!(is_name(name));
            }
        }
    }
}

//! What of a file with mistakes in it is not shown. A secret does not belong into it, and whoever types one there all
//! the same makes mistakes about it; errors go to the log, which others read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use super::diagnostic::Span;
use super::tree::{self, Entry, Node, Value, shorten};

/// What stands in the place of what is not shown.
const MASK: &str = "***";

/// Keys of secrets. Those of others are taken for a mistyped one of these if a letter is all that is wrong.
const KEYS: [&str; 6] =
    ["secret", "client_secret", "password", "sentinel_password", "bearer", "accepted_keys"];

/// Key of a secret below some sections, and of something else below others.
const KEY: &str = "key";
/// Those sections: `feedback.spread`, `feedback.crowdsec` and `identity.token`, also where the second is mistyped.
const SECTIONS_OF_KEY: [&str; 2] = ["feedback", "token"];

/// What is not shown of one file.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// The first column of a line from which on it is not shown.
    columns: HashMap<usize, usize>,
    /// What no message says between backticks.
    texts: Vec<String>,
}

impl Hidden {
    /// What stands where secrets are, other than the places that they are in, and users in URLs.
    pub(super) fn of(text: &str) -> Self {
        // As it is typed: what is read has lost what is wrong.
        match tree::read(text, &[], &mut Vec::new()) {
            Ok(tree) => {
                let mut hidden = Self::default();
                hidden.look(&tree, false, false);
                hidden
            }
            Err(problem) => Self::of_line(problem.span.line, text),
        }
    }

    /// The same of a line that is no YAML: everything behind the key of a secret, which may be in the line before, or
    /// further above, where it is indented less.
    fn of_line(number: usize, text: &str) -> Self {
        let mut hidden = Self::default();
        let lines: Vec<&str> = text.lines().take(number).collect();
        let Some((line, above)) = lines.split_last() else { return hidden };
        let before = above.last().copied().and_then(behind_key);
        let mut begin = 0;
        let user = line.split_inclusive(char::is_whitespace).find_map(|word| {
            let user = user_in(word).map(|user| begin + user.start);
            begin += word.len();
            user
        });
        let above = before.or_else(|| parents(line, above).find_map(behind_key)).map(|_| 0);
        if let Some(end) = behind_key(line).into_iter().chain(user).chain(above).min() {
            let column = line.get(..end).unwrap_or_default().chars().count() + 1;
            hidden.columns.insert(number, column);
        }
        hidden
    }

    /// Neither is what stands there.
    pub(super) fn hide(&mut self, span: Span) {
        let column = self.columns.entry(span.line).or_insert(span.column);
        *column = span.column.min(*column);
    }

    /// The line of this number as it may be shown.
    pub(super) fn line<'t>(&self, number: usize, line: &'t str) -> Cow<'t, str> {
        match self.columns.get(&number) {
            None => Cow::Borrowed(line),
            Some(column) => {
                let shown: String = line.chars().take(column.saturating_sub(1)).collect();
                Cow::Owned(shown + MASK)
            }
        }
    }

    /// A message as it may be shown.
    pub(super) fn message(&self, message: String) -> String {
        let texts = self.texts.iter().map(|text| format!("`{}`", shorten(text)));
        texts.fold(message, |message, text| message.replace(&text, &format!("`{MASK}`")))
    }

    /// `has_key`: whether it lies below a section where [`KEY`] is that of a secret.
    fn look(&mut self, node: &Node, is_secret: bool, has_key: bool) {
        match &node.value {
            Value::Scalar { text, .. } if is_secret && !node.is_null() => {
                self.texts.push(text.clone());
                self.hide(node.span);
            }
            Value::Scalar { text, .. } if user_in(text).is_some() => self.hide(node.span),
            Value::List(items) => {
                items.iter().for_each(|item| self.look(item, is_secret, has_key));
            }
            Value::Map(entries) => {
                for Entry { key, key_span, value } in entries {
                    if !is_secret {
                        let names = names_secret(key) || key == KEY && has_key;
                        if names && !has_places(value) {
                            // Whatever else stands there, as the name of an anchor.
                            let column = key_span.column + key_span.width + 1;
                            self.hide(Span { column, ..*key_span });
                        }
                        self.look(value, names, has_key || SECTIONS_OF_KEY.contains(&key.as_str()));
                    } else if !is_place(key, value) {
                        self.texts.push(key.clone());
                        self.hide(*key_span);
                        self.look(value, true, has_key);
                    }
                }
            }
            Value::Scalar { .. } | Value::Hole => {}
        }
    }
}

/// Where in a line something else than a place of a secret stands behind the key of one.
fn behind_key(line: &str) -> Option<usize> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(':').find_map(|(colon, _)| {
        let (key, rest) = line.split_at_checked(colon)?;
        let name = key.trim_end_matches(['"', '\'']).rsplit(|c: char| !is_name(c)).next()?;
        let rest = rest.trim_start_matches([':', ' ', '{', '[']);
        let is_place = rest.starts_with("file:") || rest.starts_with("env:");
        let names = names_secret(name) || name == KEY;
        (names && !is_place).then_some(colon + 1)
    })
}

/// The lines that a line belongs to by how far they are indented, from below.
fn parents<'t>(line: &str, above: &[&'t str]) -> impl Iterator<Item = &'t str> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_item = |line: &str| line.trim_start().starts_with("- ");
    let mut of = (indent(line), is_item(line));
    above.iter().rev().copied().filter(move |line| {
        if line.trim_start().is_empty() || line.trim_start().starts_with('#') {
            return false;
        }
        // Items may stand where the key of their list does.
        let is_parent = indent(line) < of.0 || indent(line) == of.0 && of.1 && !is_item(line);
        if is_parent {
            of = (indent(line), is_item(line));
        }
        is_parent
    })
}

/// Whether all that stands there are such places.
fn has_places(value: &Node) -> bool {
    match &value.value {
        Value::List(items) => items.iter().all(has_places),
        Value::Map(entries) => {
            !entries.is_empty() && entries.iter().all(|entry| is_place(&entry.key, &entry.value))
        }
        Value::Scalar { .. } | Value::Hole => value.is_null(),
    }
}

/// Whether a name of a place of secrets, and no secret, stands there.
fn is_place(key: &str, value: &Node) -> bool {
    let Value::Scalar { text, .. } = &value.value else { return false };
    key == "file" || key == "env" && is_variable(text)
}

/// Whether this may be the name of an environment variable.
pub(super) fn is_variable(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.len() <= 128 && name.bytes().all(good)
}

fn names_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    // Lengths first: they are compared in no time, and a file may have a million keys.
    let is_like = |known: &&str| {
        known.len().abs_diff(key.len()) <= 1 && strsim::osa_distance(&key, known) <= 1
    };
    key.contains("secret") || key.contains("password") || KEYS.iter().any(is_like)
}

/// Where in a text, which may be a URL, who somebody is stands before an `@`: a user with or without a password.
pub(super) fn user_in(text: &str) -> Option<Range<usize>> {
    let start = text.find("://").map(|scheme| scheme + 3);
    let (from, rest) = (start.unwrap_or(0), text.get(start.unwrap_or(0)..)?);
    let user = rest.get(..rest.rfind('@')?)?;
    let is_user = user.contains(':') || start.is_some() && !user.contains('/');
    let is_text = start.is_none() && user.contains(char::is_whitespace);
    (is_user && !is_text).then(|| from..from + user.len())
}

/// A text without that.
pub(super) fn without_user(text: &str) -> Cow<'_, str> {
    let parts =
        user_in(text).and_then(|user| Some((text.get(..user.start)?, text.get(user.end..)?)));
    parts.map_or(Cow::Borrowed(text), |(before, after)| [before, MASK, after].concat().into())
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    /// Whatever is wrong about a secret that was typed, and whatever else is wrong in its line.
    #[test]
    fn what_was_typed_where_secrets_are_is_not_shown() {
        let auth = |section: &str| format!("auth: {{a: {{{section}}}}}");
        let redis = |rest: &str| {
            format!(
                "state: {{redis: {{addresses: ['10.0.0.1:6379'], timeout: x, user: a, {rest}}}}}"
            )
        };
        let texts = [
            redis("password: hunter2"),
            redis("password: [hunter2]"),
            redis("password: {hunter2: 1}"),
            redis("password: {value: hunter2}"),
            redis("password: {env: 'hunter2!'}"),
            redis("password: {env: [hunter2]}"),
            redis("password: {env: '${hunter2}', file: a}"),
            redis("password: &hunter2 {}, database: x"),
            redis("pasword: hunter2"),
            redis("password: !hunter2"),
            redis("password: \"hunter2"),
            redis("\"password\": *hunter2"),
            redis("password:\n    value: hunter2"),
            "auth:\n  a:\n    jwt:\n      secret:\n        value: hunter2".to_owned(),
            "state: {redis: {addresses: ['redis://:hunter2@10.0.0.1:6379']}}".to_owned(),
            "state: {redis: {addresses: ['ann:hunter2@10.0.0.1:6379']}}".to_owned(),
            "state: {redis: 'redis://ann:hunter2@10.0.0.1:6379'}".to_owned(),
            "state: {redis: {addresses: redis://ann:hunter2@h, x: \"}}".to_owned(),
            auth("jwt: {secret: {value: hunter2}}"),
            auth("jwt: {jwks: 'https://ann:hunter2@idp.example.com/'}"),
            auth("jwt: {jwks: 'https://hunter2@idp.example.com/'}"),
            auth("introspection: {url: 'https://a/', client_secrt: hunter2}"),
            auth("hmac: {keys: [{id: x, secret: {hunter2}}]}"),
            "feedback: {spread: {key: {env: A}, accepted_keys: hunter2}}".to_owned(),
            "feedback: {spread: {key: {value: hunter2}}}".to_owned(),
            "kernel: {feeds: [{name: f, url: 'ftp://ann:hunter2@feeds.example.com/', every: 1h}]}"
                .to_owned(),
            "upstreams: {s: {endpoints: ['http://ann:hunter2@10.0.0.1:80']}}".to_owned(),
            "identity: {token: {key: hunter2}}".to_owned(),
            "identity: {token: {key: {value: hunter2}}}".to_owned(),
            "feedback: {spread: {key: !hunter2}}".to_owned(),
            "feedback: {crowdsec: {key: *hunter2}}".to_owned(),
            "feedback: {foo: {key: hunter2}}".to_owned(),
            "feedback:\n  spread:\n    accepted_keys:\n    - file: a\n    - value: hunter2: x"
                .to_owned(),
            "state:\n  redis:\n    password:\n      # a\n\n      value: hunter2: x".to_owned(),
        ];
        for text in &texts {
            let said = parse("x.yaml", &format!("listen: [{{address: 127.0.0.1:1}}]\n{text}\n"));
            let said = said.expect_err(text);
            let (shown, lines) = (said.to_string(), said.json_lines());
            assert!(!shown.contains("hunter2") && !lines.contains("hunter2"), "{text}\n{shown}");
        }
    }

    #[test]
    fn what_is_no_secret_is_shown() {
        for (text, shown) in [
            ("trusted_proxies: [ann@example.com]", "`ann@example.com`"),
            (
                "auth: {a: {jwt: {secret: {env: GATEWAY_A}, leeway: x}}}",
                "{env: GATEWAY_A}, leeway: x",
            ),
            ("auth: {a: {basic: {htpasswd: a, header: x}}}", "header: x"),
            ("auth: {a: {api_key: {key: {hedaer: X-Key}}}}", "unknown key `hedaer`"),
            ("identity: {key: X Key}", "`X Key` is no name of a header field"),
            ("listen: [{tls: {certificates: [{cert: a, key: b, x: 1}]}}]", "key: b, x: 1"),
        ] {
            let said = parse("x.yaml", text).expect_err(text).to_string();
            assert!(said.contains(shown), "{said}");
        }
    }
}

//! The words of an expression and where they stand.

use super::Mistake;
use crate::config::tree::shorten;

/// A word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    Text(String),
    Integer(i64),
    Decimal(f64),
    /// One of `SYMBOLS`.
    Symbol(&'static str),
    End,
}

/// A word and where it stands, in characters.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) token: Token,
    pub(super) from: usize,
    pub(super) width: usize,
}

/// The longer ones first.
const SYMBOLS: [&str; 12] = ["==", "!=", "<=", ">=", "<", ">", "(", ")", "[", "]", ",", "."];

/// What other languages write, and what is written here.
const FOREIGN: [(&str, &str); 6] =
    [("&&", "and"), ("||", "or"), ("&", "and"), ("|", "or"), ("!", "not"), ("=", "==")];

/// The words of a text, the last of them its end.
pub(super) fn tokens(text: &str) -> Result<Vec<Placed>, Mistake> {
    let mut tokens = Vec::new();
    let (mut rest, mut from) = (text, 0);
    loop {
        let blank = rest.chars().take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r')).count();
        rest = rest.get(blank..).unwrap_or_default();
        from += blank;
        let Some(first) = rest.chars().next() else {
            tokens.push(Placed { token: Token::End, from, width: 1 });
            return Ok(tokens);
        };
        let (token, bytes) = token(rest, first).map_err(|(message, help)| {
            let width = 1;
            Mistake { from, width, message, help }
        })?;
        let (word, after) = rest.split_at_checked(bytes).unwrap_or((rest, ""));
        let width = word.chars().count();
        tokens.push(Placed { token, from, width });
        from += width;
        rest = after;
    }
}

/// The first word of a text and its length in bytes.
fn token(rest: &str, first: char) -> Result<(Token, usize), (String, String)> {
    if first == '"' || first == '\'' {
        return quoted(rest, first);
    }
    if first.is_ascii_digit() || first == '-' {
        return number(rest);
    }
    if first.is_ascii_alphabetic() || first == '_' {
        let bytes = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        let bytes = bytes.count();
        return Ok((Token::Name(rest.get(..bytes).unwrap_or_default().to_owned()), bytes));
    }
    if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
        return Ok((Token::Symbol(symbol), symbol.len()));
    }
    match FOREIGN.iter().find(|(theirs, _)| rest.starts_with(*theirs)) {
        Some((theirs, ours)) => {
            Err((format!("`{theirs}` means nothing here"), format!("write `{ours}`")))
        }
        None => Err((
            format!("`{}` means nothing here", shorten(first.encode_utf8(&mut [0; 4]))),
            "write names, texts in quotes, numbers, `and`, `or`, `not`, `in` and comparisons"
                .to_owned(),
        )),
    }
}

/// A text between quotes, in which a backslash stands before a quote or a backslash.
fn quoted(rest: &str, quote: char) -> Result<(Token, usize), (String, String)> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((index, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\'' | '\\'))) => text.push(escaped),
                _ => {
                    let help = "a backslash stands before a quote or a backslash: write two";
                    return Err(("the text has a single backslash".to_owned(), help.to_owned()));
                }
            },
            c if c == quote => return Ok((Token::Text(text), index + 1)),
            c => text.push(c),
        }
    }
    Err(("the text has no end".to_owned(), format!("write the closing quote: {quote}")))
}

fn number(rest: &str) -> Result<(Token, usize), (String, String)> {
    let sign = usize::from(rest.starts_with('-'));
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'.';
    let bytes = sign + rest.bytes().skip(sign).take_while(digit).count();
    let text = rest.get(..bytes).unwrap_or_default();
    let digits = text.get(sign..).unwrap_or_default();
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let good =
        |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let token = match digits.contains('.') {
        _ if !good(whole) || !good(fraction) => None,
        false => text.parse().ok().map(Token::Integer),
        true => text.parse().ok().filter(|number: &f64| number.is_finite()).map(Token::Decimal),
    };
    token.map(|token| (token, bytes)).ok_or_else(|| {
        let help = "write digits, such as 5, -3 or 0.5; text stands in quotes".to_owned();
        (format!("`{text}` is no number"), help)
    })
}

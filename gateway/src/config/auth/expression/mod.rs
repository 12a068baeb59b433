//! The expression of `require`: a condition on caller and request in one line. The language is total: every expression
//! that is accepted here has a truth value for every request, found in time bounded by its own length. Refused is
//! whatever could never be true as it is written, with the column and what to write instead.

mod lexer;
mod parser;
mod subject;

use http::HeaderName;
use ipnet::IpNet;

use crate::config::PathPattern;
use crate::config::at::At;

/// Characters of an expression.
const CHARS_MAX: usize = 4096;

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Always so.
    Literal(bool),
    /// What is not so.
    Not(Box<Self>),
    /// All of these.
    And(Vec<Self>),
    /// One of these.
    Or(Vec<Self>),
    /// Whether something is there.
    Has(Subject),
    /// A claim that is `true`.
    IsTrue(Subject),
    /// Two values beside each other.
    Compare(Operand, Comparison, Operand),
    /// Whether a value is in a list; `false`: whether it is not.
    In(Operand, List, bool),
    /// Whether the client's address is in one of these prefixes; `false`: whether it is in none.
    ClientIn(Vec<IpNet>, bool),
}

/// How two values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

/// One side of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// `"text"`
    Text(String),
    /// `5`
    Integer(i64),
    /// `0.5`
    Decimal(Decimal),
    /// `true`
    Bool(bool),
    /// What the caller or the request says.
    Subject(Subject),
}

/// A number with digits behind the point. Never NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decimal(pub f64);

impl Eq for Decimal {}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List {
    /// `["a", "b"]`
    Literals(Vec<Operand>),
    /// What the caller says.
    Subject(Subject),
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `authenticator`
    Authenticator,
    /// `consumer`
    Consumer,
    /// `user`
    User,
    /// `key`
    Key,
    /// `tenant`
    Tenant,
    /// `plan`
    Plan,
    /// `roles`
    Roles,
    /// `scopes`
    Scopes,
    /// `groups`
    Groups,
    /// `claims.org.id`
    Claim(Vec<String>),
    /// `method`
    Method,
    /// `path`
    Path,
    /// `path.id`: the segment of this number.
    Segment(usize),
    /// `path.rest`: everything behind so many segments.
    Rest(usize),
    /// `headers["X-Name"]`
    Header(HeaderName),
}

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Characters before it.
    pub(super) from: usize,
    /// Characters of it.
    pub(super) width: usize,
    pub(super) message: String,
    pub(super) help: String,
}

/// Reads an expression of a route with this pattern.
pub(super) fn expression(text: &str, path: &PathPattern, at: At<'_>) -> Option<Expression> {
    match parse(text, path) {
        Ok(expression) => Some(expression),
        Err(mistake) => {
            let Mistake { from, width, message, help } = mistake;
            match at.within(from, width) {
                Some(at) => at.error_with_help(message, help),
                None => {
                    let message = format!("{message}, at character {} of the expression", from + 1);
                    at.error_with_help(message, help);
                }
            }
            None
        }
    }
}

/// Reads an expression whose captures are those of `path`.
fn parse(text: &str, path: &PathPattern) -> Result<Expression, Mistake> {
    let chars = text.chars().count();
    if chars > CHARS_MAX {
        return Err(Mistake {
            from: CHARS_MAX,
            width: 1,
            message: format!("an expression of {chars} characters is longer than {CHARS_MAX}"),
            help: "write several alternatives of `require`".to_owned(),
        });
    }
    parser::parse(&lexer::tokens(text)?, path)
}

/// The same for the fuzz target, which has no file around it.
pub fn read_expression(text: &str, path: &PathPattern) -> Option<Expression> {
    parse(text, path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Segment;
    use proptest::prelude::*;

    fn pattern() -> PathPattern {
        PathPattern {
            segments: vec![Segment::Literal("a".to_owned()), Segment::Capture("id".to_owned())],
            rest: Some("rest".to_owned()),
        }
    }

    fn parsed(text: &str) -> Result<Expression, Mistake> {
        parse(text, &pattern())
    }

    #[test]
    fn and_binds_closer_than_or_and_not_closer_than_both() {
        let [a, b, c] = ["a", "b", "c"].map(|name| {
            let left = Operand::Subject(Subject::Claim(vec![name.to_owned()]));
            Expression::Compare(left, Comparison::Equal, Operand::Integer(1))
        });
        assert_eq!(
            parsed("claims.a == 1 or claims.b == 1 and not claims.c == 1"),
            Ok(Expression::Or(vec![
                a.clone(),
                Expression::And(vec![b.clone(), Expression::Not(Box::new(c.clone()))]),
            ]))
        );
        assert_eq!(
            parsed("(claims.a == 1 or claims.b == 1) and claims.c == 1"),
            Ok(Expression::And(vec![Expression::Or(vec![a, b]), c]))
        );
    }

    #[test]
    fn everything_that_is_known_can_be_asked_for() {
        for text in [
            "consumer.plan == \"gold\" or (method == \"GET\" and \"read\" in scopes)",
            "plan == 'gold'",
            "user != 'root' and tenant == 'eu' and key == 'k' and authenticator == 'staff'",
            "\"admin\" in roles or \"ops\" in groups",
            "claims.org.id == 7 and claims[\"https://example.com/level\"] >= 2.5",
            "claims.admin",
            "claims.admin == true",
            "not claims.blocked and has(claims.sub)",
            "path.id == user and path.rest == \"x\" and path == \"/a/b/x\"",
            "client in \"10.0.0.0/8\"",
            "client not in [\"10.0.0.0/8\", \"2001:db8::/32\"]",
            "has(headers[\"X-Debug\"]) and headers['x-debug'] == \"1\"",
            "method in [\"GET\", \"HEAD\"]",
            "claims.level in [1, 2, -3]",
            "claims.dept in groups",
            "user in claims.members",
            "true",
        ] {
            assert!(parsed(text).is_ok(), "{text}: {:?}", parsed(text));
        }
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        for (text, from, part) in [
            ("", 0, "ends"),
            ("plan ==", 7, "ends"),
            ("plan = \"a\"", 5, "`==`"),
            ("plan == \"a\" && user == \"b\"", 12, "`and`"),
            ("plan == \"a\" || user == \"b\"", 12, "`or`"),
            ("!has(user)", 0, "`not`"),
            ("plan == \"a", 8, "quote"),
            ("paln == \"a\"", 0, "did you mean `plan`"),
            ("plan.x == \"a\"", 5, "`plan` has nothing below it"),
            ("consumer.paln == \"a\"", 9, "plan"),
            ("path.nope == \"a\"", 5, "captures"),
            ("plan", 0, "text"),
            ("roles == \"a\"", 0, "list"),
            ("\"a\" in plan", 7, "no list"),
            ("roles in scopes", 0, "list"),
            ("\"a\" == \"a\"", 0, "two"),
            ("plan == 3", 8, "text"),
            ("plan < \"z\"", 5, "number"),
            ("\"a\" < claims.b", 4, "number"),
            ("client == \"10.0.0.1\"", 7, "in"),
            ("client in \"10.0.0.1/8\"", 10, "10.0.0.0/8"),
            ("client in groups", 10, "prefix"),
            ("headers.X == \"a\"", 0, "headers[\"X-Name\"]"),
            ("headers[\"a b\"] == \"a\"", 8, "no name of a header"),
            ("claims == \"a\"", 0, "claims.NAME"),
            ("has(\"a\")", 4, "has"),
            ("(true", 5, "`)`"),
            ("true)", 4, "`)`"),
            ("true true", 5, "and"),
            ("plan == 99999999999999999999", 8, "number"),
            ("plan == \u{e4}", 8, "`\u{e4}`"),
            ("claims.a in []", 12, "empty"),
            ("a\u{2028} == 1", 1, "means nothing"),
            ("1 in [1]", 0, "literal"),
        ] {
            let mistake = parsed(text).unwrap_err();
            assert_eq!(mistake.from, from, "{text}: {mistake:?}");
            let said = format!("{} {}", mistake.message, mistake.help);
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn the_column_is_that_of_the_file() {
        let column = |when: &str| {
            let text = format!(
                "listen: [{{address: 127.0.0.1:80}}]\n\
                 auth: {{a: {{mtls: {{clients: [{{dns: h, consumer: c}}]}}}}}}\n\
                 upstreams: {{u: {{endpoints: [echo]}}}}\n\
                 routes:\n- match: {{path: /}}\n  auth: a\n\
                 \x20 upstream: u\n  require:\n    when: {when}\n"
            );
            let errors = crate::config::parse("c.yaml", &text).unwrap_err();
            assert_eq!(errors.count(), 1, "{errors}");
            let error = errors.iter().next().unwrap().clone();
            let place = error.place.unwrap();
            (place.line, place.column, place.width, error.message)
        };
        let message = "`paln` is nothing that is known here".to_owned();
        assert_eq!(column("user == 'a' and paln == 'b'"), (9, 27, 4, message.clone()));
        assert_eq!(column("\"user == 'a' and paln == 'b'\""), (9, 28, 4, message.clone()));
        assert_eq!(column("'paln == \"b\"'"), (9, 12, 4, message.clone()));
        // Where the file has it in another form, the whole of it is shown.
        let (line, start, _, said) = column("\"paln == \\\"b\\\"\"");
        assert_eq!((line, start), (9, 11));
        assert_eq!(said, format!("{message}, at character 1 of the expression"));
        let (line, _, _, said) = column(">-\n      user == 'a' and\n      paln == 'b'");
        assert!(line >= 9 && said.ends_with("at character 17 of the expression"), "{said}");
    }

    #[test]
    fn depth_and_length_have_bounds() {
        let nested = |depth| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
        assert!(parsed(&nested(20)).is_ok());
        assert!(parsed(&nested(1000)).unwrap_err().message.contains("deep"));
        assert!(
            parsed(&format!("{}true", "not ".repeat(1000))).unwrap_err().message.contains("deep")
        );
        let long = vec!["claims.a"; 500].join(" or ");
        assert!(parsed(&long).unwrap_err().message.contains("longer"));
        let wide = vec!["claims.a"; 300].join(" or ");
        assert!(parsed(&wide).is_ok(), "width is no depth");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_within_itself(text in "\\PC{0,60}") {
            if let Err(mistake) = parsed(&text) {
                prop_assert!(mistake.from <= text.chars().count());
            }
        }

        #[test]
        fn any_words_are_read_or_refused(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "and", "or", "not", "in", "has", "(", ")", "[", "]", ",", ".", "==", "<",
                    "claims", "roles", "plan", "client", "path", "id", "\"a\"", "1", "true",
                ]),
                0..30,
            ),
        ) {
            let text = words.join(" ");
            if let Err(mistake) = parsed(&text) {
                prop_assert!(mistake.from <= text.chars().count());
            }
        }
    }
}

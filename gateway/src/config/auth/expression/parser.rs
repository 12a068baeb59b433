//! Words into a condition: `or` of `and` of `not` of comparisons, with what every word may stand beside.

use ipnet::IpNet;

use super::lexer::{Placed, Token};
use super::{Comparison, Decimal, Expression, List, Mistake, Operand, Subject};
use crate::base::prefix;
use crate::config::PathPattern;

/// Parentheses and `not` around each other. Whoever asks for the truth goes as deep, so it bounds the stack, too.
pub(super) const DEPTH_MAX: usize = 32;
/// Values of one list.
const LIST_MAX: usize = 256;

pub(super) fn parse(tokens: &[Placed], path: &PathPattern) -> Result<Expression, Mistake> {
    let mut parser = Parser { tokens, next: 0, path, depth: 0 };
    let expression = parser.any()?;
    match parser.peek() {
        Token::End => Ok(expression),
        Token::Symbol(")") => Err(parser.mistake("this `)` closes nothing", "remove it")),
        _ => Err(parser.mistake("a condition ends before this", "write `and` or `or` between two")),
    }
}

/// Where in the words it is.
pub(super) struct Parser<'a> {
    pub(super) tokens: &'a [Placed],
    pub(super) next: usize,
    pub(super) path: &'a PathPattern,
    depth: usize,
}

/// One side of a comparison and where it stands.
struct Side {
    value: Value,
    first: usize,
}

enum Value {
    Operand(Operand),
    List(Vec<Operand>),
    Client,
    /// A condition of its own.
    Condition(Expression),
}

impl Parser<'_> {
    fn any(&mut self) -> Result<Expression, Mistake> {
        self.several("or", Self::all, Expression::Or)
    }

    fn all(&mut self) -> Result<Expression, Mistake> {
        self.several("and", Self::negated, Expression::And)
    }

    fn several(
        &mut self,
        word: &str,
        one: fn(&mut Self) -> Result<Expression, Mistake>,
        join: fn(Vec<Expression>) -> Expression,
    ) -> Result<Expression, Mistake> {
        let first = one(self)?;
        let mut all = vec![first];
        while self.takes_name(word) {
            all.push(one(self)?);
        }
        Ok(if all.len() > 1 { join(all) } else { all.remove(0) })
    }

    fn negated(&mut self) -> Result<Expression, Mistake> {
        if !self.takes_name("not") {
            return self.comparison();
        }
        let inner = self.deeper(Self::negated)?;
        Ok(Expression::Not(Box::new(inner)))
    }

    fn deeper(
        &mut self,
        inner: fn(&mut Self) -> Result<Expression, Mistake>,
    ) -> Result<Expression, Mistake> {
        if self.depth == DEPTH_MAX {
            let message = format!("this is more than {DEPTH_MAX} levels deep");
            return Err(self.mistake(message, "write it flatter, or as several alternatives"));
        }
        self.depth += 1;
        let inner = inner(self)?;
        self.depth -= 1;
        Ok(inner)
    }

    fn comparison(&mut self) -> Result<Expression, Mistake> {
        let left = self.side()?;
        let operator = self.next;
        let comparison = match self.peek() {
            Token::Symbol("==") => Comparison::Equal,
            Token::Symbol("!=") => Comparison::NotEqual,
            Token::Symbol("<") => Comparison::Less,
            Token::Symbol("<=") => Comparison::LessOrEqual,
            Token::Symbol(">") => Comparison::Greater,
            Token::Symbol(">=") => Comparison::GreaterOrEqual,
            Token::Name(name) if name == "in" => {
                self.next += 1;
                return self.membership(left, true);
            }
            Token::Name(name) if name == "not" => {
                self.next += 1;
                if !self.takes_name("in") {
                    return Err(self.mistake("`not` stands before a condition", "write `not in`"));
                }
                return self.membership(left, false);
            }
            _ => return self.alone(left),
        };
        self.next += 1;
        let right = self.side()?;
        self.compared(left, (comparison, operator), right)
    }

    fn compared(
        &self,
        left: Side,
        (comparison, operator): (Comparison, usize),
        right: Side,
    ) -> Result<Expression, Mistake> {
        let (one, other) = (left.first, right.first);
        if matches!(left.value, Value::Client) || matches!(right.value, Value::Client) {
            let help = "write client in \"192.0.2.0/24\"";
            return Err(self.mistake_at(operator, "an address is compared by `in`", help));
        }
        let (left, right) = (self.single(left)?, self.single(right)?);
        if !matches!(left, Operand::Subject(_)) && !matches!(right, Operand::Subject(_)) {
            let help = "compare with what the caller or the request says";
            return Err(self.mistake_at(one, "two literals are compared here", help));
        }
        let equality = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        if !equality && (is_text(&left) || is_text(&right)) {
            return Err(self.mistake_at(
                operator,
                "only numbers have an order",
                "compare text by == and !=",
            ));
        }
        for (this, that, place) in [(&left, &right, other), (&right, &left, one)] {
            let never = match that {
                Operand::Subject(_) | Operand::Text(_) => false,
                Operand::Integer(_) | Operand::Decimal(_) | Operand::Bool(_) => is_text(this),
            };
            let orders = !equality && matches!(that, Operand::Bool(_));
            if never || orders {
                let help = "write text in quotes; only claims can be numbers, true or false";
                return Err(self.mistake_at(place, "text is never equal to this", help));
            }
        }
        Ok(Expression::Compare(left, comparison, right))
    }

    /// What stands behind `in`.
    fn membership(&mut self, left: Side, within: bool) -> Result<Expression, Mistake> {
        let (one, other) = (left.first, self.next);
        let right = self.side()?;
        if matches!(left.value, Value::Client) {
            let prefixes = match right.value {
                Value::Operand(text @ Operand::Text(_)) => vec![text],
                Value::List(list) => list,
                _ => Vec::new(),
            };
            return self.prefixes(&prefixes, other).map(|nets| Expression::ClientIn(nets, within));
        }
        let left = self.single(left)?;
        let list = match right.value {
            Value::List(_) if !matches!(left, Operand::Subject(_)) => {
                let help = "compare with what the caller or the request says";
                return Err(self.mistake_at(
                    one,
                    "a literal is in a list of literals or it is not",
                    help,
                ));
            }
            Value::List(list) => List::Literals(list),
            Value::Operand(Operand::Subject(subject)) if is_list(&subject) => {
                List::Subject(subject)
            }
            Value::Operand(Operand::Subject(subject @ Subject::Claim(_))) => List::Subject(subject),
            _ => {
                let help = "write roles, scopes, groups, a claim, or a list such as [\"a\", \"b\"]";
                return Err(self.mistake_at(other, "this is no list", help));
            }
        };
        Ok(Expression::In(left, list, within))
    }

    fn prefixes(&self, texts: &[Operand], first: usize) -> Result<Vec<IpNet>, Mistake> {
        let help = "write one such as client in \"192.0.2.0/24\", or a list of them";
        let nets = texts.iter().map(|text| match text {
            Operand::Text(text) => {
                prefix::parse(text).map_err(|error| self.mistake_at(first, error.to_string(), help))
            }
            _ => Err(self.mistake_at(first, "this is no prefix", help)),
        });
        let nets = nets.collect::<Result<Vec<IpNet>, Mistake>>()?;
        if nets.is_empty() {
            return Err(self.mistake_at(first, "this is no prefix", help));
        }
        Ok(nets)
    }

    /// What is no comparison: a condition in parentheses, `true`, or a claim that is true.
    fn alone(&self, side: Side) -> Result<Expression, Mistake> {
        match side.value {
            Value::Condition(condition) => Ok(condition),
            Value::Operand(Operand::Bool(truth)) => Ok(Expression::Literal(truth)),
            Value::Operand(Operand::Subject(claim @ Subject::Claim(_))) => {
                Ok(Expression::IsTrue(claim))
            }
            Value::Operand(Operand::Subject(list)) if is_list(&list) => {
                let help = "write what is in it, such as \"admin\" in roles";
                Err(self.mistake_at(side.first, "this is a list and no condition", help))
            }
            Value::Operand(Operand::Integer(_) | Operand::Decimal(_)) => {
                let help = "compare it with a claim, such as claims.level >= 2";
                Err(self.mistake_at(side.first, "this is a number and no condition", help))
            }
            Value::Operand(_) => {
                let help = "compare it, such as plan == \"gold\", or write has(plan)";
                Err(self.mistake_at(side.first, "this is text and no condition", help))
            }
            Value::List(_) | Value::Client => {
                let help = "write client in \"192.0.2.0/24\" or method in [\"GET\", \"HEAD\"]";
                Err(self.mistake_at(side.first, "this is no condition", help))
            }
        }
    }

    /// A single value.
    fn single(&self, side: Side) -> Result<Operand, Mistake> {
        match side.value {
            Value::Operand(Operand::Subject(list)) if is_list(&list) => {
                let help = "write what is in it, such as \"admin\" in roles";
                Err(self.mistake_at(side.first, "this is a list, which has no equal", help))
            }
            Value::Operand(operand) => Ok(operand),
            Value::List(_) => {
                let help = "a list stands behind `in`";
                Err(self.mistake_at(side.first, "this is a list, which has no equal", help))
            }
            Value::Client => {
                let help = "write client in \"192.0.2.0/24\"";
                Err(self.mistake_at(side.first, "an address stands before `in`", help))
            }
            Value::Condition(_) => {
                let help = "join conditions by `and` and `or`";
                Err(self.mistake_at(side.first, "a condition is compared with nothing", help))
            }
        }
    }

    fn side(&mut self) -> Result<Side, Mistake> {
        let first = self.next;
        let value = match self.take() {
            Token::Text(text) => Value::Operand(Operand::Text(text)),
            Token::Integer(number) => Value::Operand(Operand::Integer(number)),
            Token::Decimal(number) => Value::Operand(Operand::Decimal(Decimal(number))),
            Token::Symbol("(") => {
                let inner = self.deeper(Self::any)?;
                self.expect(")")?;
                Value::Condition(inner)
            }
            Token::Symbol("[") => Value::List(self.list(first)?),
            Token::Name(name) => match name.as_str() {
                "true" => Value::Operand(Operand::Bool(true)),
                "false" => Value::Operand(Operand::Bool(false)),
                "client" => Value::Client,
                "has" => Value::Condition(self.has()?),
                _ => Value::Operand(Operand::Subject(self.subject(&name, first)?)),
            },
            Token::End => {
                return Err(self.mistake_at(
                    first,
                    "the expression ends too early",
                    "write what is missing",
                ));
            }
            Token::Symbol(symbol) => {
                let message = format!("`{symbol}` has nothing before it");
                return Err(self.mistake_at(
                    first,
                    message,
                    "write a name, a text in quotes or a number",
                ));
            }
        };
        Ok(Side { value, first })
    }

    fn list(&mut self, first: usize) -> Result<Vec<Operand>, Mistake> {
        let mut list = Vec::new();
        loop {
            let place = self.next;
            list.push(match self.take() {
                Token::Text(text) => Operand::Text(text),
                Token::Integer(number) => Operand::Integer(number),
                Token::Decimal(number) => Operand::Decimal(Decimal(number)),
                Token::Name(name) if name == "true" || name == "false" => {
                    Operand::Bool(name == "true")
                }
                Token::Symbol("]") if list.is_empty() => {
                    return Err(self.mistake_at(
                        first,
                        "nothing is in an empty list",
                        "write a value",
                    ));
                }
                _ => {
                    let help = "write texts in quotes, numbers, true or false";
                    return Err(self.mistake_at(place, "this has no place in a list", help));
                }
            });
            if list.len() > LIST_MAX {
                let message = format!("the list has more than {LIST_MAX} values");
                return Err(self.mistake_at(
                    first,
                    message,
                    "give callers a role or a group instead",
                ));
            }
            if *self.peek() != Token::Symbol(",") {
                break;
            }
            self.next += 1;
        }
        self.expect("]")?;
        Ok(list)
    }

    fn has(&mut self) -> Result<Expression, Mistake> {
        self.expect("(")?;
        let first = self.next;
        let subject = match self.take() {
            Token::Name(name) => self.subject(&name, first)?,
            _ => {
                let help = "write has(claims.sub) or has(headers[\"X-Name\"])";
                return Err(self.mistake_at(first, "`has` asks for something by its name", help));
            }
        };
        self.expect(")")?;
        Ok(Expression::Has(subject))
    }

    pub(super) fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |placed| &placed.token)
    }

    pub(super) fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn takes_name(&mut self, word: &str) -> bool {
        let takes = matches!(self.peek(), Token::Name(name) if name == word);
        self.next += usize::from(takes);
        takes
    }

    pub(super) fn expect(&mut self, symbol: &'static str) -> Result<(), Mistake> {
        if *self.peek() == Token::Symbol(symbol) {
            self.next += 1;
            return Ok(());
        }
        Err(self.mistake(format!("`{symbol}` is missing here"), "write it"))
    }

    fn mistake(&self, message: impl Into<String>, help: impl Into<String>) -> Mistake {
        self.mistake_at(self.next, message, help)
    }

    /// A mistake at the word of this number.
    pub(super) fn mistake_at(
        &self,
        place: usize,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Mistake {
        let placed = self.tokens.get(place).or(self.tokens.last());
        let (from, width) = placed.map_or((0, 1), |placed| (placed.from, placed.width));
        Mistake { from, width, message: message.into(), help: help.into() }
    }
}

fn is_list(subject: &Subject) -> bool {
    matches!(subject, Subject::Roles | Subject::Scopes | Subject::Groups)
}

/// Whether a side is text whatever the request. A claim may be anything.
fn is_text(operand: &Operand) -> bool {
    match operand {
        Operand::Text(_) => true,
        Operand::Subject(subject) => !is_list(subject) && !matches!(subject, Subject::Claim(_)),
        Operand::Integer(_) | Operand::Decimal(_) | Operand::Bool(_) => false,
    }
}

//! What services are told about callers. Whatever a client sent under these names is removed first, in every spelling,
//! before and after the body; what is told is made once for a caller that is remembered, and cloned into requests.
//!
//! A value is the text as it is, but bytes that a field cannot carry, `%`, and in lists `,` become `%XX`: whoever
//! decodes percent-encoding gets back what was meant, and nothing ends a field.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::Identity;
use super::identity_token::IdentityToken;
use crate::base::time::Now;
use crate::config::{self, Attribute};
use crate::http::headers::Names;

/// Bytes of one value; what is longer is not told at all.
pub(super) const VALUE_MAX_BYTES: usize = 8 * 1024;

/// What services are told, compiled.
#[derive(Debug)]
pub struct Forward {
    /// Which configuration this is, so that nothing made by another is used.
    id: u64,
    told: config::Told,
    token: Option<IdentityToken>,
    removed: Names,
}

/// What was made for one caller.
#[derive(Default)]
pub struct Made(ArcSwapOption<Fields>);

struct Fields {
    by: u64,
    /// When, where a token is among them.
    at: Option<Now>,
    fields: Vec<(HeaderName, HeaderValue)>,
}

impl Forward {
    /// Compiles what the configuration says. The error names the setting.
    pub(super) fn new(told: &config::Told) -> Result<Self, String> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        let token = told.token.as_ref().map(IdentityToken::new).transpose()?;
        Ok(Self { id, told: told.clone(), token, removed: Names::new(&told.removed) })
    }

    /// The names that never come from clients.
    pub fn removed(&self) -> &Names {
        &self.removed
    }

    /// The keys that services verify tokens by, if they are published at `path`.
    pub fn jwks(&self, path: &str) -> Option<&Bytes> {
        self.token.as_ref()?.jwks(path)
    }

    /// Tells a service who calls, and nothing that the client said about it.
    pub fn tell(
        &self,
        identity: Option<&Arc<Identity>>,
        headers: &mut HeaderMap,
        now: impl FnOnce() -> Now,
    ) {
        self.removed.remove_from(headers);
        let Some(identity) = identity else { return };
        let token = self.token.as_ref().map(|token| (token, now()));
        let is_fresh = |made: &Fields| match (token, made.at) {
            (Some((token, now)), Some(at)) => token.is_fresh(at, now),
            (token, _) => token.is_none(),
        };
        let made = identity.made.0.load();
        match made.as_ref().filter(|made| made.by == self.id && is_fresh(made)) {
            Some(made) => write(&made.fields, headers),
            None => {
                let mut fields = self.fields(identity);
                fields.extend(token.and_then(|(token, now)| token.field(identity, now.utc)));
                write(&fields, headers);
                let at = token.map(|(_, now)| now);
                identity.made.0.store(Some(Arc::new(Fields { by: self.id, at, fields })));
            }
        }
    }

    fn fields(&self, identity: &Identity) -> Vec<(HeaderName, HeaderValue)> {
        let field = |(name, attribute): &(HeaderName, Attribute)| {
            let text = text(attribute, identity).filter(|text| text.len() <= VALUE_MAX_BYTES)?;
            Some((unshared(name)?, HeaderValue::from_str(&text).ok()?))
        };
        self.told.fields.iter().filter_map(field).collect()
    }
}

/// A name of its own: workers do not count the holders of one name together.
pub(super) fn unshared(name: &HeaderName) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_str().as_bytes()).ok()
}

fn write(fields: &[(HeaderName, HeaderValue)], headers: &mut HeaderMap) {
    for (name, value) in fields {
        headers.insert(name.clone(), value.clone());
    }
}

/// What is said; `None`: nothing is known.
fn text(attribute: &Attribute, identity: &Identity) -> Option<String> {
    let one = |text: &Option<Box<str>>| text.as_deref().map(|text| encoded(text, false));
    match attribute {
        Attribute::User => one(&identity.user),
        Attribute::Consumer => one(&identity.consumer),
        Attribute::Tenant => one(&identity.tenant),
        Attribute::Plan => one(&identity.plan),
        Attribute::Key => one(&identity.key),
        Attribute::Authenticator => Some(encoded(&identity.authenticator, false)),
        Attribute::Roles => list(&identity.roles),
        Attribute::Scopes => list(&identity.scopes),
        Attribute::Groups => list(&identity.groups),
        Attribute::Claim(path) => claim(path.find(&identity.claims)?),
    }
}

fn list(texts: &[Box<str>]) -> Option<String> {
    let texts: Vec<String> = texts.iter().map(|text| encoded(text, true)).collect();
    (!texts.is_empty()).then(|| texts.join(","))
}

fn claim(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(encoded(text, false)),
        Value::Array(items) if items.iter().all(|item| !item.is_array() && !item.is_object()) => {
            let text = |item: &Value| match item {
                Value::String(text) => encoded(text, true),
                other => other.to_string(),
            };
            Some(items.iter().map(text).collect::<Vec<_>>().join(","))
        }
        other => Some(encoded(&other.to_string(), false)),
    }
}

/// `text` as a field can carry it.
fn encoded(text: &str, in_list: bool) -> String {
    use fmt::Write as _;
    let last = text.len().saturating_sub(1);
    let mut encoded = String::with_capacity(text.len());
    for (index, byte) in text.bytes().enumerate() {
        let is_plain = match byte {
            b'%' => false,
            b',' => !in_list,
            // Around a value it is not part of it.
            b' ' => index != 0 && index != last,
            byte => byte.is_ascii_graphic(),
        };
        match is_plain {
            true => encoded.push(char::from(byte)),
            // Writing to a string cannot fail.
            false => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

impl Clone for Made {
    /// A caller that is changed is another one.
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What was made of a caller is no part of it.
impl PartialEq for Made {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Made {}

impl fmt::Debug for Made {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Made")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClaimPath;
    use proptest::prelude::*;
    use serde_json::json;

    fn forward(fields: &[(&'static str, Attribute)]) -> Forward {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, attribute)| (HeaderName::from_static(name), attribute.clone()))
            .collect();
        let removed = fields.iter().map(|(name, _)| name.clone()).collect();
        Forward::new(&config::Told { fields, token: None, removed }).unwrap()
    }

    /// Without a token nobody asks what time it is.
    fn never() -> Now {
        panic!("the time was asked for")
    }

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn what_a_client_says_is_removed_in_every_spelling_also_where_nobody_is_known() {
        let forward = forward(&[("x-user-id", Attribute::User), ("x-roles", Attribute::Roles)]);
        let forged =
            [("X-User-Id", "1"), ("x_user_id", "2"), ("X-User_ID", "3"), ("X-USER-ID", "4")];
        let mut asked = headers(&forged);
        asked.extend(headers(&[("X-Roles", "admin"), ("X-User-Idx", "stays")]));
        let mut known = asked.clone();
        forward.tell(None, &mut asked, never);
        assert_eq!(asked, headers(&[("x-user-idx", "stays")]));
        let caller = Identity { user: Some("eve".into()), ..Identity::default() };
        for _ in 0..2 {
            forward.tell(Some(&Arc::new(caller.clone())), &mut known, never);
            assert_eq!(known, headers(&[("x-user-id", "eve"), ("x-user-idx", "stays")]));
        }
    }

    #[test]
    fn what_was_made_by_another_configuration_is_not_used() {
        let caller = Arc::new(Identity { user: Some("eve".into()), ..Identity::default() });
        let mut told = HeaderMap::new();
        forward(&[("x-old", Attribute::User)]).tell(Some(&caller), &mut told, never);
        let mut told = HeaderMap::new();
        let new = forward(&[("x-new", Attribute::User)]);
        for _ in 0..2 {
            new.tell(Some(&caller), &mut told, never);
            assert_eq!(told, headers(&[("x-new", "eve")]));
        }
    }

    #[test]
    fn every_kind_of_fact_has_one_form() {
        let claims = json!({
            "name": "Zoë, 100 %", "n": 1.5, "yes": true, "list": ["a,b", 2, null],
            "deep": {"er": {"x": [1]}}, "none": null,
        });
        let Value::Object(claims) = claims else { panic!("no object") };
        let caller = Identity {
            roles: vec!["a".into(), "b c".into(), "d,e".into()],
            claims,
            ..Identity::default()
        };
        let claim = |path: &str| Attribute::Claim(ClaimPath::parse(path).unwrap());
        for (attribute, expected) in [
            (Attribute::Roles, Some("a,b c,d%2Ce")),
            (Attribute::Groups, None),
            (Attribute::User, None),
            (claim("name"), Some("Zo%C3%AB, 100 %25")),
            (claim("n"), Some("1.5")),
            (claim("yes"), Some("true")),
            (claim("list"), Some("a%2Cb,2,null")),
            (claim("deep.er"), Some("{\"x\":[1]}")),
            (claim("none"), None),
            (claim("absent"), None),
        ] {
            assert_eq!(text(&attribute, &caller).as_deref(), expected, "{attribute:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_not_told() {
        let forward = forward(&[("x-user-id", Attribute::User)]);
        for (length, told) in [(VALUE_MAX_BYTES, 1), (VALUE_MAX_BYTES + 1, 0)] {
            let user = Some("x".repeat(length).into());
            let mut headers = headers(&[("X-User-Id", "admin")]);
            let caller = Arc::new(Identity { user, ..Identity::default() });
            forward.tell(Some(&caller), &mut headers, never);
            assert_eq!(headers.len(), told);
        }
    }

    proptest! {
        #[test]
        fn whatever_a_caller_is_called_its_field_is_one_and_says_it(text in any::<String>()) {
            let value = encoded(&text, true);
            prop_assert!(HeaderValue::from_str(&value).is_ok());
            prop_assert!(!value.contains(',') && value.trim() == value);
            let mut bytes = Vec::new();
            let mut rest = value.bytes();
            while let Some(byte) = rest.next() {
                bytes.push(match byte {
                    b'%' => {
                        let digits = [rest.next().unwrap(), rest.next().unwrap()];
                        u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
                    }
                    byte => byte,
                });
            }
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), text);
        }
    }
}

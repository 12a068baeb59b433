//! HTTP Message Signatures (RFC 9421) of requests: which signature of a request counts, what it covers, and the base
//! that it is over. The algorithm is never taken from the message, and what cannot be rebuilt exactly is refused.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HOST;
use http::{HeaderMap, HeaderName};
use sfv::{BareItem, InnerList, Item, ItemSerializer, ListEntry, ListSerializer, Parameters};

use super::Message;
use super::digest::CONTENT_DIGEST;
use super::fields::{combined, dictionary};
use super::query::parameter;

const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// Components that one signature covers.
const COMPONENTS_MAX: usize = 64;

/// One signature of a request, as it is described there.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) key: String,
    /// In seconds since the epoch.
    pub(super) created: Option<u64>,
    pub(super) expires: Option<u64>,
    pub(super) nonce: Option<String>,
    /// What the message says the algorithm is, which must be that of the key.
    pub(super) algorithm: Option<String>,
    pub(super) signature: Vec<u8>,
    list: InnerList,
}

impl Signed {
    /// The one signature whose key is `known`; `None` if the request is not signed in this way.
    pub(super) fn of(
        headers: &HeaderMap,
        known: impl Fn(&str) -> bool,
    ) -> Result<Option<Self>, &'static str> {
        if !headers.contains_key(SIGNATURE_INPUT) && !headers.contains_key(SIGNATURE) {
            return Ok(None);
        }
        let read = |name: &HeaderName| dictionary(&combined(headers, name)?);
        let inputs = read(&SIGNATURE_INPUT).ok_or("Signature-Input is missing or unreadable")?;
        let signatures = read(&SIGNATURE).ok_or("Signature is missing or unreadable")?;
        let mut found = None;
        for (label, entry) in inputs {
            let ListEntry::InnerList(list) = entry else {
                return Err("Signature-Input is missing or unreadable");
            };
            let key = list.params.get("keyid").and_then(BareItem::as_string);
            if !key.is_some_and(|key| known(key.as_str())) {
                continue;
            }
            if found.is_some() {
                return Err("the request has more than one signature of a known key");
            }
            let signature = signatures.get(&label).and_then(|entry| match entry {
                ListEntry::Item(item) => item.bare_item.as_byte_sequence(),
                ListEntry::InnerList(_) => None,
            });
            let signature = signature.ok_or("the signature is missing or no byte sequence")?;
            found = Some(Self::described(list, signature.to_vec())?);
        }
        found.map(Some).ok_or("the request has no signature of a known key")
    }

    fn described(list: InnerList, signature: Vec<u8>) -> Result<Self, &'static str> {
        let text = |name| match list.params.get(name) {
            None => Ok(None),
            Some(BareItem::String(text)) => Ok(Some(text.as_str().to_owned())),
            Some(_) => Err("a parameter of the signature has another type than it should"),
        };
        let seconds = |name| match list.params.get(name) {
            None => Ok(None),
            Some(BareItem::Integer(number)) => u64::try_from(i64::from(*number))
                .map(Some)
                .map_err(|_| "a time of the signature is before the epoch"),
            Some(_) => Err("a parameter of the signature has another type than it should"),
        };
        Ok(Self {
            key: text("keyid")?.unwrap_or_default(),
            created: seconds("created")?,
            expires: seconds("expires")?,
            nonce: text("nonce")?,
            algorithm: text("alg")?,
            signature,
            list,
        })
    }

    /// Whether a component without parameters is covered.
    pub(super) fn covers(&self, name: &str) -> bool {
        self.list.items.iter().any(|item| {
            item.params.is_empty()
                && item.bare_item.as_string().is_some_and(|text| text.as_str() == name)
        })
    }

    /// Says what is missing unless the signature covers the method, the host, the path and the query, and what
    /// `besides` names.
    pub(super) fn covers_enough(&self, besides: &[String]) -> Result<(), &'static str> {
        let whole = self.covers("@target-uri");
        let target = whole
            || self.covers("@request-target")
            || self.covers("@path") && self.covers("@query");
        if !self.covers("@method") {
            Err("the signature does not cover @method")
        } else if !whole && !self.covers("@authority") {
            Err("the signature covers neither @authority nor @target-uri")
        } else if !target {
            Err("the signature covers neither @target-uri nor @request-target nor @path and @query")
        } else if !besides.iter().all(|name| self.covers(name)) {
            Err("the signature does not cover everything that is required here")
        } else {
            Ok(())
        }
    }

    /// Whether the body is covered, by its digest.
    pub(super) fn covers_body(&self) -> bool {
        self.covers(CONTENT_DIGEST.as_str())
    }

    /// The signature base (section 2.5).
    pub(super) fn base(&self, message: &Message<'_>) -> Result<String, &'static str> {
        if self.list.items.len() > COMPONENTS_MAX {
            return Err("the signature covers more than 64 components");
        }
        let mut base = String::new();
        let mut seen: Vec<String> = Vec::new();
        for item in &self.list.items {
            let name = item.bare_item.as_string().ok_or("the name of a component is no string")?;
            let value = component(message, name.as_str(), item)?;
            let identifier = identifier(item);
            if seen.contains(&identifier) {
                return Err("the signature covers a component twice");
            }
            // Writing to a string does not fail.
            let _written = writeln!(base, "{identifier}: {value}");
            seen.push(identifier);
        }
        base.push_str("\"@signature-params\": ");
        let params = serialised(&ListEntry::InnerList(self.list.clone()));
        base.push_str(&params.ok_or("the parameters of the signature are not readable")?);
        Ok(base)
    }
}

fn identifier(item: &Item) -> String {
    ItemSerializer::new().bare_item(&item.bare_item).parameters(&item.params).finish()
}

fn serialised(entry: &ListEntry) -> Option<String> {
    let mut serializer = ListSerializer::new();
    serializer.members([entry]);
    serializer.finish()
}

/// The value of a component (section 2).
fn component(message: &Message<'_>, name: &str, item: &Item) -> Result<String, &'static str> {
    if !name.starts_with('@') {
        return field(message.headers, name, &item.params);
    }
    if name == "@query-param" {
        let wanted = match (item.params.len(), item.params.get("name")) {
            (1, Some(BareItem::String(name))) => name.as_str(),
            _ => return Err("@query-param has one parameter, its name"),
        };
        return parameter(message.query(), wanted)
            .ok_or("a parameter of the query that is covered is not there exactly once");
    }
    if !item.params.is_empty() {
        return Err("a component has a parameter that it does not take in a request");
    }
    let Message { method, target, scheme, .. } = message;
    let no_host = "the request has no host that can be covered";
    Ok(match name {
        "@method" => method.as_str().to_owned(),
        "@authority" => message.authority().ok_or(no_host)?,
        "@scheme" => (*scheme).to_owned(),
        "@target-uri" => format!("{scheme}://{}{target}", message.authority().ok_or(no_host)?),
        "@request-target" => (*target).to_owned(),
        "@path" => message.path().to_owned(),
        "@query" => format!("?{}", message.query()),
        _ => return Err("the signature covers a component that requests do not have"),
    })
}

/// The value of a field: as it is (section 2.1), one member of a dictionary, or its lines as bytes.
fn field(headers: &HeaderMap, name: &str, params: &Parameters) -> Result<String, &'static str> {
    let missing = "a field that is covered is missing or not readable";
    let name = HeaderName::from_lowercase(name.as_bytes()).map_err(|_| "a name is no field's")?;
    let mut params = params.iter();
    match (params.next(), params.next()) {
        (None, _) => combined(headers, &name).ok_or(missing),
        (Some((param, BareItem::String(key))), None) if param.as_str() == "key" => {
            let members = combined(headers, &name).and_then(|text| dictionary(&text));
            let members = members.ok_or(missing)?;
            members.get(key.as_str()).and_then(serialised).ok_or(missing)
        }
        (Some((param, BareItem::Boolean(true))), None) if param.as_str() == "bs" => {
            let lines = headers.get_all(&name).iter();
            let lines =
                lines.map(|line| format!(":{}:", STANDARD.encode(line.as_bytes().trim_ascii())));
            let lines: Vec<String> = lines.collect();
            if lines.is_empty() { Err(missing) } else { Ok(lines.join(", ")) }
        }
        _ => Err("a component has a parameter that is not accepted here"),
    }
}

impl Message<'_> {
    /// The host in lower case, without the port that the scheme has anyway (section 2.2.3).
    fn authority(&self) -> Option<String> {
        let host = self.headers.get(HOST)?.to_str().ok()?.to_ascii_lowercase();
        let port = if self.scheme == "https" { ":443" } else { ":80" };
        let host = host.strip_suffix(port).unwrap_or(&host);
        (!host.is_empty()).then(|| host.to_owned())
    }

    fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Verifier;
    use super::super::vectors::{self, PUBLISHED, Published};
    use super::*;
    use http::{HeaderValue, Method};
    use proptest::prelude::*;

    const ALL: [(&str, &str); 5] = [
        ("host", "example.com"),
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("content-type", "application/json"),
        (
            "content-digest",
            "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
        ),
        ("content-length", "18"),
    ];

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn signed(input: &str, signature: &str) -> Result<Option<Signed>, &'static str> {
        let fields = headers(&[("signature-input", input), ("signature", signature)]);
        Signed::of(&fields, |key| key.starts_with("test-"))
    }

    fn base_of(input: &str, fields: &[(&'static str, &str)]) -> Result<String, &'static str> {
        let signed = signed(input, "s=:AAAA:").unwrap().unwrap();
        let headers = headers(fields);
        let target = "/foo?param=Value&Pet=dog";
        let (method, headers) = (&Method::POST, &headers);
        signed.base(&Message { method, target, headers, scheme: "https" })
    }

    fn verifier(key: &str) -> Verifier {
        let key = match key {
            "test-key-ed25519" => Verifier::public(vectors::ED25519.as_bytes()),
            "test-key-ecc-p256" => Verifier::public(vectors::P256.as_bytes()),
            "test-key-rsa-pss" => Verifier::public(vectors::RSA.as_bytes()),
            _ => Verifier::shared(&STANDARD.decode(vectors::SHARED).unwrap()),
        };
        key.unwrap()
    }

    #[test]
    fn the_published_signatures_verify() {
        for Published { name, host, target, method, fields, input, signature, base } in PUBLISHED {
            let mut all = vec![("host", *host)];
            all.extend(*fields);
            let mut headers = headers(&all);
            headers.insert("signature-input", HeaderValue::from_str(input).unwrap());
            headers.insert("signature", HeaderValue::from_str(signature).unwrap());
            let signed = Signed::of(&headers, |_| true).unwrap().unwrap();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let message = Message { method: &method, target, headers: &headers, scheme: "https" };
            let rebuilt = signed.base(&message).unwrap();
            assert_eq!(rebuilt, *base, "{name}");
            let key = verifier(&signed.key);
            assert!(key.verifies(rebuilt.as_bytes(), &signed.signature), "{name}");
            let truncated = &signed.signature[..signed.signature.len() - 1];
            assert!(!key.verifies(rebuilt.as_bytes(), truncated), "{name} truncated");
            assert!(!key.verifies(rebuilt.as_bytes(), b""), "{name} empty");
            assert!(!key.verifies(format!("{rebuilt} ").as_bytes(), &signed.signature), "{name}");
        }
    }

    #[test]
    fn the_published_signature_of_an_answer_verifies() {
        let signature = STANDARD.decode(vectors::ANSWER_SIGNATURE).unwrap();
        assert!(
            verifier("test-key-ecc-p256").verifies(vectors::ANSWER_BASE.as_bytes(), &signature)
        );
    }

    #[test]
    fn a_key_of_another_algorithm_verifies_nothing() {
        let names = ["test-key-ed25519", "test-key-ecc-p256", "test-key-rsa-pss", "test-shared"];
        for published in PUBLISHED {
            let signed = signed(published.input, published.signature).unwrap().unwrap();
            let right = names.iter().filter(|name| {
                verifier(name).verifies(published.base.as_bytes(), &signed.signature)
            });
            assert_eq!(right.count(), 1, "{}", published.name);
        }
        // The public key of RSA as a shared secret: the oldest of confusions.
        let confused = Verifier::shared(vectors::RSA.as_bytes()).unwrap();
        let published = &PUBLISHED[0];
        let signed = signed(published.input, published.signature).unwrap().unwrap();
        assert!(!confused.verifies(published.base.as_bytes(), &signed.signature));
    }

    #[test]
    fn a_transformation_that_changes_what_is_covered_is_noticed() {
        // RFC 9421, appendix B.4.
        let input = "transform=(\"@method\" \"@path\" \"@authority\" \"accept\");created=1618884473\
                     ;keyid=\"test-key-ed25519\"";
        let signature = "transform=:ZT1kooQsEHpZ0I1IjCqtQppOmIqlJPeo7DHR3SoMn0s5JZ1eRGS0A+\
            vyYP9t/LXlh5QMFFQ6cpLt2m0pmj3NDA==:";
        let holds = |method: Method, host: &str, target: &str, accept: &[&str]| {
            let mut fields =
                vec![("host", host), ("signature-input", input), ("signature", signature)];
            fields.extend(accept.iter().map(|value| ("accept", *value)));
            let headers = headers(&fields);
            let signed = Signed::of(&headers, |_| true).unwrap().unwrap();
            let message = Message { method: &method, target, headers: &headers, scheme: "https" };
            let base = signed.base(&message).unwrap();
            verifier("test-key-ed25519").verifies(base.as_bytes(), &signed.signature)
        };
        let get = Method::GET;
        let two = ["application/json", "*/*"];
        assert!(holds(get.clone(), "example.org", "/demo?name1=Value1&Name2=value2", &two));
        assert!(holds(get.clone(), "EXAMPLE.org:443", "/demo?param=added", &two));
        assert!(holds(get.clone(), "example.org", "/demo", &["application/json, */*"]));
        assert!(!holds(Method::POST, "example.org", "/demo", &two));
        assert!(!holds(get.clone(), "example.com", "/demo", &two));
        assert!(!holds(get.clone(), "example.org", "/Demo", &two));
        assert!(!holds(get.clone(), "example.org", "/%64emo", &two));
        assert!(!holds(get, "example.org", "/demo", &["*/*", "application/json"]));
    }

    #[test]
    fn derived_components_are_those_of_the_rfc() {
        let base = base_of(
            "s=(\"@target-uri\" \"@scheme\" \"@request-target\" \"@query\" \"@query-param\";name=\"Pet\" \
             \"content-digest\";key=\"sha-512\" \"content-type\";bs);keyid=\"test-a\"",
            &ALL,
        );
        let lines: Vec<String> = base.unwrap().lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "\"@target-uri\": https://example.com/foo?param=Value&Pet=dog");
        assert_eq!(lines[1], "\"@scheme\": https");
        assert_eq!(lines[2], "\"@request-target\": /foo?param=Value&Pet=dog");
        assert_eq!(lines[3], "\"@query\": ?param=Value&Pet=dog");
        assert_eq!(lines[4], "\"@query-param\";name=\"Pet\": dog");
        assert!(lines[5].starts_with("\"content-digest\";key=\"sha-512\": :WZDP"));
        assert_eq!(lines[6], "\"content-type\";bs: :YXBwbGljYXRpb24vanNvbg==:");
    }

    #[test]
    fn what_cannot_be_rebuilt_exactly_is_refused() {
        for components in [
            "\"date\" \"date\"",
            "\"@method\" \"@method\"",
            "\"@status\"",
            "\"@signature-params\"",
            "\"@unknown\"",
            "\"@method\";req",
            "\"@query-param\"",
            "\"@query-param\";name=\"absent\"",
            "\"Date\"",
            "\"x-absent\"",
            "\"date\";sf",
            "\"date\";tr",
            "\"date\";req",
            "\"date\";bs=?0",
            "\"date\";key=\"a\"",
            "\"date\";bs;key=\"a\"",
            "\"da te\"",
            "\"\"",
            "date",
            "1",
        ] {
            let input = format!("s=({components});keyid=\"test-a\"");
            assert!(base_of(&input, &ALL).is_err(), "{components}");
        }
        let many: Vec<String> = (0..=64).map(|_| "\"date\"".to_owned()).collect();
        assert!(base_of(&format!("s=({});keyid=\"test-a\"", many.join(" ")), &ALL).is_err());
    }

    #[test]
    fn one_signature_counts_and_its_label_is_there_once() {
        let one = "s=();keyid=\"test-a\"";
        assert!(signed(one, "s=:AAAA:").unwrap().is_some());
        for (input, signature) in [
            ("s=();keyid=\"test-a\", s=();keyid=\"test-a\"", "s=:AAAA:"),
            (one, "s=:AAAA:, s=:BBBB:"),
            ("s=();keyid=\"test-a\", t=();keyid=\"test-b\"", "s=:AAAA:, t=:AAAA:"),
            (one, "t=:AAAA:"),
            (one, "s=AAAA"),
            (one, "s=(:AAAA:)"),
            (one, ""),
            ("s=();keyid=\"other\"", "s=:AAAA:"),
            ("s=()", "s=:AAAA:"),
            ("s=1;keyid=\"test-a\"", "s=:AAAA:"),
            ("s=();keyid=\"test-a\";created=\"1\"", "s=:AAAA:"),
            ("s=();keyid=\"test-a\";created=-1", "s=:AAAA:"),
            ("s=();keyid=\"test-a\";created=1.5", "s=:AAAA:"),
            ("s=();keyid=\"test-a\";nonce=1", "s=:AAAA:"),
            ("s=();keyid=\"test-a\";alg=hmac-sha256", "s=:AAAA:"),
            ("s=();keyid=test-a", "s=:AAAA:"),
            ("(", "s=:AAAA:"),
        ] {
            assert!(signed(input, signature).is_err(), "{input} {signature}");
        }
        let two = signed("o=();keyid=\"other\", s=();keyid=\"test-a\"", "o=:AA==:, s=:AAAA:");
        assert_eq!(two.unwrap().unwrap().key, "test-a", "another's signature does not matter");
        assert!(Signed::of(&headers(&[("signature", "s=:AAAA:")]), |_| true).is_err());
        assert!(Signed::of(&headers(&[("signature-input", one)]), |_| true).is_err());
        assert!(Signed::of(&HeaderMap::new(), |_| true).unwrap().is_none());
    }

    #[test]
    fn the_least_that_is_covered_is_method_host_path_and_query() {
        let enough = |components: &str| {
            let signed = signed(&format!("s=({components});keyid=\"test-a\""), "s=:AAAA:");
            signed.unwrap().unwrap().covers_enough(&[]).is_ok()
        };
        assert!(enough("\"@method\" \"@target-uri\""));
        assert!(enough("\"@method\" \"@authority\" \"@request-target\""));
        assert!(enough("\"@method\" \"@authority\" \"@path\" \"@query\""));
        for little in [
            "",
            "\"@target-uri\"",
            "\"@method\" \"@request-target\"",
            "\"@method\" \"@authority\" \"@path\"",
            "\"@method\" \"@authority\" \"@query\"",
            "\"@method\" \"@authority\" \"@path\" \"@query-param\";name=\"a\"",
            "\"@method\";req \"@target-uri\"",
        ] {
            assert!(!enough(little), "{little}");
        }
        let list = signed("s=(\"@method\" \"@target-uri\");keyid=\"test-a\"", "s=:AAAA:");
        let signed = list.unwrap().unwrap();
        assert!(signed.covers_enough(&["date".to_owned()]).is_err());
        assert!(!signed.covers_body());
    }

    proptest! {
        /// Whatever the fields say, nothing panics, and what is built ends in the parameters as they are read.
        #[test]
        fn any_fields_are_read_or_refused(input in "[ -~]{0,200}", signature in "[ -~]{0,60}") {
            if let Ok(Some(signed)) = signed(&input, &signature) {
                let headers = headers(&ALL);
                let message =
                    Message { method: &Method::GET, target: "/", headers: &headers, scheme: "http" };
                if let Ok(base) = signed.base(&message) {
                    prop_assert!(base.contains("\"@signature-params\": ("));
                }
            }
        }
    }
}

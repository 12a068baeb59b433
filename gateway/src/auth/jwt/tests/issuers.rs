//! Sets of keys as issuers publish them.

use super::*;

fn read(text: &str) -> Result<usize, String> {
    KeySet::of_jwks(text.as_bytes(), false, &[]).map(|set| set.len())
}

#[test]
fn a_set_that_is_none() {
    let none = "is no plain JSON object";
    for (text, message) in [
        ("", none),
        ("<html><body>502 Bad Gateway</body></html>", none),
        ("[]", none),
        ("null", none),
        (r#"{"keys": [], "keys": []}"#, none),
        ("{}", "has no list `keys`, so that it is no set of keys"),
        (r#"{"keys": {}}"#, "has no list `keys`, so that it is no set of keys"),
        (r#"{"keys": null}"#, "has no list `keys`, so that it is no set of keys"),
        (r#"{"keys": []}"#, "has no key that can be used: no key is in it"),
        (r#"{"error": "busy"}"#, "has no list `keys`, so that it is no set of keys"),
    ] {
        assert_eq!(read(text).unwrap_err(), message, "{text}");
    }
}

#[test]
fn keys_of_no_use_are_left_out() {
    let good = ec_jwk(&PAIRS.p256, "P-256", "a");
    let set = json!({"keys": [
        {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA"}, {"kty": "EC", "crv": "BLS12381G1"},
        {"kty": 1}, {"kty": "RSA"}, {"kty": "RSA", "n": 1, "e": "AQAB"}, {"kid": ["a"]}, {}, [], "key", null,
        {"kty": "oct", "kid": "secret", "k": base64(SECRET)}, good
    ]});
    assert_eq!(read(&set.to_string()), Ok(1));
}

#[test]
fn a_secret_that_is_published_is_none() {
    let set = json!({"keys": [{"kty": "oct", "kid": "a", "k": base64(SECRET)}]}).to_string();
    let message = "has no key that can be used: the last one is a secret that everybody can read";
    assert_eq!(read(&set).unwrap_err(), message);
    assert!(KeySet::of_jwks(set.as_bytes(), true, &[]).is_ok(), "from a file it is one");
}

#[test]
fn duplicate_kids_are_all_tried_and_not_more_than_a_few() {
    let other = || ec_jwk(&PAIRS.other_p256, "P-256", "p256");
    let mut keys = vec![rsa_jwk(&PAIRS.rsa, "p256"), other(), ec_jwk(&PAIRS.p256, "P-256", "p256")];
    assert!(verify(&with(&json!({"keys": keys}), ""), &token(json!({}))).is_ok());
    keys.splice(0..0, [other(), other(), other()]);
    let many = "the token does not say by which of many keys it is signed";
    refused(&with(&json!({"keys": keys}), ""), &token(json!({})), many);
}

#[test]
fn ten_thousand_keys_are_too_many_and_a_thousand_are_not() {
    let set = |count: usize| {
        let keys: Vec<Value> =
            (0..count).map(|number| ed_jwk(&PAIRS.ed, &number.to_string())).collect();
        json!({ "keys": keys }).to_string()
    };
    assert_eq!(read(&set(1000)), Ok(1000));
    assert_eq!(read(&set(10_000)).unwrap_err(), "has 10000 keys, which is more than 1000");
}

//! Tokens that are taken, what they say, and where keys and tokens may be.

use std::time::Duration;

use super::*;

fn texts(list: &[Box<str>]) -> Vec<&str> {
    list.iter().map(|text| &**text).collect()
}

#[test]
fn every_algorithm_is_taken_from_the_key_that_it_fits() {
    let jwt = with(&jwks(), "");
    for (algorithm, kid) in [
        ("RS256", "rsa"),
        ("PS256", "rsa"),
        ("ES256", "p256"),
        ("ES384", "p384"),
        ("EdDSA", "ed"),
        ("Ed25519", "ed"),
    ] {
        let header = json!({"alg": algorithm, "kid": kid, "typ": "JWT"});
        let token = sign(&header, &json!({"sub": "ann", "exp": NOW + 1}));
        assert_eq!(verify(&jwt, &token).unwrap().user.as_deref(), Some("ann"), "{algorithm}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), SECRET).unwrap();
    let jwt = in_folder(folder.path(), "secret: {file: secret}").unwrap();
    for algorithm in ["HS256", "HS384", "HS512"] {
        let token = sign(&json!({"alg": algorithm, "kid": "any"}), &json!({"exp": NOW + 1}));
        assert!(verify(&jwt, &token).is_ok(), "{algorithm}");
    }
}

#[test]
fn public_keys_and_certificates_are_read_from_pem() {
    let folder = tempfile::tempdir().unwrap();
    let spki = |der: &[u8]| {
        let lines = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n")
    };
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    let rsa: PublicKeyX509Der<'_> = PAIRS.rsa.public_key().as_der().unwrap();
    let p256: PublicKeyX509Der<'_> = PAIRS.p256.public_key().as_der().unwrap();
    let p384: PublicKeyX509Der<'_> = PAIRS.p384.public_key().as_der().unwrap();
    let ed: PublicKeyX509Der<'_> = PAIRS.ed.public_key().as_der().unwrap();
    let text: String = [rsa.as_ref(), p256.as_ref(), p384.as_ref(), ed.as_ref()].map(spki).concat();
    std::fs::write(folder.path().join("keys.pem"), &text).unwrap();
    let jwt = in_folder(folder.path(), "pem: keys.pem").unwrap();
    for algorithm in ["RS256", "PS256", "ES256", "ES384", "EdDSA"] {
        let token = sign(&json!({"alg": algorithm, "kid": "any"}), &json!({"exp": NOW + 1}));
        assert!(verify(&jwt, &token).is_ok(), "{algorithm}");
    }
    let certified = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    std::fs::write(folder.path().join("keys.pem"), certified.cert.pem()).unwrap();
    assert!(in_folder(folder.path(), "pem: keys.pem").is_ok());
    for (text, message) in [
        (certified.signing_key.serialize_pem(), "has a private key in it"),
        ("nothing".to_owned(), "has neither a public key nor a certificate in it"),
        (spki(b"nonsense"), "has a public key that cannot be read"),
    ] {
        std::fs::write(folder.path().join("keys.pem"), text).unwrap();
        let error = in_folder(folder.path(), "pem: keys.pem").unwrap_err();
        assert!(error.contains(message) && error.contains("keys.pem"), "{error}");
    }
}

#[test]
fn claims_say_who_calls_and_what_they_may() {
    let jwt = with(&jwks(), "");
    let identity = verify(
        &jwt,
        &token(json!({"sub": "ann", "azp": "app", "client_id": "other", "roles": ["admin"],
            "scope": "read  write", "groups": ["Domain Admins"]})),
    );
    let identity = identity.unwrap();
    assert_eq!(&*identity.authenticator, "x");
    assert_eq!(
        (identity.user.as_deref(), identity.consumer.as_deref()),
        (Some("ann"), Some("app"))
    );
    assert_eq!((identity.tenant.as_deref(), identity.plan.as_deref()), (None, None));
    assert_eq!(texts(&identity.roles), ["admin"]);
    assert_eq!(texts(&identity.scopes), ["read", "write"]);
    assert_eq!(texts(&identity.groups), ["Domain Admins"]);

    let paths = "claims: {user: [uid, sub], consumer: org.id, tenant: tenant, plan: plan, \
                 roles: realm_access.roles, scopes: scopes, groups: '\"https://x.y/groups\"'}";
    let jwt = with(&jwks(), paths);
    let identity = verify(
        &jwt,
        &token(
            json!({"uid": 42, "sub": "ann", "org": {"id": "acme"}, "tenant": "eu", "plan": "gold",
            "realm_access": {"roles": ["a", "b"]}, "scopes": ["c d", "e"], "https://x.y/groups": "g h"}),
        ),
    );
    let identity = identity.unwrap();
    assert_eq!(
        (identity.user.as_deref(), identity.consumer.as_deref()),
        (Some("42"), Some("acme"))
    );
    assert_eq!((identity.tenant.as_deref(), identity.plan.as_deref()), (Some("eu"), Some("gold")));
    assert_eq!(texts(&identity.roles), ["a", "b"]);
    assert_eq!(texts(&identity.scopes), ["c d", "e"]);
    assert_eq!(texts(&identity.groups), ["g h"], "one text is one group");
}

#[test]
fn what_the_configuration_knows_of_the_consumer_is_added() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys.json"), jwks().to_string()).unwrap();
    let text = "listen: [{address: 127.0.0.1:80}]\nauth: {x: {jwt: {jwks_file: keys.json}}}\n\
                plans: {gold: {limits: [{rate: 1/s}]}}\n\
                consumers: {app: {plan: gold, roles: [partner]}}";
    let config = parse(folder.path().join("a.yaml").to_str().unwrap(), text).unwrap();
    let AuthKind::Jwt(jwt) = &config.auth[0].kind else { panic!("another kind") };
    let consumers = Arc::new(Consumers::new(&config.consumers));
    let jwt = Jwt::new("x", jwt, &consumers, None).unwrap();
    let identity = verify(&jwt, &token(json!({"azp": "app", "roles": ["admin"]}))).unwrap();
    assert_eq!(identity.plan.as_deref(), Some("gold"));
    assert_eq!(texts(&identity.roles), ["admin", "partner"]);
}

#[test]
fn a_token_is_remembered_until_it_expires_and_no_other_is_taken_for_it() {
    let jwt = with(&jwks(), "leeway: 10s");
    let memory = Memory::new(10);
    let good = token(json!({"sub": "ann"}));
    let parts = head(&good);
    let first = ask(&jwt, &parts, &memory, now(NOW));
    let Answer::Known(first) = first else { panic!("{first:?}") };
    let Answer::Known(second) = ask(&jwt, &parts, &memory, now(NOW + 609)) else {
        panic!("it is not known any more")
    };
    assert!(Arc::ptr_eq(&first, &second), "it was not verified again");
    let expired = Answer::Expired("the token has expired");
    assert_eq!(ask(&jwt, &parts, &memory, now(NOW + 610)), expired);
    let mut forged = good.clone();
    forged.truncate(good.len() - 4);
    forged.push_str("AAAA");
    let wrong = Answer::Refused("the token's signature is wrong");
    assert_eq!(ask(&jwt, &head(&forged), &memory, now(NOW)), wrong);
}

#[test]
fn nothing_is_remembered_where_that_is_configured() {
    let jwt = with(&jwks(), "remember: 0");
    let memory = Memory::new(10);
    let parts = head(&token(json!({})));
    let asked = || match ask(&jwt, &parts, &memory, now(NOW)) {
        Answer::Known(identity) => identity,
        other => panic!("{other:?}"),
    };
    assert!(!Arc::ptr_eq(&asked(), &asked()));
}

#[test]
fn tokens_are_in_the_places_that_are_configured() {
    let good = token(json!({"sub": "ann"}));
    let asked = |options: &str, uri: &str, field: Option<(&str, String)>| {
        let mut request = Request::get(uri);
        if let Some((name, value)) = field {
            request = request.header(name, value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        ask(&with(&jwks(), options), &parts, &Memory::new(1), now(NOW))
    };
    let is_known = |answer| matches!(answer, Answer::Known(_));
    let places = "token: [{header: X-Token}, {cookie: session}, {query: access_token}]";
    assert!(is_known(asked(places, "/", Some(("x-token", good.clone())))));
    assert!(is_known(asked(places, "/", Some(("cookie", format!("a=b; session={good}"))))));
    assert!(is_known(asked(places, &format!("/?a=b&access_token={good}"), None)));
    let bearer = Some(("authorization", format!("Bearer {good}")));
    assert_eq!(asked(places, "/", bearer.clone()), Answer::Absent);
    assert!(is_known(asked("", "/", bearer)));
    let basic = Some(("authorization", "Basic YTpi".to_owned()));
    assert_eq!(asked("", "/", basic), Answer::Absent);
    let two = format!("/?access_token={good}&access_token={good}");
    assert_eq!(asked(places, &two, None), Answer::Refused("there is more than one token"));
    let empty = Some(("authorization", "Bearer ".to_owned()));
    assert_eq!(asked("", "/", empty), Answer::Refused("the token has not three parts"));
}

#[test]
fn a_revoked_token_is_refused_though_it_was_remembered() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys.json"), jwks().to_string()).unwrap();
    std::fs::write(folder.path().join("revoked"), "").unwrap();
    let jwt = in_folder(folder.path(), "jwks_file: keys.json, revoked: revoked").unwrap();
    let memory = Memory::new(10);
    let parts = head(&token(json!({"jti": "t1", "sub": "ann"})));
    assert!(matches!(ask(&jwt, &parts, &memory, now(NOW)), Answer::Known(_)));
    std::fs::write(folder.path().join("revoked"), "jti t1\n").unwrap();
    jwt.tick(now(NOW));
    assert_eq!(ask(&jwt, &parts, &memory, now(NOW)), Answer::Refused("the token is revoked"));
}

#[test]
fn a_changed_file_of_keys_forgets_what_was_verified_by_the_old_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    std::fs::write(&path, jwks().to_string()).unwrap();
    let jwt = in_folder(folder.path(), "jwks_file: keys.json").unwrap();
    let memory = Memory::new(10);
    let parts = head(&token(json!({})));
    assert!(matches!(ask(&jwt, &parts, &memory, now(NOW)), Answer::Known(_)));
    std::fs::write(&path, json!({"keys": [ed_jwk(&PAIRS.ed, "ed")]}).to_string()).unwrap();
    jwt.tick(now(NOW));
    assert_eq!(
        ask(&jwt, &parts, &memory, now(NOW)),
        Answer::Refused("the token names a key that is not known")
    );
}

#[test]
fn without_a_key_id_the_keys_that_fit_are_tried_and_not_more_than_a_few() {
    let es256 = json!({"alg": "ES256"});
    let token = sign(&es256, &json!({"exp": NOW + 1}));
    let other = ec_jwk(&PAIRS.other_p256, "P-256", "other");
    let mut keys = vec![other.clone(), ec_jwk(&PAIRS.p256, "P-256", "p256")];
    assert!(verify(&with(&json!({"keys": keys}), ""), &token).is_ok());
    for number in 0..4 {
        keys.insert(0, ec_jwk(&PAIRS.other_p256, "P-256", &format!("other {number}")));
    }
    let many = "the token does not say by which of many keys it is signed";
    refused(&with(&json!({"keys": keys}), ""), &token, many);
}

#[test]
fn the_challenge_names_the_authenticator() {
    assert_eq!(with(&jwks(), "").challenge(), "Bearer realm=\"x\"");
}

#[test]
fn leeway_is_what_clocks_may_be_apart() {
    let jwt = with(&jwks(), "leeway: 5s");
    let expiring = token(json!({"exp": NOW}));
    assert!(verify_at(&jwt, &expiring, NOW + 4).is_ok());
    assert_eq!(verify_at(&jwt, &expiring, NOW + 5), Err("the token has expired"));
    for (claim, reason) in
        [("nbf", "the token is not valid yet"), ("iat", "the token was issued in the future")]
    {
        let early = token(json!({claim: NOW}));
        assert!(verify_at(&jwt, &early, NOW - 5).is_ok());
        assert_eq!(verify_at(&jwt, &early, NOW - 6), Err(reason));
        let early = token(json!({claim: NOW as f64 + 0.5}));
        assert!(verify_at(&jwt, &early, NOW - 4).is_ok());
        assert_eq!(verify_at(&jwt, &early, NOW - 5), Err(reason));
    }
    assert!(claims::left(Some(UtcMillis(2000)), UtcMillis(500)) == Duration::from_millis(1500));
}

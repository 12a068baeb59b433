//! Every attack on tokens that the literature knows (RFC 8725; OWASP; the tests of Wycheproof), one name each.

use super::*;

const BAD_SIGNATURE: &str = "the token's signature is wrong";
const UNKNOWN_ALGORITHM: &str = "the token's algorithm is none that is taken";
const OTHER_ALGORITHM: &str = "the token's algorithm is not that of the key";
const UNKNOWN_KEY: &str = "the token names a key that is not known";
const NO_CLAIMS: &str = "the token's claims are no plain JSON object";
const NO_HEADER: &str = "the token's header is no plain JSON object";
const UNDERSTOOD: &str = "the token's header asks for more than is understood here";
const MISTYPED: &str = "a claim of the token is of the wrong type";

fn standard() -> Jwt {
    with(&jwks(), "")
}

fn es256() -> Value {
    json!({"alg": "ES256", "kid": "p256"})
}

fn good() -> Value {
    json!({"sub": "ann", "exp": NOW + 600})
}

/// A token of raw texts, signed by the key of P-256.
fn raw(header: &str, claims: &str) -> String {
    raw_parts(&base64(header), &base64(claims))
}

fn raw_parts(header: &str, claims: &str) -> String {
    let signed = format!("{header}.{claims}");
    let signature = PAIRS.p256.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", base64(signature.as_ref()))
}

/// The same token with another signature.
fn signed_by(token: &str, signature: &[u8]) -> String {
    let (signed, _) = token.rsplit_once('.').unwrap();
    format!("{signed}.{}", base64(signature))
}

fn signature_of(token: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(token.rsplit_once('.').unwrap().1).unwrap()
}

/// An HMAC by `secret` over a header and claims.
fn hmac_token(header: &Value, secret: &[u8]) -> String {
    let signed = format!("{}.{}", base64(header.to_string()), base64(good().to_string()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", base64(tag.as_ref()))
}

#[test]
fn what_the_attacks_below_change_is_good_before() {
    assert!(verify(&standard(), &sign(&es256(), &good())).is_ok());
    assert!(verify(&standard(), &raw(&es256().to_string(), &good().to_string())).is_ok());
}

#[test]
fn algorithm_none_in_every_spelling() {
    let jwt = standard();
    let claims = base64(good().to_string());
    let signature = base64(signature_of(&token(json!({}))));
    for algorithm in ["none", "None", "NONE", "nOnE", "none ", " none", "none\u{0}", "", "null"] {
        for kid in [json!({"alg": algorithm}), json!({"alg": algorithm, "kid": "p256"})] {
            let header = base64(kid.to_string());
            refused(&jwt, &format!("{header}.{claims}."), "the token is not signed");
            refused(&jwt, &format!("{header}.{claims}.{signature}"), UNKNOWN_ALGORITHM);
            refused(&jwt, &format!("{header}.{claims}"), "the token has not three parts");
        }
    }
}

#[test]
fn algorithm_missing_mistyped_or_in_another_spelling() {
    for header in [
        json!({"kid": "p256"}),
        json!({"alg": null, "kid": "p256"}),
        json!({"alg": ["ES256"], "kid": "p256"}),
        json!({"alg": {"ES256": 1}, "kid": "p256"}),
        json!({"alg": 256, "kid": "p256"}),
        json!({"alg": "es256", "kid": "p256"}),
        json!({"alg": "ES256 ", "kid": "p256"}),
        json!({"alg": "ES256K", "kid": "p256"}),
        json!({"alg": "RS1", "kid": "p256"}),
        json!({"Alg": "ES256", "kid": "p256"}),
    ] {
        refused(&standard(), &raw(&header.to_string(), &good().to_string()), UNKNOWN_ALGORITHM);
    }
}

#[test]
fn rs256_to_hs256_with_the_public_key_as_secret() {
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    let spki: PublicKeyX509Der<'_> = PAIRS.rsa.public_key().as_der().unwrap();
    let lines = base64::engine::general_purpose::STANDARD.encode(spki.as_ref());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key.pem"), &pem).unwrap();
    let from_pem = in_folder(folder.path(), "pem: key.pem").unwrap();
    let jwk = rsa_jwk(&PAIRS.rsa, "rsa");
    let n = URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap();
    let secrets: [Vec<u8>; 7] = [
        pem.clone().into_bytes(),
        pem.trim_end().as_bytes().to_vec(),
        spki.as_ref().to_vec(),
        PAIRS.rsa.public_key().as_ref().to_vec(),
        n,
        jwk["n"].as_str().unwrap().as_bytes().to_vec(),
        jwk.to_string().into_bytes(),
    ];
    for secret in secrets {
        for header in [json!({"alg": "HS256"}), json!({"alg": "HS256", "kid": "rsa"})] {
            let forged = hmac_token(&header, &secret);
            refused(&from_pem, &forged, OTHER_ALGORITHM);
            refused(&standard(), &forged, OTHER_ALGORITHM);
        }
    }
}

#[test]
fn a_key_is_used_by_no_algorithm_but_its_own() {
    let mut rsa = rsa_jwk(&PAIRS.rsa, "rsa");
    rsa["alg"] = "RS256".into();
    let jwt = with(&json!({"keys": [rsa, ec_jwk(&PAIRS.p256, "P-256", "p256")]}), "");
    assert!(verify(&jwt, &sign(&json!({"alg": "RS256", "kid": "rsa"}), &good())).is_ok());
    for header in [
        json!({"alg": "PS256", "kid": "rsa"}),
        json!({"alg": "ES256", "kid": "rsa"}),
        json!({"alg": "RS256", "kid": "p256"}),
        json!({"alg": "ES384", "kid": "p256"}),
        json!({"alg": "EdDSA", "kid": "p256"}),
        json!({"alg": "HS256", "kid": "p256"}),
    ] {
        refused(&jwt, &sign(&header, &good()), OTHER_ALGORITHM);
    }
    let narrowed = with(&jwks(), "algorithms: [ES256, EdDSA]");
    assert!(verify(&narrowed, &sign(&es256(), &good())).is_ok());
    refused(&narrowed, &sign(&json!({"alg": "RS256", "kid": "rsa"}), &good()), UNKNOWN_KEY);
}

#[test]
fn embedded_key_in_the_header() {
    let mut header = es256();
    header["jwk"] = ec_jwk(&PAIRS.other_p256, "P-256", "p256");
    let signed = format!("{}.{}", base64(header.to_string()), base64(good().to_string()));
    let forged = PAIRS.other_p256.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    refused(&standard(), &format!("{signed}.{}", base64(forged.as_ref())), BAD_SIGNATURE);
    header["kid"] = "mine".into();
    refused(&standard(), &sign(&header, &good()), UNKNOWN_KEY);
}

#[test]
fn jku_x5u_and_x5c_are_not_looked_at() {
    for (name, value) in [
        ("jku", json!("https://attacker.example.com/keys")),
        ("jku", json!("file:///etc/passwd")),
        ("x5u", json!("http://127.0.0.1:6379/")),
        ("x5c", json!(["MIIB"])),
        ("x5t", json!("AAAA")),
        ("url", json!("https://attacker.example.com/")),
    ] {
        let mut header = es256();
        header[name] = value;
        assert!(verify(&standard(), &sign(&header, &good())).is_ok(), "by the key that is known");
        header["kid"] = "theirs".into();
        refused(&standard(), &sign(&header, &good()), UNKNOWN_KEY);
    }
}

#[test]
fn kid_traversal_and_injection() {
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "file:///dev/null",
        "p256/../p384",
        "p256\u{0}",
        "P256",
        "p256 ",
        "' OR 1=1 --",
        "x' UNION SELECT 'secret",
        "| /bin/sleep 10",
        "$(id)",
        "{{7*7}}",
        "https://attacker.example.com/keys",
        "",
    ] {
        for secret in [b"".as_slice(), b"\0", b"secret", kid.as_bytes()] {
            refused(
                &standard(),
                &hmac_token(&json!({"alg": "HS256", "kid": kid}), secret),
                UNKNOWN_KEY,
            );
        }
        refused(&standard(), &sign(&json!({"alg": "ES256", "kid": kid}), &good()), UNKNOWN_KEY);
    }
}

#[test]
fn kid_of_the_wrong_type() {
    for kid in [json!(null), json!(1), json!(["p256"]), json!({"p256": 1}), json!(true)] {
        let header = json!({"alg": "ES256", "kid": kid});
        let reason = "the token's header has a member of the wrong type";
        refused(&standard(), &sign(&header, &good()), reason);
    }
}

#[test]
fn key_confusion_between_kids() {
    let keys = json!({"keys": [
        ec_jwk(&PAIRS.p256, "P-256", "mine"), ec_jwk(&PAIRS.other_p256, "P-256", "other")
    ]});
    let jwt = with(&keys, "");
    assert!(verify(&jwt, &sign(&json!({"alg": "ES256", "kid": "mine"}), &good())).is_ok());
    refused(&jwt, &sign(&json!({"alg": "ES256", "kid": "other"}), &good()), BAD_SIGNATURE);
}

#[test]
fn signature_of_another_key() {
    let token = sign(&json!({"alg": "RS256", "kid": "rsa"}), &good());
    let other = with(&json!({"keys": [rsa_jwk(&PAIRS.other_rsa, "rsa")]}), "");
    refused(&other, &token, BAD_SIGNATURE);
    let other = with(&json!({"keys": [ec_jwk(&PAIRS.other_p256, "P-256", "p256")]}), "");
    refused(&other, &sign(&es256(), &good()), BAD_SIGNATURE);
}

/// What forges a signature by the exponent 3 (Bleichenbacher, 2006): its cube begins with the padding, eight bytes of
/// it instead of 202, and the digest, and whatever is behind that is garbage. It takes no key, and is good for any
/// modulus.
const CUBE_ROOT: &str = "Msv9SnrceQVYPXZ1IPUWQHWRdtN4JvLvY649x65TcetVaZTEkP1Fz1A6d\
                         x1rklM0LZNruY3brGZE_imoAzOa8lXUXvIYqfRznwl77-xh7zKIwKr-Bg";

fn product(one: &[u8], other: &[u8]) -> Vec<u8> {
    let mut digits = vec![0; one.len() + other.len()];
    for (low, factor) in one.iter().rev().enumerate() {
        let mut carry = 0;
        for (place, digit) in other.iter().rev().enumerate() {
            let sum = digits[low + place] + u32::from(*factor) * u32::from(*digit) + carry;
            (digits[low + place], carry) = (sum % 256, sum / 256);
        }
        digits[low + other.len()] = carry;
    }
    digits.iter().rev().map(|digit| u8::try_from(*digit).unwrap()).collect()
}

#[test]
fn rsa_padding_with_garbage_behind_the_digest() {
    let mut jwk = rsa_jwk(&PAIRS.rsa, "rsa");
    jwk["e"] = base64([3]).into();
    let jwt = with(&json!({"keys": [jwk]}), "");
    let header = base64(r#"{"alg":"RS256","kid":"rsa"}"#);
    let signed = format!("{header}.{}", base64(r#"{"exp":1767226200,"sub":"root"}"#));
    let root = URL_SAFE_NO_PAD.decode(CUBE_ROOT).unwrap();
    // RFC 8017, section 9.2, but for the length of the padding.
    let sha256 = [48, 49, 48, 13, 6, 9, 96, 134, 72, 1, 101, 3, 4, 2, 1, 5, 0, 4, 32];
    let digest = digest_of(signed.as_bytes());
    let begins = [&[1][..], &[0xff; 8], &[0], &sha256, &digest].concat();
    assert!(product(&product(&root, &root), &root).starts_with(&begins));
    for forged in [[vec![0; 256 - root.len()], root.clone()].concat(), root] {
        refused(&jwt, &format!("{signed}.{}", base64(forged)), BAD_SIGNATURE);
    }
}

/// Whose work a sender chooses (PBES2), or whose curve (ECDH-ES): nothing is decrypted here.
#[test]
fn algorithms_of_encryption() {
    for algorithm in
        ["PBES2-HS256+A128KW", "dir", "A128KW", "RSA1_5", "RSA-OAEP", "ECDH-ES", "ECDH-ES+A256KW"]
    {
        let header = json!({"alg": algorithm, "kid": "p256", "p2c": 2_147_483_647, "p2s": "AAAA"});
        let forged = raw(&header.to_string(), &good().to_string());
        refused(&standard(), &forged, UNKNOWN_ALGORITHM);
        refused(&standard(), &format!("{forged}.AAAA.AAAA"), "the token has not three parts");
    }
}

#[test]
fn changed_claims_under_an_old_signature() {
    let token = sign(&es256(), &good());
    let claims = base64(json!({"sub": "root", "exp": NOW + 600}).to_string());
    let parts: Vec<&str> = token.split('.').collect();
    refused(&standard(), &format!("{}.{claims}.{}", parts[0], parts[2]), BAD_SIGNATURE);
}

#[test]
fn psychic_signatures_of_zeros() {
    for length in [1, 32, 63, 64, 65, 96, 132] {
        refused(&standard(), &signed_by(&sign(&es256(), &good()), &vec![0; length]), BAD_SIGNATURE);
    }
    let signature = signature_of(&sign(&es256(), &good()));
    let zero = [0; 32];
    for forged in [[zero.as_slice(), &signature[32..]].concat(), [&signature[..32], &zero].concat()]
    {
        refused(&standard(), &signed_by(&sign(&es256(), &good()), &forged), BAD_SIGNATURE);
    }
}

/// The order of P-256 (FIPS 186-5), and what is near it.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
    0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

#[test]
fn ecdsa_numbers_at_and_beyond_the_order() {
    let token = sign(&es256(), &good());
    let signature = signature_of(&token);
    let (r, s) = signature.split_at(32);
    let (mut one, all) = ([0; 32], [0xff; 32]);
    one[31] = 1;
    for (r, s) in [
        (ORDER.as_slice(), s),
        (r, &ORDER),
        (&ORDER, &ORDER),
        (&all, s),
        (r, &all),
        (&one, &one),
        (&ORDER, &one),
    ] {
        refused(&standard(), &signed_by(&token, &[r, s].concat()), BAD_SIGNATURE);
    }
}

#[test]
fn ecdsa_signature_in_der() {
    let token = sign(&es256(), &good());
    let signature = signature_of(&token);
    let integer = |number: &[u8]| [&[0x02, 33, 0], number].concat();
    let numbers = [integer(&signature[..32]), integer(&signature[32..])].concat();
    let der = [&[0x30, u8::try_from(numbers.len()).unwrap()], numbers.as_slice()].concat();
    refused(&standard(), &signed_by(&token, &der), BAD_SIGNATURE);
}

#[test]
fn truncated_and_lengthened_signatures() {
    for header in
        [es256(), json!({"alg": "RS256", "kid": "rsa"}), json!({"alg": "EdDSA", "kid": "ed"})]
    {
        let token = sign(&header, &good());
        let signature = signature_of(&token);
        for length in [1, 8, signature.len() / 2, signature.len() - 1] {
            refused(&standard(), &signed_by(&token, &signature[..length]), BAD_SIGNATURE);
        }
        for more in [[signature.as_slice(), &[0]].concat(), [&[0], signature.as_slice()].concat()] {
            refused(&standard(), &signed_by(&token, &more), BAD_SIGNATURE);
        }
        let (signed, _) = token.rsplit_once('.').unwrap();
        refused(&standard(), &format!("{signed}."), "the token is not signed");
        refused(&standard(), signed, "the token has not three parts");
    }
}

#[test]
fn truncated_tag_of_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), SECRET).unwrap();
    let jwt = in_folder(folder.path(), "secret: {file: secret}").unwrap();
    let token = sign(&json!({"alg": "HS256"}), &good());
    assert!(verify(&jwt, &token).is_ok());
    let tag = signature_of(&token);
    for length in [1, 16, 31] {
        refused(&jwt, &signed_by(&token, &tag[..length]), BAD_SIGNATURE);
    }
    for secret in [b"".as_slice(), b"secret", &SECRET[..63]] {
        refused(&jwt, &hmac_token(&json!({"alg": "HS256"}), secret), BAD_SIGNATURE);
    }
}

#[test]
fn every_flipped_bit_of_a_signature() {
    for header in
        [es256(), json!({"alg": "EdDSA", "kid": "ed"}), json!({"alg": "PS256", "kid": "rsa"})]
    {
        let (jwt, token) = (standard(), sign(&header, &good()));
        let signature = signature_of(&token);
        for bit in 0..signature.len() * 8 {
            let mut flipped = signature.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            refused(&jwt, &signed_by(&token, &flipped), BAD_SIGNATURE);
        }
    }
}

/// ECDSA has two signatures for one message, which are both good: so nothing may hang on the letters of a token.
#[test]
fn malleated_signature_is_revoked_like_the_first() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys.json"), jwks().to_string()).unwrap();
    std::fs::write(folder.path().join("revoked"), "jti t1").unwrap();
    let jwt = in_folder(folder.path(), "jwks_file: keys.json, revoked: revoked").unwrap();
    let token = token(json!({"jti": "t1"}));
    let signature = signature_of(&token);
    let (mut negative, mut borrow) = ([0; 32], 0);
    for index in (0..32).rev() {
        let left = i16::from(ORDER[index]) - i16::from(signature[32 + index]) - borrow;
        borrow = i16::from(left < 0);
        negative[index] = u8::try_from(left.rem_euclid(256)).unwrap();
    }
    let malleated = signed_by(&token, &[&signature[..32], &negative].concat());
    assert!(verify(&standard(), &malleated).is_ok());
    refused(&jwt, &token, "the token is revoked");
    refused(&jwt, &malleated, "the token is revoked");
}

#[test]
fn keys_of_the_wrong_curve_or_on_none() {
    let refused_key = |jwk: Value, reason: &str| {
        let error = KeySet::of_jwks(json!({"keys": [jwk]}).to_string().as_bytes(), true, &[]);
        assert_eq!(
            error.unwrap_err(),
            format!("has no key that can be used: the last one {reason}")
        );
    };
    let mut p256 = ec_jwk(&PAIRS.p256, "P-256", "a");
    p256["crv"] = "P-384".into();
    refused_key(p256.clone(), "has a coordinate of the wrong length");
    p256["crv"] = "secp256k1".into();
    refused_key(p256.clone(), "is of an unknown curve");
    p256["crv"] = "P-256".into();
    p256["y"] = p256["x"].clone();
    refused_key(p256.clone(), "does not lie on its curve");
    p256["x"] = base64([0; 32]).into();
    p256["y"] = base64([0; 32]).into();
    refused_key(p256, "does not lie on its curve");
    let mut ed = ed_jwk(&PAIRS.ed, "a");
    ed["crv"] = "X25519".into();
    refused_key(ed.clone(), "is of an unknown type");
    ed["crv"] = "Ed25519".into();
    ed["x"] = base64([1; 31]).into();
    refused_key(ed, "does not lie on its curve");
}

#[test]
fn weak_keys() {
    let refused_key = |jwk: Value, reason: &str| {
        let error = KeySet::of_jwks(json!({"keys": [jwk]}).to_string().as_bytes(), true, &[]);
        assert_eq!(
            error.unwrap_err(),
            format!("has no key that can be used: the last one {reason}")
        );
    };
    let rsa = rsa_jwk(&PAIRS.rsa, "a");
    let with = |name: &str, bytes: &[u8]| {
        let mut jwk = rsa.clone();
        jwk[name] = base64(bytes).into();
        jwk
    };
    refused_key(with("n", &[0xff; 128]), "is not of 2048 to 8192 bits");
    refused_key(with("n", &[0xff; 1025]), "is not of 2048 to 8192 bits");
    refused_key(with("n", &[0xfe; 256]), "is no RSA key");
    for exponent in [&[1_u8][..], &[2], &[0, 1], &[1; 6], &[]] {
        refused_key(with("e", exponent), "is no RSA key");
    }
    let short = json!({"kty": "oct", "k": base64(&SECRET[..31])});
    refused_key(short, "is too short for its algorithm: HS256 needs 32 bytes");
    let short = json!({"kty": "oct", "alg": "HS512", "k": base64(&SECRET[..63])});
    refused_key(short, "is too short for its algorithm: HS256 needs 32 bytes");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "password").unwrap();
    let error = in_folder(folder.path(), "secret: {file: secret}").unwrap_err();
    assert!(error.contains("is too short") && !error.contains("password"), "{error}");
}

#[test]
fn keys_that_are_not_for_signatures() {
    for (name, value) in [
        ("use", json!("enc")),
        ("use", json!("SIG")),
        ("key_ops", json!(["encrypt", "sign"])),
        ("key_ops", json!("verify")),
        ("alg", json!("RSA-OAEP")),
        ("alg", json!("none")),
        ("alg", json!("ES256")),
    ] {
        let mut jwk = rsa_jwk(&PAIRS.rsa, "a");
        jwk[name] = value;
        let set = json!({"keys": [jwk]}).to_string();
        assert!(KeySet::of_jwks(set.as_bytes(), true, &[]).is_err(), "{set}");
    }
    let mut jwk = rsa_jwk(&PAIRS.rsa, "a");
    jwk["use"] = "sig".into();
    jwk["key_ops"] = json!(["verify"]);
    assert!(KeySet::of_jwks(json!({"keys": [jwk]}).to_string().as_bytes(), true, &[]).is_ok());
}

#[test]
fn non_canonical_base64() {
    let token = sign(&es256(), &good());
    let parts: Vec<&str> = token.split('.').collect();
    let join = |parts: [&str; 3]| parts.join(".");
    // 64 bytes leave four bits that stand for nothing in the last letter.
    let last = parts[2].chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let index = alphabet.find(last).unwrap();
    let twin = &alphabet[index + 1..index + 2];
    let signature = format!("{}{twin}", &parts[2][..parts[2].len() - 1]);
    let no_signature = "the token's signature is no base64url";
    refused(&standard(), &join([parts[0], parts[1], &signature]), no_signature);
    for bad in ["==", "=", "\n", " ", "\r\n", "%3D", "\u{e9}"] {
        refused(
            &standard(),
            &join([parts[0], parts[1], &format!("{}{bad}", parts[2])]),
            no_signature,
        );
        let header = format!("{}{bad}", parts[0]);
        refused(
            &standard(),
            &join([&header, parts[1], parts[2]]),
            "the token's header is no base64url",
        );
        let claims = format!("{}{bad}", parts[1]);
        refused(&standard(), &raw_parts(parts[0], &claims), "the token's claims are no base64url");
    }
    let mut header = es256();
    header["x"] = "\u{3fb}\u{3ff}???>>>".into();
    let plain = base64::engine::general_purpose::STANDARD_NO_PAD.encode(header.to_string());
    assert!(plain.contains(['+', '/']), "{plain}");
    refused(&standard(), &raw_parts(&plain, parts[1]), "the token's header is no base64url");
}

#[test]
fn duplicate_members_of_the_header() {
    for header in [
        r#"{"alg": "ES256", "kid": "p256", "alg": "ES256"}"#,
        r#"{"alg": "none", "kid": "p256", "alg": "ES256"}"#,
        r#"{"alg": "ES256", "kid": "p256", "kid": "ed"}"#,
        r#"{"alg": "ES256", "kid": "p256", "\u0061lg": "none"}"#,
    ] {
        refused(&standard(), &raw(header, &good().to_string()), NO_HEADER);
    }
}

#[test]
fn duplicate_claims() {
    for claims in [
        r#"{"exp": 1767226200, "sub": "ann", "sub": "root"}"#,
        r#"{"exp": 1, "sub": "ann", "exp": 1767226200}"#,
        r#"{"exp": 1767226200, "sub": "ann", "s\u0075b": "root"}"#,
        r#"{"exp": 1767226200, "a": {"roles": [], "roles": ["admin"]}}"#,
    ] {
        refused(&standard(), &raw(&es256().to_string(), claims), NO_CLAIMS);
    }
}

#[test]
fn what_is_no_json_object() {
    for text in
        ["", " ", "null", "[]", "\"ann\"", "1", "{", "{}{}", "{'sub': 'ann'}", "{\"a\": NaN}"]
    {
        if !text.is_empty() {
            refused(&standard(), &raw(text, &good().to_string()), NO_HEADER);
        }
        refused(&standard(), &raw(&es256().to_string(), text), NO_CLAIMS);
    }
    let deep = format!("{{\"exp\": 1767226200, \"a\": {}{}}}", "[".repeat(500), "]".repeat(500));
    refused(&standard(), &raw(&es256().to_string(), &deep), NO_CLAIMS);
    refused(
        &standard(),
        &raw_parts(&base64(es256().to_string()), &base64(b"{\"a\": \"\xff\"}")),
        NO_CLAIMS,
    );
}

#[test]
fn oversized_tokens() {
    let long = "the token is too long";
    let filled = |length: usize| token(json!({"fill": "a".repeat(length)}));
    assert!(verify(&standard(), &filled(5000)).is_ok());
    refused(&standard(), &filled(8000), long);
    refused(&with(&jwks(), "token_bytes: 1KiB"), &filled(1000), long);
    let memory = Memory::new(1);
    let answer = ask(&standard(), &head(&"a.".repeat(1 << 20)), &memory, now(NOW));
    assert_eq!(answer, Answer::Refused(long));
}

#[test]
fn critical_extensions_and_what_changes_the_payload() {
    for (name, value) in [
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("crit", json!(null)),
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("zip", json!("DEF")),
        ("enc", json!("A128GCM")),
    ] {
        let mut header = es256();
        header[name] = value;
        refused(&standard(), &sign(&header, &good()), UNDERSTOOD);
    }
}

#[test]
fn other_serializations_and_nested_tokens() {
    let token = sign(&es256(), &good());
    let parts: Vec<&str> = token.split('.').collect();
    let json =
        json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]}).to_string();
    let parts_wanted = "the token has not three parts";
    for bad in [
        json.as_str(),
        "",
        ".",
        "..",
        "...",
        "a.b.c.d.e",
        &format!("{token}."),
        &format!(".{token}"),
    ] {
        assert!(verify(&standard(), bad).is_err(), "{bad}");
    }
    refused(&standard(), &json, parts_wanted);
    // One that is both, of which one reader verifies the first half and another one believes the second.
    let both = format!("{{\"  {}.{}.{}\": \"\", {}", parts[0], parts[1], parts[2], &json[1..]);
    refused(&standard(), &both, "the token's header is no base64url");
    refused(&standard(), &format!("{}.a.b.c.d", parts[0]), parts_wanted);
    let mut header = es256();
    header["cty"] = "JWT".into();
    refused(&standard(), &raw(&header.to_string(), &token), NO_CLAIMS);
}

#[test]
fn mistyped_claims() {
    let number = "a time in the token is no number";
    let wrong = |claims: Value, reason: &str| refused(&standard(), &token(claims), reason);
    for value in
        [json!("1767226200"), json!(null), json!(true), json!([1_767_226_200_u64]), json!({})]
    {
        for name in ["exp", "nbf", "iat"] {
            wrong(json!({name: value}), number);
        }
    }
    for value in [json!(1), json!(null), json!(["ann"]), json!({}), json!(true)] {
        for name in ["sub", "jti", "iss", "azp", "client_id"] {
            wrong(json!({name: value}), MISTYPED);
        }
    }
    for value in [json!(1), json!({"api": 1}), json!([1]), json!(["api", null]), json!(null)] {
        wrong(json!({"aud": value}), "the token's audience is of the wrong type");
    }
    let may = "a claim that says what the caller may is of the wrong type";
    for value in [json!(1), json!({"admin": true}), json!(["admin", 1]), json!(true)] {
        for name in ["roles", "scope", "scp", "groups"] {
            wrong(json!({name: value}), may);
        }
    }
    let who = with(&jwks(), "claims: {tenant: t}");
    for value in [json!(true), json!(["t"]), json!({}), json!(1.5), json!("")] {
        let reason = "a claim that says who calls is of the wrong type";
        refused(&who, &token(json!({"t": value})), reason);
    }
    let text = raw(&es256().to_string(), r#"{"exp": 1e999}"#);
    refused(&standard(), &text, NO_CLAIMS);
}

#[test]
fn missing_claims() {
    let lacks = "the token lacks a claim that is required";
    refused(&standard(), &sign(&es256(), &json!({"sub": "ann"})), lacks);
    refused(&standard(), &sign(&es256(), &json!({})), lacks);
    assert!(verify(&with(&jwks(), "required_claims: []"), &sign(&es256(), &json!({}))).is_ok());
    let jwt = with(&jwks(), "required_claims: [exp, sub, realm_access.roles]");
    assert!(verify(&jwt, &token(json!({"sub": "a", "realm_access": {"roles": []}}))).is_ok());
    refused(&jwt, &token(json!({"sub": "a"})), lacks);
    refused(&jwt, &token(json!({"sub": "a", "realm_access": {"roles": null}})), lacks);
}

#[test]
fn expired_and_not_yet_valid() {
    let at = |claims: Value, reason| refused(&standard(), &token(claims), reason);
    at(json!({"exp": NOW - 30}), "the token has expired");
    at(json!({"exp": 0}), "the token has expired");
    at(json!({"exp": -1}), "the token has expired");
    at(json!({"exp": -1e300}), "the token has expired");
    at(json!({"nbf": NOW + 31}), "the token is not valid yet");
    at(json!({"iat": NOW + 31}), "the token was issued in the future");
    at(json!({"nbf": u64::MAX}), "the token is not valid yet");
    at(json!({"iat": 1e300}), "the token was issued in the future");
    assert!(verify(&standard(), &token(json!({"exp": u64::MAX, "nbf": 0, "iat": -5}))).is_ok());
    assert!(verify(&standard(), &token(json!({"exp": 1e300}))).is_ok());
}

#[test]
fn audience_of_somebody_else() {
    let somebody = "the token is for somebody else";
    let jwt = with(&jwks(), "audience: api");
    for good in [json!("api"), json!(["other", "api"])] {
        assert!(verify(&jwt, &token(json!({"aud": good}))).is_ok());
    }
    for bad in
        [json!("ap"), json!("api2"), json!("API"), json!([]), json!(["a"]), json!("*"), json!("")]
    {
        refused(&jwt, &token(json!({"aud": bad})), somebody);
    }
    refused(&jwt, &token(json!({})), somebody);
    refused(&standard(), &token(json!({"aud": "api"})), somebody);
    assert!(verify(&with(&jwks(), "audience: '*'"), &token(json!({"aud": "api"}))).is_ok());
    assert!(verify(&with(&jwks(), "audience: [a, b]"), &token(json!({"aud": "b"}))).is_ok());
}

#[test]
fn issuer_of_another_house() {
    let jwt = with(&jwks(), "issuer: https://idp.example.com");
    assert!(verify(&jwt, &token(json!({"iss": "https://idp.example.com"}))).is_ok());
    for bad in [
        json!({}),
        json!({"iss": ""}),
        json!({"iss": "https://idp.example.com/"}),
        json!({"iss": "https://idp.example.com.attacker.example"}),
        json!({"iss": "HTTPS://idp.example.com"}),
    ] {
        refused(&jwt, &token(bad), "the token's issuer is another one");
    }
}

#[test]
fn token_of_another_type() {
    let jwt = with(&jwks(), "token_type: at+JWT");
    let typed = |typ: Value| sign(&json!({"alg": "ES256", "kid": "p256", "typ": typ}), &good());
    for good in ["at+jwt", "AT+JWT", "application/at+jwt"] {
        assert!(verify(&jwt, &typed(json!(good))).is_ok(), "{good}");
    }
    for bad in ["JWT", "id_token+jwt", "", "at+jwt "] {
        refused(&jwt, &typed(json!(bad)), "the token is of another type");
    }
    refused(&jwt, &sign(&es256(), &good()), "the token is of another type");
    let reason = "the token's header has a member of the wrong type";
    refused(&standard(), &typed(json!(["at+jwt"])), reason);
}

#[test]
fn a_clock_that_jumps() {
    let jwt = standard();
    let memory = Memory::new(10);
    let parts = head(&token(json!({})));
    let at = |now| ask(&jwt, &parts, &memory, now);
    let expired = Answer::Expired("the token has expired");
    assert!(matches!(at(now(NOW)), Answer::Known(_)));
    // The wall clock leaps ahead: what is remembered ends with it.
    assert_eq!(at(Now { boot: BootTime((NOW + 1) * 1_000_000_000), ..now(NOW + 9999) }), expired);
    // It leaps back by a year while time goes on: what is remembered ends by the other clock, and nothing else begins.
    let back = Now { boot: BootTime((NOW + 9999) * 1_000_000_000), ..now(NOW - 31_536_000) };
    let issued = head(&token(json!({"iat": NOW - 10})));
    let future = Answer::Refused("the token was issued in the future");
    assert_eq!(ask(&jwt, &issued, &memory, back), future);
    // At the ends of time nothing overflows.
    for seconds in [0, u64::MAX / 1_000_000_000_000] {
        let answer = verify_at(&jwt, &token(json!({"exp": u64::MAX})), seconds);
        assert!(answer.is_ok(), "{answer:?}");
    }
}

#[test]
fn refusals_say_nothing_of_the_token() {
    for bad in ["secret-part", "a.secret-part.c", "eyJzZWNyZXQtcGFydCI6MX0.e30.c2VjcmV0LXBhcnQ"] {
        let reason = verify(&standard(), bad).unwrap_err();
        assert!(!reason.contains("secret-part") && !reason.contains("eyJ"), "{reason}");
    }
    let shown = format!("{:?}", {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), SECRET).unwrap();
        in_folder(folder.path(), "secret: {file: secret}").unwrap()
    });
    assert!(!shown.contains("sixty-four"), "{shown}");
}

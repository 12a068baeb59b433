//! Published examples, character by character.

use super::*;

/// RFC 7515, appendix A: what most examples there say.
const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNv\
         bS9pc19yb290Ijp0cnVlfQ";
const EXPIRY: u64 = 1_300_819_380;

fn only(jwk: &str) -> Jwt {
    with(&json!({"keys": [serde_json::from_str::<Value>(jwk).unwrap()]}), "")
}

#[track_caller]
fn is_joes(jwt: &Jwt, header: &str, signature: &str) {
    let token = format!("{header}.{PAYLOAD}.{signature}");
    let identity = verify_at(jwt, &token, EXPIRY - 1).unwrap();
    assert_eq!(identity.claims["iss"], "joe");
    assert_eq!(identity.claims["http://example.com/is_root"], true);
    assert_eq!(verify_at(jwt, &token, EXPIRY + 30), Err("the token has expired"));
}

/// Signed, but by what says nothing about anybody.
#[track_caller]
fn is_signed(jwt: &Jwt, token: &str) {
    refused(jwt, token, "the token's claims are no plain JSON object");
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let changed =
        signature.replacen(&signature[..1], if signature.starts_with('A') { "B" } else { "A" }, 1);
    refused(jwt, &format!("{signed}.{changed}"), "the token's signature is wrong");
}

#[test]
fn rfc_7515_a_1_and_rfc_7519_3_1_hs256() {
    let jwt = only(
        "{\"kty\": \"oct\", \"k\": \"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T\
         -1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow\"}",
    );
    let header = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9";
    is_joes(&jwt, header, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
}

#[test]
fn rfc_7515_a_2_rs256() {
    let jwt = only(
        "{\"kty\": \"RSA\", \"e\": \"AQAB\", \"n\": \"ofgWCuLjybRlzo0tZWJjNiuSfb4\
         p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-y\
         RT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kp\
         aSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlx\
         vb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs9\
         1kzk2PAcDTW9gb54h4FRWyuXpoQ\"}",
    );
    let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4B\
         h-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZ\
         LgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_d\
         O--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6\
         LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    is_joes(&jwt, "eyJhbGciOiJSUzI1NiJ9", signature);
}

#[test]
fn rfc_7515_a_3_es256() {
    let jwt = only(
        "{\"kty\": \"EC\", \"crv\": \"P-256\", \"x\": \"f83OJ3D2xF1Bg8vub9tLe1gHM\
         zV76e8Tus9uPHvRVEU\", \"y\": \"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5\
         a0\"}",
    );
    let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKT\
         UJqPP3-Kg6NU1Q";
    is_joes(&jwt, "eyJhbGciOiJFUzI1NiJ9", signature);
}

#[test]
fn rfc_7515_a_4_es512() {
    let jwt = only(
        "{\"kty\": \"EC\", \"crv\": \"P-521\", \"x\": \"AekpBQ8ST8a8VcfVOTNl353vS\
         rDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk\", \"y\"\
         : \"ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0A\
         ZMaZmh9ubmf63e3kyMj2\"}",
    );
    is_signed(
        &jwt,
        "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi\
         70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZC\
         PEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn",
    );
}

#[test]
fn rfc_7515_a_5_and_rfc_7519_6_1_unsecured() {
    let jwt = with(&jwks(), "");
    let token = format!("eyJhbGciOiJub25lIn0.{PAYLOAD}.");
    assert_eq!(verify_at(&jwt, &token, EXPIRY - 1), Err("the token is not signed"));
}

#[test]
fn rfc_8037_a_4_ed25519() {
    let jwt = only(
        "{\"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": \"11qYAYKxCrfVS_7TyWQHOg\
         7hcvPapiMlrwIaaPcHURo\"}",
    );
    is_signed(
        &jwt,
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0J\
         zlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
    );
}

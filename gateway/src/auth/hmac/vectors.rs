//! Published and documented vectors: the keys of RFC 9421 (appendix B.1), and requests as docs/signatures.md has them.

/// `test-key-ed25519`.
pub(super) const ED25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----
";

/// `test-key-ecc-p256`.
pub(super) const P256: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf
w0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==
-----END PUBLIC KEY-----
";

/// `test-key-rsa-pss`.
pub(super) const RSA: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAr4tmm3r20Wd/PbqvP1s2
+QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct+Lh1GH45x28Rw3Ry53mm+
oAXjyQ86OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHq
gDsznjPFmTOtCEcN2Z1FpWgchwuYLPL+Wokqltd11nqqzi+bJ9cvSKADYdUAAN5W
Utzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4
aOT9v6d+nb4bnNkQVklLQ3fVAvJm+xdDOp9LCNCN48V2pnDOkFV6+U9nV5oyc6XI
2wIDAQAB
-----END PUBLIC KEY-----
";

/// `test-shared-secret`, in base64.
pub(super) const SHARED: &str =
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";

/// A signed request of appendix B, and the base that its signature is over.
pub(super) struct Published {
    pub(super) name: &'static str,
    pub(super) host: &'static str,
    pub(super) target: &'static str,
    pub(super) method: &'static str,
    pub(super) fields: &'static [(&'static str, &'static str)],
    pub(super) input: &'static str,
    pub(super) signature: &'static str,
    pub(super) base: &'static str,
}

/// The requests of appendix B.2 and the one of B.3.
pub(super) const PUBLISHED: &[Published] = &[
    Published {
        name: "B.2.1",
        host: "example.com",
        target: "/foo?param=Value&Pet=dog",
        method: "POST",
        fields: FIELDS,
        input: "sig-b21=();created=1618884473;keyid=\"test-key-rsa-pss\";nonce=\"b3k2pp5k7z-50gnwp.yemd\
        \"",
        signature: "sig-b21=:d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it\
        ++wgGxbtRxf8Udx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbz\
        R72rgFWhzx2VjBqJzsPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5W\
        Sb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q=\
        =:",
        base: "\"@signature-params\": ();created=1618884473;keyid=\"test-key-rsa-pss\";nonce=\"b3k2pp5k\
        7z-50gnwp.yemd\"",
    },
    Published {
        name: "B.2.2",
        host: "example.com",
        target: "/foo?param=Value&Pet=dog",
        method: "POST",
        fields: FIELDS,
        input: "sig-b22=(\"@authority\" \"content-digest\" \"@query-param\";name=\"Pet\");created=161888\
        4473;keyid=\"test-key-rsa-pss\";tag=\"header-example\"",
        signature: "sig-b22=:LjbtqUbfmvjj5C5kr1Ugj4PmLYvx9wVjZvD9GsTT4F7GrcQEdJzgI9qHxICagShLRiLMlAJjtq6N4CD\
        fKtjvuJyE5qH7KT8UCMkSowOB4+ECxCmT8rtAmj/0PIXxi0A0nxKyB09RNrCQibbUjsLS/2YyFYXEu4TRJQzRw1r\
        LEuEfY17SARYhpTlaqwZVtR8NV7+4UKkjqpcAoFqWFQh62s7Cl+H2fjBSpqfZUJcsIk4N6wiKYd4je2U/lankenQ\
        99PZfB4jY3I5rSV2DSBVkSFsURIjYErOs0tFTQosMTAoxk//0RoKUqiYY8Bh0aaUEb0rQl3/XaVe4bXTugEjHSw=\
        =:",
        base: "\"@authority\": example.com\n\"content-digest\": sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UF\
        ChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:\n\"@query-param\";name=\"Pet\
        \": dog\n\"@signature-params\": (\"@authority\" \"content-digest\" \"@query-param\";name\
        =\"Pet\");created=1618884473;keyid=\"test-key-rsa-pss\";tag=\"header-example\"",
    },
    Published {
        name: "B.2.3",
        host: "example.com",
        target: "/foo?param=Value&Pet=dog",
        method: "POST",
        fields: FIELDS,
        input: "sig-b23=(\"date\" \"@method\" \"@path\" \"@query\" \"@authority\" \"content-type\" \"con\
        tent-digest\" \"content-length\");created=1618884473;keyid=\"test-key-rsa-pss\"",
        signature: "sig-b23=:bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFke\
        Gt683+qRpRRU5p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7Ks\
        LNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF\
        8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZKEgM4cUA=\
        =:",
        base: "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@method\": POST\n\"@path\": /foo\n\"@query\": \
        ?param=Value&Pet=dog\n\"@authority\": example.com\n\"content-type\": application/json\n\
        \"content-digest\": sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYl\
        lu7BNNyealdVLvRwEmTHWXvJwew==:\n\"content-length\": 18\n\"@signature-params\": (\"date\" \
        \"@method\" \"@path\" \"@query\" \"@authority\" \"content-type\" \"content-digest\" \"c\
        ontent-length\");created=1618884473;keyid=\"test-key-rsa-pss\"",
    },
    Published {
        name: "B.2.5",
        host: "example.com",
        target: "/foo?param=Value&Pet=dog",
        method: "POST",
        fields: FIELDS,
        input: "sig-b25=(\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-share\
        d-secret\"",
        signature: "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:",
        base: "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@authority\": example.com\n\"content-type\": \
        application/json\n\"@signature-params\": (\"date\" \"@authority\" \"content-type\");crea\
        ted=1618884473;keyid=\"test-shared-secret\"",
    },
    Published {
        name: "B.2.6",
        host: "example.com",
        target: "/foo?param=Value&Pet=dog",
        method: "POST",
        fields: FIELDS,
        input: "sig-b26=(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-length\
        \");created=1618884473;keyid=\"test-key-ed25519\"",
        signature: "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5W\
        PpBKRCw==:",
        base: "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@method\": POST\n\"@path\": /foo\n\"@authorit\
        y\": example.com\n\"content-type\": application/json\n\"content-length\": 18\n\"@signatu\
        re-params\": (\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-l\
        ength\");created=1618884473;keyid=\"test-key-ed25519\"",
    },
    Published {
        name: "B.3",
        host: "service.internal.example",
        target: "/foo?param=Value&Pet=dog",
        method: "POST",
        fields: PROXIED,
        input: "ttrp=(\"@path\" \"@query\" \"@method\" \"@authority\" \"client-cert\");created=161888447\
        3;keyid=\"test-key-ecc-p256\"",
        signature: "ttrp=:xVMHVpawaAC/0SbHrKRs9i8I3eOs5RtTMGCWXm/9nvZzoHsIg6Mce9315T6xoklyy0yzhD9ah4JHRwMLOg\
        mizw==:",
        base: "\"@path\": /foo\n\"@query\": ?param=Value&Pet=dog\n\"@method\": POST\n\"@authority\": se\
        rvice.internal.example\n\"client-cert\": :MIIBqDCCAU6gAwIBAgIBBzAKBggqhkjOPQQDAjA6MRswGQ\
        YDVQQKDBJMZXQncyBBdXRoZW50aWNhdGUxGzAZBgNVBAMMEkxBIEludGVybWVkaWF0ZSBDQTAeFw0yMDAxMTQyMj\
        U1MzNaFw0yMTAxMjMyMjU1MzNaMA0xCzAJBgNVBAMMAkJDMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE8YnXXf\
        aUgmnMtOXU/IncWalRhebrXmckC8vdgJ1p5Be5F/3YC8OthxM4+k1M6aEAEFcGzkJiNy6J84y7uzo9M6NyMHAwCQ\
        YDVR0TBAIwADAfBgNVHSMEGDAWgBRm3WjLa38lbEYCuiCPct0ZaSED2DAOBgNVHQ8BAf8EBAMCBsAwEwYDVR0lBA\
        wwCgYIKwYBBQUHAwIwHQYDVR0RAQH/BBMwEYEPYmRjQGV4YW1wbGUuY29tMAoGCCqGSM49BAMCA0gAMEUCIBHda/\
        r1vaL6G3VliL4/Di6YK0Q6bMjeSkC3dFCOOB8TAiEAx/kHSB4urmiZ0NX5r5XarmPk0wmuydBVoU4hBVZ1yhk=:\
        \n\"@signature-params\": (\"@path\" \"@query\" \"@method\" \"@authority\" \"client-cert\
        \");created=1618884473;keyid=\"test-key-ecc-p256\"",
    },
];

const FIELDS: &[(&str, &str)] = &[
    ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
    ("content-type", "application/json"),
    (
        "content-digest",
        "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTH\
        WXvJwew==:",
    ),
    ("content-length", "18"),
];

const PROXIED: &[(&str, &str)] = &[
    ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
    ("content-type", "application/json"),
    ("content-length", "18"),
    (
        "client-cert",
        ":MIIBqDCCAU6gAwIBAgIBBzAKBggqhkjOPQQDAjA6MRswGQYDVQQKDBJMZXQncyBBdXRoZW50aWNhdGUxGzAZBgN\
        VBAMMEkxBIEludGVybWVkaWF0ZSBDQTAeFw0yMDAxMTQyMjU1MzNaFw0yMTAxMjMyMjU1MzNaMA0xCzAJBgNVBAM\
        MAkJDMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE8YnXXfaUgmnMtOXU/IncWalRhebrXmckC8vdgJ1p5Be5F/3\
        YC8OthxM4+k1M6aEAEFcGzkJiNy6J84y7uzo9M6NyMHAwCQYDVR0TBAIwADAfBgNVHSMEGDAWgBRm3WjLa38lbEY\
        CuiCPct0ZaSED2DAOBgNVHQ8BAf8EBAMCBsAwEwYDVR0lBAwwCgYIKwYBBQUHAwIwHQYDVR0RAQH/BBMwEYEPYmR\
        jQGV4YW1wbGUuY29tMAoGCCqGSM49BAMCA0gAMEUCIBHda/r1vaL6G3VliL4/Di6YK0Q6bMjeSkC3dFCOOB8TAiE\
        Ax/kHSB4urmiZ0NX5r5XarmPk0wmuydBVoU4hBVZ1yhk=:",
    ),
];

/// The base of appendix B.2.4, of an answer.
pub(super) const ANSWER_BASE: &str = "\"@status\": 200\n\
    \"content-type\": application/json\n\"content-digest\": sha-512=:mEWXI\
    S7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:\n\"\
    content-length\": 23\n\"@signature-params\": (\"@status\" \"content-type\" \"content-dig\
    est\" \"content-length\");created=1618884473;keyid=\"test-key-ecc-p256\"";

/// Its signature, in base64.
pub(super) const ANSWER_SIGNATURE: &str =
    "wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==";

/// The secret of the documented requests.
pub(super) const SECRET: &[u8] = b"an-example-secret-that-all-may-know";

/// A documented request: its key is `partner-1`, its timestamp 1700000000, its nonce 0123456789abcdef.
pub(super) struct Vector {
    pub(super) method: &'static str,
    pub(super) target: &'static str,
    pub(super) body: &'static str,
    pub(super) text: &'static str,
    pub(super) signature: &'static str,
}

/// The documented requests.
pub(super) const HEADERS: [Vector; 4] = [
    Vector {
        method: "GET",
        target: "/orders?page=2&sort=-date",
        body: "",
        text: "GET\n/orders?page=2&sort=-date\n1700000000\n0123456789abcdef\ne3b0c44298fc1c149afbf4c899\
        6fb92427ae41e4649b934ca495991b7852b855",
        signature: "ba9a9f3bc5d8a7bb4e75cfd033337da2b9971dd0107f2136d171fe902567a7dd",
    },
    Vector {
        method: "POST",
        target: "/orders",
        body: "{\"hello\": \"world\"}",
        text: "POST\n/orders\n1700000000\n0123456789abcdef\n5f8f04f6a3a892aaabbddb6cf273894493773960d4a\
        325b105fee46eef4304f1",
        signature: "e18efb89a37ff702e17e33f3c8f071130622f7570d185cab1f7344d044911b35",
    },
    Vector {
        method: "DELETE",
        target: "/a%20b/%C3%A4?q=1+1&q=%31",
        body: "",
        text: "DELETE\n/a%20b/%C3%A4?q=1+1&q=%31\n1700000000\n0123456789abcdef\ne3b0c44298fc1c149afbf4c\
        8996fb92427ae41e4649b934ca495991b7852b855",
        signature: "1f12f7ba8df11c8cbb9643c64ad5fa4c14d69c46bcb34f4ac99fc92772b112b6",
    },
    Vector {
        method: "PUT",
        target: "/?",
        body: "\n",
        text: "PUT\n/?\n1700000000\n0123456789abcdef\n01ba4719c80b6fe911b091a7c05124b64eeece964e09c058e\
        f8f9805daca546b",
        signature: "52ad76ec7e25f4011f51fb566ee04ed769d920e4050cd9357ad7090d2e700b90",
    },
];

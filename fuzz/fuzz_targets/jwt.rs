//! A token under a good signature is taken only for what another reader of JSON finds in it, too; one that nobody has
//! signed is not taken, whatever it is.
#![no_main]

use std::future::Future;
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gateway::auth::{Ask, Authenticators, Memories, authorize};
use gateway::base::address::ClientAddr;
use gateway::base::time::{BootTime, Moment, Now, UtcMillis};
use gateway::config::{Config, parse};
use http::Request;
use libfuzzer_sys::fuzz_target;

const SECRET: &[u8] = b"a secret of thirty-two bytes, or a few more";
const NOW: Now = Now { boot: BootTime(1_000_000_000), utc: UtcMillis(1_767_225_600_000) };

static GATE: LazyLock<(Config, Authenticators)> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("gateway-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a gateway with a secret");
    std::fs::write(folder.join("secret"), SECRET).expect("a gateway with a secret");
    let text = "listen: [{address: '127.0.0.1:80'}]\n\
                auth: {x: {jwt: {secret: {file: secret}, audience: api, remember: 0}}}\n\
                routes: [{match: {path: /}, auth: x, respond: {status: 204}}]";
    let config =
        parse(folder.join("gateway.yaml").to_str().expect("a gateway with a secret"), text)
            .expect("a gateway with a secret");
    let authenticators = Authenticators::new(&config, &Authenticators::default(), None)
        .expect("a gateway with a secret");
    std::fs::remove_dir_all(folder).expect("a gateway with a secret");
    (config, authenticators)
});

/// Claims of a token that is taken.
fn claims(token: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    let (config, authenticators) = &*GATE;
    let request = Request::get("/").header("authorization", format!("Bearer {token}"));
    let (head, ()) = request.body(()).ok()?.into_parts();
    let client = ClientAddr::believed([192, 0, 2, 1].into());
    let ask = Ask {
        head: &head,
        target: &head.uri,
        client,
        certificate: None,
        is_tls: true,
        body: None,
        moment: &Moment::at(NOW),
    };
    let memories: Memories = authenticators.memories(0);
    let access = config.routes[0].access.as_ref();
    let known = pin!(authorize(access, (authenticators, &memories), ask));
    // A secret is here: nothing is waited for.
    let Poll::Ready(known) = known.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits")
    };
    Some(known.ok()?.identity()?.claims.clone())
}

fuzz_target!(|parts: (&str, &[u8], &[u8])| {
    let (raw, header, payload) = parts;
    assert_eq!(claims(raw), None, "nobody has signed it");
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
    if let Some(claims) = claims(&token) {
        let header: serde_json::Value =
            serde_json::from_slice(header).expect("what was taken is there");
        assert_eq!(header["alg"], "HS256");
        assert!(header.get("crit").is_none());
        let payload: serde_json::Value =
            serde_json::from_slice(payload).expect("what was taken is there");
        assert_eq!(payload.as_object(), Some(&claims));
        assert!(claims["exp"].as_f64().expect("what was taken is there") > 1_767_225_569.0);
        assert!(
            claims["aud"] == "api"
                || claims["aud"]
                    .as_array()
                    .expect("what was taken is there")
                    .contains(&"api".into())
        );
    }
});

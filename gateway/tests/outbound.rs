//! The gateway's own calls against servers on loopback that answer to the byte what a test wants.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails, in its helpers too"
)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use gateway::outbound::{Bounds, Client, FetchError, Fetched, Form, Reason, Validators};
use http::{HeaderName, HeaderValue};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

/// Longer than anything here takes; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// A timeout that a test waits for.
const SHORT: Duration = Duration::from_millis(150);

const BOUNDS: Bounds =
    Bounds { connect_timeout: PATIENCE, total_timeout: PATIENCE, body_max_bytes: 1000 };

/// A server that answers every request by what `answer` makes of its head, and then closes the connection.
struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(mut answer: impl FnMut(&mut TcpStream, &str) + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        // It ends with the process of the tests.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let head = read_head(&mut stream);
                seen.lock().unwrap().push(head.clone());
                answer(&mut stream, &head);
            }
        });
        Self { address, heads }
    }

    fn saying(answer: &str) -> Self {
        let answer = answer.to_owned();
        Self::start(move |stream, _| drop(stream.write_all(answer.as_bytes())))
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.extend_from_slice(&byte);
    }
    String::from_utf8(head).unwrap()
}

/// Answers with a head that says how long `body` is.
fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

struct Outcome {
    result: Result<Fetched, FetchError>,
    peers: Vec<IpAddr>,
}

impl Outcome {
    #[track_caller]
    fn body(self) -> (String, Validators) {
        match self.result {
            Ok(Fetched::Body { bytes, validators }) => {
                (String::from_utf8(bytes).unwrap(), validators)
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn error(self) -> String {
        self.result.unwrap_err().to_string()
    }
}

async fn fetch_by(client: &Client, url: &str, validators: &Validators, bounds: Bounds) -> Outcome {
    let mut peers = Vec::new();
    let result = client.fetch(&url.parse().unwrap(), validators, bounds, &mut peers).await;
    Outcome { result, peers }
}

fn fetch(url: &str) -> Outcome {
    fetch_within(url, BOUNDS)
}

fn fetch_within(url: &str, bounds: Bounds) -> Outcome {
    run(fetch_by(&Client::new(None).unwrap(), url, &Validators::default(), bounds))
}

#[test]
fn a_body_its_validators_and_whom_it_came_from() {
    let headers = "ETag: \"v1\"\r\nLast-Modified: Fri, 22 Mar 2024 12:20:20 GMT\r\n";
    let server = Server::saying(&ok(headers, "192.0.2.1\n"));
    let outcome = fetch(&server.url("/drop.txt?key=k"));
    assert_eq!(outcome.peers, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    let (body, validators) = outcome.body();
    assert_eq!(body, "192.0.2.1\n");
    let modified = "Fri, 22 Mar 2024 12:20:20 GMT".to_owned();
    let expected = Validators { etag: Some("\"v1\"".to_owned()), last_modified: Some(modified) };
    assert_eq!(validators, expected);
    let head = server.heads.lock().unwrap().remove(0).to_ascii_lowercase();
    assert!(head.starts_with("get /drop.txt?key=k http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: {}\r\n", server.address)), "{head}");
    assert!(head.contains("\r\naccept-encoding: identity\r\n"), "{head}");
    assert!(!head.contains("\r\nif-"), "{head}");
}

#[test]
fn a_name_is_looked_up_and_a_body_may_end_with_its_connection() {
    let server = Server::saying("HTTP/1.0 200 OK\r\n\r\n192.0.2.1");
    let outcome = fetch(&format!("http://localhost:{}/", server.address.port()));
    assert!(outcome.peers.contains(&IpAddr::from(Ipv4Addr::LOCALHOST)), "{:?}", outcome.peers);
    assert_eq!(outcome.body().0, "192.0.2.1");
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n1.2\r\n4\r\n.3.4\r\n0\r\n\r\n";
    assert_eq!(fetch(&Server::saying(chunked).url("/")).body().0, "1.2.3.4");
}

#[test]
fn the_same_version_is_not_sent_again() {
    let server = Server::start(|stream, head| {
        let same = head.to_ascii_lowercase().contains("\r\nif-none-match: \"v1\"\r\n");
        let answer =
            if same { "HTTP/1.1 304 Not Modified\r\n\r\n" } else { "HTTP/1.1 500 No\r\n\r\n" };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let client = Client::new(None).unwrap();
    let validators = Validators { etag: Some("\"v1\"".to_owned()), last_modified: None };
    let outcome = run(fetch_by(&client, &server.url("/"), &validators, BOUNDS));
    assert_eq!(outcome.result.unwrap(), Fetched::NotModified);
    // Nobody asked, so it is no answer.
    let server = Server::saying("HTTP/1.1 304 Not Modified\r\n\r\n");
    let url = server.url("/");
    assert_eq!(fetch(&url).error(), format!("{url} answered 304 Not Modified"));
}

#[test]
fn what_is_no_list_is_an_error_that_says_so() {
    let says = |answer: &str| {
        let server = Server::saying(answer);
        let error = fetch(&server.url("/drop.txt?key=secret")).error();
        let url = server.url("/drop.txt?... ");
        error.strip_prefix(&url).unwrap_or_else(|| panic!("{error}")).to_owned()
    };
    let status = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(says(status), "answered 500 Internal Server Error");
    assert_eq!(
        says(&ok("Content-Type: Text/HTML; charset=utf-8\r\n", "<html>")),
        "answered with a web page (text/html) where data should be"
    );
    assert!(says(&ok("Content-Encoding: gzip\r\n", "\u{1f}")).contains("the encoding gzip"));
    assert_eq!(says(&ok("", "")), "answered with nothing");
    assert_eq!(says(&ok("", " \r\n")), "answered with nothing");
    assert!(says("nonsense\r\n\r\n").starts_with("broke off: "));
    assert!(says("").starts_with("broke off: "));
    let head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(says(&head).starts_with("broke off: "));
}

#[test]
fn a_body_has_a_bound_whatever_is_declared() {
    let too_large = "answered with more than 1000 bytes";
    // Refused by its head alone: the body never comes.
    let server = Server::start(|stream, _| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        // Until the client goes.
        drop(stream.read(&mut [0]));
    });
    assert!(fetch(&server.url("/")).error().ends_with(too_large));
    let server = Server::start(|stream, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while stream.write_all(b"192.0.2.1\n").is_ok() {}
    });
    assert!(fetch(&server.url("/")).error().ends_with(too_large));
    let server = Server::saying("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n192.0.2.1\n");
    let outcome = fetch(&server.url("/"));
    assert!(matches!(outcome.result.unwrap_err().reason, Reason::Broken(_)));
    let exactly = "x".repeat(1000);
    assert_eq!(fetch(&Server::saying(&ok("", &exactly)).url("/")).body().0, exactly);
}

#[test]
fn a_server_that_hangs_is_left() {
    let hang = |head: &'static str| {
        Server::start(move |stream, _| {
            stream.write_all(head.as_bytes()).unwrap();
            drop(stream.read(&mut [0]));
        })
    };
    let bounds = Bounds { total_timeout: SHORT, ..BOUNDS };
    for head in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1"] {
        let url = hang(head).url("/");
        let outcome = fetch_within(&url, bounds);
        assert_eq!(outcome.peers, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
        assert_eq!(outcome.error(), format!("{url} did not answer in full within 150ms"));
    }
    // It takes connections and does not speak TLS.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("https://{}/", silent.local_addr().unwrap());
    let (folder, _) = authority();
    let client = Client::new(Some(&folder.path().join("ca.pem"))).unwrap();
    let bounds = Bounds { connect_timeout: SHORT, ..BOUNDS };
    let outcome = run(fetch_by(&client, &url, &Validators::default(), bounds));
    assert_eq!(outcome.error(), format!("{url} did not connect within 150ms"));
    let address = silent.local_addr().unwrap();
    drop(silent);
    let error = fetch(&format!("http://{address}/")).error();
    assert!(
        error.contains(&format!("cannot be reached at {address}: Connection refused")),
        "{error}"
    );
}

#[test]
fn redirects_are_followed_three_times() {
    let server = Server::start(|stream, head| {
        let step: u32 = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        let answer = match step {
            0 => ok("", "192.0.2.1"),
            step => format!("HTTP/1.1 302 Found\r\nLocation: {}\r\n\r\n", step - 1),
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    assert_eq!(fetch(&server.url("/3")).body().0, "192.0.2.1");
    let error = fetch(&server.url("/4")).error();
    let expected = format!("{} (redirected to {})", server.url("/4"), server.url("/0"));
    assert_eq!(error, format!("{expected} redirects more than 3 times"));
    let nowhere = Server::saying("HTTP/1.1 301 Moved Permanently\r\n\r\n");
    assert!(fetch(&nowhere.url("/")).error().contains("301 Moved Permanently without a Location"));
}

/// A folder with `ca.pem`, and a server for `localhost` that it vouches for.
fn authority() -> (tempfile::TempDir, TlsAcceptor) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    (folder, TlsAcceptor::from(Arc::new(config)))
}

/// Asks a TLS server for `localhost`, which the client trusts or does not, and which ends TLS as it should or breaks
/// off.
fn fetch_by_tls(host: &str, trusted: bool, answer: &str, orderly: bool) -> Outcome {
    let (folder, acceptor) = authority();
    let (other, _) = authority();
    let ca = if trusted { folder.path() } else { other.path() }.join("ca.pem");
    let client = Client::new(Some(&ca)).unwrap();
    run(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{host}:{}/", listener.local_addr().unwrap().port());
        let validators = Validators::default();
        let serve = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(tcp).await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            if orderly {
                stream.shutdown().await.unwrap();
            }
        };
        let (outcome, ()) = tokio::join!(fetch_by(&client, &url, &validators, BOUNDS), serve);
        outcome
    })
}

#[test]
fn tls_is_checked() {
    let answer = ok("", "192.0.2.1");
    assert_eq!(fetch_by_tls("localhost", true, &answer, true).body().0, "192.0.2.1");
    let stranger = fetch_by_tls("localhost", false, &answer, true).error();
    assert!(stranger.contains("cannot be trusted: invalid peer certificate"), "{stranger}");
    let misnamed = fetch_by_tls("127.0.0.1", true, &answer, true).error();
    assert!(misnamed.contains("cannot be trusted: invalid peer certificate"), "{misnamed}");
    // Without a length only the end of TLS says that nobody cut it off.
    let endless = "HTTP/1.1 200 OK\r\n\r\n192.0.2.1";
    assert_eq!(fetch_by_tls("localhost", true, endless, true).body().0, "192.0.2.1");
    let cut = fetch_by_tls("localhost", true, endless, false).error();
    assert!(cut.contains("broke off"), "{cut}");
    let down = "HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\n\r\n";
    let down = fetch_by_tls("localhost", true, down, true).error();
    assert!(down.ends_with("redirects from https to http, which anybody on the way can change"));
}

#[test]
fn a_file_of_authorities_that_is_none_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let error = || Client::new(Some(&path)).unwrap_err().to_string();
    assert!(error().contains("ca.pem cannot be used: No such file"), "{}", error());
    std::fs::write(&path, "no certificate").unwrap();
    assert!(error().contains("write them as PEM"), "{}", error());
    std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
    assert!(error().contains("longer than 1048576 bytes"), "{}", error());
}

fn post(url: &str, bounds: Bounds) -> Result<Vec<u8>, FetchError> {
    let authorization = HeaderValue::from_static("Basic YTpi");
    let form = Form { body: "token=secret", authorization: Some(&authorization) };
    let client = Client::new(None).unwrap();
    let mut peers = Vec::new();
    let posted = run(client.post(&url.parse().unwrap(), form, bounds, &mut peers));
    assert!(peers.is_empty() || peers == [IpAddr::from(Ipv4Addr::LOCALHOST)], "{peers:?}");
    posted
}

#[test]
fn a_form_is_sent_with_who_sends_it_and_its_answer_returned() {
    let server = Server::start(|stream, _| {
        let mut form = [0; 12];
        stream.read_exact(&mut form).unwrap();
        let answer = ok("Content-Type: application/json\r\n", &String::from_utf8_lossy(&form));
        drop(stream.write_all(answer.as_bytes()));
    });
    assert_eq!(post(&server.url("/introspect"), BOUNDS).unwrap(), b"token=secret");
    let head = server.heads.lock().unwrap().remove(0).to_ascii_lowercase();
    assert!(head.starts_with("post /introspect http/1.1\r\n"), "{head}");
    for field in [
        "content-type: application/x-www-form-urlencoded",
        "content-length: 12",
        "authorization: basic yt",
        "accept-encoding: identity",
    ] {
        assert!(head.contains(&format!("\r\n{field}")), "{field}: {head}");
    }
}

#[test]
fn a_form_goes_to_nobody_else_and_its_answer_is_bounded() {
    let other = Server::saying(&ok("", "{}"));
    let location = format!("Location: {}\r\n", other.url("/"));
    for status in ["301 -", "302 -", "307 -", "308 -"] {
        let server =
            Server::saying(&format!("HTTP/1.1 {status}\r\n{location}Content-Length: 0\r\n\r\n"));
        let error = post(&server.url("/"), BOUNDS).unwrap_err();
        assert!(matches!(error.reason, Reason::SecretRedirect), "{error}");
    }
    assert!(other.heads.lock().unwrap().is_empty());
    let error = |answer: &str| post(&Server::saying(answer).url("/"), BOUNDS).unwrap_err();
    assert!(matches!(error(&ok("", &"x".repeat(1001))).reason, Reason::TooLarge(1000)));
    assert!(matches!(error(&ok("", " ")).reason, Reason::Empty));
    assert!(matches!(error(&ok("Content-Type: text/html\r\n", "{}")).reason, Reason::Html(_)));
    assert!(matches!(error("HTTP/1.1 304 -\r\n\r\n").reason, Reason::Status(_)));
    assert!(matches!(
        error("HTTP/1.1 401 -\r\nContent-Length: 0\r\n\r\n").reason,
        Reason::Status(_)
    ));
    let silent = Server::start(|stream, _| drop(stream.read_to_end(&mut Vec::new())));
    let error = post(&silent.url("/"), Bounds { total_timeout: SHORT, ..BOUNDS }).unwrap_err();
    assert!(matches!(error.reason, Reason::Timeout(..)), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn a_key_is_sent_with_a_question_and_to_nobody_else() {
    let get = |url: &str| {
        let mut key = HeaderValue::from_static("s3cret");
        key.set_sensitive(true);
        let field = (HeaderName::from_static("x-api-key"), &key);
        let mut peers = Vec::new();
        let client = Client::new(None).unwrap();
        let got = run(client.get_as(&url.parse().unwrap(), field, BOUNDS, &mut peers));
        assert_eq!(peers, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
        got
    };
    let server = Server::saying(&ok("", "{}"));
    assert_eq!(get(&server.url("/v1?a=b")).unwrap(), b"{}");
    let head = server.heads.lock().unwrap().remove(0).to_ascii_lowercase();
    assert!(head.starts_with("get /v1?a=b http/1.1\r\n"), "{head}");
    for field in ["x-api-key: s3cret", "accept-encoding: identity", "host: 127.0.0.1:"] {
        assert!(head.contains(&format!("\r\n{field}")), "{field}: {head}");
    }
    let location = format!("Location: {}\r\n", server.url("/"));
    let other = Server::saying(&format!("HTTP/1.1 302 -\r\n{location}Content-Length: 0\r\n\r\n"));
    let error = get(&other.url("/")).unwrap_err();
    assert!(matches!(error.reason, Reason::SecretRedirect), "{error}");
    assert!(server.heads.lock().unwrap().is_empty());
    let forbidden = Server::saying("HTTP/1.1 403 -\r\nContent-Length: 0\r\n\r\n");
    let error = get(&forbidden.url("/")).unwrap_err().to_string();
    assert!(error.contains("403") && !error.contains("s3cret"), "{error}");
}

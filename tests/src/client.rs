//! A small blocking HTTP/1.1 client: it can be bound to a source address and never waits for ever.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use socket2::{Domain, Socket, Type};

use crate::Result;
use crate::namespace::Namespace;

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header fields in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first field with this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects from inside `namespace`, from the address `source` if one is given. `patience` bounds the connecting
    /// and each later wait.
    pub fn connect(
        namespace: &Namespace,
        source: Option<IpAddr>,
        target: SocketAddr,
        patience: Duration,
    ) -> Result<Self> {
        namespace.enter(|| Self::connect_here(source, target, patience))?
    }

    /// Connects from the namespace of the caller.
    pub fn connect_here(
        source: Option<IpAddr>,
        target: SocketAddr,
        patience: Duration,
    ) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        if let Some(source) = source {
            socket
                .bind(&SocketAddr::new(source, 0).into())
                .with_context(|| format!("cannot send from {source}"))?;
        }
        socket
            .connect_timeout(&target.into(), patience)
            .with_context(|| format!("cannot connect to {target} from {source:?}"))?;
        socket.set_tcp_nodelay(true)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a GET request and reads the answer.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes())?;
        self.receive()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result {
        self.stream.get_mut().write_all(bytes).context("cannot send a request")
    }

    /// Reads so many bytes, whatever the other end does after them.
    pub fn read(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).context("the connection ended before")?;
        Ok(bytes)
    }

    /// Reads until the other end closes the connection.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).context("the connection was not closed")?;
        Ok(bytes)
    }

    /// Reads one answer.
    pub fn receive(&mut self) -> Result<Response> {
        let status_line = line(&mut self.stream)?;
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("not a status line: {status_line:?}"))?;
        let headers = fields(&mut self.stream)?;
        let mut response = Response { status, headers, body: Vec::new() };
        if status >= 200 && status != 204 && status != 304 {
            response.body = body(&mut self.stream, &response)?;
        }
        Ok(response)
    }
}

/// One request on a connection of its own.
pub fn get(namespace: &Namespace, source: Option<IpAddr>, target: SocketAddr) -> Result<Response> {
    Client::connect(namespace, source, target, Duration::from_secs(2))?.get("/hello")
}

/// Reads header fields up to the empty line, names in lower case.
pub(crate) fn fields(stream: &mut impl BufRead) -> Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let field = line(stream)?;
        if field.is_empty() {
            return Ok(fields);
        }
        let (name, value) =
            field.split_once(':').with_context(|| format!("not a header field: {field:?}"))?;
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Reads a line without its end.
pub(crate) fn line(stream: &mut impl BufRead) -> Result<String> {
    const LINE_BYTES_MAX: u64 = 64 * 1024;
    let mut line = String::new();
    stream.take(LINE_BYTES_MAX).read_line(&mut line).context("no answer")?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.strip_suffix('\r').unwrap_or(line).to_owned()),
        None => bail!("the connection ended after {line:?}"),
    }
}

/// Reads a body in chunks to its end.
pub(crate) fn chunked(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(stream)?;
        let size = u64::from_str_radix(size.split(';').next().unwrap_or("").trim(), 16)
            .with_context(|| format!("not a chunk size: {size:?}"))?;
        stream.take(size).read_to_end(&mut body)?;
        line(stream)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn body(stream: &mut impl BufRead, response: &Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if response.header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        return chunked(stream);
    }
    match response.header("content-length") {
        Some(length) => {
            let length = length.parse().with_context(|| format!("not a length: {length:?}"))?;
            stream.take(length).read_to_end(&mut body)?;
        }
        None => {
            stream.read_to_end(&mut body)?;
        }
    }
    Ok(body)
}

//! A server and clients on a network in memory, with peers that do as they are told, and a clock of their own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use uringvpn::control::config::IoChoice;
use uringvpn::control::endpoint::HostPort;
use uringvpn::control::expose::{ClientConfig, How, ServerConfig, SharedSecret};
use uringvpn::expose::client::{Addresses, Client};
use uringvpn::expose::news::News;
use uringvpn::expose::server::Server;
use uringvpn::io::tcp::datagrams::{Endpoint, Udp};
use uringvpn::io::tcp::fake::{Fake, Network};
use uringvpn::io::tcp::{Close, Event, Id, Options, Patience, Tcp, Wait};
use uringvpn::proto::rng::Rng;
use uringvpn::stats::exposed::public_port::Protocol;
use uringvpn::time::Span;

pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)), 80);
const STEP: Span = Span::from_millis(10);

pub fn control() -> SocketAddr {
    SocketAddr::new(HOST, 7835)
}

pub fn public(port: u16) -> SocketAddr {
    SocketAddr::new(HOST, port)
}

const HOW: How = How {
    several: false,
    io: IoChoice::Auto,
    json: false,
    drain: Span::from_secs(10),
    through: None,
    name: None,
    metrics: None,
};

pub fn server_config() -> ServerConfig {
    ServerConfig {
        control: control(),
        tunnels: HOST,
        ports: 1024..=65535,
        udp: true,
        secret: None,
        allow_clients: Vec::new(),
        allow_visitors: Vec::new(),
        ports_max: 1000,
        connections_max: 1000,
        connections_per_client_max: 1000,
        callers_max: 1000,
        lease: Span::from_secs(60),
        idle: None,
        half_open: None,
        how: HOW,
    }
}

pub fn client_config() -> ClientConfig {
    ClientConfig {
        local: HostPort { host: "service".into(), port: SERVICE.port() },
        protocol: Protocol::Tcp,
        server: HostPort { host: "server".into(), port: control().port() },
        port: 0,
        proxy_protocol: false,
        mux: false,
        secret: None,
        idle: None,
        half_open: None,
        how: HOW,
    }
}

/// Of a client whose visitors share one connection.
pub fn mux_config() -> ClientConfig {
    ClientConfig { mux: true, ..client_config() }
}

/// Both ways in which visitors may come to a client, and how many sockets a server has for it at rest.
pub fn both_ways() -> [(ClientConfig, usize); 2] {
    [(client_config(), 3), (mux_config(), 4)]
}

pub fn udp_config(port: u16) -> ClientConfig {
    ClientConfig { protocol: Protocol::Udp, port, ..client_config() }
}

pub fn secret(text: &str) -> Option<SharedSecret> {
    Some(SharedSecret::new(text))
}

/// One connection of a [`Peer`].
#[derive(Debug, Default)]
pub struct Conn {
    pub got: Vec<u8>,
    pub ended: bool,
    pub failed: Option<Errno>,
    /// Bytes of sends that have ended.
    pub sends_ended: usize,
    /// Reads nothing.
    pub deaf: bool,
}

/// Whoever is not ours: a visitor, the service, a stock client, an enemy.
pub struct Peer {
    pub tcp: Fake,
    pub conns: Vec<(Id, Conn)>,
    /// Connections that come in read nothing.
    pub deaf: bool,
    /// Datagrams that came: where, from whom, and what.
    pub datagrams: Vec<(Id, SocketAddr, Vec<u8>)>,
    /// Sends every datagram back.
    pub echoes: bool,
    /// Datagrams that found nobody.
    pub undelivered: usize,
}

const ANY: Options = Options {
    patience: Patience {
        idle: Span::from_secs(1),
        interval: Span::from_secs(1),
        probes: 1,
        unacknowledged: None,
    },
    device: None,
};

impl Peer {
    pub fn new(network: &Network) -> Peer {
        Peer {
            tcp: network.node(),
            conns: Vec::new(),
            deaf: false,
            datagrams: Vec::new(),
            echoes: false,
            undelivered: 0,
        }
    }

    pub fn connect(&mut self, to: SocketAddr) -> Id {
        let id = self.tcp.connect(to, &ANY).unwrap();
        self.conns.push((id, Conn::default()));
        id
    }

    pub fn listen(&mut self, at: SocketAddr) -> Id {
        let (listener, _) = self.tcp.listen(at, &ANY).unwrap();
        self.tcp.accept(listener);
        listener
    }

    /// A socket for datagrams to `to`, and from there.
    pub fn datagrams_to(&mut self, to: SocketAddr) -> Id {
        self.tcp.associate(to).unwrap()
    }

    pub fn serve_datagrams(&mut self, at: SocketAddr) -> Id {
        self.tcp.bind(at).unwrap().0
    }

    pub fn send_datagram(&mut self, id: Id, payload: &[u8]) {
        self.tcp.send_datagram(id, None, payload).unwrap();
    }

    pub fn answer(&mut self, id: Id, to: SocketAddr, payload: &[u8]) {
        self.tcp.send_datagram(id, Some(Endpoint { remote: to, local: None }), payload).unwrap();
    }

    /// The datagrams that came to `id`.
    pub fn came_to(&self, id: Id) -> Vec<&[u8]> {
        self.datagrams.iter().filter(|(to, ..)| *to == id).map(|(.., payload)| &payload[..]).collect()
    }

    pub fn conn(&self, id: Id) -> &Conn {
        &self.conns.iter().find(|(other, _)| *other == id).unwrap().1
    }

    fn conn_mut(&mut self, id: Id) -> Option<&mut Conn> {
        self.conns.iter_mut().find(|(other, _)| *other == id).map(|(_, conn)| conn)
    }

    pub fn send(&mut self, id: Id, bytes: &[u8]) {
        self.tcp.send_bytes(id, bytes);
    }

    pub fn end(&mut self, id: Id) {
        self.tcp.shut_down(id);
    }

    pub fn reset(&mut self, id: Id) {
        self.tcp.close(id, Close::Reset);
    }

    /// Closes a datagram socket.
    pub fn leave(&mut self, id: Id) {
        self.tcp.close(id, Close::Finish);
    }

    pub fn stop_reading(&mut self, id: Id) {
        self.conn_mut(id).unwrap().deaf = true;
    }

    pub fn read_again(&mut self, id: Id) {
        self.conn_mut(id).unwrap().deaf = false;
        self.tcp.receive(id);
    }

    /// As a text, what came on `id`.
    pub fn text(&self, id: Id) -> String {
        String::from_utf8_lossy(&self.conn(id).got).into_owned()
    }

    /// How many whole frames came on `id`.
    pub fn frames(&self, id: Id) -> usize {
        self.conn(id).got.iter().filter(|byte| **byte == 0).count()
    }

    /// Whether the other end of `id` is no more.
    pub fn over(&self, id: Id) -> bool {
        let conn = self.conn(id);
        conn.ended || conn.failed.is_some()
    }

    fn step(&mut self) {
        let mut events = Vec::new();
        self.tcp.turn(Wait::Not, &mut events).unwrap();
        for event in events {
            match event {
                Event::Accepted { id, .. } => {
                    self.conns.push((id, Conn { deaf: self.deaf, ..Conn::default() }));
                    self.listen_to(id);
                }
                Event::Connected(id) => self.listen_to(id),
                Event::Received { id, chunk } => {
                    if let Some(conn) = self.conn_mut(id) {
                        conn.got.extend_from_slice(&chunk);
                    }
                    self.tcp.give_back(chunk);
                    self.listen_to(id);
                }
                Event::Ended(id) => self.conn_mut(id).unwrap().ended = true,
                Event::Failed { id, error } => self.conn_mut(id).unwrap().failed = Some(error),
                Event::Sent(id) => self.conn_mut(id).unwrap().sends_ended += 1,
                Event::Datagram { id, from, chunk } => {
                    if self.echoes {
                        self.tcp.send_datagram(id, Some(from), &chunk).unwrap();
                    }
                    self.datagrams.push((id, from.remote, chunk.to_vec()));
                    self.tcp.give_back(chunk);
                }
                Event::Undelivered { .. } => self.undelivered += 1,
                Event::Passed { .. }
                | Event::AcceptFailed { .. }
                | Event::Overflown { .. }
                | Event::Woken => {}
            }
        }
    }

    fn listen_to(&mut self, id: Id) {
        if !self.conn(id).deaf {
            self.tcp.receive(id);
        }
    }
}

/// All of them.
pub struct World {
    pub network: Network,
    pub server: Option<Server<Fake>>,
    pub clients: Vec<Client<Fake>>,
    pub peer: Peer,
    pub service: Peer,
    pub news: Vec<News>,
    /// Where clients look for the service.
    pub local: Vec<SocketAddr>,
    seed: u8,
}

impl World {
    /// A server, a service, and nobody else.
    pub fn new(seed: u8, config: ServerConfig) -> World {
        let network = Network::new(seed);
        let mut service = Peer::new(&network);
        service.listen(SERVICE);
        let peer = Peer::new(&network);
        let mut world = World {
            network,
            server: None,
            clients: Vec::new(),
            peer,
            service,
            news: Vec::new(),
            local: vec![SERVICE],
            seed,
        };
        world.start_server(config);
        world
    }

    pub fn start_server(&mut self, config: ServerConfig) {
        let rng = self.rng();
        self.server = Some(Server::new(self.network.node(), config, rng).unwrap());
    }

    /// The server's process ends: every socket of it is closed.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.tcp().close_all();
    }

    pub fn start_client(&mut self, config: ClientConfig) -> usize {
        let rng = self.rng();
        self.clients.push(Client::new(self.network.node(), config, rng));
        self.clients.len() - 1
    }

    /// A client's process ends.
    pub fn kill_client(&mut self, index: usize) {
        self.clients.remove(index).tcp().close_all();
    }

    /// A client, and the public port it has.
    pub fn public_client(&mut self, config: ClientConfig) -> u16 {
        let mux = config.mux;
        let index = self.start_client(config);
        self.until("the port is public", |world| world.clients[index].public_port().is_some());
        if mux {
            self.until("visitors share a connection", |world| {
                world.heard(|news| matches!(news, News::Carried { .. }))
            });
        }
        self.clients[index].public_port().unwrap()
    }

    fn rng(&mut self) -> Rng {
        self.seed = self.seed.wrapping_add(1);
        Rng::from_seed([self.seed; 32])
    }

    /// Everybody has a turn; time goes on a little.
    pub fn step(&mut self) {
        if let Some(server) = &mut self.server {
            server.turn(None).unwrap();
            self.news.extend(server.take_news());
        }
        for client in &mut self.clients {
            if client.look_up() {
                client.found(Ok(Addresses { server: vec![control()], local: self.local.clone() }));
            }
            client.turn(None).unwrap();
            self.news.extend(client.take_news());
        }
        self.peer.step();
        self.service.step();
        self.network.advance_to(self.network.now() + STEP);
    }

    /// Goes on until `ready`, for a hundred seconds at most.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut ready: impl FnMut(&mut World) -> bool) {
        for _ in 0..10_000 {
            if ready(self) {
                return;
            }
            self.step();
        }
        panic!("waited in vain for: {what}; {:#?}", self.news);
    }

    /// Goes on for `span`.
    pub fn pass(&mut self, span: Span) {
        let end = self.network.now() + span;
        while self.network.now() < end {
            self.step();
        }
    }

    /// Sends and waits for what comes back.
    pub fn ask(&mut self, to: SocketAddr, bytes: &[u8]) -> Id {
        let id = self.peer.connect(to);
        self.peer.send(id, bytes);
        id
    }

    /// What of the server is open beside its listeners.
    pub fn server_sockets(&mut self) -> usize {
        self.server.as_mut().unwrap().tcp().open()
    }

    pub fn buffers_home(&mut self) -> bool {
        let server = self.server.iter_mut().all(|server| server.tcp().buffers_home());
        server && self.clients.iter_mut().all(|client| client.tcp().buffers_home())
    }

    pub fn heard(&self, wanted: impl Fn(&News) -> bool) -> bool {
        self.news.iter().any(wanted)
    }
}

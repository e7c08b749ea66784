//! What systemd is told: `sd_notify(3)`, a datagram to the socket that it names.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The service manager, where there is one that listens.
pub(crate) struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants a sign of life: half of what it waits for one.
    watchdog: Option<Duration>,
    last: Mutex<Instant>,
    /// What was said last: the same is not said twice.
    status: Mutex<String>,
}

impl Notify {
    pub(crate) fn from_env() -> Self {
        let named = std::env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty());
        let socket = named.and_then(|name| {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(&name),
            };
            let socket = UnixDatagram::unbound().ok()?;
            // A manager that hangs must not take this with it.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address.ok()?))
        });
        let is_ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|micros| micros.parse().ok());
        let watchdog = micros.filter(|_| is_ours).map(|micros: u64| Duration::from_micros(micros / 2));
        Self { socket, watchdog, last: Mutex::new(Instant::now()), status: Mutex::default() }
    }

    /// Everything is set up.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// One line about what is being done.
    pub(crate) fn status(&self, text: &str) {
        let mut last = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != text {
            text.clone_into(&mut last);
            self.send(&format!("STATUS={}", text.replace('\n', " ")));
        }
    }

    /// It is coming to its end.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// A sign of life, if it is time for one.
    pub(crate) fn alive(&self) {
        let Some(every) = self.watchdog else { return };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= every {
            *last = Instant::now();
            self.send("WATCHDOG=1");
        }
    }

    /// Nobody is told where this fails: there is nobody.
    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

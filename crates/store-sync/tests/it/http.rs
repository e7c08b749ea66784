//! A plain web server over the folder: enough to pull from, and nothing more.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use model_store::exit;
use store_sync::{Address, Remote};

use crate::world::{World, assert_refused, assert_sound, current, options, publish_lively, pull, push};

/// Serves files, and ranges of them, until the process ends.
fn serve(folder: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || while answer(&client, &folder).is_some() {});
        }
    });
    at
}

fn answer(mut client: &TcpStream, folder: &Path) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let headers: Vec<_> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?.strip_prefix("/files/")?);
    let range = headers.iter().find_map(|line| {
        let (first, last) = line
            .to_ascii_lowercase()
            .strip_prefix("range: bytes=")?
            .split_once('-')
            .map(|(first, last)| (first.parse::<usize>(), last.parse::<usize>()))?;
        Some((first.ok()?, last.ok()?))
    });
    let (status, more, body) = match (method, fs::read(folder.join(path)), range) {
        ("GET" | "HEAD", Ok(bytes), None) => ("200 OK", String::new(), bytes),
        ("GET", Ok(bytes), Some((first, last))) if first < bytes.len() => {
            let last = last.min(bytes.len() - 1);
            let more = format!("content-range: bytes {first}-{last}/{}\r\n", bytes.len());
            ("206 Partial Content", more, bytes[first..=last].to_vec())
        }
        ("GET", Ok(_), Some(_)) => ("416 Range Not Satisfiable", String::new(), Vec::new()),
        ("GET" | "HEAD", Err(_), _) => ("404 Not Found", String::new(), Vec::new()),
        _ => ("405 Method Not Allowed", String::new(), Vec::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}\r\n", body.len());
    client.write_all(head.as_bytes()).ok()?;
    if method != "HEAD" {
        client.write_all(&body).ok()?;
    }
    Some(())
}

#[test]
fn a_mirror_is_pulled_from_and_not_pushed_to() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    for (name, seed) in [("scout/v1", 1), ("scout/v2", 2)] {
        publish_lively(&here, name, seed);
        push(&world.remote(), &here, name).unwrap();
    }
    let at = serve(world.bucket());
    let open = |path: &str| {
        Remote::open(Address::parse(&format!("http://{at}/{path}")).unwrap(), options()).unwrap()
    };
    let mirror = open("files");
    let pulled = pull(&mirror, &there, "scout").unwrap();
    assert_eq!((pulled.received_bytes, pulled.serial), (900_013, Some(2)));
    assert_eq!(current(&there, "scout").as_deref(), Some("v2"));
    assert_sound("mirror", &there, "scout/v2");
    assert_refused("a push", push(&mirror, &here, "scout/v1"), exit::USAGE, "for reading only");
    assert_refused("no agent", pull(&mirror, &there, "memory"), exit::NOT_FOUND, "memory");
    // A list is what such a server does not have; it says so, and does not say that there are no agents.
    assert_refused("a list", mirror.agents(), exit::REMOTE, "could not list");
    assert_refused("elsewhere", pull(&open("files/agents"), &there, "scout"), exit::NOT_FOUND, "store.json");
}

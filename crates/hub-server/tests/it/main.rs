//! The command `hub-server` as a process: what it prints, serves and refuses.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use model_store::{FinalizeOptions, ModelStore};
use serde_json::Value;

/// A server, which ends with this value.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hub-server"))
            .args(arguments)
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").unwrap().to_owned();
        Self { child, address }
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        ask(&self.address, method, path, headers)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n").unwrap();
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n").unwrap();
    }
    stream.write_all(b"\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let headers = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, headers, body: answer[end + 4..].to_vec() }
}

fn models(folder: &Path) {
    for (path, bytes) in [
        ("acme/tiny/config.json", "{}"),
        ("acme/tiny/model.safetensors", "0123456789"),
        ("acme/tiny/1_Pooling/config.json", "{ }"),
        ("acme/tiny/.git/config", "secret"),
        ("acme/tiny@v2/config.json", "{\"second\": true}"),
        ("gpt2/config.json", "{}"),
        ("acme/secret/config.json", "{}"),
    ] {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_folder_is_served() {
    let scratch = tempfile::tempdir().unwrap();
    models(scratch.path());
    std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("acme/tiny/passwd.json")).unwrap();
    let server = Running::start(&["--folder", scratch.path().to_str().unwrap()]);
    let check = |path: &str, status: u16, body: Option<&str>| {
        let answer = server.get(path);
        assert_eq!(answer.status, status, "{path}: {}", answer.headers);
        if let Some(body) = body {
            assert_eq!(String::from_utf8_lossy(&answer.body), body, "{path}");
        }
        answer
    };
    check("/acme/tiny/resolve/main/config.json", 200, Some("{}"));
    check("/acme/tiny/resolve/v2/config.json", 200, Some("{\"second\": true}"));
    check("/gpt2/resolve/main/config.json", 200, Some("{}"));
    for hidden in [
        "/acme/tiny/resolve/main/.git/config",
        "/acme/tiny/resolve/main/passwd.json",
        "/acme/tiny/resolve/main/../../gpt2/config.json",
        "/acme/tiny/resolve/main/%2e%2e/%2e%2e/gpt2/config.json",
        "/acme/tiny/resolve/main/1_Pooling",
        "/nothing",
    ] {
        check(hidden, 404, None);
    }
    let missing = check("/acme/tiny/resolve/main/x.json", 404, None);
    assert_eq!(missing.header("x-error-code"), Some("EntryNotFound"));
    assert_eq!(
        check("/api/models/acme/tiny/revision/v3", 404, None).header("x-error-code"),
        Some("RevisionNotFound")
    );
    assert_eq!(check("/api/models/acme/none", 401, None).header("x-error-code"), Some("RepoNotFound"));
    assert_eq!(server.ask("POST", "/api/models/acme/tiny", &[("content-length", "0")]).status, 405);

    let info = check("/api/models/acme/tiny?blobs=true", 200, None).json();
    let names: Vec<&str> =
        info["siblings"].as_array().unwrap().iter().filter_map(|f| f["rfilename"].as_str()).collect();
    assert_eq!(names, ["1_Pooling/config.json", "config.json", "model.safetensors"]);
    // `printf 0123456789 | sha256sum`
    let sha = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
    assert_eq!(info["siblings"][2]["lfs"]["sha256"], sha);

    let path = "/acme/tiny/resolve/main/model.safetensors";
    let head = server.ask("HEAD", path, &[]);
    assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, Some("10")));
    assert_eq!(head.header("etag"), Some(format!("\"{sha}\"").as_str()));
    assert_eq!(head.header("x-repo-commit"), info["sha"].as_str());
    let part = server.ask("GET", path, &[("range", "bytes=3-5")]);
    assert_eq!((part.status, part.body.as_slice()), (206, &b"345"[..]));
    assert_eq!(part.header("content-range"), Some("bytes 3-5/10"));
    assert_eq!(server.ask("GET", path, &[("range", "bytes=10-")]).status, 416);

    // The commit is of the contents, and names them for as long as they are these.
    let commit = info["sha"].as_str().unwrap().to_owned();
    check(&format!("/acme/tiny/resolve/{commit}/config.json"), 200, Some("{}"));
    fs::write(scratch.path().join("acme/tiny/config.json"), "{\"new\": 1}").unwrap();
    let renewed = check("/api/models/acme/tiny", 200, None).json();
    assert_ne!(renewed["sha"], commit);
    check(&format!("/acme/tiny/resolve/{commit}/config.json"), 404, None);
}

#[test]
fn trees_come_in_pages() {
    let scratch = tempfile::tempdir().unwrap();
    models(scratch.path());
    let server = Running::start(&["--folder", scratch.path().to_str().unwrap()]);
    let first = server.get("/api/models/acme/tiny/tree/main?recursive=True&limit=3");
    let paths = |answer: &Answer| -> Vec<String> {
        answer
            .json()
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["path"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(paths(&first), ["1_Pooling", "1_Pooling/config.json", "config.json"]);
    let next = first.header("link").unwrap();
    let next = next.strip_prefix(&format!("<http://{}", server.address)).unwrap().split('>').next().unwrap();
    let second = server.get(next);
    assert_eq!(paths(&second), ["model.safetensors"]);
    assert_eq!(second.header("link"), None);
    assert_eq!(server.get("/api/models/acme/tiny/tree/main/nothing").status, 404);
}

#[test]
fn large_files_are_elsewhere_and_need_no_token_there() {
    let scratch = tempfile::tempdir().unwrap();
    models(scratch.path());
    let rules = scratch.path().join("rules.json");
    fs::write(&rules, r#"{"tokens": {"hf_a": ["acme/secret"]}, "private": ["acme/secret"]}"#).unwrap();
    let folder = scratch.path().to_str().unwrap();
    let server =
        Running::start(&["--folder", folder, "--cdn", "127.0.0.1:0", "--rules", rules.to_str().unwrap()]);
    let moved = server.get("/acme/tiny/resolve/main/model.safetensors");
    assert_eq!((moved.status, moved.header("x-linked-size")), (302, Some("10")));
    let location = moved.header("location").unwrap().strip_prefix("http://").unwrap();
    let (address, path) = location.split_at(location.find('/').unwrap());
    assert_ne!(address, server.address);
    assert_eq!(ask(address, "GET", path, &[]).body, b"0123456789");
    assert_eq!(ask(address, "GET", path, &[("range", "bytes=8-")]).body, b"89");
    assert_eq!(ask(address, "GET", path, &[("authorization", "Bearer hf_a")]).status, 400);
    assert_eq!(ask(address, "GET", &path.replace("tiny", "secret"), &[]).status, 403);
    assert_eq!(ask(address, "GET", "/api/models/acme/tiny", &[]).status, 403);
    // Small files come from the Hub itself.
    assert_eq!(server.get("/acme/tiny/resolve/main/config.json").status, 200);
    assert_eq!(server.get("/api/models/acme/secret").status, 401);
    assert_eq!(server.ask("GET", "/api/models/acme/secret", &[("authorization", "Bearer hf_a")]).status, 200);
    assert_eq!(server.ask("GET", "/api/models/acme/tiny", &[("authorization", "Bearer hf_b")]).status, 401);
}

#[test]
fn a_store_is_served() {
    let scratch = tempfile::tempdir().unwrap();
    let store = ModelStore::create(scratch.path().join("store")).unwrap();
    let agent = "scout".parse().unwrap();
    for (version, bytes) in [("v1", "first"), ("v2", "second")] {
        let staging = store.stage_new(&agent, &version.parse().unwrap()).unwrap();
        staging.write(&"config.json".parse().unwrap(), b"{}").unwrap();
        staging.write(&"sub/model.safetensors".parse().unwrap(), bytes.as_bytes()).unwrap();
        std::os::unix::fs::symlink("sub/model.safetensors", staging.path().join("model.safetensors"))
            .unwrap();
        staging.finalize(FinalizeOptions::default()).unwrap();
    }
    let server = Running::start(&["--store", store.root().to_str().unwrap()]);
    let weights =
        |revision: &str| server.get(&format!("/store/scout/resolve/{revision}/sub/model.safetensors"));
    assert_eq!(weights("main").body, b"second");
    assert_eq!(weights("v1").body, b"first");
    assert_eq!(server.get("/store/scout/resolve/v1/model.safetensors").body, b"first");
    let first = server.get("/api/models/store/scout/revision/v1?blobs=true").json();
    let commit = first["sha"].as_str().unwrap();
    assert_eq!(commit.len(), 40);
    assert_eq!(weights(commit).body, b"first");
    let checksum = store.require_version(&agent, &"v1".parse().unwrap()).unwrap().checksum();
    assert!(checksum.to_string().contains(commit), "{checksum} {commit}");
    assert_eq!(weights("v3").header("x-error-code"), Some("RevisionNotFound"));
    assert_eq!(server.get("/api/models/store/nobody").header("x-error-code"), Some("RepoNotFound"));
    let list = server.get("/api/models").json();
    assert_eq!(list[0]["id"], "store/scout");
    // What becomes current while it serves is main.
    store.rollback(&agent, None, &model_store::MoveOptions::default()).unwrap();
    assert_eq!(weights("main").body, b"first");
}

/// A rule names a model by one id; its files are under it by every other.
#[test]
fn rules_hold_for_every_name_of_a_model() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("models");
    models(&folder);
    for (path, bytes) in [
        ("acme/secret@v2/config.json", "{}"),
        ("acme/gated/config.json", "{}"),
        ("flat/config.json", "{}"),
        ("flat/secret/config.json", "{}"),
        ("flat/open/config.json", "{}"),
        (".hidden/tiny/config.json", "{}"),
    ] {
        fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
        fs::write(folder.join(path), bytes).unwrap();
    }
    std::os::unix::fs::symlink("acme", folder.join("other")).unwrap();
    std::os::unix::fs::symlink("../secret/config.json", folder.join("acme/tiny/linked.json")).unwrap();
    let store = ModelStore::create(scratch.path().join("store")).unwrap();
    for agent in ["scout", "open"] {
        let staging = store.stage_new(&agent.parse().unwrap(), &"v1".parse().unwrap()).unwrap();
        staging.write(&"config.json".parse().unwrap(), b"{}").unwrap();
        staging.finalize(FinalizeOptions::default()).unwrap();
        store.add_alias(&format!("{agent}_old").parse().unwrap(), &agent.parse().unwrap()).unwrap();
    }
    let rules = scratch.path().join("rules.json");
    let text = r#"{"tokens": {"hf_a": ["acme/secret", "acme/gated", "flat/secret", "store/scout"]},
        "private": ["acme/secret", "flat/secret", "store/scout"], "gated": ["acme/gated"]}"#;
    fs::write(&rules, text).unwrap();
    let [folder, rules] = [&folder, &rules].map(|path| path.to_str().unwrap());
    let store = store.root().to_str().unwrap();
    let server = Running::start(&["--folder", folder, "--store", store, "--rules", rules]);
    let check = |path: &str, without: u16, with: u16| {
        let token = [("authorization", "Bearer hf_a")];
        let found = (server.get(path).status, server.ask("GET", path, &token).status);
        assert_eq!(found, (without, with), "{path}");
    };
    check("/acme/secret/resolve/main/config.json", 401, 200);
    check("/acme/secret/resolve/v2/config.json", 401, 200);
    check("/acme/gated/resolve/main/config.json", 401, 200);
    check("/acme/tiny/resolve/main/config.json", 200, 200);
    // An organisation is no model.
    check("/acme/resolve/main/secret/config.json", 401, 404);
    check("/acme/resolve/main/gated/config.json", 401, 404);
    check("/api/models/acme", 401, 404);
    check("/api/models/acme/tree/main?recursive=true", 401, 404);
    // A revision's folder is none either.
    check("/acme/secret@v2/resolve/main/config.json", 401, 404);
    check("/acme/secret%40v2/resolve/main/config.json", 401, 404);
    check("/api/models/acme/secret@v2", 401, 404);
    // Nor is what no list names.
    check("/other/secret/resolve/main/config.json", 401, 404);
    check("/.hidden/tiny/resolve/main/config.json", 401, 404);
    // A model that holds another, and one that links to another.
    check("/flat/resolve/main/config.json", 200, 200);
    check("/flat/resolve/main/open/config.json", 200, 200);
    check("/flat/resolve/main/secret/config.json", 404, 404);
    check("/flat/secret/resolve/main/config.json", 401, 200);
    check("/acme/tiny/resolve/main/linked.json", 404, 404);
    // An alias is its target.
    check("/store/scout/resolve/main/config.json", 401, 200);
    check("/store/scout_old/resolve/main/config.json", 401, 200);
    check("/api/models/store/scout_old", 401, 200);
    check("/store/open_old/resolve/main/config.json", 200, 200);
    let list = String::from_utf8(server.get("/api/models").body).unwrap();
    assert!(list.contains("store/open_old") && !list.contains("scout") && !list.contains("secret"), "{list}");
}

#[test]
fn bad_arguments() {
    let scratch = tempfile::tempdir().unwrap();
    let rules = scratch.path().join("rules.json");
    fs::write(&rules, r#"{"token": {}}"#).unwrap();
    let folder = scratch.path().to_str().unwrap();
    let check = |arguments: &[&str], code: i32, says: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_hub-server")).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    };
    check(&[], 2, "nothing to serve");
    check(&["--folder", "/does/not/exist"], 3, "cannot serve the models in /does/not/exist");
    check(&["--store", "/does/not/exist"], 3, "no model store");
    check(&["--folder", folder, "--rules", rules.to_str().unwrap()], 2, "holds no rules");
    check(&["--folder", folder, "--listen", "192.0.2.1:1"], 7, "cannot listen on");
    check(&["--folder", folder, "--listen", "here"], 2, "--listen");
}

/// A client that asks and then takes nothing would hold its connection and the open file for ever.
#[test]
fn who_takes_nothing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("news/large");
    fs::create_dir_all(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    // More than the buffers of two sockets take.
    let size = 64 << 20;
    fs::File::create(model.join("model.safetensors")).unwrap().set_len(size).unwrap();
    let root = folder.path().to_str().unwrap();
    let server = Running::start(&["--folder", root, "--takes-within", "1"]);
    let ask = || {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        let request =
            "GET /news/large/resolve/main/model.safetensors HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let taken = |mut stream: TcpStream| {
        let (mut taken, mut buffer) = (0_u64, vec![0; 1 << 20]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return taken,
                Ok(some) => taken += some as u64,
            }
        }
    };
    // One that is only slow gets all of it. It takes more than a little at a time: less moves no window of TCP.
    let mut slow = ask();
    let mut first = vec![0; 4 << 20];
    for _ in 0..6 {
        slow.read_exact(&mut first).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    assert!(taken(slow) + 6 * (4 << 20) >= size);
    let idle = ask();
    std::thread::sleep(std::time::Duration::from_secs(4));
    let taken = taken(idle);
    assert!(taken < size, "{taken} bytes came after all");
}

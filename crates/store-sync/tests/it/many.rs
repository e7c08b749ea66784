//! Ten agents of twenty versions, nine tenths of which are the same: stored and moved is each content once.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

use model_store::Digest;

use crate::world::{World, agent, bytes, publish, pull, push};

const AGENTS: u64 = 10;
const VERSIONS: u64 = 20;
const FILES: u64 = 10;
const FILE_BYTES: usize = 20_000;

#[test]
fn bytes_stored_and_moved_are_the_distinct_ones() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    let (mut distinct, mut sent, mut received) = (BTreeMap::new(), 0, 0);
    for number in 0..VERSIONS {
        for of in 0..AGENTS {
            // Nine files are the fleet's, the tenth is new each time.
            let files: Vec<_> = (0..FILES)
                .map(|file| {
                    let seed = if file == 0 { 1_000 + number * AGENTS + of } else { file };
                    (format!("part-{file}"), bytes(seed, FILE_BYTES))
                })
                .collect();
            distinct.extend(files.iter().map(|(_, bytes)| (Digest::of(bytes), bytes.len() as u64)));
            let name = format!("agent-{of}/v{number}");
            let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
            publish(&here, &name, &files);
            sent += push(&remote, &here, &name).unwrap().sent_bytes;
            received += pull(&remote, &there, &format!("agent-{of}")).unwrap().received_bytes;
        }
    }
    let expected: u64 = distinct.values().sum();
    assert_eq!(expected, (AGENTS * VERSIONS + FILES - 1) * FILE_BYTES as u64);
    let stored: u64 = world.blobs().values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!((sent, received, stored), (expected, expected, expected));

    // On the disk of the host that pulled, too, where files are shared by hard links.
    let (mut inodes, mut on_disk, mut is_linked) = (BTreeSet::new(), 0, false);
    for of in 0..AGENTS {
        let of = agent(&format!("agent-{of}"));
        for version in there.versions(&of).unwrap() {
            let current = there.get_version(&of, &version).unwrap().unwrap();
            for entry in &current.manifest().files {
                let meta = std::fs::metadata(current.path().join(entry.path.as_path())).unwrap();
                is_linked |= meta.nlink() > 1;
                if inodes.insert(meta.ino()) {
                    on_disk += meta.len();
                }
            }
        }
    }
    if is_linked {
        assert_eq!(on_disk, expected);
    } else {
        eprintln!("skipped: this file system shares blocks by reflinks, which cannot be counted");
    }
}

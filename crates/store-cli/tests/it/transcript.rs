//! One evening at the desk, word for word.

use std::fmt::Write;

use crate::desk::Desk;

const EVENING: &str = "\
$ model-store publish scout v1 --from folder --copy
published scout/v1   2 files, 7 B, checksum CHECKSUM
scout → v1
ROOT/scout/versions/v1

$ model-store publish scout v2 --from folder --copy
published scout/v2   2 files, 7 B, checksum CHECKSUM
scout → v2   (was v1)
ROOT/scout/versions/v2

$ model-store verify
ok       scout/v1   2 files, 7 B
ok       scout/v2   2 files, 7 B

$ model-store rollback scout --reason labels-flipped
scout: v2 → v1   (history: model-store history scout)

$ model-store gc scout --keep 1 --dry-run
AGENT  VERSION  AGE  SIZE  ALONE  PLAN  WHY
scout  v1        0s   7 B    7 B  keep  current, published 0 s ago
scout  v2        0s   7 B    7 B  keep  the newest, was current 0 s ago, published 0 s ago
of 2 versions 0 would go, which would free 0 B; nothing was changed

(a bit flips in scout/versions/v1/config.json)

$ model-store verify
corrupt  scout/v1   2 files, 7 B
           config.json has other bytes than were published
           the checksum is CHECKSUM, published was CHECKSUM
           readers have it now; other versions: model-store history scout
           next       model-store rollback scout
           next       model-store repair scout v1
ok       scout/v2   2 files, 7 B
(exit code 4)

$ model-store repair scout v1
mended   scout/v1   2 files, 7 B
           mended     config.json: its bytes came from scout/v2

$ model-store verify
ok       scout/v1   2 files, 7 B
ok       scout/v2   2 files, 7 B

$ model-store history scout
WHEN  ACTION  POINTER  FROM → TO  BY  REASON
TIME  publish   current      → v1       WHO
TIME  publish   current      v1 → v2    WHO
TIME  rollback  current      v2 → v1    WHO  labels-flipped
TIME  repair    versions/v1  v1         WHO

";

#[test]
fn an_evening() {
    let desk = Desk::new();
    let mut transcript = String::new();
    for line in EVENING.lines() {
        if let Some(command) = line.strip_prefix("$ model-store ") {
            let run = desk.run(&command.split(' ').collect::<Vec<_>>());
            write!(transcript, "{line}\n{}{}", run.stdout, run.stderr).unwrap();
            if run.code != Some(0) {
                writeln!(transcript, "(exit code {})", run.code.unwrap()).unwrap();
            }
            transcript.push('\n');
        } else if let Some(path) = line.strip_prefix("(a bit flips in ") {
            desk.flip_a_bit(path.trim_end_matches(')'));
            write!(transcript, "{line}\n\n").unwrap();
        }
    }
    let transcript = plain(&transcript, &desk);
    assert_eq!(transcript, EVENING, "\n{transcript}");
}

/// What differs from evening to evening is named.
fn plain(transcript: &str, desk: &Desk) -> String {
    let transcript = transcript.replace(desk.root().to_str().unwrap(), "ROOT");
    let mut plain = String::new();
    for line in transcript.lines() {
        // However slow the machine is.
        let line = (1..60).fold(line.to_owned(), |line, seconds| {
            let cell = if seconds < 10 { " 0s " } else { "  0s " };
            line.replace(&format!(" {seconds}s "), cell).replace(&format!(" {seconds} s ago"), " 0 s ago")
        });
        // A name that is longer than what it is called here moves what comes after it.
        let columns =
            line.starts_with("WHEN").then(|| line.split("  ").filter(|cell| !cell.trim().is_empty()));
        let line = match columns {
            Some(columns) => columns.map(str::trim).collect::<Vec<_>>().join("  "),
            None => line.split(' ').map(word).collect::<Vec<_>>().join(" "),
        };
        plain.push_str(line.trim_end());
        plain.push('\n');
    }
    plain
}

fn word(word: &str) -> String {
    let (core, comma) = word.strip_suffix(',').map_or((word, ""), |core| (core, ","));
    let is_checksum = core.len() == 64 && core.chars().all(|c| c.is_ascii_hexdigit());
    let core = match core {
        _ if is_checksum => "CHECKSUM",
        _ if core.len() == 20 && core.ends_with('Z') => "TIME",
        _ if core.contains('@') => "WHO",
        core => core,
    };
    format!("{core}{comma}")
}

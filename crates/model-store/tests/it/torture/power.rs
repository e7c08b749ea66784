//! The power cut off at every call of every operation, and after its end, on real file systems.

use std::fs;
use std::path::{Path, PathBuf};

use model_store::{ModelStore, exit};

use super::disk::{Disk, Kind, LOSSES, Loss, copy_image};
use super::rows::{Expect, Known, ROWS, Row};
use super::strike::{Fault, Point, can_strike, strace, strike};
use super::{conclude, sample, scratch, stride, try_all};

/// The calls by which something is asked to last.
const SYNCS: &str = "fsync,fdatasync,syncfs,sync,sync_file_range";

/// When the power goes.
#[derive(Clone, Copy, Debug)]
enum Moment<'a> {
    /// Before a call is carried out.
    At(&'a Point),
    /// When the operation has said that it is done.
    Done,
    /// The same, with every sync answered and none carried out.
    DoneUnsynced,
}

/// A row with the image of a disk on which its scene is set.
struct Prepared {
    kind: Kind,
    known: Known,
    image: PathBuf,
}

impl Prepared {
    fn new(kind: Kind, row: &'static Row, dir: &Path) -> Option<Self> {
        let image = dir.join("scene.img");
        kind.make_image(&image)?;
        match Disk::mount(kind, &image) {
            Ok(disk) => drop(row.set(disk.at())),
            Err(why) => {
                eprintln!("skipped: {why}");
                return None;
            }
        }
        Some(Self { kind, known: row.learn(), image })
    }

    /// Does the operation on a copy of the disk, cuts the power and checks what is there when it comes back.
    fn cut(&self, moment: Moment<'_>, loss: Loss) -> Result<(), String> {
        let dir = scratch();
        let image = dir.path().join("disk.img");
        let log = dir.path().join("strace.log");
        copy_image(&self.image, &image);
        let disk = Disk::mount(self.kind, &image)?;
        let task = self.known.row.task(&disk.at().join("store"));
        let outcome = match moment {
            Moment::At(point) => strike(&task, point, Fault::Kill, &log).outcome,
            Moment::Done => task.run(&[]),
            Moment::DoneUnsynced => {
                let (trace, inject) = (format!("trace={SYNCS}"), format!("inject={SYNCS}:retval=0"));
                task.run(&strace(&["--seccomp-bpf", "-o", "/dev/null", "-e", &trace, "-e", &inject]))
            }
        };
        let disk = disk.cut(loss)?;
        let expect = match (moment, outcome.code()) {
            (_, Some(exit::OK)) => Expect::After,
            (Moment::At(_), None) => Expect::Either,
            _ => return Err(format!("{outcome:?}")),
        };
        let store = ModelStore::open(disk.at().join("store")).map_err(|e| e.to_string())?;
        let checked = self.known.check(&store, expect);
        drop(store);
        disk.unmount();
        fs::remove_file(&image).unwrap();
        checked
    }
}

fn cut_everywhere(kind: Kind, sampled: usize) {
    if !can_strike() {
        return;
    }
    let (mut tried, mut violations) = (0, Vec::new());
    for (n, row) in ROWS.iter().enumerate() {
        let dir = scratch();
        let Some(prepared) = Prepared::new(kind, row, dir.path()) else { return };
        let moments = prepared.known.points.iter().map(Moment::At).chain([Moment::Done]);
        let all = moments.flat_map(|moment| LOSSES.map(|loss| (moment, loss)));
        let cases: Vec<_> = sample(all.collect(), n, stride(sampled)).collect();
        let found = try_all(kind.threads(), &cases, |(moment, loss)| {
            let what = || format!("{kind:?}, {}, {loss:?} lost at {moment:?}", row.name);
            prepared.cut(*moment, *loss).map_err(|e| format!("{}: {e}", what()))
        });
        eprintln!("  {}: {} cuts, violations {}", row.name, cases.len(), found.len());
        tried += cases.len();
        violations.extend(found);
    }
    conclude(&format!("power cuts, {kind:?}"), tried, &violations);
}

/// Where no sync is carried out, the check finds that what was acknowledged is not there: it can see a loss.
fn catch_missing_syncs(kind: Kind) {
    if !can_strike() {
        return;
    }
    let mut data_caught = false;
    for row in ROWS {
        let dir = scratch();
        let Some(prepared) = Prepared::new(kind, row, dir.path()) else { return };
        for loss in LOSSES {
            let caught = prepared.cut(Moment::DoneUnsynced, loss);
            eprintln!("  without syncs, {kind:?}, {}, {loss:?} lost: {caught:?}", row.name);
            data_caught |= matches!(loss, Loss::Data) && caught.is_err();
            // Where names come to the disk without being asked to, a move needs no sync to last, and whether
            // data follows by itself is the file system's choice.
            assert!(
                caught.is_err() || matches!(loss, Loss::Data),
                "{kind:?}, {}, {loss:?} lost: nothing was noticed",
                row.name
            );
        }
    }
    assert!(data_caught, "{kind:?}: no loss of data was noticed");
}

#[test]
fn the_power_goes_on_ext4() {
    cut_everywhere(Kind::Ext4, 7);
}

#[test]
fn the_power_goes_on_xfs() {
    cut_everywhere(Kind::Xfs, 7);
}

#[test]
fn the_power_goes_on_btrfs() {
    cut_everywhere(Kind::Btrfs, 7);
}

#[test]
fn missing_syncs_are_caught_on_ext4() {
    catch_missing_syncs(Kind::Ext4);
}

#[test]
fn missing_syncs_are_caught_on_xfs() {
    catch_missing_syncs(Kind::Xfs);
}

#[test]
fn missing_syncs_are_caught_on_btrfs() {
    catch_missing_syncs(Kind::Btrfs);
}

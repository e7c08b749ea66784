//! Disks whose power can be cut: file systems in image files, mounted through loop devices.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fixture::has_program;

/// A file system that stores are kept on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

/// What a power cut takes with it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// Everything that was not asked to last.
    Everything,
    /// Data that was not asked to last, while the names and sizes do: the journal came to the disk before them.
    Data,
}

/// Each way in which the power is cut.
pub(crate) const LOSSES: [Loss; 2] = [Loss::Everything, Loss::Data];

impl Kind {
    /// How many disks of this kind are in use at once: copies of one btrfs have one identity, by which the
    /// kernel may mistake them.
    pub(crate) fn threads(self) -> usize {
        if self == Self::Btrfs { 1 } else { super::threads() }
    }

    /// Makes an image; `None`, with the reason said, where that cannot be done here.
    pub(crate) fn make_image(self, image: &Path) -> Option<()> {
        let (program, arguments, mebibytes): (_, &[&str], u64) = match self {
            Self::Ext4 => ("mkfs.ext4", &["-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0"], 48),
            // The smallest that mkfs.xfs makes.
            Self::Xfs => ("mkfs.xfs", &["-q"], 300),
            Self::Btrfs => ("mkfs.btrfs", &["-q"], 128),
        };
        if !has_program(program, "-V") {
            return None;
        }
        fs::File::create(image).unwrap().set_len(mebibytes << 20).unwrap();
        let made = Command::new(program).args(arguments).arg(image).output().unwrap();
        assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr));
        Some(())
    }
}

/// Copies an image, and leaves its holes holes.
pub(crate) fn copy_image(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "an image can be copied");
}

/// A mounted image; unmounted when it is dropped.
pub(crate) struct Disk {
    kind: Kind,
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Mounts an image beside itself.
    pub(crate) fn mount(kind: Kind, image: &Path) -> Result<Self, String> {
        // Copies of one xfs have one identity, and may be mounted at once all the same.
        let options = if kind == Kind::Xfs { "loop,nouuid" } else { "loop" };
        let at = image.with_extension("mnt");
        fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-o", options]).args([image, &at]).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Self { kind, image: image.to_owned(), at }),
            Ok(output) => Err(format!("cannot mount: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(e) => Err(format!("no mount program: {e}")),
        }
    }

    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    pub(crate) fn unmount(self) {
        drop(self);
    }

    /// Cuts the power and mounts what is left, as a host does that comes up again.
    pub(crate) fn cut(self, loss: Loss) -> Result<Self, String> {
        let image = match (self.kind, loss) {
            (Kind::Ext4 | Kind::Xfs, Loss::Everything) => self.shut_down(2),
            (Kind::Ext4 | Kind::Xfs, Loss::Data) => self.shut_down(1),
            // A shut-down of btrfs has no such ways: what is in its image at this moment is what is left.
            (Kind::Btrfs, loss) => {
                if matches!(loss, Loss::Data) {
                    self.commit_names();
                }
                let copy = self.image.with_extension("copy");
                copy_image(&self.image, &copy);
                copy
            }
        };
        let kind = self.kind;
        self.unmount();
        Self::mount(kind, &image)
    }

    /// Stops the file system where it is: nothing that is not on disk yet comes there any more.
    #[expect(unsafe_code, reason = "no crate has a safe call for this ioctl")]
    fn shut_down(&self, flags: u32) -> PathBuf {
        // _IOR('X', 125, u32)
        const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
        let opened = fs::File::open(&self.at).unwrap();
        let device = opened.metadata().unwrap().dev();
        assert_ne!(device, fs::metadata("/").unwrap().dev(), "the root is not shut down");
        assert!(self.is_ours(device), "only a loop mount of our own is shut down");
        // SAFETY: the call reads one u32 behind the pointer, which `Setter` gives it.
        unsafe {
            let shut_down = rustix::ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(flags);
            rustix::ioctl::ioctl(&opened, shut_down).expect("a loop mount of our own can be shut down");
        }
        self.image.clone()
    }

    /// Commits btrfs' running transaction, as it does by itself every 30 seconds: names without their data.
    #[expect(unsafe_code, reason = "no crate has safe calls for these ioctls")]
    fn commit_names(&self) {
        // _IOR(0x94, 24, u64) gives the transaction's number, _IOW(0x94, 22, u64) waits for that.
        const START_SYNC: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u64>(0x94, 24);
        const WAIT_SYNC: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u64>(0x94, 22);
        let opened = fs::File::open(&self.at).unwrap();
        assert!(self.kind == Kind::Btrfs, "only btrfs knows these calls");
        // SAFETY: the one writes, the other reads a u64, which `Getter` and `Setter` give them.
        unsafe {
            let started = rustix::ioctl::Getter::<START_SYNC, u64>::new();
            let transaction = rustix::ioctl::ioctl(&opened, started).expect("btrfs commits");
            let waited = rustix::ioctl::Setter::<WAIT_SYNC, u64>::new(transaction);
            rustix::ioctl::ioctl(&opened, waited).expect("btrfs has committed");
        }
    }

    /// Whether the file system with this number lies on a loop device over our image.
    fn is_ours(&self, device: u64) -> bool {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let backing = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
        fs::read_to_string(backing).is_ok_and(|path| Path::new(path.trim_end()) == self.image)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Another thread's child has our files open until it has become another program.
        for _ in 0..200 {
            let unmounted = Command::new("umount").arg(&self.at).output();
            if unmounted.is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        eprintln!("{} stayed busy; it goes away with its last user", self.at.display());
    }
}

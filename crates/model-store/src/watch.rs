//! Being told when `current` moved.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::StoreError;
use crate::layout::AgentDir;
use crate::names::{AgentName, VersionName};
use crate::read::Current;
use crate::store::ModelStore;

/// How often the link is looked at, unless set otherwise.
const INTERVAL: Duration = Duration::from_millis(500);

/// `current` moved, or was looked at for the first time.
#[derive(Clone, Debug)]
pub struct Change {
    /// The agent, as it was asked for.
    pub agent: AgentName,
    /// What was current at the last look; `None` at the first one, or where nothing was.
    pub from: Option<VersionName>,
    /// What is current now, opened; `None` where nothing is.
    pub to: Option<Current>,
}

/// Looks after the `current` of one agent.
///
/// The link itself is what counts: it is looked at again and again. The kernel's notice of a change only
/// shortens the wait, so nothing is missed where there is none, and nothing between two looks matters but
/// where the link is. An agent that is not there yet may be waited for.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = model_store::ModelStore::from_env()?;
/// let mut watch = store.watch(&"analyst".parse()?);
/// while let Some(change) = watch.wait(std::time::Duration::from_mins(1))? {
///     println!("{:?}", change.to.map(|current| current.checksum()));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Watch {
    store: ModelStore,
    agent: AgentName,
    interval: Duration,
    /// Whether it was looked at, ever.
    looked: bool,
    /// What was found at the last look.
    seen: Option<(VersionName, Digest)>,
    hint: Option<OwnedFd>,
}

impl ModelStore {
    /// Looks after the `current` of an agent. The first look reports what is current then.
    #[must_use]
    pub fn watch(&self, agent: &AgentName) -> Watch {
        Watch {
            store: self.clone(),
            agent: agent.clone(),
            interval: INTERVAL,
            looked: false,
            seen: None,
            hint: None,
        }
    }
}

impl Watch {
    /// How often the link is looked at; twice a second unless set.
    #[must_use]
    pub fn with_interval(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// The agent that is looked after.
    #[must_use]
    pub fn agent(&self) -> &AgentName {
        &self.agent
    }

    /// Looks at the link, and says what changed since the last look. A version that was replaced by another of
    /// the same name is a change. A look that failed is no look: the next one compares with the one before.
    pub fn poll(&mut self) -> Result<Option<Change>, StoreError> {
        let current = self.store.get_current(&self.agent)?;
        let now = current.as_ref().map(|current| (current.version().clone(), current.checksum()));
        if self.looked && self.seen == now {
            return Ok(None);
        }
        self.looked = true;
        let from = std::mem::replace(&mut self.seen, now).map(|(version, _)| version);
        Ok(Some(Change { agent: self.agent.clone(), from, to: current }))
    }

    /// As [`poll`](Self::poll), waiting for a change at most so long.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Change>, StoreError> {
        let started = Instant::now();
        loop {
            // Listening begins before the look: what happens after it is heard.
            self.listen();
            if let Some(change) = self.poll()? {
                return Ok(Some(change));
            }
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.pause(left.min(self.interval));
        }
    }

    /// Asks the kernel for notice of changes in the agent's directory; without it the interval is what there
    /// is.
    fn listen(&mut self) {
        if self.hint.is_some() {
            return;
        }
        let Ok(Some(agent)) = AgentDir::open(self.store.root(), &self.agent) else { return };
        let moves = WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        let ends = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let Ok(hint) = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) else { return };
        if inotify::add_watch(&hint, agent.path(), moves | ends).is_ok() {
            self.hint = Some(hint);
        }
    }

    fn pause(&mut self, time: Duration) {
        let Some(hint) = &self.hint else {
            std::thread::sleep(time);
            return;
        };
        let Ok(time) = Timespec::try_from(time) else { return };
        let mut waiting = [PollFd::from_borrowed_fd(hint.as_fd(), PollFlags::IN)];
        if rustix::event::poll(&mut waiting, Some(&time)).is_ok_and(|ready| ready > 0) && !drained(hint) {
            // The directory is another one by now, or the notice broke: begin again.
            self.hint = None;
        }
    }
}

/// Reads away what is to be read; `false` where the watch has ended.
fn drained(hint: &OwnedFd) -> bool {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(hint, &mut buffer);
    loop {
        match reader.next() {
            Ok(event) => {
                use inotify::ReadFlags;
                let ended = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
                if event.events().intersects(ended) {
                    return false;
                }
            }
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
}

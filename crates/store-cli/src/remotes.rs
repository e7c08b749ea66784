//! What the commands have in common that talk to a remote.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use model_store::Holder;
use store_sync::{Address, Observer, Options, Remote, SyncError};

use crate::meter::Meter;

const LONG_HELP: &str = "\
The remote: s3://BUCKET/PREFIX, gs://, az://, https://HOST/PATH (to read), or a folder

Credentials come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, and so on), from \
files that it names, or from the instance's metadata; never from here.";

/// Which remote.
#[derive(Debug, clap::Args)]
pub(crate) struct RemoteArgs {
    #[arg(
        long,
        value_name = "URL",
        env = "MODEL_STORE_REMOTE",
        hide_env_values = true,
        help = "The remote: s3://BUCKET/PREFIX, gs://, az://, https://HOST/PATH (to read), or a folder",
        long_help = LONG_HELP
    )]
    remote: String,
    /// How many requests are under way at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// How long a remote that fails is asked again
    #[arg(long, value_name = "TIME", default_value = "3min", value_parser = crate::args::duration)]
    patience: std::time::Duration,
    /// How long nothing may come before a request is made again
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::args::duration)]
    stall: std::time::Duration,
}

impl RemoteArgs {
    /// Read here and not by clap, which would repeat a wrong one with all that is in it.
    pub(crate) fn address(&self) -> Result<Address, SyncError> {
        Address::parse(&self.remote)
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            parallel: self.parallel.into(),
            retry: self.patience,
            stall: self.stall,
            ..Options::default()
        }
    }

    /// Opens the remote with a meter that shows what it is doing.
    pub(crate) fn open(&self, what: &'static str) -> anyhow::Result<(Remote, Meter)> {
        let meter = Meter::start(what, 0)?;
        let remote = self.connect()?.with_observer(Arc::new(Traffic::of(&meter)));
        Ok((remote, meter))
    }

    /// Opens the remote for somebody who shows nothing.
    pub(crate) fn connect(&self) -> Result<Remote, SyncError> {
        Remote::open(self.address()?, self.options())
    }
}

/// What a remote tells of its work.
pub(crate) struct Traffic {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Traffic {
    pub(crate) fn of(meter: &Meter) -> Self {
        let (bar, stop) = meter.parts();
        Self { bar, stop }
    }
}

impl Observer for Traffic {
    fn expect(&self, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Who this is, for pointers and leases.
pub(crate) fn who() -> String {
    let Holder { user, host, .. } = Holder::this_process();
    format!("{user}@{host}")
}

/// What a remote is told to do by hand: it stops on request and shows nothing.
pub(crate) fn stoppable() -> io::Result<Arc<dyn Observer>> {
    struct Stop(Arc<AtomicBool>);
    impl Observer for Stop {
        fn is_stopped(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }
    Ok(Arc::new(Stop(crate::meter::stop_on_request()?)))
}

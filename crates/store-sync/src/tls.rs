//! Which TLS is used: rustls with ring, which the workspace has already.

use std::sync::Once;

/// Chooses it for the process, unless somebody has.
pub(crate) fn choose() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // An error says that another thread was quicker.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    });
}

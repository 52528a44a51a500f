//! A server as a service of systemd (`Type=notify`): it says when it is ready, and when it stops.
//!
//! Without systemd nothing is said.

use sd_notify::NotifyState;

/// What the service is for can be used from now on. `what` is shown by `systemctl status`.
pub(super) fn ready(what: &str) {
    // Whoever started the service waits in vain then, and says so.
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&format!("serves {what}"))]);
}

/// The service makes everything durable, and ends.
pub(super) fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("makes everything durable")]);
}

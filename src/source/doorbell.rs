//! The LISTEN connection: a hint that the outbox may hold something new.
//!
//! A ring is never more than a hint: it may be folded with others, and it is lost with its
//! connection. The fallback poll and the fetch after each new connection make up for that. The
//! session never opens a transaction, which would hold the server's notification queue.

use tokio::sync::mpsc;

use super::Settings;
use super::error::{Error, Place};
use super::link::{Bell, Link, Role};

/// Rings when a writer commits while the daemon sleeps.
pub struct Doorbell {
    rings: mpsc::Receiver<()>,
    /// Dropping it ends the connection; `None` in poll-only mode.
    _link: Option<Link>,
    /// In poll-only mode, what keeps `rings` open and silent.
    _silence: Option<Bell>,
}

impl Doorbell {
    /// Connects and listens; in poll-only mode does neither.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, Error> {
        // One place: a second ring before the first is heard says nothing more.
        let (bell, rings) = mpsc::channel(1);
        if !settings.doorbell {
            return Ok(Self {
                rings,
                _link: None,
                _silence: Some(bell),
            });
        }
        let link = Link::open(settings, Role::Listen, Some(bell)).await?;
        // The schema's name is checked to be a plain identifier, and is the channel's name.
        let listen = format!("listen {}", settings.schema);
        link.call(
            "listening for changes",
            1,
            Place::Own,
            link.client().batch_execute(&listen),
        )
        .await?;
        Ok(Self {
            rings,
            _link: Some(link),
            _silence: None,
        })
    }

    /// Waits for a ring. `None`: the connection is gone, and rings may have been lost. In
    /// poll-only mode it never returns.
    ///
    /// Cancel-safety: a ring is taken only when it is returned.
    pub async fn rung(&mut self) -> Option<()> {
        self.rings.recv().await
    }
}

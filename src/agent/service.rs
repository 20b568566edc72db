//! What serves on the agent's own runtime beside the loop, such as the HTTP listener.

use std::future::Future;
use std::pin::Pin;

use super::handle::AgentHandle;
use crate::base::Error;
use crate::config::Settings;

/// Something that serves as long as the agent runs.
///
/// It lies above the agent in the layers; the crate's root attaches it.
pub(crate) trait Service: Send {
    /// Takes what it needs from the machine. Called on the thread that starts the agent, outside the agent's
    /// runtime; must not wait for another process.
    ///
    /// # Errors
    ///
    /// If it cannot have that now. [`Self::serve`] goes on trying.
    fn bind(&mut self, settings: &Settings) -> Result<(), Error>;

    /// Where it serves, for the log; `None` if it has nothing to serve.
    fn place(&self) -> Option<String>;

    /// Serves until it is dropped, on the agent's runtime.
    fn serve(self: Box<Self>, agent: AgentHandle) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

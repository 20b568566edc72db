//! Services that run on the agent's runtime beside the loop, such as the HTTP listener.

use std::future::Future;
use std::pin::Pin;

use super::handle::AgentHandle;
use crate::base::Error;
use crate::config::Settings;

/// A service that runs as long as the agent does.
///
/// Implementations are in a higher layer than the agent; the crate root attaches them.
pub(crate) trait Service: Send {
    /// Acquires operating system resources such as a socket. Called on the thread that starts the
    /// agent, outside the agent's runtime. Must not wait for another process.
    ///
    /// # Errors
    ///
    /// If a resource is not available yet. [`Self::serve`] retries.
    fn bind(&mut self, settings: &Settings) -> Result<(), Error>;

    /// Returns the address for the log, or `None` if there is nothing to serve.
    fn endpoint(&self) -> Option<String>;

    /// Serves on the agent's runtime until the future is dropped.
    fn serve(self: Box<Self>, agent: AgentHandle) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

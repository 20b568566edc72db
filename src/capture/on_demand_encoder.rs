//! The `marple-encode` thread, which encodes on-demand captures at low priority.
//!
//! Symbolizing and compressing takes a millisecond for a one-second profile, and tens of them for a
//! heap of 50,000 stacks or a full trace. On a machine with all cores busy, each would delay
//! requests of the service. Low priority costs no evidence: a client only waits a little longer.
//! Artifacts of an incident, by contrast, are written by `marple-capture` at normal priority. At
//! low priority they would be finished after the process is gone.
//!
//! A separate thread is needed because Linux does not let unprivileged threads raise their priority
//! again. It starts with the first encoding.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use crate::base::failure::{catch_panic, panic_message};
use crate::base::{panics, warnings};
use crate::capture::collectors::{self, Evidence};
use crate::capture::messages::{CaptureResult, ResultSender};
use crate::capture::profile_response::{encode, profile_error};
use crate::os;
use crate::policy::on_demand::{
    HeapView, MAX_REQUESTS, OnDemandResult, ProfileError, ProfileResponse,
};

/// Data of a finished recording.
pub(crate) struct RawProfile {
    pub(crate) evidence: Evidence,
    pub(crate) view: Option<HeapView>,
    pub(crate) cut_short: Option<String>,
}

impl RawProfile {
    fn encode(self) -> Result<ProfileResponse, ProfileError> {
        let Self { evidence, view, cut_short } = self;
        let result =
            catch_panic(|| Ok(ProfileResponse { bytes: encode(evidence, view)?, cut_short }));
        result.map_err(profile_error)
    }
}

/// ID of the capture and the data to encode.
type EncodeCommand = (u64, RawProfile);

/// Handle of the encoding thread, which is started on first use.
pub(crate) struct Encoder {
    results: ResultSender,
    thread: Option<EncoderThread>,
}

struct EncoderThread {
    commands: SyncSender<EncodeCommand>,
    handle: JoinHandle<()>,
}

impl Encoder {
    pub(crate) fn new(results: ResultSender) -> Self {
        Self { results, thread: None }
    }

    /// Sends `raw` to the encoding thread, or encodes it on this thread if that one cannot be
    /// started.
    pub(crate) fn encode(&mut self, id: u64, raw: RawProfile) -> OnDemandResult {
        if self.thread.is_none() {
            self.thread = start_thread(self.results.clone());
        }
        let sent = match &self.thread {
            // The channel is as large as the maximum number of captures.
            Some(thread) => thread.commands.try_send((id, raw)).map_err(|error| match error {
                TrySendError::Full(command) | TrySendError::Disconnected(command) => command,
            }),
            None => Err((id, raw)),
        };
        match sent {
            Ok(()) => OnDemandResult::Encoding { id },
            Err((id, raw)) => OnDemandResult::Finished { id, result: raw.encode() },
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        if let Some(EncoderThread { commands, handle }) = self.thread.take() {
            drop(commands);
            let _ = handle.join();
        }
    }
}

/// Topic of the warning raised without an encoding thread.
const TOPIC: &str = "marple-encode";

fn start_thread(results: ResultSender) -> Option<EncoderThread> {
    let (commands, inbox) = sync_channel(MAX_REQUESTS);
    let handle = thread::Builder::new()
        .name("marple-encode".to_owned())
        .spawn(move || run(&inbox, &results));
    match handle {
        Ok(handle) => {
            warnings::clear(TOPIC);
            Some(EncoderThread { commands, handle })
        }
        Err(error) => {
            warnings::set(
                TOPIC,
                format!(
                    "on-demand profiles are encoded by the thread `marple-capture`, as \
                     `marple-encode` cannot be started: {error}; raise RLIMIT_NPROC or the cgroup's \
                     pids.max"
                ),
            );
            None
        }
    }
}

fn run(inbox: &Receiver<EncodeCommand>, results: &ResultSender) {
    os::own_thread::enter();
    let _excluded = collectors::heap::exclude_current_thread();
    os::proc::process::lower_priority();
    while let Ok((id, raw)) = inbox.recv() {
        // `encode` has a fence of its work, but not of the values it drops.
        let result = panics::catch_panic(|| raw.encode()).unwrap_or_else(|panic| {
            panics::record("marple-encode", &panic);
            Err(ProfileError::Failed(panic_message(&panic)))
        });
        let finished = OnDemandResult::Finished { id, result };
        if !results.send(CaptureResult::Encoded(finished)) {
            return;
        }
    }
}

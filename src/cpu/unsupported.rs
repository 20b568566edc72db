//! Stubs for systems other than Linux, with the interface of `sampling`.

use crate::base::{Hertz, Moment, TimeAnchor};
use crate::cpu::error::Error;
use crate::cpu::options::Options;
use crate::model::Profile;

pub(super) enum CpuRecorder {}

impl CpuRecorder {
    pub(super) fn start(_: &Options) -> Result<Self, Error> {
        Err(Error::EngineUnavailable {
            engine: "perf and timer",
            why: "they require Linux".to_owned(),
        })
    }

    pub(super) fn is_inherited(&self) -> bool {
        match *self {}
    }

    pub(super) fn engine(&self) -> String {
        match *self {}
    }

    pub(super) fn begin_session(&self, _: Hertz, _: TimeAnchor) -> Result<Option<Profile>, Error> {
        match *self {}
    }

    pub(super) fn end_session(&self, _: Moment) -> Option<Profile> {
        match *self {}
    }

    pub(super) fn take_window(&self, _: TimeAnchor) -> Option<Profile> {
        match *self {}
    }
}

pub(super) enum WallRecorder {}

impl WallRecorder {
    pub(super) fn start(_: &Options, _: TimeAnchor) -> Result<Self, Error> {
        Err(Error::EngineUnavailable { engine: "wall", why: "it requires Linux".to_owned() })
    }

    pub(super) fn engine(_: &Options) -> String {
        String::new()
    }

    pub(super) fn stop(self, _: Moment) -> Result<Profile, Error> {
        match self {}
    }
}

//! A miniature service, built in many ways: ten functions call each other on a dedicated thread,
//! the innermost works, and the process profiles itself.
//!
//! `program ENGINE [FILE]` prints tab-separated lines, with symbols from FILE if given:
//!
//! ```text
//! refused WHY                        no profile can be taken
//! sample COUNT END FRAME FRAME ...   a stack of that thread, innermost frame first; a frame
//!                                    without a name is `?FILE`; END is `cut` if the profile
//!                                    reports the outer end as missing
//! complete BOOL                      true if the profile claims names for all program frames
//! told TEXT                          a comment or a loss of the profile
//! ```

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use marple::internals::base::{Clock, Hertz, SystemClock};
use marple::internals::cpu::CpuSession;
use marple::internals::cpu::options::Options;
use marple::internals::model::LabelValue;
use marple::internals::os::proc::process::cpu_time;
use marple::internals::symbols;

const THREAD: &str = "worker";

/// CPU time spent in `work`.
const TIME: Duration = Duration::from_millis(400);

#[inline(never)]
fn work() -> u64 {
    let end = cpu_time() + TIME;
    let mut state = 1u64;
    while cpu_time() < end {
        state = (0..100_000).fold(state, |state, turn| black_box(state ^ (turn << 7)));
    }
    state
}

macro_rules! layers {
    ($($layer:ident calls $inner:ident),*) => {
        $(
            #[inline(never)]
            fn $layer(seed: u64) -> u64 {
                // Work left after the call prevents a tail call.
                let seeds = black_box([seed; 7]);
                black_box($inner(black_box(seed + 1))).wrapping_add(seeds[3])
            }
        )*
    };
}

#[inline(never)]
fn layer_zero(_: u64) -> u64 {
    black_box(work())
}

layers!(
    layer_one calls layer_zero, layer_two calls layer_one, layer_three calls layer_two,
    layer_four calls layer_three, layer_five calls layer_four, layer_six calls layer_five,
    layer_seven calls layer_six, layer_eight calls layer_seven, layer_nine calls layer_eight
);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let engine = arguments.next().unwrap_or_default().parse().expect("an engine's name");
    let names_from = arguments.next().map(PathBuf::from);
    let options = Options { engine, frequency: Hertz(250), ..Options::default() };
    let session = match CpuSession::start_with_options(&options, SystemClock.anchor()) {
        Ok(session) => session,
        Err(why) => return println!("refused\t{why}"),
    };
    let thread = std::thread::Builder::new().name(THREAD.into());
    black_box(thread.spawn(|| layer_nine(1)).unwrap().join().unwrap());
    let mut profile = session.stop(SystemClock.now()).unwrap();
    let program_path = std::env::current_exe().unwrap();
    for mapping in profile.mappings.iter_mut().filter(|mapping| mapping.path == program_path) {
        if let Some(path) = &names_from {
            mapping.path = path.clone();
            mapping.file = None;
        }
    }
    symbols::symbolize(&mut profile);
    for sample in &profile.samples {
        let frames = profile.stacks.frames(sample.stack).map(|frame| {
            let frame = profile.frames.get(frame);
            let function =
                frame.lines.first().and_then(|line| profile.functions.get(line.function.index()));
            let mapping = frame.mapping.and_then(|mapping| profile.mappings.get(mapping.index()));
            match (function, mapping) {
                (Some(function), _) => profile.strings.get(function.name).to_owned(),
                (None, Some(mapping)) => format!("?{}", mapping.path.display()),
                (None, None) => "?".to_owned(),
            }
        });
        let frames: Vec<String> = frames.collect();
        let thread = sample.labels.iter().find_map(|label| match label.value {
            LabelValue::Text(name) if profile.strings.get(label.key) == "thread" => Some(name),
            _ => None,
        });
        let is_cut = sample.labels.iter().any(|label| profile.strings.get(label.key) == "stack");
        if thread.is_some_and(|name| profile.strings.get(name) == THREAD) {
            let end = if is_cut { "cut" } else { "whole" };
            println!("sample\t{}\t{end}\t{}", sample.values[0], frames.join("\t"));
        }
    }
    println!("complete\t{}", profile.mappings[0].has_functions);
    profile.comments.iter().for_each(|comment| println!("told\t{comment}"));
    profile.losses.iter().for_each(|loss| println!("told\t{}: {}", loss.cause, loss.count));
}

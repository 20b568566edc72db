//! Blocks that generated code allocates are shown under its caller.
#![allow(unsafe_code, reason = "generated code cannot be called without")]

use std::hint::black_box;
use std::sync::Mutex;

use jiff::Timestamp;
use marple::internals::base::Bytes;
use marple::internals::{heap, symbols};

use crate::support::cpu_load::function_names;
use crate::support::generated_code::{CALLBACK, map_code};

type Callback = extern "C" fn(extern "C" fn());

#[inline(never)]
fn run_callback(code: Callback) {
    black_box((black_box(code)(allocate_block), ()));
}

const BLOCK_BYTES: usize = 700_001;
static BLOCKS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Allocates a block. The generated code calls it.
extern "C" fn allocate_block() {
    let block = Vec::with_capacity(black_box(BLOCK_BYTES));
    BLOCKS.lock().unwrap().push(block);
}

#[test]
fn heap_block_from_generated_code_is_under_its_caller() {
    heap::set_rate(Bytes(1));
    for in_file in [false, true] {
        // SAFETY: the code follows the C calling convention and calls the function it is given.
        let code =
            unsafe { std::mem::transmute::<*const (), Callback>(map_code(&CALLBACK, in_file)) };
        run_callback(code);
    }
    let mut profile = heap::snapshot(Timestamp::now()).unwrap();
    symbols::symbolize(&mut profile);
    let mut matching = 0;
    for sample in &profile.samples {
        let function_names = function_names(&profile, sample);
        if function_names.iter().any(|name| name.ends_with("::allocate_block"))
            && sample.values[3] >= BLOCK_BYTES as i64
        {
            let at = |end: &str| function_names.iter().position(|name| name.ends_with(end));
            assert!(at("::run_callback") > at("::allocate_block"), "{function_names:?}");
            let code = &function_names[at("::allocate_block").unwrap() + 1];
            assert!(
                ["[anonymous code]", "[memfd:jit]"].contains(&code.as_str()),
                "{function_names:?}"
            );
            matching += 1;
        }
    }
    assert!(matching >= 2, "{:?}", profile.losses);
}

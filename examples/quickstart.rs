//! The lines a service needs. Start it, watch `captures/`, and start an incident with `curl -X POST
//! --unix-socket captures.sock http://localhost/monitor/notify`. Ctrl-C ends it.

use std::alloc::System;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let agent = marple::Builder::from_file("config/minimal.toml")?.start()?;
    // ... the service ...
    tokio::signal::ctrl_c().await?;
    agent.shutdown().await?;
    Ok(())
}

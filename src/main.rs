//! The binary: arguments, runtime, exit code.

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = pg2kv::cli::parse();
    match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(pg2kv::cli::execute(cli)),
        Err(error) => pg2kv::cli::cannot_start(&error),
    }
}

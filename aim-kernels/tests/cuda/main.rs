//! The CUDA half on a machine without a GPU: the kernels run in the emulator (`emulator/`), through a driver and a
//! cuBLASLt that are fakes over it. Everything else is what runs on a card.
//!
//! A process can load only one `libcuda`, and what is wrong in a kernel may kill it. So each test starts this binary
//! again ([`child`]) with the fake libraries in its environment.
// Children report by printing.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod blas;
mod child;
mod device;
mod driver;
mod emulator;
#[path = "../../emulator/harness.rs"]
mod harness;
mod kernels;
mod planted;

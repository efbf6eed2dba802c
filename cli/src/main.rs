//! `farlan`: the one binary people type. All of it is in the library, where tests reach it.

fn main() -> std::process::ExitCode {
    cli::main()
}

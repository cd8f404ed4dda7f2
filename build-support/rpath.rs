//! Build script shared by every crate of the workspace: the binaries and tests that link libtorch get its folder as
//! run path, so they start without LD_LIBRARY_PATH. The folder is the one the build linked against, so it follows a
//! LIBTORCH set by the user.

use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // the Python package finds the libtorch of the PyTorch that has loaded it
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return;
    }
    let Ok(libtorch) = env::var("LIBTORCH") else { return };
    let lib = Path::new(&libtorch).join("lib");
    // The canonical path: `.libtorch` is a link that a later set-up may point elsewhere.
    match lib.canonicalize() {
        Ok(lib) => println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display()),
        Err(_) => println!(
            "cargo:warning=no libtorch at {}: run `make setup`, or set LIBTORCH to a libtorch 2.11",
            lib.display()
        ),
    }
}

//! Tells the program what it was built from (the commit, where whoever builds says it, and libtorch's version) and
//! where libtorch is, so that it starts without LD_LIBRARY_PATH. A program that moves elsewhere can still be given one.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CAUSEWAY_COMMIT");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let commit = std::env::var("CAUSEWAY_COMMIT").ok().filter(|commit| !commit.is_empty());
    println!("cargo::rustc-env=CAUSEWAY_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    // libtorch has no function that tells its version; its folder has a file that does.
    let libtorch = std::env::var("LIBTORCH").ok();
    if let Some(folder) = &libtorch {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}/lib");
    }
    let version = libtorch.and_then(|folder| std::fs::read_to_string(format!("{folder}/build-version")).ok());
    println!("cargo::rustc-env=CAUSEWAY_LIBTORCH={}", version.as_deref().map_or("2.11.0", str::trim));
}

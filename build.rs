//! Passes the linker flags that a Node-API addon needs, and does nothing for the plain core.

fn main() {
    #[cfg(feature = "addon")]
    napi_build::setup();
}

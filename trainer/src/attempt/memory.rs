//! Activations are allocated and freed many times a second, megabytes each. By default glibc gives such memory back to the
//! system and asks for it again, and every page of it is cleared and mapped anew: with batches of 16 a forward pass of a
//! ViT-S costs 2,000 page faults an image, a twentieth of its time. A process that lives for one attempt keeps it.

/// Has the allocator keep what is freed, up to 2 GiB at the end of the heap, for what is allocated next. What is set in the
/// environment (`MALLOC_TRIM_THRESHOLD_`) stays. Other allocators are left as they are.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if std::env::var_os("MALLOC_TRIM_THRESHOLD_").is_none() {
        // SAFETY: sets two numbers of the allocator. One that it refuses changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}

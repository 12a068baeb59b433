//! The memory of a BPF array, mapped: what is stored here the program reads, without a system call. And memory like it,
//! where there is no kernel door.
#![expect(unsafe_code, reason = "a mapping is raw memory until its length and alignment are known")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// The words of an array that was made with `BPF_F_MMAPABLE`.
pub struct Mapping {
    memory: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory belongs to the mapping alone, lives as long as it does, and is only reached as atomic words.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of the array behind `map`: a whole number of words, at least one.
    pub fn new(map: impl AsFd, bytes: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes)
            .filter(|bytes| bytes.get() % size_of::<AtomicU64>() == 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so no memory of this process is replaced.
        let memory = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { memory: memory.cast(), words: bytes / size_of::<AtomicU64>() })
    }

    /// Memory of this process alone, all zero. What is never written takes none.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so no memory of this process is replaced.
        let memory = unsafe {
            nix::sys::mman::mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE)
        }?;
        Ok(Self { memory: memory.cast(), words: bytes / size_of::<AtomicU64>() })
    }

    /// The same in huge pages, where the system has any: whoever touches a word takes a whole one.
    #[must_use]
    pub fn in_huge_pages(self) -> Self {
        let bytes = self.words * size_of::<AtomicU64>();
        // SAFETY: the advice changes the size of pages, and neither what they hold nor what may be done with them.
        let advised = unsafe { madvise(self.memory.cast(), bytes, MmapAdvise::MADV_HUGEPAGE) };
        if let Err(error) = advised {
            tracing::debug!(%error, "a table has small pages");
        }
        self
    }

    /// Has the word of this number brought from memory, before anybody waits for it; where that cannot be said to a
    /// CPU, it is brought when it is asked for.
    pub fn prefetch(&self, word: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(word) = self.words().get(word) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint reads nothing, and the word is there.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) };
        }
    }

    /// The words. The program and its CPUs use them at the same time.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped with this length, aligned to a page, valid for any bit pattern, and alive as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let bytes = self.words * size_of::<AtomicU64>();
        // SAFETY: it was mapped with this address and length, and nothing borrows from it any more.
        if let Err(error) = unsafe { munmap(self.memory.cast(), bytes) } {
            tracing::error!(%error, "a map's memory stays mapped");
        }
    }
}

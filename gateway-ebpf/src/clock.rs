//! The time of one packet: CLOCK_BOOTTIME, which goes on while the machine sleeps, like the rules' expiry.
#![expect(unsafe_code, reason = "helpers of the kernel and pointers that pass the verifier")]

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;

/// Reads the clock at most once a packet, and not at all when nobody asks.
#[repr(C)]
pub(crate) struct Clock {
    now_ns: u64,
}

impl Clock {
    #[inline(always)]
    pub(crate) const fn unread() -> Self {
        Self { now_ns: 0 }
    }

    /// As a global function is given it: the verifier wants to see null refused.
    #[inline(always)]
    pub(crate) fn from_pointer<'a>(clock: *mut Self) -> Option<&'a mut Self> {
        // SAFETY: callers pass a unique reference that outlives the call.
        unsafe { clock.as_mut() }
    }

    #[inline(always)]
    pub(crate) fn now_ns(&mut self) -> u64 {
        if self.now_ns == 0 {
            // SAFETY: it takes nothing and touches no memory.
            self.now_ns = unsafe { bpf_ktime_get_boot_ns() };
        }
        self.now_ns
    }
}

//! What the kernel and the compiler ask of every program.
#![expect(unsafe_code, reason = "a section of the object is named")]

/// Some helpers are lent to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The compiler asks for it; the verifier refuses a program from which it can be reached.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

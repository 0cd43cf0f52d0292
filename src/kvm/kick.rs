//! How a vCPU thread is called back from the guest: a real-time signal whose handler sets the run page's
//! `immediate_exit` (Documentation/virt/kvm/api.rst, section 5).
//!
//! Why no call is lost. The caller sets the stop flag, then sends the signal. The thread's loop is: check the flag, enter
//! KVM_RUN, and on EINTR clear `immediate_exit` before the flag is checked again. The signal arrives
//! - before the check: the flag was set before the signal was sent, so the check sees it;
//! - between the check and the kernel's look at `immediate_exit`: the handler has set it, so KVM_RUN returns EINTR at
//!   once, without having entered the guest;
//! - later, in the guest or while the processor is halted: the pending signal makes KVM_RUN return EINTR;
//! - between the return and the clearing, or between the clearing and the check: the check comes after both and sees the
//!   flag. What the handler set last only makes one more KVM_RUN return at once.
//!
//! A signal that arrives before the thread has armed itself finds no run page; the flag is first checked after that.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering, compiler_fence};
use std::thread::JoinHandle;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

use crate::error::{Error, Result};

thread_local! {
    /// This thread's `immediate_exit`, or null. Constant at first and without a destructor, so that the handler's access
    /// is a plain load.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

extern "C" fn handler(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Armed::new`'s caller promised that the byte stays mapped until `Armed` is dropped, which sets the
        // pointer to null on this same thread.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::Relaxed);
    }
}

/// Installs the handler for the whole process, once.
pub(super) fn install() -> Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed =
        INSTALLED.get_or_init(|| register_signal_handler(SIGRTMIN(), handler).map_err(|error| error.errno()));
    installed
        .map_err(|errno| Error::system("install the vCPUs' signal handler", &std::io::Error::from_raw_os_error(errno)))
}

/// Calls a thread back from the guest. Harmless for one that has ended.
pub(super) fn kick(thread: &JoinHandle<()>) {
    // ESRCH: it has ended.
    let _ = thread.kill(SIGRTMIN());
}

/// The current thread's registration of its run page.
pub(super) struct Armed {
    flag: *mut u8,
    /// Belongs to one thread.
    _thread: PhantomData<*mut u8>,
}

impl Armed {
    /// From now on, signals to this thread set `immediate_exit`.
    ///
    /// # Safety
    /// `immediate_exit` is valid for reads and writes until the value is dropped.
    pub(super) unsafe fn new(immediate_exit: *mut u8) -> Armed {
        IMMEDIATE_EXIT.set(immediate_exit);
        // A new thread inherits the mask of its creator. The call fails only for an invalid signal.
        let _ = unblock_signal(SIGRTMIN());
        Armed { flag: immediate_exit, _thread: PhantomData }
    }

    /// Makes the next KVM_RUN enter the guest again. The stop flag must be checked after this.
    pub(super) fn clear(&self) {
        // SAFETY: valid as long as `self` exists, as the caller of `new` promised.
        unsafe { AtomicU8::from_ptr(self.flag) }.store(0, Ordering::Relaxed);
        // The handler runs on this thread: it is enough that the compiler does not move the check before the store.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(null_mut());
        compiler_fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_kick_sets_the_flag_of_its_thread_only_while_armed() {
        install().unwrap();
        install().unwrap();
        let (armed, is_armed) = mpsc::channel();
        let (kicked, is_kicked) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut flag = Box::new(0u8);
            let pointer = std::ptr::from_mut(&mut *flag);
            // SAFETY: `flag` outlives `guard`, which is dropped below.
            let guard = unsafe { Armed::new(pointer) };
            armed.send(()).unwrap();
            is_kicked.recv().unwrap();
            // SAFETY: the box is alive.
            let seen = || unsafe { AtomicU8::from_ptr(pointer) }.load(Ordering::Relaxed);
            assert_eq!(seen(), 1);
            guard.clear();
            assert_eq!(seen(), 0);
            drop(guard);
            // SAFETY: the thread that gets the signal is this one.
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), SIGRTMIN()) }, 0);
            assert_eq!(seen(), 0);
        });
        is_armed.recv().unwrap();
        kick(&thread);
        kicked.send(()).unwrap();
        thread.join().unwrap();
    }
}

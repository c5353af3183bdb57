//! A pinned XDP program, run with frames of one's own.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const OBJ_GET: libc::c_int = 7;
const PROG_TEST_RUN: libc::c_int = 10;

/// The attributes of `BPF_PROG_TEST_RUN`, `union bpf_attr` in include/uapi/linux/bpf.h.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Run {
    program: u32,
    verdict: u32,
    length_in: u32,
    length_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_length_in: u32,
    context_length_out: u32,
    context_in: u64,
    context_out: u64,
}

/// A program, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pinned(OwnedFd);

fn bpf(command: libc::c_int, attributes: &mut [u8]) -> io::Result<i32> {
    // SAFETY: the attributes are as long as is said; the callers' pointers in them are valid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            attributes.len(),
        )
    };
    i32::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}

impl Pinned {
    /// Opens a pinned program.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attributes = [0_u64; 2];
        attributes[0] = path.as_ptr().expose_provenance() as u64;
        let fd = bpf(OBJ_GET, bytemuck::cast_slice_mut(&mut attributes))?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(Self(unsafe { File::from_raw_fd(fd) }.into()))
    }

    /// Runs a frame that comes in on an interface `repeat` times, each time as the time before left
    /// it; the last verdict, and the frame.
    pub(crate) fn run(
        &self,
        frame: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> io::Result<(u32, Vec<u8>)> {
        let length = u32::try_from(frame.len()).unwrap_or(0);
        let mut output = vec![0_u8; frame.len()];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context = [0, length, 0, ifindex, 0, 0];
        let mut run = Run {
            program: self.0.as_raw_fd().cast_unsigned(),
            length_in: length,
            length_out: length,
            data_in: frame.as_ptr().expose_provenance() as u64,
            data_out: output.as_mut_ptr().expose_provenance() as u64,
            repeat,
            context_length_in: 24,
            context_in: context.as_ptr().expose_provenance() as u64,
            ..Run::default()
        };
        bpf(PROG_TEST_RUN, bytemuck::bytes_of_mut(&mut run))?;
        Ok((run.verdict, output))
    }
}

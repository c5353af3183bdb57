//! bpf(2) as this router needs it beyond aya: batch operations, memory-mapped arrays, links by
//! descriptor. Each function is one system call; nothing in here knows what a map is for.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use bytemuck::{AnyBitPattern, Pod};

// Commands and flags of `enum bpf_cmd` and its attributes, include/uapi/linux/bpf.h.
const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_TEST_RUN: u32 = 10;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const ATTACH_TYPE_XDP: u32 = 37;
const READ_ONLY: u32 = 1 << 3;
const NO_EXIST: u64 = 1;
/// `BPF_F_TEST_RUN_ON_CPU`.
const TEST_RUN_ON_CPU: u32 = 1 << 0;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
/// `XDP_FLAGS_SKB_MODE`.
pub(super) const XDP_GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
pub(super) const XDP_NATIVE: u32 = 1 << 2;

/// The kernel's `union bpf_attr`: the attributes of one command.
#[repr(C, align(8))]
struct Attributes([u8; ATTRIBUTES_SIZE]);

/// Enough for every command of this module; the kernel wants the rest to be zero.
const ATTRIBUTES_SIZE: usize = 72;

impl Attributes {
    /// # Safety
    /// Every pointer among the attributes must be valid for what `command` does with it.
    unsafe fn call(&mut self, command: u32) -> io::Result<libc::c_long> {
        // SAFETY: the attributes are as large as is said; the caller vouches for pointers in them.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), ATTRIBUTES_SIZE) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }

    fn u32(&self, word: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[word * 4..word * 4 + 4]);
        u32::from_ne_bytes(bytes)
    }
}

/// Writes attributes one after the other, each aligned to its size.
struct Builder {
    bytes: [u8; ATTRIBUTES_SIZE],
    length: usize,
}

impl Builder {
    const fn new() -> Self {
        Self {
            bytes: [0; ATTRIBUTES_SIZE],
            length: 0,
        }
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        let start = self.length.next_multiple_of(bytes.len());
        self.length = start + bytes.len();
        self.bytes[start..self.length].copy_from_slice(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.put(&value.to_ne_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.put(&value.to_ne_bytes())
    }

    fn fd(self, fd: BorrowedFd<'_>) -> Self {
        self.put(&fd.as_raw_fd().to_ne_bytes())
    }

    fn pointer<T>(self, value: *const T) -> Self {
        self.u64(value.expose_provenance() as u64)
    }

    fn finish(self) -> Attributes {
        Attributes(self.bytes)
    }

    /// # Safety
    /// As [`Attributes::call`].
    unsafe fn call(self, command: u32) -> io::Result<libc::c_long> {
        // SAFETY: the caller vouches for the pointers.
        unsafe { self.finish().call(command) }
    }

    /// A command that returns a descriptor.
    ///
    /// # Safety
    /// As [`Attributes::call`].
    unsafe fn open(self, command: u32) -> io::Result<OwnedFd> {
        // SAFETY: the caller vouches for the pointers.
        let fd = unsafe { self.call(command) }?;
        let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn path_text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let text = path_text(path)?;
    let attributes = Builder::new()
        .pointer(text.as_ptr())
        .u32(0)
        .u32(if read_only { READ_ONLY } else { 0 });
    // SAFETY: the path is a valid C string during the call.
    unsafe { attributes.open(OBJ_GET) }
}

/// Pins an object.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let text = path_text(path)?;
    let attributes = Builder::new().pointer(text.as_ptr()).fd(object);
    // SAFETY: the path is a valid C string during the call.
    unsafe { attributes.call(OBJ_PIN) }.map(drop)
}

/// What the kernel says of a map.
#[derive(Clone, Copy, Debug, Default, AnyBitPattern)]
#[repr(C)]
pub(super) struct MapInfo {
    pub(super) map_type: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// What the kernel says of a program.
#[derive(Clone, Copy, Debug, Default, AnyBitPattern)]
#[repr(C)]
pub(super) struct ProgramInfo {
    pub(super) program_type: u32,
    pub(super) id: u32,
    tag: [u8; 8],
    jited_length: u32,
    translated_length: u32,
    jited: u64,
    translated: u64,
    load_time: u64,
    uid: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

impl ProgramInfo {
    /// Whether the kernel is known to have compiled the program. It may keep that to itself.
    pub(super) fn is_compiled(&self) -> bool {
        self.jited_length != 0
    }

    /// The program's name as the kernel keeps it, cut at 15 characters.
    pub(super) fn name(&self) -> String {
        let bytes = self
            .name
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// What the kernel says of an XDP link.
#[derive(Clone, Copy, Debug, Default, AnyBitPattern)]
#[repr(C)]
pub(super) struct LinkInfo {
    pub(super) link_type: u32,
    pub(super) id: u32,
    pub(super) program_id: u32,
    _pad: u32,
    /// 0 when the interface is gone.
    pub(super) ifindex: u32,
    _pad2: u32,
}

/// Asks the kernel about an object.
pub(super) fn info<T: AnyBitPattern>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::zeroed();
    let length = u32::try_from(size_of::<T>()).unwrap_or(0);
    let attributes = Builder::new().fd(object).u32(length).pointer(&raw mut info);
    // SAFETY: the kernel writes at most `length` bytes into `info`, for which any bits are valid.
    unsafe { attributes.call(OBJ_GET_INFO_BY_FD) }?;
    Ok(info)
}

/// What the kernel says of the program with this id.
pub(super) fn program_by_id(id: u32) -> io::Result<ProgramInfo> {
    // SAFETY: no pointers among the attributes.
    let program = unsafe { Builder::new().u32(id).open(PROG_GET_FD_BY_ID) }?;
    info(program.as_fd())
}

/// Attaches an XDP program to an interface of the calling thread's network namespace.
pub(super) fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let attributes = Builder::new()
        .fd(program)
        .u32(ifindex)
        .u32(ATTACH_TYPE_XDP)
        .u32(flags);
    // SAFETY: no pointers among the attributes.
    unsafe { attributes.open(LINK_CREATE) }
}

/// Replaces a link's program, without a packet in between that meets none.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers among the attributes.
    unsafe { Builder::new().fd(link).fd(program).call(LINK_UPDATE) }.map(drop)
}

/// Runs an XDP program once, on a frame of zeros.
pub(super) fn run_program(program: BorrowedFd<'_>) -> io::Result<()> {
    let frame = [0_u8; 64];
    let attributes = Builder::new()
        .fd(program)
        .u32(0)
        .u32(u32::try_from(frame.len()).unwrap_or(0))
        .u32(0)
        .pointer(frame.as_ptr())
        .u64(0)
        .u32(1);
    // SAFETY: the frame is as long as is said, valid during the call, and only read.
    unsafe { attributes.call(PROG_TEST_RUN) }.map(drop)
}

/// Runs a raw tracepoint's program once, on a CPU; what it returns. `ENXIO` if there is no such CPU, or if it
/// is switched off.
pub(super) fn run_on_cpu(program: BorrowedFd<'_>, cpu: u32) -> io::Result<u32> {
    let mut attributes = Builder::new()
        .fd(program)
        // What it returns, sizes and places of data, how often and how long: zero.
        .u32(0)
        .u32(0)
        .u32(0)
        .u64(0)
        .u64(0)
        .u32(0)
        .u32(0)
        // Sizes and places of contexts.
        .u32(0)
        .u32(0)
        .u64(0)
        .u64(0)
        .u32(TEST_RUN_ON_CPU)
        .u32(cpu)
        .finish();
    // SAFETY: no pointers among the attributes.
    unsafe { attributes.call(PROG_TEST_RUN) }?;
    // Behind the descriptor.
    Ok(attributes.u32(1))
}

/// A map, with the sizes that the kernel reports.
#[derive(Debug)]
pub(super) struct MapHandle {
    fd: OwnedFd,
    pub(super) info: MapInfo,
}

impl MapHandle {
    /// Takes a map's descriptor.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = info(fd.as_fd())?;
        Ok(Self { fd, info })
    }

    /// Whether values have this size; or there is a single one, a table of such.
    fn holds(&self, value_size: usize) -> bool {
        let size = self.info.value_size as usize;
        size == value_size || self.info.max_entries == 1 && size.is_multiple_of(value_size)
    }

    /// Opens a pinned map whose elements must have these sizes, or be a single one, a table of such.
    pub(super) fn open(
        path: &Path,
        key_size: usize,
        value_size: usize,
        read_only: bool,
    ) -> io::Result<Self> {
        let map = Self::new(open_pin(path, read_only)?)?;
        if map.info.key_size as usize != key_size || !map.holds(value_size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is laid out differently", path.display()),
            ));
        }
        Ok(map)
    }

    /// Bytes of kernel memory that the map takes, from its descriptor's `fdinfo`.
    pub(super) fn memory(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        Ok(line.and_then(|line| line.trim().parse().ok()).unwrap_or(0))
    }

    fn check<K, V>(&self) {
        assert_eq!(
            self.info.key_size as usize,
            size_of::<K>(),
            "key size of the map"
        );
        assert_eq!(
            self.info.value_size as usize,
            size_of::<V>(),
            "value size of the map"
        );
    }

    /// Sets one element.
    pub(super) fn update<K: Pod, V: Pod>(&self, key: &K, value: &V) -> io::Result<()> {
        self.check::<K, V>();
        let attributes = Builder::new()
            .fd(self.fd.as_fd())
            .pointer(&raw const *key)
            .pointer(&raw const *value)
            .u64(0);
        // SAFETY: key and value have the map's sizes, as was checked.
        unsafe { attributes.call(MAP_UPDATE_ELEM) }.map(drop)
    }

    /// Adds an element; `false` if there is one with that key.
    pub(super) fn insert<K: Pod, V: Pod>(&self, key: &K, value: &V) -> io::Result<bool> {
        self.check::<K, V>();
        let attributes = Builder::new()
            .fd(self.fd.as_fd())
            .pointer(&raw const *key)
            .pointer(&raw const *value)
            .u64(NO_EXIST);
        // SAFETY: key and value have the map's sizes, as was checked.
        match unsafe { attributes.call(MAP_UPDATE_ELEM) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads one element; `None` if there is none.
    pub(super) fn lookup<K: Pod, V: Pod>(&self, key: &K) -> io::Result<Option<V>> {
        let mut values = vec![V::zeroed()];
        Ok(self.lookup_into(key, &mut values)?.then(|| values[0]))
    }

    /// Reads one element of a per-CPU map: one value per possible CPU.
    pub(super) fn lookup_per_cpu<K: Pod, V: Pod>(
        &self,
        key: &K,
        cpus: usize,
    ) -> io::Result<Option<Vec<V>>> {
        assert!(
            size_of::<V>().is_multiple_of(8),
            "per-CPU values are multiples of 8 bytes"
        );
        let mut values = vec![V::zeroed(); cpus];
        Ok(self.lookup_into(key, &mut values)?.then_some(values))
    }

    fn lookup_into<K: Pod, V: Pod>(&self, key: &K, values: &mut [V]) -> io::Result<bool> {
        self.check::<K, V>();
        let attributes = Builder::new()
            .fd(self.fd.as_fd())
            .pointer(&raw const *key)
            .pointer(values.as_mut_ptr())
            .u64(0);
        // SAFETY: the key has the map's size; `values` has room for one value, or for one per
        // possible CPU where the caller says so.
        match unsafe { attributes.call(MAP_LOOKUP_ELEM) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes one element; whether it was there.
    pub(super) fn delete<K: Pod>(&self, key: &K) -> io::Result<bool> {
        assert_eq!(
            self.info.key_size as usize,
            size_of::<K>(),
            "key size of the map"
        );
        let attributes = Builder::new().fd(self.fd.as_fd()).pointer(&raw const *key);
        // SAFETY: the key has the map's size.
        match unsafe { attributes.call(MAP_DELETE_ELEM) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets many elements with few system calls. On an error, elements before it are set.
    pub(super) fn update_batch<K: Pod, V: Pod>(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        self.check::<K, V>();
        assert_eq!(keys.len(), values.len(), "one value per key");
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            // SAFETY: `keys` and `values` hold as many elements as `batch` says.
            unsafe { self.batch(MAP_UPDATE_BATCH, keys, values.as_ptr().cast_mut()) }.0?;
        }
        Ok(())
    }

    /// Removes many elements that exist. Elements that do not are left out of it.
    pub(super) fn delete_batch<K: Pod>(&self, keys: &[K]) -> io::Result<()> {
        let mut rest = keys;
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(BATCH)];
            // SAFETY: `chunk` holds as many keys as `batch` says; a delete reads no values.
            let (result, done) =
                unsafe { self.batch::<K, u8>(MAP_DELETE_BATCH, chunk, std::ptr::null_mut()) };
            match result {
                Ok(()) => rest = &rest[chunk.len()..],
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    // The element at `done` is not there: go on behind it.
                    rest = &rest[(done as usize + 1).min(rest.len())..];
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Runs a batch operation; the kernel says how many elements it handled, also on an error.
    ///
    /// # Safety
    /// `values` must point to as many values as there are keys, or be unused by `command`.
    unsafe fn batch<K: Pod, V>(
        &self,
        command: u32,
        keys: &[K],
        values: *mut V,
    ) -> (io::Result<()>, u32) {
        assert_eq!(
            self.info.key_size as usize,
            size_of::<K>(),
            "key size of the map"
        );
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let attributes = Builder::new()
            .u64(0)
            .u64(0)
            .pointer(keys.as_ptr())
            .pointer(values)
            .u32(count)
            .fd(self.fd.as_fd());
        let mut raw = attributes.finish();
        // SAFETY: keys are valid for `count` elements, values by the caller's word.
        let result = unsafe { raw.call(command) };
        (result.map(drop), raw.u32(BATCH_COUNT))
    }

    /// Reads all elements of a hash map.
    pub(super) fn read_all<K: Pod, V: Pod>(&self) -> io::Result<Vec<(K, V)>> {
        self.check::<K, V>();
        let mut keys = vec![K::zeroed(); BATCH];
        let mut values = vec![V::zeroed(); BATCH];
        let mut all = Vec::new();
        // The kernel keeps the number of a bucket in it.
        let mut token = 0_u64;
        let mut first = true;
        loop {
            let from: *const u64 = if first {
                std::ptr::null()
            } else {
                &raw const token
            };
            let mut raw = Builder::new()
                .pointer(from)
                .pointer(&raw mut token)
                .pointer(keys.as_mut_ptr())
                .pointer(values.as_mut_ptr())
                .u32(u32::try_from(BATCH).unwrap_or(u32::MAX))
                .fd(self.fd.as_fd())
                .finish();
            // SAFETY: keys and values have room for `BATCH` elements of the map's sizes, the token
            // for a bucket's number.
            let result = unsafe { raw.call(MAP_LOOKUP_BATCH) };
            let done = raw.u32(BATCH_COUNT) as usize;
            let end = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            all.extend(keys.iter().copied().zip(values.iter().copied()).take(done));
            if end {
                return Ok(all);
            }
            first = false;
        }
    }

    /// Maps an array map's elements into memory, or those of the table that is its only element.
    pub(super) fn map_memory<T: Pod>(&self, writable: bool) -> io::Result<Shared<T>> {
        assert!(self.holds(size_of::<T>()), "value size of the map");
        let count = self.info.max_entries as usize * self.info.value_size as usize / size_of::<T>();
        let length = count * size_of::<T>();
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                self.fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(address.cast::<T>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Shared {
            first,
            count,
            writable,
            _type: PhantomData,
        })
    }
}

/// Elements per batch operation; more than a hash bucket ever holds.
const BATCH: usize = 8192;

/// Where `union bpf_attr` has the count of a batch operation, in words of 32 bits.
const BATCH_COUNT: usize = 8;

/// An array map's elements in memory, shared with the programs.
///
/// All access is by aligned 64-bit atomics, so nothing here is a data race; which store publishes
/// what is the business of the caller.
#[derive(Debug)]
pub(super) struct Shared<T> {
    first: NonNull<T>,
    count: usize,
    writable: bool,
    _type: PhantomData<T>,
}

// SAFETY: the mapping belongs to the value, and all access is atomic.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T: Pod> Shared<T> {
    /// Number of elements.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// The 64-bit words of an element, to be read.
    pub(super) fn words(&self, index: usize) -> &[AtomicU64] {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        assert!(index < self.count, "element {index} of {}", self.count);
        // SAFETY: the element is inside the mapping, which lives as long as `self`; pages are
        // aligned, elements are multiples of 8 bytes, and all access is atomic.
        unsafe {
            std::slice::from_raw_parts(
                self.first.as_ptr().add(index).cast::<AtomicU64>(),
                size_of::<T>() / 8,
            )
        }
    }

    /// Reads an element, word by word.
    pub(super) fn get(&self, index: usize) -> T {
        let mut value = T::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut value);
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.words(index)) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        value
    }

    /// Writes the element's bytes `from` an offset on, both multiples of 8, word by word.
    pub(super) fn write(&self, index: usize, from: usize, bytes: &[u8]) {
        assert!(self.writable, "the map was opened for reading");
        assert!(
            from.is_multiple_of(8) && bytes.len().is_multiple_of(8),
            "whole words"
        );
        for (word, bytes) in self.words(index)[from / 8..]
            .iter()
            .zip(bytes.chunks_exact(8))
        {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(value), Ordering::Release);
        }
    }

    /// Writes one word; whoever sees it sees everything that was written before.
    pub(super) fn publish(&self, index: usize, offset: usize, value: u64) {
        assert!(self.writable, "the map was opened for reading");
        self.words(index)[offset / 8].store(value, Ordering::Release);
    }

    /// Writes one word, before anything that is read or written later.
    pub(super) fn store(&self, index: usize, offset: usize, value: u64) {
        assert!(self.writable, "the map was opened for reading");
        self.words(index)[offset / 8].store(value, Ordering::SeqCst);
    }

    /// Reads one word.
    pub(super) fn load(&self, index: usize, offset: usize) -> u64 {
        self.words(index)[offset / 8].load(Ordering::SeqCst)
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map_memory` with this length and nothing refers to it.
        let result =
            unsafe { libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<T>()) };
        debug_assert_eq!(result, 0, "munmap of our own mapping");
    }
}

/// Makes an array of so many elements that can be mapped into memory.
#[cfg(test)]
pub(super) fn create_shared_array<T: Pod>(elements: u32) -> io::Result<MapHandle> {
    const MMAPABLE: u32 = 1 << 10;
    let size = u32::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: no pointers among the attributes.
    let fd = unsafe {
        Builder::new()
            .u32(MAP_TYPE_ARRAY)
            .u32(4)
            .u32(size)
            .u32(elements)
            .u32(MMAPABLE)
            .open(MAP_CREATE)
    }?;
    MapHandle::new(fd)
}

/// Makes an RCU grace period happen by replacing the element of a map of maps, which the kernel
/// lets wait for all running programs. For kernels whose `membarrier` has no global command.
pub(super) fn replace_inner_map() -> io::Result<()> {
    let create = |map_type: u32, inner: u32| {
        // SAFETY: no pointers among the attributes.
        unsafe {
            Builder::new()
                .u32(map_type)
                .u32(4)
                .u32(4)
                .u32(1)
                .u32(0)
                .u32(inner)
                .open(MAP_CREATE)
        }
    };
    let inner = create(MAP_TYPE_ARRAY, 0)?;
    let inner_fd = u32::try_from(inner.as_raw_fd()).unwrap_or(0);
    let outer = MapHandle::new(create(MAP_TYPE_ARRAY_OF_MAPS, inner_fd)?)?;
    outer.update(&0_u32, &inner_fd)
}
